//! Evicted entries whose addresses are not to be used again yet, for who takes an address for the identity of code.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Cache, entry::Entry};

/// The oldest first. They stay charged, as lingering: the budget bounds how many there are.
#[derive(Default)]
pub(super) struct Kept(Mutex<VecDeque<Arc<Entry>>>);

impl Kept {
    pub(super) fn push(&self, entry: Arc<Entry>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(entry);
    }

    /// The oldest, to be dropped by the caller: outside of the lock.
    fn pop(&self) -> Option<Arc<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl Cache {
    /// Frees what is kept, the oldest first, until so many bytes can be charged or nothing is kept. Not to be called
    /// under the cache lock.
    pub(super) fn free_kept_for(&self, bytes: u64) {
        let Some(kept) = &self.kept else { return };
        while self.ledger.charged().total_bytes().saturating_add(bytes) > self.ledger.limit_bytes() {
            let Some(entry) = kept.pop() else { return };
            drop(entry);
        }
    }

    /// Frees the oldest that is kept; `false` if nothing is.
    pub(super) fn free_oldest_kept(&self) -> bool {
        self.kept.as_ref().and_then(Kept::pop).is_some()
    }
}
