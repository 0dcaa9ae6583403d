//! Calls with a thread pointer of their own.
#![allow(unsafe_code)] // The tests' own machine code, and host functions to call.

use std::time::Duration;

use bytes::Bytes;

use super::call::{Arg, Callee as _, Outcome, ResultType, Scalar, Thread};
use super::test_code::{TestCode, TestPool, assemble, call, import, number, pool, run};
use super::trap::TrapKind;
use super::{THREAD_MAX_BYTES, thread_switch};

#[allow(clashing_extern_declarations)] // Only addresses are used.
mod host {
    unsafe extern "C" {
        pub(super) fn __errno_location();
        pub(super) fn snprintf();
    }
}

assemble!(
    /// `()`: the pointer guard of the C library.
    guard,
    "mov rax, fs:[0x30]", "ret"
);
assemble!(
    /// `(__errno_location)`: the host's errno, in a call that has no thread pointer of its own.
    host_errno,
    "push rbx", "call rdi", "mov eax, [rax]", "pop rbx", "ret"
);
assemble!(
    /// `(offset)`: the word at an offset from the thread pointer.
    read,
    "mov rax, fs:[rdi]", "ret"
);
assemble!(
    /// `(offset, ...)`: the same, and the first two words of the arguments on the stack added.
    read_and_stack,
    "mov rax, fs:[rdi]", "add rax, [rsp + 8]", "add rax, [rsp + 16]", "ret"
);
assemble!(
    /// `(offset, value)`: stores a word at an offset from the thread pointer.
    write,
    "mov fs:[rdi], rsi", "ret"
);
assemble!(
    /// `(switch, function, first, second, errno)`: `function(first, second, 0)`, with errno set before, and a hundred
    /// million times what errno is after it added.
    through,
    "push rbx", "mov fs:[0x34], r8d", "mov dword ptr fs:[0x30], 0x5a5a5a5a", "mov rax, rdi", "mov r11, rsi",
    "mov rdi, rdx", "mov rsi, rcx", "xor edx, edx", "mov ebx, 77", "call rax", "cmp ebx, 77", "jne 2f", "mov ecx, fs:[0x34]",
    "imul rcx, rcx, 100000000", "add rax, rcx", "pop rbx", "ret", "2:", "ud2"
);
assemble!(
    /// `(switch, function, out, size, format)`: a variadic call with arguments in all places.
    variadic,
    "push rbx", "sub rsp, 32", "mov rax, rdi", "mov r11, rsi", "mov rdi, rdx", "mov rsi, rcx", "mov rdx, r8",
    "mov ecx, 1", "mov r8d, 2", "mov r9d, 3", "mov qword ptr [rsp], 4", "mov qword ptr [rsp + 8], 5",
    "mov qword ptr [rsp + 16], 6", "mov r10, 0x3ff8000000000000", "movq xmm0, r10", "mov r10, rax", "mov eax, 1",
    "mov rbx, r10", "call rbx", "add rsp, 32", "pop rbx", "ret"
);
assemble!(
    /// `(switch, function, first, second)`: the high half of a result in two registers.
    high_half,
    "push rbx", "mov rax, rdi", "mov r11, rsi", "mov rdi, rdx", "mov rsi, rdx", "mov rdx, rcx", "xor ecx, ecx",
    "call rax", "mov rax, rdx", "pop rbx", "ret"
);
assemble!(
    /// `(bsearch, key, base, count)`: searches words with a comparison that counts itself in a variable of the thread;
    /// the count.
    counted_search,
    "push rbx", "mov rax, rdi", "mov rdi, rsi", "mov rsi, rdx", "mov rdx, rcx", "mov ecx, 8", "lea r8, [rip + 2f]",
    "call rax", "mov rax, fs:[-8]", "pop rbx", "ret",
    "2:", "inc qword ptr fs:[-8]", "mov rcx, [rdi]", "xor eax, eax", "cmp rcx, [rsi]", "seta al", "sbb eax, 0", "ret"
);
assemble!(
    /// `()`: never ends, and moves its thread pointer's first word.
    spin,
    "mov qword ptr fs:[0], 0", "2:", "jmp 2b"
);
assemble!(
    /// `(what to store)`: leaves something else where a thread control block has its own address.
    forge,
    "mov fs:[0], rdi", "mov eax, 42", "ret"
);
assemble!(
    /// `(switch, strlen, text)` on a stack in the heap of the call, which `text` is in, too.
    other_stack,
    "push rbx", "mov rbx, rsp", "lea rsp, [rdx + 4096]", "mov rax, rdi", "mov r11, rsi", "mov rdi, rdx", "call rax",
    "mov rsp, rbx", "pop rbx", "ret"
);

fn own(code: &[u8], variables: &'static [u8], size_bytes: usize, align_bytes: usize) -> std::sync::Arc<TestCode> {
    TestCode::with_thread(
        code,
        Thread {
            template: variables.as_ptr() as u64,
            template_bytes: variables.len(),
            size_bytes,
            align_bytes,
            errno_offset: 0x34,
        },
    )
}

fn plain(code: &[u8]) -> std::sync::Arc<TestCode> {
    own(code, &[], 0, 1)
}

fn switch() -> Arg {
    Arg::U64(thread_switch().expect("these tests need FSGSBASE").0)
}

fn offset(offset: i64) -> Arg {
    Arg::I64(offset)
}

/// What of the executor's thread calls must leave alone: pointer guard and errno.
fn of_host(pool: &TestPool) -> (u64, u64) {
    let location = Arg::U64(host::__errno_location as *const () as u64);
    let errno = number(pool, &TestCode::new(host_errno(), None), vec![location]);
    // The executor leaves this there itself when it waits for something that has happened already.
    let errno = if errno == libc::EAGAIN as u64 { 0 } else { errno };
    (number(pool, &TestCode::new(guard(), None), vec![]), errno)
}

#[test]
fn a_thread_begins_with_its_own_address_a_canary_initial_values_and_zeros() {
    static VARIABLES: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0];
    let pool = pool(1, 8);
    for align in [16_usize, 64, 4096] {
        let size = 48_usize.next_multiple_of(align);
        let code = own(read(), &VARIABLES, size, align);
        let at = |at: i64| number(&pool, &code, vec![offset(at)]);
        assert!(at(0) != 0 && at(0).is_multiple_of(align as u64), "alignment {align}");
        assert_eq!(at(0x28) & 0xff, 0);
        assert_ne!(at(0x28), 0);
        assert_ne!(at(0x28), number(&pool, &TestCode::new(read(), None), vec![offset(0x28)]), "the host's");
        assert_eq!((at(-(size as i64)), at(8 - size as i64)), (0x0807_0605_0403_0201, 9));
        for zero in (16 - size as i64..0).step_by(8).chain((8..512).step_by(8)) {
            // Canary; the locale, and what it points to.
            if !matches!(zero, 0x28 | 0xa8) {
                assert_eq!(at(zero), 0, "offset {zero}");
            }
        }
        assert_eq!(at(0xa8), at(0) + 0x180);
    }
}

#[test]
fn what_one_call_leaves_the_next_does_not_find_however_large_the_blocks_are() {
    let pool = pool(1, 8);
    let large = |code| own(code, &[], THREAD_MAX_BYTES, 8);
    let places = [-(THREAD_MAX_BYTES as i64), -4096, -8, 8, 0x30, 504];
    for place in places {
        number(&pool, &large(write()), vec![offset(place), Arg::U64(u64::MAX)]);
        assert_eq!(number(&pool, &large(read()), vec![offset(place)]), 0, "offset {place}");
        // Also not one whose own block is elsewhere.
        number(&pool, &large(write()), vec![offset(place), Arg::U64(u64::MAX)]);
        assert_eq!(number(&pool, &plain(read()), vec![offset(place)]), 0, "offset {place}");
    }
}

#[test]
fn arguments_on_the_stack_arrive_there_too() {
    let pool = pool(1, 8);
    let args = [offset(0x40)].into_iter().chain((1..8).map(Arg::U64)).collect();
    assert_eq!(number(&pool, &plain(read_and_stack()), args), 6 + 7);
}

#[test]
fn errno_and_the_pointer_guard_of_the_executor_stay_what_they_were() {
    let pool = pool(1, 8);
    let before = of_host(&pool);
    assert_ne!(before.0, 0, "the C library has a pointer guard");
    let code = plain(through());
    let huge = Arg::Bytes(Bytes::from_static(b"99999999999999999999999\0"));
    for (errno, text, expected) in [
        (0, huge.clone(), (libc::ERANGE as u64) * 100_000_000 + i64::MAX as u64),
        // No error leaves what was there.
        (7, Arg::Bytes(Bytes::from_static(b"12\0")), 700_000_012),
    ] {
        let args = vec![switch(), import("strtol"), text, Arg::U64(0), Arg::I32(errno)];
        assert_eq!(number(&pool, &code, args), expected);
        assert_eq!(of_host(&pool), before);
    }
    // Also where the call does not return, from inside of a host function.
    let trapped = run(
        &pool,
        call(&code, vec![switch(), import("strtol"), Arg::U64(1), Arg::U64(0), Arg::I32(9)], ResultType::U64),
    );
    assert!(matches!(trapped, Outcome::Trap(trap) if trap.kind == TrapKind::Segv), "{trapped:?}");
    assert_eq!(of_host(&pool), before);
}

#[test]
fn host_functions_find_arguments_on_the_stack_and_in_vectors_and_give_results_in_two_registers() {
    let pool = pool(1, 8);
    let function = Arg::U64(host::snprintf as *const () as u64);
    let format = Arg::Bytes(Bytes::from_static(b"%d %d %d %d %d %d %g\0"));
    let args = vec![switch(), function, Arg::Out(64), Arg::U64(64), format];
    match run(&pool, call(&plain(variadic()), args, ResultType::I32)) {
        Outcome::Returned { value, buffers } => {
            assert_eq!(value, Some(Scalar::I32(15)));
            assert_eq!(buffers[0][..16], *b"1 2 3 4 5 6 1.5\0");
        }
        other => panic!("expected a return, not {other:?}"),
    }
    // (2^64 + 1) * 5 of 128 bits, by `__udivti3((5 << 64) + 5, 1)`.
    let args = vec![switch(), import("__udivti3"), Arg::U64(5), Arg::U64(1)];
    assert_eq!(number(&pool, &plain(high_half()), args), 5);
}

#[test]
fn code_that_a_host_function_calls_back_has_its_own_thread_pointer() {
    let pool = pool(1, 8);
    let words: Vec<u8> = (0..64_u64).flat_map(u64::to_le_bytes).collect();
    let args = vec![
        import("bsearch"),
        Arg::Bytes(Bytes::copy_from_slice(&63_u64.to_le_bytes())),
        Arg::Bytes(words.into()),
        Arg::U64(64),
    ];
    let comparisons = number(&pool, &own(counted_search(), &[], 16, 16), args);
    assert!((5..=7).contains(&comparisons), "{comparisons}");
}

#[test]
fn a_call_ends_at_its_time_limit_wherever_its_thread_pointer_is_and_others_go_on() {
    let pool = pool(1, 8);
    let before = of_host(&pool);
    let endless = call(&plain(spin()), vec![], ResultType::Void);
    let outcome = run(&pool, super::call::Call { cpu_limit: Duration::from_millis(20), ..endless });
    assert!(matches!(outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Timeout), "{outcome:?}");
    assert_eq!(of_host(&pool), before);
    assert_eq!(number(&pool, &plain(read()), vec![offset(0x40)]), 0);
}

#[test]
fn what_code_stores_at_its_thread_pointer_does_not_mislead_the_way_back() {
    let pool = pool(1, 8);
    let host_base = number(&pool, &TestCode::new(read(), None), vec![offset(0)]);
    let before = of_host(&pool);
    for forged in [0, 1, host_base, u64::MAX] {
        assert_eq!(number(&pool, &plain(forge()), vec![Arg::U64(forged)]), 42, "{forged:#x}");
        assert_eq!(of_host(&pool), before);
    }
}

#[test]
fn an_abort_in_a_host_function_is_where_code_called_it() {
    let pool = pool(1, 8);
    let code = plain(through());
    let args = vec![switch(), import("free"), Arg::U64(8), Arg::U64(0), Arg::I32(0)];
    match run(&pool, call(&code, args, ResultType::U64)) {
        Outcome::Trap(trap) => {
            assert_eq!(trap.kind, TrapKind::Abort);
            assert!(code.code_range().contains(&trap.pc), "{trap:x?}");
        }
        other => panic!("expected a trap, not {other:?}"),
    }
}

#[test]
fn code_on_a_stack_of_its_own_may_call_host_functions() {
    let pool = pool(1, 8);
    let mut text = vec![b'x'; 8192];
    text[100] = 0;
    let args = vec![switch(), import("strlen"), Arg::InOut(text.into())];
    assert_eq!(number_of(&pool, args), 100);
}

fn number_of(pool: &TestPool, args: Vec<Arg>) -> u64 {
    match run(pool, call(&plain(other_stack()), args, ResultType::U64)) {
        Outcome::Returned { value: Some(Scalar::U64(value)), .. } => value,
        other => panic!("expected a number, not {other:?}"),
    }
}
