//! The system calls of the room, each in one place, so that tests can make any of them fail.
#![allow(unsafe_code)] // Maps, protects, advises, seals and unmaps memory for those who own it.

use std::{
    ffi::c_void,
    num::NonZeroUsize,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    ptr::{self, NonNull},
};

use nix::{
    errno::Errno,
    fcntl::{self, FcntlArg, OFlag, SealFlag},
    sys::{
        memfd::{self, MFdFlags},
        mman::{self, MapFlags, ProtFlags},
        stat::Mode,
    },
    unistd,
};

#[cfg(test)]
use super::faults::check;

/// Makes mappings permanent; Linux 6.10.
const SYS_MSEAL: libc::c_long = 462;
/// What `/proc/self/fd` names the memory file, with `memfd:` before it.
const NAME: &str = "codecached";

/// What a test can make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    CreateMemory,
    OpenNameless,
    CreateNamed,
    Unlink,
    Grow,
    AddSeals,
    Reopen,
    Reserve,
    ReserveLow,
    Map,
    Protect,
    Commit,
    GiveBack,
    Advise,
    Collapse,
    SealMapping,
    Membarrier,
}

/// What madvise is asked for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Not in child processes.
    DontFork,
    /// In child processes, too.
    DoFork,
    /// Not in core dumps.
    DontDump,
    /// Huge pages may be used, or not.
    HugePages(bool),
    /// Pages and their translations, as if each were read.
    PopulateRead,
    /// Pages and their translations, as if each were written; what is there stays.
    PopulateWrite,
    /// A huge page in the place of what is there; Linux 6.1.
    Collapse,
    /// Gives memory back, through a writable view of a file.
    Remove,
    /// Gives private memory back.
    DontNeed,
}

impl Advice {
    fn number(self) -> libc::c_int {
        match self {
            Self::DontFork => libc::MADV_DONTFORK,
            Self::DoFork => libc::MADV_DOFORK,
            Self::DontDump => libc::MADV_DONTDUMP,
            Self::HugePages(true) => libc::MADV_HUGEPAGE,
            Self::HugePages(false) => libc::MADV_NOHUGEPAGE,
            Self::PopulateRead => libc::MADV_POPULATE_READ,
            Self::PopulateWrite => libc::MADV_POPULATE_WRITE,
            Self::Collapse => libc::MADV_COLLAPSE,
            Self::Remove => libc::MADV_REMOVE,
            Self::DontNeed => libc::MADV_DONTNEED,
        }
    }

    fn call(self) -> Call {
        match self {
            Self::DontFork | Self::DoFork | Self::DontDump | Self::HugePages(_) => Call::Advise,
            Self::PopulateWrite => Call::Commit,
            Self::Remove | Self::DontNeed => Call::GiveBack,
            Self::PopulateRead | Self::Collapse => Call::Collapse,
        }
    }
}

/// Shipped code fails only where the system does.
#[cfg(not(test))]
#[inline(always)]
fn check(_: Call) -> Result<(), Errno> {
    Ok(())
}

pub(super) fn memfd_create(flags: MFdFlags) -> Result<OwnedFd, Errno> {
    check(Call::CreateMemory)?;
    memfd::memfd_create(NAME, flags)
}

/// A file that never has a name. `EOPNOTSUPP`, `EISDIR` or `ENOENT` where the file system cannot.
pub(super) fn open_tmpfile(directory: &Path) -> Result<OwnedFd, Errno> {
    check(Call::OpenNameless)?;
    fcntl::open(directory, OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::S_IRUSR | Mode::S_IWUSR)
}

/// A file that nobody had before.
pub(super) fn create(path: &Path) -> Result<OwnedFd, Errno> {
    check(Call::CreateNamed)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    fcntl::open(path, flags, Mode::S_IRUSR | Mode::S_IWUSR)
}

pub(super) fn unlink(path: &Path) -> Result<(), Errno> {
    check(Call::Unlink)?;
    unistd::unlink(path)
}

pub(super) fn ftruncate(file: &OwnedFd, bytes: u64) -> Result<(), Errno> {
    check(Call::Grow)?;
    unistd::ftruncate(file, libc::off_t::try_from(bytes).map_err(|_| Errno::EFBIG)?)
}

pub(super) fn seal(file: &OwnedFd, seals: SealFlag) -> Result<(), Errno> {
    check(Call::AddSeals)?;
    fcntl::fcntl(file, FcntlArg::F_ADD_SEALS(seals)).map(drop)
}

/// The same file through a descriptor that cannot write.
pub(super) fn reopen(file: &OwnedFd) -> Result<OwnedFd, Errno> {
    check(Call::Reopen)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Inaccessible addresses that the kernel chooses.
pub(super) fn reserve(bytes: usize) -> Result<usize, Errno> {
    check(Call::Reserve)?;
    let bytes = NonZeroUsize::new(bytes).ok_or(Errno::EINVAL)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: The kernel chooses addresses that nobody uses.
    let start = unsafe { mman::mmap_anonymous(None, bytes, ProtFlags::PROT_NONE, flags) }?;
    Ok(start.as_ptr().expose_provenance())
}

/// Inaccessible addresses from `address` on. `EEXIST` where something lies there.
pub(super) fn reserve_at(address: usize, bytes: usize) -> Result<(), Errno> {
    check(Call::ReserveLow)?;
    let (at, bytes) = (NonZeroUsize::new(address), NonZeroUsize::new(bytes).ok_or(Errno::EINVAL)?);
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED_NOREPLACE;
    // SAFETY: With this flag the kernel replaces nothing that is there.
    let start = unsafe { mman::mmap_anonymous(at, bytes, ProtFlags::PROT_NONE, flags) }?;
    let start = start.as_ptr().expose_provenance();
    if start == address {
        return Ok(());
    }
    // Before Linux 4.17 the address is but a wish.
    // SAFETY: The addresses are new, and nobody knows of them.
    unsafe { munmap(start, bytes.get()) }?;
    Err(Errno::EEXIST)
}

/// Puts a part of a file, or without one private memory, in the place of what was mapped there.
///
/// # Safety
/// The addresses are the caller's, and nothing refers to what they held.
pub(super) unsafe fn mmap(
    address: usize,
    bytes: usize,
    prot: ProtFlags,
    file: Option<(BorrowedFd<'_>, u64)>,
) -> Result<(), Errno> {
    check(Call::Map)?;
    let (address, bytes) = (NonZeroUsize::new(address), NonZeroUsize::new(bytes).ok_or(Errno::EINVAL)?);
    match file {
        Some((file, offset)) => {
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            // SAFETY: Our caller owns the addresses.
            unsafe { mman::mmap(address, bytes, prot, flags, file.as_fd(), offset as libc::off_t) }.map(drop)
        }
        None => {
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
            // SAFETY: Our caller owns the addresses.
            unsafe { mman::mmap_anonymous(address, bytes, prot, flags) }.map(drop)
        }
    }
}

/// # Safety
/// The addresses are the caller's, and nobody uses them in a way that the new protection forbids.
pub(super) unsafe fn mprotect(address: usize, bytes: usize, prot: ProtFlags) -> Result<(), Errno> {
    check(Call::Protect)?;
    // SAFETY: Our caller vouches for it.
    unsafe { mman::mprotect(pointer(address)?, bytes, prot) }
}

/// # Safety
/// The addresses are the caller's; of what it gives back, nothing is needed any more.
pub(super) unsafe fn madvise(address: usize, bytes: usize, advice: Advice) -> Result<(), Errno> {
    check(advice.call())?;
    let start = pointer(address)?.as_ptr();
    // SAFETY: Our caller vouches for it.
    Errno::result(unsafe { libc::madvise(start, bytes, advice.number()) }).map(drop)
}

/// Makes mappings permanent, and with no bytes only asks whether the kernel could.
///
/// # Safety
/// The addresses are the caller's, who will never unmap them nor change what they may be used for.
pub(super) unsafe fn mseal(address: usize, bytes: usize) -> Result<(), Errno> {
    check(Call::SealMapping)?;
    // SAFETY: Our caller vouches for it.
    Errno::result(unsafe { libc::syscall(SYS_MSEAL, address, bytes, 0) }).map(drop)
}

/// What is sealed stays: EPERM.
///
/// # Safety
/// The addresses are the caller's, and nobody uses them any more.
pub(super) unsafe fn munmap(address: usize, bytes: usize) -> Result<(), Errno> {
    // SAFETY: Our caller vouches for it.
    unsafe { mman::munmap(pointer(address)?, bytes) }
}

pub(super) fn membarrier(command: libc::c_int) -> Result<(), Errno> {
    check(Call::Membarrier)?;
    // SAFETY: The call takes no pointers and has no effect on memory but its order.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }).map(drop)
}

/// A number that nobody can foresee, whatever they know of this process.
///
/// # Errors
/// Of getrandom.
pub fn random() -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    // SAFETY: The buffer is ours and has the length that is named.
    let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // So few bytes come whole or not at all.
    Errno::result(read).map(|_| u64::from_ne_bytes(bytes))
}

/// Which pages the file has, whether or not they are mapped here.
#[cfg(test)]
pub(super) fn mincore(address: usize, bytes: usize) -> Vec<bool> {
    let mut pages = vec![0; bytes.div_ceil(4096)];
    let start = pointer(address).unwrap().as_ptr();
    // SAFETY: The buffer has a byte for each page.
    assert_eq!(unsafe { libc::mincore(start, bytes, pages.as_mut_ptr()) }, 0);
    pages.into_iter().map(|it| it & 1 != 0).collect()
}

fn pointer(address: usize) -> Result<NonNull<c_void>, Errno> {
    NonNull::new(ptr::with_exposed_provenance_mut::<c_void>(address)).ok_or(Errno::EFAULT)
}
