//! The areas of one arena: what one lock guards.

use std::{collections::BTreeMap, ops::Range};

use super::{
    area::Area,
    blocks::Span,
    epochs::Stamp,
    free_error::FreeError,
    geometry::{AreaId, Geometry, PartKind},
    stats::KindStats,
};

/// A part as the allocator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) granules: u32,
    pub(super) align_granules: u32,
}

/// What is wanted of each kind, in the order of [`PartKind::ALL`].
pub(super) type Wants = [Option<Want>; 3];

/// Spans of one layout, all in one arena. Not `Clone`: who has it owns the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) arena: u32,
    /// In the order of [`PartKind::ALL`].
    starts: [u32; 3],
    /// None where a part has no span.
    granules: [u32; 3],
    /// When code was last freed where this grant's code lies.
    pub(super) stamp: Stamp,
}

impl Grant {
    pub(super) fn empty(arena: u32) -> Self {
        Self { arena, starts: [0; 3], granules: [0; 3], stamp: Stamp::default() }
    }

    pub(super) fn spans(&self) -> impl Iterator<Item = (AreaId, Span)> {
        PartKind::ALL.into_iter().filter_map(|kind| Some((self.area(kind), self.span(kind)?)))
    }

    pub(super) fn area(&self, kind: PartKind) -> AreaId {
        AreaId { arena: self.arena, kind }
    }

    pub(super) fn span(&self, kind: PartKind) -> Option<Span> {
        let granules = self.granules[kind as usize];
        (granules > 0).then(|| Span::new(self.starts[kind as usize], granules))
    }

    /// The granules of a part; empty if it has no span.
    pub(super) fn granules(&self, kind: PartKind) -> Range<u32> {
        let start = self.starts[kind as usize];
        start..start + self.granules[kind as usize]
    }

    /// The only span of a grant that has no more than one, of code.
    pub(super) fn only_code(&self) -> Option<Span> {
        let code_alone = self.granules[1..] == [0, 0];
        if code_alone { self.span(PartKind::Code) } else { None }
    }

    /// When code was last freed where this part lies.
    pub(super) fn stamp_of(&self, kind: PartKind) -> Stamp {
        if kind == PartKind::Code { self.stamp } else { Stamp::default() }
    }

    pub(super) fn set(&mut self, kind: PartKind, span: &Span) {
        let range = span.range();
        self.starts[kind as usize] = range.start;
        self.granules[kind as usize] = range.len() as u32;
    }
}

/// The areas of one arena, in the order of [`PartKind::ALL`].
pub(super) struct Shard {
    pub(super) areas: [Area; 3],
    /// Spans whose owner has marked them, by kind and start: how many granules.
    lingering: BTreeMap<(u8, u32), u32>,
}

impl Shard {
    /// That of this number. All memory is free.
    pub(super) fn new(geometry: Geometry, arena: u32) -> Self {
        let area_bytes = geometry.area_bytes_of(arena);
        Self { areas: PartKind::ALL.map(|_| Area::new(geometry, area_bytes)), lingering: BTreeMap::new() }
    }

    pub(super) fn area(&self, kind: PartKind) -> &Area {
        &self.areas[kind as usize]
    }

    pub(super) fn area_mut(&mut self, kind: PartKind) -> &mut Area {
        &mut self.areas[kind as usize]
    }

    /// Spans for all parts, or the kind that found no room.
    pub(super) fn take(&mut self, arena: u32, wants: &Wants) -> Result<Grant, PartKind> {
        let mut grant = Grant::empty(arena);
        for kind in PartKind::ALL {
            let Some(want) = wants[kind as usize] else { continue };
            let Some(span) = self.area_mut(kind).take(want.granules, want.align_granules) else {
                self.give(&grant).expect("invariant: these spans were taken a moment ago");
                return Err(kind);
            };
            grant.set(kind, &span);
        }
        if grant.span(PartKind::Code).is_some() {
            grant.stamp = self.area(PartKind::Code).stamp(&grant.granules(PartKind::Code));
        }
        Ok(grant)
    }

    /// Gives all spans back, or those before the first that was not given exactly so.
    pub(super) fn give(&mut self, grant: &Grant) -> Result<(), FreeError> {
        grant.spans().try_for_each(|(id, span)| {
            if !self.lingering.is_empty() {
                self.lingering.remove(&(id.kind as u8, span.range().start));
            }
            self.area_mut(id.kind).give(&span, grant.stamp_of(id.kind))
        })
    }

    pub(super) fn is_committed(&self, grant: &Grant) -> bool {
        grant.spans().all(|(id, span)| self.area(id.kind).is_committed(&span.range()))
    }

    pub(super) fn missing_pages(&self, grant: &Grant) -> [u64; 3] {
        let mut pages = [0; 3];
        for (id, span) in grant.spans() {
            pages[id.kind as usize] = self.area(id.kind).missing(&span.range()).map(|run| run.len() as u64).sum();
        }
        pages
    }

    pub(super) fn idle_pages(&self) -> u64 {
        self.areas.iter().map(|area| u64::from(area.idle_pages())).sum()
    }

    /// Pages that can be given back, of at most `pages_max`.
    pub(super) fn idle_run(&self, pages_max: u32) -> Option<(PartKind, Range<u32>)> {
        PartKind::ALL.into_iter().find_map(|kind| Some((kind, self.area(kind).idle_run(pages_max)?)))
    }

    /// A whole chunk that can be given back.
    pub(super) fn idle_chunk(&self) -> Option<(PartKind, Range<u32>)> {
        PartKind::ALL.into_iter().find_map(|kind| Some((kind, self.area(kind).idle_chunk()?)))
    }

    /// Counts the grant's spans as lingering until they are given back.
    pub(super) fn linger(&mut self, grant: &Grant) {
        let spans = grant.spans().map(|(id, span)| ((id.kind as u8, span.range().start), span.range().len() as u32));
        self.lingering.extend(spans);
    }

    pub(super) fn is_lingering(&self, kind: PartKind, start: u32) -> bool {
        self.lingering.contains_key(&(kind as u8, start))
    }

    pub(super) fn stats(&self, kind: PartKind, geometry: Geometry) -> KindStats {
        let mut stats = self.area(kind).stats();
        let granules: u64 =
            self.lingering.range((kind as u8, 0)..(kind as u8 + 1, 0)).map(|(_, &n)| u64::from(n)).sum();
        stats.lingering_bytes = granules * geometry.granule_bytes;
        stats.used_bytes -= stats.lingering_bytes;
        stats
    }
}
