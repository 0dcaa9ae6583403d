//! Where an executor's calls run: on its own thread, or in its worker process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Executor, Obstacle, set_up};
use crate::exec::arch::{self, Registers};
use crate::exec::call::Callee;
use crate::exec::frame::Limits;
use crate::exec::pool::Shared;
use crate::exec::signals::ThreadSignals;
use crate::exec::trap::RawTrap;
use crate::exec::watchdog::{Victim, nanos};
use crate::exec::worker::{Hand, Lost, Turn, Watch, Worker};

/// For the first worker to run its first call.
const FIRST: Duration = Duration::from_secs(10);

impl<'a, C: Callee> Executor<'a, C> {
    /// Makes the calling thread able to have calls run. What it answers is undone when dropped, on the same thread.
    pub(super) fn settle_in(&self) -> Result<Option<ThreadSignals>, Obstacle> {
        if let Some(hand) = &self.hand {
            return self.prove(hand).map(|()| None);
        }
        let program = self.shared.filter.as_deref();
        self.slot.frame().filtered.store(program.is_some(), Ordering::Relaxed);
        let (signals, victim) = set_up(self.slot, program)?;
        self.seat.take(victim);
        Ok(Some(signals))
    }

    /// Has a worker run what is prepared.
    pub(super) fn hand_over(&self, hand: &Hand, callee: &C, limits: Limits) -> Result<Option<RawTrap>, Lost> {
        let (data, code_epoch) = (callee.data(), callee.code_epoch());
        let turn = Turn { data: &data, code_epoch, clears_registers: self.traces.take_registers() };
        hand.run(self.slot.frame(), &turn, &self.overseer(limits))
    }

    /// Has a worker run what does nothing.
    fn prove(&self, hand: &Hand) -> Result<(), Obstacle> {
        self.ready();
        let frame = self.slot.frame();
        frame.context.prepare(arch::nothing_address(), &Registers::none(self.slot.stack().end));
        let wall_end_ns = nanos(self.shared.epoch.elapsed() + FIRST);
        // A number that no job has, not even none.
        let limits = Limits { job: u64::MAX, call: 0, cpu_limit_ns: u64::MAX, wall_end_ns };
        frame.set_limits(limits);
        match hand.run(frame, &Turn::default(), &self.overseer(limits)) {
            Ok(None) => Ok(()),
            failed => {
                tracing::error!(?failed, "a worker process could not run what does nothing");
                Err(Obstacle::Worker)
            }
        }
    }

    /// Code of `tenant` is to run next: nothing of what others have left is there for it, and nobody's code sees it.
    pub(super) fn admit(&self, tenant: u64) {
        self.hand.iter().for_each(|hand| hand.serve(tenant));
        self.traces.remove_for(tenant, self.slot);
    }

    /// Before a call is prepared: whatever the one before left in shared memory does no harm.
    pub(super) fn ready(&self) {
        if let Some(hand) = &self.hand {
            hand.ready(self.slot.frame());
        }
    }

    /// The same, but what is allocated stays so.
    pub(super) fn ready_again(&self) {
        if let Some(hand) = &self.hand {
            hand.ready_again(self.slot.frame());
        }
    }

    pub(super) fn overseer(&self, limits: Limits) -> Overseer<'_, 'a, C> {
        Overseer { executor: self, limits, shared: self.shared }
    }
}

/// Knows when a call in a worker should have ended, by nothing that code can write.
pub(super) struct Overseer<'e, 'a, C: Callee> {
    executor: &'e Executor<'a, C>,
    limits: Limits,
    shared: &'a Shared<C>,
}

impl<C: Callee> Watch for Overseer<'_, '_, C> {
    fn is_over(&self, began: Duration) -> bool {
        let Limits { job, call, cpu_limit_ns, wall_end_ns } = self.limits;
        let cpu = self.cpu();
        nanos(self.shared.epoch.elapsed()) >= wall_end_ns
            || nanos(cpu.saturating_sub(began)) >= cpu_limit_ns
            || self.shared.queue.is_stopping()
            || self.executor.seat.is_cancelled(job, call)
    }

    fn cpu(&self) -> Duration {
        self.executor.seat.cpu()
    }

    fn changed(&self, worker: Option<&Arc<Worker>>) {
        self.executor.seat.exchange(worker.and_then(|worker| Victim::worker(worker).ok()));
    }
}
