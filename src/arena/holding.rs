//! Memory that has an owner: what a draft and what is published have in common.

use std::{fmt, ops::Range, sync::Arc};

use super::{
    Addresses, Arenas, Layout,
    blocks::Span,
    geometry::{AreaId, GRANULE_BYTES, HUGE_BYTES, PAGE_BYTES, PartKind, pages_within},
    memory::TRAP,
    pool::{Backing, Grant},
};

/// Spans with their only owner, who gives them back by dropping this.
pub(super) struct Holding {
    pub(super) arenas: Arc<Arenas>,
    pub(super) layout: Layout,
    pub(super) grant: Grant,
}

impl Holding {
    pub(super) fn new(arenas: Arc<Arenas>, layout: Layout, grant: Grant) -> Self {
        let holding = Self { arenas, layout, grant };
        holding.clear_rodata_padding();
        holding
    }

    pub(super) fn addresses(&self) -> Addresses {
        let [code, rodata, data] = PartKind::ALL.map(|kind| self.address(kind));
        Addresses { code, rodata, data }
    }

    /// The run addresses of a part's requested bytes.
    pub(super) fn range(&self, kind: PartKind) -> Range<u64> {
        let start = self.address(kind);
        start..start + self.layout.part(kind).size_bytes
    }

    fn address(&self, kind: PartKind) -> u64 {
        let area = AreaId { arena: self.grant.arena, kind };
        let granule = self.grant.spans[kind as usize].map_or(0, |span| span.range().start);
        self.arenas.views.run_address(area) as u64 + u64::from(granule) * GRANULE_BYTES
    }

    /// What lies between the requested size and the span's end is not for the owner to write; it shall not show what
    /// an earlier owner wrote.
    fn clear_rodata_padding(&self) {
        let kind = PartKind::Rodata;
        let Some(span) = self.grant.spans[kind as usize] else { return };
        let bytes = bytes_of(&span.range());
        let padding = bytes.start + self.layout.part(kind).size_bytes..bytes.end;
        self.arenas.views.fill(AreaId { arena: self.grant.arena, kind }, padding, 0);
    }

    /// Leaves no code in a span, and gives the memory of a very large one back. Answers which of its pages that were.
    fn wipe(&self, area: AreaId, span: &Span) -> Option<Range<u32>> {
        let views = &self.arenas.views;
        let (granules, pages) = (span.range(), pages_within(&span.range()));
        let large = pages.len() as u64 * PAGE_BYTES >= HUGE_BYTES;
        // A refusal only means that the pages stay committed.
        let gone = (large && views.decommit(area, pages.clone()).is_ok()).then_some(pages);
        if area.kind == PartKind::Code {
            let (bytes, hole) = (bytes_of(&granules), gone.clone().unwrap_or(0..0));
            let hole = u64::from(hole.start) * PAGE_BYTES..u64::from(hole.end) * PAGE_BYTES;
            let edges = if gone.is_some() { [bytes.start..hole.start, hole.end..bytes.end] } else { [bytes, 0..0] };
            edges.into_iter().for_each(|edge| views.fill(area, edge, TRAP));
        }
        gone
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        // Before the lock, while the spans are still ours: nobody can be given bytes that are not wiped yet.
        let gone: [_; 3] = PartKind::ALL.map(|kind| {
            let area = AreaId { arena: self.grant.arena, kind };
            self.grant.spans[kind as usize].and_then(|span| Some((area, self.wipe(area, &span)?)))
        });
        let mut pool = self.arenas.pool();
        gone.into_iter().flatten().for_each(|(area, pages)| pool.note_decommitted(area, pages));
        let given = pool.give(&self.grant);
        drop(pool);
        given.expect("invariant: a holding gives back the spans that it was given, once");
    }
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holding").field("addresses", &self.addresses()).field("layout", &self.layout).finish()
    }
}

fn bytes_of(granules: &Range<u32>) -> Range<u64> {
    u64::from(granules.start) * GRANULE_BYTES..u64::from(granules.end) * GRANULE_BYTES
}
