//! All areas and the limit on what they commit: finds spans, and commits and gives back pages.
//!
//! What does not fit into a thread's own shard goes into any other, but for what must lie in the last one, where nothing
//! else does: that below 2 GiB. Two of these locks are never held together. Knows no address; what
//! must be done to pages it asks of a [`Backing`], so it runs in tests without an operating system. The work under a
//! lock is bounded: by the pages at the edges of one layout, or by [`HOLD_PAGES`].

use std::{ops::Range, sync::MutexGuard};

use nix::errno::Errno;

use super::{
    Gaps, Lacks, ReserveError,
    area::Area,
    blocks::Span,
    commit::{Commit, Credit},
    free_error::FreeError,
    geometry::{AreaId, Geometry, HUGE_BYTES, PAGE_BYTES, PartKind},
    shard::{Grant, Shard, Wants},
    shards::Shards,
    stats::KindStats,
};

/// Pages committed or given back under one hold of a lock, where more are to be: tens of microseconds.
const HOLD_PAGES: u64 = 64;
/// Pages that are committed at once where memory is used for the first time, as far as the limit allows: one call into
/// the system instead of many.
const AHEAD_PAGES: u32 = 16;

/// What can be done to the pages of an area.
pub(super) trait Backing {
    /// Gives pages memory, or says why not. Code pages come filled with the trap byte.
    fn commit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno>;
    /// Takes the memory of pages back, which then have none.
    fn decommit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno>;
}

/// Every area of every arena.
pub(super) struct Pool {
    geometry: Geometry,
    shards: Shards,
    commit: Commit,
    /// Free committed pages that a shard keeps before it gives back whole chunks.
    keep_pages: u64,
}

impl Pool {
    /// Each shard keeps `keep_bytes` of free committed memory.
    pub(super) fn new(geometry: Geometry, commit_limit_bytes: u64, keep_bytes: u64) -> Self {
        Self {
            geometry,
            shards: Shards::new(geometry),
            commit: Commit::new(commit_limit_bytes),
            keep_pages: keep_bytes / PAGE_BYTES,
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(super) fn shards(&self) -> &Shards {
        &self.shards
    }

    pub(super) fn shard(&self, arena: u32) -> MutexGuard<'_, Shard> {
        self.shards.lock(arena)
    }

    /// Spans on committed pages. Nothing has changed when this fails, but that idle pages may have been given back.
    pub(super) fn reserve(&self, wants: &Wants, backing: &impl Backing) -> Result<Grant, ReserveError> {
        self.committed(self.place(wants)?, backing)
    }

    /// The same in the arena below 2 GiB.
    pub(super) fn reserve_low(&self, wants: &Wants, backing: &impl Backing) -> Result<Grant, ReserveError> {
        self.committed(self.place_low(wants)?, backing)
    }

    /// The grant, with its pages committed if they are not.
    fn committed(&self, (grant, committed): (Grant, bool), backing: &impl Backing) -> Result<Grant, ReserveError> {
        if committed {
            return Ok(grant);
        }
        match self.commit(&grant, backing) {
            Ok(()) => Ok(grant),
            Err(error) => {
                self.give(&grant, backing).expect("invariant: these spans were taken a moment ago");
                Err(error)
            }
        }
    }

    /// Spans for all of several layouts, or for none. As many as fit there are taken under one hold of a lock.
    pub(super) fn reserve_many(&self, wants: &[Wants], backing: &impl Backing) -> Result<Vec<Grant>, ReserveError> {
        let mut grants = Vec::with_capacity(wants.len());
        let home = self.shards.home();
        if let Some(mut shard) = self.shards.try_lock(home) {
            grants.extend(wants.iter().map_while(|wants| take(&mut shard, home, wants).ok()));
        }
        let committed = grants.iter().filter(|(_, committed)| !committed);
        let mut outcome =
            committed.map(|(grant, _)| self.commit(grant, backing)).find(Result::is_err).unwrap_or(Ok(()));
        let mut grants: Vec<_> = grants.into_iter().map(|(grant, _)| grant).collect();
        for wants in &wants[grants.len()..] {
            outcome = outcome.and_then(|()| self.reserve(wants, backing).map(|grant| grants.push(grant)));
        }
        outcome.map(|()| std::mem::take(&mut grants)).inspect_err(|_| {
            for grant in &grants {
                self.give(grant, backing).expect("invariant: these spans were taken a moment ago");
            }
        })
    }

    /// Gives all spans back, or those before the first that was not given exactly so.
    pub(super) fn give(&self, grant: &Grant, backing: &impl Backing) -> Result<(), FreeError> {
        let mut shard = self.shard(grant.arena);
        let given = shard.give(grant);
        self.trim(&mut shard, grant.arena, backing);
        self.shards.note_spare(grant.arena, shard.idle_pages() > self.keep_pages);
        given
    }

    /// The pages that the owner of these granules, if they are very many, gives back when it frees them: they are none
    /// of those that a shard keeps.
    pub(super) fn large_pages(&self, granules: &Range<u32>) -> Range<u32> {
        let pages = self.geometry.whole_units(granules);
        let large = pages.len() as u64 * PAGE_BYTES >= HUGE_BYTES && pages.len() as u64 > self.keep_pages;
        if large { pages } else { 0..0 }
    }

    /// Takes note that a span's owner has given back pages that lie wholly in the span.
    pub(super) fn note_decommitted(&self, id: AreaId, pages: Range<u32>, backing: &impl Backing) {
        let mut shard = self.shard(id.arena);
        // Once more, for a huge page that was made of them since; from now on its maker knows better. What is refused
        // here was given back already, but for that case.
        let _ = backing.decommit(id, pages.clone());
        let count = pages.len() as u64;
        shard.area_mut(id.kind).decommit(pages);
        self.commit.discharge(count);
    }

    /// Ends the hold on a chunk, and gives back what the system has committed in it beyond what is counted.
    pub(super) fn release_chunk(&self, id: AreaId, settled: bool, backing: &impl Backing) {
        let mut shard = self.shard(id.arena);
        for run in shard.area_mut(id.kind).release_chunk(settled) {
            // Refused, it stays until the pages are used and given back.
            let _ = backing.decommit(id, run);
        }
    }

    /// Cuts one of a grant's spans to its first `granules`.
    pub(super) fn shrink(&self, grant: &mut Grant, kind: PartKind, granules: u32) {
        let Some(span) = grant.span(kind) else { return };
        let kept = self.shard(grant.arena).area_mut(kind).shrink(&span, granules, grant.stamp_of(kind));
        grant.set(kind, &kept.expect("invariant: a grant's spans are what was taken"));
    }

    /// Makes one of a grant's spans longer where it is. `false` if there is no room behind it.
    pub(super) fn grow(
        &self,
        grant: &mut Grant,
        kind: PartKind,
        granules: u32,
        backing: &impl Backing,
    ) -> Result<bool, ReserveError> {
        let Some(span) = grant.span(kind) else { return Ok(false) };
        let mut shard = self.shard(grant.arena);
        let longer = shard.area_mut(kind).grow(&span, granules).expect("invariant: a grant's spans are what was taken");
        let Some(longer) = longer else { return Ok(false) };
        if kind == PartKind::Code {
            grant.stamp = grant.stamp.max(shard.area(kind).stamp(&longer.range()));
        }
        drop(shard);
        grant.set(kind, &longer);
        self.commit(grant, backing).inspect_err(|_| self.shrink(grant, kind, span.range().len() as u32))?;
        Ok(true)
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.commit.limit_bytes()
    }

    /// Changes the limit, and gives idle pages back until it holds or none are left.
    pub(super) fn set_limit(&self, commit_limit_bytes: u64, backing: &impl Backing) {
        self.commit.set_limit(commit_limit_bytes);
        let excess = self.commit.excess_pages();
        // A refusal of the system shows in the counts, and the next reservation meets it again and reports it.
        if let Ok(pages) = self.reclaim(excess, backing) {
            self.commit.discharge(pages);
        }
    }

    /// Of all arenas but the one below 2 GiB.
    pub(super) fn stats(&self, kind: PartKind) -> KindStats {
        let all = (0..self.geometry.arenas).map(|arena| self.shard(arena).stats(kind, self.geometry));
        all.fold(KindStats::default(), KindStats::add)
    }

    /// Of the arena below 2 GiB.
    pub(super) fn low_stats(&self, kind: PartKind) -> KindStats {
        let arena = self.geometry.low_arena();
        arena.map(|arena| self.shard(arena).stats(kind, self.geometry)).unwrap_or_default()
    }

    pub(super) fn metadata_bytes(&self) -> u64 {
        let of = |arena| self.shard(arena).areas.iter().map(|area| area.metadata_bytes()).sum::<u64>();
        (0..self.geometry.all_arenas()).map(of).sum()
    }

    /// Finds spans, and says whether all their pages are committed.
    fn place(&self, wants: &Wants) -> Result<(Grant, bool), ReserveError> {
        let home = self.shards.home();
        let mut lacking = match take(&mut self.shards.lock_home(home), home, wants) {
            Ok(found) => return Ok(found),
            Err(kind) => kind,
        };
        for at in (home + 1..self.shards.common()).chain(0..home) {
            match take(&mut self.shard(at as u32), at, wants) {
                Ok(found) => return Ok(found),
                Err(kind) => lacking = kind,
            }
        }
        Err(self.no_room(lacking, wants, Lacks::Common))
    }

    /// The same in the arena below 2 GiB.
    fn place_low(&self, wants: &Wants) -> Result<(Grant, bool), ReserveError> {
        let arena = self.geometry.low_arena().ok_or(ReserveError::NoLow)?;
        let taken = take(&mut self.shards.lock_wanted(arena), arena as usize, wants);
        taken.map_err(|lacking| self.no_room(lacking, wants, Lacks::Low))
    }

    /// Whether the arena below 2 GiB has room as it is.
    pub(super) fn has_low_room(&self, wants: &Wants) -> bool {
        let has_room = |arena| Gaps::lacking(&self.shard(arena), wants).next().is_none();
        self.geometry.low_arena().is_some_and(has_room)
    }

    /// What is free in the arena below 2 GiB, if there is one.
    pub(super) fn low_gaps(&self, wants: &Wants) -> Result<Gaps, ReserveError> {
        let arena = self.geometry.low_arena().ok_or(ReserveError::NoLow)?;
        let gaps = Gaps::of(&self.shard(arena), arena, wants);
        Ok(gaps.refused(|part| self.no_room(part, wants, Lacks::Low)))
    }

    /// Commits the pages of a grant. Each round either ends this or takes idle pages over.
    fn commit(&self, grant: &Grant, backing: &impl Backing) -> Result<(), ReserveError> {
        let mut credit = Credit::none(&self.commit);
        loop {
            let shard = self.shard(grant.arena);
            let missing = shard.missing_pages(grant);
            let Err(excess) = credit.raise(missing.iter().sum()) else {
                return self.commit_charged(shard, grant, backing, credit);
            };
            drop(shard);
            // Before the new pages are taken, so that the sum never passes the limit.
            let pages = self.reclaim(excess, backing)?;
            if pages == 0 {
                let most = PartKind::ALL.into_iter().max_by_key(|&kind| missing[kind as usize]);
                let most = most.unwrap_or(PartKind::Code);
                return Err(self.no_pages(grant.arena, most, missing[most as usize] * PAGE_BYTES));
            }
            credit.add(pages);
        }
    }

    /// Pages that another span may lie on, too, are committed under the lock; the others, which may be many, after it.
    fn commit_charged(
        &self,
        mut shard: MutexGuard<'_, Shard>,
        grant: &Grant,
        backing: &impl Backing,
        mut credit: Credit<'_>,
    ) -> Result<(), ReserveError> {
        let few = credit.pages() <= HOLD_PAGES;
        let mut inner: [Vec<Range<u32>>; 3] = Default::default();
        for (id, span) in grant.spans() {
            let area = shard.area_mut(id.kind);
            let own = if few { 0..0 } else { self.geometry.whole_units(&span.range()) };
            for run in area.missing(&span.range()).collect::<Vec<_>>() {
                let ours = run.start.max(own.start).min(run.end)..run.end.min(own.end).max(run.start);
                let ours = if ours.is_empty() { run.end..run.end } else { ours };
                for edge in [run.start..ours.start, ours.end..run.end] {
                    self.commit_run(area, id, &span, edge, backing, &mut credit)?;
                }
                inner[id.kind as usize].push(ours);
            }
        }
        for (id, span) in grant.spans() {
            for run in inner[id.kind as usize].iter().filter(|run| !run.is_empty()) {
                shard.area_mut(id.kind).commit(run.clone(), &span.range());
            }
        }
        drop(shard);
        self.commit_inner(grant, &inner, backing, credit)
    }

    /// Commits pages that are noted as committed already, and that no other span lies on.
    fn commit_inner(
        &self,
        grant: &Grant,
        inner: &[Vec<Range<u32>>; 3],
        backing: &impl Backing,
        mut credit: Credit<'_>,
    ) -> Result<(), ReserveError> {
        let mut refusal = Ok(());
        for (id, _) in grant.spans() {
            for run in inner[id.kind as usize].iter().filter(|run| !run.is_empty()) {
                if refusal.is_ok() {
                    refusal = backing.commit(id, run.clone()).map_err(|errno| refused(id, "commit", run, errno));
                }
                match refusal {
                    Ok(()) => credit.spend(run.len() as u64),
                    Err(_) => self.shard(id.arena).area_mut(id.kind).decommit(run.clone()),
                }
            }
        }
        refusal
    }

    /// Commits a run of a span's pages under the lock, and a few behind it.
    fn commit_run(
        &self,
        area: &mut Area,
        id: AreaId,
        span: &Span,
        run: Range<u32>,
        backing: &impl Backing,
        credit: &mut Credit<'_>,
    ) -> Result<(), ReserveError> {
        if run.is_empty() {
            return Ok(());
        }
        let ahead = area.missing_behind(run.end, AHEAD_PAGES.saturating_sub(run.len() as u32));
        let longer = run.start..ahead.end;
        // What is not needed yet is no reason to fail.
        let run = if !ahead.is_empty()
            && credit.raise(credit.pages() + ahead.len() as u64).is_ok()
            && backing.commit(id, longer.clone()).is_ok()
        {
            longer
        } else {
            backing.commit(id, run.clone()).map_err(|errno| refused(id, "commit", &run, errno))?;
            run
        };
        credit.spend(run.len() as u64);
        area.commit(run, &span.range());
        Ok(())
    }

    /// Gives idle pages back, at least this many if there are so many, and leaves them charged to the caller. From the
    /// last shard on, as the first is filled first.
    fn reclaim(&self, pages: u64, backing: &impl Backing) -> Result<u64, ReserveError> {
        let mut reclaimed = 0;
        for arena in (0..self.geometry.all_arenas()).rev() {
            while reclaimed < pages {
                match self.reclaim_in(arena, HOLD_PAGES.min(pages - reclaimed), backing) {
                    Ok(0) => break,
                    Ok(more) => reclaimed += more,
                    Err(error) if reclaimed == 0 => return Err(error),
                    Err(_) => return Ok(reclaimed),
                }
            }
        }
        Ok(reclaimed)
    }

    fn reclaim_in(&self, arena: u32, pages: u64, backing: &impl Backing) -> Result<u64, ReserveError> {
        let mut shard = self.shard(arena);
        let Some((kind, run)) = shard.idle_run(pages as u32) else { return Ok(0) };
        decommit(&mut shard, AreaId { arena, kind }, run, backing)
    }

    /// Gives a whole free chunk back if the shard has more free memory than it keeps.
    fn trim(&self, shard: &mut Shard, arena: u32, backing: &impl Backing) {
        if shard.idle_pages() <= self.keep_pages {
            return;
        }
        if let Some((kind, run)) = shard.idle_chunk() {
            // Refused, the chunk stays where it is and is tried again with what is given back next.
            let pages = decommit(shard, AreaId { arena, kind }, run, backing).unwrap_or(0);
            self.commit.discharge(pages);
        }
    }

    /// Commits pages of a span again that were given back under it.
    #[cfg(test)]
    pub(super) fn commit_for_tests(&self, id: AreaId, pages: Range<u32>, backing: &impl Backing) {
        backing.commit(id, pages.clone()).unwrap();
        self.commit.charge(pages.len() as u64).unwrap();
        let owned = self.geometry.granules_of(&pages);
        self.shard(id.arena).area_mut(id.kind).commit(pages, &owned);
    }

    /// Addresses lack.
    fn no_room(&self, part: PartKind, wants: &Wants, lacks: Lacks) -> ReserveError {
        let granules = wants[part as usize].map_or(0, |want| want.granules);
        self.fragmented(part, u64::from(granules) * self.geometry.granule_bytes, lacks, lacks == Lacks::Low)
    }

    /// Pages lack for what would lie in this arena.
    fn no_pages(&self, arena: u32, part: PartKind, needed_bytes: u64) -> ReserveError {
        self.fragmented(part, needed_bytes, Lacks::Pages, self.geometry.is_low(arena))
    }

    /// `low`: of what would lie below 2 GiB.
    fn fragmented(&self, part: PartKind, needed_bytes: u64, lacks: Lacks, low: bool) -> ReserveError {
        let largest = |arena| self.shard(arena).area(part).largest_free_bytes();
        let (common, all) = (self.geometry.arenas, self.geometry.all_arenas());
        let wanted = if low { common..all } else { 0..common };
        ReserveError::Fragmented {
            part,
            needed_bytes,
            lacks,
            largest_free_bytes: wanted.map(largest).max().unwrap_or(0),
            committed_bytes: self.commit.charged_bytes(),
            commit_limit_bytes: self.limit_bytes(),
        }
    }
}

fn take(shard: &mut Shard, at: usize, wants: &Wants) -> Result<(Grant, bool), PartKind> {
    let grant = shard.take(at as u32, wants)?;
    let committed = shard.is_committed(&grant);
    Ok((grant, committed))
}

fn decommit(shard: &mut Shard, id: AreaId, run: Range<u32>, backing: &impl Backing) -> Result<u64, ReserveError> {
    backing.decommit(id, run.clone()).map_err(|errno| refused(id, "give back", &run, errno))?;
    let pages = run.len() as u64;
    shard.area_mut(id.kind).decommit(run);
    Ok(pages)
}

fn refused(area: AreaId, step: &'static str, run: &Range<u32>, errno: Errno) -> ReserveError {
    ReserveError::Commit { part: area.kind, step, bytes: run.len() as u64 * PAGE_BYTES, errno }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
