//! Seats: where threads sit that run code, each with its slot.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::stack::{Backing, Slot, SlotError, SlotSizes};
use super::watchdog::Victim;

/// A slot, and the thread that runs code in it, if one does.
#[derive(Debug, Default)]
pub(super) struct Seat {
    slot: OnceLock<Slot>,
    /// Locked by who comes and goes, and by who looks at it.
    sitting: Mutex<Sitting>,
    /// Id of the job whose caller has gone, or that somebody wants to end. Here, as code may write what is in the slot.
    cancelled_job: AtomicU64,
    /// Id of the call of a series that somebody wants to end.
    cancelled_call: AtomicU64,
}

/// Who runs code in a seat: the thread, or its worker process.
#[derive(Debug, Default)]
struct Sitting {
    victim: Option<Victim>,
    /// CPU time of the victim when it came, which was not for calls here.
    before: Duration,
    /// CPU time of calls here until the victim came.
    earlier: Duration,
    /// The same until now, as far as it was asked for. What ended cannot be asked.
    seen: Duration,
}

impl Sitting {
    fn cpu(&mut self) -> Duration {
        if let Some(now) = self.victim.as_ref().and_then(Victim::cpu) {
            self.seen = self.earlier + now.saturating_sub(self.before);
        }
        self.seen
    }

    fn exchange(&mut self, victim: Option<Victim>) {
        self.earlier = self.cpu();
        self.before = victim.as_ref().and_then(Victim::cpu).unwrap_or_default();
        self.victim = victim;
    }
}

impl Seat {
    /// Makes the memory accessible, unless it is.
    pub(super) fn prepare(&self, sizes: SlotSizes, backing: Backing) -> Result<(), SlotError> {
        if self.slot.get().is_none() {
            // Whoever comes second gives what it claimed back.
            let _ = self.slot.set(Slot::claim_backed(sizes, backing)?);
        }
        Ok(())
    }

    /// The memory; `None` before it was prepared.
    pub(super) fn slot(&self) -> Option<&Slot> {
        self.slot.get()
    }

    /// A thread sits here from now on.
    pub(super) fn take(&self, victim: Victim) {
        let mut sitting = self.sitting();
        debug_assert!(sitting.victim.is_none(), "two threads in one seat");
        sitting.exchange(Some(victim));
    }

    /// The thread goes; another one may come.
    pub(super) fn leave(&self) {
        self.sitting().exchange(None);
    }

    /// Whoever sits here has code run by this worker process from now on, or by none.
    pub(super) fn exchange(&self, victim: Option<Victim>) {
        self.sitting().exchange(victim);
    }

    /// The memory and who runs code in it; `None` while nobody does.
    pub(super) fn taken(&self) -> Option<(&Slot, Victim)> {
        Some((self.slot.get()?, self.sitting().victim.clone()?))
    }

    /// CPU time that all who ran code here have used since they came. Of one that has ended, what it was last seen with.
    pub(super) fn cpu(&self) -> Duration {
        self.sitting().cpu()
    }

    /// The job of this id is to end, if it is the one that runs.
    pub(super) fn cancel_job(&self, id: u64) {
        self.cancelled_job.store(id, Ordering::Relaxed);
    }

    /// The same for a call of a series.
    pub(super) fn cancel_call(&self, number: u64) {
        self.cancelled_call.store(number, Ordering::Relaxed);
    }

    /// Whether `job` was cancelled, or `call` if it is one of a series.
    pub(super) fn is_cancelled(&self, job: u64, call: u64) -> bool {
        self.cancelled_job.load(Ordering::Relaxed) == job
            || (call != 0 && self.cancelled_call.load(Ordering::Relaxed) == call)
    }

    fn sitting(&self) -> MutexGuard<'_, Sitting> {
        self.sitting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All seats of a pool. Kept by each thread that sits in one of the inline seats, so that no memory goes under it.
#[derive(Debug)]
pub(super) struct Seats {
    executors: Box<[Seat]>,
    inline: Box<[Seat]>,
    inline_given: AtomicUsize,
    sizes: SlotSizes,
    backing: Backing,
}

impl Seats {
    /// Seats for executors and for lent threads, with memory, and `further` ones for executors, which have none yet.
    pub(super) fn prepared(
        executors: usize,
        further: usize,
        inline: usize,
        sizes: SlotSizes,
        backing: Backing,
    ) -> Result<Seats, (usize, SlotError)> {
        let seats = |count| (0..count).map(|_| Seat::default()).collect();
        let (all, inline) = (seats(executors + further), seats(inline));
        let seats = Seats { executors: all, inline, inline_given: AtomicUsize::new(0), sizes, backing };
        for (index, seat) in seats.executors[..executors].iter().chain(&seats.inline).enumerate() {
            seat.prepare(sizes, backing).map_err(|error| (index, error))?;
        }
        Ok(seats)
    }

    /// Makes the memory of a seat accessible, unless it is.
    pub(super) fn prepare(&self, executor: usize) -> Result<(), SlotError> {
        self.executors[executor].prepare(self.sizes, self.backing)
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
