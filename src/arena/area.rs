//! One area: its spans, and which of its pages are committed. Pure: the caller does what must be done to the pages.

use std::ops::Range;

use super::{
    blocks::{Blocks, Span},
    error::FreeError,
    geometry::{GRANULE_BYTES, GRANULES_PER_PAGE, PAGE_BYTES, pages_touched, pages_within},
    page_set::PageSet,
    stats::KindStats,
};

/// The memory of one kind in one arena.
pub(super) struct Area {
    blocks: Blocks,
    granules: u32,
    granules_used: u32,
    spans: u32,
    committed: PageSet,
    /// The committed pages on which no span lies: what can be given back.
    idle: PageSet,
}

impl Area {
    pub(super) fn new(granules: u32) -> Self {
        let pages = granules / GRANULES_PER_PAGE;
        Self {
            blocks: Blocks::new(granules),
            granules,
            granules_used: 0,
            spans: 0,
            committed: PageSet::new(pages),
            idle: PageSet::new(pages),
        }
    }

    pub(super) fn take(&mut self, granules: u32, align_granules: u32) -> Option<Span> {
        let span = self.blocks.take(granules, align_granules)?;
        self.granules_used += granules;
        self.spans += 1;
        self.idle.remove(pages_touched(&span.range()));
        Some(span)
    }

    pub(super) fn give(&mut self, span: &Span) -> Result<(), FreeError> {
        let free = pages_within(&self.blocks.give(span)?);
        self.granules_used -= span.range().len() as u32;
        self.spans -= 1;
        // A page that has just become free was touched by this span; other free pages were idle already.
        let touched = pages_touched(&span.range());
        let freed = touched.start.max(free.start)..touched.end.min(free.end);
        for run in self.committed.runs(freed, true) {
            self.idle.insert(run);
        }
        Ok(())
    }

    /// How many of the pages that these granules lie on are not committed.
    pub(super) fn missing_pages(&self, granules: &Range<u32>) -> u64 {
        self.committed.runs(pages_touched(granules), false).map(|run| run.len() as u64).sum()
    }

    /// The first run of the pages that these granules lie on and that are not committed.
    pub(super) fn first_missing(&self, granules: &Range<u32>) -> Option<Range<u32>> {
        self.committed.runs(pages_touched(granules), false).next()
    }

    /// Notes that a span's pages are committed.
    pub(super) fn commit(&mut self, pages: Range<u32>) {
        self.committed.insert(pages);
    }

    /// Notes that pages were given back.
    pub(super) fn decommit(&mut self, pages: Range<u32>) {
        self.committed.remove(pages.clone());
        self.idle.remove(pages);
    }

    /// A run of pages that can be given back, of at most `pages_max`.
    pub(super) fn idle_run(&self, pages_max: u32) -> Option<Range<u32>> {
        self.idle.first_run(pages_max)
    }

    pub(super) fn idle_pages(&self) -> u64 {
        self.idle.count().into()
    }

    pub(super) fn committed_pages(&self) -> u64 {
        self.committed.count().into()
    }

    pub(super) fn largest_free_bytes(&self) -> u64 {
        u64::from(self.blocks.largest_free()) * GRANULE_BYTES
    }

    pub(super) fn stats(&self) -> KindStats {
        let used_bytes = u64::from(self.granules_used) * GRANULE_BYTES;
        let committed_bytes = self.committed_pages() * PAGE_BYTES;
        KindStats {
            used_bytes,
            // Spans lie on committed pages only.
            free_bytes: committed_bytes - used_bytes,
            reserved_bytes: u64::from(self.granules) * GRANULE_BYTES,
            committed_bytes,
            spans: self.spans.into(),
            largest_free_bytes: self.largest_free_bytes(),
        }
    }
}
