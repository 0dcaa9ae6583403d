//! Which granules of an area belong to whom: a two-level segregated fit.
//!
//! After Masmano, Ripoll, Crespo, Real: "TLSF: a new dynamic memory allocator for real-time systems" (ECRTS 2004).
//! Free blocks are listed by class: a power of two, and a sixteenth of it. Taking and giving do the same few steps
//! however many blocks there are. No free block has a free neighbour. Pure: knows no address and no system call.

use std::ops::Range;

use super::{
    error::FreeError,
    slab::{NONE, Slab, State},
};

/// Classes per power of two.
const SUBCLASSES: u32 = 1 << SUBCLASS_BITS;
const SUBCLASS_BITS: u32 = 4;
/// Enough for blocks of 2^22 granules (256 MiB), the largest area, and the rest of that power of two.
const CLASSES: usize = 320;
const WORDS: usize = CLASSES / u64::BITS as usize;
/// How many blocks are looked at one by one where the class alone does not say that a block fits: a bound on time.
const VISITS_MAX: usize = 32;

/// A run of granules with one owner. Says exactly what was handed out, so that nothing else is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    block: u32,
    generation: u32,
    start: u32,
    granules: u32,
}

impl Span {
    pub(super) fn range(&self) -> Range<u32> {
        self.start..self.start + self.granules
    }
}

/// The blocks of one area.
pub(super) struct Blocks {
    slab: Slab,
    heads: [u32; CLASSES],
    /// A bit per class: its list is not empty.
    listed: [u64; WORDS],
}

impl Blocks {
    pub(super) fn new(granules: u32) -> Self {
        let mut blocks = Self { slab: Slab::for_granules(granules), heads: [NONE; CLASSES], listed: [0; WORDS] };
        let whole = blocks.slab.take(0, granules);
        blocks.list(whole);
        blocks
    }

    /// A span of `granules` (at least one), its start a multiple of `align_granules` (a power of two). `None` if no
    /// free block was found that holds it.
    pub(super) fn take(&mut self, granules: u32, align_granules: u32) -> Option<Span> {
        let block = self.find(granules, align_granules)?;
        self.unlist(block);
        let start = self.slab.node(block).start;
        let gap = start.next_multiple_of(align_granules) - start;
        let block = if gap > 0 { self.split(block, gap) } else { block };
        if self.slab.node(block).granules > granules {
            let rest = self.split(block, granules);
            self.list(rest);
        }
        if gap > 0 {
            let before = self.slab.node(block).before;
            self.list(before);
        }
        let node = self.slab.node_mut(block);
        node.state = State::Used;
        Some(Span { block, generation: node.generation, start: node.start, granules })
    }

    /// Gives a span back and says which run of granules is free now: the span and its free neighbours.
    pub(super) fn give(&mut self, span: &Span) -> Result<Range<u32>, FreeError> {
        self.check(span)?;
        let node = self.slab.node_mut(span.block);
        node.generation = node.generation.wrapping_add(1);
        node.state = State::Free;
        let (before, after) = (node.before, node.after);
        let mut block = span.block;
        if self.is_free(after) {
            self.unlist(after);
            self.merge(block, after);
        }
        if self.is_free(before) {
            self.unlist(before);
            self.merge(before, block);
            block = before;
        }
        self.list(block);
        let node = self.slab.node(block);
        Ok(node.start..node.start + node.granules)
    }

    /// The largest free block among the first few of the highest class: less than the true one by at most a sixteenth.
    pub(super) fn largest_free(&self) -> u32 {
        let Some(class) = (0..WORDS)
            .rev()
            .find(|&word| self.listed[word] != 0)
            .map(|word| word * u64::BITS as usize + self.listed[word].ilog2() as usize)
        else {
            return 0;
        };
        self.listed_in(class).take(VISITS_MAX).map(|block| self.slab.node(block).granules).max().unwrap_or(0)
    }

    fn check(&self, span: &Span) -> Result<(), FreeError> {
        let node = self.slab.get(span.block).ok_or(FreeError::Unknown { block: span.block })?;
        if node.state != State::Used || node.generation != span.generation {
            let (generation, current) = (span.generation, node.generation);
            return Err(FreeError::Stale { block: span.block, generation, current });
        }
        if node.start != span.start || node.granules != span.granules {
            return Err(FreeError::Mismatch { block: span.block, start: node.start, granules: node.granules });
        }
        Ok(())
    }

    /// A tight fit among a few blocks of the class that `granules` belongs to, else the first block of the next class
    /// all of whose blocks are long enough, else whatever a few longer blocks offer.
    fn find(&self, granules: u32, align_granules: u32) -> Option<u32> {
        let own = class_of(granules);
        let tight = self.listed_in(own).take(VISITS_MAX).find(|&it| self.fits(it, granules, align_granules));
        tight.or_else(|| self.heads_from(class_holding(granules + align_granules - 1)).next()).or_else(|| {
            let longer = self.classes_from(own + 1).flat_map(|class| self.listed_in(class));
            longer.take(VISITS_MAX).find(|&it| self.fits(it, granules, align_granules))
        })
    }

    fn fits(&self, block: u32, granules: u32, align_granules: u32) -> bool {
        let node = self.slab.node(block);
        let gap = node.start.next_multiple_of(align_granules) - node.start;
        node.granules >= gap + granules
    }

    fn classes_from(&self, class: usize) -> impl Iterator<Item = usize> {
        let first_word = class / u64::BITS as usize;
        (first_word..WORDS).flat_map(move |word| {
            let from = if word == first_word { class % u64::BITS as usize } else { 0 };
            let mut bits = self.listed[word] >> from << from;
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(word * u64::BITS as usize + bit)
            })
        })
    }

    fn heads_from(&self, class: usize) -> impl Iterator<Item = u32> {
        self.classes_from(class).map(|class| self.heads[class])
    }

    fn listed_in(&self, class: usize) -> impl Iterator<Item = u32> {
        let some = |block: u32| (block != NONE).then_some(block);
        std::iter::successors(some(self.heads[class]), move |&block| some(self.slab.node(block).next))
    }

    fn is_free(&self, block: u32) -> bool {
        block != NONE && self.slab.node(block).state == State::Free
    }

    /// Cuts a block that is in no list after its first `granules`; answers the block of the rest.
    fn split(&mut self, block: u32, granules: u32) -> u32 {
        let whole = *self.slab.node(block);
        let rest = self.slab.take(whole.start + granules, whole.granules - granules);
        let node = self.slab.node_mut(rest);
        (node.before, node.after) = (block, whole.after);
        if whole.after != NONE {
            self.slab.node_mut(whole.after).before = rest;
        }
        let node = self.slab.node_mut(block);
        (node.granules, node.after) = (granules, rest);
        rest
    }

    /// Joins two neighbours that are in no list into the first.
    fn merge(&mut self, first: u32, second: u32) {
        let gone = *self.slab.node(second);
        let node = self.slab.node_mut(first);
        (node.granules, node.after) = (node.granules + gone.granules, gone.after);
        if gone.after != NONE {
            self.slab.node_mut(gone.after).before = first;
        }
        self.slab.give(second);
    }

    /// Last in, first out: what was used last is the likeliest to be committed.
    fn list(&mut self, block: u32) {
        let class = class_of(self.slab.node(block).granules);
        let head = self.heads[class];
        let node = self.slab.node_mut(block);
        (node.previous, node.next) = (NONE, head);
        if head != NONE {
            self.slab.node_mut(head).previous = block;
        }
        self.heads[class] = block;
        self.listed[class / u64::BITS as usize] |= 1 << (class % u64::BITS as usize);
    }

    fn unlist(&mut self, block: u32) {
        let node = *self.slab.node(block);
        let class = class_of(node.granules);
        if node.next != NONE {
            self.slab.node_mut(node.next).previous = node.previous;
        }
        if node.previous != NONE {
            self.slab.node_mut(node.previous).next = node.next;
            return;
        }
        self.heads[class] = node.next;
        if node.next == NONE {
            self.listed[class / u64::BITS as usize] &= !(1 << (class % u64::BITS as usize));
        }
    }
}

/// The class that a block of this length is listed in. Below [`SUBCLASSES`] each length has its own.
fn class_of(granules: u32) -> usize {
    if granules < SUBCLASSES {
        return granules as usize;
    }
    let above = granules.ilog2() - SUBCLASS_BITS;
    (above * SUBCLASSES + (granules >> above)) as usize
}

/// The lowest class all of whose blocks have at least this length.
fn class_holding(granules: u32) -> usize {
    let above = granules.ilog2().saturating_sub(SUBCLASS_BITS);
    class_of(granules + (1 << above) - 1)
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
