//! Granules by 64: which have an owner, and where spans and free runs begin and end.

use std::ops::Range;

/// Granules of a cell: the bits of a word.
pub(super) const CELL_GRANULES: u32 = u64::BITS;

/// Index of a cell's word of owned granules.
const USED: usize = 0;
/// Index of a cell's word of granules that are the last of their span.
const LAST: usize = 1;
/// Index of a cell's two tags.
const TAGS: usize = 2;

/// All cells of an area. Zero is what a free cell is, so that the memory of cells that were never used stays untouched.
pub(super) struct Cells {
    words: Box<[[u64; 3]]>,
    granules: u32,
}

impl Cells {
    /// All granules are free.
    pub(super) fn new(granules: u32) -> Self {
        assert_eq!(granules % CELL_GRANULES, 0, "invariant: an area is made of whole cells");
        Self { words: vec![[0; 3]; (granules / CELL_GRANULES) as usize].into_boxed_slice(), granules }
    }

    pub(super) fn count(&self) -> u32 {
        self.words.len() as u32
    }

    pub(super) fn granules(&self) -> u32 {
        self.granules
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        size_of_val(&*self.words) as u64
    }

    pub(super) fn is_used(&self, granule: u32) -> bool {
        self.word(cell_of(granule), USED) & bit_of(granule) != 0
    }

    /// Whether a granule has an owner, or lies behind the area.
    pub(super) fn is_owned(&self, granule: u32) -> bool {
        granule >= self.granules || self.is_used(granule)
    }

    fn is_last(&self, granule: u32) -> bool {
        self.word(cell_of(granule), LAST) & bit_of(granule) != 0
    }

    /// Whether no granule of these has an owner.
    pub(super) fn is_free(&self, granules: &Range<u32>) -> bool {
        masks(granules).all(|(cell, mask)| self.word(cell, USED) & mask == 0)
    }

    /// Gives granules an owner; the last of them ends its span.
    pub(super) fn occupy(&mut self, granules: &Range<u32>) {
        masks(granules).for_each(|(cell, mask)| self.word_mut(cell)[USED] |= mask);
        self.end_span(granules.end - 1);
    }

    /// Makes a granule the last of its span.
    pub(super) fn end_span(&mut self, granule: u32) {
        self.word_mut(cell_of(granule))[LAST] |= bit_of(granule);
    }

    /// Makes a granule one that another of its span follows.
    pub(super) fn continue_span(&mut self, granule: u32) {
        self.word_mut(cell_of(granule))[LAST] &= !bit_of(granule);
    }

    pub(super) fn release(&mut self, granules: &Range<u32>) {
        for (cell, mask) in masks(granules) {
            let word = self.word_mut(cell);
            word[USED] &= !mask;
            word[LAST] &= !mask;
        }
    }

    /// Where the span of an owned granule starts.
    pub(super) fn span_start(&self, granule: u32) -> u32 {
        let (mut cell, mut mask) = (cell_of(granule), bit_of(granule) - 1);
        loop {
            let word = self.words[cell as usize];
            let before = (!word[USED] | word[LAST]) & mask;
            if before != 0 {
                return cell * CELL_GRANULES + before.ilog2() + 1;
            }
            if cell == 0 {
                return 0;
            }
            (cell, mask) = (cell - 1, u64::MAX);
        }
    }

    /// Where the span of an owned granule ends.
    pub(super) fn span_end(&self, granule: u32) -> u32 {
        let (mut cell, mut mask) = (cell_of(granule), u64::MAX << (granule % CELL_GRANULES));
        loop {
            let last = self.word(cell, LAST) & mask;
            if last != 0 {
                return cell * CELL_GRANULES + last.trailing_zeros() + 1;
            }
            (cell, mask) = (cell + 1, u64::MAX);
        }
    }

    /// Whether a span starts at this granule, which has an owner.
    pub(super) fn starts_span(&self, granule: u32) -> bool {
        granule == 0 || !self.is_used(granule - 1) || self.is_last(granule - 1)
    }

    /// Tells the cells at both ends of a free run of its length, if it goes to the end of one.
    pub(super) fn tag_run(&mut self, run: &Range<u32>) {
        let (first, behind) = (cell_of(run.start), cell_of(run.end));
        if first < behind {
            self.set_tag(first, run.len() as u32, u32::MAX);
            self.set_tag(behind - 1, run.start, 0);
        }
    }

    /// Tells the cell in which a run starts that is none of those that [`Self::run_in`] is to find.
    pub(super) fn tag_unlisted(&mut self, start: u32) {
        if start < self.granules {
            self.set_tag(cell_of(start), 0, u32::MAX);
        }
    }

    /// The free run that starts at this granule, where one does.
    pub(super) fn run_from(&self, start: u32) -> Range<u32> {
        let (cell, at) = (cell_of(start), start % CELL_GRANULES);
        let granules = (!self.word(cell, USED) >> at).trailing_ones();
        if at + granules < CELL_GRANULES {
            return start..start + granules;
        }
        start..start + self.length_tag(cell)
    }

    /// Where the free run starts that ends before this granule; the granule itself if none does.
    pub(super) fn run_start_before(&self, end: u32) -> u32 {
        let Some(last) = end.checked_sub(1) else { return end };
        let (cell, at) = (cell_of(last), last % CELL_GRANULES);
        let granules = (!self.word(cell, USED) << (CELL_GRANULES - 1 - at)).leading_ones();
        if granules <= at || !self.continues(cell) {
            return end - granules;
        }
        // The run goes on in the cell before, so it has gone to the end of a cell.
        self.start_tag(cell_of(end) - 1)
    }

    /// The shortest of the free runs that start in this cell and have from `low` to `high` granules, the lowest of
    /// several; and it must hold `granules` at a multiple of `align`.
    pub(super) fn run_in(&self, cell: u32, lengths: &Range<u32>, granules: u32, align: u32) -> Option<Range<u32>> {
        let free = !self.word(cell, USED);
        let starts = free & !(free << 1 | u64::from(self.continues(cell)));
        let tail = free.leading_ones();
        let tail_start = if tail > 0 { 1_u64 << (CELL_GRANULES - tail) } else { 0 };
        // Lengths are ranges only where they are longer than a cell, and then it is the tail.
        let mut exact = exactly(free, lengths.start) & starts & !tail_start;
        while exact != 0 {
            let start = cell * CELL_GRANULES + exact.trailing_zeros();
            let run = start..start + lengths.start;
            if holds(&run, granules, align) {
                return Some(run);
            }
            exact &= exact - 1;
        }
        if tail_start & starts == 0 {
            return None;
        }
        let start = cell * CELL_GRANULES + CELL_GRANULES - tail;
        let run = start..start + self.length_tag(cell);
        (lengths.contains(&(run.len() as u32)) && holds(&run, granules, align)).then_some(run)
    }

    /// Whether the granule before this cell is free.
    fn continues(&self, cell: u32) -> bool {
        cell > 0 && self.word(cell - 1, USED) >> (CELL_GRANULES - 1) == 0
    }

    fn length_tag(&self, cell: u32) -> u32 {
        self.word(cell, TAGS) as u32
    }

    fn start_tag(&self, cell: u32) -> u32 {
        (self.word(cell, TAGS) >> 32) as u32
    }

    /// Sets the length of the run that starts in a cell and goes to its end (`mask`), or the start of the run to which
    /// no later cell's end belongs.
    fn set_tag(&mut self, cell: u32, value: u32, mask: u32) {
        let tags = &mut self.word_mut(cell)[TAGS];
        *tags = if mask == 0 {
            *tags & u64::from(u32::MAX) | u64::from(value) << 32
        } else {
            *tags >> 32 << 32 | u64::from(value)
        };
    }

    fn word(&self, cell: u32, which: usize) -> u64 {
        touch(&self.words[cell as usize]);
        self.words[cell as usize][which]
    }

    fn word_mut(&mut self, cell: u32) -> &mut [u64; 3] {
        touch(&self.words[cell as usize]);
        &mut self.words[cell as usize]
    }
}

/// Whether a run has room for granules at a multiple of `align`.
pub(super) fn holds(run: &Range<u32>, granules: u32, align: u32) -> bool {
    aligned(run.start, align) - run.start + granules <= run.len() as u32
}

/// The next multiple of `align`, a power of two.
pub(super) fn aligned(start: u32, align: u32) -> u32 {
    (start + (align - 1)) & !(align - 1)
}

/// The bits at which exactly this many ones start, or more of them if they go to the end; junk within longer rows,
/// whose starts are not at these bits.
fn exactly(free: u64, length: u32) -> u64 {
    if length >= CELL_GRANULES {
        return 0;
    }
    at_least(free, length) & !at_least(free, length + 1)
}

/// The bits at which at least this many ones begin; `length` is at most 64.
fn at_least(ones: u64, length: u32) -> u64 {
    let (mut bits, mut have) = (ones, 1);
    while have < length {
        let more = have.min(length - have);
        bits &= bits >> more;
        have += more;
    }
    bits
}

fn cell_of(granule: u32) -> u32 {
    granule / CELL_GRANULES
}

fn bit_of(granule: u32) -> u64 {
    1 << (granule % CELL_GRANULES)
}

/// The cells of a range, each with the bits of its granules.
fn masks(granules: &Range<u32>) -> impl Iterator<Item = (u32, u64)> + use<> {
    let Range { start, end } = *granules;
    (cell_of(start)..end.div_ceil(CELL_GRANULES)).map(move |cell| {
        let first = cell * CELL_GRANULES;
        let (low, high) = (start.max(first) - first, end.min(first + CELL_GRANULES) - first);
        (cell, (u64::MAX >> (CELL_GRANULES - (high - low))) << low)
    })
}

/// Counts the cache lines that an operation looks at, in tests.
#[cfg(not(test))]
pub(super) fn touch<T>(_: &T) {}
#[cfg(test)]
pub(super) use super::testing::touch;
