//! Whether threads can be had here that run under the filter of system calls.
#![allow(unsafe_code)] // Asks the kernel.

use std::ops::Range;
use std::thread;

use libc::{c_int, sock_filter};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

use super::arch;
use super::filter::{Daemon, program};
use super::signals;
use crate::confine::{InstallError, install};

/// Whether a pool's threads run under the filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilterPolicy {
    /// Without it there is no pool.
    #[default]
    Require,
    /// If it can be had.
    Try,
    /// No.
    Off,
}

/// Whether system calls of code are contained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterState {
    /// Every executor runs under the filter.
    InForce,
    /// None does, because of this.
    Unavailable(FilterError),
    /// None does, as nobody asked for it.
    Off,
}

/// Why there is no filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The thread that tries it could not be started or did not end in order.
    #[error("the thread that tries a seccomp filter failed")]
    Thread,
    /// The kernel does not take it.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The kernel took it.
    #[error("a seccomp filter was installed, but {0}")]
    Ineffective(&'static str),
}

impl FilterError {
    /// The likely cause, and what can be done.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Thread => "allow the process one more thread",
            Self::Install(error) => error.remedy(),
            Self::Ineffective(_) => "use a kernel and a sandbox whose filters know instruction pointers",
        }
    }
}

/// Tries on a thread of its own, which then ends, whether filters can be had and do what they should.
///
/// # Errors
/// What does not work.
pub fn try_filter() -> Result<(), FilterError> {
    // The refusals of the trial are answered by the handler.
    signals::install().map_err(|_| FilterError::Ineffective("SIGSYS cannot be handled"))?;
    prove(|code| program(code, this_daemon(false)))
}

/// What a program must know of this process.
pub(super) fn this_daemon(flips_protection: bool) -> Daemon {
    Daemon { process: std::process::id(), default_action: signals::default_action(), flips_protection }
}

/// Runs the steps of a trial under the program that `make` answers for ranges of code.
fn prove(make: impl FnOnce(&[Range<u64>]) -> Vec<sock_filter> + Send + 'static) -> Result<(), FilterError> {
    let trial = move || {
        // Blocked, a SIGSYS of the filter would end the process.
        let unblocked = SigSet::from(Signal::SIGSYS).thread_unblock();
        unblocked.map_err(|_| FilterError::Ineffective("SIGSYS cannot be unblocked"))?;
        install(&make(&[arch::trial_call_range()]))?;
        steps()
    };
    let thread = thread::Builder::new().name("exec-trial".into()).spawn(trial).map_err(|_| FilterError::Thread)?;
    thread.join().unwrap_or(Err(FilterError::Thread))
}

fn steps() -> Result<(), FilterError> {
    let refused = -(Errno::ENOSYS as c_int);
    // SAFETY: has no preconditions and no effects.
    if unsafe { libc::syscall(libc::SYS_gettid) } <= 0 {
        return Err(FilterError::Ineffective("what it allows is refused"));
    }
    // SAFETY: as above.
    if unsafe { libc::syscall(libc::SYS_getppid) } != -1 || Errno::last() != Errno::ENOSYS {
        return Err(FilterError::Ineffective("what it refuses is allowed"));
    }
    if arch::trial_call() != i64::from(refused) {
        return Err(FilterError::Ineffective("it does not see where a call is made"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "confine_tests.rs"]
mod tests;
