//! Which system calls an executor's thread may make, as a program for the kernel: `seccomp_data` in, a verdict out.
//!
//! In this order: a call by the 32-bit interface is refused, whoever makes it; so is every call whose instruction lies
//! in code; what is on [`ALWAYS`] or [`conditional`] is allowed; the rest is refused, all numbers of the x32 interface
//! among it. The last two concern the daemon's own instructions, those of the C library among them: what an executor
//! does between two calls, and what code can reach that jumps there.
//!
//! To refuse is SECCOMP_RET_TRAP: the call is not made, and SIGSYS comes. The handler ends the call of code by a trap;
//! where none runs it answers ENOSYS and counts, as a kernel without that system call would. Killing instead would let
//! one forgotten line, or the next version of the C library, end the daemon, and SECCOMP_RET_ERRNO would let code go on
//! as if nothing had been.
//!
//! Pure: nothing here calls the system.

use std::ops::Range;

use libc::sock_filter;

use super::arch::{ARCH_GET_FS, ARCH_SET_FS};
use crate::confine::{ALLOWED, Program, Test};

/// Ranges of code at most. Bounds the program, of which the kernel takes 4096 instructions.
pub(super) const RANGES_MAX: usize = 16;
/// What comes in `si_errno` with a SIGSYS of this filter, to tell it from those of other filters.
pub(super) const MARK: u16 = 0xc0de;

const REFUSED: u32 = libc::SECCOMP_RET_TRAP | MARK as u32;

/// This advice and the next are for the system administrator: they take pages out of service (linux/mman.h).
const MADV_HWPOISON: u32 = 100;
/// This and the next make guard pages, of stacks for example. Linux 6.13.
const MADV_GUARD_INSTALL: u32 = 102;
/// What wakes the runtime: a write of one 64-bit number to an event descriptor.
const EVENT_BYTES: u64 = 8;
/// The libc crate has no names for them yet.
const SYS_URETPROBE: libc::c_long = 335;
const SYS_UPROBE: libc::c_long = 336;

/// What executors may call whatever the arguments, the frequent first. None of it opens, connects or starts anything.
const ALWAYS: &[libc::c_long] = &[
    libc::SYS_futex,             // locks, the queue, waking who waits for an answer
    libc::SYS_clock_gettime,     // the CPU clock, and all clocks where the vDSO has none
    libc::SYS_munmap,            // the C library's allocator
    libc::SYS_brk,               // as above
    libc::SYS_rt_sigreturn,      // the end of each signal handler
    libc::SYS_rt_sigprocmask,    // the C library, when a thread ends or aborts
    libc::SYS_sigaltstack,       // the end of a thread
    libc::SYS_exit,              // as above
    libc::SYS_sched_yield,       // contended locks
    libc::SYS_restart_syscall,   // a wait that goes on after a debugger stopped it
    libc::SYS_getrandom,         // seeds of hash maps
    libc::SYS_getpid,            // aborting: to whom the signal goes
    libc::SYS_gettid,            // as above
    libc::SYS_sched_getaffinity, // the C library's allocator counts processors
    SYS_URETPROBE,               // made by the kernel's own page for probes, elsewhere a SIGILL
    SYS_UPROBE,                  // as above
];

/// What worker processes may call whatever the arguments. They have no descriptor, allocate nothing while they run code,
/// and share with others but the memory in which they and their executor wait for each other.
const WORKER_ALWAYS: &[libc::c_long] = &[
    libc::SYS_rt_sigreturn,    // the end of each signal handler
    libc::SYS_exit_group,      // the end of the process
    libc::SYS_getpid,          // a signal that ends it: to whom it goes
    libc::SYS_gettid,          // as above
    libc::SYS_restart_syscall, // a wait that goes on after a debugger stopped it
    SYS_URETPROBE,             // made by the kernel's own page for probes, elsewhere a SIGILL
    SYS_UPROBE,                // as above
];

/// By which a process ends itself: aborting, and faults whose default action is asked for.
const LAST_SIGNALS: [libc::c_int; 7] =
    [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

/// Whom a program is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Daemon {
    /// Its process id.
    pub(super) process: u32,
    /// Where it has the action that it gives a signal to end by it: no other can be set.
    pub(super) default_action: u64,
    /// Code changes protection back and forth, for want of a second view.
    pub(super) flips_protection: bool,
}

/// What executors may call only with such arguments: number, and what must hold of them. One of several lines of a number
/// is enough.
fn conditional(code: &[Range<u64>], daemon: Daemon) -> Vec<(libc::c_long, Vec<Test>)> {
    let not_executable = Test::bits(2, libc::PROT_EXEC, 0);
    // At a place of the kernel's choice: what is there is not replaced.
    let new_memory = Test::bits(3, libc::MAP_ANONYMOUS | libc::MAP_FIXED, libc::MAP_ANONYMOUS);
    let somewhere = Test::bits(3, libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP, 0);
    let mut rules = vec![
        // Memory of calls and of freed code is given back.
        (libc::SYS_madvise, vec![Test::Below { argument: 2, bound: MADV_HWPOISON }]),
        // An answer wakes the runtime.
        (libc::SYS_write, Test::exactly(2, EVENT_BYTES).to_vec()),
        // The C library's allocator. Memory that can be run is made by nobody after the start.
        (libc::SYS_mmap, vec![not_executable, new_memory]),
        (libc::SYS_mremap, vec![somewhere]),
        // As above; and the window that freed code is wiped through.
        (libc::SYS_mprotect, vec![not_executable]),
        // The C library, of stacks of threads that ended.
        (libc::SYS_madvise, vec![Test::Bits { argument: 2, mask: !1, value: MADV_GUARD_INSTALL }]),
        // The handler, and the way back from code, restore the thread pointer.
        (libc::SYS_arch_prctl, vec![Test::is(0, ARCH_SET_FS as u32)]),
        (libc::SYS_arch_prctl, vec![Test::is(0, ARCH_GET_FS as u32)]),
        // The last words of a panic, or of the C library.
        (libc::SYS_write, vec![Test::is(0, libc::STDERR_FILENO as u32)]),
        (libc::SYS_writev, vec![Test::is(0, libc::STDERR_FILENO as u32)]),
        // The way of a fault that is the daemon's to its default action. Any other action would let code run where no
        // filter is: handlers are the whole process's.
        (libc::SYS_rt_sigaction, Test::exactly(1, daemon.default_action).to_vec()),
    ];
    // And to this process alone.
    let last = |signal: libc::c_int| (libc::SYS_tgkill, vec![Test::is(0, daemon.process), Test::is(2, signal as u32)]);
    rules.extend(LAST_SIGNALS.map(last));
    // Freed code is wiped so.
    let executable = Test::is(2, (libc::PROT_READ | libc::PROT_EXEC) as u32);
    for range in code.iter().filter(|range| daemon.flips_protection && !range.is_empty()) {
        let [from, to] = Test::within(0, range);
        rules.push((libc::SYS_mprotect, vec![executable, from, to]));
    }
    rules
}

/// What worker processes may call only with such arguments, as [`conditional`] says of executors.
fn worker_conditional(worker: Daemon) -> Vec<(libc::c_long, Vec<Test>)> {
    let mut rules = vec![
        // Waiting for a call, and waking who waits for its end: no other operation of a futex, on memory on which the daemon
        // sleeps too.
        (libc::SYS_futex, vec![Test::is(1, libc::FUTEX_WAIT as u32)]),
        (libc::SYS_futex, vec![Test::is(1, libc::FUTEX_WAKE as u32)]),
        // How long to look before waiting, where the vDSO has no clock. Others tell how busy other processes are.
        (libc::SYS_clock_gettime, vec![Test::is(0, libc::CLOCK_MONOTONIC as u32)]),
        (libc::SYS_arch_prctl, vec![Test::is(0, ARCH_SET_FS as u32)]),
        (libc::SYS_arch_prctl, vec![Test::is(0, ARCH_GET_FS as u32)]),
        (libc::SYS_rt_sigaction, Test::exactly(1, worker.default_action).to_vec()),
    ];
    let last = |signal: libc::c_int| (libc::SYS_tgkill, vec![Test::is(0, worker.process), Test::is(2, signal as u32)]);
    rules.extend(LAST_SIGNALS.map(last));
    rules
}

/// The program for a worker process, which `worker` names. As [`program`], but far less is allowed.
pub(super) fn worker_program(code: &[Range<u64>], worker: Daemon) -> Vec<sock_filter> {
    compose(code, WORKER_ALWAYS, &worker_conditional(worker))
}

/// The program for a daemon's executors. System calls made by instructions in `code` are refused:
/// at most [`RANGES_MAX`] ranges, empty ones have no effect.
pub(super) fn program(code: &[Range<u64>], daemon: Daemon) -> Vec<sock_filter> {
    compose(code, ALWAYS, &conditional(code, daemon))
}

fn compose(
    code: &[Range<u64>],
    always: &[libc::c_long],
    conditional: &[(libc::c_long, Vec<Test>)],
) -> Vec<sock_filter> {
    assert!(code.len() <= RANGES_MAX, "the caller holds the number of ranges to its bound");
    let start = code.iter().fold(Program::native(REFUSED), |program, range| program.made_in(range, REFUSED));
    let listed = start.calls(always, ALLOWED);
    conditional.iter().fold(listed, |program, (number, tests)| program.call(*number, tests, ALLOWED)).otherwise(REFUSED)
}

/// The program for threads that have other work as well: as [`program`], but only system calls made by instructions in
/// `code` are refused, by whichever of the kernel's interfaces.
pub(super) fn lent_program(code: &[Range<u64>]) -> Vec<sock_filter> {
    assert!(code.len() <= RANGES_MAX, "the caller holds the number of ranges to its bound");
    code.iter().fold(Program::default(), |program, range| program.made_in(range, REFUSED)).otherwise(ALLOWED)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
