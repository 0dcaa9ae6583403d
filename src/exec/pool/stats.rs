//! What a pool counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::exec::call::Outcome;
use crate::exec::confine::FilterState;
use crate::exec::trap::TrapKind;

/// Counts of a pool: of this moment, and since its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// Threads that run code.
    pub executors: usize,
    /// Executors that have a call now.
    pub running: usize,
    /// Calls that wait now.
    pub queued: usize,
    /// Calls that may wait.
    pub queue_max: usize,
    /// Calls that have ended: the sum of those below.
    pub calls: u64,
    /// Calls whose code returned.
    pub returned: u64,
    /// Calls that ended by a trap, in the order of [`TrapKind::ALL`].
    pub traps: [u64; TrapKind::ALL.len()],
    /// Calls whose caller or pool went away, before or while they ran.
    pub cancelled: u64,
    /// Calls whose deadline had passed before they began.
    pub late: u64,
    /// Whether system calls of code are contained.
    pub filter: FilterState,
    /// System calls of executors between calls that the filter refused. They were answered with ENOSYS.
    pub refused_system_calls: u64,
}

impl PoolStats {
    /// Calls that ended by a trap of this kind.
    pub fn trapped(&self, kind: TrapKind) -> u64 {
        self.traps[kind as usize]
    }

    /// Calls that ended by a limit of time.
    pub fn timeouts(&self) -> u64 {
        self.trapped(TrapKind::Timeout)
    }
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(in crate::exec) struct Counters {
    pub(super) returned: AtomicU64,
    pub(super) traps: [AtomicU64; TrapKind::ALL.len()],
    pub(super) cancelled: AtomicU64,
    pub(super) late: AtomicU64,
}

impl Counters {
    pub(in crate::exec) fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Returned { .. } => &self.returned,
            Outcome::Trap(trap) => &self.traps[trap.kind as usize],
            Outcome::Cancelled => &self.cancelled,
            Outcome::DeadlineBeforeStart => &self.late,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
