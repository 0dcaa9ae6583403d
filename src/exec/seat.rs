//! Seats: where threads sit that run code, each with its slot.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::stack::{Slot, SlotError, SlotSizes};
use super::watchdog::Victim;

/// A slot, and the thread that runs code in it, if one does.
#[derive(Debug, Default)]
pub(super) struct Seat {
    slot: OnceLock<Slot>,
    /// Locked by who comes and goes, and by the watchdog's looks.
    victim: Mutex<Option<Victim>>,
}

impl Seat {
    /// Makes the memory accessible, unless it is.
    pub(super) fn prepare(&self, sizes: SlotSizes) -> Result<(), SlotError> {
        if self.slot.get().is_none() {
            // Whoever comes second gives what it claimed back.
            let _ = self.slot.set(Slot::claim(sizes)?);
        }
        Ok(())
    }

    /// The memory; `None` before it was prepared.
    pub(super) fn slot(&self) -> Option<&Slot> {
        self.slot.get()
    }

    /// A thread sits here from now on.
    pub(super) fn take(&self, victim: Victim) {
        let before = self.victim().replace(victim);
        debug_assert!(before.is_none(), "two threads in one seat");
    }

    /// The thread goes; another one may come.
    pub(super) fn leave(&self) {
        *self.victim() = None;
    }

    /// The memory and the thread; `None` while nobody sits here.
    pub(super) fn taken(&self) -> Option<(&Slot, Victim)> {
        Some((self.slot.get()?, (*self.victim())?))
    }

    fn victim(&self) -> MutexGuard<'_, Option<Victim>> {
        self.victim.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All seats of a pool. Kept by each thread that sits in one of the inline seats, so that no memory goes under it.
#[derive(Debug)]
pub(super) struct Seats {
    executors: Box<[Seat]>,
    inline: Box<[Seat]>,
    inline_given: AtomicUsize,
    sizes: SlotSizes,
}

impl Seats {
    /// Seats for executors and for lent threads, with memory, and `further` ones for executors, which have none yet.
    pub(super) fn prepared(
        executors: usize,
        further: usize,
        inline: usize,
        sizes: SlotSizes,
    ) -> Result<Seats, (usize, SlotError)> {
        let seats = |count| (0..count).map(|_| Seat::default()).collect();
        let (all, inline) = (seats(executors + further), seats(inline));
        let seats = Seats { executors: all, inline, inline_given: AtomicUsize::new(0), sizes };
        for (index, seat) in seats.executors[..executors].iter().chain(&seats.inline).enumerate() {
            seat.prepare(sizes).map_err(|error| (index, error))?;
        }
        Ok(seats)
    }

    /// Makes the memory of a seat accessible, unless it is.
    pub(super) fn prepare(&self, executor: usize) -> Result<(), SlotError> {
        self.executors[executor].prepare(self.sizes)
    }

    /// The seat of an executor.
    pub(super) fn executor(&self, index: usize) -> &Seat {
        &self.executors[index]
    }

    /// The seat of a lent thread.
    pub(super) fn inline(&self, index: usize) -> &Seat {
        &self.inline[index]
    }

    /// A seat for a further lent thread, if there is one.
    pub(super) fn next_inline(&self) -> Option<(usize, &Seat)> {
        let index = self.inline_given.fetch_add(1, Ordering::Relaxed).min(self.inline.len());
        Some((index, self.inline.get(index)?))
    }

    /// System calls of these threads themselves, between calls of code, that a filter refused.
    pub(super) fn refused_system_calls(&self) -> u64 {
        self.all().filter_map(Seat::slot).map(|slot| slot.frame().refused()).sum()
    }

    /// All seats, those of executors first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Seat> {
        self.executors.iter().chain(&self.inline)
    }
}
