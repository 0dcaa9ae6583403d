//! The file behind both views. Nameless from the start or at once, and no descriptor of it outlives the mapping.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process,
};

use nix::{
    errno::Errno,
    fcntl::SealFlag,
    sys::{
        memfd::MFdFlags,
        resource::{Resource, getrlimit},
    },
};

use super::{ArenaConfig, StepError, StrategyKind, strategy::Step, system};

/// Refuses execve of the file whatever `vm.memfd_noexec` says; Linux 6.3.
const MFD_NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(0x8);

/// A sparse file of this size. Where the kernel can, nobody can change the size any more: a mapped page cannot vanish
/// and turn an access into SIGBUS.
pub(super) fn create(kind: StrategyKind, bytes: u64, config: &ArenaConfig) -> Result<OwnedFd, StepError> {
    let file = open(kind, config).map_err(Step::Create.failed())?;
    grow(&file, bytes).map_err(Step::Grow.failed())?;
    // A file of a file system that has a name for its users takes no seals; without a name and a descriptor nobody
    // else reaches it.
    if kind != StrategyKind::File {
        seal(&file).map_err(Step::Seal.failed())?;
    }
    Ok(file)
}

/// From a descriptor that can write, an executable mapping could later be made writable by mprotect.
pub(super) fn reopen(file: &OwnedFd) -> Result<OwnedFd, StepError> {
    system::reopen(file).map_err(Step::Reopen.failed())
}

fn open(kind: StrategyKind, config: &ArenaConfig) -> Result<OwnedFd, Errno> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let huge = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    match kind {
        StrategyKind::MemfdHuge => match system::memfd_create(flags | huge | MFD_NOEXEC_SEAL) {
            Err(Errno::EINVAL) => system::memfd_create(flags | huge),
            created => created,
        },
        StrategyKind::Memfd => system::memfd_create(flags | MFD_NOEXEC_SEAL),
        StrategyKind::MemfdPlain => system::memfd_create(flags),
        StrategyKind::File => open_in(config.directory.as_deref().ok_or(Errno::ENOENT)?),
        StrategyKind::Protect => Err(Errno::EINVAL),
    }
}

fn open_in(directory: &Path) -> Result<OwnedFd, Errno> {
    match system::open_tmpfile(directory) {
        // What kernels and file systems without nameless files say.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL | Errno::ENOSYS) => open_and_unlink(directory),
        opened => opened,
    }
}

fn open_and_unlink(directory: &Path) -> Result<OwnedFd, Errno> {
    let path: PathBuf = directory.join(format!(".codecached-{}-{:016x}", process::id(), system::random()?));
    let file = system::create(&path)?;
    system::unlink(&path)?;
    Ok(file)
}

fn grow(file: &OwnedFd, bytes: u64) -> Result<(), Errno> {
    // Growth beyond this limit would be answered by SIGXFSZ, which kills.
    let (limit_bytes, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
    if bytes > limit_bytes {
        return Err(Errno::EFBIG);
    }
    system::ftruncate(file, bytes)
}

fn seal(file: &OwnedFd) -> Result<(), Errno> {
    system::seal(file, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)?;
    system::seal(file, SealFlag::F_SEAL_SEAL)
}
