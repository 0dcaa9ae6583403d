//! Memory that its owner lets go and the next one takes, by way of the shelves.
//!
//! A reference on the memory goes with each span: who puts a span on a shelf leaves the reference there, and who takes
//! the span takes it over. So a span changes hands without a count being touched that all threads share. As the memory
//! would keep itself that way, the arenas close the shelves when they are dropped.
//!
//! What lies on a shelf still holds its code. Who takes it to write all of it writes each byte once; who gives it to the
//! arena fills it with traps first.
#![allow(unsafe_code)] // Takes over references that were left behind.

use std::{
    cell::Cell,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    Lacks, ReserveError,
    arenas::Memory,
    blocks::Span,
    epochs::Stamp,
    geometry::PartKind,
    mapping::Views,
    memory::TRAP,
    shard::{Grant, Want},
    shelves::{Shelved, Shelves},
};

/// Sets of shelves per core: threads that only wait now and then shall not share one.
const SETS_PER_CORE: usize = 2;
const SETS_MAX: usize = 64;

thread_local! {
    /// Which set of shelves this thread uses, to be taken modulo their number.
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

fn thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    THREAD.get().unwrap_or_else(|| {
        let thread = NEXT.fetch_add(1, Ordering::Relaxed);
        THREAD.set(Some(thread));
        thread
    })
}

/// Shelves where memory can be used again as it is, and free memory is to be kept at all: where nothing is to be opened
/// or made writable first.
pub(super) fn shelves_for(views: &Views, keep_free_bytes: u64) -> Option<Shelves> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let sets = (SETS_PER_CORE * cores).next_power_of_two().min(SETS_MAX);
    let as_it_is = !views.opens_on_demand() && !views.changes_protection();
    let geometry = views.geometry();
    let kept = as_it_is && keep_free_bytes > 0 && geometry.arenas <= Shelves::ARENAS_MAX;
    kept.then(|| Shelves::new(geometry.granule_bytes, sets))
}

impl Memory {
    /// Puts a grant, with the code that is in it, on a shelf of this thread, if it is one span of code and there is room.
    pub(super) fn shelve(self: Arc<Self>, grant: &Grant) -> Result<(), Arc<Self>> {
        let (Some(shelves), Some(span)) = (&self.shelves, grant.only_code()) else { return Err(self) };
        // Who takes code from a shelf must not get what is kept for those that need low addresses. And who sees too late
        // that there is enough to spare leaves a span behind: one of a thread at most holds up a chunk.
        if self.geometry().is_low(grant.arena) || self.pool.shards().has_spare(grant.arena) {
            return Err(self);
        }
        // What is fresh needs no stamp.
        let stamp = if self.epochs.is_fresh(grant.stamp) { Stamp::default() } else { grant.stamp };
        let Span { start, granules } = span;
        let shelved = Shelved { arena: grant.arena, start, granules, stamp: stamp.to_word() };
        match shelves.row(thread(), granules) {
            // From here on the reference may be gone: it belongs to who takes the span.
            Some(row) if row.put(shelved) => {
                let _ = Arc::into_raw(self);
                Ok(())
            }
            _ => Err(self),
        }
    }

    /// A span of code from a shelf of this thread.
    pub(super) fn reuse(self: &Arc<Self>, want: Want) -> Option<(Arc<Self>, Grant)> {
        let next = || self.epochs.stamp().to_word();
        let shelved = self.shelves.as_ref()?.take(thread(), want.granules, want.align_granules, next)?;
        Some((self.take_over(), Self::granted(&shelved)))
    }

    /// Gives all spans on shelves back, and waits for who is about to do so.
    pub(super) fn empty_shelves(self: &Arc<Self>) {
        let Some(shelves) = &self.shelves else { return };
        // It guards nothing that a panic could leave half done.
        let _one_at_a_time = self.emptying.lock().unwrap_or_else(PoisonError::into_inner);
        if self.give_shelved(shelves.drain(|| self.epochs.stamp().to_word())) {
            self.emptied.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives all spans on shelves back, and keeps none from now on.
    pub(super) fn close_shelves(self: &Arc<Self>) {
        if let Some(shelves) = &self.shelves {
            self.give_shelved(shelves.close(|| self.epochs.stamp().to_word()));
        }
    }

    /// What `attempt` answers; tried once more without anything on shelves if it finds no memory.
    pub(super) fn with_all_free<T>(
        self: &Arc<Self>,
        mut attempt: impl FnMut() -> Result<T, ReserveError>,
    ) -> Result<T, ReserveError> {
        let emptied = self.emptied.load(Ordering::Relaxed);
        attempt().or_else(|error| {
            match error {
                // Nothing that lies below 2 GiB is on shelves.
                ReserveError::Fragmented { lacks: Lacks::Low, .. } => return Err(error),
                ReserveError::Fragmented { .. } | ReserveError::Commit { .. } => {}
                _ => return Err(error),
            }
            self.empty_shelves();
            // By this thread, or by another one since this one looked: the memory is there now.
            if self.emptied.load(Ordering::Relaxed) == emptied { Err(error) } else { attempt() }
        })
    }

    fn give_shelved(self: &Arc<Self>, spans: impl Iterator<Item = Shelved>) -> bool {
        spans.fold(false, |_, shelved| {
            let memory = self.take_over();
            let grant = Self::granted(&shelved);
            let bytes = memory.geometry().bytes_of(&grant.granules(PartKind::Code));
            memory.views.fill(grant.area(PartKind::Code), bytes, TRAP);
            let given = memory.pool.give(&grant, &memory.views.opening());
            given.expect("invariant: what is on a shelf has no other owner");
            true
        })
    }

    fn granted(shelved: &Shelved) -> Grant {
        let mut grant = Grant::empty(shelved.arena);
        grant.set(PartKind::Code, &Span::new(shelved.start, shelved.granules));
        grant.stamp = Stamp::of_word(shelved.stamp);
        grant
    }

    /// The reference that was left with a span which the caller has just taken off a shelf.
    fn take_over(self: &Arc<Self>) -> Arc<Self> {
        let memory = Arc::as_ptr(self);
        // SAFETY: `shelve` gave up a reference on this same memory for each span that it put there, by `into_raw`; a
        // span is taken off once.
        unsafe { Arc::from_raw(memory) }
    }
}
