//! Spans that were freed a moment ago, for whoever asks for as much next: without a lock, and still in a near cache.
//!
//! Each thread has a set of shelves, a row of cells for each length in granules; a cell is a word that names one span.
//! Taking and putting are one atomic exchange each, so any thread may also empty the shelves of others. A thread shares
//! its set with others where there are more threads than sets. Pure: what a span is worth is the caller's to know.
//! `tests/loom` explores the interleavings of this file.

use super::sync::{AtomicU64, Ordering};

/// Up to this length several spans of each length are kept, which together are little memory; of longer ones one of each.
/// More of them are taken more often, but what is kept away from its neighbours leaves more gaps.
const SHORT_BYTES: u64 = 512;
const SHORT_CELLS: u64 = 12;
/// Longer spans are not kept. All rows of a set together hold about half a MiB at granules of 64 bytes.
const SPAN_MAX_BYTES: u64 = 8 << 10;

/// Two cache lines, which some processors fetch together.
const GAP_CELLS: usize = 16;

/// No span.
const EMPTY: u64 = 0;
/// No span, and never one again.
const CLOSED: u64 = 1;
/// Set in the word of every span.
const SPAN: u64 = 2;
const ARENA_BITS: u32 = 10;
const START_BITS: u32 = 22;
const START_SHIFT: u32 = 2;
const ARENA_SHIFT: u32 = START_SHIFT + START_BITS;
const STAMP_SHIFT: u32 = ARENA_SHIFT + ARENA_BITS;
/// Stamps are kept modulo this.
const STAMPS: u64 = 1 << (u64::BITS - STAMP_SHIFT);

/// A span of code on a shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shelved {
    pub(super) arena: u32,
    pub(super) start: u32,
    pub(super) granules: u32,
    /// The word of the stamp of when its code was last freed; that of one that came later is as good, if slower.
    pub(super) stamp: u64,
}

impl Shelved {
    fn to_word(self) -> u64 {
        let stamp = self.stamp % STAMPS;
        SPAN | u64::from(self.start) << START_SHIFT | u64::from(self.arena) << ARENA_SHIFT | stamp << STAMP_SHIFT
    }

    /// `next` is the stamp of what is freed now: no earlier one is larger.
    fn of_word(word: u64, granules: u32, next: u64) -> Self {
        // The largest stamp that has these last bits.
        let stamp = next.wrapping_sub(next.wrapping_sub(word >> STAMP_SHIFT) % STAMPS);
        Self { arena: arena_of(word), start: start_of(word), granules, stamp }
    }
}

fn arena_of(word: u64) -> u32 {
    (word >> ARENA_SHIFT & ((1 << ARENA_BITS) - 1)) as u32
}

fn start_of(word: u64) -> u32 {
    (word >> START_SHIFT & ((1 << START_BITS) - 1)) as u32
}

/// All shelves.
pub(super) struct Shelves {
    /// The sets of all threads, one after the other.
    cells: Box<[AtomicU64]>,
    /// Where the row of each length begins in a set, from none on; and where the last one ends.
    rows: Box<[u16]>,
    /// Cells from one set to the next, of which the last are not used: so no two threads write to one cache line.
    stride: usize,
}

/// The cells for spans of one length.
#[derive(Clone, Copy)]
pub(super) struct Row<'a>(&'a [AtomicU64]);

impl Shelves {
    /// The arenas whose spans can be told apart.
    pub(super) const ARENAS_MAX: u32 = 1 << ARENA_BITS;

    /// Empty. `sets` is a power of two.
    pub(super) fn new(granule_bytes: u64, sets: usize) -> Self {
        assert!(sets.is_power_of_two(), "{sets} sets of shelves");
        let mut rows = vec![0_u16; 2];
        for bytes in (1..).map(|granules| granules * granule_bytes).take_while(|&it| it <= SPAN_MAX_BYTES) {
            let cells = if bytes <= SHORT_BYTES { SHORT_CELLS } else { 1 };
            rows.push(rows[rows.len() - 1] + cells as u16);
        }
        let stride = usize::from(rows[rows.len() - 1]) + GAP_CELLS;
        let cells = (0..sets * stride).map(|_| AtomicU64::new(EMPTY)).collect();
        Self { cells, rows: rows.into_boxed_slice(), stride }
    }

    /// Where spans of this length go; `None` if they go nowhere.
    pub(super) fn row(&self, thread: usize, granules: u32) -> Option<Row<'_>> {
        let granules = granules as usize;
        let (start, end) = (*self.rows.get(granules)?, *self.rows.get(granules + 1)?);
        let sets = self.cells.len() / self.stride;
        Some(self.row_at((thread & (sets - 1)) * self.stride, start, end))
    }

    /// A span of this length that starts at a multiple of `align`, a power of two. `next` tells the stamp of what is
    /// freed now.
    pub(super) fn take(&self, thread: usize, granules: u32, align: u32, next: impl Fn() -> u64) -> Option<Shelved> {
        self.row(thread, granules)?.0.iter().find_map(|cell| {
            let word = cell.load(Ordering::Relaxed);
            if word & SPAN == 0 || start_of(word) & (align - 1) != 0 {
                return None;
            }
            // A span that was taken, freed and put back meanwhile is the same word, and as good.
            cell.compare_exchange(word, EMPTY, Ordering::Acquire, Ordering::Relaxed).ok()?;
            Some(Shelved::of_word(word, granules, next()))
        })
    }

    /// Takes all spans of all threads off, but for what comes meanwhile.
    pub(super) fn drain(&self, next: impl Fn() -> u64) -> impl Iterator<Item = Shelved> {
        self.replace_all(EMPTY, next)
    }

    /// Takes all spans off, and keeps none from now on.
    pub(super) fn close(&self, next: impl Fn() -> u64) -> impl Iterator<Item = Shelved> {
        self.replace_all(CLOSED, next)
    }

    /// Whether a span is kept.
    pub(super) fn contains(&self, arena: u32, start: u32, granules: u32) -> bool {
        let is_it = |word: u64| word & SPAN != 0 && (arena_of(word), start_of(word)) == (arena, start);
        let sets = self.cells.len() / self.stride;
        let mut rows = (0..sets).filter_map(|thread| self.row(thread, granules));
        rows.any(|row| row.0.iter().any(|cell| is_it(cell.load(Ordering::Relaxed))))
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        (size_of_val(&*self.cells) + size_of_val(&*self.rows)) as u64
    }

    fn replace_all(&self, by: u64, next: impl Fn() -> u64) -> impl Iterator<Item = Shelved> {
        let sets = (0..self.cells.len()).step_by(self.stride);
        let rows = sets.flat_map(|set| self.rows.windows(2).enumerate().map(move |row| (set, row)));
        let cells = rows.flat_map(|(set, (granules, ends))| {
            self.row_at(set, ends[0], ends[1]).0.iter().map(move |cell| (granules as u32, cell))
        });
        cells.filter_map(move |(granules, cell)| {
            let replaced = |word| (word != CLOSED && (by == CLOSED || word & SPAN != 0)).then_some(by);
            let word = cell.fetch_update(Ordering::Acquire, Ordering::Relaxed, replaced).ok()?;
            // The stamp of now is asked for after the word was read, or it could be an earlier one than the word's.
            (word & SPAN != 0).then(|| Shelved::of_word(word, granules, next()))
        })
    }

    fn row_at(&self, set: usize, start: u16, end: u16) -> Row<'_> {
        Row(&self.cells[set + usize::from(start)..set + usize::from(end)])
    }
}

impl Row<'_> {
    /// Keeps a span, unless the row is full or closed. From then on others may have the span, and may have dropped the
    /// shelves: so this knows nothing of them but the cells.
    pub(super) fn put(self, span: Shelved) -> bool {
        let word = span.to_word();
        // Pairs with the acquire in `take`: who takes the span finds it as it was left.
        self.0.iter().any(|cell| {
            cell.load(Ordering::Relaxed) == EMPTY
                && cell.compare_exchange(EMPTY, word, Ordering::Release, Ordering::Relaxed).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::arena::testing::Random;

    fn span(start: u32, granules: u32, stamp: u64) -> Shelved {
        Shelved { arena: 3, start, granules, stamp }
    }

    fn put(shelves: &Shelves, thread: usize, span: Shelved) -> bool {
        shelves.row(thread, span.granules).is_some_and(|row| row.put(span))
    }

    #[test]
    fn a_span_comes_back_as_it_was_put_and_its_stamp_never_as_an_earlier_one() {
        let shelves = Shelves::new(64, 1);
        for (stamp, next, found) in [
            (0, 1, 0),
            (7, 7, 7),
            (7, 8, 7),
            (STAMPS - 1, STAMPS + 1, STAMPS - 1),
            (STAMPS + 5, 3 * STAMPS + 5, 3 * STAMPS + 5),
            (STAMPS + 5, 3 * STAMPS + 4, 2 * STAMPS + 5),
            (0, 2 * STAMPS + 9, 2 * STAMPS),
        ] {
            let last = span((1 << START_BITS) - 1, 128, stamp);
            assert!(put(&shelves, 0, last));
            let taken = shelves.take(0, 128, 1, || next);
            assert_eq!(taken, Some(Shelved { stamp: found, ..last }), "{stamp} at {next}");
            assert!(found >= stamp && found <= next);
        }
    }

    #[test]
    fn the_stamp_of_now_is_asked_for_after_a_span_is_taken_off() {
        let shelves = Shelves::new(64, 1);
        let now = std::cell::Cell::new(5);
        assert!(put(&shelves, 0, span(1, 1, 5)));
        let mut drained = shelves.drain(|| now.get());
        assert_eq!(drained.next(), Some(span(1, 1, 5)));
        now.set(6);
        assert!(put(&shelves, 0, span(2, 2, 6)));
        assert_eq!(drained.next(), Some(span(2, 2, 6)));
    }

    #[test]
    fn a_row_keeps_few_spans_and_one_in_any_case_and_none_that_is_too_long() {
        for (granule_bytes, granules, kept) in [
            (64, 1, 12),
            (64, 8, 12),
            (64, 9, 1),
            (64, 128, 1),
            (64, 129, 0),
            (4096, 1, 1),
            (4096, 3, 0),
            (16, 512, 1),
            (64, 0, 0),
        ] {
            let shelves = Shelves::new(granule_bytes, 1);
            let put = (0..40).filter(|&at| put(&shelves, 0, span(at * 1000, granules, 0))).count();
            assert_eq!(put, kept, "{granules} granules of {granule_bytes} bytes");
        }
    }

    #[test]
    fn only_a_span_that_is_aligned_as_asked_is_taken_and_of_the_own_thread() {
        let shelves = Shelves::new(64, 2);
        assert!(put(&shelves, 1, span(24, 5, 0)) && put(&shelves, 1, span(33, 5, 0)));
        assert_eq!(shelves.take(0, 5, 1, || 0), None);
        assert_eq!(shelves.take(1, 5, 16, || 0), None);
        assert_eq!(shelves.take(1, 4, 1, || 0), None);
        assert_eq!(shelves.take(1, 5, 8, || 0), Some(span(24, 5, 0)));
        assert!(shelves.contains(3, 33, 5) && !shelves.contains(2, 33, 5) && !shelves.contains(3, 24, 5));
        assert_eq!(shelves.drain(|| 0).collect::<Vec<_>>(), [span(33, 5, 0)]);
    }

    #[test]
    fn closed_shelves_give_up_what_they_had_and_keep_nothing_any_more() {
        let shelves = Shelves::new(64, 2);
        assert!(put(&shelves, 0, span(1, 1, 0)) && put(&shelves, 1, span(2, 9, 0)));
        assert_eq!(shelves.close(|| 0).collect::<Vec<_>>(), [span(1, 1, 0), span(2, 9, 0)]);
        assert!(!put(&shelves, 0, span(1, 1, 0)));
        assert_eq!(
            (shelves.take(0, 1, 1, || 0), shelves.drain(|| 0).count(), shelves.close(|| 0).count()),
            (None, 0, 0)
        );
        assert!(!put(&shelves, 1, span(2, 9, 0)), "still closed");
    }

    /// Each span has its number as its start, and is held by one thread or lies on one shelf.
    #[test]
    fn threads_that_put_take_and_drain_at_once_never_share_a_span_and_lose_none() {
        const SPANS: u32 = 64;
        let shelves = &Shelves::new(64, 2);
        let steps = if cfg!(miri) { 200 } else { 100_000 };
        let held = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4_u32)
                .map(|thread| {
                    scope.spawn(move || {
                        let mut random = Random::new(thread.into());
                        let mut held: Vec<Shelved> =
                            (0..SPANS).filter(|at| at % 4 == thread).map(|at| span(at, 1 + at % 3, 1)).collect();
                        for _ in 0..steps {
                            match random.below(100) {
                                0 => held.extend(shelves.drain(|| 1)),
                                1..50 => held.extend(shelves.take(thread as usize, 1 + random.below(3), 1, || 1)),
                                _ if held.is_empty() => (),
                                _ => {
                                    let at = random.below(held.len() as u32) as usize;
                                    if put(shelves, thread as usize, held[at]) {
                                        held.swap_remove(at);
                                    }
                                }
                            }
                        }
                        held
                    })
                })
                .collect();
            threads.into_iter().flat_map(|it| it.join().unwrap()).collect::<Vec<_>>()
        });
        let all: Vec<_> = held.into_iter().chain(shelves.close(|| 1)).collect();
        assert!(all.iter().all(|it| *it == span(it.start, 1 + it.start % 3, 1)));
        assert_eq!((all.len(), all.iter().map(|it| it.start).collect::<BTreeSet<_>>().len()), (64, 64));
    }
}
