//! The schedule behind a lock, with its waiting threads: executors, the watchdog, and who drains.
//!
//! Inside the lock values only move. Jobs that are refused or cancelled are handed out and dropped outside.

use std::time::{Duration, Instant};

use super::call::Priority;
use super::pauses::Pauses;
use super::schedule::{Bounds, Cancelled, Entry, NoRoom, Schedule};
use super::sync::{
    AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError, SPINS, Thread, current, park, spin_loop,
};
use super::watchdog::nanos;
use super::writable::Writables;

/// How often who drains looks for the end of inline calls.
const INLINE_LOOK: Duration = Duration::from_millis(1);

/// Why a queue does not take a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// There is no room for one more.
    NoRoom(NoRoom),
    /// The pool is ending.
    Draining,
}

/// Counts of one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueCounts {
    /// Jobs that wait.
    pub(super) waiting: usize,
    /// Tenants that have some of them.
    pub(super) tenants_waiting: usize,
    /// Executors that have a job.
    pub(super) running: usize,
    /// Inline calls that run.
    pub(super) inline_running: usize,
    /// Inline calls that have begun, ever.
    pub(super) inline_begun: u64,
}

/// A job that comes in.
#[derive(Debug)]
pub(super) struct Incoming<J> {
    /// Whose it is.
    pub(super) tenant: u64,
    /// Among the jobs of its tenant.
    pub(super) priority: Priority,
    /// The writable data that it may touch.
    pub(super) lanes: Writables,
    /// When it came.
    pub(super) now: Instant,
    /// The job itself.
    pub(super) job: J,
}

#[derive(Debug)]
struct State<J> {
    schedule: Schedule<J>,
    next_id: u64,
    /// Executors that sleep, the one that fell asleep last at the end: its caches are the warmest.
    idle: Vec<usize>,
    /// Executors that are awake without a job, and will look once more before they sleep.
    looking: usize,
    draining: bool,
    stopping: bool,
    watchdog_sleeps: bool,
    pauses: Pauses,
    inline_begun: u64,
}

/// An inline call that has begun; dropped when it has ended.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A thread that sleeps until it is woken, and is woken exactly once for each sleep.
#[derive(Debug, Default)]
struct Sleeper {
    woken: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Sleeper {
    /// Makes the calling thread the one that sleeps. Before it tells anybody, under the lock, that it will: then who
    /// wakes it knows it.
    fn register(&self) {
        *self.thread() = Some(current());
    }

    fn sleep(&self) {
        // Acquire pairs with the Release of `wake`: the sleeper sees why.
        while !self.woken.swap(false, Ordering::Acquire) {
            park();
        }
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        if let Some(thread) = &*self.thread() {
            thread.unpark();
        }
    }

    fn thread(&self) -> MutexGuard<'_, Option<Thread>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waiting jobs and the threads that wait for them.
#[derive(Debug)]
pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    quiet: Condvar,
    /// What the schedule counts from.
    epoch: Instant,
    /// How many executors would find a job, for looking without the lock; a hint.
    takeable: AtomicUsize,
    /// How many jobs wait for nothing but an executor; a hint as well.
    ready: AtomicUsize,
    executors: Vec<Sleeper>,
    /// Whether an inline call runs, for each seat; turns true under the lock only.
    inline: Vec<AtomicBool>,
    watchdog: Sleeper,
}

impl<J> Queue<J> {
    /// An empty queue, beside which calls run inline in so many seats.
    pub(super) fn new(bounds: Bounds, inline: usize, epoch: Instant) -> Queue<J> {
        let state = State {
            schedule: Schedule::new(bounds),
            // Zero is the id in a frame that has not seen a cancel.
            next_id: 1,
            idle: Vec::with_capacity(bounds.seats),
            looking: 0,
            draining: false,
            stopping: false,
            watchdog_sleeps: false,
            pauses: Pauses::default(),
            inline_begun: 0,
        };
        Queue {
            state: Mutex::new(state),
            quiet: Condvar::new(),
            epoch,
            takeable: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
            executors: (0..bounds.seats).map(|_| Sleeper::default()).collect(),
            inline: (0..inline).map(|_| AtomicBool::new(false)).collect(),
            watchdog: Sleeper::default(),
        }
    }

    /// Whether a call of the tenant may run inline in this seat, which runs nothing, now. `owed` is the tenant and the
    /// time of the call that ran there before.
    pub(super) fn begin_inline(
        &self,
        seat: usize,
        tenant: u64,
        now: Instant,
        owed: Option<(u64, u64)>,
    ) -> Option<Turn<'_>> {
        let now_ns = self.since_epoch(now);
        let mut state = self.lock();
        if let Some((tenant, cost_ns)) = owed {
            state.schedule.charge(tenant, cost_ns);
        }
        if state.draining || state.pauses.holds(tenant, now_ns) || !state.schedule.may_pass(tenant, now_ns) {
            return None;
        }
        state.inline_begun += 1;
        self.inline[seat].store(true, Ordering::Relaxed);
        let wake_watchdog = std::mem::take(&mut state.watchdog_sleeps);
        drop(state);
        if wake_watchdog {
            self.watchdog.wake();
        }
        Some(Turn(&self.inline[seat]))
    }

    /// An inline call of the tenant had to be ended, and has held its thread for so long.
    pub(super) fn pause_inline(&self, tenant: u64, now: Instant, held: Duration) {
        let now_ns = self.since_epoch(now);
        self.lock().pauses.begin(tenant, now_ns, nanos(held));
    }

    /// An inline call runs on though it was to end.
    pub(super) fn pause_all_inline(&self, now: Instant) {
        let now_ns = self.since_epoch(now);
        self.lock().pauses.begin_for_all(now_ns);
    }

    /// Takes a job in; answers its id, or gives it back.
    pub(super) fn submit(&self, incoming: Incoming<J>) -> Result<u64, (Full, J)> {
        let Incoming { tenant, priority, lanes, now, job } = incoming;
        let mut state = self.lock();
        if state.draining {
            return Err((Full::Draining, job));
        }
        let id = state.next_id;
        let entry = Entry { id, tenant, priority, lanes, job };
        state.schedule.submit(entry, self.since_epoch(now)).map_err(|(no_room, job)| (Full::NoRoom(no_room), job))?;
        state.next_id += 1;
        self.wake_for_jobs(state, 0);
        Ok(id)
    }

    /// The calling thread is this executor from now on.
    pub(super) fn register(&self, executor: usize) {
        self.executors[executor].register();
    }

    /// `executor`, which is registered, is done with what it had; sleeps until there is a next job, and answers when it took that. `None` when
    /// the queue has ended.
    pub(super) fn next(&self, executor: usize) -> Option<(Entry<J>, Instant)> {
        let mut now = Instant::now();
        let mut state = self.lock();
        state.schedule.free(executor, self.since_epoch(now));
        self.tell_quiet(&state);
        state.looking += 1;
        loop {
            if let Some(entry) = state.schedule.take(executor, self.since_epoch(now)) {
                state.looking -= 1;
                let wake_watchdog = std::mem::take(&mut state.watchdog_sleeps);
                self.wake_for_jobs(state, 0);
                if wake_watchdog {
                    self.watchdog.wake();
                }
                return Some((entry, now));
            }
            if state.stopping {
                state.looking -= 1;
                return None;
            }
            drop(state);
            let seen = self.spin();
            state = self.lock();
            if !seen && state.schedule.takeable() == 0 && !state.stopping {
                // Who wakes it counts it as looking again.
                state.looking -= 1;
                state.idle.push(executor);
                drop(state);
                self.executors[executor].sleep();
                state = self.lock();
            }
            now = Instant::now();
        }
    }

    /// A job of these lanes has ended; runs `restore` outside of the lock for each whose data must be restored now. After
    /// it the calling thread comes for so many jobs itself: one, or none if it ends.
    pub(super) fn settle(&self, lanes: &Writables, faulted: bool, coming: usize, restore: impl Fn(u64)) {
        let mut state = self.lock();
        let due = state.schedule.settle(lanes, faulted);
        if !due.is_empty() {
            // What waits behind the restore is not ready: nobody should look for it.
            self.publish(&state);
            drop(state);
            due.iter().for_each(|id| restore(*id));
            state = self.lock();
            state.schedule.restored(&due);
        }
        self.wake_for_jobs(state, coming);
    }

    /// Jobs of these lanes may overlap from now on, also those that came before.
    pub(super) fn open(&self, lanes: &[u64]) {
        let mut state = self.lock();
        state.schedule.open(lanes);
        self.wake_for_jobs(state, 0);
    }

    /// Nothing runs inline from now on.
    pub(super) fn stop_inline(&self) {
        self.lock().pauses.begin_for_good();
    }

    /// The job of `executor` cannot be stopped and counts as ended: answers the jobs that waited for data that it holds,
    /// or all that wait if there is no executor left.
    pub(super) fn lose(&self, executor: usize, now: Instant, is_last: bool) -> Vec<Entry<J>> {
        let mut state = self.lock();
        let mut out = state.schedule.lose(executor, self.since_epoch(now));
        if is_last {
            out.append(&mut state.schedule.clear());
        }
        self.tell_quiet(&state);
        self.wake_for_jobs(state, 0);
        out
    }

    /// A job that was lost has ended after all.
    pub(super) fn found(&self, lanes: &Writables) {
        self.lock().schedule.found(lanes);
    }

    /// Takes a waiting job of this tenant out, or calls `running` with the executor that has it.
    pub(super) fn cancel(&self, tenant: u64, id: u64, running: impl FnOnce(usize)) -> Option<J> {
        let mut state = self.lock();
        match state.schedule.cancel(tenant, id) {
            Cancelled::Gone => None,
            Cancelled::Running(executor) => {
                // Inside the lock: else the executor could by then have another job, and that one's mark be lost.
                running(executor);
                None
            }
            Cancelled::Waiting(job) => {
                self.tell_quiet(&state);
                self.wake_for_jobs(state, 0);
                Some(job)
            }
        }
    }

    /// Calls `found` with the executor that has the job, if one has it.
    pub(super) fn running(&self, id: u64, found: impl FnOnce(usize)) -> bool {
        let state = self.lock();
        state.schedule.executor_of(id).map(found).is_some()
    }

    /// Whether jobs wait that an executor could take if it came; a hint.
    pub(super) fn is_awaited(&self) -> bool {
        self.ready.load(Ordering::Relaxed) != 0
    }

    /// Whether the job, of this tenant, waits.
    pub(super) fn is_waiting(&self, tenant: u64, id: u64) -> bool {
        self.lock().schedule.is_waiting(tenant, id)
    }

    /// Counts of this moment.
    pub(super) fn counts(&self) -> QueueCounts {
        let state = self.lock();
        let schedule = &state.schedule;
        let (waiting, running) = (schedule.waiting(), schedule.running());
        QueueCounts {
            waiting,
            tenants_waiting: schedule.tenants_waiting(),
            running,
            inline_running: self.inline_running(),
            inline_begun: state.inline_begun,
        }
    }

    /// Refuses new jobs and waits until none is left, or `until`; answers whether none is left.
    pub(super) fn drain(&self, until: Instant) -> bool {
        let mut state = self.lock();
        state.draining = true;
        while !is_quiet(&state) || self.inline_running() > 0 {
            let mut left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if is_quiet(&state) {
                // The end of an inline call tells nobody.
                left = left.min(INLINE_LOOK);
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
        let sleepers = std::mem::take(&mut state.idle);
        state.looking += sleepers.len();
        drop(state);
        self.wake(&sleepers);
        cleared
    }

    /// Whether [`Queue::stop`] was called.
    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// For the watchdog: sleeps while nothing runs, unless the queue ends, or inline calls have begun since `seen`.
    pub(super) fn watchdog_sleep(&self, seen: QueueCounts) {
        self.watchdog.register();
        let mut state = self.lock();
        let is_still = seen.inline_begun == state.inline_begun && self.inline_running() == 0;
        if is_still && state.schedule.running() == 0 && !state.stopping {
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

    fn inline_running(&self) -> usize {
        // Acquire pairs with the Release of `Turn`: what the call left is seen.
        self.inline.iter().filter(|is_running| is_running.load(Ordering::Acquire)).count()
    }

    /// True as soon as there seems to be a job to take.
    fn spin(&self) -> bool {
        (0..SPINS).any(|_| {
            spin_loop();
            self.takeable.load(Ordering::Relaxed) != 0
        })
    }

    /// Lets the lock go and wakes as many executors as there are jobs for, without those that look already and `coming`
    /// others. Who takes a job wakes further ones by this, if one job made more of them ready.
    fn wake_for_jobs(&self, mut state: MutexGuard<'_, State<J>>, coming: usize) {
        self.publish(&state);
        let wanted = state.schedule.takeable().saturating_sub(state.looking + coming);
        if wanted == 0 || state.idle.is_empty() {
            return;
        }
        let keep = state.idle.len().saturating_sub(wanted);
        let sleepers = state.idle.split_off(keep);
        state.looking += sleepers.len();
        drop(state);
        self.wake(&sleepers);
    }

    fn wake(&self, sleepers: &[usize]) {
        sleepers.iter().for_each(|executor| self.executors[*executor].wake());
    }

    fn publish(&self, state: &State<J>) {
        self.takeable.store(state.schedule.takeable(), Ordering::Relaxed);
        self.ready.store(state.schedule.ready(), Ordering::Relaxed);
    }

    fn since_epoch(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
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
