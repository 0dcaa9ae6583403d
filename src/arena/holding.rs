//! Memory that has an owner: what a draft and what is published have in common.

use std::{fmt, ops::Range, sync::Arc};

use nix::errno::Errno;

use super::{
    Addresses, Layout, Part, PartKind, PublishError, ReserveError,
    arenas::{Anchor, Memory},
    geometry::{AreaId, PAGE_BYTES},
    memory::TRAP,
    pool::Backing,
    shard::Grant,
};

/// Spans with their only owner, who gives them back by dropping this. Fills a cache line.
pub(super) struct Holding {
    pub(super) arenas: Arc<Anchor>,
    pub(super) grant: Grant,
    /// In the order of [`PartKind::ALL`].
    sizes_bytes: [u32; 3],
    aligns_log2: [u8; 3],
    /// The code may have been run.
    pub(super) published: bool,
}

impl Holding {
    /// Takes a grant over, with its arena's window open; or gives it back.
    pub(super) fn new(arenas: Arc<Anchor>, layout: &Layout, grant: Grant) -> Result<Self, ReserveError> {
        if let Err(errno) = arenas.views.open_writer(grant.arena) {
            let given = arenas.pool.give(&grant, None, &arenas.views.opening());
            given.expect("invariant: these spans were taken a moment ago");
            let bytes = layout.charge_bytes(arenas.geometry().granule_bytes);
            return Err(ReserveError::Commit { part: PartKind::Code, step: "open the window of", bytes, errno });
        }
        let parts = PartKind::ALL.map(|kind| layout.part(kind));
        let holding = Self {
            arenas,
            grant,
            // An area has fewer bytes than 2^32, and a span lies in one.
            sizes_bytes: parts.map(|part| part.size_bytes as u32),
            aligns_log2: parts.map(|part| part.align_bytes.checked_ilog2().unwrap_or(0) as u8),
            published: false,
        };
        holding.clear_padding();
        Ok(holding)
    }

    pub(super) fn layout(&self) -> Layout {
        let [code, rodata, data] = PartKind::ALL
            .map(|kind| Part { size_bytes: self.size_bytes(kind), align_bytes: 1 << self.aligns_log2[kind as usize] });
        Layout { code, rodata, data }
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
        self.arenas.geometry().bytes_of(&self.grant.granules(kind))
    }

    /// Sets a part's size, for which its span has been cut or has grown.
    pub(super) fn set_size(&mut self, kind: PartKind, size_bytes: u64) {
        self.sizes_bytes[kind as usize] = size_bytes as u32;
        self.clear_padding();
    }

    fn address(&self, kind: PartKind) -> u64 {
        self.arenas.views.run_address(self.grant.area(kind)) as u64 + self.bytes(kind).start
    }

    /// What lies between the requested size and the span's end is not for the owner to write; it shall not show what
    /// an earlier owner wrote.
    fn clear_padding(&self) {
        let kind = PartKind::Rodata;
        let bytes = self.bytes(kind);
        if !bytes.is_empty() {
            let padding = bytes.start + self.size_bytes(kind)..bytes.end;
            self.arenas.views.fill(self.grant.area(kind), padding, 0);
        }
    }

    /// Leaves no code in granules of this holding, and gives the memory of very many back. Answers which pages.
    fn wipe(&self, area: AreaId, granules: &Range<u32>) -> Range<u32> {
        let views = &self.arenas.views;
        let pages = self.arenas.pool.large_pages(granules);
        // A refusal only means that the pages stay committed.
        let gone = if !pages.is_empty() && views.decommit(area, pages.clone()).is_ok() { pages } else { 0..0 };
        if area.kind == PartKind::Code {
            let bytes = self.arenas.geometry().bytes_of(granules);
            let hole = u64::from(gone.start) * PAGE_BYTES..u64::from(gone.end) * PAGE_BYTES;
            let edges = if gone.is_empty() { [bytes, 0..0] } else { [bytes.start..hole.start, hole.end..bytes.end] };
            edges.into_iter().filter(|it| !it.is_empty()).for_each(|edge| views.fill(area, edge, TRAP));
        }
        gone
    }

    /// Lets all pages run that were written, where protection changes.
    pub(super) fn make_runnable(&self) -> Result<(), PublishError> {
        self.grant.spans().try_for_each(|(area, _)| {
            let runnable = self.arenas.views.make_runnable(area, self.bytes(area.kind));
            runnable.map_err(|errno| PublishError::Protect { part: area.kind, errno })
        })
    }

    /// Opens the window, which a draft has open already, and makes all pages writable again where that changes.
    fn make_writable(&self) -> Result<(), Errno> {
        let views = &self.arenas.views;
        if self.published {
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

    /// Leaves no code in what a draft gives up of a part.
    pub(super) fn wipe_tail(&self, kind: PartKind, granules: &Range<u32>) {
        if kind == PartKind::Code {
            let bytes = self.arenas.geometry().bytes_of(granules);
            self.arenas.views.fill(self.grant.area(kind), bytes, TRAP);
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if self.make_writable().is_err() {
            // It cannot be wiped, so it cannot be given to anybody: it stays taken.
            return;
        }
        let Memory { views, pool, epochs, .. } = &**self.arenas;
        // Before the lock, while the spans are still ours: nobody can be given bytes that are not wiped yet.
        for (area, span) in self.grant.spans() {
            let gone = self.wipe(area, &span.range());
            if !gone.is_empty() {
                pool.note_decommitted(area, gone, &views.opening());
            }
        }
        let stamp = self.published.then(|| epochs.stamp());
        let given = pool.give(&self.grant, stamp, &views.opening());
        views.close_writer(self.grant.arena);
        given.expect("invariant: a holding gives back the spans that it was given, once");
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
