//! Entries that are not called for now, because their code misbehaved too often.
//!
//! Traps are counted by windows of the configured length; of the window before counts the share that is still within
//! that length from now. That is one word for each entry, which only calls that trap write. What a call that goes well
//! pays is one look at a flag.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use super::Clock;

/// Bytes of a reason at most; more is cut off.
const REASON_MAX_BYTES: usize = 200;
/// Of a word: traps of a window.
const COUNT_BITS: u32 = 16;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// When an entry is quarantined for its traps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuarantineRule {
    /// So many traps, up to 10,000; 0: never.
    pub traps: u64,
    /// Within so long.
    pub window: Duration,
}

/// Counts of one cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quarantines {
    /// Entries that are quarantined, evicted ones too until their memory is free.
    pub entries: u64,
    /// Times that one was, since the start.
    pub begun: u64,
}

/// Why an entry is not called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// Since when.
    pub since: Instant,
    /// Traps that led to it.
    pub traps: u64,
    /// The last one, for a person.
    pub reason: String,
}

/// What all entries of a cache share.
#[derive(Debug)]
pub(super) struct Ward {
    rule: QuarantineRule,
    clock: Clock,
    started: Instant,
    entries: AtomicU64,
    begun: AtomicU64,
}

impl Ward {
    pub(super) fn new(rule: QuarantineRule, clock: Clock) -> Arc<Self> {
        Arc::new(Self { rule, clock, started: clock(), entries: AtomicU64::new(0), begun: AtomicU64::new(0) })
    }

    pub(super) fn counts(&self) -> Quarantines {
        Quarantines { entries: self.entries.load(Relaxed), begun: self.begun.load(Relaxed) }
    }
}

/// How the code of an entry behaves.
#[derive(Debug)]
pub struct Conduct {
    ward: Arc<Ward>,
    is_quarantined: AtomicBool,
    /// From above: number of the window, traps in the one before, traps in it.
    traps: AtomicU64,
    quarantine: Mutex<Option<Box<Quarantine>>>,
}

impl Conduct {
    pub(super) fn new(ward: &Arc<Ward>) -> Self {
        Self {
            ward: Arc::clone(ward),
            is_quarantined: AtomicBool::new(false),
            traps: AtomicU64::new(0),
            quarantine: Mutex::new(None),
        }
    }

    /// Whether the entry must not be called for now.
    pub fn is_quarantined(&self) -> bool {
        // Acquire pairs with the Release of `begin`: who sees the flag finds the reason.
        self.is_quarantined.load(Acquire)
    }

    /// Why it must not be called, if so.
    pub fn quarantine(&self) -> Option<Quarantine> {
        self.is_quarantined().then(|| self.lock().as_deref().cloned()).flatten()
    }

    /// A call ended by a trap; `reason` is asked if that was one too many.
    pub fn trapped(&self, reason: impl FnOnce() -> String) {
        if self.ward.rule.traps == 0 {
            return;
        }
        let traps = self.count();
        if traps >= self.ward.rule.traps {
            self.begin(traps, reason());
        }
    }

    /// Code could not be stopped: once is enough.
    pub fn stuck(&self, reason: impl FnOnce() -> String) {
        self.begin(1, reason());
    }

    /// Lets the entry be called again, and its traps be forgotten; what was, if anything was.
    pub(super) fn lift(&self) -> Option<Quarantine> {
        let mut quarantine = self.lock();
        self.traps.store(0, Relaxed);
        self.is_quarantined.store(false, Relaxed);
        let lifted = quarantine.take()?;
        self.ward.entries.fetch_sub(1, Relaxed);
        Some(*lifted)
    }

    fn begin(&self, traps: u64, mut reason: String) {
        let mut quarantine = self.lock();
        if quarantine.is_some() {
            // A call that was under way.
            return;
        }
        while reason.len() > REASON_MAX_BYTES {
            reason.pop();
        }
        *quarantine = Some(Box::new(Quarantine { since: (self.ward.clock)(), traps, reason }));
        self.is_quarantined.store(true, Release);
        self.ward.entries.fetch_add(1, Relaxed);
        self.ward.begun.fetch_add(1, Relaxed);
    }

    /// Counts one more; answers how many there were within a window from now, by the estimate.
    fn count(&self) -> u64 {
        let window_ms = (self.ward.rule.window.as_millis() as u64).max(1);
        let now_ms = (self.ward.clock)().saturating_duration_since(self.ward.started).as_millis() as u64;
        let (window, into_ms) = (now_ms / window_ms + 1, now_ms % window_ms);
        let mut estimate = 0;
        let count = |word: u64| {
            let (known, before, within) = (word >> (2 * COUNT_BITS), word >> COUNT_BITS & COUNT_MAX, word & COUNT_MAX);
            let (before, within) = match window.saturating_sub(known) {
                0 => (before, within),
                1 => (within, 0),
                _ => (0, 0),
            };
            let within = (within + 1).min(COUNT_MAX);
            estimate = within + before * (window_ms - into_ms) / window_ms;
            Some(window << (2 * COUNT_BITS) | before << COUNT_BITS | within)
        };
        // Nothing else is ordered by it.
        let _ = self.traps.fetch_update(Relaxed, Relaxed, count);
        estimate
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Quarantine>>> {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Conduct {
    fn drop(&mut self) {
        self.lift();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    fn now() -> Instant {
        NOW.get().unwrap_or_else(|| {
            let now = Instant::now();
            NOW.set(Some(now));
            now
        })
    }

    fn pass(ms: u64) {
        NOW.set(Some(now() + Duration::from_millis(ms)));
    }

    fn ward(traps: u64) -> Arc<Ward> {
        Ward::new(QuarantineRule { traps, window: Duration::from_millis(1000) }, now)
    }

    fn trap(conduct: &Conduct, times: u64) {
        (0..times).for_each(|number| conduct.trapped(|| format!("trap {number}")));
    }

    #[test]
    fn as_many_traps_as_are_too_many_quarantine_and_lifting_forgets_them() {
        let ward = ward(3);
        let conduct = Conduct::new(&ward);
        trap(&conduct, 2);
        assert!(!conduct.is_quarantined());
        trap(&conduct, 1);
        assert!(conduct.is_quarantined());
        let known = conduct.quarantine().unwrap();
        assert_eq!((known.since, known.traps, &*known.reason), (now(), 3, "trap 0"));
        assert_eq!(ward.counts(), Quarantines { entries: 1, begun: 1 });
        trap(&conduct, 5);
        assert_eq!((conduct.quarantine(), ward.counts().begun), (Some(known.clone()), 1), "of calls under way");
        assert_eq!(conduct.lift(), Some(known));
        assert_eq!((conduct.lift(), conduct.quarantine()), (None, None));
        trap(&conduct, 2);
        assert!(!conduct.is_quarantined());
        assert_eq!(ward.counts(), Quarantines { entries: 0, begun: 1 });
    }

    #[test]
    fn traps_of_long_ago_do_not_count_and_those_of_the_window_before_by_their_share() {
        let ward = ward(10);
        let conduct = Conduct::new(&ward);
        trap(&conduct, 9);
        pass(2000);
        trap(&conduct, 9);
        assert!(!conduct.is_quarantined(), "two windows later");
        // Half into the next window half of the nine still count.
        pass(1500);
        trap(&conduct, 5);
        assert!(!conduct.is_quarantined());
        trap(&conduct, 1);
        assert!(conduct.is_quarantined());
    }

    #[test]
    fn without_a_rule_traps_do_nothing_but_code_that_cannot_be_stopped_is_quarantined_at_once() {
        let ward = ward(0);
        let conduct = Conduct::new(&ward);
        trap(&conduct, 100_000);
        assert!(!conduct.is_quarantined());
        conduct.stuck(|| "ä".repeat(1000));
        let reason = conduct.quarantine().unwrap().reason;
        assert_eq!((reason.len(), reason.chars().all(|it| it == 'ä')), (REASON_MAX_BYTES, true));
        drop(conduct);
        assert_eq!(ward.counts(), Quarantines { entries: 0, begun: 1 });
    }

    #[test]
    fn so_many_traps_that_no_count_could_hold_them_are_no_fewer() {
        let ward = ward(10_000);
        let conduct = Conduct::new(&ward);
        trap(&conduct, 9_999);
        assert!(!conduct.is_quarantined());
        trap(&conduct, 1);
        conduct.lift();
        trap(&conduct, 200_000);
        assert!(conduct.is_quarantined());
    }
}
