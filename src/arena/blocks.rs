//! Which granules of an area belong to whom: the best fit with the lowest address.
//!
//! Free runs are kept by their length, those of one length by their address, in sets of bits whose size depends on the
//! area alone; so a search takes the same few steps however many spans there are, and what is left over lies together
//! at the high addresses. No free run has a free neighbour. Nothing is stored in the memory itself, so code that
//! overruns cannot reach it. Pure: knows no address and no system call.

use std::ops::Range;

use super::{
    cells::{CELL_GRANULES, Cells, aligned, holds},
    classes::{self, Classes, class_holding, class_of, lengths},
    free_error::FreeError,
};

/// The largest area.
pub(super) const AREA_GRANULES_MAX: u32 = classes::LENGTH_MAX;
/// How many runs are looked at one by one where the class alone does not say that a run fits, before a longer one is
/// cut: a bound on time.
const VISITS_MAX: usize = 8;

/// A run of granules with one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) granules: u32,
}

impl Span {
    pub(super) fn new(start: u32, granules: u32) -> Self {
        Self { start, granules }
    }

    pub(super) fn range(&self) -> Range<u32> {
        self.start..self.start + self.granules
    }
}

/// A span, or a free run as long as it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) granules: Range<u32>,
    pub(super) used: bool,
}

/// The spans of one area.
pub(super) struct Blocks {
    cells: Cells,
    /// All free runs but the one at the area's end.
    classes: Classes,
    /// Where the free run at the area's end starts: the area's end if there is none. It is used when no other run
    /// fits, and is not sorted in: most often it only moves its start.
    top: u32,
}

impl Blocks {
    /// All free. `granules` is a multiple of those of a cell, up to [`AREA_GRANULES_MAX`].
    pub(super) fn new(granules: u32) -> Self {
        let cells = Cells::new(granules);
        Self { classes: Classes::new(cells.count()), cells, top: 0 }
    }

    /// A span of `granules` (at least one), its start a multiple of `align` (a power of two). `None` only if no free
    /// run holds it.
    ///
    /// The number of spans does not matter as long as a run is left that is surely long enough. If there is none, all
    /// that may be are searched: not those for fewer than 128 granules at any start, where the class says it all.
    pub(super) fn take(&mut self, granules: u32, align: u32) -> Option<Span> {
        if let Some(run) = self.find_run(granules, align) {
            return Some(self.take_from(&run, granules, align));
        }
        let span = self.take_top(granules, align);
        span.or_else(|| self.search_all(granules, align).map(|run| self.take_from(&run, granules, align)))
    }

    /// Whether [`Self::take`] finds such a span.
    pub(super) fn has_room(&self, granules: u32, align: u32) -> bool {
        self.find_run(granules, align).is_some()
            || holds(&(self.top..self.cells.granules()), granules, align)
            || self.search_all(granules, align).is_some()
    }

    /// Gives a span back and says which free run its granules lie in now.
    pub(super) fn give(&mut self, span: &Span) -> Result<Range<u32>, FreeError> {
        self.check(span)?;
        Ok(self.free(&span.range()))
    }

    /// Cuts a span to its first `granules`: at least one, and not more than it has.
    pub(super) fn shrink(&mut self, span: &Span, granules: u32) -> Result<Span, FreeError> {
        self.check(span)?;
        let kept = Span { start: span.start, granules: granules.clamp(1, span.granules) };
        if kept != *span {
            self.cells.end_span(kept.range().end - 1);
            self.free(&(kept.range().end..span.range().end));
        }
        Ok(kept)
    }

    /// Makes a span longer where it is, if what lies behind it is free.
    pub(super) fn grow(&mut self, span: &Span, granules: u32) -> Result<Option<Span>, FreeError> {
        self.check(span)?;
        let Span { start, granules: old } = *span;
        let (end, more) = (start + old, granules.saturating_sub(old));
        if more == 0 {
            return Ok(Some(*span));
        }
        if self.cells.is_owned(end) {
            return Ok(None);
        }
        let run = self.run_from(end);
        if (run.len() as u32) < more {
            return Ok(None);
        }
        self.cells.continue_span(end - 1);
        if end == self.top {
            self.cells.occupy(&(end..end + more));
            self.move_top(end + more);
        } else {
            self.cut(&run, &(end..end + more));
        }
        Ok(Some(Span { start, granules }))
    }

    /// The span that this granule lies in. Looks at a word for each 64 granules of the span.
    pub(super) fn find(&self, granule: u32) -> Option<Span> {
        let used = granule < self.cells.granules() && self.cells.is_used(granule);
        used.then(|| {
            let start = self.cells.span_start(granule);
            Span { start, granules: self.cells.span_end(granule) - start }
        })
    }

    /// Whether no granule of these has an owner.
    pub(super) fn is_free(&self, granules: &Range<u32>) -> bool {
        self.cells.is_free(granules)
    }

    /// The longest free run. Looks at each run of the highest class.
    pub(super) fn largest_free(&self) -> u32 {
        let top = self.cells.granules() - self.top;
        let Some(class) = self.classes.last_class() else { return top };
        let runs = self.classes.cells(class).filter_map(|cell| self.cells.run_in(cell, &lengths(class), 1, 1));
        // The runs of an exact class are all alike.
        let runs = runs.take(if lengths(class).len() == 1 { 1 } else { usize::MAX });
        runs.map(|run| run.len() as u32).max().unwrap_or(0).max(top)
    }

    /// Spans and free runs in the order of their addresses, which together are the area.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = (at < self.cells.granules()).then_some(at)?;
            let used = self.cells.is_used(start);
            at = if used { self.cells.span_end(start) } else { self.run_from(start).end };
            Some(Run { granules: start..at, used })
        })
    }

    pub(super) fn metadata_bytes(&self) -> u64 {
        self.cells.heap_bytes() + self.classes.heap_bytes()
    }

    fn check(&self, span: &Span) -> Result<(), FreeError> {
        let Span { start, granules } = *span;
        let area = self.cells.granules();
        if granules == 0 || start >= area || granules > area - start {
            return Err(FreeError::Outside { start, granules, area });
        }
        if !self.cells.is_used(start) {
            return Err(FreeError::NotAllocated { start });
        }
        let end = self.cells.span_end(start);
        if !self.cells.starts_span(start) || end != start + granules {
            let found = self.cells.span_start(start);
            return Err(FreeError::NotASpan { start, granules, found_start: found, found_granules: end - found });
        }
        Ok(())
    }

    /// The shortest run that the classes tell to fit, or one of a few shorter ones that were looked at.
    fn find_run(&self, granules: u32, align: u32) -> Option<Range<u32>> {
        let (own, sure) = classes_for(granules, align)?;
        if own < sure
            && let Some(run) = self.visit(self.cells_of(own, sure).take(VISITS_MAX), granules, align)
        {
            return Some(run);
        }
        let class = self.classes.next_class(sure)?;
        self.cells.run_in(self.classes.lowest(class), &lengths(class), granules, align)
    }

    /// Any run that fits, where no class says that one does. Looks at each cell that may have one, and there at each
    /// run: those of one length differ in their alignment.
    fn search_all(&self, granules: u32, align: u32) -> Option<Range<u32>> {
        let (own, sure) = classes_for(granules, align)?;
        self.visit(self.cells_of(own, sure), granules, align)
    }

    fn visit(&self, mut cells: impl Iterator<Item = (usize, u32)>, granules: u32, align: u32) -> Option<Range<u32>> {
        cells.find_map(|(class, cell)| self.cells.run_in(cell, &lengths(class), granules, align))
    }

    /// The cells of the classes from `from` to before `to`, each with its class.
    fn cells_of(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, u32)> {
        self.nonempty(from, to).flat_map(|class| self.classes.cells(class).map(move |cell| (class, cell)))
    }

    fn nonempty(&self, from: usize, to: usize) -> impl Iterator<Item = usize> {
        let mut at = from;
        std::iter::from_fn(move || {
            let class = self.classes.next_class(at).filter(|&class| class < to)?;
            at = class + 1;
            Some(class)
        })
    }

    /// Takes the first granules of a free run that are aligned so.
    fn take_from(&mut self, run: &Range<u32>, granules: u32, align: u32) -> Span {
        let span = Span { start: aligned(run.start, align), granules };
        self.cut(run, &span.range());
        span
    }

    /// Takes a part of a free run.
    fn cut(&mut self, run: &Range<u32>, taken: &Range<u32>) {
        self.cells.occupy(taken);
        let rests = [run.start..taken.start, taken.end..run.end];
        for rest in rests.iter().filter(|rest| !rest.is_empty()) {
            self.cells.tag_run(rest);
        }
        self.unlist(run);
        rests.iter().filter(|rest| !rest.is_empty()).for_each(|rest| self.list_tagged(rest));
    }

    /// Takes the start of the run at the area's end. What alignment leaves before it becomes a run of its own.
    fn take_top(&mut self, granules: u32, align: u32) -> Option<Span> {
        let start = aligned(self.top, align);
        if granules > self.cells.granules().checked_sub(start)? {
            return None;
        }
        let gap = self.top..start;
        self.cells.occupy(&(start..start + granules));
        self.move_top(start + granules);
        if !gap.is_empty() {
            self.list(&gap);
        }
        Some(Span { start, granules })
    }

    fn move_top(&mut self, start: u32) {
        self.top = start;
        self.cells.tag_unlisted(start);
    }

    /// The free run that starts at this granule, where one does.
    fn run_from(&self, start: u32) -> Range<u32> {
        if start == self.top { start..self.cells.granules() } else { self.cells.run_from(start) }
    }

    /// Frees granules, which become one run with what is free on both sides.
    fn free(&mut self, granules: &Range<u32>) -> Range<u32> {
        let before = self.cells.run_start_before(granules.start)..granules.start;
        let after =
            if self.cells.is_owned(granules.end) { granules.end..granules.end } else { self.run_from(granules.end) };
        self.cells.release(granules);
        let run = before.start..after.end;
        let is_top = granules.end == self.top;
        if is_top {
            self.move_top(run.start);
        } else {
            self.cells.tag_run(&run);
        }
        if !before.is_empty() {
            self.unlist(&before);
        }
        if is_top {
            return run;
        }
        if !after.is_empty() {
            self.unlist(&after);
        }
        self.list_tagged(&run);
        run
    }

    fn list(&mut self, run: &Range<u32>) {
        self.cells.tag_run(run);
        self.list_tagged(run);
    }

    fn list_tagged(&mut self, run: &Range<u32>) {
        self.classes.insert(class_of(run.len() as u32), run.start / CELL_GRANULES);
    }

    /// Forgets a run that is no more, unless another one of its class starts in the same cell.
    fn unlist(&mut self, run: &Range<u32>) {
        let (class, cell) = (class_of(run.len() as u32), run.start / CELL_GRANULES);
        if self.cells.run_in(cell, &lengths(class), 1, 1).is_none() {
            self.classes.remove(class, cell);
        }
    }
}

/// The lowest class in which a run may fit, and the lowest all of whose runs do.
fn classes_for(granules: u32, align: u32) -> Option<(usize, usize)> {
    let needed = granules.checked_add(align - 1)?;
    let sure = if needed <= AREA_GRANULES_MAX { class_holding(needed) } else { usize::MAX };
    Some((class_of(granules.min(AREA_GRANULES_MAX)), sure))
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
