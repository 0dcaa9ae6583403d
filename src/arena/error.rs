//! What can go wrong with executable memory.

use std::io;

use nix::errno::Errno;

use super::PartKind;

/// Why the arenas could not be mapped. Each variant is one step, in the order in which they are taken.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The configuration asks for nothing, or for too much.
    #[error("cannot reserve {reserve_bytes} bytes of executable memory: at least 1 and at most {max_bytes}")]
    Size {
        /// What was asked for, per kind of memory.
        reserve_bytes: u64,
        /// The most that may be asked for.
        max_bytes: u64,
    },
    /// The unit of spans is none that there is.
    #[error("granules of {granule_bytes} bytes: a power of two from 16 to 4096 is possible")]
    Granule {
        /// What was asked for.
        granule_bytes: u64,
    },
    /// Growing a file beyond this limit would be answered by SIGXFSZ, which kills.
    #[error("the limit on file sizes (RLIMIT_FSIZE) is {limit_bytes} bytes and the arenas need {needed_bytes}")]
    FileLimit {
        /// The sparse size of the memory file.
        needed_bytes: u64,
        /// The soft limit.
        limit_bytes: u64,
    },
    /// Reading the limit on file sizes.
    #[error("cannot read the limit on file sizes: {errno}")]
    ReadLimit {
        /// From getrlimit.
        errno: Errno,
    },
    /// Reading random bytes for the placement.
    #[error("cannot read random bytes: {errno}")]
    Random {
        /// From getrandom.
        errno: Errno,
    },
    /// Reserving addresses.
    #[error("cannot reserve {bytes} bytes of address space: {errno}")]
    Reserve {
        /// Of addresses, guards and random placement included.
        bytes: u64,
        /// From mmap.
        errno: Errno,
    },
    /// Creating the memory file.
    #[error("cannot create a memory file: {errno}")]
    CreateFile {
        /// From memfd_create.
        errno: Errno,
    },
    /// Giving the memory file its sparse size.
    #[error("cannot grow the memory file to {bytes} bytes: {errno}")]
    GrowFile {
        /// The sparse size.
        bytes: u64,
        /// From ftruncate.
        errno: Errno,
    },
    /// Sealing the memory file's size.
    #[error("cannot seal the memory file: {errno}")]
    SealFile {
        /// From fcntl.
        errno: Errno,
    },
    /// Opening the memory file for reading only. Needs `/proc`.
    #[error("cannot reopen the memory file for reading only: {error}")]
    Reopen {
        /// From open.
        error: io::Error,
    },
    /// Mapping the window through which code and constants are written.
    #[error("cannot map {bytes} bytes of the writable window: {errno}")]
    MapWindow {
        /// Of the window.
        bytes: u64,
        /// From mmap.
        errno: Errno,
    },
    /// Mapping an area where code runs.
    #[error("cannot map {bytes} bytes of {kind} memory: {errno}")]
    MapArea {
        /// Which kind of area.
        kind: PartKind,
        /// Of the area.
        bytes: u64,
        /// From mmap.
        errno: Errno,
    },
    /// Keeping the memory out of child processes and core dumps.
    #[error("cannot keep the arenas out of child processes and core dumps: {errno}")]
    Advise {
        /// From madvise.
        errno: Errno,
    },
    /// Neither membarrier nor its substitute can be had.
    #[error("cannot prepare the barrier that makes new code visible to all cores: {errno}")]
    Barrier {
        /// From mmap.
        errno: Errno,
    },
    /// Taking or giving back the canary's page.
    #[error("cannot commit memory to the canary: {errno}")]
    Commit {
        /// From madvise.
        errno: Errno,
    },
    /// Code that was written and published did not do what it says.
    #[error("the canary function returned {found:#x} instead of {expected:#x}: new code is not visible")]
    Canary {
        /// What the function was written to return.
        expected: u32,
        /// What came back.
        found: u32,
    },
}

/// Why there is no memory for a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// Cannot be had even from empty arenas: giving up memory would not help.
    #[error("needs {needed_bytes} bytes of executable memory at once, of at most {max_bytes}")]
    TooLarge {
        /// Of one part, or of all parts in whole pages.
        needed_bytes: u64,
        /// An area's size, or the commit limit.
        max_bytes: u64,
    },
    /// An alignment is not a power of two, or is too large.
    #[error("alignment of {part} is {align_bytes}: a power of two up to {max_bytes} is possible")]
    Align {
        /// Whose alignment.
        part: PartKind,
        /// What was asked for.
        align_bytes: u64,
        /// The largest alignment.
        max_bytes: u64,
    },
    /// No free run is long enough, or none that is may be committed. Giving up memory helps.
    #[error(
        "no room for {needed_bytes} bytes of {part}: largest free run {largest_free_bytes} bytes, \
         {committed_bytes} of at most {commit_limit_bytes} bytes committed"
    )]
    Fragmented {
        /// Which part found no room; if pages lack, the part that lacks most of them.
        part: PartKind,
        /// Of the part; if pages lack, of its missing pages.
        needed_bytes: u64,
        /// Of this part's kind, in any arena.
        largest_free_bytes: u64,
        /// Of all kinds.
        committed_bytes: u64,
        /// Of all kinds.
        commit_limit_bytes: u64,
    },
    /// The system refused to commit pages, or to take pages back.
    #[error("cannot {step} {bytes} bytes of {part} memory: {errno}")]
    Commit {
        /// Whose pages.
        part: PartKind,
        /// `commit` or `give back`.
        step: &'static str,
        /// Of the run of pages that was refused.
        bytes: u64,
        /// From madvise.
        errno: Errno,
    },
}

/// Why memory that was written could not be made ready to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The system refused to change the protection of its pages.
    #[error("cannot change the protection of {part} memory: {errno}")]
    Protect {
        /// Whose pages.
        part: PartKind,
        /// From mprotect.
        errno: Errno,
    },
}
