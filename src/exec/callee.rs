//! What a call runs in: a pinned entry of the cache.

use std::ops::Range;

use super::{Callee, Writable};
use crate::cache::Pinned;

impl Callee for Pinned {
    fn code_range(&self) -> Range<u64> {
        Pinned::code_range(self)
    }

    fn writable(&self) -> Option<Writable> {
        // A handle names one residency, and so one copy of the data.
        self.has_data().then(|| Writable { id: self.handle().to_bits(), reentrant: self.meta().reentrant })
    }

    fn restore(&self) {
        self.restore_data();
    }
}
