//! A span that threads hand to each other by way of a shelf, while a third closes the shelves.

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    Flaw,
    shelves::{Shelved, Shelves},
};

const TRAP: u64 = u64::MAX;
const SPAN: Shelved = Shelved { arena: 1, start: 5, granules: 1, stamp: 0 };
/// Large granules, so that a set has one row of one cell.
const GRANULE_BYTES: u64 = 8 << 10;

struct Memory {
    shelves: Shelves,
    bytes: AtomicU64,
    /// Who has the span.
    owners: AtomicU64,
}

impl Memory {
    /// Wipes the span and lets it go. Answers whether it is on the shelf now.
    fn free(&self, flaw: Flaw) -> bool {
        let wipe = || self.bytes.store(TRAP, Ordering::Relaxed);
        if flaw == Flaw::LateWipe {
            self.owners.fetch_sub(1, Ordering::Relaxed);
            let kept = self.shelves.row(0, 1).unwrap().put(SPAN);
            wipe();
            return kept;
        }
        wipe();
        self.owners.fetch_sub(1, Ordering::Relaxed);
        let kept = self.shelves.row(0, 1).unwrap().put(SPAN);
        if !kept {
            self.owners.fetch_add(1, Ordering::Relaxed);
        }
        kept
    }

    /// Takes the span if it is there, writes and reads it, and answers whether it was there.
    fn take_and_use(&self, value: u64) -> bool {
        let Some(span) = self.shelves.take(0, 1, 1, || 0) else { return false };
        assert_eq!(span, SPAN);
        assert_eq!(self.owners.fetch_add(1, Ordering::Relaxed), 0, "it has two owners");
        assert_eq!(self.bytes.load(Ordering::Relaxed), TRAP, "it is not wiped");
        self.bytes.store(value, Ordering::Relaxed);
        assert_eq!(self.bytes.load(Ordering::Relaxed), value, "somebody else wrote to it");
        true
    }
}

/// Two threads want what a third lets go; then the shelves are closed. The span is with one of them in the end.
pub(crate) fn hand_over(flaw: Flaw) {
    let memory = Arc::new(Memory {
        shelves: Shelves::new(GRANULE_BYTES, 1),
        bytes: AtomicU64::new(0),
        owners: AtomicU64::new(1),
    });
    let takers: Vec<_> = (1..3)
        .map(|value| {
            let memory = Arc::clone(&memory);
            thread::spawn(move || memory.take_and_use(value))
        })
        .collect();
    let kept = memory.free(flaw);
    let closed = memory.shelves.close(|| 0).count();
    let taken = takers.into_iter().map(|it| it.join().unwrap()).filter(|&it| it).count();
    assert!(kept && closed + taken == 1, "{closed} spans on the shelf, {taken} taken");
}

/// One thread closes the shelves while another lets a span go: it is given back by one of them.
pub(crate) fn close(flaw: Flaw) {
    let memory = Arc::new(Memory {
        shelves: Shelves::new(GRANULE_BYTES, 1),
        bytes: AtomicU64::new(0),
        owners: AtomicU64::new(1),
    });
    let owner = {
        let memory = Arc::clone(&memory);
        thread::spawn(move || memory.free(Flaw::None))
    };
    // To drain is not enough: a span may come after it, and nobody looks any more.
    let found =
        if flaw == Flaw::DrainOnly { memory.shelves.drain(|| 0).count() } else { memory.shelves.close(|| 0).count() };
    let kept = owner.join().unwrap();
    assert_eq!(usize::from(kept), found, "a span is lost on a shelf");
}
