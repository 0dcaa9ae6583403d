//! System calls of code: by its own instructions, and by those of the C library that it jumps to.
#![allow(unsafe_code)] // The tests' own machine code stands between linker symbols.

use std::fs;
use std::ops::Range;
use std::sync::Arc;

use super::call::{Arg, Outcome, ResultType, Scalar};
use super::hostile_tests::Arena;
use super::pool::Pool;
use super::start::ExecConfig;
use super::system_call::{Abi, SystemCall};
use super::test_code::{TestCode, TestPool, assemble, call, config, number, run};
use super::trap::{Trap, TrapKind};

const PAGE_BYTES: u64 = 4096;

assemble!(
    /// `(number, a, b, c, d)`
    by_syscall, "mov rax, rdi", "mov rdi, rsi", "mov rsi, rdx", "mov rdx, rcx", "mov r10, r8", "syscall", "ret"
);
assemble!(
    /// `(number)`
    by_interrupt, "mov rax, rdi", "int 0x80", "ret"
);
assemble!(
    /// `(number)`
    by_sysenter, "mov rax, rdi", "mov rbp, rsp", "sysenter", "ret"
);
assemble!(
    /// `(function, a, b, c, d, e)`: `function(a, b, c, d, e)`, whose result it returns.
    by_library, "mov rax, rdi", "mov rdi, rsi", "mov rsi, rdx", "mov rdx, rcx", "mov rcx, r8", "mov r8, r9",
    "sub rsp, 8", "call rax", "add rsp, 8", "ret"
);
assemble!(
    /// As above, and then an instruction that does not exist.
    by_library_then_ud2, "mov rax, rdi", "mov rdi, rsi", "mov rsi, rdx", "mov rdx, rcx", "mov rcx, r8", "mov r8, r9",
    "sub rsp, 8", "call rax", "ud2"
);
assemble!(
    /// The same with a stack pointer and a thread pointer that are gone.
    with_nothing_left, "xor esp, esp", "xor eax, eax", "mov fs, eax", "mov eax, 39", "syscall", "ret"
);
assemble!(thread_id, "mov eax, 186", "syscall");

/// The C library's function that makes the call of this number, by an instruction of its own.
fn library() -> Arg {
    Arg::U64(libc::syscall as *const () as u64)
}

fn of(arg: libc::c_long) -> Arg {
    Arg::U64(arg as u64)
}

fn is_call(trap: Trap, abi: Abi, number: libc::c_long) -> bool {
    let told = SystemCall { abi, number: number as u32 };
    trap.kind == TrapKind::Syscall && trap.signal == libc::SIGSYS && trap.system_call == Some(told)
}

#[test]
fn every_system_call_by_code_is_a_trap_at_its_instruction() {
    let arena = Arena::new();
    let process = of(std::process::id().into());
    let calls: &[(libc::c_long, Vec<Arg>)] = &[
        (libc::SYS_getpid, vec![]),
        (libc::SYS_write, vec![of(1), of(0), of(0)]),
        (libc::SYS_exit, vec![of(0)]),
        (libc::SYS_exit_group, vec![of(0)]),
        (libc::SYS_execve, vec![of(0), of(0), of(0)]),
        (libc::SYS_kill, vec![process.clone(), of(libc::SIGKILL.into())]),
        (libc::SYS_tgkill, vec![process.clone(), process, of(libc::SIGKILL.into())]),
        (libc::SYS_rt_sigreturn, vec![]),
        (libc::SYS_io_uring_setup, vec![of(8), of(0)]),
        (libc::SYS_clone, vec![of(0)]),
        (libc::SYS_seccomp, vec![of(0)]),
        // What executors themselves may do.
        (libc::SYS_futex, vec![of(0), of(0)]),
        (libc::SYS_gettid, vec![]),
        (libc::SYS_munmap, vec![of(0), of(0)]),
        (libc::SYS_arch_prctl, vec![of(0x1002), of(0)]),
    ];
    for (number, arguments) in calls {
        let args = [vec![of(*number)], arguments.clone()].concat();
        let at = |code: &TestCode| code.entry() + by_syscall().len() as u64 - 3;
        arena.traps(&format!("system call {number}"), by_syscall(), &args, |code, trap| {
            is_call(trap, Abi::X86_64, *number) && trap.pc == at(code)
        });
    }
    arena.ends("with nothing left", with_nothing_left(), TrapKind::Syscall);
    assert_eq!(arena.pool.stats().refused_system_calls, 0, "of executors themselves");
}

#[test]
fn numbers_that_do_not_exist_and_those_of_other_interfaces_are_traps() {
    let arena = Arena::new();
    for number in [1000, 0x3fff_ffff] {
        arena.traps("none", by_syscall(), &[of(number)], |_, trap| is_call(trap, Abi::X86_64, number));
    }
    arena.traps("-1", by_syscall(), &[of(-1)], |_, trap| is_call(trap, Abi::X86_64, 0xffff_ffff));
    for number in [libc::SYS_getpid, libc::SYS_gettid, 512 + 8] {
        let arg = of(0x4000_0000 | number);
        arena.traps("x32", by_syscall(), &[arg], |_, trap| is_call(trap, Abi::X32, number));
    }
    // Kernels can be built and started without them.
    let gone = |trap: Trap| matches!(trap.kind, TrapKind::Segv | TrapKind::Ill | TrapKind::Bus);
    for number in [1, 20, 224] {
        let refused = |trap| is_call(trap, Abi::I386, number);
        arena.traps("int 0x80", by_interrupt(), &[of(number)], |_, trap| refused(trap) || gone(trap));
        arena.traps("sysenter", by_sysenter(), &[of(number)], |_, trap| refused(trap) || gone(trap));
    }
}

#[test]
fn the_page_of_old_system_calls_gives_nothing() {
    let arena = Arena::new();
    for (offset, number) in [(0, libc::SYS_gettimeofday), (0x400, libc::SYS_time), (0x800, libc::SYS_getcpu)] {
        let address = 0xffff_ffff_ff60_0000_u64 + offset;
        arena.traps("vsyscall", by_library(), &[Arg::U64(address), of(0)], |_, trap| {
            // Where the page is not there at all it is any other address.
            trap.pc == address && (is_call(trap, Abi::X86_64, number) || trap.kind == TrapKind::Segv)
        });
    }
}

#[test]
fn by_the_librarys_instructions_only_what_executors_need_is_allowed() {
    let arena = Arena::new();
    let refused = [
        libc::SYS_getppid,
        libc::SYS_openat,
        libc::SYS_read,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_sendto,
        libc::SYS_clone,
        libc::SYS_execve,
        libc::SYS_exit_group,
        libc::SYS_kill,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_memfd_create,
        libc::SYS_io_uring_setup,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        0x4000_0000 | libc::SYS_gettid,
    ];
    for number in refused {
        let args = [library(), of(number), of(0), of(0), of(0)];
        let (abi, plain) = if number < 0x4000_0000 { (Abi::X86_64, number) } else { (Abi::X32, number & 0xffff) };
        arena.traps(&format!("library {number}"), by_library(), &args, |code, trap| {
            is_call(trap, abi, plain) && !(code.entry()..code.entry() + PAGE_BYTES).contains(&trap.pc)
        });
    }
    let executable = of(libc::c_long::from(libc::PROT_EXEC | libc::PROT_READ));
    for (name, args) in [
        ("mprotect", [library(), of(libc::SYS_mprotect), of(0x1_0000), of(4096), executable.clone()]),
        ("mmap", [library(), of(libc::SYS_mmap), of(0), of(4096), executable]),
        ("write", [library(), of(libc::SYS_write), of(1), of(0), of(0)]),
        ("kill", [library(), of(libc::SYS_tgkill), of(1), of(1), of(0)]),
    ] {
        arena.traps(name, by_library(), &args, |_, trap| trap.kind == TrapKind::Syscall);
    }
    let args = [library(), of(libc::SYS_gettid)];
    arena.rounds(
        "gettid",
        by_library(),
        &args,
        |_, outcome| matches!(outcome, Outcome::Returned { value: Some(Scalar::U64(id)), .. } if *id > 1),
    );
}

/// The id of the one executor, by an instruction that is not code's.
fn executor_id(pool: &TestPool) -> u64 {
    number(pool, &TestCode::new(by_library(), None), vec![library(), of(libc::SYS_gettid)])
}

#[test]
fn signals_that_code_unblocked_are_blocked_again_after_a_trap() {
    let arena = Arena::new();
    let status = format!("/proc/self/task/{}/status", executor_id(&arena.pool));
    let blocked = || {
        let status = fs::read_to_string(&status).unwrap();
        status.lines().find(|line| line.starts_with("SigBlk")).unwrap().to_owned()
    };
    let before = blocked();
    let none = TestCode::new(&[0; 8], None);
    let set = of(libc::SIG_SETMASK.into());
    let args = [library(), of(libc::SYS_rt_sigprocmask), set, Arg::U64(none.entry()), of(0), of(8)];
    arena.traps("mask", by_library_then_ud2(), &args, |_, trap| trap.kind == TrapKind::Ill);
    assert_eq!(blocked(), before);
}

/// What a call of the executor's number, made by the last two bytes of a page, comes to.
fn at_the_end_of_a_page(code: impl Fn(u64) -> Range<u64>) -> (u64, Outcome) {
    let mut page = vec![0xcc; PAGE_BYTES as usize - thread_id().len()];
    page.extend_from_slice(thread_id());
    // What it goes on to.
    page.extend_from_slice(&[0xc3]);
    let page = TestCode::new(&page, None);
    let pool = Pool::start(ExecConfig { code: vec![code(page.entry())], ..config(1, 4) }).unwrap();
    let mut request = call(&page, vec![], ResultType::U64);
    request.entry += PAGE_BYTES - thread_id().len() as u64;
    (page.entry() + PAGE_BYTES - 2, run(&pool, request))
}

#[test]
fn the_last_instruction_of_the_range_is_in_it_and_the_one_behind_is_not() {
    let is_trap = |(pc, outcome): (u64, Outcome)| matches!(outcome, Outcome::Trap(trap) if trap.pc == pc && is_call(trap, Abi::X86_64, libc::SYS_gettid));
    assert!(is_trap(at_the_end_of_a_page(|page| page..page + PAGE_BYTES)));
    // Its last byte is outside: it is no instruction of the range.
    let (_, outside) = at_the_end_of_a_page(|page| page..page + PAGE_BYTES - 1);
    assert!(matches!(outside, Outcome::Returned { .. }), "{outside:?}");
    let (_, behind) = at_the_end_of_a_page(|page| page..page + PAGE_BYTES - 2);
    assert!(matches!(behind, Outcome::Returned { .. }), "{behind:?}");
}

#[test]
fn the_first_instruction_of_the_range_is_in_it_and_the_one_before_is_not() {
    assert!(matches!(at_the_end_of_a_page(|page| page + PAGE_BYTES - 2..page + PAGE_BYTES).1, Outcome::Trap(_)));
    // Its last byte is the first of the range.
    assert!(matches!(at_the_end_of_a_page(|page| page + PAGE_BYTES - 1..page + 2 * PAGE_BYTES).1, Outcome::Trap(_)));
    let (_, before) = at_the_end_of_a_page(|page| page + PAGE_BYTES..page + 2 * PAGE_BYTES);
    assert!(matches!(before, Outcome::Returned { .. }), "{before:?}");
}

#[test]
fn code_in_any_of_several_ranges_is_kept_from_system_calls() {
    let page = TestCode::new(by_syscall(), None);
    let at = page.entry();
    let apart = |code: Vec<Range<u64>>| {
        let pool = Pool::start(ExecConfig { code, ..config(1, 4) }).unwrap();
        run(&pool, call(&page, vec![of(libc::SYS_gettid)], ResultType::U64))
    };
    let elsewhere = 0x1_0000..0x2_0000;
    let outcome = apart(vec![elsewhere.clone(), 0..0, at..at + PAGE_BYTES]);
    assert!(matches!(outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Syscall), "{outcome:?}");
    let outcome = apart(vec![elsewhere]);
    assert!(matches!(outcome, Outcome::Returned { .. }), "{outcome:?}");
}

#[test]
fn several_executors_refuse_system_calls_at_once_and_answer_right() {
    let pool = super::test_code::pool(4, 64);
    let (good, bad) = (TestCode::new(&[0x48, 0x8d, 0x47, 1, 0xc3], None), TestCode::new(by_syscall(), None));
    for round in 0..200 {
        let submit = |code: &Arc<TestCode>, arg| pool.submit(call(code, vec![arg], ResultType::U64)).unwrap();
        let tickets: Vec<_> = (0..8).map(|at| (submit(&bad, of(39)), submit(&good, of(round + at)))).collect();
        for (at, (bad, good)) in (0..).zip(tickets) {
            let bad = super::test_code::wait(bad).outcome;
            assert!(matches!(bad, Outcome::Trap(trap) if is_call(trap, Abi::X86_64, 39)), "{bad:?}");
            let value = Some(Scalar::U64((round + at) as u64 + 1));
            let good = super::test_code::wait(good).outcome;
            assert_eq!(good, Outcome::Returned { value, buffers: vec![] });
        }
    }
    assert_eq!((pool.stats().trapped(TrapKind::Syscall), pool.stats().refused_system_calls), (8 * 200, 0));
}
