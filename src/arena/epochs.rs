//! Which memory some core may still hold old instructions of.
//!
//! A core may have fetched what an address held before. So memory that has run and was freed carries a stamp, and is
//! *fresh* again once a barrier that began after the stamp has ended: one barrier serves everything that was freed
//! before it, however many reuses follow. Memory that never ran is fresh from the start and needs none.
//! `tests/loom` explores the interleavings of this file.

use super::sync::{AtomicU64, Ordering};

/// When memory was freed, in barriers. The default is that of memory that never ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp(u64);

impl Stamp {
    /// As it stands in a table.
    pub(super) fn to_word(self) -> u64 {
        self.0
    }

    pub(super) fn of_word(word: u64) -> Self {
        Self(word)
    }
}

/// Counts barriers.
#[derive(Debug)]
pub(super) struct Epochs {
    begun: AtomicU64,
    /// The latest barrier that has ended; earlier ones may still run, and what they serve is served by this one.
    ended: AtomicU64,
}

impl Epochs {
    pub(super) fn new() -> Self {
        Self { begun: AtomicU64::new(0), ended: AtomicU64::new(0) }
    }

    /// For memory that nobody runs any more, and that the caller has not given back yet.
    pub(super) fn stamp(&self) -> Stamp {
        // Pairs with the increment in `serialise`: a barrier whose number is higher than what is read here began after
        // this, and so after the last call into the memory.
        Stamp(self.begun.load(Ordering::SeqCst) + 1)
    }

    pub(super) fn is_fresh(&self, stamp: Stamp) -> bool {
        // Pairs with the release in `serialise`: whoever sees the number sees the barrier done.
        self.ended.load(Ordering::SeqCst) >= stamp.0
    }

    /// Runs the barrier, which returns once every thread has been serialised.
    pub(super) fn serialise(&self, barrier: impl FnOnce()) {
        let own = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        barrier();
        self.ended.fetch_max(own, Ordering::SeqCst);
    }

    /// Barriers so far.
    pub(super) fn barriers(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_barrier_serves_all_that_was_freed_before_it_and_nothing_later() {
        let epochs = Epochs::new();
        assert!(epochs.is_fresh(Stamp::default()), "memory that never ran");
        let (first, second) = (epochs.stamp(), epochs.stamp());
        assert!(!epochs.is_fresh(first) && !epochs.is_fresh(second));
        let mut during = Stamp::default();
        epochs.serialise(|| {
            during = epochs.stamp();
            assert!(!epochs.is_fresh(first), "it has not ended");
        });
        assert!(epochs.is_fresh(first) && epochs.is_fresh(second));
        assert!(!epochs.is_fresh(during), "the barrier had begun before");
        assert_eq!(epochs.barriers(), 1);
    }
}
