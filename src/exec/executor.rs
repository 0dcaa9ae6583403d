//! One executor: a thread that runs calls, one after the other.

mod initialise;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use libc::sock_filter;
use nix::errno::Errno;

use super::call::{Call, Callee, Done, Outcome, Scalar};
use super::confine::{FilterError, confine};
use super::errno;
use super::frame::Limits;
use super::memory::{Placed, Region};
use super::pool::{Job, Shared};
use super::schedule::Entry;
use super::signals::ThreadSignals;
use super::stack::{Slot, give_back};
use super::stuck::Given;
use super::thread::Block;
use super::traces::Traces;
use super::trap::{RawTrap, TrapKind};
use super::watchdog::{Victim, nanos};
use super::writable::Writables;

/// Shorter times are not measured by the CPU clock, which costs a system call.
pub(super) const CPU_RESOLUTION: Duration = Duration::from_micros(20);

/// The body of an executor thread, in a prepared seat that nobody sits in. Tells by `started` whether it could be set up,
/// and ends if that says so.
pub(super) fn run<C: Callee>(shared: &Shared<C>, index: usize, started: impl FnOnce(Result<(), Obstacle>) -> bool) {
    let _abort = AbortOnPanic;
    let seat = shared.seats.executor(index);
    let Some(slot) = seat.slot() else { return debug_assert!(false, "an executor has a prepared seat") };
    clean(slot);
    slot.frame().filtered.store(shared.filter.is_some(), Ordering::Relaxed);
    let (signals, victim) = match set_up(slot, shared.filter.as_deref()) {
        Ok(set_up) => set_up,
        Err(obstacle) => {
            started(Err(obstacle));
            return;
        }
    };
    seat.take(victim);
    shared.queue.register(index);
    if !started(Ok(())) {
        return;
    }
    // Ends in a zero, as the C library's own: no string goes over it.
    let canary = RandomState::new().hash_one(index) << 8;
    let traces = Traces::none(false);
    let executor = Executor::new(shared, slot, victim, canary, &traces);
    let mut cpu = CpuMeter::new(victim);
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
    [slot.stack(), slot.memory(), slot.thread(), slot.alt_stack()].into_iter().for_each(give_back);
    slot.frame().forget();
}

/// Makes the calling thread one that code can run on, in this slot. The filter of system calls comes last: it is there
/// for good, and what the rest needs may not be among what it allows.
pub(super) fn set_up(slot: &Slot, filter: Option<&[sock_filter]>) -> Result<(ThreadSignals, Victim), Obstacle> {
    let signals = ThreadSignals::enter(slot.alt_stack()).map_err(Obstacle::Signals)?;
    let victim = Victim::current().map_err(Obstacle::Signals)?;
    slot.frame().blocked_signals.store(signals.blocked, Ordering::Relaxed);
    slot.frame().context.init(slot.stack().end);
    if let Some(program) = filter {
        confine(program).map_err(Obstacle::Filter)?;
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
    victim: Victim,
    /// Of calls that have a thread of their own.
    canary: u64,
    traces: &'a Traces,
}

impl<'a, C: Callee> Executor<'a, C> {
    /// The calling thread, `victim`, which was [`set_up`] in this slot.
    pub(super) fn new(
        shared: &'a Shared<C>,
        slot: &'a Slot,
        victim: Victim,
        canary: u64,
        traces: &'a Traces,
    ) -> Executor<'a, C> {
        Executor { shared, slot, region: Region::of_slot(slot), victim, canary, traces }
    }

    /// Runs a call and answers it. False if it was given up meanwhile: then this thread has no place any more.
    fn serve(&self, index: usize, entry: Entry<Job<C>>, taken: Instant, cpu: &mut CpuMeter) -> bool {
        let Entry { id, lanes, job: Job { call, sender, submitted }, .. } = entry;
        let unwanted = self.slot.frame().is_cancelled(id) || sender.is_closed();
        let call = Arc::new(call);
        let given = Given { id, call: Arc::clone(&call), sender, submitted, taken };
        self.shared.given[index].put(given);
        let late = call.deadline.is_some_and(|deadline| deadline <= taken);
        let mut done = Done {
            outcome: Outcome::Cancelled,
            queued: taken.saturating_duration_since(submitted),
            wall: Duration::ZERO,
            cpu: Duration::ZERO,
        };
        let mut faulted = false;
        if late {
            done.outcome = Outcome::DeadlineBeforeStart;
        } else if !unwanted {
            cpu.begin(taken);
            let limits = self.limits(id, &call, taken);
            done.outcome = self.initialise(&call, &lanes, limits).unwrap_or_else(|| self.run(&call, limits));
            faulted = !matches!(done.outcome, Outcome::Returned { .. });
            (done.wall, done.cpu) = cpu.end(taken);
            if lanes.is_empty() {
                self.shared.paces.note(call.entry, (!faulted).then_some(done.wall));
            }
        }
        let Some(Given { call: shared_call, sender, .. }) = self.shared.given[index].take() else {
            self.end_late(&call, &lanes);
            return false;
        };
        drop(shared_call);
        self.shared.note_trap(&call, &done.outcome);
        self.shared.counters.count(&done.outcome);
        if !lanes.is_empty() {
            self.shared.queue.settle(&lanes, faulted, |id| call.callee.restore(id));
        }
        // Before the answer: a caller that has it finds nothing of the call left.
        drop(call);
        // An error means that the caller has gone.
        let _ = sender.send(done);
        true
    }

    /// A call that was given up has ended after all.
    fn end_late(&self, call: &Call<C>, lanes: &Writables) {
        if !lanes.is_empty() {
            self.shared.queue.found(lanes);
            self.shared.queue.settle(lanes, true, |id| call.callee.restore(id));
        }
    }

    /// Runs the code. An outcome other than `Returned` means that it began and did not end by itself.
    pub(super) fn run(&self, call: &Call<C>, limits: Limits) -> Outcome {
        self.traces.remove_for(call.callee.tenant(), self.slot);
        let frame = self.slot.frame();
        let placed = Placed::new(&self.region, &call.args);
        frame.heap.reset(placed.end, self.region.range().end);
        frame.context.prepare(call.entry, &placed.registers);
        frame.set_limits(limits);
        let block = self.enter(&call.callee);
        self.traces.used(frame.heap.used_end());
        let Some(raw) = frame.take_trap() else {
            let (int, vector) = frame.context.results();
            let value = Scalar::from_registers(call.result, int, vector);
            let buffers = placed.collect(&self.region);
            self.region.scrub(frame.heap.used_end());
            block.iter().for_each(Block::scrub);
            return Outcome::Returned { value, buffers };
        };
        self.ended(limits.job, &raw)
    }

    /// Runs what is prepared, in a thread of its own where the callee needs one, which is to be scrubbed after code that
    /// came back.
    fn enter(&self, callee: &C) -> Option<Block> {
        let context = &self.slot.frame().context;
        let block = callee.thread().map(|thread| Block::make(self.slot, &thread, self.canary));
        match &block {
            None => {
                self.traces.remove_from_registers();
                context.run();
            }
            Some(block) => {
                context.lend_thread(block.pointer as u64, block.errno as u64);
                let errno = errno::get();
                self.traces.remove_from_registers();
                context.run();
                errno::set(errno);
            }
        }
        block
    }

    /// The outcome of code that did not come back.
    fn ended(&self, id: u64, raw: &RawTrap) -> Outcome {
        let frame = self.slot.frame();
        // What such code touched is not known.
        give_back(self.region.range());
        give_back(self.slot.stack());
        give_back(self.slot.thread());
        self.traces.given_back();
        let guard = self.slot.guard();
        let trap = raw.interpret(&(guard.start as u64..guard.end as u64));
        let unwanted = trap.kind == TrapKind::Timeout && (frame.is_cancelled(id) || self.shared.queue.is_stopping());
        if unwanted { Outcome::Cancelled } else { Outcome::Trap(trap) }
    }

    fn limits(&self, job: u64, call: &Call<C>, taken: Instant) -> Limits {
        let since_start = |end: Instant| nanos(end.saturating_duration_since(self.shared.epoch));
        let cap_ns = taken.checked_add(call.wall_cap).map_or(u64::MAX, since_start);
        let deadline_ns = call.deadline.map_or(u64::MAX, since_start);
        Limits { job, cpu_limit_ns: nanos(call.cpu_limit), wall_end_ns: cap_ns.min(deadline_ns) }
    }
}

/// CPU time of calls, with few questions to the clock.
struct CpuMeter {
    victim: Victim,
    /// The thread's CPU time at `marked`.
    mark: Duration,
    marked: Instant,
}

impl CpuMeter {
    fn new(victim: Victim) -> CpuMeter {
        CpuMeter { victim, mark: victim.cpu().unwrap_or_default(), marked: Instant::now() }
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
        self.mark = self.victim.cpu().unwrap_or(self.mark);
        self.marked = now;
    }
}
