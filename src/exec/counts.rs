//! What a pool counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::call::Outcome;
use super::confine::FilterState;
use super::trap::TrapKind;

/// Counts of a pool: of this moment, and since its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// Threads that run code, the spare ones too.
    pub executors: usize,
    /// Of those, which only run code of tenants of which no other call runs.
    pub spare_executors: usize,
    /// Threads with code that cannot be stopped, lent ones too. They are not among `executors`.
    pub stuck: usize,
    /// Of those, threads that were lent: they cannot be replaced.
    pub stuck_lent: usize,
    /// Executors that are missing because one is stuck and could not be replaced.
    pub missing: usize,
    /// Executors that have taken the place of one that was stuck, since the start.
    pub replaced: u64,
    /// Executors that have a call now.
    pub running: usize,
    /// Inline calls that run now.
    pub inline_running: usize,
    /// Of the calls that have ended, those that ran inline.
    pub inline: u64,
    /// Calls that began inline and took too long, so that they ran again on an executor.
    pub inline_moved: u64,
    /// Calls that wait now.
    pub queued: usize,
    /// Tenants whose calls wait now.
    pub tenants_queued: usize,
    /// Calls that may wait.
    pub queue_max: usize,
    /// Calls of one tenant that may wait.
    pub queue_tenant_max: usize,
    /// Calls that were refused because as many waited as may.
    pub refused: u64,
    /// Calls that were refused because as many of their tenant waited as may.
    pub refused_tenant: u64,
    /// Calls that have ended: the sum of those below.
    pub calls: u64,
    /// Calls whose code returned.
    pub returned: u64,
    /// Calls that ended by a trap, in the order of [`TrapKind::ALL`].
    pub traps: [u64; TrapKind::ALL.len()],
    /// Calls that were cancelled, before or while they ran, also those that cannot run because another one is stuck or
    /// their callee quarantined.
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
pub(super) struct Counters {
    pub(super) returned: AtomicU64,
    pub(super) traps: [AtomicU64; TrapKind::ALL.len()],
    pub(super) cancelled: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) refused_tenant: AtomicU64,
    pub(super) inline: AtomicU64,
    pub(super) inline_moved: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Returned { .. } => &self.returned,
            Outcome::Trap(trap) => &self.traps[trap.kind as usize],
            Outcome::Cancelled | Outcome::Stuck(_) | Outcome::Quarantined => &self.cancelled,
            Outcome::DeadlineBeforeStart => &self.late,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
