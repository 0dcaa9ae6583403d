//! Where free runs of a length are: for each class of lengths the set of cells in which such a run starts.

use std::ops::Range;

use super::cells::touch;

/// Below this each length has a class of its own.
const EXACT: u32 = 1 << EXACT_BITS;
const EXACT_BITS: u32 = 7;
/// Above, each power of two has this many.
const SUBCLASSES: u32 = 1 << SUBCLASS_BITS;
const SUBCLASS_BITS: u32 = 3;
/// The longest run there can be.
pub(super) const LENGTH_MAX: u32 = 1 << LENGTH_BITS;
const LENGTH_BITS: u32 = 22;
const CLASSES: usize = (EXACT + (LENGTH_BITS - EXACT_BITS) * SUBCLASSES + 1) as usize;
const BITS: usize = u64::BITS as usize;

/// A set of cells for each class. Each set has three levels, of which the upper ones tell which words of the lower ones
/// are not zero, so that the lowest cell of the shortest class is found in a few steps.
#[cfg_attr(test, derive(PartialEq))]
pub(super) struct Classes {
    /// A bit per class that is not empty.
    classes: [u64; CLASSES.div_ceil(BITS)],
    /// A word per class.
    tops: Box<[u64]>,
    middles: Box<[u64]>,
    leaves: Box<[u64]>,
    /// Words per class.
    middle_words: usize,
    leaf_words: usize,
}

impl Classes {
    /// Empty sets of up to `cells` cells, at most 2^18.
    pub(super) fn new(cells: u32) -> Self {
        let leaf_words = (cells as usize).div_ceil(BITS);
        let middle_words = leaf_words.div_ceil(BITS);
        assert!(middle_words <= BITS, "invariant: the top of a class is one word");
        let zeroes = |words: usize| vec![0; words * CLASSES].into_boxed_slice();
        let (tops, middles, leaves) = (zeroes(1), zeroes(middle_words), zeroes(leaf_words));
        Self { classes: [0; CLASSES.div_ceil(BITS)], tops, middles, leaves, middle_words, leaf_words }
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        (size_of_val(&*self.tops) + size_of_val(&*self.middles) + size_of_val(&*self.leaves)) as u64
    }

    pub(super) fn insert(&mut self, class: usize, cell: u32) {
        let (leaf, middle) = (cell as usize / BITS, cell as usize / BITS / BITS);
        set(&mut self.leaves[class * self.leaf_words + leaf], cell as usize);
        set(&mut self.middles[class * self.middle_words + middle], leaf);
        set(&mut self.tops[class], middle);
        set(&mut self.classes[class / BITS], class);
    }

    pub(super) fn remove(&mut self, class: usize, cell: u32) {
        let (leaf, middle) = (cell as usize / BITS, cell as usize / BITS / BITS);
        let emptied = clear(&mut self.leaves[class * self.leaf_words + leaf], cell as usize)
            && clear(&mut self.middles[class * self.middle_words + middle], leaf)
            && clear(&mut self.tops[class], middle);
        if emptied {
            clear(&mut self.classes[class / BITS], class);
        }
    }

    /// The first class from this one on that is not empty.
    pub(super) fn next_class(&self, from: usize) -> Option<usize> {
        next(&self.classes, from)
    }

    pub(super) fn last_class(&self) -> Option<usize> {
        let word = self.classes.iter().rposition(|&word| word != 0)?;
        Some(word * BITS + self.classes[word].ilog2() as usize)
    }

    /// The lowest cell of a class that is not empty.
    pub(super) fn lowest(&self, class: usize) -> u32 {
        let middle = self.tops[class].trailing_zeros() as usize;
        let leaf = middle * BITS + seen(&self.middles[class * self.middle_words + middle]).trailing_zeros() as usize;
        (leaf * BITS) as u32 + seen(&self.leaves[class * self.leaf_words + leaf]).trailing_zeros()
    }

    /// The cells of a class, lowest first.
    pub(super) fn cells(&self, class: usize) -> impl Iterator<Item = u32> {
        let leaves = &self.leaves[class * self.leaf_words..(class + 1) * self.leaf_words];
        let middles = &self.middles[class * self.middle_words..(class + 1) * self.middle_words];
        bits(std::slice::from_ref(&self.tops[class]))
            .flat_map(move |middle| bits(&middles[middle..=middle]).map(move |leaf| middle * BITS + leaf))
            .flat_map(move |leaf| bits(&leaves[leaf..=leaf]).map(move |cell| (leaf * BITS + cell) as u32))
    }
}

/// The class of runs of this length, which is not zero.
pub(super) fn class_of(length: u32) -> usize {
    if length < EXACT {
        return length as usize;
    }
    let power = length.ilog2();
    let sub = (length >> (power - SUBCLASS_BITS)) & (SUBCLASSES - 1);
    (EXACT + (power - EXACT_BITS) * SUBCLASSES + sub) as usize
}

/// The lowest class all of whose runs have at least this length.
pub(super) fn class_holding(length: u32) -> usize {
    let class = class_of(length);
    if lengths(class).start == length { class } else { class + 1 }
}

/// The lengths that a class is for.
pub(super) fn lengths(class: usize) -> Range<u32> {
    let Some(above) = (class as u32).checked_sub(EXACT) else { return class as u32..class as u32 + 1 };
    let power = EXACT_BITS + above / SUBCLASSES;
    let start = (1 << power) + ((above % SUBCLASSES) << (power - SUBCLASS_BITS));
    start..start + (1 << (power - SUBCLASS_BITS))
}

fn set(word: &mut u64, bit: usize) {
    touch(word);
    *word |= 1 << (bit % BITS);
}

/// Answers whether no bit is left.
fn clear(word: &mut u64, bit: usize) -> bool {
    touch(word);
    *word &= !(1 << (bit % BITS));
    *word == 0
}

fn seen(word: &u64) -> u64 {
    touch(word);
    *word
}

fn next(words: &[u64], from: usize) -> Option<usize> {
    let mut at = from / BITS;
    let mut bits = words.get(at)? >> (from % BITS) << (from % BITS);
    while bits == 0 {
        at += 1;
        bits = *words.get(at)?;
    }
    Some(at * BITS + bits.trailing_zeros() as usize)
}

fn bits(words: &[u64]) -> impl Iterator<Item = usize> {
    let mut left = words.first().copied().unwrap_or(0);
    std::iter::from_fn(move || {
        let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
        left &= left - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_lies_in_its_class_and_classes_follow_each_other_without_gaps() {
        let mut expected = 1;
        for class in 1..CLASSES {
            let range = lengths(class);
            assert_eq!(range.start, expected, "class {class}");
            expected = range.end;
            for length in [range.start, range.end - 1] {
                assert_eq!(class_of(length), class, "length {length}");
            }
            assert_eq!(class_holding(range.start), class);
            assert_eq!(class_holding(range.end - 1), class + usize::from(range.len() > 1), "class {class}");
        }
        assert!(expected > LENGTH_MAX && class_of(LENGTH_MAX) == CLASSES - 1);
    }
}
