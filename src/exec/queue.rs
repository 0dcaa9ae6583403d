//! The schedule behind a lock, with its waiting threads: executors, the watchdog, and who drains.
//!
//! Inside the lock values only move. Jobs that are refused or cancelled are handed out and dropped outside.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Instant;

use super::schedule::{Cancelled, Entry, Schedule};
use super::writable::Writables;

/// How often an executor looks for the next call before it sleeps. Short: the executors share their cores with the
/// threads that would bring that call.
const SPINS: usize = 50;

/// Why a queue does not take a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// As many wait as may.
    Saturated,
    /// The pool is ending.
    Draining,
}

/// Counts of one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueCounts {
    /// Jobs that wait.
    pub(super) waiting: usize,
    /// Executors that have a job.
    pub(super) running: usize,
}

#[derive(Debug)]
struct State<J> {
    schedule: Schedule<J>,
    next_id: u64,
    /// Executors that sleep, the one that fell asleep last at the end: its caches are the warmest.
    idle: Vec<usize>,
    draining: bool,
    stopping: bool,
    watchdog_sleeps: bool,
}

/// A thread that sleeps until it is woken, and is woken exactly once for each sleep.
#[derive(Debug, Default)]
struct Sleeper {
    woken: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Sleeper {
    /// Makes the calling thread the one that sleeps. Before it tells anybody, under the lock, that it will: then who
    /// wakes it knows it.
    fn register(&self) {
        self.thread.get_or_init(thread::current);
    }

    fn sleep(&self) {
        // Acquire pairs with the Release of `wake`: the sleeper sees why.
        while !self.woken.swap(false, Ordering::Acquire) {
            thread::park();
        }
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// The waiting jobs and the threads that wait for them.
#[derive(Debug)]
pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    quiet: Condvar,
    /// The number of ready jobs, for looking without the lock; a hint.
    ready: AtomicUsize,
    executors: Vec<Sleeper>,
    watchdog: Sleeper,
}

impl<J> Queue<J> {
    /// An empty queue of `executors`, with room for `waiting_max` jobs.
    pub(super) fn new(executors: usize, waiting_max: usize) -> Queue<J> {
        let state = State {
            schedule: Schedule::new(executors, waiting_max),
            // Zero is the id in a frame that has not seen a cancel.
            next_id: 1,
            idle: Vec::with_capacity(executors),
            draining: false,
            stopping: false,
            watchdog_sleeps: false,
        };
        Queue {
            state: Mutex::new(state),
            quiet: Condvar::new(),
            ready: AtomicUsize::new(0),
            executors: (0..executors).map(|_| Sleeper::default()).collect(),
            watchdog: Sleeper::default(),
        }
    }

    /// Takes a job in; answers its id, or gives it back.
    pub(super) fn submit(&self, lanes: Writables, job: J) -> Result<u64, (Full, J)> {
        let mut state = self.lock();
        if state.draining {
            return Err((Full::Draining, job));
        }
        let id = state.next_id;
        match state.schedule.submit(Entry { id, lanes, job }) {
            Err(job) => Err((Full::Saturated, job)),
            Ok(ready) => {
                state.next_id += 1;
                self.publish(&state);
                let sleeper = if ready { state.idle.pop() } else { None };
                drop(state);
                if let Some(executor) = sleeper {
                    self.executors[executor].wake();
                }
                Ok(id)
            }
        }
    }

    /// `executor` is done with what it had; sleeps until there is a next job. `None` when the queue has ended.
    pub(super) fn next(&self, executor: usize) -> Option<Entry<J>> {
        self.executors[executor].register();
        let mut state = self.lock();
        state.schedule.free(executor);
        self.tell_quiet(&state);
        loop {
            if let Some(entry) = state.schedule.take(executor) {
                self.publish(&state);
                let wake_watchdog = std::mem::take(&mut state.watchdog_sleeps);
                drop(state);
                if wake_watchdog {
                    self.watchdog.wake();
                }
                return Some(entry);
            }
            if state.stopping {
                return None;
            }
            drop(state);
            let seen = self.spin();
            state = self.lock();
            if !seen && state.schedule.ready() == 0 && !state.stopping {
                state.idle.push(executor);
                drop(state);
                self.executors[executor].sleep();
                state = self.lock();
            }
        }
    }

    /// A job of these lanes has ended; runs `restore` outside of the lock for each whose data must be restored now.
    pub(super) fn settle(&self, lanes: &Writables, faulted: bool, restore: impl Fn(u64)) {
        let mut state = self.lock();
        let settled = state.schedule.settle(lanes, faulted);
        let mut released = settled.released;
        if !settled.restore.is_empty() {
            // What waits behind the restore is not ready: nobody should look for it.
            self.publish(&state);
            drop(state);
            settled.restore.iter().for_each(|id| restore(*id));
            state = self.lock();
            released += state.schedule.restored(&settled.restore);
        }
        // The caller comes for the first of them itself.
        self.wake_some(state, released.saturating_sub(1));
    }

    /// Jobs of these lanes may overlap from now on, also those that came before.
    pub(super) fn open(&self, lanes: &[u64]) {
        let mut state = self.lock();
        let released = state.schedule.open(lanes);
        self.wake_some(state, released);
    }

    /// Takes a waiting job out, or calls `running` with the executor that has it.
    pub(super) fn cancel(&self, id: u64, running: impl FnOnce(usize)) -> Option<J> {
        let mut state = self.lock();
        match state.schedule.cancel(id) {
            Cancelled::Gone => None,
            Cancelled::Running(executor) => {
                // Inside the lock: else the executor could by then have another job, and that one's mark be lost.
                running(executor);
                None
            }
            Cancelled::Waiting(job, released) => {
                self.tell_quiet(&state);
                self.wake_some(state, released);
                Some(job)
            }
        }
    }

    /// Calls `found` with the executor that has the job, if one has it.
    pub(super) fn running(&self, id: u64, found: impl FnOnce(usize)) -> bool {
        let state = self.lock();
        state.schedule.executor_of(id).map(found).is_some()
    }

    /// Whether an executor could take another job now; a hint.
    pub(super) fn is_awaited(&self) -> bool {
        self.ready.load(Ordering::Relaxed) != 0
    }

    /// Whether the job waits.
    pub(super) fn is_waiting(&self, id: u64) -> bool {
        self.lock().schedule.is_waiting(id)
    }

    /// Counts of this moment.
    pub(super) fn counts(&self) -> QueueCounts {
        let state = self.lock();
        QueueCounts { waiting: state.schedule.waiting(), running: state.schedule.running() }
    }

    /// Refuses new jobs and waits until none is left, or `until`; answers whether none is left.
    pub(super) fn drain(&self, until: Instant) -> bool {
        let mut state = self.lock();
        state.draining = true;
        while !is_quiet(&state) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.quiet.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Ends the queue: the executors get no more jobs. Answers those that waited.
    pub(super) fn stop(&self) -> Vec<Entry<J>> {
        let mut state = self.lock();
        state.draining = true;
        state.stopping = true;
        let cleared = state.schedule.clear();
        self.publish(&state);
        self.tell_quiet(&state);
        let executors = state.idle.len();
        self.wake_some(state, executors);
        cleared
    }

    /// Whether [`Queue::stop`] was called.
    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// For the watchdog: sleeps while no executor has a job, unless the queue ends.
    pub(super) fn watchdog_sleep(&self) {
        self.watchdog.register();
        let mut state = self.lock();
        if state.schedule.running() == 0 && !state.stopping {
            state.watchdog_sleeps = true;
            drop(state);
            self.watchdog.sleep();
        }
    }

    /// Wakes the watchdog if it sleeps.
    pub(super) fn watchdog_wake(&self) {
        let sleeps = std::mem::take(&mut self.lock().watchdog_sleeps);
        if sleeps {
            self.watchdog.wake();
        }
    }

    /// True as soon as there seems to be a ready job.
    fn spin(&self) -> bool {
        (0..SPINS).any(|_| {
            std::hint::spin_loop();
            self.ready.load(Ordering::Relaxed) != 0
        })
    }

    /// Lets the lock go and wakes up to `count` executors.
    fn wake_some(&self, mut state: MutexGuard<'_, State<J>>, count: usize) {
        self.publish(&state);
        let keep = state.idle.len().saturating_sub(count);
        let sleepers = state.idle.split_off(keep);
        drop(state);
        for executor in sleepers {
            self.executors[executor].wake();
        }
    }

    fn publish(&self, state: &State<J>) {
        self.ready.store(state.schedule.ready(), Ordering::Relaxed);
    }

    fn tell_quiet(&self, state: &State<J>) {
        if state.draining && is_quiet(state) {
            self.quiet.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_quiet<J>(state: &State<J>) -> bool {
    state.schedule.waiting() == 0 && state.schedule.running() == 0
}
