//! The pool: executors, their watchdog, and the way in.

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
use super::call::{ArgError, Call, Callee, Held, Outcome, check_args};
use super::confine::{FilterState, this_daemon};
use super::counts::{Counters, PoolStats};
use super::executor::Obstacle;
use super::filter::{lent_program, program};
use super::pace::Paces;
use super::queue::{Full, Incoming, Queue};
use super::refusal::{Refusal, Rejected, RejectedSeries};
use super::schedule::NoRoom;
use super::seat::Seats;
use super::series::{self, Series, SeriesCall, SeriesTicket};
use super::stack::Backing;
use super::start::{ExecConfig, StartError, filter_state, seats};
use super::stuck::{Place, Staff, watch};
use super::ticket::{Answer, CallId, Desk, Ticket};
use super::trap::Trap;
use super::work::{Asker, Job, Order, Work};
use super::worker::{Keeper, Nursery, WorkerStats, Workers};
use super::writable::{Writable, Writables};
use super::{executor, inline, signals, worker};

/// What the threads of a pool share.
#[derive(Debug)]
pub(super) struct Shared<C> {
    pub(super) config: ExecConfig,
    /// What limits count from.
    pub(super) epoch: Instant,
    pub(super) queue: Queue<Job<C>>,
    pub(super) seats: Arc<Seats>,
    pub(super) paces: Paces,
    /// What each executor has, by its seat.
    pub(super) given: Vec<Place<C>>,
    pub(super) staff: Staff,
    pub(super) counters: Counters,
    pub(super) filter_state: FilterState,
    /// What executors run under.
    pub(super) filter: Option<Vec<sock_filter>>,
    /// What lent threads run under from their first inline call on.
    pub(super) lent_filter: Option<Vec<sock_filter>>,
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
    watchdog: Option<JoinHandle<()>>,
    /// Ends when no executor needs a worker any more.
    keeper: Option<Keeper>,
}

impl<C: Callee> Pool<C> {
    /// Maps the executors' memory and starts their threads, `exec-0` and so on.
    pub fn start(config: ExecConfig) -> Result<Pool<C>, StartError> {
        config.check()?;
        signals::install().map_err(StartError::Signals)?;
        let seats = seats(&config, Backing::Private)?;
        let filter = filter_state(config.filter)?;
        Self::start_over(config, Arc::new(seats), filter, None)
    }

    /// The same, but calls run in worker processes.
    pub fn start_with_workers(workers: Workers) -> Result<Pool<C>, StartError> {
        let Workers { nursery, config, filter } = workers;
        let seats = Arc::clone(&nursery.site.seats);
        Self::start_over(config, seats, filter, Some(nursery))
    }

    fn start_over(
        config: ExecConfig,
        seats: Arc<Seats>,
        filter_state: FilterState,
        nursery: Option<Arc<Nursery>>,
    ) -> Result<Pool<C>, StartError> {
        let bounds = config.bounds();
        let (executors, epoch) = (bounds.executors, Instant::now());
        let is_filtered = filter_state == FilterState::InForce;
        let shared = Arc::new(Shared {
            epoch,
            queue: Queue::new(bounds, config.inline_threads, epoch),
            seats,
            paces: Paces::new(inline::limit(&config)),
            given: (0..bounds.seats).map(|_| Place::default()).collect(),
            staff: Staff::new(executors, bounds.seats, config.inline_threads),
            counters: Counters::default(),
            filter_state,
            filter: is_filtered.then(|| program(&config.code, this_daemon(config.code_flips))),
            lent_filter: is_filtered.then(|| lent_program(&config.code)),
            nursery: nursery.clone(),
            config,
        });
        // From here an error drops the pool, which ends the threads that already run.
        let mut pool = Pool { shared, watchdog: None, keeper: None };
        if let Some(nursery) = nursery {
            let thread = Arc::clone(&nursery);
            let thread = spawn("exec-workers".into(), move || thread.run())?;
            pool.keeper = Some(Keeper::new(nursery, thread));
        }
        pool.start_watchdog()?;
        (0..executors).try_for_each(|index| pool.start_executor(index))?;
        Ok(pool)
    }

    /// Takes a call, or gives it back at once. The call's end comes by the ticket. A short call may run before this comes
    /// back, on the calling thread, if that was lent for it.
    pub fn submit(&self, call: Call<C>) -> Result<Ticket, Rejected<C>> {
        if let Err(refusal) = self.check(&call) {
            return Err(Rejected { refusal, call: Box::new(call) });
        }
        let (lanes, now) = (self.shared.lanes(&call.callee), Instant::now());
        if lanes.is_empty()
            && let Some(done) = inline::run(&self.shared, &call, now)
        {
            return Ok(Ticket::ended(done));
        }
        let (sender, receiver) = oneshot::channel();
        let work = Work { call, order: Order::Call, asker: Asker::Call(sender) };
        self.enqueue(work, lanes, now, receiver).map_err(|refused| rejected(*refused))
    }

    /// The same for one call for each row of a batch, whose columns are its arguments; `call` has none itself.
    pub fn submit_batch(&self, call: Call<C>, batch: Batch) -> Result<Ticket<BatchDone>, Rejected<C>> {
        if let Err(refusal) = self.check(&call).and_then(|()| self.check_batch(&call, &batch)) {
            return Err(Rejected { refusal, call: Box::new(call) });
        }
        let (lanes, (sender, receiver)) = (self.shared.lanes(&call.callee), oneshot::channel());
        let work = Work { call, order: Order::Batch(batch), asker: Asker::Batch(sender) };
        self.enqueue(work, lanes, Instant::now(), receiver).map_err(|refused| rejected(*refused))
    }

    /// The same for calls of one function that one executor runs one after the other. `call` itself has no arguments; its
    /// limits are those of each. The ends come by the ticket, as they happen.
    pub fn submit_series(&self, call: Call<C>, calls: Vec<SeriesCall>) -> Result<SeriesTicket, RejectedSeries<C>> {
        let max_bytes = self.shared.config.call_memory_max_bytes;
        let checked = calls.iter().try_for_each(|(_, args)| check_args(args, max_bytes));
        if let Err(refusal) = checked.map_err(Refusal::from).and_then(|()| self.check(&call)) {
            return Err(RejectedSeries { refusal, call: Box::new(call), calls });
        }
        let (lanes, (sender, receiver)) = (self.shared.lanes(&call.callee), oneshot::channel());
        let series = Series::new(call.entry, calls);
        let work = Work { call, order: Order::Series(Arc::clone(&series)), asker: Asker::Series(sender) };
        match self.enqueue(work, lanes, Instant::now(), receiver) {
            Ok(ticket) => Ok(SeriesTicket::new(ticket, series)),
            Err(refused) => {
                let Rejected { refusal, call } = rejected(*refused);
                Err(RejectedSeries { refusal, call, calls: series.take_waiting().into() })
            }
        }
    }

    /// Ends a call, a batch or all of a series by the id of its ticket: with a trap of kind CANCELLED, within some ticks, or
    /// at once if it has not begun. False if it has ended.
    pub fn cancel(&self, call: CallId) -> bool {
        let mut runs = false;
        let waiting = self.shared.cancel_job(call, || runs = true);
        let Some(Job { work, submitted }) = waiting else { return runs };
        let outcome = Outcome::Trap(Trap::before_start(work.call.entry));
        work.give_back(&outcome, submitted, &self.shared.counters);
        true
    }

    /// Ends one call of a series, which has this id.
    pub fn cancel_in_series(&self, id: CallId, series: &Series, number: u64) -> bool {
        match series.cancel(number) {
            series::Place::Gone => false,
            series::Place::Waiting(trap) => {
                self.shared.counters.count(&Outcome::Trap(trap));
                true
            }
            series::Place::Running => {
                // No other call has the number, so the mark does no harm if this one ends meanwhile.
                let mark = |executor: usize| {
                    self.shared.seats.executor(executor).cancel_call(number);
                };
                self.shared.queue.running(id.id, mark)
            }
        }
    }

    /// Whether what has this id waits for an executor.
    pub fn is_waiting(&self, call: CallId) -> bool {
        self.shared.queue.is_waiting(call.tenant, call.id)
    }

    /// Counts. An executor is counted as running until it comes for its next call, shortly after the answer.
    pub fn stats(&self) -> PoolStats {
        let counts = self.shared.queue.counts();
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (returned, cancelled, late) = (read(&counters.returned), read(&counters.cancelled), read(&counters.late));
        let traps = counters.traps.each_ref().map(read);
        let config = &self.shared.config;
        PoolStats {
            executors: config.bounds().executors,
            spare_executors: config.spare_executors,
            stuck: self.shared.staff.stuck(),
            stuck_lent: self.shared.staff.stuck_lent(),
            missing: self.shared.staff.missing(),
            replaced: self.shared.staff.replaced(),
            running: counts.running,
            inline_running: counts.inline_running,
            inline: read(&counters.inline),
            inline_moved: read(&counters.inline_moved),
            queued: counts.waiting,
            tenants_queued: counts.tenants_waiting,
            queue_max: config.queue_max,
            queue_tenant_max: config.queue_tenant_max,
            refused: read(&counters.refused),
            refused_tenant: read(&counters.refused_tenant),
            calls: returned + cancelled + late + traps.iter().sum::<u64>(),
            returned,
            traps,
            cancelled,
            late,
            filter: self.shared.filter_state,
            // What workers say is not for adding up: code can write it.
            refused_system_calls: match self.shared.nursery {
                Some(_) => 0,
                None => self.shared.seats.refused_system_calls(),
            },
        }
    }

    /// Counts of worker processes; `None` if calls run in threads.
    pub fn workers(&self) -> Option<WorkerStats> {
        self.shared.nursery.as_ref().map(|nursery| nursery.stats())
    }

    /// Whether calls run in worker processes, and no further one can be forked, for good.
    pub fn is_barren(&self) -> bool {
        self.shared.nursery.as_ref().is_some_and(|nursery| nursery.is_barren())
    }

    /// Refuses new calls from now on and waits until all have ended and were answered, or `until`. Blocks. Answers
    /// whether all have.
    pub fn drain(&self, until: Instant) -> bool {
        self.shared.queue.drain(until)
    }

    fn check(&self, call: &Call<C>) -> Result<(), Refusal> {
        check_args(&call.args, self.shared.config.call_memory_max_bytes)?;
        if !call.callee.code_range().contains(&call.entry) {
            return Err(Refusal::Entry { entry: call.entry });
        }
        self.shared.tell_of_lent(&call.callee);
        if call.callee.is_quarantined() {
            return Err(Refusal::Quarantined);
        }
        if self.shared.staff.is_none() { Err(Refusal::Stuck(Held::Executors)) } else { Ok(()) }
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
        lanes: Writables,
        now: Instant,
        receiver: oneshot::Receiver<T>,
    ) -> Result<Ticket<T>, Box<(Refusal, Work<C>)>> {
        let (tenant, priority) = (work.call.callee.tenant(), work.call.priority);
        let job = Job { work, submitted: now };
        match self.shared.queue.submit(Incoming { tenant, priority, lanes, now, job }) {
            Ok(id) => {
                let desk: Weak<Shared<C>> = Arc::downgrade(&self.shared);
                Ok(Ticket::new(receiver, desk, CallId { tenant, id }))
            }
            Err((full, job)) => Err(Box::new((self.refusal(full), job.work))),
        }
    }

    fn refusal(&self, full: Full) -> Refusal {
        let (config, counters) = (&self.shared.config, &self.shared.counters);
        match full {
            Full::NoRoom(NoRoom::All) => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                Refusal::Saturated { queue_max: config.queue_max }
            }
            Full::NoRoom(NoRoom::Tenant) => {
                counters.refused_tenant.fetch_add(1, Ordering::Relaxed);
                Refusal::TenantSaturated { queue_tenant_max: config.queue_tenant_max }
            }
            Full::NoRoom(NoRoom::Lost) => Refusal::Stuck(Held::Data),
            Full::Draining => Refusal::Draining,
        }
    }

    fn start_executor(&mut self, index: usize) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        let (started, answer) = sync_channel(1);
        let tell = move |set_up| started.send(set_up).is_ok();
        let thread = spawn(format!("exec-{index}"), move || executor::run(&shared, index, tell))?;
        self.shared.staff.keep(index, thread);
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

impl<C: Callee> Drop for Pool<C> {
    fn drop(&mut self) {
        for entry in self.shared.queue.stop() {
            self.shared.counters.count(&Outcome::Cancelled);
            drop(entry);
        }
        if let Some(keeper) = &self.keeper {
            keeper.nursery.close();
        }
        // The watchdog ends what runs, and gives up what does not end: it is done when no executor has a call.
        self.shared.queue.watchdog_wake();
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.thread().unpark();
            let _ = watchdog.join();
        }
        let joined = self.shared.staff.dismiss().into_iter().try_for_each(JoinHandle::join);
        debug_assert!(joined.is_ok(), "a panic of an executor ends the process");
    }
}

impl<C: Callee> fmt::Debug for Pool<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pool").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl<C: Callee> Shared<C> {
    /// Takes a waiting job out, or marks it where it runs and tells so.
    fn cancel_job(&self, call: CallId, runs: impl FnOnce()) -> Option<Job<C>> {
        let mark = |executor: usize| {
            self.seats.executor(executor).cancel_job(call.id);
            runs();
        };
        self.queue.cancel(call.tenant, call.id, mark)
    }
}

fn rejected<C>((refusal, work): (Refusal, Work<C>)) -> Rejected<C> {
    Rejected { refusal, call: Box::new(work.call) }
}

impl<C: Callee> Desk for Shared<C> {
    fn cancel(&self, call: CallId) {
        if let Some(job) = self.cancel_job(call, || ()) {
            self.counters.count(&Outcome::Cancelled);
            drop(job);
        }
    }

    fn is_waiting(&self, call: CallId) -> bool {
        self.queue.is_waiting(call.tenant, call.id)
    }
}

/// Starts a thread of this name.
pub(super) fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    thread::Builder::new().name(name.clone()).spawn(body).map_err(|error| StartError::Thread { name, error })
}
