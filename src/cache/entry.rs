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
    Conduct, Exports, Name, Startup, Watched,
    dependencies::{Reached, Share},
    ledger::Charge,
    lru::{Handle, slot_bytes},
};
use crate::{
    arena::{Lacks, Published},
    code::{Addresses, Image, LinkState, Listing, Signature, Sizes, Symbol, Thread},
};

/// What is known of an entry without holding on to its memory.
#[derive(Debug)]
pub struct Meta {
    /// Namespace and key.
    pub name: Name,
    /// Stands for the namespace where nothing else of it may be known; differs from process to process.
    pub tenant: u64,
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
    /// What runs before the first call.
    pub startup: Startup,
    /// How its code behaves.
    pub conduct: Conduct,
    /// When it became resident.
    pub installed_at: Instant,
    /// What it is linked against.
    pub reached: Reached,
    pub(super) calls: AtomicU64,
    /// Entries that have a share in it.
    pub(super) dependants: AtomicU64,
}

impl Meta {
    /// Counts a call that was taken.
    pub fn count_call(&self) {
        self.count_calls(1);
    }

    /// Counts some.
    pub fn count_calls(&self, count: u64) {
        self.calls.fetch_add(count, Relaxed);
    }

    /// Bytes of heap that an entry with this takes, beside its spans: what is charged as metadata.
    pub(super) fn charge_bytes(name: &Name, image: &Image, link_state: &LinkState) -> u64 {
        /// Two reference counts in front of each shared value, and the allocator's rounding of eight blocks.
        const ALLOCATIONS_BYTES: u64 = 2 * 16 + 8 * 16;
        /// A key and a handle in a B-tree whose nodes are at least half full.
        const INDEX_BYTES: u64 = 2 * 24;
        let own_bytes = (size_of::<Entry>() + size_of::<Meta>()) as u64 + slot_bytes::<Resident>();
        let name_bytes = name.as_bytes().len() as u64;
        let exports_bytes = Exports::heap_bytes(image.symbols(), image.functions());
        let kept_bytes = image.data_kept_bytes() + image.startup().heap_bytes() + link_state.heap_bytes();
        own_bytes + ALLOCATIONS_BYTES + INDEX_BYTES + name_bytes + exports_bytes + kept_bytes
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

/// A resident image. The fields drop in this order: whoever watches it lets go before memory goes back, that before its
/// bytes are free to charge again, and all before anybody is told.
pub(super) struct Entry {
    #[expect(dead_code, reason = "held for its drop")]
    pub(super) watched: Option<Watched>,
    pub(super) published: Published,
    /// Writable data as it is restored: as it was after linking, without the zeroes at the end; all of it if something
    /// runs before the first call, and as it was after that, once it has run. Locked by who runs nothing of the entry.
    pub(super) data_initial: Mutex<Box<[u8]>>,
    /// Which fields depend on where the parts lie.
    pub(super) link_state: LinkState,
    /// All that its code may reach, as in [`Meta::reached`].
    pub(super) shares: Box<[Share]>,
    pub(super) meta: Arc<Meta>,
    pub(super) charge: Charge,
    pub(super) freed: AtDrop,
}

impl Entry {
    pub(super) fn on_freed(&self, call: OnFreed) {
        self.freed.set(call);
    }

    /// It lies below 2 GiB.
    pub(super) fn is_low(&self) -> bool {
        self.published.layout().low
    }

    /// Whether its memory is of use where this lacks.
    pub(super) fn gives(&self, lacks: Lacks) -> bool {
        match lacks {
            Lacks::Pages => true,
            Lacks::Common => !self.is_low(),
            Lacks::Low => self.is_low(),
        }
    }

    /// Whether its going is: its memory, or that of what it is linked against, which may go with it or after it.
    pub(super) fn helps(&self, lacks: Lacks) -> bool {
        self.gives(lacks) || self.shares.iter().any(|share| share.entry().gives(lacks))
    }

    /// Where the writable data lies, which names it; `None` without any.
    fn data_id(&self) -> Option<u64> {
        (self.meta.sizes.data.size_bytes > 0).then(|| self.published.addresses().data)
    }

    pub(super) fn addresses(&self) -> Addresses {
        let at = self.published.addresses();
        Addresses { code: at.code, rodata: at.rodata, data: at.data }
    }
}

/// An entry with what the index knows of it.
pub(super) struct Resident {
    pub(super) entry: Arc<Entry>,
    pub(super) last_used: Instant,
    pub(super) used: bool,
    /// Its place among those that hold memory below 2 GiB, if it does.
    pub(super) low: Option<Handle>,
}

impl Resident {
    /// Whether nobody but the index holds the entry. True only under the cache lock, where alone pins are made.
    pub(super) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.entry) == 1
    }

    pub(super) fn view(&self, handle: Handle) -> View {
        let dependants = self.entry.meta.dependants.load(Relaxed);
        View {
            handle,
            meta: Arc::clone(&self.entry.meta),
            code: self.entry.published.code_range(),
            charged_bytes: self.entry.charge.amount().total_bytes(),
            link_state_bytes: self.entry.link_state.heap_bytes(),
            calls: self.entry.meta.calls.load(Relaxed),
            // Shares come and go without the lock: what is read of both need not be of one moment.
            pins: (Arc::strong_count(&self.entry) - 1)
                .saturating_sub(usize::try_from(dependants).unwrap_or(usize::MAX)),
            dependants,
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
    /// Run addresses of its code, where it was.
    pub code: Range<u64>,
    /// Bytes that count against the budget.
    pub charged_bytes: u64,
    /// Of them, bytes that say which fields of code and data depend on where they lie.
    pub link_state_bytes: u64,
    /// Calls since the install.
    pub calls: u64,
    /// Calls that ran or waited, and installs under way that need it.
    pub pins: usize,
    /// Entries that are linked against it, themselves or by way of others; those that linger too.
    pub dependants: u64,
    /// When it was last found or called.
    pub last_used: Instant,
}

/// Keeps an entry's memory where it is for as long as it lives, evicted or not.
#[derive(Clone)]
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

    /// Run addresses of all writable data that its calls may touch, its own and that of what it is linked against.
    pub fn data_ranges(&self) -> Vec<Range<u64>> {
        self.touched().map(|entry| entry.published.data_range()).filter(|range| !range.is_empty()).collect()
    }

    /// See [`Published::barriers`].
    pub fn barriers(&self) -> u64 {
        self.entry.published.barriers()
    }

    /// Run address of the read-only data.
    pub fn rodata_start(&self) -> u64 {
        self.entry.published.addresses().rodata
    }

    /// A copy of the code from this offset on, `max_bytes` or as many as there are.
    pub fn read_code(&self, offset_bytes: u64, max_bytes: u64) -> Vec<u8> {
        self.entry.published.read_code_at(offset_bytes, max_bytes)
    }

    /// The same entry, or one that it is linked against, whose code holds this address.
    pub fn with_code_at(&self, address: u64) -> Option<Pinned> {
        if self.code_range().contains(&address) {
            return Some(Pinned { entry: Arc::clone(&self.entry), handle: self.handle });
        }
        let mut reached = self.entry.shares.iter().zip(self.meta().reached.all());
        let (share, dependency) = reached.find(|(_, it)| it.code.contains(&address))?;
        Some(Pinned { entry: Arc::clone(share.entry()), handle: dependency.handle })
    }

    /// What names the code's addresses, and those of the code that it is linked against.
    pub fn listing(&self) -> Listing<'_> {
        let (at, meta) = (self.entry.addresses(), &self.entry.meta);
        let others = meta.reached.all().iter().map(|it| (it.code.clone(), it.meta.exports.functions())).collect();
        Listing::new(at, meta.sizes.code.size_bytes, meta.exports.functions(), meta.exports.symbols()).beside(others)
    }

    /// Run address of a function.
    pub fn function(&self, name: &str) -> Option<u64> {
        let symbol: &Symbol = self.entry.meta.exports.function(name)?;
        Some(self.code_range().start + symbol.offset_bytes)
    }

    /// What a function was declared to take and return.
    pub fn signature(&self, name: &str) -> Option<&Signature> {
        self.entry.meta.exports.function(name)?.signature.as_deref()
    }

    /// The writable data that calls of the entry may touch: its own, and that of all that it is linked against. Each
    /// with a number that no other has while somebody keeps it, and whether calls that touch it may overlap. What must run
    /// before the first call runs once, and beside nothing else, whether it writes data or not.
    pub fn shared_data(&self) -> impl Iterator<Item = (u64, bool)> {
        self.touched().filter_map(|entry| {
            let is_pending = entry.meta.startup.is_pending();
            let id = entry.data_id().or_else(|| is_pending.then(|| entry.addresses().code))?;
            Some((id, entry.meta.reentrant && !is_pending))
        })
    }

    /// Puts the writable data with this number back to what it was after linking, or after what runs before the first
    /// call. No call may be running that may touch it.
    pub fn restore_data(&self, id: u64) {
        if let Some(entry) = self.touched().find(|entry| entry.data_id() == Some(id)) {
            let initial = entry.data_initial.lock().unwrap_or_else(PoisonError::into_inner);
            entry.published.restore_data(&initial);
        }
    }

    /// The entry itself, and all that it is linked against: each before those that it is linked against itself.
    pub(super) fn touched(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        [&*self.entry].into_iter().chain(self.entry.shares.iter().map(|share| &**share.entry()))
    }
}
