//! Code that does all it can to not come back, mixed with calls whose answers must stay right.
#![allow(unsafe_code)] // The tests' own machine code stands between linker symbols.

use std::sync::Arc;
use std::time::Duration;

use super::call::{Arg, Outcome, ResultType};
use super::test_code::{TestCode, TestPool, assemble, call, import, number, pool, run};
use super::trap::{Trap, TrapKind};

/// Often enough that a state that leaks from one call to the next shows.
const ROUNDS: usize = if cfg!(debug_assertions) { 100 } else { 1000 };

assemble!(good, "lea rax, [rdi + rdi*2]", "ret");
assemble!(
    /// MXCSR, and the x87 control word above it.
    fp_modes, "sub rsp, 24", "stmxcsr [rsp]", "fnstcw [rsp + 4]", "mov word ptr [rsp + 6], 0", "mov rax, [rsp]",
    "add rsp, 24", "ret"
);
assemble!(x87_tags, "sub rsp, 40", "fnstenv [rsp]", "movzx eax, word ptr [rsp + 8]", "add rsp, 40", "ret");
assemble!(flags, "pushfq", "pop rax", "ret");
assemble!(thread_pointer, "mov rax, fs:[0]", "ret");

assemble!(recursion, "2:", "call 2b");
assemble!(recursion_of_1_mib_frames, "2:", "sub rsp, 0x100000", "mov [rsp], rax", "jmp 2b");
assemble!(no_stack, "xor esp, esp", "push rax");
assemble!(no_stack_ud2, "xor esp, esp", "ud2");
assemble!(non_canonical, "mov rax, 0x8000000000000000", "mov [rax], al");
assemble!(non_canonical_stack, "mov rsp, 0x8000000000000000", "push rax");
assemble!(kernel_address, "mov rax, 0xffffffff80000000", "mov [rax], al");
assemble!(stack_in_alternate_stack, "or rsp, 0xfffffff", "sub rsp, 0x10ff", "push rax", "push rax", "ud2");
assemble!(
    callee_saved_destroyed,
    "xor ebx, ebx",
    "mov rbp, 1",
    "mov r12, 2",
    "mov r13, 3",
    "mov r14, 4",
    "mov r15, 5",
    "ret"
);
assemble!(
    callee_saved_destroyed_ud2,
    "xor ebx, ebx",
    "xor ebp, ebp",
    "mov r12, 2",
    "mov r13, 3",
    "mov r14, 4",
    "mov r15, 5",
    "ud2"
);
assemble!(direction, "std", "ret");
assemble!(direction_ud2, "std", "ud2");
assemble!(direction_loop, "std", "2:", "jmp 2b");
assemble!(rounding, "push 0x7f80", "ldmxcsr [rsp]", "pop rax", "ret");
assemble!(sse_exception, "push 0", "ldmxcsr [rsp]", "pop rax", "xorps xmm0, xmm0", "divss xmm0, xmm0", "ud2");
assemble!(x87_full, "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "ret");
assemble!(x87_full_ud2, "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "fld1", "ud2");
assemble!(x87_control, "push 0x0c7f", "fldcw [rsp]", "pop rax", "ret");
assemble!(x87_exception, "push 0x0340", "fldcw [rsp]", "fld1", "fldz", "fdivp", "fwait", "ud2");
assemble!(x87_pending, "push 0x0340", "fldcw [rsp]", "pop rax", "fld1", "fldz", "fdivp", "ret");
assemble!(mmx, "movq mm0, rdi", "movq mm7, rdi", "ret");
assemble!(mmx_ud2, "movq mm0, rdi", "ud2");
assemble!(alignment_check, "pushfq", "or dword ptr [rsp], 0x40000", "popfq", "ret");
assemble!(alignment_check_ud2, "pushfq", "or dword ptr [rsp], 0x40000", "popfq", "ud2");
assemble!(misaligned, "pushfq", "or dword ptr [rsp], 0x40000", "popfq", "mov eax, [rsp + 1]", "ud2");
assemble!(nested_task, "pushfq", "or dword ptr [rsp], 0x4000", "popfq", "ret");
assemble!(trap_flag, "pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop", "nop", "ud2");
assemble!(unbalanced, "push 8", "ret");
assemble!(ret_64, "ret 64");
assemble!(ret_65528, "ret 65528");
assemble!(popped_too_much, "add rsp, 0x100000", "ret");
assemble!(no_fs, "xor eax, eax", "wrfsbase rax", "ud2");
assemble!(no_fs_ret, "xor eax, eax", "wrfsbase rax", "ret");
assemble!(other_fs_ret, "wrfsbase rsp", "mov rax, 5", "ret");
assemble!(
    /// At the new thread pointer is what is at the host's.
    forged_fs_ret, "mov rcx, fs:[0]", "lea rax, [rsp - 4096]", "and rax, -64", "mov [rax], rcx", "wrfsbase rax",
    "mov eax, 5", "ret"
);
assemble!(null_fs_selector, "xor eax, eax", "mov fs, eax", "ud2");
assemble!(data_fs_selector, "mov eax, 0x2b", "mov fs, eax", "ud2");
assemble!(no_fs_loop, "xor eax, eax", "wrfsbase rax", "2:", "jmp 2b");
assemble!(to_32_bit, "push 0x23", "lea rax, [rip]", "push rax", "retfq");
assemble!(write_to_code, "mov byte ptr [rip], 0x90", "ud2");
assemble!(code_on_stack, "mov word ptr [rsp - 64], 0x0b0f", "lea rax, [rsp - 64]", "jmp rax");
assemble!(jump_to_zero, "xor eax, eax", "jmp rax");
assemble!(int3, "nop", "int3", "ud2");
assemble!(icebp, "nop", ".byte 0xf1", "ud2");
assemble!(ud2, "nop", "ud2");
assemble!(hlt, "hlt");
assemble!(cli, "cli");
assemble!(port, "in al, dx");
assemble!(software_interrupt, "int 0x42");
assemble!(division, "xor ecx, ecx", "mov eax, 1", "xor edx, edx", "div ecx");
assemble!(division_overflow, "mov ecx, -1", "mov eax, 0x80000000", "cdq", "idiv ecx");
assemble!(endless, "2:", "jmp 2b");
assemble!(endless_without_stack, "xor esp, esp", "2:", "jmp 2b");
assemble!(endless_in_x87, "fninit", "2:", "fld1", "jmp 2b");
assemble!(call_argument, "sub rsp, 8", "call rdi", "ud2");
assemble!(
    /// `(function, a, b, c, d)`: `function(a, b, c, d)`.
    shifted, "mov rax, rdi", "mov rdi, rsi", "mov rsi, rdx", "mov rdx, rcx", "mov rcx, r8", "push rax", "call rax", "ud2"
);
assemble!(
    /// `(memset, pointer, value, len)` with DF set.
    backwards, "mov rax, rdi", "mov rdi, rsi", "mov rsi, rdx", "mov rdx, rcx", "push rbp", "std", "call rax",
    "pop rbp", "ret"
);
assemble!(
    /// `(malloc)` on a misaligned stack, without a thread pointer.
    malloc_without_fs, "xor eax, eax", "wrfsbase rax", "mov rax, rdi", "mov edi, 100", "push 1", "push 2", "call rax",
    "mov [rax], rax", "ud2"
);
assemble!(
    /// `(malloc, stack)` on that stack.
    malloc_elsewhere, "mov rsp, rsi", "mov rax, rdi", "mov edi, 100", "call rax", "ud2"
);

/// The instruction sets FS: only where the processor and the system allow it.
fn has_fsgsbase() -> bool {
    const HWCAP2_FSGSBASE: u64 = 2;
    // SAFETY: has no preconditions.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}

/// One hostile program and one executor that has run good code before.
pub(super) struct Arena {
    pub(super) pool: TestPool,
    good: Arc<TestCode>,
    modes: [(Arc<TestCode>, u64, u64); 4],
}

impl Arena {
    pub(super) fn new() -> Arena {
        let pool = pool(1, 4);
        let thread = TestCode::new(thread_pointer(), None);
        let base = number(&pool, &thread, vec![]);
        let modes = [
            (TestCode::new(fp_modes(), None), u64::MAX, 0x37f << 32 | 0x1f80),
            (TestCode::new(x87_tags(), None), u64::MAX, 0xffff),
            // DF, AC, NT and TF are clear.
            (TestCode::new(flags(), None), 0x4_4500, 0),
            (thread, u64::MAX, base),
        ];
        Arena { pool, good: TestCode::new(good(), None), modes }
    }

    fn check_host(&self, name: &str, round: usize) {
        let answer = number(&self.pool, &self.good, vec![Arg::U64(round as u64)]);
        assert_eq!(answer, 3 * round as u64, "after {name}, round {round}");
        for (code, mask, expected) in &self.modes {
            assert_eq!(number(&self.pool, code, vec![]) & mask, *expected, "after {name}, round {round}");
        }
    }

    pub(super) fn rounds(&self, name: &str, code: &[u8], args: &[Arg], check: impl Fn(&TestCode, &Outcome) -> bool) {
        let code = TestCode::new(code, None);
        for round in 0..ROUNDS {
            let mut hostile = call(&code, args.to_vec(), ResultType::U64);
            hostile.cpu_limit = Duration::from_millis(2);
            let outcome = run(&self.pool, hostile);
            assert!(check(&code, &outcome), "{name}, round {round}: {outcome:?}, code at {:#x}", code.entry());
            self.check_host(name, round);
        }
    }

    pub(super) fn traps(&self, name: &str, code: &[u8], args: &[Arg], check: impl Fn(&TestCode, Trap) -> bool) {
        self.rounds(name, code, args, |code, outcome| matches!(outcome, Outcome::Trap(trap) if check(code, *trap)));
    }

    /// Ends by this kind.
    pub(super) fn ends(&self, name: &str, code: &[u8], kind: TrapKind) {
        self.traps(name, code, &[], |_, trap| trap.kind == kind);
    }

    /// Ends by this kind, at this offset of the code.
    fn ends_at(&self, name: &str, code: &[u8], kind: TrapKind, offset: u64) {
        self.traps(name, code, &[], |code, trap| trap.kind == kind && trap.pc == code.entry() + offset);
    }

    /// Does its worst and returns.
    fn comes_back(&self, name: &str, code: &[u8]) {
        self.rounds(name, code, &[Arg::U64(1)], |_, outcome| matches!(outcome, Outcome::Returned { .. }));
    }
}

#[test]
fn stacks_that_overflow_or_are_gone_are_recovered() {
    let arena = Arena::new();
    arena.ends("recursion", recursion(), TrapKind::StackOverflow);
    arena.ends("recursion of 1 MiB frames", recursion_of_1_mib_frames(), TrapKind::StackOverflow);
    arena.ends_at("no stack", no_stack(), TrapKind::Segv, 2);
    arena.ends_at("no stack, ud2", no_stack_ud2(), TrapKind::Ill, 2);
    arena.ends("non-canonical stack", non_canonical_stack(), TrapKind::Bus);
    arena.ends("stack in the alternate stack", stack_in_alternate_stack(), TrapKind::Ill);
    arena.traps("unbalanced", unbalanced(), &[], |_, trap| trap.kind == TrapKind::Segv && trap.pc == 8);
    arena.ends("popped too much", popped_too_much(), TrapKind::Segv);
    arena.comes_back("ret 64", ret_64());
    arena.comes_back("ret 65528", ret_65528());
}

#[test]
fn wild_accesses_and_jumps_are_recovered_with_their_address() {
    let arena = Arena::new();
    let segv = |trap: Trap, address| trap.kind == TrapKind::Segv && trap.fault_address == address;
    arena.traps("non-canonical", non_canonical(), &[], |code, trap| segv(trap, None) && trap.pc == code.entry() + 10);
    arena.traps("kernel", kernel_address(), &[], |_, trap| segv(trap, Some(0xffff_ffff_8000_0000)));
    arena.traps("jump to zero", jump_to_zero(), &[], |_, trap| segv(trap, Some(0)) && trap.pc == 0);
    arena.traps("code", write_to_code(), &[], |code, trap| segv(trap, Some(code.entry() + 7)));
    arena.traps("code on the stack", code_on_stack(), &[], |_, trap| segv(trap, Some(trap.pc)));
    arena.ends("misaligned under AC", misaligned(), TrapKind::Bus);
}

#[test]
fn instructions_that_trap_are_recovered_at_their_place() {
    let arena = Arena::new();
    arena.ends_at("int3", int3(), TrapKind::Breakpoint, 1);
    arena.ends("icebp", icebp(), TrapKind::Breakpoint);
    arena.ends_at("ud2", ud2(), TrapKind::Ill, 1);
    arena.ends_at("hlt", hlt(), TrapKind::Segv, 0);
    arena.ends_at("cli", cli(), TrapKind::Segv, 0);
    arena.ends_at("port", port(), TrapKind::Segv, 0);
    arena.ends_at("software interrupt", software_interrupt(), TrapKind::Segv, 0);
    arena.ends_at("division", division(), TrapKind::Fpe, 9);
    arena.ends("division overflow", division_overflow(), TrapKind::Fpe);
    arena.ends("trap flag", trap_flag(), TrapKind::Breakpoint);
    arena.ends("to 32 bit", to_32_bit(), TrapKind::Segv);
}

#[test]
fn registers_and_modes_that_were_destroyed_are_as_before() {
    let arena = Arena::new();
    arena.comes_back("callee-saved", callee_saved_destroyed());
    arena.ends("callee-saved, ud2", callee_saved_destroyed_ud2(), TrapKind::Ill);
    arena.comes_back("direction", direction());
    arena.ends("direction, ud2", direction_ud2(), TrapKind::Ill);
    arena.comes_back("alignment check", alignment_check());
    arena.ends("alignment check, ud2", alignment_check_ud2(), TrapKind::Ill);
    arena.comes_back("nested task", nested_task());
    arena.comes_back("mmx", mmx());
    arena.ends("mmx, ud2", mmx_ud2(), TrapKind::Ill);
}

#[test]
fn floating_point_states_are_as_before() {
    let arena = Arena::new();
    arena.comes_back("rounding", rounding());
    arena.ends("SSE exception", sse_exception(), TrapKind::Fpe);
    arena.comes_back("x87 full", x87_full());
    arena.ends("x87 full, ud2", x87_full_ud2(), TrapKind::Ill);
    arena.comes_back("x87 control", x87_control());
    arena.ends("x87 exception", x87_exception(), TrapKind::Fpe);
    arena.ends("x87 exception pending at the return", x87_pending(), TrapKind::Fpe);
}

#[test]
fn a_thread_pointer_that_was_changed_is_given_back() {
    let arena = Arena::new();
    arena.ends("null FS selector", null_fs_selector(), TrapKind::Ill);
    arena.ends("data FS selector", data_fs_selector(), TrapKind::Ill);
    if !has_fsgsbase() {
        return;
    }
    arena.ends("no FS", no_fs(), TrapKind::Ill);
    arena.comes_back("no FS, return", no_fs_ret());
    arena.ends("no FS, loop", no_fs_loop(), TrapKind::Timeout);
    arena.comes_back("other FS, return", other_fs_ret());
    arena.comes_back("forged FS, return", forged_fs_ret());
    arena.traps("malloc", malloc_without_fs(), &[import("malloc")], |_, trap| trap.kind == TrapKind::Ill);
}

#[test]
fn loops_without_end_are_stopped() {
    let arena = Arena::new();
    arena.ends_at("endless", endless(), TrapKind::Timeout, 0);
    arena.ends_at("endless with DF", direction_loop(), TrapKind::Timeout, 1);
    arena.ends_at("endless without a stack", endless_without_stack(), TrapKind::Timeout, 2);
    arena.ends("endless in x87", endless_in_x87(), TrapKind::Timeout);
}

#[test]
fn host_functions_survive_hostile_arguments_and_states() {
    let arena = Arena::new();
    let in_code = |code: &TestCode, trap: Trap| (code.entry()..code.entry() + 16).contains(&trap.pc);
    for name in ["abort", "__stack_chk_fail"] {
        let aborts = |code: &TestCode, trap: Trap| trap.kind == TrapKind::Abort && in_code(code, trap);
        arena.traps(name, call_argument(), &[import(name)], aborts);
    }
    let nowhere = [
        ("strlen", TrapKind::Segv),
        ("memcpy", TrapKind::Segv),
        ("free", TrapKind::Abort),
        ("__memcpy_chk", TrapKind::Abort),
    ];
    for (name, kind) in nowhere {
        let args = [import(name), Arg::U64(1), Arg::U64(2), Arg::U64(3), Arg::U64(2)];
        arena.traps(name, shifted(), &args, |_, trap| trap.kind == kind);
    }
    let mut stack = vec![0_u128; 4096];
    let args = [import("malloc"), Arg::U64(stack.as_mut_ptr_range().end as u64)];
    arena.traps("malloc", malloc_elsewhere(), &args, |code, trap| trap.kind == TrapKind::Abort && in_code(code, trap));
    let args = [import("memset"), Arg::Out(100_000), Arg::U32(7), Arg::U64(100_000)];
    arena.rounds(
        "backwards",
        backwards(),
        &args,
        |_, outcome| matches!(outcome, Outcome::Returned { buffers, .. } if buffers[0].iter().all(|byte| *byte == 7)),
    );
}

#[test]
fn several_executors_recover_at_once_and_answer_right() {
    let pool = pool(4, 64);
    let (good, bad) = (TestCode::new(good(), None), TestCode::new(ud2(), None));
    for round in 0..ROUNDS as u64 {
        let submit = |code, arg| pool.submit(call(code, vec![Arg::U64(arg)], ResultType::U64)).unwrap();
        let tickets: Vec<_> = (0..8).map(|index| (submit(&bad, 0), submit(&good, round + index))).collect();
        for (index, (bad, good)) in tickets.into_iter().enumerate() {
            let bad = super::test_code::wait(bad).outcome;
            assert!(matches!(bad, Outcome::Trap(trap) if trap.kind == TrapKind::Ill), "round {round}: {bad:?}");
            let value = Some(super::call::Scalar::U64(3 * (round + index as u64)));
            let good = super::test_code::wait(good).outcome;
            assert_eq!(good, Outcome::Returned { value, buffers: vec![] }, "round {round}");
        }
    }
    assert_eq!(pool.stats().trapped(TrapKind::Ill), 8 * ROUNDS as u64);
}
