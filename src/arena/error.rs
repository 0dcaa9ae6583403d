//! What can go wrong with executable memory.

use std::io;

use nix::errno::Errno;

use super::{Attempt, PartKind, StepError};

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
    /// The configuration asks for too much below 2 GiB.
    #[error(
        "cannot have {low_bytes} bytes of each kind of memory below 2 GiB: at most {max_bytes} in granules of \
         {granule_bytes} bytes"
    )]
    LowSize {
        /// What was asked for, per kind of memory.
        low_bytes: u64,
        /// The most that may be asked for.
        max_bytes: u64,
        /// What spans are rounded up to.
        granule_bytes: u64,
    },
    /// The unit of spans is none that there is.
    #[error("granules of {granule_bytes} bytes: a power of two from 16 to 4096 is possible")]
    Granule {
        /// What was asked for.
        granule_bytes: u64,
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
    /// No way to have such memory works here. With one line for each that was tried.
    #[error("no memory can be written and then run here:{}", lines(attempts))]
    NoStrategy {
        /// All that were tried, in order.
        attempts: Vec<Attempt>,
    },
    /// Neither membarrier nor its substitute can be had.
    #[error("cannot prepare the barrier that makes new code visible to all cores: {errno}")]
    Barrier {
        /// From mmap.
        errno: Errno,
    },
    /// Starting the thread that puts memory on huge pages.
    #[error("cannot start a thread for huge pages: {error}")]
    Thread {
        /// From the system.
        error: io::Error,
    },
    /// Code that was written and published did not do what it says.
    #[error("the canary failed: {0}")]
    Canary(#[from] StepError),
}

fn lines(attempts: &[Attempt]) -> String {
    attempts.iter().map(|attempt| format!("\n  {attempt}")).collect()
}

/// Why there is no arena below 2 GiB although one was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no {bytes} bytes of addresses below 2 GiB after {tries} tries: {errno}")]
pub struct LowRefusal {
    /// Of addresses in one piece, guards included.
    pub bytes: u64,
    /// Places that were tried.
    pub tries: u32,
    /// Of the last try, from mmap; or from getrandom.
    pub errno: Errno,
}

/// What there is too little of: only giving up some of that helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacks {
    /// Pages that may be committed, which all arenas share.
    Pages,
    /// Addresses in one piece, but for those below 2 GiB.
    Common,
    /// Addresses in one piece below 2 GiB.
    Low,
}

/// Why there is no memory for a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// Cannot be had even from empty arenas: giving up memory would not help.
    #[error(
        "needs {needed_bytes} bytes of executable memory{} at once, of at most {max_bytes}",
        if *low { " below 2 GiB" } else { "" }
    )]
    TooLarge {
        /// It would lie below 2 GiB.
        low: bool,
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
    /// The layout must lie below 2 GiB, and no arena there was asked for.
    #[error("there is no executable memory below 2 GiB")]
    NoLow,
    /// The same, and the system gave none.
    #[error("there is no executable memory below 2 GiB, where the code must lie: {0}")]
    LowRefused(LowRefusal),
    /// No free run is long enough, or none that is may be committed. Giving up memory helps.
    #[error(
        "no room for {needed_bytes} bytes of {part}{}: largest free run {largest_free_bytes} bytes, \
         {committed_bytes} of at most {commit_limit_bytes} bytes committed",
        if *lacks == Lacks::Low { " below 2 GiB" } else { "" }
    )]
    Fragmented {
        /// Which part found no room; if pages lack, the part that lacks most of them.
        part: PartKind,
        /// Of the part; if pages lack, of its missing pages.
        needed_bytes: u64,
        /// What of.
        lacks: Lacks,
        /// Of this part's kind, where the layout may lie.
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
