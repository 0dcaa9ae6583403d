//! What must run before the first call of an entry, and whether it has.

use std::sync::{
    PoisonError,
    atomic::{AtomicBool, Ordering},
};

use super::{Pinned, entry::Entry};
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
    /// Whether something must run before the first call and has not: of the entry, or of what it is linked against.
    pub fn is_pending(&self) -> bool {
        self.touched().any(|entry| entry.meta.startup.is_pending())
    }

    /// The function `index` that must run now: its address, and that of the slot for what it returns. `None` behind the last
    /// of one entry, which is to be kept then ([`Pinned::keep_data`]); others may follow.
    pub fn step(&self, index: usize) -> Option<(u64, Option<u64>)> {
        let entry = self.first_pending()?;
        let (function_bytes, slot_bytes) = entry.meta.startup.step(index)?;
        let at = entry.addresses();
        Some((at.code + function_bytes, slot_bytes.map(|bytes| at.rodata + bytes)))
    }

    /// Stores what the resolver of a slot has returned. No call of the entry may be running. False if the system does
    /// not let it be written.
    pub fn write_slot(&self, slot: u64, address: u64) -> bool {
        let write = |entry: &Entry| {
            let offset_bytes = slot.checked_sub(entry.addresses().rodata)?;
            Some(entry.published.write_rodata_word(offset_bytes, address).is_ok())
        };
        self.first_pending().and_then(write).unwrap_or(false)
    }

    /// All that must run now has run: from now on the entry's data is restored to what it is now. No call may be running
    /// that touches it.
    pub fn keep_data(&self) {
        let Some(entry) = self.first_pending() else { return };
        let mut initial = entry.data_initial.lock().unwrap_or_else(PoisonError::into_inner);
        entry.published.read_data(&mut initial);
        drop(initial);
        entry.meta.startup.finish();
    }

    /// What the entry is linked against comes before it, and is done with before it begins: so what its initialisers do to
    /// the data of others is not part of what those are restored to, whoever calls first. Each that waits has a lane, which
    /// calls take one by one.
    fn first_pending(&self) -> Option<&Entry> {
        self.touched().rev().find(|entry| entry.meta.startup.is_pending())
    }
}
