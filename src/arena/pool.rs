//! All areas and the limit on what they commit: finds spans, and commits and gives back pages.
//!
//! Knows no address; what must be done to pages it asks of a [`Backing`], so it runs in tests without an operating
//! system. Its caller holds a lock around each call, so each call's work is bounded: by the number of arenas, and by
//! the pages of the layout that it serves.

use std::ops::Range;

use nix::errno::Errno;

use super::{
    ReserveError,
    area::Area,
    blocks::Span,
    error::FreeError,
    geometry::{AreaId, GRANULE_BYTES, Geometry, PAGE_BYTES, PartKind},
    stats::KindStats,
};

/// What can be done to the pages of an area.
pub(super) trait Backing {
    /// Gives pages memory, or says why not. Code pages come filled with the trap byte.
    fn commit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno>;
    /// Takes the memory of pages back, which then have none.
    fn decommit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno>;
}

/// A part as the allocator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) granules: u32,
    pub(super) align_granules: u32,
}

/// Spans of one layout, all in one arena, in the order of [`PartKind::ALL`]. Not `Clone`: who has it owns the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) arena: u32,
    pub(super) spans: [Option<Span>; 3],
}

impl Grant {
    pub(super) fn spans(&self) -> impl Iterator<Item = (AreaId, Span)> {
        PartKind::ALL.into_iter().filter_map(|kind| {
            let area = AreaId { arena: self.arena, kind };
            self.spans[kind as usize].map(|span| (area, span))
        })
    }
}

/// Every area of every arena.
pub(super) struct Pool {
    areas: Box<[Area]>,
    arenas: u32,
    limit_pages: u64,
}

impl Pool {
    pub(super) fn new(geometry: Geometry, commit_limit_bytes: u64) -> Self {
        let areas = geometry.areas().map(|_| Area::new(geometry.area_granules())).collect();
        Self { areas, arenas: geometry.arenas, limit_pages: commit_limit_bytes / PAGE_BYTES }
    }

    /// Spans on committed pages. Nothing has changed when this fails, but that idle pages may have been given back.
    pub(super) fn reserve(&mut self, wants: &[Option<Want>; 3], backing: &impl Backing) -> Result<Grant, ReserveError> {
        let grant = self.place(wants)?;
        match self.commit(&grant, backing) {
            Ok(()) => Ok(grant),
            Err(error) => {
                self.give(&grant).expect("invariant: these spans were taken a moment ago");
                Err(error)
            }
        }
    }

    /// Gives all spans back, or those before the first that was not given exactly so.
    pub(super) fn give(&mut self, grant: &Grant) -> Result<(), FreeError> {
        grant.spans().try_for_each(|(area, span)| self.areas[area.index()].give(&span))
    }

    /// Notes that a span's owner has given back pages that lie wholly in the span.
    pub(super) fn note_decommitted(&mut self, area: AreaId, pages: Range<u32>) {
        self.areas[area.index()].decommit(pages);
    }

    pub(super) fn set_limit(&mut self, commit_limit_bytes: u64) {
        self.limit_pages = commit_limit_bytes / PAGE_BYTES;
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_pages * PAGE_BYTES
    }

    /// Gives idle pages back until the limit holds, or `pages_max` are given back; answers whether another call would
    /// give back more.
    pub(super) fn shrink(&mut self, pages_max: u64, backing: &impl Backing) -> Result<bool, ReserveError> {
        let excess = self.committed_pages().saturating_sub(self.limit_pages).min(self.idle_pages());
        self.decommit(excess.min(pages_max), backing)?;
        Ok(excess > pages_max)
    }

    pub(super) fn stats(&self, kind: PartKind) -> KindStats {
        self.areas_of(kind).map(Area::stats).fold(KindStats::default(), KindStats::add)
    }

    fn place(&mut self, wants: &[Option<Want>; 3]) -> Result<Grant, ReserveError> {
        let mut lacking = PartKind::Code;
        for arena in 0..self.arenas {
            match self.place_in(arena, wants) {
                Ok(grant) => return Ok(grant),
                Err(kind) => lacking = kind,
            }
        }
        let granules = wants[lacking as usize].map_or(0, |want| want.granules);
        Err(self.fragmented(lacking, u64::from(granules) * GRANULE_BYTES))
    }

    fn place_in(&mut self, arena: u32, wants: &[Option<Want>; 3]) -> Result<Grant, PartKind> {
        let mut grant = Grant { arena, spans: [None; 3] };
        for kind in PartKind::ALL {
            let Some(want) = wants[kind as usize] else { continue };
            let span = self.areas[AreaId { arena, kind }.index()].take(want.granules, want.align_granules);
            if span.is_none() {
                self.give(&grant).expect("invariant: these spans were taken a moment ago");
                return Err(kind);
            }
            grant.spans[kind as usize] = span;
        }
        Ok(grant)
    }

    fn commit(&mut self, grant: &Grant, backing: &impl Backing) -> Result<(), ReserveError> {
        let missing = self.missing_pages(grant);
        let total: u64 = missing.iter().sum();
        if total == 0 {
            return Ok(());
        }
        let room = self.limit_pages.saturating_sub(self.committed_pages());
        let excess = total.saturating_sub(room);
        if excess > self.idle_pages() {
            let most = PartKind::ALL.into_iter().max_by_key(|&kind| missing[kind as usize]).unwrap_or(PartKind::Code);
            return Err(self.fragmented(most, missing[most as usize] * PAGE_BYTES));
        }
        // Before the new pages are taken, so that the sum never passes the limit.
        self.decommit(excess, backing)?;
        grant.spans().try_for_each(|(area, span)| self.commit_span(area, &span, backing))
    }

    fn commit_span(&mut self, area: AreaId, span: &Span, backing: &impl Backing) -> Result<(), ReserveError> {
        // One run at a time, as noting one changes the set that the next is found in.
        while let Some(run) = self.areas[area.index()].first_missing(&span.range()) {
            backing.commit(area, run.clone()).map_err(|errno| refused(area, "commit", &run, errno))?;
            self.areas[area.index()].commit(run);
        }
        Ok(())
    }

    fn missing_pages(&self, grant: &Grant) -> [u64; 3] {
        let mut missing = [0; 3];
        for (area, span) in grant.spans() {
            missing[area.kind as usize] = self.areas[area.index()].missing_pages(&span.range());
        }
        missing
    }

    /// Gives exactly this many idle pages back; there must be so many. From the last arena on, as the first is filled
    /// first.
    fn decommit(&mut self, mut pages: u64, backing: &impl Backing) -> Result<(), ReserveError> {
        for arena in (0..self.arenas).rev() {
            for kind in PartKind::ALL {
                let id = AreaId { arena, kind };
                let area = &mut self.areas[id.index()];
                while pages > 0
                    && let Some(run) = area.idle_run(pages.min(u32::MAX.into()) as u32)
                {
                    backing.decommit(id, run.clone()).map_err(|errno| refused(id, "give back", &run, errno))?;
                    pages -= run.len() as u64;
                    area.decommit(run);
                }
            }
        }
        Ok(())
    }

    fn fragmented(&self, part: PartKind, needed_bytes: u64) -> ReserveError {
        ReserveError::Fragmented {
            part,
            needed_bytes,
            largest_free_bytes: self.areas_of(part).map(Area::largest_free_bytes).max().unwrap_or(0),
            committed_bytes: self.committed_pages() * PAGE_BYTES,
            commit_limit_bytes: self.limit_bytes(),
        }
    }

    fn areas_of(&self, kind: PartKind) -> impl Iterator<Item = &Area> {
        self.areas.iter().skip(kind as usize).step_by(PartKind::ALL.len())
    }

    fn committed_pages(&self) -> u64 {
        self.areas.iter().map(Area::committed_pages).sum()
    }

    fn idle_pages(&self) -> u64 {
        self.areas.iter().map(Area::idle_pages).sum()
    }
}

fn refused(area: AreaId, step: &'static str, run: &Range<u32>, errno: Errno) -> ReserveError {
    ReserveError::Commit { part: area.kind, step, bytes: run.len() as u64 * PAGE_BYTES, errno }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
