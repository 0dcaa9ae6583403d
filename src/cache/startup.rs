//! What must run before the first call of an entry, and whether it has.

use std::sync::{
    PoisonError,
    atomic::{AtomicBool, Ordering},
};

use super::Pinned;
use crate::code;

/// Functions that run once before the first call: resolvers, then initialisers.
#[derive(Debug)]
pub struct Startup {
    list: code::Startup,
    done: AtomicBool,
}

impl Startup {
    pub(super) fn new(list: code::Startup) -> Self {
        Self { done: AtomicBool::new(list.is_empty()), list }
    }

    /// Whether there is something that has not run.
    pub fn is_pending(&self) -> bool {
        // Acquire pairs with the Release of `finish`: who finds it done finds the slots and the data written.
        !self.done.load(Ordering::Acquire)
    }

    /// How many functions have not run.
    pub fn waiting(&self) -> u64 {
        if self.is_pending() { self.list.len() as u64 } else { 0 }
    }

    /// The function `index`, by bytes from the start of the code, and the slot for what it returns, by bytes from the
    /// start of the read-only data. `None` behind the last.
    pub fn step(&self, index: usize) -> Option<(u64, Option<u64>)> {
        let resolvers = &self.list.resolvers;
        match resolvers.get(index) {
            Some(resolver) => Some((resolver.function_offset_bytes, Some(resolver.slot_offset_bytes))),
            None => self.list.initialisers.get(index - resolvers.len()).map(|&offset_bytes| (offset_bytes, None)),
        }
    }

    fn finish(&self) {
        self.done.store(true, Ordering::Release);
    }
}

impl Pinned {
    /// Stores what the resolver of a slot has returned. No call of the entry may be running. False if the system does
    /// not let it be written.
    pub fn write_slot(&self, slot_offset_bytes: u64, address: u64) -> bool {
        self.entry.published.write_rodata_word(slot_offset_bytes, address).is_ok()
    }

    /// All that must run before the first call has run: from now on the data is restored to what it is now. No call of
    /// the entry may be running.
    pub fn keep_data(&self) {
        let mut initial = self.entry.data_initial.lock().unwrap_or_else(PoisonError::into_inner);
        self.entry.published.read_data(&mut initial);
        drop(initial);
        self.entry.meta.startup.finish();
    }
}
