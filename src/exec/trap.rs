//! A trap: what ended a call that did not return.

use std::ops::Range;

use super::arch;
use super::system_call::SystemCall;
use super::worker::{Death, Lost};

/// Bytes of the instructions that make system calls.
const SYSTEM_CALL_BYTES: u64 = 2;
/// `si_code` of a fault for which the kernel knows no address (a general protection fault) and of `int3`.
const SI_KERNEL: i32 = 0x80;

/// What kind of end it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrapKind {
    /// Access to memory that is not there or not allowed, or an instruction that needs more privilege.
    Segv,
    /// Misaligned access under alignment checks, a stack-segment fault, or memory that could not be brought in.
    Bus,
    /// An instruction that does not exist.
    Ill,
    /// An arithmetic fault: division by zero, or an unmasked floating-point exception.
    Fpe,
    /// A breakpoint instruction, or single stepping.
    Breakpoint,
    /// The stack was used up.
    StackOverflow,
    /// A limit of time was reached: CPU, wall or deadline.
    Timeout,
    /// The code called `abort`, a failed check of the C compiler did, or its heap was found corrupt.
    Abort,
    /// The code made a system call, or jumped to where the C library makes one that executors have no need of.
    Syscall,
    /// Somebody asked for its end: [`super::Pool::cancel`].
    Cancelled,
    /// The worker process that ran it ended, or there was none.
    Worker,
}

impl TrapKind {
    /// Every kind, in the order of [`super::PoolStats::traps`].
    pub const ALL: [TrapKind; 11] = [
        TrapKind::Segv,
        TrapKind::Bus,
        TrapKind::Ill,
        TrapKind::Fpe,
        TrapKind::Breakpoint,
        TrapKind::StackOverflow,
        TrapKind::Timeout,
        TrapKind::Abort,
        TrapKind::Syscall,
        TrapKind::Cancelled,
        TrapKind::Worker,
    ];

    /// As the API names it.
    pub fn as_str(self) -> &'static str {
        match self {
            TrapKind::Segv => "SEGV",
            TrapKind::Bus => "BUS",
            TrapKind::Ill => "ILL",
            TrapKind::Fpe => "FPE",
            TrapKind::Breakpoint => "BREAKPOINT",
            TrapKind::StackOverflow => "STACK_OVERFLOW",
            TrapKind::Timeout => "TIMEOUT",
            TrapKind::Abort => "ABORT",
            TrapKind::Syscall => "SYSCALL",
            TrapKind::Cancelled => "CANCELLED",
            TrapKind::Worker => "WORKER",
        }
    }
}

/// What was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapStage {
    /// The function that was called.
    Call,
    /// What must run before the first call: an initialiser, or the choice of an implementation.
    Initialiser,
    /// As before; it returned, but kept memory that it had allocated, which is the call's and would be gone.
    KeptMemory,
    /// The call, which could not be stopped: it has kept its thread, and where it is is not known.
    Stuck,
    /// Nothing: the call still waited, and has not run.
    Waiting,
}

/// Where and by what a call was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// The kind.
    pub kind: TrapKind,
    /// Address of the instruction. For an abort it lies in the instruction that called; for single stepping and
    /// `icebp` it may be the instruction after. It is outside the code's own range when the code jumped away or a host function faulted.
    pub pc: u64,
    /// The address that was accessed, where the processor told.
    pub fault_address: Option<u64>,
    /// The signal's number; 0 if there was none.
    pub signal: i32,
    /// What the code asked for, for [`TrapKind::Syscall`].
    pub system_call: Option<SystemCall>,
    /// What was running.
    pub stage: TrapStage,
    /// For [`TrapKind::Worker`]: the status with which the process ended itself, if it did.
    pub exit_status: Option<i32>,
}

impl Trap {
    /// The end of a call of `entry` that was cancelled before it began.
    pub(super) fn before_start(entry: u64) -> Trap {
        Trap {
            kind: TrapKind::Cancelled,
            pc: entry,
            fault_address: None,
            signal: 0,
            system_call: None,
            stage: TrapStage::Waiting,
            exit_status: None,
        }
    }

    /// The end of a call of `entry` of which its worker process told nothing.
    pub(super) fn of_lost(entry: u64, lost: Lost) -> Trap {
        let trap = Trap { kind: TrapKind::Worker, stage: TrapStage::Call, ..Trap::before_start(entry) };
        let died = |trap: Trap, death| match death {
            Death::Exit(status) => Trap { exit_status: Some(status), ..trap },
            Death::Signal(signal) => Trap { signal, ..trap },
        };
        match lost {
            Lost::Died(death) => died(trap, death),
            Lost::Stopped => Trap { kind: TrapKind::Timeout, signal: libc::SIGKILL, ..trap },
            Lost::Never(death) => {
                let trap = Trap { stage: TrapStage::Waiting, ..trap };
                death.map_or(trap, |death| died(trap, death))
            }
        }
    }
}

/// What the handler saw, not yet interpreted: interpretation happens after recovery, in ordinary code.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawTrap {
    /// The signal's number.
    pub(super) signal: i32,
    /// `si_code`.
    pub(super) code: i32,
    /// Program counter of the context.
    pub(super) pc: u64,
    /// `si_addr`, or for SIGSYS `si_call_addr`.
    pub(super) address: u64,
    /// The register in which an abort passes its caller's return address.
    pub(super) abort_return: u64,
    /// `si_syscall`, for SIGSYS.
    pub(super) number: i32,
    /// `si_arch`, for SIGSYS.
    pub(super) arch: u32,
}

impl Trap {
    /// Of a call that could not be stopped when its time was over.
    pub(super) fn of_stuck() -> Trap {
        let (kind, signal) = (TrapKind::Timeout, super::signals::STOP_SIGNAL);
        Trap { kind, pc: 0, fault_address: None, signal, stage: TrapStage::Stuck, ..Trap::before_start(0) }
    }
}

impl RawTrap {
    /// Interprets; `guard` is the area below the call's stack.
    pub(super) fn interpret(&self, guard: &Range<u64>) -> Trap {
        let memory = matches!(self.signal, libc::SIGSEGV | libc::SIGBUS);
        let fault_address = (memory && self.code != SI_KERNEL).then_some(self.address);
        let kind = self.kind(fault_address.is_some_and(|address| guard.contains(&address)));
        let system_call = (kind == TrapKind::Syscall).then(|| SystemCall::from_signal(self.arch, self.number));
        Trap {
            kind,
            pc: self.instruction(kind),
            fault_address,
            signal: self.signal,
            system_call,
            stage: TrapStage::Call,
            exit_status: None,
        }
    }

    fn kind(&self, in_guard: bool) -> TrapKind {
        match self.signal {
            libc::SIGSEGV if in_guard => TrapKind::StackOverflow,
            libc::SIGSEGV => TrapKind::Segv,
            libc::SIGBUS => TrapKind::Bus,
            libc::SIGILL if self.pc == arch::abort_address() => TrapKind::Abort,
            libc::SIGILL => TrapKind::Ill,
            libc::SIGFPE => TrapKind::Fpe,
            libc::SIGTRAP => TrapKind::Breakpoint,
            libc::SIGSYS => TrapKind::Syscall,
            _ => TrapKind::Timeout,
        }
    }

    fn instruction(&self, kind: TrapKind) -> u64 {
        match kind {
            TrapKind::Abort => self.abort_return.wrapping_sub(1),
            // `int3`. Other debug traps, by TF or `icebp`, are left as the processor tells them.
            TrapKind::Breakpoint if self.code == SI_KERNEL => self.pc.wrapping_sub(1),
            // The page of old system calls (vsyscall) is not run: the kernel returns from it before it tells.
            TrapKind::Syscall if self.address != self.pc => self.address,
            TrapKind::Syscall => self.pc.wrapping_sub(SYSTEM_CALL_BYTES),
            _ => self.pc,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(signal: i32, code: i32) -> RawTrap {
        RawTrap { signal, code, pc: 0x1001, address: 0x5000, abort_return: 0x2005, number: 39, arch: 0xc000_003e }
    }

    #[test]
    fn a_fault_in_the_guard_is_a_stack_overflow_and_elsewhere_a_segv() {
        assert_eq!(raw(libc::SIGSEGV, 1).interpret(&(0x4000..0x6000)).kind, TrapKind::StackOverflow);
        assert_eq!(raw(libc::SIGSEGV, 1).interpret(&(0x6000..0x7000)).kind, TrapKind::Segv);
    }

    #[test]
    fn a_general_protection_fault_has_no_address() {
        let trap = raw(libc::SIGSEGV, SI_KERNEL).interpret(&(0x4000..0x6000));
        assert_eq!((trap.kind, trap.fault_address), (TrapKind::Segv, None));
    }

    #[test]
    fn a_breakpoint_names_its_own_instruction() {
        assert_eq!(raw(libc::SIGTRAP, SI_KERNEL).interpret(&(0..0)).pc, 0x1000);
        assert_eq!(
            raw(libc::SIGTRAP, 2).interpret(&(0..0)).pc,
            0x1001,
            "single stepping reports the instruction after"
        );
    }

    #[test]
    fn a_system_call_names_its_own_instruction_unless_it_was_made_elsewhere() {
        let here = RawTrap { address: 0x1001, ..raw(libc::SIGSYS, 1) }.interpret(&(0..0));
        assert_eq!((here.kind, here.pc, here.fault_address), (TrapKind::Syscall, 0xfff, None));
        assert_eq!(here.system_call.and_then(|it| it.name()), Some("getpid"));
        assert_eq!(raw(libc::SIGSYS, 1).interpret(&(0..0)).pc, 0x5000);
    }

    #[test]
    fn an_abort_names_the_instruction_that_called() {
        let at_abort = RawTrap { pc: arch::abort_address(), ..raw(libc::SIGILL, 2) };
        let trap = at_abort.interpret(&(0..0));
        assert_eq!((trap.kind, trap.pc), (TrapKind::Abort, 0x2004));
    }
}
