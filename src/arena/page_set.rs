//! A set of pages of one area, as bits.

use std::ops::Range;

const BITS: u32 = u64::BITS;

/// Pages by index. Runs are found in time that depends on the run and the set's fixed size, not on its history.
pub(super) struct PageSet {
    words: Box<[u64]>,
    /// A bit per word: it is not zero. A search over the largest area reads at most 16 of these words.
    summary: Box<[u64]>,
    count: u32,
}

impl PageSet {
    pub(super) fn new(pages: u32) -> Self {
        let words = pages.div_ceil(BITS) as usize;
        let zeroes = |len| vec![0; len].into_boxed_slice();
        Self { words: zeroes(words), summary: zeroes(words.div_ceil(BITS as usize)), count: 0 }
    }

    /// How many pages are in the set.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn insert(&mut self, pages: Range<u32>) {
        self.update(pages, |word, mask| word | mask);
    }

    pub(super) fn remove(&mut self, pages: Range<u32>) {
        self.update(pages, |word, mask| word & !mask);
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

    /// The lowest run of the set, cut to `pages_max`.
    pub(super) fn first_run(&self, pages_max: u32) -> Option<Range<u32>> {
        let (at, bits) = self.summary.iter().enumerate().find(|(_, bits)| **bits != 0)?;
        let word = at as u32 * BITS + bits.trailing_zeros();
        let start = word * BITS + self.words[word as usize].trailing_zeros();
        let end = (self.words.len() as u32 * BITS).min(start.saturating_add(pages_max));
        self.runs(start..end, true).next()
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
            self.words[word] = after;
            self.count = self.count + after.count_ones() - before.count_ones();
            let summary = &mut self.summary[word / BITS as usize];
            let bit = 1 << (word % BITS as usize);
            *summary = if after == 0 { *summary & !bit } else { *summary | bit };
            page = end;
        }
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
                let first =
                    model_runs(&model, 0..PAGES, true).first().map(|run| run.start..run.end.min(run.start + max));
                assert_eq!(set.first_run(max), first, "{context}");
            }
        }
    }
}
