//! The pool: executors, their watchdog, and the way in.

mod start;
mod stats;
mod work;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use libc::sock_filter;
use nix::errno::Errno;
use tokio::sync::oneshot;

use super::batch::{Batch, BatchDone, ColumnType};
use super::call::{ArgError, Call, Callee, Outcome, check_args};
use super::confine::{FilterState, this_daemon};
use super::executor::Obstacle;
use super::filter::program;
use super::queue::{Full, Queue};
use super::series::{Place, Series, SeriesCall, SeriesTicket};
use super::stack::Slot;
use super::ticket::{Answer, Desk, Ticket};
use super::watchdog::{VictimCell, Watchdog};
use super::worker::{Keeper, Nursery, WorkerStats, Workers};
use super::writable::{Writable, Writables};
use super::{executor, signals, worker};
pub(super) use start::slot_sizes;
pub use start::{ExecConfig, StartError};
use start::{claim_slots, filter_state};
use stats::Counters;
pub use stats::PoolStats;
pub(super) use work::{Job, Work};

/// Ticks without a running call after which the watchdog sleeps until there is one: waking it costs more than a tick.
const IDLE_TICKS: u32 = 16;
/// Why a call was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many calls wait as may.
    #[error("all executors are busy and {queue_max} calls wait already")]
    Saturated {
        /// Calls that may wait.
        queue_max: usize,
    },
    /// The pool is ending.
    #[error("no new calls are taken")]
    Draining,
    /// The arguments cannot be passed.
    #[error(transparent)]
    Args(#[from] ArgError),
    /// The entry is no address of the callee.
    #[error("the entry {entry:#x} is outside of the code")]
    Entry {
        /// The address.
        entry: u64,
    },
}

/// A call that was not taken, given back.
#[derive(Debug)]
pub struct Rejected<C> {
    /// Why.
    pub refusal: Refusal,
    /// The call as it was submitted.
    pub call: Box<Call<C>>,
}

/// A series that was not taken, given back.
#[derive(Debug)]
pub struct RejectedSeries<C> {
    /// Why.
    pub refusal: Refusal,
    /// The function as it was submitted.
    pub call: Box<Call<C>>,
    /// The calls.
    pub calls: Vec<SeriesCall>,
}

/// What the threads of a pool share.
#[derive(Debug)]
pub(super) struct Shared<C> {
    pub(super) config: ExecConfig,
    /// What limits count from.
    pub(super) epoch: Instant,
    pub(super) queue: Queue<Job<C>>,
    pub(super) slots: Arc<Vec<Slot>>,
    /// Each set by its executor, before its first call.
    pub(super) victims: Vec<VictimCell>,
    pub(super) counters: Counters,
    pub(super) filter_state: FilterState,
    /// What executors run under.
    pub(super) filter: Option<Vec<sock_filter>>,
    /// If calls run in worker processes.
    pub(super) nursery: Option<Arc<Nursery>>,
}

impl<C: Callee> Shared<C> {
    /// The lanes of a call.
    pub(super) fn lanes(&self, callee: &C) -> Writables {
        let lanes = callee.writable();
        if self.nursery.is_none() || lanes.iter().all(|lane| !lane.reentrant) {
            return lanes;
        }
        // Each worker has a copy of the data while it runs a call.
        Writables::new(lanes.iter().map(|lane| Writable { reentrant: false, ..*lane }))
    }
}

/// Executor threads that run code. Dropping it stops what runs, cancels what waits and joins the threads.
pub struct Pool<C: Callee> {
    shared: Arc<Shared<C>>,
    executors: Vec<JoinHandle<()>>,
    watchdog: Option<JoinHandle<()>>,
    /// Ends when no executor needs a worker any more.
    keeper: Option<Keeper>,
}

impl<C: Callee> Pool<C> {
    /// Maps the executors' memory and starts their threads, `exec-0` and so on.
    pub fn start(config: ExecConfig) -> Result<Pool<C>, StartError> {
        config.check()?;
        signals::install().map_err(StartError::Signals)?;
        let slots = Arc::new(claim_slots(&config)?);
        Self::start_over(config, slots, None)
    }

    /// The same, but calls run in worker processes.
    pub fn start_with_workers(workers: Workers) -> Result<Pool<C>, StartError> {
        let Workers { nursery, config } = workers;
        let slots = Arc::clone(&nursery.site.slots);
        Self::start_over(config, slots, Some(nursery))
    }

    fn start_over(
        config: ExecConfig,
        slots: Arc<Vec<Slot>>,
        nursery: Option<Arc<Nursery>>,
    ) -> Result<Pool<C>, StartError> {
        let executors = config.executors;
        let filter_state = filter_state(config.filter)?;
        let is_filtered = filter_state == FilterState::InForce;
        let shared = Arc::new(Shared {
            epoch: Instant::now(),
            queue: Queue::new(executors, config.queue_max),
            slots,
            victims: (0..executors).map(|_| VictimCell::default()).collect(),
            counters: Counters::default(),
            filter_state,
            filter: is_filtered.then(|| program(&config.code, this_daemon(config.code_flips))),
            nursery: nursery.clone(),
            config,
        });
        // From here an error drops the pool, which ends the threads that already run.
        let mut pool = Pool { shared, executors: Vec::with_capacity(executors), watchdog: None, keeper: None };
        if let Some(nursery) = nursery {
            let thread = Arc::clone(&nursery);
            let thread = spawn("exec-workers".into(), move || thread.run())?;
            pool.keeper = Some(Keeper::new(nursery, thread));
        }
        pool.start_watchdog()?;
        (0..executors).try_for_each(|index| pool.start_executor(index))?;
        Ok(pool)
    }

    /// Takes a call, or gives it back at once. The call's end comes by the ticket.
    pub fn submit(&self, call: Call<C>) -> Result<Ticket, Rejected<C>> {
        if let Err(refusal) = self.check(&call) {
            return Err(Rejected { refusal, call: Box::new(call) });
        }
        let (sender, receiver) = oneshot::channel();
        self.enqueue(Work::Call(call, sender), receiver).map_err(|refused| Rejected::new(*refused))
    }

    /// The same for one call for each row of a batch, whose columns are its arguments; `call` has none itself.
    pub fn submit_batch(&self, call: Call<C>, batch: Batch) -> Result<Ticket<BatchDone>, Rejected<C>> {
        if let Err(refusal) = self.check(&call).and_then(|()| self.check_batch(&call, &batch)) {
            return Err(Rejected { refusal, call: Box::new(call) });
        }
        let (sender, receiver) = oneshot::channel();
        self.enqueue(Work::Batch(call, batch, sender), receiver).map_err(|refused| Rejected::new(*refused))
    }

    /// The same for calls of one function that one executor runs one after the other. `call` itself has no arguments; its
    /// limits are those of each. The ends come by the ticket, as they happen.
    pub fn submit_series(&self, call: Call<C>, calls: Vec<SeriesCall>) -> Result<SeriesTicket, RejectedSeries<C>> {
        let max_bytes = self.shared.config.call_memory_max_bytes;
        let checked = calls.iter().try_for_each(|(_, args)| check_args(args, max_bytes));
        if let Err(refusal) = checked.map_err(Refusal::from).and_then(|()| self.check(&call)) {
            return Err(RejectedSeries { refusal, call: Box::new(call), calls });
        }
        let (sender, receiver) = oneshot::channel();
        let series = Series::new(call.entry, calls);
        match self.enqueue(Work::Series(call, Arc::clone(&series), sender), receiver) {
            Ok(ticket) => Ok(SeriesTicket::new(ticket, series)),
            Err(refused) => {
                let (refusal, work) = *refused;
                let call = Box::new(work.into_call());
                Err(RejectedSeries { refusal, call, calls: series.take_waiting().into() })
            }
        }
    }

    /// Ends a call or a batch by the id of its ticket: with a trap of kind CANCELLED, within some ticks, or at once if it
    /// has not begun. False if it has ended.
    pub fn cancel(&self, id: u64) -> bool {
        let mut runs = false;
        let mark = |executor: usize| {
            self.shared.victims[executor].cancel_job(id);
            runs = true;
        };
        let Some(Job { work, submitted }) = self.shared.queue.cancel(id, mark) else { return runs };
        self.shared.counters.count(&work.cancel(submitted));
        true
    }

    /// Ends one call of a series, which has this id.
    pub fn cancel_in_series(&self, id: u64, series: &Series, number: u64) -> bool {
        match series.cancel(number) {
            Place::Gone => false,
            Place::Waiting(trap) => {
                self.shared.counters.count(&Outcome::Trap(trap));
                true
            }
            Place::Running => {
                // No other call has the number, so the mark does no harm if this one ends meanwhile.
                let mark = |executor: usize| {
                    self.shared.victims[executor].cancel_call(number);
                };
                self.shared.queue.running(id, mark)
            }
        }
    }

    /// Whether the job of this id waits for an executor.
    pub fn is_waiting(&self, id: u64) -> bool {
        self.shared.queue.is_waiting(id)
    }

    /// Counts. An executor is counted as running until it comes for its next call, shortly after the answer.
    pub fn stats(&self) -> PoolStats {
        let counts = self.shared.queue.counts();
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (returned, cancelled, late) = (read(&counters.returned), read(&counters.cancelled), read(&counters.late));
        let traps = counters.traps.each_ref().map(read);
        PoolStats {
            executors: self.shared.config.executors,
            running: counts.running,
            queued: counts.waiting,
            queue_max: self.shared.config.queue_max,
            calls: returned + cancelled + late + traps.iter().sum::<u64>(),
            returned,
            traps,
            cancelled,
            late,
            filter: self.shared.filter_state,
            // What workers say is not for adding up: code can write it.
            refused_system_calls: match self.shared.nursery {
                Some(_) => 0,
                None => self.shared.slots.iter().map(|slot| slot.frame().refused()).sum(),
            },
        }
    }

    /// Counts of worker processes; `None` if calls run in threads.
    pub fn workers(&self) -> Option<WorkerStats> {
        self.shared.nursery.as_ref().map(|nursery| nursery.stats())
    }

    /// Refuses new calls from now on and waits until all have ended and were answered, or `until`. Blocks. Answers
    /// whether all have.
    pub fn drain(&self, until: Instant) -> bool {
        self.shared.queue.drain(until)
    }

    fn check(&self, call: &Call<C>) -> Result<(), Refusal> {
        check_args(&call.args, self.shared.config.call_memory_max_bytes)?;
        if call.callee.code_range().contains(&call.entry) { Ok(()) } else { Err(Refusal::Entry { entry: call.entry }) }
    }

    fn check_batch(&self, call: &Call<C>, batch: &Batch) -> Result<(), Refusal> {
        let width_bytes = ColumnType::of_result(call.result).map_or(0, ColumnType::width_bytes);
        if self.shared.nursery.is_none() || worker::fits(batch, batch.rows() * width_bytes) {
            return Ok(());
        }
        Err(ArgError::TooMuchMemory { max_bytes: worker::COLUMNS_BYTES }.into())
    }

    fn enqueue<T: Answer>(
        &self,
        work: Work<C>,
        receiver: oneshot::Receiver<T>,
    ) -> Result<Ticket<T>, Box<(Refusal, Work<C>)>> {
        let (Work::Call(call, _) | Work::Batch(call, ..) | Work::Series(call, ..)) = &work;
        let lanes = self.shared.lanes(&call.callee);
        match self.shared.queue.submit(lanes, Job { work, submitted: Instant::now() }) {
            Ok(id) => {
                let desk: Weak<Shared<C>> = Arc::downgrade(&self.shared);
                Ok(Ticket::new(receiver, desk, id))
            }
            Err((full, job)) => Err(Box::new((self.refusal(full), job.work))),
        }
    }

    fn refusal(&self, full: Full) -> Refusal {
        match full {
            Full::Saturated => Refusal::Saturated { queue_max: self.shared.config.queue_max },
            Full::Draining => Refusal::Draining,
        }
    }

    fn start_executor(&mut self, index: usize) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        let (started, answer) = sync_channel(1);
        let thread = spawn(format!("exec-{index}"), move || executor::run(&shared, index, &started))?;
        self.executors.push(thread);
        // A thread that ends without an answer did not get as far as to run a call.
        let set_up = answer.recv().unwrap_or(Err(Obstacle::Signals(Errno::UnknownErrno)));
        set_up.map_err(|obstacle| match obstacle {
            Obstacle::Signals(errno) => StartError::SetUp { executor: index, errno },
            Obstacle::Filter(error) => StartError::Filter { error },
            Obstacle::Worker => StartError::NoWorker { executor: index },
        })
    }

    fn start_watchdog(&mut self) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        self.watchdog = Some(spawn("exec-watchdog".into(), move || watch(&shared))?);
        Ok(())
    }
}

impl<C> Rejected<C> {
    fn new((refusal, work): (Refusal, Work<C>)) -> Rejected<C> {
        Rejected { refusal, call: Box::new(work.into_call()) }
    }
}

impl<C: Callee> Drop for Pool<C> {
    fn drop(&mut self) {
        for entry in self.shared.queue.stop() {
            self.shared.counters.count(&Outcome::Cancelled);
            drop(entry);
        }
        if let Some(keeper) = &self.keeper {
            keeper.nursery.close();
        }
        // The watchdog ends what runs, so it must be the last.
        self.shared.queue.watchdog_wake();
        let joined = self.executors.drain(..).try_for_each(JoinHandle::join);
        debug_assert!(joined.is_ok(), "a panic of an executor ends the process");
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.thread().unpark();
            let _ = watchdog.join();
        }
    }
}

impl<C: Callee> fmt::Debug for Pool<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pool").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl<C: Callee> Desk for Shared<C> {
    fn cancel(&self, id: u64) {
        let mark = |executor: usize| self.victims[executor].cancel_job(id);
        if let Some(job) = self.queue.cancel(id, mark) {
            self.counters.count(&Outcome::Cancelled);
            drop(job);
        }
    }

    fn is_waiting(&self, id: u64) -> bool {
        self.queue.is_waiting(id)
    }
}

/// The body of the watchdog thread: until the queue has ended and no executor runs anything.
fn watch<C>(shared: &Shared<C>) {
    let mut watchdog = Watchdog::new(shared.epoch, shared.slots.len());
    let mut idle_ticks = 0;
    loop {
        let stopping = shared.queue.is_stopping();
        watchdog.scan(&shared.slots, &shared.victims, stopping);
        let idle = shared.queue.counts().running == 0;
        if stopping && idle {
            return;
        }
        idle_ticks = if idle { idle_ticks + 1 } else { 0 };
        if idle_ticks < IDLE_TICKS {
            thread::park_timeout(shared.config.tick);
        } else {
            shared.queue.watchdog_sleep();
            idle_ticks = 0;
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    thread::Builder::new().name(name.clone()).spawn(body).map_err(|error| StartError::Thread { name, error })
}
