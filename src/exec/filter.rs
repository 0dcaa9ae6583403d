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
//! The program is made here by hand because the libraries for such programs know no instruction pointer. Pure: nothing
//! here calls the system.

use std::ops::Range;

use libc::sock_filter;

use super::arch::{ARCH_GET_FS, ARCH_SET_FS};

/// Ranges of code at most. Bounds the program, of which the kernel takes 4096 instructions.
pub(super) const RANGES_MAX: usize = 16;
/// What comes in `si_errno` with a SIGSYS of this filter, to tell it from those of other filters.
pub(super) const MARK: u16 = 0xc0de;

pub(super) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Set in the numbers of the x32 interface, and in negative ones.
pub(super) const X32_BIT: u32 = 0x4000_0000;

const REFUSED: u32 = libc::SECCOMP_RET_TRAP | MARK as u32;
const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

// `struct seccomp_data`: where its fields are. Those of 64 bits have the low half first.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const POINTER: u32 = 8;
const ARGUMENTS: u32 = 16;
const HALF_BYTES: u32 = 4;

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

/// What an argument must be.
#[derive(Clone, Copy, Debug)]
enum Test {
    /// The argument is a C int, of which these bits have this value.
    Bits { argument: u32, mask: u32, value: u32 },
    /// The argument is a C int below this.
    Below { argument: u32, bound: u32 },
    /// The argument has 64 bits and is at least this.
    AtLeast { argument: u32, value: u64 },
    /// The argument has 64 bits and is at most this.
    AtMost { argument: u32, value: u64 },
}

/// What executors may call only with such arguments: number, and what must hold of them. One of several lines of a number
/// is enough.
fn conditional(code: &[Range<u64>], daemon: Daemon) -> Vec<(libc::c_long, Vec<Test>)> {
    let is = |argument, value| Test::Bits { argument, mask: u32::MAX, value };
    let bits = |argument, mask: libc::c_int, value: libc::c_int| Test::Bits {
        argument,
        mask: mask as u32,
        value: value as u32,
    };
    let not_executable = bits(2, libc::PROT_EXEC, 0);
    // At a place of the kernel's choice: what is there is not replaced.
    let new_memory = bits(3, libc::MAP_ANONYMOUS | libc::MAP_FIXED, libc::MAP_ANONYMOUS);
    let somewhere = bits(3, libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP, 0);
    let exactly = |argument, value| [Test::AtLeast { argument, value }, Test::AtMost { argument, value }];
    let mut rules = vec![
        // Memory of calls and of freed code is given back.
        (libc::SYS_madvise, vec![Test::Below { argument: 2, bound: MADV_HWPOISON }]),
        // An answer wakes the runtime.
        (libc::SYS_write, exactly(2, EVENT_BYTES).to_vec()),
        // The C library's allocator. Memory that can be run is made by nobody after the start.
        (libc::SYS_mmap, vec![not_executable, new_memory]),
        (libc::SYS_mremap, vec![somewhere]),
        // As above; and the window that freed code is wiped through.
        (libc::SYS_mprotect, vec![not_executable]),
        // The C library, of stacks of threads that ended.
        (libc::SYS_madvise, vec![Test::Bits { argument: 2, mask: !1, value: MADV_GUARD_INSTALL }]),
        // The handler, and the way back from code, restore the thread pointer.
        (libc::SYS_arch_prctl, vec![is(0, ARCH_SET_FS as u32)]),
        (libc::SYS_arch_prctl, vec![is(0, ARCH_GET_FS as u32)]),
        // The last words of a panic, or of the C library.
        (libc::SYS_write, vec![is(0, libc::STDERR_FILENO as u32)]),
        (libc::SYS_writev, vec![is(0, libc::STDERR_FILENO as u32)]),
        // The way of a fault that is the daemon's to its default action. Any other action would let code run where no
        // filter is: handlers are the whole process's.
        (libc::SYS_rt_sigaction, exactly(1, daemon.default_action).to_vec()),
    ];
    // And to this process alone.
    let last = |signal: libc::c_int| (libc::SYS_tgkill, vec![is(0, daemon.process), is(2, signal as u32)]);
    rules.extend(LAST_SIGNALS.map(last));
    // Freed code is wiped so.
    let executable = is(2, (libc::PROT_READ | libc::PROT_EXEC) as u32);
    for range in ranges(code).filter(|_| daemon.flips_protection) {
        let within =
            [Test::AtLeast { argument: 0, value: range.start }, Test::AtMost { argument: 0, value: range.end - 1 }];
        rules.push((libc::SYS_mprotect, vec![executable, within[0], within[1]]));
    }
    rules
}

/// Those that hold anything.
fn ranges(code: &[Range<u64>]) -> impl Iterator<Item = &Range<u64>> {
    code.iter().filter(|range| !range.is_empty())
}

/// The program for a daemon's executors. System calls made by instructions in `code` are refused:
/// at most [`RANGES_MAX`] ranges, empty ones have no effect.
pub(super) fn program(code: &[Range<u64>], daemon: Daemon) -> Vec<sock_filter> {
    assert!(code.len() <= RANGES_MAX, "the caller holds the number of ranges to its bound");
    let mut blocks =
        vec![vec![Op::Load(ARCH), Op::If(Compare::Equal, AUDIT_ARCH_X86_64, To::Miss, To::Next), Op::Verdict(REFUSED)]];
    blocks.extend(made_in(code));
    blocks.push(vec![Op::Load(NUMBER)]);
    blocks.extend(ALWAYS.iter().map(|number| vec![is_number(*number), Op::Verdict(ALLOWED)]));
    for (number, tests) in conditional(code, daemon) {
        let mut block = vec![Op::Load(NUMBER), is_number(number)];
        block.extend(tests.into_iter().flat_map(Test::ops));
        block.push(Op::Verdict(ALLOWED));
        blocks.push(block);
    }
    blocks.push(vec![Op::Verdict(REFUSED)]);
    blocks.iter().flat_map(|block| resolve(block)).collect()
}

/// The program for threads that have other work as well: as [`program`], but only system calls made by instructions in
/// `code` are refused, by whichever of the kernel's interfaces.
pub(super) fn lent_program(code: &[Range<u64>]) -> Vec<sock_filter> {
    assert!(code.len() <= RANGES_MAX, "the caller holds the number of ranges to its bound");
    made_in(code).chain([vec![Op::Verdict(ALLOWED)]]).flat_map(|block| resolve(&block)).collect()
}

/// Refuses what instructions in `code` ask for.
fn made_in(code: &[Range<u64>]) -> impl Iterator<Item = Vec<Op>> {
    ranges(code).map(|range| {
        // The pointer is that of the next instruction.
        [at_least(POINTER, range.start + 1), at_most(POINTER, range.end), vec![Op::Verdict(REFUSED)]].concat()
    })
}

/// How the loaded word is compared with a constant.
#[derive(Clone, Copy, Debug)]
enum Compare {
    Equal,
    Above,
    AtLeast,
}

/// Where a comparison goes on.
#[derive(Clone, Copy, Debug)]
enum To {
    Next,
    /// Over this many instructions.
    Over(u8),
    /// Behind the block.
    Miss,
}

/// An instruction whose jumps are not resolved.
#[derive(Clone, Copy, Debug)]
enum Op {
    Load(u32),
    And(u32),
    /// Where it goes if so, and if not.
    If(Compare, u32, To, To),
    Verdict(u32),
}

impl Test {
    fn ops(self) -> Vec<Op> {
        let at = |argument| ARGUMENTS + argument * 2 * HALF_BYTES;
        match self {
            Self::Bits { argument, mask, value } => {
                vec![Op::Load(at(argument)), Op::And(mask), Op::If(Compare::Equal, value, To::Next, To::Miss)]
            }
            Self::Below { argument, bound } => {
                vec![Op::Load(at(argument)), Op::If(Compare::AtLeast, bound, To::Miss, To::Next)]
            }
            Self::AtLeast { argument, value } => at_least(at(argument), value),
            Self::AtMost { argument, value } => at_most(at(argument), value),
        }
    }
}

fn is_number(number: libc::c_long) -> Op {
    Op::If(Compare::Equal, number as u32, To::Next, To::Miss)
}

/// The 64-bit field at `offset` is at least `value`.
fn at_least(offset: u32, value: u64) -> Vec<Op> {
    let (high, low) = halves(value);
    vec![
        Op::Load(offset + HALF_BYTES),
        Op::If(Compare::Above, high, To::Over(3), To::Next),
        Op::If(Compare::Equal, high, To::Next, To::Miss),
        Op::Load(offset),
        Op::If(Compare::AtLeast, low, To::Next, To::Miss),
    ]
}

/// The 64-bit field at `offset` is at most `value`.
fn at_most(offset: u32, value: u64) -> Vec<Op> {
    let (high, low) = halves(value);
    vec![
        Op::Load(offset + HALF_BYTES),
        Op::If(Compare::Above, high, To::Miss, To::Next),
        Op::If(Compare::Equal, high, To::Next, To::Over(2)),
        Op::Load(offset),
        Op::If(Compare::Above, low, To::Miss, To::Next),
    ]
}

fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

/// The block as the kernel reads it.
fn resolve(block: &[Op]) -> Vec<sock_filter> {
    let instruction = |(at, op): (usize, &Op)| {
        let distance = |to| match to {
            To::Next => 0,
            To::Over(instructions) => instructions,
            To::Miss => (block.len() - at - 1) as u8,
        };
        let (code, k, jt, jf) = match *op {
            Op::Load(offset) => (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0),
            Op::And(mask) => (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask, 0, 0),
            Op::If(compare, value, yes, no) => (compare.code(), value, distance(yes), distance(no)),
            Op::Verdict(verdict) => (libc::BPF_RET | libc::BPF_K, verdict, 0, 0),
        };
        sock_filter { code: code as u16, jt, jf, k }
    };
    block.iter().enumerate().map(instruction).collect()
}

impl Compare {
    fn code(self) -> u32 {
        let compare = match self {
            Self::Equal => libc::BPF_JEQ,
            Self::Above => libc::BPF_JGT,
            Self::AtLeast => libc::BPF_JGE,
        };
        libc::BPF_JMP | compare | libc::BPF_K
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
