//! One executor: a thread that runs calls, one after the other.

mod initialise;
mod many;
mod oversee;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use libc::sock_filter;
use nix::errno::Errno;

use super::call::{Arg, Call, Callee, Done, Outcome, Scalar};
use super::confine::FilterError;
use super::errno;
use super::frame::Limits;
use super::memory::{Placed, Region};
use super::pool::Shared;
use super::schedule::Entry;
use super::seat::Seat;
use super::signals::ThreadSignals;
use super::stack::Slot;
use super::stuck::{Given, Place};
use super::thread::Block;
use super::ticket::Answer as _;
use super::traces::Traces;
use super::trap::{RawTrap, Trap, TrapKind};
use super::watchdog::{Victim, nanos};
use super::work::{End, Job, Order, Work};
use super::worker::{Hand, Lost};
use super::writable::Writables;
use crate::confine::install;

/// Shorter times are not measured by the CPU clock, which costs a system call.
pub(super) const CPU_RESOLUTION: Duration = Duration::from_micros(20);

/// The body of an executor thread, in a prepared seat that nobody sits in. Tells by `started` whether it could be set up,
/// and ends if that says so.
pub(super) fn run<C: Callee>(shared: &Shared<C>, index: usize, started: impl FnOnce(Result<(), Obstacle>) -> bool) {
    let _abort = AbortOnPanic;
    let seat = shared.seats.executor(index);
    let Some(slot) = seat.slot() else { return debug_assert!(false, "an executor has a prepared seat") };
    clean(slot);
    // Ends in a zero, as the C library's own: no string goes over it.
    let canary = RandomState::new().hash_one(index) << 8;
    let traces = Traces::none(false);
    let hand = shared.nursery.as_ref().map(|nursery| Hand::new(Arc::clone(nursery), index));
    let executor = Executor { hand, ..Executor::new(shared, seat, slot, canary, &traces) };
    let signals = match executor.settle_in() {
        Ok(signals) => signals,
        Err(obstacle) => {
            started(Err(obstacle));
            return;
        }
    };
    shared.queue.register(index);
    if !started(Ok(())) {
        return;
    }
    let mut cpu = CpuMeter::new(seat);
    while let Some((entry, taken)) = shared.queue.next(index) {
        if !executor.serve(index, entry, taken, &mut cpu) {
            // Somebody else has taken its place. The alternate stack lies in the seat.
            drop(signals);
            seat.leave();
            return shared.stuck_ended(index);
        }
    }
}

/// Gives back all that another thread may have left in the slot.
fn clean(slot: &Slot) {
    [slot.stack(), slot.memory(), slot.thread(), slot.alt_stack()].into_iter().for_each(|part| slot.give_back(part));
    slot.frame().forget();
}

/// Makes the calling thread one that code can run on, in this slot. The filter of system calls comes last: it is there
/// for good, and what the rest needs may not be among what it allows.
pub(super) fn set_up(slot: &Slot, filter: Option<&[sock_filter]>) -> Result<(ThreadSignals, Victim), Obstacle> {
    let signals = ThreadSignals::enter(slot.alt_stack()).map_err(Obstacle::Signals)?;
    let victim = Victim::current().map_err(Obstacle::Signals)?;
    slot.frame().blocked_signals.store(signals.blocked, Ordering::Relaxed);
    slot.frame().context.init();
    if let Some(program) = filter {
        install(program).map_err(|error| Obstacle::Filter(error.into()))?;
    }
    Ok((signals, victim))
}

/// What keeps a thread from running code.
#[derive(Debug)]
pub(super) enum Obstacle {
    /// Alternate stack, signal mask or CPU clock.
    Signals(Errno),
    /// The filter of system calls.
    Filter(FilterError),
    /// No worker process ran anything.
    Worker,
}

/// A panic here would leave a lane locked and a caller waiting for ever, so the process ends.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// A thread in its slot, which runs code.
pub(super) struct Executor<'a, C: Callee> {
    shared: &'a Shared<C>,
    slot: &'a Slot,
    region: Region,
    seat: &'a Seat,
    /// Of calls that have a thread of their own.
    canary: u64,
    traces: &'a Traces,
    /// If calls run in a worker process.
    hand: Option<Hand>,
}

impl<'a, C: Callee> Executor<'a, C> {
    /// The calling thread, which sits in this seat with this slot, and is [`set_up`] there before it runs anything.
    pub(super) fn new(
        shared: &'a Shared<C>,
        seat: &'a Seat,
        slot: &'a Slot,
        canary: u64,
        traces: &'a Traces,
    ) -> Executor<'a, C> {
        Executor { shared, slot, region: Region::of_slot(slot), seat, canary, traces, hand: None }
    }

    /// Does what there is to do and answers it. False if it was given up meanwhile: then this thread has no place any more.
    fn serve(&self, index: usize, entry: Entry<Job<C>>, taken: Instant, cpu: &mut CpuMeter<'_>) -> bool {
        let Entry { id, lanes, job: Job { work: Work { call, order, asker }, submitted }, .. } = entry;
        let (call, place) = (Arc::new(call), &self.shared.given[index]);
        let series = order.series().cloned();
        place.put(Given { id, number: 0, call: Arc::clone(&call), series, asker, submitted, taken });
        let task = Task { job: id, number: 0, call: &call, lanes: &lanes, place, submitted, taken };
        let (end, faulted) = match &order {
            Order::Call => {
                let (done, faulted) = self.attempt(&task, cpu, |limits| self.run(&call, &call.args, limits));
                self.note_pace(&task, &done);
                (done.into(), faulted)
            }
            Order::Batch(batch) => {
                let mut end = End::from(Done::cancelled());
                let (done, faulted) = self.attempt(&task, cpu, |limits| {
                    let (outcome, (rows, results)) = self.run_rows(&call, batch, limits);
                    (end.rows, end.results) = (rows, results);
                    outcome
                });
                (End { done, ..end }, faulted)
            }
            Order::Series(series) => (Done::cancelled().into(), self.run_series(&task, series, cpu)),
        };
        let Some(Given { call: shared_call, asker, .. }) = place.take() else {
            self.end_late(&call, &lanes);
            return false;
        };
        drop(shared_call);
        if order.series().is_none() {
            self.shared.note_end(&call, &end.done.outcome);
        }
        if !lanes.is_empty() {
            self.shared.queue.settle(&lanes, faulted, 1, |id| call.callee.restore(id));
        }
        // Before the answer: a caller that has it finds nothing of the call left.
        drop((call, order));
        asker.answer(end);
        true
    }

    /// Runs a call, unless nobody wants it any more: `run` is all of it behind what must run before the first one. True:
    /// it began, and did not end by itself.
    fn attempt(&self, task: &Task<'_, C>, cpu: &mut CpuMeter<'_>, run: impl FnOnce(Limits) -> Outcome) -> (Done, bool) {
        let Task { job, number, call, lanes, place, submitted, taken } = *task;
        let late = call.deadline.is_some_and(|deadline| deadline <= taken);
        let mut done = Done { queued: taken.saturating_duration_since(submitted), ..Done::cancelled() };
        let mut faulted = false;
        if late {
            done.outcome = Outcome::DeadlineBeforeStart;
        } else if place.is_deserted() {
            done.outcome = Outcome::Cancelled;
        } else if self.seat.is_cancelled(job, number) {
            done.outcome = Outcome::Trap(Trap::before_start(call.entry));
        } else if call.callee.is_quarantined() {
            // Since it was taken in.
            done.outcome = Outcome::Quarantined;
        } else {
            cpu.begin(taken);
            let limits = self.limits(task);
            done.outcome = self.initialise(call, lanes, limits).unwrap_or_else(|| run(limits));
            faulted = !matches!(done.outcome, Outcome::Returned { .. });
            if matches!(done.outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Cancelled) && place.is_deserted() {
                done.outcome = Outcome::Cancelled;
            }
            (done.wall, done.cpu) = cpu.end(taken);
        }
        (done, faulted)
    }

    /// Whether calls of the function are short, for those that could run inline.
    fn note_pace(&self, task: &Task<'_, C>, done: &Done) {
        let has_begun = !done.wall.is_zero();
        if task.lanes.is_empty() && has_begun {
            let is_returned = matches!(done.outcome, Outcome::Returned { .. });
            self.shared.paces.note(task.call.entry, is_returned.then_some(done.wall));
        }
    }

    /// A call that was given up has ended after all.
    fn end_late(&self, call: &Call<C>, lanes: &Writables) {
        if !lanes.is_empty() {
            self.shared.queue.found(lanes);
            self.shared.queue.settle(lanes, true, 0, |id| call.callee.restore(id));
        }
    }

    /// Runs the code. An outcome other than `Returned` means that it began and did not end by itself.
    pub(super) fn run(&self, call: &Call<C>, args: &[Arg], limits: Limits) -> Outcome {
        self.admit(call.callee.tenant());
        let frame = self.slot.frame();
        self.ready();
        let placed = Placed::new(&self.region, &Region::of_stack(self.slot), args);
        frame.heap.reset(placed.end, self.region.range().end);
        frame.context.prepare(call.entry, &placed.registers);
        match self.enter(&call.callee, limits) {
            Ok(block) => {
                let (int, vector) = frame.context.results();
                let value = Scalar::from_registers(call.result, int, vector);
                let buffers = placed.collect(&self.region);
                self.region.scrub(frame.heap.used_end());
                block.iter().for_each(Block::scrub);
                Outcome::Returned { value, buffers }
            }
            Err(broken) => self.ended(call.entry, limits, &broken),
        }
    }

    /// Runs what is prepared, in a thread of its own where the callee needs one, which is to be scrubbed after code that
    /// came back.
    fn enter(&self, callee: &C, limits: Limits) -> Result<Option<Block>, Broken> {
        let frame = self.slot.frame();
        frame.set_limits(limits);
        let block = callee.thread().map(|thread| Block::make(self.slot, &thread, self.canary));
        if let Some(block) = &block {
            frame.context.lend_thread(block.pointer as u64, block.errno as u64);
        }
        let ran = match (&self.hand, &block) {
            (Some(hand), _) => self.hand_over(hand, callee, limits),
            (None, None) => {
                self.traces.remove_from_registers();
                frame.context.run();
                Ok(frame.take_trap())
            }
            (None, Some(_)) => {
                let errno = errno::get();
                self.traces.remove_from_registers();
                frame.context.run();
                errno::set(errno);
                Ok(frame.take_trap())
            }
        };
        self.traces.used(frame.heap.used_end());
        ran.map_err(Broken::Lost)?.map_or(Ok(block), |raw| Err(Broken::Trapped(raw)))
    }

    /// The outcome of code at `entry` that did not come back.
    fn ended(&self, entry: u64, limits: Limits, broken: &Broken) -> Outcome {
        // What such code touched is not known.
        self.traces.clear(self.slot);
        self.hand.iter().for_each(Hand::forget);
        let guard = self.slot.guard();
        let trap = match broken {
            Broken::Trapped(raw) => raw.interpret(&(guard.start as u64..guard.end as u64)),
            Broken::Lost(lost) => Trap::of_lost(entry, *lost),
        };
        if trap.kind != TrapKind::Timeout && !matches!(broken, Broken::Lost(Lost::Never(_))) {
            return Outcome::Trap(trap);
        }
        if self.seat.is_cancelled(limits.job, limits.call) {
            return Outcome::Trap(Trap { kind: TrapKind::Cancelled, ..trap });
        }
        if self.shared.queue.is_stopping() { Outcome::Cancelled } else { Outcome::Trap(trap) }
    }

    fn limits(&self, task: &Task<'_, C>) -> Limits {
        let Task { job, number, call, taken, .. } = *task;
        let since_start = |end: Instant| nanos(end.saturating_duration_since(self.shared.epoch));
        let cap_ns = taken.checked_add(call.wall_cap).map_or(u64::MAX, since_start);
        let deadline_ns = call.deadline.map_or(u64::MAX, since_start);
        Limits { job, call: number, cpu_limit_ns: nanos(call.cpu_limit), wall_end_ns: cap_ns.min(deadline_ns) }
    }
}

/// Why code did not come back.
#[derive(Clone, Copy, Debug)]
enum Broken {
    Trapped(RawTrap),
    /// With its worker process.
    Lost(Lost),
}

/// A call with its surroundings.
#[derive(Debug)]
struct Task<'a, C> {
    job: u64,
    /// Of the call, if it is one of a series; else 0.
    number: u64,
    call: &'a Call<C>,
    lanes: &'a Writables,
    place: &'a Place<C>,
    submitted: Instant,
    taken: Instant,
}

/// CPU time of calls, with few questions to the clock.
struct CpuMeter<'a> {
    seat: &'a Seat,
    /// The CPU time at `marked` of who runs calls there.
    mark: Duration,
    marked: Instant,
}

impl<'a> CpuMeter<'a> {
    fn new(seat: &'a Seat) -> CpuMeter<'a> {
        CpuMeter { seat, mark: seat.cpu(), marked: Instant::now() }
    }

    /// A call begins: asks the clock only if the last answer is too old to tell the call from what was before.
    fn begin(&mut self, now: Instant) {
        if now.saturating_duration_since(self.marked) >= CPU_RESOLUTION {
            self.set_mark(now);
        }
    }

    /// Wall and CPU time of the call that began at `taken`.
    fn end(&mut self, taken: Instant) -> (Duration, Duration) {
        let now = Instant::now();
        let wall = now - taken;
        if wall < CPU_RESOLUTION {
            return (wall, Duration::ZERO);
        }
        let before = self.mark;
        self.set_mark(now);
        (wall, self.mark.saturating_sub(before).min(wall))
    }

    fn set_mark(&mut self, now: Instant) {
        self.mark = self.seat.cpu();
        self.marked = now;
    }
}
