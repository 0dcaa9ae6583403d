//! Memory that has an owner: what a draft and what is published have in common.

use std::{
    fmt, mem,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use nix::errno::Errno;

use super::{
    Addresses, Layout, Part, PartKind, PublishError, ReserveError,
    arenas::Memory,
    geometry::{AreaId, PAGE_BYTES},
    mapping::Views,
    memory::TRAP,
    pool::Backing,
    shard::Grant,
};

/// Spans with their only owner, who gives them back by dropping this. Fills a cache line.
pub(super) struct Holding {
    /// `None` only once this is dropped.
    memory: Option<Arc<Memory>>,
    pub(super) grant: Grant,
    /// In the order of [`PartKind::ALL`].
    sizes_bytes: [u32; 3],
    aligns_log2: [u8; 3],
    /// Bits of what has been done to the memory.
    done: AtomicU8,
}

/// The code holds anything but traps, perhaps: what this owner wrote, or the one before.
const WRITTEN: u8 = 1;
/// The code may have been run.
const PUBLISHED: u8 = 2;
/// The spans are counted as lingering.
const LINGERING: u8 = 4;
/// The code is that of an earlier owner, all of it.
const STALE: u8 = 8;

impl Holding {
    /// Takes a grant over, with its arena's window open; or gives it back.
    pub(super) fn new(memory: Arc<Memory>, layout: &Layout, grant: Grant) -> Result<Self, ReserveError> {
        if let Err(errno) = memory.views.open_writer(grant.arena) {
            let given = memory.pool.give(&grant, &memory.views.opening());
            given.expect("invariant: these spans were taken a moment ago");
            let bytes = layout.charge_bytes(memory.geometry().granule_bytes);
            return Err(ReserveError::Commit { part: PartKind::Code, step: "open the window of", bytes, errno });
        }
        let holding = Self::of(memory, layout, grant, 0);
        holding.clear_padding();
        Ok(holding)
    }

    /// Takes a grant over that comes from a shelf: code alone, at an arena whose window is always open, and with what
    /// its last owner left there.
    pub(super) fn of_shelf(memory: Arc<Memory>, layout: &Layout, grant: Grant) -> Self {
        Self::of(memory, layout, grant, WRITTEN | STALE)
    }

    fn of(memory: Arc<Memory>, layout: &Layout, grant: Grant, done: u8) -> Self {
        let parts = [&layout.code, &layout.rodata, &layout.data];
        Self {
            memory: Some(memory),
            grant,
            // An area has fewer bytes than 2^32, and a span lies in one.
            sizes_bytes: parts.map(|part| part.size_bytes as u32),
            // Powers of two, but for parts without a span: 0 has as many zeroes as there are bits.
            aligns_log2: parts.map(|part| part.align_bytes.trailing_zeros() as u8 % 64),
            done: AtomicU8::new(done),
        }
    }

    pub(super) fn memory(&self) -> &Arc<Memory> {
        self.memory.as_ref().expect("invariant: only drop takes it")
    }

    /// The code is about to be written, perhaps in parts.
    pub(super) fn writes(&mut self) {
        self.trap_stale();
        *self.done.get_mut() |= WRITTEN;
    }

    /// Copies `code` to the start of the code, and makes the rest traps.
    pub(super) fn write_code(&mut self, code: &[u8]) {
        let done = self.done.get_mut();
        let clean = mem::replace(done, (*done | WRITTEN) & !STALE) & WRITTEN == 0;
        self.memory().views.write_code(&self.grant, code, clean);
    }

    /// Leaves no code of an earlier owner.
    pub(super) fn trap_stale(&mut self) {
        let done = self.done.get_mut();
        if *done & STALE != 0 {
            *done &= !STALE;
            let area = self.grant.area(PartKind::Code);
            self.memory().views.fill(area, self.bytes(PartKind::Code), TRAP);
        }
    }

    /// The code has run, and is not published.
    pub(super) fn ran(&mut self) {
        self.grant.stamp = self.memory().epochs.stamp();
    }

    /// The code may run from now on.
    pub(super) fn publishes(&mut self) {
        *self.done.get_mut() |= WRITTEN | PUBLISHED;
    }

    /// Counts the spans as lingering.
    pub(super) fn lingers(&self) {
        // Before: who drops this sees what those did who had it before, and so finds what is marked.
        self.done.fetch_or(LINGERING, Relaxed);
        self.memory().pool.shard(self.grant.arena).linger(&self.grant);
    }

    fn is(&self, done: u8) -> bool {
        self.done.load(Relaxed) & done != 0
    }

    pub(super) fn layout(&self) -> Layout {
        let [code, rodata, data] = PartKind::ALL
            .map(|kind| Part { size_bytes: self.size_bytes(kind), align_bytes: 1 << self.aligns_log2[kind as usize] });
        Layout { code, rodata, data, low: self.memory().geometry().is_low(self.grant.arena) }
    }

    pub(super) fn size_bytes(&self, kind: PartKind) -> u64 {
        self.sizes_bytes[kind as usize].into()
    }

    pub(super) fn addresses(&self) -> Addresses {
        let [code, rodata, data] = PartKind::ALL.map(|kind| self.address(kind));
        Addresses { code, rodata, data }
    }

    /// The run addresses of a part's requested bytes.
    pub(super) fn range(&self, kind: PartKind) -> Range<u64> {
        let start = self.address(kind);
        start..start + self.size_bytes(kind)
    }

    /// Where the part's span lies in its area.
    pub(super) fn bytes(&self, kind: PartKind) -> Range<u64> {
        self.memory().geometry().bytes_of(&self.grant.granules(kind))
    }

    /// The code and the read-only data, to be written.
    pub(super) fn code_and_rodata_mut(&mut self) -> (&mut [u8], &mut [u8]) {
        self.writes();
        let [code_bytes, rodata_bytes, _] = self.sizes_bytes.map(u64::from);
        let memory = self.memory.as_ref().expect("invariant: only drop takes it");
        memory.views.code_and_rodata_mut(&mut self.grant, [code_bytes, rodata_bytes])
    }

    /// Cuts a part's span to its first `granules`.
    pub(super) fn shrink(&mut self, kind: PartKind, granules: u32) {
        let memory = self.memory.as_ref().expect("invariant: only drop takes it");
        memory.pool.shrink(&mut self.grant, kind, granules);
    }

    /// Makes a part's span longer where it is. `false` if there is no room behind it.
    pub(super) fn grow(&mut self, kind: PartKind, granules: u32) -> Result<bool, ReserveError> {
        let memory = self.memory.as_ref().expect("invariant: only drop takes it");
        let mut grow = || memory.pool.grow(&mut self.grant, kind, granules, &memory.views.opening());
        // What lies behind may be on a shelf.
        match grow() {
            Ok(true) => Ok(true),
            Ok(false) | Err(_) if kind == PartKind::Code => {
                memory.empty_shelves();
                grow()
            }
            refused => refused,
        }
    }

    /// Sets a part's size, for which its span has been cut or has grown.
    pub(super) fn set_size(&mut self, kind: PartKind, size_bytes: u64) {
        self.sizes_bytes[kind as usize] = size_bytes as u32;
        self.clear_padding();
    }

    fn address(&self, kind: PartKind) -> u64 {
        self.memory().views.run_address(self.grant.area(kind)) as u64 + self.bytes(kind).start
    }

    /// What lies between the requested size and the span's end is not for the owner to write; it shall not show what
    /// an earlier owner wrote.
    fn clear_padding(&self) {
        let kind = PartKind::Rodata;
        let bytes = self.bytes(kind);
        if !bytes.is_empty() {
            let padding = bytes.start + self.size_bytes(kind)..bytes.end;
            self.memory().views.fill(self.grant.area(kind), padding, 0);
        }
    }

    /// Leaves no code in granules of this holding, and gives the memory of very many back. Answers which pages.
    fn wipe(&self, memory: &Memory, area: AreaId, granules: &Range<u32>) -> Range<u32> {
        let views = &memory.views;
        let pages = memory.pool.large_pages(granules);
        // A refusal only means that the pages stay committed.
        let refused = !pages.is_empty() && views.decommit(area, pages.clone()).is_err();
        let gone = if refused { 0..0 } else { pages };
        // What was refused may have been done in part, and then there are zeroes.
        if area.kind == PartKind::Code && (self.is(WRITTEN) || refused) {
            let bytes = memory.geometry().bytes_of(granules);
            let hole = u64::from(gone.start) * PAGE_BYTES..u64::from(gone.end) * PAGE_BYTES;
            let edges = if gone.is_empty() { [bytes, 0..0] } else { [bytes.start..hole.start, hole.end..bytes.end] };
            edges.into_iter().filter(|it| !it.is_empty()).for_each(|edge| views.fill(area, edge, TRAP));
        }
        gone
    }

    /// Lets all pages run that were written, where protection changes.
    pub(super) fn make_runnable(&self) -> Result<(), PublishError> {
        self.grant.spans().try_for_each(|(area, _)| {
            let runnable = self.memory().views.make_runnable(area, self.bytes(area.kind));
            runnable.map_err(|errno| PublishError::Protect { part: area.kind, errno })
        })
    }

    /// Opens the window, which a draft has open already, and makes all pages writable again where that changes.
    fn make_writable(&self) -> Result<(), Errno> {
        let views = &self.memory().views;
        if self.is(PUBLISHED) {
            views.open_writer(self.grant.arena)?;
        }
        if !views.changes_protection() {
            return Ok(());
        }
        let mut spans = self.grant.spans();
        spans
            .try_for_each(|(area, _)| views.make_writable(area, self.bytes(area.kind)))
            .inspect_err(|_| views.close_writer(self.grant.arena))
    }

    /// Whoever still calls the code by its start is stopped there, wherever the span goes.
    fn bar(&self) {
        let bytes = self.bytes(PartKind::Code);
        if !bytes.is_empty() {
            let start = bytes.start..bytes.start + self.memory().geometry().granule_bytes;
            self.memory().views.fill(self.grant.area(PartKind::Code), start, TRAP);
        }
    }

    /// Lets `write` change read-only data that is published.
    pub(super) fn rewrite_rodata(&self, write: impl FnOnce(&Views, &Grant)) -> Result<(), PublishError> {
        let views = &self.memory().views;
        let (area, bytes) = (self.grant.area(PartKind::Rodata), self.bytes(PartKind::Rodata));
        let refused = |errno| PublishError::Protect { part: PartKind::Rodata, errno };
        views.open_writer(self.grant.arena).map_err(refused)?;
        let written = views.make_writable(area, bytes.clone()).and_then(|()| {
            write(views, &self.grant);
            views.make_runnable(area, bytes)
        });
        views.close_writer(self.grant.arena);
        written.map_err(refused)
    }

    /// Leaves no code in what a draft gives up of a part.
    pub(super) fn wipe_tail(&self, kind: PartKind, granules: &Range<u32>) {
        if kind == PartKind::Code && self.is(WRITTEN) {
            let bytes = self.memory().geometry().bytes_of(granules);
            self.memory().views.fill(self.grant.area(kind), bytes, TRAP);
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if self.make_writable().is_err() {
            // It cannot be wiped, so it cannot be given to anybody: it stays taken.
            return;
        }
        if self.is(PUBLISHED) {
            self.bar();
            self.grant.stamp = self.memory().epochs.stamp();
        }
        let memory = self.memory.take().expect("invariant: dropped once");
        let shelved = if self.is(LINGERING) { Err(memory) } else { memory.shelve(&self.grant) };
        let Err(memory) = shelved else { return };
        // Before anybody can be given the spans, while they are still ours: they are wiped, and cannot run stale.
        for (area, span) in self.grant.spans() {
            let gone = self.wipe(&memory, area, &span.range());
            if !gone.is_empty() {
                memory.pool.note_decommitted(area, gone, &memory.views.opening());
            }
        }
        let given = memory.pool.give(&self.grant, &memory.views.opening());
        memory.views.close_writer(self.grant.arena);
        given.expect("invariant: a holding gives back the spans that it was given, once");
        // What is on shelves may be all that keeps chunks from going back.
        if memory.pool.shards().take_newly_spare() {
            memory.empty_shelves();
        }
    }
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holding").field("addresses", &self.addresses()).field("layout", &self.layout()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holding_fills_a_cache_line_and_no_more() {
        assert_eq!(size_of::<Holding>(), 64);
    }
}
