//! Tries what must be refused. None of it would do harm if it were not.
#![allow(unsafe_code)] // Asks for memory that is executable.

use std::net::TcpListener;

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap},
        stat::Mode,
    },
    unistd::{execve, truncate},
};

/// Something that the process must not be able to do.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// What is tried.
    pub what: &'static str,
    run: fn() -> Result<(), Errno>,
}

impl Attempt {
    /// Tries it, and says how it went.
    ///
    /// # Errors
    /// It was not refused for want of a right.
    pub fn run(&self) -> Result<Errno, String> {
        match (self.run)() {
            Err(errno @ (Errno::EPERM | Errno::EACCES)) => Ok(errno),
            Err(errno) => Err(format!("not refused, but failed ({errno:?})")),
            Ok(()) => Err("not refused".to_owned()),
        }
    }
}

/// What the filter keeps the process from, the most telling first.
pub(super) const BY_FILTER: &[Attempt] = &[
    Attempt { what: "running another program", run: run_program },
    Attempt { what: "mapping executable memory", run: map_executable },
    Attempt { what: "making memory executable", run: make_executable },
    Attempt { what: "making a memory file", run: make_memory_file },
    Attempt { what: "opening a file for writing", run: open_for_writing },
    Attempt { what: "shortening a file by its name", run: shorten },
];

/// What the kernel's sandbox keeps it from and no filter could tell, where it knows of ports.
pub(super) const BY_LANDLOCK: &[Attempt] = &[Attempt { what: "listening on another port", run: listen }];

/// There is no such program: ENOENT if one might be run.
fn run_program() -> Result<(), Errno> {
    execve::<&std::ffi::CStr, &std::ffi::CStr>(c"", &[], &[]).map(|_| ())
}

fn map_executable() -> Result<(), Errno> {
    page(ProtFlags::PROT_READ | ProtFlags::PROT_EXEC, |_| Ok(()))
}

fn make_executable() -> Result<(), Errno> {
    page(ProtFlags::PROT_READ, |page| {
        // SAFETY: the page is ours, and nothing refers to it.
        unsafe { mprotect(page, PAGE_BYTES, ProtFlags::PROT_READ | ProtFlags::PROT_EXEC) }
    })
}

const PAGE_BYTES: usize = 4096;

/// Does something to a page of its own, which then goes.
fn page(
    protection: ProtFlags,
    with: impl FnOnce(std::ptr::NonNull<std::ffi::c_void>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let length = std::num::NonZero::new(PAGE_BYTES).ok_or(Errno::EINVAL)?;
    // SAFETY: the kernel chooses addresses that nobody uses.
    let page = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
    let done = with(page);
    // SAFETY: the page is ours, and nothing refers to it.
    unsafe { munmap(page, PAGE_BYTES) }?;
    done
}

fn make_memory_file() -> Result<(), Errno> {
    memfd_create(c"attempt", MFdFlags::MFD_CLOEXEC).map(drop)
}

/// Nothing is written, and there is nothing to be written to.
fn open_for_writing() -> Result<(), Errno> {
    open("/dev/null", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()).map(drop)
}

/// There is no such file: ENOENT if one might be shortened.
fn shorten() -> Result<(), Errno> {
    truncate(c"", 0)
}

fn listen() -> Result<(), Errno> {
    TcpListener::bind("127.0.0.1:0").map(drop).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}
