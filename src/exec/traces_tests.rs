//! Code of one tenant leaves a pattern wherever it can; code of another one looks for it wherever it can.
#![allow(unsafe_code)] // The tests' own machine code stands between linker symbols.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::call::{Arg, Outcome, ResultType, Thread};
use super::lend_thread;
use super::pace::SHORT_MIN;
use super::pool::Pool;
use super::stack::{FRAME_BYTES, PAGE_BYTES, SLOT_BYTES};
use super::start::ExecConfig;
use super::test_code::{CALL_MEMORY_BYTES, TestCode, TestPool, assemble, call, config, import, number, pool, run};
use super::thread::AREA_BYTES;
use super::trap::TrapKind;

const PATTERN: u64 = 0x5ec7_e7da_7a5e_c7e7;
const STACK_BYTES: usize = 256 << 10;
const GUARD_BYTES: usize = 64 << 20;
const ALT_STACK_BYTES: usize = 64 << 10;
/// Calls of one tenant, and of another.
const FIRST: u64 = 1;
const SECOND: u64 = 2;

assemble!(stack_pointer, "mov rax, rsp", "ret");
assemble!(
    /// `(start, words, inverted pattern)`: how many words have the pattern. Holds nothing else of it.
    count, "xor eax, eax", "not rdx", "2:", "test rsi, rsi", "jz 4f", "cmp [rdi], rdx", "jne 3f", "inc rax", "3:",
    "add rdi, 8", "dec rsi", "jmp 2b", "4:", "xor edx, edx", "ret"
);
assemble!(
    /// `(pattern, words, malloc, bytes)`: fills that many words of stack, and a block of the heap.
    fill_stack_and_heap,
    "mov r8, rsp", "mov rax, rdi", "2:", "push rax", "dec rsi", "jnz 2b", "mov rsp, r8", "push rbx", "mov rbx, rdi",
    "push rcx", "sub rsp, 8", "mov rdi, rcx", "call rdx", "add rsp, 8", "pop rcx", "mov rdi, rax", "mov rax, rbx",
    "shr rcx, 3", "rep stosq", "pop rbx", "ret"
);
assemble!(
    /// `(pattern, address, words)`: fills memory.
    fill, "mov rax, rdi", "mov rdi, rsi", "mov rcx, rdx", "rep stosq", "ret"
);
assemble!(
    /// `(pattern)`: fills registers, but for those above AVX, and returns.
    fill_registers,
    "push rbx", "push r12", "push r13", "push r14", "push r15", "push rbp", "mov rbx, rdi", "mov r8, rdi", "mov r9, rdi",
    "mov r10, rdi", "mov r11, rdi", "mov r12, rdi", "mov rax, rdi", "mov rcx, rdi", "mov rdx, rdi", "mov rsi, rdi",
    "push rdi", "movq mm0, rdi", "movq mm1, rdi", "movq mm2, rdi", "movq mm3, rdi", "movq mm4, rdi", "movq mm5, rdi",
    "movq mm6, rdi", "movq mm7, rdi", "movddup xmm0, [rsp]", "movaps xmm1, xmm0", "movaps xmm2, xmm0",
    "movaps xmm3, xmm0", "movaps xmm4, xmm0", "movaps xmm5, xmm0", "movaps xmm6, xmm0", "movaps xmm7, xmm0",
    "movaps xmm8, xmm0", "movaps xmm9, xmm0", "movaps xmm10, xmm0", "movaps xmm11, xmm0", "movaps xmm12, xmm0",
    "movaps xmm13, xmm0", "movaps xmm14, xmm0", "movaps xmm15, xmm0", "emms", "pop rdi", "pop rbp", "pop r15", "pop r14",
    "pop r13", "pop r12", "pop rbx", "ret"
);
assemble!(
    /// `(pattern)`: the same above AVX-512's lower half, and its masks.
    fill_registers_of_avx512,
    "vpbroadcastq zmm16, rdi", "vmovdqa64 zmm17, zmm16", "vmovdqa64 zmm18, zmm16", "vmovdqa64 zmm19, zmm16",
    "vmovdqa64 zmm20, zmm16", "vmovdqa64 zmm21, zmm16", "vmovdqa64 zmm22, zmm16", "vmovdqa64 zmm23, zmm16",
    "vmovdqa64 zmm24, zmm16", "vmovdqa64 zmm25, zmm16", "vmovdqa64 zmm26, zmm16", "vmovdqa64 zmm27, zmm16",
    "vmovdqa64 zmm28, zmm16", "vmovdqa64 zmm29, zmm16", "vmovdqa64 zmm30, zmm16", "vmovdqa64 zmm31, zmm16",
    "vpbroadcastq zmm0, rdi", "vmovdqa64 zmm8, zmm16", "vmovdqa64 zmm15, zmm16", "kmovq k1, rdi", "kmovq k2, rdi",
    "kmovq k3, rdi", "kmovq k7, rdi", "ret"
);
assemble!(
    /// `(buffer of 512 bytes and 1024)`: all registers as they are at the start; the caller's own three come last.
    dump_registers,
    "fxsave64 [rdi]", "mov [rdi + 512], rbx", "mov [rdi + 520], rbp", "mov [rdi + 528], r12", "mov [rdi + 536], r13",
    "mov [rdi + 544], r14", "mov [rdi + 552], r15", "mov [rdi + 560], r8", "mov [rdi + 568], r9",
    "mov [rdi + 576], r10", "mov [rdi + 584], rax", "mov [rdi + 592], rcx", "mov [rdi + 600], rdx",
    "mov [rdi + 608], rsi", "ret"
);
assemble!(
    /// `(buffer of 2048 + 64 bytes)`: vectors and masks.
    dump_registers_of_avx512,
    "vmovdqu64 [rdi], zmm0", "vmovdqu64 [rdi + 64], zmm1", "vmovdqu64 [rdi + 128], zmm8",
    "vmovdqu64 [rdi + 192], zmm15", "vmovdqu64 [rdi + 256], zmm16", "vmovdqu64 [rdi + 320], zmm17",
    "vmovdqu64 [rdi + 384], zmm18", "vmovdqu64 [rdi + 448], zmm19", "vmovdqu64 [rdi + 512], zmm20",
    "vmovdqu64 [rdi + 576], zmm21", "vmovdqu64 [rdi + 640], zmm22", "vmovdqu64 [rdi + 704], zmm23",
    "vmovdqu64 [rdi + 768], zmm24", "vmovdqu64 [rdi + 832], zmm25", "vmovdqu64 [rdi + 896], zmm26",
    "vmovdqu64 [rdi + 960], zmm27", "vmovdqu64 [rdi + 1024], zmm28", "vmovdqu64 [rdi + 1088], zmm29",
    "vmovdqu64 [rdi + 1152], zmm30", "vmovdqu64 [rdi + 1216], zmm31", "kmovq [rdi + 1280], k1",
    "kmovq [rdi + 1288], k2", "kmovq [rdi + 1296], k3", "kmovq [rdi + 1304], k7", "ret"
);
assemble!(
    /// `(pattern)`: the pattern in all general registers, for ever.
    stay, "mov rax, rdi", "mov rbx, rdi", "mov rcx, rdi", "mov rdx, rdi", "mov r8, rdi", "movq xmm9, rdi", "2:", "jmp 2b"
);
assemble!(
    /// `(pattern)`: a trap with the pattern in registers.
    trap, "mov rax, rdi", "mov rbx, rdi", "push rdi", "push rdi", "ud2"
);
assemble!(
    /// `(pattern, offset)`: stores at the thread pointer.
    store_at_thread, "mov fs:[rsi], rdi", "ret"
);

/// A word that both say differently.
fn inverted() -> Arg {
    Arg::U64(!PATTERN)
}

fn pattern() -> Arg {
    Arg::U64(PATTERN)
}

/// The accessible parts of the slot of a pool with one executor: stack, call memory, thread, alternate stack and frame.
fn parts(pool: &TestPool, tenant: u64) -> [(&'static str, usize, usize); 4] {
    let stack_pointer = number(pool, &TestCode::of_tenant(stack_pointer(), tenant), vec![]) as usize;
    let base = stack_pointer & !(SLOT_BYTES - 1);
    let (stack, end) = (base + GUARD_BYTES, base + SLOT_BYTES);
    let alt_stack = end - FRAME_BYTES - ALT_STACK_BYTES;
    [
        ("stack", stack, STACK_BYTES),
        ("call memory", stack + STACK_BYTES + PAGE_BYTES, CALL_MEMORY_BYTES),
        ("thread", alt_stack - PAGE_BYTES - AREA_BYTES, AREA_BYTES),
        ("alternate stack and frame", alt_stack, ALT_STACK_BYTES + FRAME_BYTES),
    ]
}

/// In which parts code of the tenant finds the pattern, and how often.
fn found(pool: &TestPool, tenant: u64) -> Vec<(&'static str, u64)> {
    let code = TestCode::of_tenant(count(), tenant);
    let look = |(name, start, bytes): (&'static str, usize, usize)| {
        let args = vec![Arg::U64(start as u64), Arg::U64(bytes as u64 / 8), inverted()];
        (name, number(pool, &code, args))
    };
    parts(pool, tenant).into_iter().map(look).filter(|(_, words)| *words > 0).collect()
}

fn returned(pool: &TestPool, code: &Arc<TestCode>, args: Vec<Arg>) -> Vec<Bytes> {
    match run(pool, call(code, args, ResultType::Void)) {
        Outcome::Returned { buffers, .. } => buffers,
        other => panic!("expected a return, not {other:?}"),
    }
}

fn has_pattern(bytes: &[u8]) -> bool {
    bytes.windows(8).any(|window| window == PATTERN.to_le_bytes())
}

#[test]
fn what_a_tenant_leaves_in_memory_another_does_not_find() {
    let pool = pool(1, 8);
    let first = |code| TestCode::of_tenant(code, FIRST);
    let memory = parts(&pool, FIRST)[1].1 as u64;
    let leave = || {
        // 200 KiB of stack, two sizes of heap, and a buffer.
        for heap_bytes in [1000, 1_000_000_u64] {
            let args = vec![pattern(), Arg::U64(25_000), import("malloc"), Arg::U64(heap_bytes)];
            number(&pool, &first(fill_stack_and_heap()), args);
        }
        let bytes = Bytes::from(PATTERN.to_le_bytes().repeat(500));
        returned(&pool, &first(stack_pointer()), vec![Arg::Bytes(bytes.clone()), Arg::InOut(bytes)]);
        // Beyond all that was handed out, and in the same page.
        for at in [memory + 5000, memory + 3_000_000] {
            number(&pool, &first(fill()), vec![pattern(), Arg::U64(at), Arg::U64(10)]);
        }
    };
    leave();
    let own: Vec<_> = found(&pool, FIRST).into_iter().map(|(name, _)| name).collect();
    assert_eq!(own, ["stack", "call memory"], "there is something to be found");
    leave();
    assert_eq!(found(&pool, SECOND), []);
    assert_eq!(found(&pool, FIRST), [], "gone for good");
}

#[test]
fn what_a_tenant_leaves_in_the_block_of_a_thread_another_does_not_find() {
    if super::thread_switch().is_none() {
        return;
    }
    let pool = pool(1, 8);
    let thread = Thread { template: 0, template_bytes: 0, size_bytes: 4096, align_bytes: 16, errno_offset: 0x34 };
    let first = TestCode::of_tenant_with_thread(store_at_thread(), FIRST, thread);
    // Inside of the block, and below it, where it is the code's to write as nothing is checked.
    for offset in [-4096_i64, 64, -20_000] {
        number(&pool, &first, vec![pattern(), Arg::I64(offset)]);
    }
    assert_eq!(found(&pool, SECOND), []);
}

#[test]
fn what_signals_have_stored_of_a_tenant_another_does_not_find() {
    let pool = pool(1, 8);
    let stop = || {
        let mut endless = call(&TestCode::of_tenant(stay(), FIRST), vec![pattern()], ResultType::Void);
        endless.cpu_limit = Duration::from_millis(2);
        assert!(matches!(run(&pool, endless), Outcome::Trap(trap) if trap.kind == TrapKind::Timeout));
        let trapping = call(&TestCode::of_tenant(trap(), FIRST), vec![pattern()], ResultType::Void);
        assert!(matches!(run(&pool, trapping), Outcome::Trap(trap) if trap.kind == TrapKind::Ill));
    };
    stop();
    let own: Vec<_> = found(&pool, FIRST).into_iter().map(|(name, _)| name).collect();
    assert_eq!(own, ["alternate stack and frame"], "there is something to be found");
    stop();
    assert_eq!(found(&pool, SECOND), []);
}

#[test]
fn what_a_tenant_leaves_in_registers_another_does_not_find() {
    let pool = pool(1, 8);
    let fill = TestCode::of_tenant(fill_registers(), FIRST);
    let dump = |tenant| returned(&pool, &TestCode::of_tenant(dump_registers(), tenant), vec![Arg::Out(2048)]);
    returned(&pool, &fill, vec![pattern()]);
    assert!(has_pattern(&dump(FIRST)[0]), "there is something to be found");
    returned(&pool, &fill, vec![pattern()]);
    assert!(!has_pattern(&dump(SECOND)[0]));
    if std::is_x86_feature_detected!("avx512bw") {
        let fill = TestCode::of_tenant(fill_registers_of_avx512(), FIRST);
        let dump =
            |tenant| returned(&pool, &TestCode::of_tenant(dump_registers_of_avx512(), tenant), vec![Arg::Out(2112)]);
        returned(&pool, &fill, vec![pattern()]);
        assert!(has_pattern(&dump(FIRST)[0]), "there is something to be found");
        returned(&pool, &fill, vec![pattern()]);
        assert!(!has_pattern(&dump(SECOND)[0]));
    }
}

#[test]
fn what_a_tenant_of_little_memory_leaves_behind_its_buffers_another_does_not_find() {
    let pool = pool(1, 8);
    let memory = parts(&pool, FIRST)[1].1 as u64;
    let fill = TestCode::of_tenant(fill(), FIRST);
    // In the page of a small buffer, and in that behind it.
    for at in [memory + 2000, memory + 5000] {
        returned(&pool, &fill, vec![pattern(), Arg::U64(at), Arg::U64(10), Arg::Out(100)]);
    }
    assert_eq!(found(&pool, SECOND), []);
}

#[test]
fn an_inline_call_finds_nothing_in_registers_of_what_its_thread_did_before() {
    let config = ExecConfig { inline_threads: 1, inline: Duration::from_secs(60), ..config(1, 64) };
    let pool: TestPool = Pool::start(config).unwrap();
    let code = TestCode::of_tenant(dump_registers(), FIRST);
    let dump = || returned(&pool, &code, vec![Arg::Out(2048)]);
    let leave = || {
        // SAFETY: the registers of MMX are free where the x87 stack is empty, and it is so afterwards.
        unsafe { std::arch::asm!("movq mm3, {}", "emms", in(reg) PATTERN, clobber_abi("C")) };
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lend_thread();
            (0..SHORT_MIN).for_each(|_| drop(dump()));
            let before = pool.stats().inline;
            for _ in 0..2 {
                leave();
                assert!(!has_pattern(&dump()[0]), "of the same tenant as the call before");
            }
            assert_eq!((before, pool.stats().inline), (0, 2));
        });
    });
}
