//! What a call runs in: a pinned entry of the cache.

use std::ops::Range;

use super::{Callee, Step, Writable};
use crate::cache::Pinned;

impl Callee for Pinned {
    fn code_range(&self) -> Range<u64> {
        Pinned::code_range(self)
    }

    fn writable(&self) -> Option<Writable> {
        // A handle names one residency, and so one copy of the data.
        // What must run before the first call runs once, whether it writes data or not.
        let is_pending = self.is_pending();
        let reentrant = self.meta().reentrant && !is_pending;
        (self.has_data() || is_pending).then(|| Writable { id: self.handle().to_bits(), reentrant })
    }

    fn restore(&self) {
        self.restore_data();
    }

    fn is_pending(&self) -> bool {
        self.meta().startup.is_pending()
    }

    fn step(&self, index: usize) -> Option<Step> {
        let (function_offset_bytes, slot) = self.meta().startup.step(index)?;
        Some(Step { entry: Pinned::code_range(self).start + function_offset_bytes, slot })
    }

    fn resolve(&self, slot: u64, address: u64) -> bool {
        self.write_slot(slot, address)
    }

    fn initialised(&self) {
        self.keep_data();
    }
}
