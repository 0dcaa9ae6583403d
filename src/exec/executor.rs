//! One executor: a thread that runs calls, one after the other.

mod initialise;
mod many;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use tokio::sync::oneshot;

use super::batch::BatchDone;
use super::call::{Arg, Call, Callee, Done, Outcome, Scalar};
use super::confine::FilterError;
use super::errno;
use super::frame::Limits;
use super::memory::{Placed, Region};
use super::pool::{Job, Shared, Work};
use super::schedule::Entry;
use super::signals::ThreadSignals;
use super::stack::{Slot, give_back};
use super::thread::Block;
use super::ticket::Answer as _;
use super::trap::{RawTrap, Trap, TrapKind};
use super::watchdog::{Victim, nanos};
use super::writable::Writables;
use crate::confine::install;

/// Shorter times are not measured by the CPU clock, which costs a system call.
const CPU_RESOLUTION: Duration = Duration::from_micros(20);

/// The body of an executor thread. Tells by `started` whether it could be set up.
pub(super) fn run<C: Callee>(shared: &Shared<C>, index: usize, started: &SyncSender<Result<(), Obstacle>>) {
    let _abort = AbortOnPanic;
    let slot = &shared.slots[index];
    let (_signals, victim) = match set_up(shared, slot) {
        Ok(set_up) => set_up,
        Err(obstacle) => return started.send(Err(obstacle)).unwrap_or_default(),
    };
    let known = OnceLock::set(&shared.victims[index], victim);
    debug_assert!(known.is_ok(), "executor {index} starts once");
    if started.send(Ok(())).is_err() {
        return;
    }
    // Ends in a zero, as the C library's own: no string goes over it.
    let canary = RandomState::new().hash_one(index) << 8;
    let mut executor = Executor { shared, slot, region: Region::of_slot(slot), cpu: CpuMeter::new(victim), canary };
    while let Some(entry) = shared.queue.next(index) {
        executor.serve(entry);
    }
}

/// Makes the calling thread one that code can run on. The filter of system calls comes last: it is there for good, and
/// what the rest needs is not among what it allows.
fn set_up<C>(shared: &Shared<C>, slot: &Slot) -> Result<(ThreadSignals, Victim), Obstacle> {
    let signals = ThreadSignals::enter(slot.alt_stack()).map_err(Obstacle::Signals)?;
    let victim = Victim::current().map_err(Obstacle::Signals)?;
    slot.frame().blocked_signals.store(signals.blocked, Ordering::Relaxed);
    slot.frame().context.init(slot.stack().end);
    if let Some(program) = &shared.filter {
        install(program).map_err(|error| Obstacle::Filter(error.into()))?;
        slot.frame().filtered.store(true, Ordering::Relaxed);
    }
    Ok((signals, victim))
}

/// What keeps a thread from being an executor.
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

struct Executor<'a, C: Callee> {
    shared: &'a Shared<C>,
    slot: &'a Slot,
    region: Region,
    cpu: CpuMeter,
    /// Of calls that have a thread of their own.
    canary: u64,
}

impl<C: Callee> Executor<'_, C> {
    fn serve(&mut self, entry: Entry<Job<C>>) {
        let Entry { id, lanes, job: Job { work, submitted } } = entry;
        let whose = Whose { job: id, call: 0 };
        match work {
            Work::Call(call, sender) => {
                let task = Task { whose, call: &call, lanes: &lanes, submitted };
                let (done, faulted) = self.attempt(&task, &sender, |it, taken| it.run(&task, &call.args, taken));
                self.settle(&lanes, faulted, &call.callee);
                // Before the answer: a caller that has it finds nothing of the call left.
                drop(call);
                // An error means that the caller has gone.
                let _ = sender.send(done);
            }
            Work::Batch(call, batch, sender) => {
                let task = Task { whose, call: &call, lanes: &lanes, submitted };
                let (mut rows, mut results) = (0, Bytes::new());
                let (done, faulted) = self.attempt(&task, &sender, |it, taken| {
                    let (outcome, (done_rows, stored)) = it.run_rows(&task, &batch, taken);
                    (rows, results) = (done_rows, stored);
                    outcome
                });
                self.settle(&lanes, faulted, &call.callee);
                drop((call, batch));
                let _ = sender.send(BatchDone { done, rows, results });
            }
            Work::Series(call, series, sender) => {
                let task = Task { whose, call: &call, lanes: &lanes, submitted };
                let faulted = self.run_series(&task, &series, &sender);
                self.settle(&lanes, faulted, &call.callee);
                drop((call, series));
                let _ = sender.send(());
            }
        }
    }

    /// Runs a call, unless nobody wants it any more: `run` is all of it behind what must run before the first one. True:
    /// it began, and did not end by itself.
    fn attempt<T>(
        &mut self,
        task: &Task<'_, C>,
        sender: &oneshot::Sender<T>,
        run: impl FnOnce(&Self, Instant) -> Outcome,
    ) -> (Done, bool) {
        let taken = Instant::now();
        let Task { whose, call, submitted, .. } = *task;
        let late = call.deadline.is_some_and(|deadline| deadline <= taken);
        let mut done = Done { queued: taken - submitted, ..Done::cancelled() };
        let mut faulted = false;
        if late {
            done.outcome = Outcome::DeadlineBeforeStart;
        } else if sender.is_closed() {
            done.outcome = Outcome::Cancelled;
        } else if self.slot.frame().is_cancelled(whose.job, whose.call) {
            done.outcome = Outcome::Trap(Trap::before_start(call.entry));
        } else {
            self.cpu.begin(taken);
            done.outcome = self.initialise(task, taken).unwrap_or_else(|| run(self, taken));
            faulted = !matches!(done.outcome, Outcome::Returned { .. });
            if matches!(done.outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Cancelled) && sender.is_closed() {
                done.outcome = Outcome::Cancelled;
            }
            (done.wall, done.cpu) = self.cpu.end(taken);
        }
        self.shared.counters.count(&done.outcome);
        (done, faulted)
    }

    fn settle(&self, lanes: &Writables, faulted: bool, callee: &C) {
        if !lanes.is_empty() {
            self.shared.queue.settle(lanes, faulted, |id| callee.restore(id));
        }
    }

    /// Runs the code. An outcome other than `Returned` means that it began and did not end by itself.
    fn run(&self, task: &Task<'_, C>, args: &[Arg], taken: Instant) -> Outcome {
        let frame = self.slot.frame();
        let placed = Placed::new(&self.region, &Region::of_stack(self.slot), args);
        frame.heap.reset(placed.end, self.region.range().end);
        frame.context.prepare(task.call.entry, &placed.registers);
        frame.set_limits(self.limits(task, taken));
        let block = self.enter(&task.call.callee);
        let Some(raw) = frame.take_trap() else {
            let (int, vector) = frame.context.results();
            let value = Scalar::from_registers(task.call.result, int, vector);
            let buffers = placed.collect(&self.region);
            self.region.scrub(frame.heap.used_end());
            block.iter().for_each(Block::scrub);
            return Outcome::Returned { value, buffers };
        };
        self.ended(task.whose, &raw)
    }

    /// Runs what is prepared, in a thread of its own where the callee needs one, which is to be scrubbed after code that
    /// came back.
    fn enter(&self, callee: &C) -> Option<Block> {
        let context = &self.slot.frame().context;
        let block = callee.thread().map(|thread| Block::make(self.slot, &thread, self.canary));
        match &block {
            None => context.run(),
            Some(block) => {
                context.lend_thread(block.pointer as u64, block.errno as u64);
                let errno = errno::get();
                context.run();
                errno::set(errno);
            }
        }
        block
    }

    /// The outcome of code that did not come back.
    fn ended(&self, whose: Whose, raw: &RawTrap) -> Outcome {
        let frame = self.slot.frame();
        // What such code touched is not known.
        give_back(self.region.range());
        give_back(self.slot.stack());
        give_back(self.slot.thread());
        let guard = self.slot.guard();
        let trap = raw.interpret(&(guard.start as u64..guard.end as u64));
        if trap.kind != TrapKind::Timeout {
            return Outcome::Trap(trap);
        }
        if frame.is_cancelled(whose.job, whose.call) {
            return Outcome::Trap(Trap { kind: TrapKind::Cancelled, ..trap });
        }
        if self.shared.queue.is_stopping() { Outcome::Cancelled } else { Outcome::Trap(trap) }
    }

    fn limits(&self, task: &Task<'_, C>, taken: Instant) -> Limits {
        let Whose { job, call } = task.whose;
        let since_start = |end: Instant| nanos(end.saturating_duration_since(self.shared.epoch));
        let cap_ns = taken.checked_add(task.call.wall_cap).map_or(u64::MAX, since_start);
        let deadline_ns = task.call.deadline.map_or(u64::MAX, since_start);
        Limits { job, call, cpu_limit_ns: nanos(task.call.cpu_limit), wall_end_ns: cap_ns.min(deadline_ns) }
    }
}

/// What a cancel names: the job, and its call if it is one of a series, else 0.
#[derive(Clone, Copy, Debug)]
struct Whose {
    job: u64,
    call: u64,
}

/// A call with its surroundings.
#[derive(Debug)]
struct Task<'a, C> {
    whose: Whose,
    call: &'a Call<C>,
    lanes: &'a Writables,
    submitted: Instant,
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
