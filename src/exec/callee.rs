//! What a call runs in: a pinned entry of the cache.

use std::ops::Range;

use super::{Callee, Thread, Writable};
use crate::cache::Pinned;

impl Callee for Pinned {
    fn code_range(&self) -> Range<u64> {
        Pinned::code_range(self)
    }

    fn writable(&self) -> Option<Writable> {
        // A handle names one residency, and so one copy of the data.
        self.has_data().then(|| Writable { id: self.handle().to_bits(), reentrant: self.meta().reentrant })
    }

    fn thread(&self) -> Option<Thread> {
        let thread = self.meta().thread?;
        Some(Thread {
            template: self.rodata_start() + thread.template_offset_bytes,
            template_bytes: thread.template_bytes as usize,
            size_bytes: thread.size_bytes as usize,
            align_bytes: thread.align_bytes as usize,
            errno_offset: thread.errno_offset as isize,
        })
    }

    fn restore(&self) {
        self.restore_data();
    }
}
