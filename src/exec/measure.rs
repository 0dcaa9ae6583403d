//! What the guard alone costs: calls on the thread that asks, without a queue, limits of time or a clock. For the
//! bench; the daemon calls by a [`super::Pool`].

use std::fmt;
use std::marker::PhantomData;

use super::arch::Registers;
use super::call::Callee;
use super::refusal::Refusal;
use super::signals::{self, ThreadSignals};
use super::stack::{Slot, SlotSizes};
use super::start::StartError;

/// A function of two integers under the guard of this thread. Nothing stops it but itself.
pub struct Guarded<C> {
    callee: C,
    entry: u64,
    slot: Slot,
    _signals: ThreadSignals,
    /// Its signal set-up is this thread's.
    _stays: PhantomData<*const ()>,
}

impl<C: Callee> Guarded<C> {
    /// Maps a stack of `stack_bytes` and takes the signals of this thread over. All but those of faults stay blocked.
    ///
    /// # Errors
    /// [`StartError`].
    ///
    /// # Panics
    /// If `entry` is not in the callee's code.
    pub fn enter(callee: C, entry: u64, stack_bytes: usize) -> Result<Guarded<C>, StartError> {
        assert!(callee.code_range().contains(&entry), "{}", Refusal::Entry { entry });
        signals::install().map_err(StartError::Signals)?;
        let sizes = SlotSizes { guard_bytes: 64 << 20, stack_bytes, memory_bytes: 1 };
        let slot = Slot::claim(sizes).map_err(|error| StartError::Slot { executor: 0, error })?;
        let signals = ThreadSignals::enter(slot.alt_stack());
        let signals = signals.map_err(|errno| StartError::SetUp { executor: 0, errno })?;
        slot.frame().blocked_signals.store(signals.blocked, std::sync::atomic::Ordering::Relaxed);
        slot.frame().context.init();
        Ok(Guarded { callee, entry, slot, _signals: signals, _stays: PhantomData })
    }

    /// Calls; `None` if that trapped.
    pub fn call(&self, first: u64, second: u64) -> Option<u64> {
        let frame = self.slot.frame();
        let mut registers = Registers::none(self.slot.stack().end);
        registers.ints[..2].copy_from_slice(&[first, second]);
        frame.context.prepare(self.entry, &registers);
        frame.context.run();
        if frame.take_trap().is_some() {
            return None;
        }
        Some(frame.context.results().0)
    }

    /// What it calls into.
    pub fn callee(&self) -> &C {
        &self.callee
    }
}

impl<C> fmt::Debug for Guarded<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Guarded").field("entry", &self.entry).finish_non_exhaustive()
    }
}
