//! Calls that cannot be stopped, and who takes the place of their executors.
//!
//! A signal ends any code, unless that has the signal blocked, or waits in the kernel for something that does not come.
//! When such a call has run for long enough after it was to stop, its caller is answered, and another thread takes its
//! place in a seat of its own. The old thread keeps what it has: its seat, the callee, which is therefore not freed, and the
//! writable data that it may still change, which nobody else gets. Should its code come to an end after all, it puts that
//! in order and ends; then its seat is free for another one. There are only so many seats, so only so many replacements at
//! one time; without one the pool has an executor less, and tells so.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::call::{Call, Callee, Done, Held, Outcome};
use super::executor;
use super::pool::{Shared, spawn};
use super::schedule::Entry;
use super::series::Series;
use super::trap::{Trap, TrapKind};
use super::watchdog::{Found, Stuck, Watchdog};
use super::work::{Asker, Job};

/// Between two attempts at a replacement that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Ticks without a running call after which the watchdog sleeps until there is one: waking it costs more than a tick.
const IDLE_TICKS: u32 = 16;

/// What an executor has to do.
#[derive(Debug)]
pub(super) struct Given<C> {
    pub(super) id: u64,
    /// Of the call of a series that runs; 0: none does, or it is no series.
    pub(super) number: u64,
    pub(super) call: Arc<Call<C>>,
    pub(super) series: Option<Arc<Series>>,
    pub(super) asker: Asker,
    pub(super) submitted: Instant,
    /// When the call began.
    pub(super) taken: Instant,
}

/// Where it is until the executor has done it, or it was given up: whoever takes it answers it.
#[derive(Debug)]
pub(super) struct Place<C>(Mutex<Option<Given<C>>>);

impl<C> Default for Place<C> {
    fn default() -> Place<C> {
        Place(Mutex::new(None))
    }
}

impl<C> Place<C> {
    pub(super) fn put(&self, given: Given<C>) {
        *self.lock() = Some(given);
    }

    pub(super) fn take(&self) -> Option<Given<C>> {
        self.lock().take()
    }

    /// A call of the series begins.
    pub(super) fn begin(&self, number: u64, taken: Instant) {
        if let Some(given) = &mut *self.lock() {
            (given.number, given.taken) = (number, taken);
        }
    }

    /// The call of the series has ended; false: it was given up before.
    pub(super) fn end(&self) -> bool {
        let mut given = self.lock();
        given.as_mut().map(|given| given.number = 0).is_some()
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_deserted(&self) -> bool {
        self.lock().as_ref().is_none_or(|given| given.asker.is_gone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Given<C>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What runs on one lent thread, by the address of its entry; zero is none.
#[derive(Debug, Default)]
pub(super) struct Lent {
    /// Of the last call that began.
    entry: AtomicU64,
    /// Of a call that is stuck and whose callee does not know it yet. It holds its code, so nobody else has the address.
    stuck: AtomicU64,
}

impl Lent {
    pub(super) fn begin(&self, entry: u64) {
        self.entry.store(entry, Ordering::Relaxed);
    }
}

/// The executor threads: who is there, and who is missing.
#[derive(Debug)]
pub(super) struct Staff {
    /// What there should be.
    wanted: usize,
    /// What there can be, with those that are stuck.
    seats: usize,
    /// Threads to wait for at the end, by seat.
    threads: Mutex<Vec<Option<JoinHandle<()>>>>,
    /// Seats that nobody sits in.
    vacant: Mutex<Vec<usize>>,
    present: AtomicUsize,
    stuck: AtomicUsize,
    stuck_lent: AtomicUsize,
    pub(super) lent: Box<[Lent]>,
    replaced: AtomicU64,
    failed: Mutex<Option<Instant>>,
}

impl Staff {
    /// As many as wanted are there, or soon will be, in the first of so many seats; beside so many lent threads.
    pub(super) fn new(wanted: usize, seats: usize, lent: usize) -> Staff {
        Staff {
            wanted,
            seats,
            threads: Mutex::new((0..seats).map(|_| None).collect()),
            vacant: Mutex::new((wanted..seats).rev().collect()),
            present: AtomicUsize::new(wanted),
            stuck: AtomicUsize::new(0),
            stuck_lent: AtomicUsize::new(0),
            lent: (0..lent).map(|_| Lent::default()).collect(),
            replaced: AtomicU64::new(0),
            failed: Mutex::new(None),
        }
    }

    /// A thread has begun in this seat.
    pub(super) fn keep(&self, seat: usize, thread: JoinHandle<()>) {
        lock(&self.threads)[seat] = Some(thread);
    }

    /// All threads that will end.
    pub(super) fn dismiss(&self) -> Vec<JoinHandle<()>> {
        lock(&self.threads).iter_mut().filter_map(Option::take).collect()
    }

    /// Threads with code that cannot be stopped, lent ones too.
    pub(super) fn stuck(&self) -> usize {
        self.stuck.load(Ordering::Relaxed) + self.stuck_lent()
    }

    /// Of those, lent ones.
    pub(super) fn stuck_lent(&self) -> usize {
        self.stuck_lent.load(Ordering::Relaxed)
    }

    /// Executors that should be there and are not.
    pub(super) fn missing(&self) -> usize {
        self.wanted.saturating_sub(self.present.load(Ordering::Relaxed))
    }

    /// Whether one of those could be replaced.
    pub(super) fn is_short(&self) -> bool {
        self.missing() > 0 && !lock(&self.vacant).is_empty()
    }

    /// Whether there is no executor at all, nor a seat for one: who comes for a moment without one waits.
    pub(super) fn is_none(&self) -> bool {
        self.stuck.load(Ordering::Relaxed) == self.seats
    }

    /// Executors that took the place of another one.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }
}

impl<C: Callee> Shared<C> {
    /// A call counts as stuck: answers it, and those that wait for what it holds. For the watchdog.
    pub(super) fn give_up(&self, stuck: Stuck) {
        if let Some(lent) = self.lent(stuck.seat) {
            // Its caller is the thread itself: there is nobody to answer and nobody to replace. The callee is told when the
            // next call of it comes, as only the thread has it.
            lent.stuck.store(lent.entry.load(Ordering::Relaxed), Ordering::Relaxed);
            self.staff.stuck_lent.fetch_add(1, Ordering::Release);
            self.queue.stop_inline();
            return;
        }
        let mut place = self.given[stuck.seat].lock();
        let Some(given) = place.take_if(|given| (given.id, given.number) == (stuck.job, stuck.call)) else { return };
        // Before the executor can come back, which looks at its place first.
        let is_last = self.staff.present.fetch_sub(1, Ordering::Relaxed) == 1 && lock(&self.staff.vacant).is_empty();
        self.staff.stuck.fetch_add(1, Ordering::Relaxed);
        drop(lock(&self.staff.threads)[stuck.seat].take());
        let waiting = self.queue.lose(stuck.seat, Instant::now(), is_last);
        drop(place);
        self.answer_stuck(&stuck, given);
        let held = if is_last { Held::Executors } else { Held::Data };
        for Entry { job: Job { work, submitted }, .. } in waiting {
            let outcome = Outcome::Stuck(held);
            work.give_back(&outcome, submitted, &self.counters);
        }
    }

    /// The lent thread in this seat of [`Seats::all`](super::seat::Seats::all), if it is one.
    fn lent(&self, seat: usize) -> Option<&Lent> {
        seat.checked_sub(self.given.len()).and_then(|at| self.staff.lent.get(at))
    }

    /// Tells a callee whose code is stuck on a lent thread, once for each such thread.
    pub(super) fn tell_of_lent(&self, callee: &C) {
        if self.staff.stuck_lent.load(Ordering::Acquire) == 0 {
            return;
        }
        for Lent { stuck, .. } in &self.staff.lent {
            let entry = stuck.load(Ordering::Relaxed);
            let is_it = entry != 0 && callee.code_range().contains(&entry);
            if is_it && stuck.compare_exchange(entry, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                callee.trapped(&Trap::of_stuck());
            }
        }
    }

    /// What the watchdog has seen of lent threads.
    fn note_lent(&self, found: &Found) {
        if found.overdue.iter().any(|seat| self.lent(*seat).is_some()) {
            self.queue.pause_all_inline(Instant::now());
        }
        for lent in found.ended.iter().filter_map(|seat| self.lent(*seat)) {
            lent.stuck.store(0, Ordering::Relaxed);
            self.staff.stuck_lent.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn answer_stuck(&self, stuck: &Stuck, given: Given<C>) {
        let Given { call, series, asker, submitted, taken, .. } = given;
        let is_cancelled = self.seats.executor(stuck.seat).is_cancelled(stuck.job, stuck.call);
        let trap = Trap::of_stuck();
        // Whoever stopped it: no thread should be lost to it again.
        call.callee.trapped(&trap);
        let outcome = if asker.is_gone() || self.queue.is_stopping() {
            Outcome::Cancelled
        } else if is_cancelled {
            Outcome::Trap(Trap { kind: TrapKind::Cancelled, ..trap })
        } else {
            Outcome::Trap(trap)
        };
        self.counters.count(&outcome);
        drop(call);
        // The time that its thread had for it is not known.
        let queued = taken.saturating_duration_since(submitted);
        let done = Done { outcome, queued, wall: taken.elapsed(), cpu: Duration::ZERO };
        if let Some(series) = series {
            series.leave(Some(done.clone()));
        }
        asker.answer(done.into());
    }

    /// Counts the end of a call, and tells its callee.
    pub(super) fn note_end(&self, call: &Call<C>, outcome: &Outcome) {
        self.note_trap(call, outcome);
        self.counters.count(outcome);
    }

    /// Tells the callee of a trap, unless the caller's deadline, wish or lower limit was the reason.
    pub(super) fn note_trap(&self, call: &Call<C>, outcome: &Outcome) {
        let Outcome::Trap(trap) = outcome else { return };
        let is_deadline = || call.deadline.is_some_and(|deadline| deadline <= Instant::now());
        match trap.kind {
            TrapKind::Cancelled => {}
            TrapKind::Timeout if is_deadline() || call.cpu_limit.min(call.wall_cap) < self.config.cpu_limit_default => {
            }
            _ => call.callee.trapped(trap),
        }
    }

    /// The code of an executor that was given up has come to an end, and nobody sits in its seat any more.
    pub(super) fn stuck_ended(&self, seat: usize) {
        self.staff.stuck.fetch_sub(1, Ordering::Relaxed);
        lock(&self.staff.vacant).push(seat);
        // Whoever was not replaced can be now.
        self.queue.watchdog_wake();
    }

    /// Starts executors in the places of those that are missing, as far as there are seats.
    pub(super) fn replace_missing(self: &Arc<Shared<C>>) {
        if self.staff.missing() == 0 || lock(&self.staff.failed).is_some_and(|failed| failed.elapsed() < RETRY_AFTER) {
            return;
        }
        while self.staff.missing() > 0 {
            let Some(seat) = lock(&self.staff.vacant).pop() else { return };
            if !self.replace(seat) {
                lock(&self.staff.vacant).push(seat);
                *lock(&self.staff.failed) = Some(Instant::now());
                return;
            }
        }
    }

    fn replace(self: &Arc<Shared<C>>, seat: usize) -> bool {
        if self.seats.prepare(seat).is_err() {
            return false;
        }
        let shared = Arc::clone(self);
        let body = move || {
            let staff = &shared.staff;
            executor::run(&shared, seat, |set_up| {
                if set_up.is_err() {
                    staff.present.fetch_sub(1, Ordering::Relaxed);
                    lock(&staff.vacant).push(seat);
                    *lock(&staff.failed) = Some(Instant::now());
                }
                set_up.is_ok()
            });
        };
        self.staff.present.fetch_add(1, Ordering::Relaxed);
        match spawn(format!("exec-{seat}"), body) {
            Ok(thread) => {
                self.staff.keep(seat, thread);
                self.staff.replaced.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(_) => {
                self.staff.present.fetch_sub(1, Ordering::Relaxed);
                false
            }
        }
    }
}

/// The body of the watchdog thread: until the queue has ended and no executor runs anything.
pub(super) fn watch<C: Callee>(shared: &Arc<Shared<C>>) {
    let mut watchdog = Watchdog::new(shared.epoch, shared.config.stuck_after, shared.config.tick, &shared.seats);
    let (mut idle_ticks, mut inline_begun) = (0, 0);
    loop {
        let stopping = shared.queue.is_stopping();
        let found = watchdog.scan(&shared.seats, stopping);
        shared.note_lent(&found);
        found.stuck.into_iter().for_each(|stuck| shared.give_up(stuck));
        if !stopping {
            shared.replace_missing();
        }
        let counts = shared.queue.counts();
        let inline_running = counts.inline_running - shared.staff.stuck_lent().min(counts.inline_running);
        let is_still = counts.running + inline_running == 0 && counts.inline_begun == inline_begun;
        // Who is stuck on a lent thread ends without a word.
        let is_expected = shared.staff.is_short() || shared.staff.stuck_lent() > 0;
        let idle = is_still && (stopping || !is_expected);
        inline_begun = counts.inline_begun;
        if stopping && idle {
            return;
        }
        idle_ticks = if idle { idle_ticks + 1 } else { 0 };
        if idle_ticks < IDLE_TICKS {
            thread::park_timeout(shared.config.tick);
        } else {
            shared.queue.watchdog_sleep(counts);
            idle_ticks = 0;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
