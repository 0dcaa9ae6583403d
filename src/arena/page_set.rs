//! A set of pages of one area, as bits.

use std::ops::Range;

const BITS: u32 = u64::BITS;
/// Pages of a chunk: of what may become one huge page. So many bits fill a cache line.
const CHUNK_PAGES: u32 = 512;
const CHUNK_WORDS: usize = (CHUNK_PAGES / BITS) as usize;

/// Pages by index. Runs are found in time that depends on the run and the set's fixed size, not on its history.
pub(super) struct PageSet {
    words: Box<[u64]>,
    /// A bit per word: it is not zero. A search over the largest area reads at most 16 of these words.
    summary: Box<[u64]>,
    /// How many pages of each chunk are in the set.
    chunks: Box<[u16]>,
    /// How many chunks are in the set as a whole.
    full_chunks: u32,
    count: u32,
}

impl PageSet {
    pub(super) fn new(pages: u32) -> Self {
        let words = pages.div_ceil(BITS) as usize;
        let zeroes = |len| vec![0; len].into_boxed_slice();
        let chunks = vec![0; pages.div_ceil(CHUNK_PAGES) as usize].into_boxed_slice();
        Self { words: zeroes(words), summary: zeroes(words.div_ceil(BITS as usize)), chunks, full_chunks: 0, count: 0 }
    }

    /// How many pages are in the set.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        (size_of_val(&*self.words) + size_of_val(&*self.summary) + size_of_val(&*self.chunks)) as u64
    }

    pub(super) fn insert(&mut self, pages: Range<u32>) {
        self.update(pages, |word, mask| word | mask);
    }

    pub(super) fn remove(&mut self, pages: Range<u32>) {
        if self.count == 0 {
            return;
        }
        self.update(pages, |word, mask| word & !mask);
    }

    /// Whether all of these pages are in the set.
    pub(super) fn contains(&self, pages: &Range<u32>) -> bool {
        self.next(pages.clone(), false) == pages.end
    }

    /// The runs within `pages` that are in the set (`present`), or that are not; in order, each as long as it can be.
    pub(super) fn runs(&self, pages: Range<u32>, present: bool) -> impl Iterator<Item = Range<u32>> {
        let mut from = pages.start;
        std::iter::from_fn(move || {
            let start = self.next(from..pages.end, present);
            let end = self.next(start..pages.end, !present);
            from = end;
            (start < end).then_some(start..end)
        })
    }

    /// The end of the highest run of the set, of at most `pages_max`.
    pub(super) fn last_run(&self, pages_max: u32) -> Option<Range<u32>> {
        let (at, bits) = self.summary.iter().enumerate().rev().find(|(_, bits)| **bits != 0)?;
        let word = at as u32 * BITS + bits.ilog2();
        let end = word * BITS + self.words[word as usize].ilog2() + 1;
        let mut start = end;
        let lowest = end.saturating_sub(pages_max);
        while start > lowest {
            let word = self.words[((start - 1) / BITS) as usize];
            let below = word << (BITS - 1 - (start - 1) % BITS);
            let run = below.leading_ones().min((start - 1) % BITS + 1);
            start -= run.min(start - lowest);
            if run == 0 || !start.is_multiple_of(BITS) {
                break;
            }
        }
        Some(start..end)
    }

    /// Whether all pages of a chunk are in the set.
    pub(super) fn is_full_chunk(&self, chunk: u32) -> bool {
        u32::from(self.chunks[chunk as usize]) == CHUNK_PAGES
    }

    /// The highest chunk all of whose pages are in the set.
    pub(super) fn last_full_chunk(&self) -> Option<u32> {
        if self.full_chunks == 0 {
            return None;
        }
        (0..self.chunks.len() as u32).rev().find(|&chunk| self.is_full_chunk(chunk))
    }

    /// The first page of `pages` whose presence is this; the end if there is none.
    fn next(&self, pages: Range<u32>, present: bool) -> u32 {
        let mut page = pages.start;
        while page < pages.end {
            let word = self.words[(page / BITS) as usize];
            let wanted = if present { word } else { !word } >> (page % BITS);
            if wanted != 0 {
                return pages.end.min(page + wanted.trailing_zeros());
            }
            page = (page / BITS + 1) * BITS;
        }
        pages.end
    }

    fn update(&mut self, pages: Range<u32>, change: impl Fn(u64, u64) -> u64) {
        let mut page = pages.start;
        while page < pages.end {
            let word = (page / BITS) as usize;
            let end = pages.end.min((page / BITS + 1) * BITS);
            let mask = (u64::MAX >> (BITS - (end - page))) << (page % BITS);
            let (before, after) = (self.words[word], change(self.words[word], mask));
            page = end;
            if before != after {
                self.replace(word, before, after);
            }
        }
    }

    fn replace(&mut self, word: usize, before: u64, after: u64) {
        self.words[word] = after;
        self.count = self.count + after.count_ones() - before.count_ones();
        let summary = &mut self.summary[word / BITS as usize];
        let bit = 1 << (word % BITS as usize);
        *summary = if after == 0 { *summary & !bit } else { *summary | bit };
        let chunk = &mut self.chunks[word / CHUNK_WORDS];
        let was_full = u32::from(*chunk) == CHUNK_PAGES;
        *chunk = *chunk + after.count_ones() as u16 - before.count_ones() as u16;
        let is_full = u32::from(*chunk) == CHUNK_PAGES;
        self.full_chunks = self.full_chunks + u32::from(is_full) - u32::from(was_full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::testing::Random;

    /// More than one word of the summary, but for miri.
    const PAGES: u32 = if cfg!(miri) { 300 } else { 5000 };

    fn model_runs(model: &[bool], pages: Range<u32>, present: bool) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for page in pages.filter(|&it| model[it as usize] == present) {
            match runs.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    #[test]
    fn a_page_set_agrees_with_a_list_of_booleans_whatever_is_done_to_it() {
        for seed in 0..if cfg!(miri) { 2 } else { 8 } {
            let mut random = Random::new(seed);
            let mut set = PageSet::new(PAGES);
            let mut model = vec![false; PAGES as usize];
            for step in 0..if cfg!(miri) { 20 } else { 400 } {
                let start = random.below(PAGES);
                let range = start..start + random.small(PAGES - start + 1);
                let present = random.below(2) == 0;
                if present {
                    set.insert(range.clone())
                } else {
                    set.remove(range.clone())
                }
                model[range.start as usize..range.end as usize].fill(present);
                let context = format!("seed {seed} step {step}");
                assert_eq!(set.count() as usize, model.iter().filter(|it| **it).count(), "{context}");
                let around = range.start.saturating_sub(70)..PAGES.min(range.end + 70);
                for present in [true, false] {
                    let found: Vec<_> = set.runs(around.clone(), present).collect();
                    assert_eq!(found, model_runs(&model, around.clone(), present), "{context}");
                }
                let max = 1 + random.below(100);
                let last = model_runs(&model, 0..PAGES, true)
                    .pop()
                    .map(|run| run.start.max(run.end.saturating_sub(max))..run.end);
                assert_eq!(set.last_run(max), last, "{context}");
                let full = |chunk: &u32| {
                    model
                        .get((chunk * CHUNK_PAGES) as usize..)
                        .is_some_and(|it| it.len() >= 512 && it[..512].iter().all(|it| *it))
                };
                let chunks = PAGES / CHUNK_PAGES;
                assert_eq!(set.last_full_chunk(), (0..chunks).rev().find(full), "{context}");
                assert!((0..chunks).all(|chunk| set.is_full_chunk(chunk) == full(&chunk)), "{context}");
            }
        }
    }
}
