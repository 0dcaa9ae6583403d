//! A resident image and those who keep it.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{
    Exports, Name,
    ledger::Charge,
    lru::{Handle, slot_bytes},
};
use crate::{
    arena::Published,
    code::{Addresses, Image, Listing, Sizes, Symbol, Thread},
};

/// What is known of an entry without holding on to its memory.
#[derive(Debug)]
pub struct Meta {
    /// Namespace and key.
    pub name: Name,
    /// BLAKE3 of the blob.
    pub digest: [u8; 32],
    /// Digest of everything in the install that decides what the entry does.
    pub(super) identity: [u8; 32],
    /// Bytes of code, read-only data and data.
    pub sizes: Sizes,
    /// What is made anew in the thread that runs it, for each call.
    pub thread: Option<Thread>,
    /// Symbols.
    pub exports: Exports,
    /// Calls may overlap although the entry has writable data.
    pub reentrant: bool,
    /// When it became resident.
    pub installed_at: Instant,
    pub(super) calls: AtomicU64,
}

impl Meta {
    /// Counts a call that was taken.
    pub fn count_call(&self) {
        self.calls.fetch_add(1, Relaxed);
    }

    /// Bytes of heap that an entry with this takes, beside its spans: what is charged as metadata.
    pub(super) fn charge_bytes(name: &Name, image: &Image) -> u64 {
        /// Two reference counts in front of each shared value, and the allocator's rounding of five blocks.
        const ALLOCATIONS_BYTES: u64 = 2 * 16 + 5 * 16;
        /// A key and a handle in a B-tree whose nodes are at least half full.
        const INDEX_BYTES: u64 = 2 * 24;
        let own_bytes = (size_of::<Entry>() + size_of::<Meta>()) as u64 + slot_bytes::<Resident>();
        let name_bytes = name.as_bytes().len() as u64;
        let exports_bytes = Exports::heap_bytes(image.symbols(), image.functions());
        own_bytes + ALLOCATIONS_BYTES + INDEX_BYTES + name_bytes + exports_bytes + image.data_init_bytes()
    }
}

/// Runs what it holds when it is dropped.
#[derive(Default)]
pub(super) struct AtDrop(Mutex<Option<OnFreed>>);

/// Called once, when the memory of an evicted entry has come back. Must not block: any thread may call it.
pub type OnFreed = Box<dyn FnOnce() + Send>;

impl AtDrop {
    fn set(&self, call: OnFreed) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
    }
}

impl Drop for AtDrop {
    fn drop(&mut self) {
        if let Some(call) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            call();
        }
    }
}

/// A resident image. The fields drop in this order: memory goes back before its bytes are free to charge again,
/// and both before anybody is told.
pub(super) struct Entry {
    pub(super) published: Published,
    /// Writable data as it was after linking, without the zeroes at the end.
    pub(super) data_initial: Box<[u8]>,
    pub(super) meta: Arc<Meta>,
    pub(super) charge: Charge,
    pub(super) freed: AtDrop,
}

impl Entry {
    pub(super) fn on_freed(&self, call: OnFreed) {
        self.freed.set(call);
    }
}

/// An entry with what the index knows of it.
pub(super) struct Resident {
    pub(super) entry: Arc<Entry>,
    pub(super) last_used: Instant,
    pub(super) used: bool,
}

impl Resident {
    /// Whether nobody but the index holds the entry. True only under the cache lock, where alone pins are made.
    pub(super) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.entry) == 1
    }

    pub(super) fn view(&self, handle: Handle) -> View {
        View {
            handle,
            meta: Arc::clone(&self.entry.meta),
            charged_bytes: self.entry.charge.amount().total_bytes(),
            calls: self.entry.meta.calls.load(Relaxed),
            pins: Arc::strong_count(&self.entry) - 1,
            last_used: self.last_used,
        }
    }
}

/// What an entry was like when it was looked at. Keeps no memory of it resident.
#[derive(Debug, Clone)]
pub struct View {
    /// Names this residency.
    pub handle: Handle,
    /// What is known of it.
    pub meta: Arc<Meta>,
    /// Bytes that count against the budget.
    pub charged_bytes: u64,
    /// Calls since the install.
    pub calls: u64,
    /// Calls that ran or waited.
    pub pins: usize,
    /// When it was last found or called.
    pub last_used: Instant,
}

/// Keeps an entry's memory where it is for as long as it lives, evicted or not.
pub struct Pinned {
    pub(super) entry: Arc<Entry>,
    pub(super) handle: Handle,
}

impl Pinned {
    /// What is known of the entry.
    pub fn meta(&self) -> &Arc<Meta> {
        &self.entry.meta
    }

    /// Names this residency.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// Run addresses of the code.
    pub fn code_range(&self) -> Range<u64> {
        self.entry.published.code_range()
    }

    /// Run address of the read-only data.
    pub fn rodata_start(&self) -> u64 {
        self.entry.published.addresses().rodata
    }

    /// A copy of the code from this offset on, `max_bytes` or as many as there are.
    pub fn read_code(&self, offset_bytes: u64, max_bytes: u64) -> Vec<u8> {
        self.entry.published.read_code_at(offset_bytes, max_bytes)
    }

    /// What names the code's addresses.
    pub fn listing(&self) -> Listing<'_> {
        let (at, meta) = (self.entry.published.addresses(), &self.entry.meta);
        let at = Addresses { code: at.code, rodata: at.rodata, data: at.data };
        Listing::new(at, meta.sizes.code.size_bytes, meta.exports.functions(), meta.exports.symbols())
    }

    /// Run address of a function.
    pub fn function(&self, name: &str) -> Option<u64> {
        let symbol: &Symbol = self.entry.meta.exports.function(name)?;
        Some(self.code_range().start + symbol.offset_bytes)
    }

    /// Whether calls share writable data.
    pub fn has_data(&self) -> bool {
        self.entry.meta.sizes.data.size_bytes > 0
    }

    /// Puts the writable data back to what it was after linking. No call of the entry may be running.
    pub fn restore_data(&self) {
        self.entry.published.restore_data(&self.entry.data_initial);
    }
}
