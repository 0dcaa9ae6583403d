//! The nursery: workers that are ready to be an executor's, and what became of those that were.
//!
//! A thread keeps a few workers ready, and hears of each that dies, so that an executor that waits for one is woken at
//! once. How many are forked in a time is bounded: code that kills its worker with every call costs other calls no more
//! than that.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::child::Worker;
use super::site::{CELLS, JOINED, Site};
use super::step::Step;
use super::system::{self, Death};
use super::zygote::Zygote;
use crate::exec::start::StartError;

/// Workers that stand ready beside those that executors have.
const READY: usize = 2;
/// After a fork that failed, or a worker that died before it could run anything; then twice that, and so on.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Between two looks at the CPU time of workers that have nothing to do.
const IDLE_LOOK: Duration = Duration::from_millis(250);
/// CPU time that a worker may use from one call to the next: it spins for a moment, and sleeps.
const IDLE_CPU_MAX: Duration = Duration::from_millis(5);
/// How long who waits for a worker sleeps before it looks whether it still should.
const WAIT: Duration = Duration::from_millis(10);

/// Counts of worker processes: of this moment, and since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// That live now, those that stand ready among them.
    pub alive: usize,
    /// That stand ready.
    pub ready: usize,
    /// Forked.
    pub spawned: u64,
    /// That could not be forked, or died before they could run anything.
    pub failed_spawns: u64,
    /// Ended by themselves or by their code, with whatever status.
    pub exited: u64,
    /// Ended by a signal that was not this process's: a fault, or a kill from outside.
    pub killed: u64,
    /// Ended by this process, as their code could not be stopped otherwise, or took memory that nobody gave it.
    pub stopped: u64,
    /// Ended by this process, as a call of another tenant came.
    pub replaced: u64,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Arc<Worker>>,
    /// All that have not ended.
    living: Vec<Arc<Worker>>,
    next_cell: u32,
    /// Forks that are allowed now, and when that was counted.
    allowed: f64,
    counted: Option<Instant>,
    /// No fork before; how long that was after the last failure, and when that was.
    not_before: Option<Instant>,
    retry: Duration,
    failed_at: Option<Instant>,
    /// What failed last, unless a worker has come through its set-up since.
    obstacle: Option<Obstacle>,
    /// Nobody gets one any more.
    closed: bool,
    stopping: bool,
}

/// Workers of one pool.
#[derive(Debug)]
pub(in crate::exec) struct Nursery {
    pub(in crate::exec) site: Site,
    zygote: Zygote,
    spawns_max_per_s: u32,
    state: Mutex<State>,
    /// Somebody stands ready, or the end has come.
    changed: Condvar,
    /// Wakes the thread.
    bell: EventFd,
    spawned: AtomicU64,
    failed: AtomicU64,
    exited: AtomicU64,
    killed: AtomicU64,
    stopped: AtomicU64,
    replaced: AtomicU64,
}

impl Nursery {
    pub(super) fn new(site: Site, zygote: Zygote, spawns_max_per_s: u32) -> Result<Nursery, StartError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_value_and_flags(0, flags);
        let bell = bell.map_err(|errno| StartError::Worker { step: "making an event descriptor", errno })?;
        // All executors, and those ready, begin at once.
        let allowed = Self::burst(&site, spawns_max_per_s);
        Ok(Nursery {
            site,
            zygote,
            spawns_max_per_s,
            state: Mutex::new(State { allowed, ..State::default() }),
            changed: Condvar::new(),
            bell,
            spawned: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            exited: AtomicU64::new(0),
            killed: AtomicU64::new(0),
            stopped: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
        })
    }

    /// A worker for an executor, as soon as there is one, unless it shall `give_up`.
    pub(super) fn take(&self, executor: usize, give_up: impl Fn() -> bool) -> Option<Arc<Worker>> {
        let mut state = self.lock();
        let worker = loop {
            if let Some(worker) = state.ready.pop_front() {
                if worker.death().is_none() {
                    break worker;
                }
                continue;
            }
            if state.closed || self.zygote.is_gone() {
                return None;
            }
            state = self.changed.wait_timeout(state, WAIT).unwrap_or_else(PoisonError::into_inner).0;
            if give_up() {
                return None;
            }
        };
        drop(state);
        worker.executor.store(executor + 1, Ordering::Release);
        let cell = self.site.cell(worker.cell as usize);
        cell.store(executor as u32 + 1, Ordering::Release);
        system::futex_wake(cell);
        self.ring();
        Some(worker)
    }

    /// Ends a worker that nobody wants any more, and waits until it has ended.
    pub(super) fn replace(&self, worker: &Worker) -> Death {
        worker.is_replaced.store(true, Ordering::Release);
        worker.signal(libc::SIGKILL);
        let mut state = self.lock();
        loop {
            if let Some(death) = worker.death() {
                return death;
            }
            state = self.changed.wait_timeout(state, WAIT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(in crate::exec) fn stats(&self) -> WorkerStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.lock();
        WorkerStats {
            alive: state.living.len(),
            ready: state.ready.len(),
            spawned: read(&self.spawned),
            failed_spawns: read(&self.failed),
            exited: read(&self.exited),
            killed: read(&self.killed),
            stopped: read(&self.stopped),
            replaced: read(&self.replaced),
        }
    }

    /// Whether no further worker can be forked, for good.
    pub(in crate::exec) fn is_barren(&self) -> bool {
        self.zygote.is_gone()
    }

    /// Nobody gets a worker from now on.
    pub(in crate::exec) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Those that wait for a worker look again. Whoever looked before something changed waits by now.
    fn tell_all(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Makes the thread end, when it has ended all workers.
    fn stop(&self) {
        self.lock().stopping = true;
        self.ring();
    }

    /// The thread: until it is stopped.
    pub(in crate::exec) fn run(&self) {
        loop {
            let again = self.refill();
            let living = {
                let state = self.lock();
                if state.stopping {
                    break;
                }
                state.living.clone()
            };
            let is_had = |worker: &Arc<Worker>| worker.executor.load(Ordering::Relaxed) != 0;
            let next = living.iter().any(is_had).then(|| Instant::now() + IDLE_LOOK);
            self.wait(&living, again.into_iter().chain(next).min());
            living.iter().for_each(|worker| self.look(worker, false));
            living.iter().filter(|worker| worker.death().is_none()).for_each(|worker| self.look_for_strays(worker));
        }
        let living = std::mem::take(&mut self.lock().living);
        living.iter().for_each(|worker| worker.signal(libc::SIGKILL));
        living.iter().for_each(|worker| self.look(worker, true));
    }

    /// Sleeps until a worker ends or what forks them, somebody rings, or `again`.
    fn wait(&self, living: &[Arc<Worker>], again: Option<Instant>) {
        let mut descriptors = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        descriptors.extend(living.iter().map(|worker| PollFd::new(worker.process.as_fd(), PollFlags::POLLIN)));
        let watched = descriptors.len();
        if !self.zygote.is_gone() {
            descriptors.push(PollFd::new(self.zygote.process(), PollFlags::POLLIN));
        }
        let timeout = again.map_or(PollTimeout::NONE, |again| {
            let left = again.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // An error means to look again.
        let _ = poll(&mut descriptors, timeout);
        if descriptors.get(watched).and_then(PollFd::any) == Some(true) {
            self.zygote.give_up();
            self.tell_all();
        }
        // Nobody may have rung.
        let _ = self.bell.read();
    }

    /// Looks at all while a fork takes long: executors wait to be told of the ends of theirs.
    fn look_around(&self) {
        let living = self.lock().living.clone();
        living.iter().for_each(|worker| self.look(worker, false));
    }

    /// Whether a worker has ended; then whoever waits for it is told.
    fn look(&self, worker: &Arc<Worker>, wait: bool) {
        let Some(death) = system::reap(worker.process.as_fd(), wait) else { return };
        let has_joined = self.has_joined(worker);
        let is = |flag: &AtomicBool| flag.load(Ordering::Acquire);
        let counter = match death {
            Death::Signal(libc::SIGKILL) if is(&worker.is_replaced) => &self.replaced,
            _ if !has_joined => &self.failed,
            _ if is(&worker.is_stopped) => &self.stopped,
            Death::Exit(_) => &self.exited,
            Death::Signal(_) => &self.killed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let known = worker.death.set(death);
        debug_assert!(known.is_ok(), "it is waited for once");
        {
            let mut state = self.lock();
            state.living.retain(|it| !Arc::ptr_eq(it, worker));
            state.ready.retain(|it| !Arc::ptr_eq(it, worker));
            if is(&worker.is_replaced) {
                // It gave no cause for another, so that one does not count.
                state.allowed += 1.0;
                self.changed.notify_all();
            }
        }
        if !has_joined && !wait && !is(&worker.is_replaced) {
            self.hold_back(Obstacle::Death(death));
        }
        let executor = worker.executor.load(Ordering::Acquire).checked_sub(1);
        if let Some(slot) = executor.and_then(|executor| self.site.slot(executor)) {
            slot.frame().desk.ring();
        }
    }

    /// Ends a worker whose code runs on after it said that its call had ended: no limit holds for it.
    fn look_for_strays(&self, worker: &Worker) {
        let cpu = worker.idle_cpu();
        if cpu > IDLE_CPU_MAX {
            tracing::warn!(pid = worker.pid(), ?cpu, "a worker process used CPU time outside of calls, and is ended");
            worker.stop();
        }
    }

    /// Forks workers until enough stand ready. When to come again, if not all could be had.
    fn refill(&self) -> Option<Instant> {
        loop {
            let cell = match self.permit(Instant::now()) {
                Permit::Enough => return None,
                Permit::Later(when) => return Some(when),
                Permit::Now(cell) => cell,
            };
            match self.spawn(cell) {
                Ok(worker) => {
                    self.spawned.fetch_add(1, Ordering::Relaxed);
                    let mut state = self.lock();
                    state.living.push(Arc::clone(&worker));
                    state.ready.push_back(worker);
                    drop(state);
                    self.changed.notify_one();
                }
                Err(errno) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    self.hold_back(Obstacle::Fork(errno));
                    self.changed.notify_all();
                }
            }
        }
    }

    /// No further one is forked for a while: the longer, the more have failed one after the other.
    fn hold_back(&self, obstacle: Obstacle) {
        let (mut state, now) = (self.lock(), Instant::now());
        let since = state.failed_at.replace(now);
        let works = since
            .is_none_or(|failed| state.living.iter().any(|worker| worker.born > failed && self.has_joined(worker)));
        if works {
            (state.retry, state.obstacle) = (Duration::ZERO, None);
        }
        // Those that fail at the same time are one failure.
        if state.not_before.is_none_or(|when| when <= now) {
            state.retry = (state.retry * 2).clamp(RETRY, RETRY_MAX);
            state.not_before = Some(now + state.retry);
        }
        let before = state.obstacle.replace(obstacle);
        drop(state);
        if before != Some(obstacle) {
            obstacle.tell();
        }
    }

    /// Whether it has come through its set-up. Told in memory that no code has.
    fn has_joined(&self, worker: &Worker) -> bool {
        self.site.cell(worker.cell as usize).load(Ordering::Acquire) == JOINED
    }

    /// Waits up to `slice` for that, of a worker that was taken.
    pub(super) fn wait_joined(&self, worker: &Worker, slice: Duration) -> bool {
        let cell = self.site.cell(worker.cell as usize);
        match cell.load(Ordering::Acquire) {
            JOINED => true,
            told => {
                system::futex_wait(cell, told, Some(slice));
                self.has_joined(worker)
            }
        }
    }

    fn permit(&self, now: Instant) -> Permit {
        let mut state = self.lock();
        if state.ready.len() >= READY || state.stopping || self.zygote.is_gone() {
            return Permit::Enough;
        }
        if let Some(when) = state.not_before.filter(|when| *when > now) {
            return Permit::Later(when);
        }
        let since = state.counted.map_or(Duration::ZERO, |counted| now.saturating_duration_since(counted));
        state.counted = Some(now);
        let rate = f64::from(self.spawns_max_per_s);
        let burst = Self::burst(&self.site, self.spawns_max_per_s);
        state.allowed = (state.allowed + since.as_secs_f64() * rate).min(burst);
        if state.allowed < 1.0 {
            return Permit::Later(now + Duration::from_secs_f64((1.0 - state.allowed) / rate));
        }
        state.allowed -= 1.0;
        // One that nobody has: there are far more than workers.
        let mut cells = (1..CELLS as u32).map(|more| (state.next_cell + more) % CELLS as u32);
        let is_free = |cell: &u32| state.living.iter().all(|worker| worker.cell != *cell);
        let cell = cells.find(is_free).unwrap_or_default();
        state.next_cell = cell;
        Permit::Now(cell)
    }

    fn burst(site: &Site, spawns_max_per_s: u32) -> f64 {
        (site.executors() + READY) as f64 + f64::from(spawns_max_per_s) / 10.0
    }

    fn spawn(&self, cell: u32) -> Result<Arc<Worker>, Errno> {
        self.site.cell(cell as usize).store(0, Ordering::Release);
        let pid = self.zygote.fork_worker(cell, || self.look_around())?;
        // It is this process's child, and nobody has waited for it: the number is still its own.
        let process = system::open_process(pid).inspect_err(|_| system::discard(pid))?;
        Ok(Arc::new(Worker::new(pid, process, cell)))
    }

    fn ring(&self) {
        // That it is full means that the thread will wake.
        let _ = self.bell.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Only values are moved under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    Fork(Errno),
    /// It died before it could run anything.
    Death(Death),
}

impl Obstacle {
    fn tell(self) {
        match self {
            Self::Fork(errno) => tracing::warn!(%errno, "no worker process can be forked"),
            Self::Death(death) => {
                let status = if let Death::Exit(status) = death { Some(status) } else { None };
                let step = status.and_then(Step::named).unwrap_or("none that says so");
                tracing::warn!(?death, step, "worker processes end before they can run anything");
            }
        }
    }
}

enum Permit {
    Enough,
    Later(Instant),
    /// A worker at this cell.
    Now(u32),
}

/// The nursery and its thread, which ends with this.
#[derive(Debug)]
pub(in crate::exec) struct Keeper {
    pub(in crate::exec) nursery: Arc<Nursery>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Of a thread that runs [`Nursery::run`].
    pub(in crate::exec) fn new(nursery: Arc<Nursery>, thread: JoinHandle<()>) -> Keeper {
        Keeper { nursery, thread: Some(thread) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.nursery.close();
        self.nursery.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has been told, and leaves nothing to end.
            let _ = thread.join();
        }
    }
}
