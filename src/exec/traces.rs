//! What calls of one tenant leave in a slot, gone before code of another tenant runs there.
//!
//! Between calls of one tenant only what was handed out is scrubbed: buffers, heap, the block of a thread. Stack, memory beyond
//! the heap, registers and what the kernel stored for signal handlers stay as they are until the tenant changes. Then,
//! and where code did not come back, what is likely dirty is overwritten, since those pages are needed at once: the top of the stack, and the call memory up to where it
//! was used. All the rest is given back to the system, which costs next to nothing where nothing was touched, so nobody has to
//! know how deep a stack was. Pages that come back are zeros.
//!
//! This keeps secrets from being found by accident or by a look around. It is no boundary: see the room's documentation.

use std::cell::Cell;

use super::memory::{Region, SCRUB_MAX_BYTES};
use super::registers;
use super::stack::{PAGE_BYTES, Slot};

/// Bytes at the top of the stack that are overwritten: most functions need no more.
const STACK_KEPT_BYTES: usize = 2 * PAGE_BYTES;

/// Whose calls have run in a slot, and what they have used.
#[derive(Debug)]
pub(super) struct Traces {
    tenant: Cell<Option<u64>>,
    /// Call memory was used up to here, at least since the tenant changed.
    used_end: Cell<usize>,
    /// Registers may hold what the next code must not see.
    in_registers: Cell<bool>,
    /// The thread does other work in between, for anybody.
    is_shared: bool,
}

impl Traces {
    /// Nothing has run in the slot. `is_shared`: its thread does other work between two calls.
    pub(super) fn none(is_shared: bool) -> Traces {
        Traces { tenant: Cell::new(None), used_end: Cell::new(0), in_registers: Cell::new(true), is_shared }
    }

    /// Code of `tenant` is to run next: removes what others have left in the slot's memory.
    pub(super) fn remove_for(&self, tenant: u64, slot: &Slot) {
        if self.is_shared {
            self.in_registers.set(true);
        }
        let before = self.tenant.replace(Some(tenant));
        if before == Some(tenant) {
            return;
        }
        self.in_registers.set(true);
        if before.is_some() {
            self.scrub(slot);
        }
    }

    /// Right before code runs: removes what is left in registers.
    pub(super) fn remove_from_registers(&self) {
        if self.take_registers() {
            registers::clear();
        }
    }

    /// Whether that is to be done, by whoever is asked to run the code instead.
    pub(super) fn take_registers(&self) -> bool {
        self.in_registers.replace(false)
    }

    /// A call has used its memory up to here.
    pub(super) fn used(&self, end: usize) {
        self.used_end.set(self.used_end.get().max(end));
    }

    /// Leaves zeros in all memory of the slot that code has, whatever it touched.
    pub(super) fn clear(&self, slot: &Slot) {
        let (stack, memory) = (slot.stack(), slot.memory());
        let kept = stack.end - STACK_KEPT_BYTES.min(stack.len());
        Region::of_stack(slot).scrub_from(kept);
        slot.give_back(stack.start..kept);
        let used_bytes = self.used_end.take().clamp(memory.start, memory.end) - memory.start;
        let kept_bytes = if used_bytes > SCRUB_MAX_BYTES { 0 } else { used_bytes.next_multiple_of(PAGE_BYTES) };
        let kept = memory.start + kept_bytes;
        Region::of_slot(slot).scrub(kept);
        slot.give_back_above(kept);
    }

    fn scrub(&self, slot: &Slot) {
        self.clear(slot);
        let frame = slot.frame();
        frame.forget();
        if frame.take_signals() > 0 {
            slot.give_back(slot.alt_stack());
        }
    }
}
