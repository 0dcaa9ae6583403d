//! Calls that mean well: arguments, results, buffers, heap, host functions.
#![allow(unsafe_code)] // The tests' own machine code stands between linker symbols.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::call::{Arg, ArgError, Outcome, ResultType, Scalar};
use super::confine::FilterPolicy;
use super::pool::Pool;
use super::refusal::Refusal;
use super::start::{ExecConfig, StartError};
use super::test_code::{CALL_MEMORY_BYTES, TestCode, TestPool, assemble, call, import, number, pool, run, wait};
use super::trap::TrapKind;

assemble!(
    /// Each argument times a digit of its own.
    six_ints,
    "imul rsi, rsi, 10", "imul rdx, rdx, 100", "imul rcx, rcx, 1000", "imul r8, r8, 10000", "imul r9, r9, 100000",
    "lea rax, [rdi + rsi]", "add rax, rdx", "add rax, rcx", "add rax, r8", "add rax, r9", "ret"
);
assemble!(
    /// xmm0 + 2 xmm1 + 4 xmm2 ... by repeated doubling from the last.
    eight_doubles,
    "addsd xmm7, xmm7", "addsd xmm6, xmm7", "addsd xmm6, xmm6", "addsd xmm5, xmm6", "addsd xmm5, xmm5",
    "addsd xmm4, xmm5", "addsd xmm4, xmm4", "addsd xmm3, xmm4", "addsd xmm3, xmm3", "addsd xmm2, xmm3",
    "addsd xmm2, xmm2", "addsd xmm1, xmm2", "addsd xmm1, xmm1", "addsd xmm0, xmm1", "ret"
);
assemble!(
    /// `(index, ...)`: that word of the arguments on the stack.
    stack_word, "mov rax, [rsp + rdi*8 + 8]", "ret"
);
assemble!(
    /// Sixteen digits, the first one highest.
    sixteen_ints,
    "mov rax, rdi", "imul rax, rax, 10", "add rax, rsi", "imul rax, rax, 10", "add rax, rdx", "imul rax, rax, 10",
    "add rax, rcx", "imul rax, rax, 10", "add rax, r8", "imul rax, rax, 10", "add rax, r9", "mov ecx, 1", "2:",
    "imul rax, rax, 10", "add rax, [rsp + rcx*8]", "inc ecx", "cmp ecx, 11", "jne 2b", "ret"
);
assemble!(identity, "mov rax, rdi", "ret");
assemble!(float_sum, "addss xmm0, xmm1", "ret");
assemble!(
    /// All registers that hold no argument, but r10, which has the address of the code, and those of vectors.
    other_registers,
    "mov rax, rbx", "or rax, rbp", "or rax, r11", "or rax, r12", "or rax, r13", "or rax, r14", "or rax, r15", "ret"
);
assemble!(stack_pointer, "mov rax, rsp", "ret");
assemble!(
    /// `(from, to, len)`: copies upside down, and adds one to each byte of `from`.
    reverse,
    "mov rcx, rdx", "2:", "jrcxz 3f", "mov al, [rdi]", "mov [rsi + rcx - 1], al", "inc byte ptr [rdi]", "inc rdi",
    "dec rcx", "jmp 2b", "3:", "ret"
);
assemble!(
    /// `(pointer, len)`: whether all bytes are zero.
    is_zero, "xor eax, eax", "2:", "or al, [rdi + rsi - 1]", "dec rsi", "jnz 2b", "ret"
);
assemble!(
    /// `(a, b, function, c)`: `function(a, b, c)` on an aligned stack.
    apply, "mov rax, rdx", "mov rdx, rcx", "push rbp", "call rax", "pop rbp", "ret"
);
assemble!(
    /// `(malloc, size)`: fills the block with 0xaa and returns its address.
    fill_block,
    "push rsi", "mov rax, rdi", "mov rdi, rsi", "call rax", "pop rcx", "mov rdx, rax", "mov rdi, rax", "mov al, 0xaa",
    "rep stosb", "mov rax, rdx", "ret"
);
assemble!(
    /// `(malloc, free)`: ten thousand pairs of a hundred thousand bytes.
    churn,
    "push rbx", "push r12", "push r13", "mov r12, rdi", "mov r13, rsi", "mov ebx, 10000", "2:", "mov edi, 100000",
    "call r12", "mov rdi, rax", "mov [rdi], rax", "call r13", "dec ebx", "jnz 2b", "pop r13", "pop r12", "pop rbx",
    "mov eax, 1", "ret"
);
assemble!(
    /// `(malloc, free)`: a double free.
    double_free,
    "push rbx", "push r12", "push r13", "mov r12, rsi", "mov rax, rdi", "mov edi, 10", "call rax", "mov rbx, rax",
    "mov rdi, rax", "call r12", "mov rdi, rbx", "call r12", "ud2"
);

fn returned(pool: &TestPool, code: &[u8], args: Vec<Arg>, result: ResultType) -> (Option<Scalar>, Vec<Bytes>) {
    match run(pool, call(&TestCode::new(code, None), args, result)) {
        Outcome::Returned { value, buffers } => (value, buffers),
        other => panic!("expected a return, not {other:?}"),
    }
}

#[test]
fn integers_and_floats_arrive_in_their_registers() {
    let pool = pool(1, 8);
    let ints = vec![Arg::I32(1), Arg::U32(2), Arg::I64(3), Arg::U64(4), Arg::I32(5), Arg::I64(6)];
    assert_eq!(returned(&pool, six_ints(), ints, ResultType::I32).0, Some(Scalar::I32(654_321)));
    let floats = (0..8).map(|value| Arg::F64(f64::from(value))).collect();
    let expected = (0..8).map(|value| f64::from(value) * f64::from(1 << value)).sum();
    assert_eq!(returned(&pool, eight_doubles(), floats, ResultType::F64).0, Some(Scalar::F64(expected)));
    let mixed = vec![Arg::F32(1.5), Arg::U64(7), Arg::F32(0.25)];
    assert_eq!(returned(&pool, float_sum(), mixed.clone(), ResultType::F32).0, Some(Scalar::F32(1.75)));
    assert_eq!(returned(&pool, identity(), mixed, ResultType::U64).0, Some(Scalar::U64(7)));
}

#[test]
fn arguments_beyond_the_registers_arrive_on_the_stack_in_their_order() {
    let pool = pool(1, 8);
    let code = TestCode::new(sixteen_ints(), None);
    let digits = (1..=16).map(|digit| Arg::U64(digit % 10)).collect();
    assert_eq!(number(&pool, &code, digits), 1_234_567_890_123_456);
    // Seven integers and nine floats: of both the last one has no register left.
    let code = TestCode::new(stack_word(), None);
    let ints = |index| std::iter::once(Arg::U64(index)).chain((1..6).map(Arg::U64));
    let floats = || (0..8).map(|value| Arg::F64(f64::from(value)));
    let rest = [Arg::I32(-7), Arg::F64(0.5)];
    for (first, second) in [(0, 1), (1, 0)] {
        let rest = [rest[first].clone(), rest[second].clone()];
        let word = |index| number(&pool, &code, ints(index).chain(floats()).chain(rest.clone()).collect());
        assert_eq!((word(first as u64), word(second as u64)), (-7_i64 as u64, 0.5_f64.to_bits()));
    }
    let text = Arg::Bytes(Bytes::from_static(b"text"));
    let pointer = number(&pool, &code, ints(0).chain([text]).collect());
    assert_eq!(pointer, number(&pool, &TestCode::new(identity(), None), vec![Arg::Out(1)]), "a buffer's address");
}

#[test]
fn the_stack_is_aligned_whatever_stands_on_it_and_begins_anew_with_each_call() {
    let pool = pool(1, 8);
    let code = TestCode::new(stack_pointer(), None);
    let at = |count| number(&pool, &code, vec![Arg::U64(0); count]);
    let top = at(0);
    for count in 0..=16_usize {
        let below = (count.saturating_sub(6) * 8).next_multiple_of(16) as u64;
        assert_eq!((at(count) % 16, top - at(count)), (8, below), "{count} arguments");
    }
    assert_eq!(at(0), top);
}

#[test]
fn integers_are_extended_and_results_are_cut_to_their_type() {
    let pool = pool(1, 8);
    let result = |arg, kind| returned(&pool, identity(), vec![arg], kind).0;
    assert_eq!(result(Arg::I32(-1), ResultType::U64), Some(Scalar::U64(u64::MAX)));
    assert_eq!(result(Arg::U32(u32::MAX), ResultType::I64), Some(Scalar::I64(u32::MAX.into())));
    assert_eq!(result(Arg::U64(u64::MAX), ResultType::I32), Some(Scalar::I32(-1)));
    assert_eq!(result(Arg::U64(1 << 40), ResultType::U32), Some(Scalar::U32(0)));
    assert_eq!(result(Arg::U64(1), ResultType::Void), None);
}

#[test]
fn code_starts_with_the_stack_alignment_of_the_abi() {
    let pool = pool(1, 8);
    assert_eq!(number(&pool, &TestCode::new(stack_pointer(), None), vec![]) % 16, 8);
}

#[test]
fn code_starts_with_nothing_of_the_host_in_registers() {
    let pool = pool(1, 8);
    assert_eq!(number(&pool, &TestCode::new(other_registers(), None), vec![]), 0);
}

#[test]
fn buffers_are_copied_in_and_out_and_aligned() {
    let pool = pool(1, 8);
    let source = Bytes::from_static(b"hello, world");
    let args = vec![Arg::InOut(source.clone()), Arg::Out(12), Arg::U64(12)];
    let (_, buffers) = returned(&pool, reverse(), args, ResultType::Void);
    assert_eq!(buffers, [Bytes::from_static(b"ifmmp-!xpsme"), Bytes::from_static(b"dlrow ,olleh")]);
    assert_eq!(source, Bytes::from_static(b"hello, world"), "code has a copy");
    let args = vec![Arg::Bytes(source.clone()), Arg::Out(12), Arg::U64(12)];
    assert_eq!(returned(&pool, reverse(), args, ResultType::Void).1.len(), 1, "plain bytes do not come back");
    let code = TestCode::new(identity(), None);
    assert_eq!(number(&pool, &code, vec![Arg::Bytes(source)]) % 16, 0);
    assert_ne!(number(&pool, &code, vec![Arg::Out(0)]), 0);
}

#[test]
fn out_buffers_are_zero_whatever_an_earlier_call_left() {
    let pool = pool(1, 8);
    let code = TestCode::new(is_zero(), None);
    for len in [1_usize, 100, 70_000, CALL_MEMORY_BYTES] {
        let dirt = Arg::Bytes(vec![0xff; len].into());
        assert_ne!(number(&pool, &code, vec![dirt, Arg::U64(len as u64)]), 0);
        assert_eq!(number(&pool, &code, vec![Arg::Out(len as u64), Arg::U64(len as u64)]), 0, "{len} bytes");
    }
}

#[test]
fn what_a_call_left_in_its_heap_is_gone_for_the_next() {
    let pool = pool(1, 8);
    let (fill, look) = (TestCode::new(fill_block(), None), TestCode::new(is_zero(), None));
    for len in [100_u64, 100_000, 2_000_000] {
        let block = number(&pool, &fill, vec![import("malloc"), Arg::U64(len)]);
        assert_ne!(block, 0);
        assert_eq!(number(&pool, &look, vec![Arg::U64(block), Arg::U64(len)]), 0, "{len} bytes at {block:#x}");
    }
}

#[test]
fn host_functions_do_what_their_names_say() {
    let pool = pool(1, 8);
    let code = TestCode::new(apply(), None);
    let bytes = |text: &'static [u8]| Arg::Bytes(Bytes::from_static(text));
    let call = |name, a, b, c| number(&pool, &code, vec![a, b, import(name), c]);
    assert_eq!(call("strlen", bytes(b"hello\0"), Arg::U64(0), Arg::U64(0)), 5);
    assert_eq!(call("strnlen", bytes(b"hello\0"), Arg::U64(3), Arg::U64(0)), 3);
    assert_eq!(call("strcmp", bytes(b"same\0"), bytes(b"same\0"), Arg::U64(0)) as u32, 0);
    assert_ne!(call("bcmp", bytes(b"same"), bytes(b"some"), Arg::U64(4)) as u32, 0);
    let args = vec![Arg::Out(4), bytes(b"copy"), import("memcpy"), Arg::U64(4)];
    assert_eq!(returned(&pool, apply(), args, ResultType::Void).1, [Bytes::from_static(b"copy")]);
}

#[test]
fn the_heap_is_bounded_reused_and_checked() {
    let pool = pool(1, 8);
    let code = TestCode::new(apply(), None);
    let malloc = |size| number(&pool, &code, vec![Arg::U64(size), Arg::U64(0), import("malloc")]);
    assert_eq!(malloc(1000) % 16, 0);
    assert_eq!(malloc(1000), malloc(1000), "each call begins with an empty heap");
    assert_eq!(malloc(CALL_MEMORY_BYTES as u64 + 1), 0);
    assert_eq!(malloc(u64::MAX), 0);
    assert_eq!(number(&pool, &TestCode::new(churn(), None), vec![import("malloc"), import("free")]), 1);
    let corrupt = call(&TestCode::new(double_free(), None), vec![import("malloc"), import("free")], ResultType::Void);
    assert!(matches!(run(&pool, corrupt), Outcome::Trap(trap) if trap.kind == TrapKind::Abort));
}

#[test]
fn times_of_a_call_are_consistent() {
    let pool = pool(1, 8);
    let before = Instant::now();
    let done = wait(
        pool.submit(call(&TestCode::new(churn(), None), vec![import("malloc"), import("free")], ResultType::Void))
            .unwrap(),
    );
    assert!(done.cpu <= done.wall, "{done:?}");
    assert!(done.queued + done.wall <= before.elapsed(), "{done:?}");
}

#[test]
fn what_cannot_be_called_is_given_back() {
    let pool = pool(1, 8);
    let code = TestCode::new(identity(), None);
    let rejected = pool.submit(call(&code, vec![Arg::Out(u64::MAX)], ResultType::Void)).unwrap_err();
    assert_eq!(rejected.refusal, Refusal::Args(ArgError::TooMuchMemory { max_bytes: CALL_MEMORY_BYTES }));
    assert_eq!(rejected.call.args, [Arg::Out(u64::MAX)]);
    let mut outside = call(&code, vec![], ResultType::Void);
    outside.entry = 0;
    assert_eq!(pool.submit(outside).unwrap_err().refusal, Refusal::Entry { entry: 0 });
}

#[test]
fn a_pool_that_could_not_run_anything_is_refused() {
    let config = ExecConfig {
        executors: 0,
        spare_executors: 0,
        queue_max: 1,
        queue_tenant_max: 1,
        stack_bytes: 1,
        stack_guard_bytes: 1,
        call_memory_max_bytes: 1,
        inline_threads: 0,
        inline: Duration::ZERO,
        stuck_after: Duration::from_secs(60),
        stuck_max: 0,
        cpu_limit_default: Duration::ZERO,
        tick: Duration::from_millis(1),
        code: vec![],
        code_flips: false,
        filter: FilterPolicy::Off,
    };
    let start = |config| Pool::<std::sync::Arc<TestCode>>::start(config).map(drop);
    assert!(matches!(start(config.clone()), Err(StartError::Config { executors: 0, .. })));
    let scattered = ExecConfig { executors: 1, code: vec![0..1; 17], ..config.clone() };
    assert!(matches!(start(scattered), Err(StartError::Ranges { given: 17 })));
    let too_large = ExecConfig { executors: 1, stack_bytes: 1 << 40, ..config };
    assert!(matches!(start(too_large), Err(StartError::Slot { executor: 0, .. })));
}
