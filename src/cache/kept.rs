//! Evicted entries whose addresses are not to be used again yet, for who takes an address for the identity of code.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Cache, entry::Entry};
use crate::arena::Lacks;

/// They stay charged, as lingering: the budget bounds how many there are.
#[derive(Default)]
pub(super) struct Kept(Mutex<Queues>);

/// Each entry with its number, the oldest first.
#[derive(Default)]
struct Queues {
    /// How many came before.
    next: u64,
    common: VecDeque<(u64, Arc<Entry>)>,
    /// Those whose going helps below 2 GiB.
    low: VecDeque<(u64, Arc<Entry>)>,
}

impl Kept {
    pub(super) fn push(&self, entry: Arc<Entry>) {
        let mut queues = self.lock();
        let number = queues.next;
        queues.next += 1;
        let queue = if entry.helps(Lacks::Low) { &mut queues.low } else { &mut queues.common };
        queue.push_back((number, entry));
    }

    /// The oldest that helps, to be dropped by the caller: outside of the lock.
    fn pop(&self, lacks: Lacks) -> Option<Arc<Entry>> {
        let Queues { common, low, .. } = &mut *self.lock();
        let is_low_older = match (low.front(), common.front()) {
            (Some((low, _)), Some((common, _))) => low < common,
            (low, _) => low.is_some(),
        };
        let oldest = match lacks {
            Lacks::Pages if is_low_older => low.pop_front(),
            Lacks::Pages => common.pop_front(),
            Lacks::Common => common.pop_front().or_else(|| {
                let at = low.iter().position(|(_, entry)| entry.helps(lacks))?;
                low.remove(at)
            }),
            Lacks::Low => low.pop_front(),
        };
        oldest.map(|(_, entry)| entry)
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        // Only values are moved under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Frees what is kept, the oldest first, until so many bytes can be charged or nothing is kept. Not to be called
    /// under the cache lock.
    pub(super) fn free_kept_for(&self, bytes: u64) {
        let Some(kept) = &self.kept else { return };
        while self.ledger.charged().total_bytes().saturating_add(bytes) > self.ledger.limit_bytes() {
            let Some(entry) = kept.pop(Lacks::Pages) else { return };
            drop(entry);
        }
    }

    /// Frees the oldest that is kept and helps; `false` if nothing does.
    pub(super) fn free_oldest_kept(&self, lacks: Lacks) -> bool {
        self.kept.as_ref().and_then(|kept| kept.pop(lacks)).is_some()
    }
}
