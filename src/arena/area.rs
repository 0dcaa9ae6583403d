//! One area: its spans, and which of its pages are committed. Pure: the caller does what must be done to the pages.

use std::ops::Range;

use super::{
    blocks::{Blocks, Run, Span},
    epochs::Stamp,
    free_error::FreeError,
    geometry::{Geometry, HUGE_BYTES, PAGE_BYTES},
    page_set::PageSet,
    stats::KindStats,
};

/// Pages of what may become one huge page.
pub(super) const CHUNK_PAGES: u32 = (HUGE_BYTES / PAGE_BYTES) as u32;

/// The memory of one kind in one arena.
pub(super) struct Area {
    geometry: Geometry,
    pages: u32,
    blocks: Blocks,
    granules_used: u32,
    spans: u32,
    operations: u64,
    committed: PageSet,
    /// The committed pages on which no span lies: what can be given back.
    idle: PageSet,
    /// When code on a page was last freed, as [`Stamp::to_word`]; zero, as memory comes, where none ever ran.
    stamps: Box<[u64]>,
    /// The chunk whose pages must stay as they are while the system makes one page of them.
    held_chunk: Option<u32>,
    /// Chunks that lie on a huge page, or cannot: until a page of them is given back.
    settled: Box<[bool]>,
}

impl Area {
    /// All of it is free. `area_bytes` is a multiple of [`HUGE_BYTES`].
    pub(super) fn new(geometry: Geometry, area_bytes: u64) -> Self {
        let pages = (area_bytes / PAGE_BYTES) as u32;
        Self {
            geometry,
            pages,
            blocks: Blocks::new((area_bytes / geometry.granule_bytes) as u32),
            granules_used: 0,
            spans: 0,
            operations: 0,
            committed: PageSet::new(pages),
            idle: PageSet::new(pages),
            stamps: vec![0; pages as usize].into_boxed_slice(),
            held_chunk: None,
            settled: vec![false; (pages / CHUNK_PAGES) as usize].into_boxed_slice(),
        }
    }

    pub(super) fn take(&mut self, granules: u32, align_granules: u32) -> Option<Span> {
        let span = self.blocks.take(granules, align_granules)?;
        self.granules_used += granules;
        self.spans += 1;
        self.operations += 1;
        self.idle.remove(self.geometry.pages_touched(&span.range()));
        Some(span)
    }

    /// Takes a span back where code was last freed at `stamp`.
    pub(super) fn has_room(&self, granules: u32, align_granules: u32) -> bool {
        self.blocks.has_room(granules, align_granules)
    }

    pub(super) fn give(&mut self, span: &Span, stamp: Stamp) -> Result<(), FreeError> {
        self.blocks.give(span)?;
        self.granules_used -= span.range().len() as u32;
        self.spans -= 1;
        self.operations += 1;
        self.stamp_granules(&span.range(), stamp);
        self.idle_again(self.geometry.pages_touched(&span.range()));
        Ok(())
    }

    /// Cuts a span to its first `granules`; where the others lie code was last freed at `stamp`.
    pub(super) fn shrink(&mut self, span: &Span, granules: u32, stamp: Stamp) -> Result<Span, FreeError> {
        let kept = self.blocks.shrink(span, granules)?;
        self.granules_used -= span.range().len() as u32 - granules;
        self.operations += 1;
        let given = kept.range().end..span.range().end;
        self.stamp_granules(&given, stamp);
        self.idle_again(self.geometry.pages_touched(&given));
        Ok(kept)
    }

    /// Makes a span longer where it is; `None` if what follows has an owner.
    pub(super) fn grow(&mut self, span: &Span, granules: u32) -> Result<Option<Span>, FreeError> {
        let Some(longer) = self.blocks.grow(span, granules)? else { return Ok(None) };
        self.granules_used += granules - span.range().len() as u32;
        self.operations += 1;
        self.idle.remove(self.geometry.pages_touched(&longer.range()));
        Ok(Some(longer))
    }

    pub(super) fn find(&self, granule: u32) -> Option<Span> {
        self.blocks.find(granule)
    }

    /// When code that ran on these granules' pages was last freed.
    pub(super) fn stamp(&self, granules: &Range<u32>) -> Stamp {
        let pages = self.geometry.pages_touched(granules);
        let stamps = &self.stamps[pages.start as usize..pages.end as usize];
        Stamp::of_word(stamps.iter().copied().max().unwrap_or(0))
    }

    /// Whether all pages that these granules lie on are committed.
    pub(super) fn is_committed(&self, granules: &Range<u32>) -> bool {
        self.committed.contains(&self.geometry.pages_touched(granules))
    }

    /// The runs of the pages that these granules lie on and that are not committed, as they must be committed: in
    /// whole units.
    pub(super) fn missing(&self, granules: &Range<u32>) -> impl Iterator<Item = Range<u32>> {
        let runs = self.committed.runs(self.geometry.pages_touched(granules), false);
        runs.map(|run| self.geometry.units_touched(&run))
    }

    /// Of the pages behind `from`, up to `pages_max`, those that are free and not committed: a run that may be empty.
    pub(super) fn missing_behind(&self, from: u32, pages_max: u32) -> Range<u32> {
        let end = self.pages.min(from.saturating_add(pages_max));
        if self.geometry.unit_pages > 1 {
            return from..from;
        }
        let run = self.committed.runs(from..end, false).next().filter(|run| run.start == from).unwrap_or(from..from);
        let free = |pages: &Range<u32>| self.blocks.is_free(&self.geometry.granules_of(pages));
        if free(&run) { run } else { from..from }
    }

    /// Notes that pages are committed. All but those that the `owned` granules lie on can be given back.
    pub(super) fn commit(&mut self, pages: Range<u32>, owned: &Range<u32>) {
        self.committed.insert(pages.clone());
        let owned = self.geometry.pages_touched(owned);
        self.idle.insert(pages.start..owned.start.clamp(pages.start, pages.end));
        self.idle.insert(owned.end.clamp(pages.start, pages.end)..pages.end);
    }

    /// Notes that pages were given back.
    pub(super) fn decommit(&mut self, pages: Range<u32>) {
        self.settled[(pages.start / CHUNK_PAGES) as usize..pages.end.div_ceil(CHUNK_PAGES) as usize].fill(false);
        self.committed.remove(pages.clone());
        self.idle.remove(pages);
    }

    /// The highest run of pages that can be given back, of at most `pages_max`: the lowest are used first.
    pub(super) fn idle_run(&self, pages_max: u32) -> Option<Range<u32>> {
        if self.geometry.unit_pages == 1 { self.idle.last_run(pages_max) } else { self.idle_chunk() }
    }

    /// The pages of the highest chunk that can be given back as a whole.
    pub(super) fn idle_chunk(&self) -> Option<Range<u32>> {
        self.idle.last_full_chunk().map(chunk_pages)
    }

    /// A chunk from `from` on all of whose pages are committed and have an owner. Its pages stay as they are until
    /// [`Self::release_chunk`].
    pub(super) fn hold_full_chunk(&mut self, from: u32) -> Option<u32> {
        let chunks = self.pages / CHUNK_PAGES;
        let chunk = (from..chunks).find(|&chunk| {
            !self.settled[chunk as usize]
                && self.committed.is_full_chunk(chunk)
                && self.idle.runs(chunk_pages(chunk), true).next().is_none()
        })?;
        self.held_chunk = Some(chunk);
        Some(chunk)
    }

    /// Answers those of the chunk's pages that an owner has given back by itself meanwhile: the system may have
    /// committed them again.
    pub(super) fn release_chunk(&mut self, settled: bool) -> Vec<Range<u32>> {
        let Some(chunk) = self.held_chunk.take() else { return Vec::new() };
        for page in chunk_pages(chunk) {
            self.idle_again(page..page + 1);
        }
        let missing: Vec<_> = self.committed.runs(chunk_pages(chunk), false).collect();
        self.settled[chunk as usize] = settled && missing.is_empty();
        missing
    }

    pub(super) fn idle_pages(&self) -> u32 {
        self.idle.count()
    }

    pub(super) fn committed_pages(&self) -> u32 {
        self.committed.count()
    }

    pub(super) fn largest_free_bytes(&self) -> u64 {
        u64::from(self.blocks.largest_free()) * self.geometry.granule_bytes
    }

    /// Spans and free runs in the order of their addresses.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run> {
        self.blocks.runs()
    }

    /// The committed pages among those that lie wholly within these granules.
    pub(super) fn committed_within(&self, granules: &Range<u32>) -> impl Iterator<Item = Range<u32>> {
        self.committed.runs(self.geometry.pages_within(granules), true)
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations
    }

    pub(super) fn metadata_bytes(&self) -> u64 {
        let stamps_bytes = size_of_val(&*self.stamps) as u64;
        self.blocks.metadata_bytes() + self.committed.heap_bytes() + self.idle.heap_bytes() + stamps_bytes
    }

    /// All but what is lingering, which the area does not know of.
    pub(super) fn stats(&self) -> KindStats {
        let used_bytes = u64::from(self.granules_used) * self.geometry.granule_bytes;
        let committed_bytes = u64::from(self.committed_pages()) * PAGE_BYTES;
        KindStats {
            used_bytes,
            lingering_bytes: 0,
            // Spans lie on committed pages only, but for those whose owner is about to commit them.
            free_bytes: committed_bytes.saturating_sub(used_bytes),
            reserved_bytes: u64::from(self.pages) * PAGE_BYTES,
            committed_bytes,
            spans: self.spans.into(),
            largest_free_bytes: self.largest_free_bytes(),
        }
    }

    /// A page keeps the latest stamp: a span may come back long after its neighbour whose code was freed later.
    fn stamp_granules(&mut self, granules: &Range<u32>, stamp: Stamp) {
        if stamp != Stamp::default() {
            let pages = self.geometry.pages_touched(granules);
            let stamps = &mut self.stamps[pages.start as usize..pages.end as usize];
            stamps.iter_mut().for_each(|it| *it = stamp.to_word().max(*it));
        }
    }

    /// Looks again which of these pages, on which a span lay, can be given back.
    fn idle_again(&mut self, pages: Range<u32>) {
        let is_free = |page: u32| self.blocks.is_free(&self.geometry.granules_of(&(page..page + 1)));
        // Only the first and the last page can lie under another span.
        let start = pages.start + u32::from(!pages.is_empty() && !is_free(pages.start));
        let end = pages.end - u32::from(start < pages.end && !is_free(pages.end - 1));
        if self.held_chunk.is_some_and(|chunk| overlap(&chunk_pages(chunk), &(start..end))) {
            return self.idle_beside_held_chunk(start..end);
        }
        self.insert_idle(start..end);
    }

    fn idle_beside_held_chunk(&mut self, pages: Range<u32>) {
        let held = self.held_chunk.map_or(0..0, chunk_pages);
        self.insert_idle(pages.start..pages.end.min(held.start));
        self.insert_idle(pages.start.max(held.end)..pages.end);
    }

    fn insert_idle(&mut self, pages: Range<u32>) {
        let mut from = pages.start;
        // One run at a time, as the set of committed pages is only read.
        while let Some(run) = self.committed.runs(from..pages.end.max(from), true).next() {
            from = run.end;
            self.idle.insert(run);
        }
    }
}

fn chunk_pages(chunk: u32) -> Range<u32> {
    chunk * CHUNK_PAGES..(chunk + 1) * CHUNK_PAGES
}

fn overlap(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}
