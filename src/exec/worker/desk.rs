//! The desk: where an executor and its worker hand a call to each other.
//!
//! It lies in the frame, so in memory that both have, and that code can write. A turn is one call. The executor puts
//! everything in place, then stores the turn's number; the worker runs the call and stores the same number as done. Each
//! spins for a moment before it sleeps, as a call is short more often than not.
//!
//! What the worker or its code stores here can make the executor wait until a limit ends the worker, or take garbage for
//! the result of that call; nothing else. All the executor decides by is its own. Code that says that its call has ended,
//! and runs on, is found by the CPU time that it uses: see [`super::nursery`].
//!
//! `tests/loom` explores the interleavings of this file.

use std::time::Duration;

use super::sync::{AtomicU32, Ordering, fence, futex_wait, futex_wake, spin};

/// The worker drops what it has fetched; see [`super::life`].
const REFETCH: u32 = 1;
/// It clears registers.
const CLEAR: u32 = 2;

/// What a worker does before the code of a turn begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    /// It drops what it has fetched.
    pub(super) refetches: bool,
    /// It removes what earlier code has left in registers.
    pub(super) clears_registers: bool,
}

/// One executor's desk. Zeroed memory is one at which no turn has been taken.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(in crate::exec) struct Desk {
    /// The turn that the worker is to take; it sleeps on this.
    turn: AtomicU32,
    worker_sleeps: AtomicU32,
    /// What the worker does before the code begins: [`REFETCH`], [`CLEAR`].
    before: AtomicU32,
    _apart: [AtomicU32; 13],
    /// The turn that the worker has finished; the executor sleeps on this.
    done: AtomicU32,
    executor_sleeps: AtomicU32,
}

impl Desk {
    /// For a new worker: no turn has been taken. The one before it is dead.
    pub(super) fn clear(&self) {
        for word in [&self.turn, &self.worker_sleeps, &self.done, &self.executor_sleeps] {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// The executor: everything is in place for `turn`.
    pub(super) fn post(&self, turn: u32, before: Before) {
        let flag = |is_so: bool, flag: u32| if is_so { flag } else { 0 };
        let flags = flag(before.refetches, REFETCH) | flag(before.clears_registers, CLEAR);
        self.before.store(flags, Ordering::Relaxed);
        self.executor_sleeps.store(0, Ordering::Relaxed);
        self.turn.store(turn, Ordering::Release);
        // With the worker's, between its announcement that it sleeps and its look: one of the two sees the other's store.
        fence(Ordering::SeqCst);
        if self.worker_sleeps.load(Ordering::Relaxed) != 0 {
            futex_wake(&self.turn);
        }
    }

    /// The executor: waits up to `slice` for the end of `turn`, or to be rung for. True: it has ended.
    pub(super) fn wait(&self, turn: u32, slice: Duration) -> bool {
        if spin(|| self.done.load(Ordering::Acquire) == turn) {
            return true;
        }
        let before = self.done.load(Ordering::Relaxed);
        self.executor_sleeps.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let done = self.done.load(Ordering::Relaxed);
        if done != turn && done == before {
            futex_wait(&self.done, done, Some(slice));
        }
        self.executor_sleeps.store(0, Ordering::Relaxed);
        self.done.load(Ordering::Acquire) == turn
    }

    /// Whoever knows that the worker is dead: makes an executor look that sleeps. Nothing is stored, as the desk may be the
    /// next worker's by now; an executor that is just about to sleep looks again after its slice.
    pub(super) fn ring(&self) {
        futex_wake(&self.done);
    }

    /// The worker: waits for a turn that is not the last one.
    pub(super) fn next(&self) -> u32 {
        loop {
            let done = self.done.load(Ordering::Relaxed);
            let is_posted = || self.turn.load(Ordering::Acquire) != done;
            if spin(is_posted) {
                break;
            }
            self.worker_sleeps.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.turn.load(Ordering::Relaxed) == done {
                futex_wait(&self.turn, done, None);
            }
            self.worker_sleeps.store(0, Ordering::Relaxed);
        }
        self.turn.load(Ordering::Acquire)
    }

    /// The worker: what is to be done before the code begins.
    pub(super) fn before(&self) -> Before {
        let flags = self.before.load(Ordering::Relaxed);
        Before { refetches: flags & REFETCH != 0, clears_registers: flags & CLEAR != 0 }
    }

    /// The worker: the turn is over, whichever it was.
    pub(super) fn finish(&self) {
        self.done.store(self.turn.load(Ordering::Relaxed), Ordering::Release);
        fence(Ordering::SeqCst);
        if self.executor_sleeps.load(Ordering::Relaxed) != 0 {
            futex_wake(&self.done);
        }
    }
}
