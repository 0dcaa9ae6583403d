//! Puts threads under the filter of system calls, for good; and whether that can be had here.
#![allow(unsafe_code)] // Asks the kernel.

use std::ops::Range;
use std::thread;

use libc::{c_int, c_ulong, sock_filter, sock_fprog};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

use super::arch;
use super::filter::{Daemon, program};
use super::signals;

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
    /// A thread without privileges must first give up to gain any.
    #[error("setting no_new_privs: {0}")]
    NoNewPrivileges(Errno),
    /// The kernel, or a filter that this process already runs under, does not take ours.
    #[error("installing a seccomp filter: {0}")]
    Install(Errno),
    /// The kernel took it.
    #[error("a seccomp filter was installed, but {0}")]
    Ineffective(&'static str),
}

impl FilterError {
    /// The likely cause, and what can be done.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Thread => "allow the process one more thread",
            Self::NoNewPrivileges(_) => "let the profile that this runs under allow prctl(PR_SET_NO_NEW_PRIVS)",
            Self::Install(Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => {
                "let the seccomp profile that this runs under allow seccomp(2) or prctl(PR_SET_SECCOMP)"
            }
            Self::Install(Errno::ENOMEM) => "this already runs under many filters: start it under fewer of them",
            Self::Install(_) => "use a kernel that was built with CONFIG_SECCOMP_FILTER",
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

/// Puts the calling thread under `program`, for good.
pub(super) fn confine(program: &[sock_filter]) -> Result<(), FilterError> {
    let (on, unused): (c_ulong, c_ulong) = (1, 0);
    // SAFETY: only ever takes something away from the calling thread.
    let unprivileged = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, unused, unused, unused) };
    Errno::result(unprivileged).map_err(FilterError::NoNewPrivileges)?;
    // The kernel only reads it.
    let pointer = program.as_ptr().cast_mut();
    let length = u16::try_from(program.len()).map_err(|_| FilterError::Install(Errno::E2BIG))?;
    let program = sock_fprog { len: length, filter: pointer };
    // Kernels before 5.16 would else slow the thread down, against speculation that reads what it has access to anyway.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the program is valid during the call, and the kernel checks what is in it.
    let installed =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match Errno::result(installed) {
        Ok(_) => return Ok(()),
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => {}
        Err(errno) => return Err(FilterError::Install(errno)),
    }
    // The older way, for older kernels, and for profiles that know no other.
    let mode = c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: as above.
    let installed = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, unused, unused) };
    Errno::result(installed).map(drop).map_err(FilterError::Install)
}

/// Runs the steps of a trial under the program that `make` answers for ranges of code.
fn prove(make: impl FnOnce(&[Range<u64>]) -> Vec<sock_filter> + Send + 'static) -> Result<(), FilterError> {
    let trial = move || {
        // Blocked, a SIGSYS of the filter would end the process.
        let unblocked = SigSet::from(Signal::SIGSYS).thread_unblock();
        unblocked.map_err(|_| FilterError::Ineffective("SIGSYS cannot be unblocked"))?;
        confine(&make(&[arch::trial_call_range()]))?;
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
