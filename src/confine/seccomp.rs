//! Puts the calling thread under a program for system calls.
#![allow(unsafe_code)] // Asks the kernel.

use libc::{c_ulong, sock_filter, sock_fprog};
use nix::{errno::Errno, sys::prctl};

/// Why a thread is under no program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// A thread without privileges must first give up to gain any.
    #[error("setting no_new_privs: {0}")]
    NoNewPrivileges(Errno),
    /// The kernel, or a filter that this process already runs under, does not take ours.
    #[error("installing a seccomp filter: {0}")]
    Install(Errno),
}

impl InstallError {
    /// The likely cause, and what can be done.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoNewPrivileges(_) => "let the profile that this runs under allow prctl(PR_SET_NO_NEW_PRIVS)",
            Self::Install(Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => {
                "let the seccomp profile that this runs under allow seccomp(2) or prctl(PR_SET_SECCOMP)"
            }
            Self::Install(Errno::ENOMEM) => "this already runs under many filters: start it under fewer of them",
            Self::Install(_) => "use a kernel that was built with CONFIG_SECCOMP_FILTER",
        }
    }
}

/// Puts the calling thread under `program`, and those that it starts later, for good. It can no longer gain privileges.
///
/// # Errors
/// What the kernel does not take.
pub fn install(program: &[sock_filter]) -> Result<(), InstallError> {
    prctl::set_no_new_privs().map_err(InstallError::NoNewPrivileges)?;
    // The kernel only reads it.
    let pointer = program.as_ptr().cast_mut();
    let length = u16::try_from(program.len()).map_err(|_| InstallError::Install(Errno::E2BIG))?;
    let program = sock_fprog { len: length, filter: pointer };
    // Kernels before 5.16 would else slow the thread down, against speculation that reads what it has access to anyway.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the program is valid during the call, and the kernel checks what is in it.
    let installed =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match Errno::result(installed) {
        Ok(_) => return Ok(()),
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => {}
        Err(errno) => return Err(InstallError::Install(errno)),
    }
    // The older way, for older kernels, and for profiles that know no other.
    let (mode, unused): (c_ulong, c_ulong) = (c_ulong::from(libc::SECCOMP_MODE_FILTER), 0);
    // SAFETY: as above.
    let installed = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, unused, unused) };
    Errno::result(installed).map(drop).map_err(InstallError::Install)
}
