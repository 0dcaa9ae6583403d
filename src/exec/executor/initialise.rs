//! What must run before the first call of a callee: run by the call that comes first, on its executor, under its guard.
//!
//! While it waits a callee's calls go through a serial lane ([`Callee::writable`]), so one executor alone is here for it
//! and the others wait without an executor. What fails is the outcome of the call that came first; then the data is
//! restored like after any trap, and the next call begins anew.
//!
//! The steps share the call's memory, which is empty before and after: what a step allocates it must free, since it is
//! gone when the list has ended, and a variable that points to it would be worse than a trap.

use std::time::Duration;

use super::Executor;
use crate::exec::arch::Registers;
use crate::exec::call::{Call, Callee, Outcome, Step};
use crate::exec::frame::Limits;
use crate::exec::signals::STOP_SIGNAL;
use crate::exec::thread::Block;
use crate::exec::trap::{Trap, TrapKind, TrapStage};
use crate::exec::watchdog::nanos;
use crate::exec::writable::Writables;

impl<C: Callee> Executor<'_, C> {
    /// Runs what must run before the first call. `None`: there is nothing, or nothing more.
    pub(super) fn initialise(&self, call: &Call<C>, lanes: &Writables, whole: Limits) -> Option<Outcome> {
        if !call.callee.is_pending() {
            return None;
        }
        self.admit(call.callee.tenant());
        let frame = self.slot.frame();
        self.ready();
        let memory = self.region.range();
        frame.heap.reset(memory.start, memory.end);
        let began = self.seat.cpu();
        while call.callee.is_pending() {
            for step in (0..).map_while(|index| call.callee.step(index)) {
                let used = self.seat.cpu().saturating_sub(began);
                if let Err(outcome) = self.step(&call.callee, step, left(whole, used)) {
                    return Some(outcome);
                }
            }
            call.callee.initialised();
        }
        self.region.scrub(frame.heap.used_end());
        // Calls that came before may now overlap, if they may at all.
        let (shared, held) = (self.shared.lanes(&call.callee), lanes.iter());
        let is_serial = |id: u64| shared.iter().any(|it| it.id == id && !it.reentrant);
        let open: Vec<u64> = held.filter(|it| !it.reentrant && !is_serial(it.id)).map(|it| it.id).collect();
        self.shared.queue.open(&open);
        None
    }

    fn step(&self, callee: &C, step: Step, limits: Limits) -> Result<(), Outcome> {
        let frame = self.slot.frame();
        let stopped =
            |kind, signal, stage| Trap { kind, pc: step.entry, signal, stage, ..Trap::before_start(step.entry) };
        // Steps that are shorter than a tick each could else go on for ever.
        let wall_ended = nanos(self.shared.epoch.elapsed()) >= limits.wall_end_ns;
        if self.seat.is_cancelled(limits.job, limits.call) {
            return Err(Outcome::Trap(stopped(TrapKind::Cancelled, 0, TrapStage::Initialiser)));
        }
        if self.shared.queue.is_stopping() {
            return Err(Outcome::Cancelled);
        }
        if wall_ended || limits.cpu_limit_ns == 0 {
            return Err(Outcome::Trap(stopped(TrapKind::Timeout, STOP_SIGNAL, TrapStage::Initialiser)));
        }
        self.ready_again();
        frame.context.prepare(step.entry, &Registers::none(self.slot.stack().end));
        let block = match self.enter(callee, limits) {
            Ok(block) => block,
            Err(broken) => {
                return Err(match self.ended(step.entry, limits, &broken) {
                    Outcome::Trap(trap) => Outcome::Trap(Trap { stage: TrapStage::Initialiser, ..trap }),
                    other => other,
                });
            }
        };
        block.iter().for_each(Block::scrub);
        if frame.heap.live() > 0 {
            self.region.scrub(frame.heap.used_end());
            return Err(Outcome::Trap(stopped(TrapKind::Abort, libc::SIGILL, TrapStage::KeptMemory)));
        }
        let (address, _) = frame.context.results();
        match step.slot {
            Some(slot) if !callee.resolve(slot, address) => {
                Err(Outcome::Trap(stopped(TrapKind::Bus, libc::SIGBUS, TrapStage::Initialiser)))
            }
            _ => Ok(()),
        }
    }
}

/// What is left of the limits for all steps together after `used` CPU time.
fn left(whole: Limits, used: Duration) -> Limits {
    Limits { cpu_limit_ns: whole.cpu_limit_ns.saturating_sub(nanos(used)), ..whole }
}
