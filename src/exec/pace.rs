//! How long functions took of late: which calls are short before they have begun.
//!
//! A table of fixed size, of words that anybody writes without a lock. Functions that fall on one place push each other
//! out, and a race loses a count: then a call is taken for longer than it is, which costs a hand-over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Functions that can be remembered; 32 KiB.
const PLACES: usize = 4096;
/// So many calls in a row must have been short.
pub(super) const SHORT_MIN: u64 = 16;

/// Of a word: the count of short calls in a row; above it is what tells functions of one place apart.
const COUNT_MASK: u64 = 0xff;
/// The number of Knuth's multiplicative hash, 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// What is remembered.
#[derive(Debug)]
pub(super) struct Paces {
    places: Box<[AtomicU64]>,
    short: Duration,
}

impl Paces {
    /// Calls up to `short` are short ones; with zero none is.
    pub(super) fn new(short: Duration) -> Paces {
        Paces { places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(), short }
    }

    /// Whether the next call of the function at this address is likely to be short.
    pub(super) fn is_short(&self, entry: u64) -> bool {
        let (place, mark) = self.place(entry);
        let word = place.load(Ordering::Relaxed);
        word & !COUNT_MASK == mark && word & COUNT_MASK >= SHORT_MIN
    }

    /// A call of the function took so long; `None`: it did not end by itself.
    pub(super) fn note(&self, entry: u64, took: Option<Duration>) {
        if self.short.is_zero() {
            return;
        }
        let (place, mark) = self.place(entry);
        let word = place.load(Ordering::Relaxed);
        let before = if word & !COUNT_MASK == mark { word & COUNT_MASK } else { 0 };
        let count = if took.is_some_and(|took| took <= self.short) { (before + 1).min(SHORT_MIN) } else { 0 };
        if word != mark | count {
            place.store(mark | count, Ordering::Relaxed);
        }
    }

    fn place(&self, entry: u64) -> (&AtomicU64, u64) {
        let spread = entry.wrapping_mul(SPREAD);
        (&self.places[(spread >> 52) as usize % PLACES], spread << 12 & !COUNT_MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(20);

    fn paces_after(entry: u64, calls: u64) -> Paces {
        let paces = Paces::new(SHORT);
        (0..calls).for_each(|_| paces.note(entry, Some(SHORT)));
        paces
    }

    #[test]
    fn a_function_is_short_after_enough_short_calls_in_a_row_and_no_longer_after_one_that_was_not() {
        assert!(!paces_after(0x1000, SHORT_MIN - 1).is_short(0x1000));
        let paces = paces_after(0x1000, 10 * SHORT_MIN);
        assert!(paces.is_short(0x1000) && !paces.is_short(0x1010));
        paces.note(0x1000, Some(SHORT + Duration::from_nanos(1)));
        assert!(!paces.is_short(0x1000));
        let paces = paces_after(0x1000, SHORT_MIN);
        paces.note(0x1000, None);
        assert!(!paces.is_short(0x1000));
    }

    #[test]
    fn functions_of_one_place_are_told_apart_and_push_each_other_out() {
        let paces = paces_after(0x1000, SHORT_MIN);
        let same_place = |other: &u64| std::ptr::eq(paces.place(0x1000).0, paces.place(*other).0);
        let other = (0x2000..).step_by(16).find(same_place).unwrap();
        assert!(!paces.is_short(other));
        paces.note(other, Some(SHORT));
        assert!(!paces.is_short(0x1000) && !paces.is_short(other));
    }

    #[test]
    fn nothing_is_short_where_that_is_switched_off() {
        let paces = Paces::new(Duration::ZERO);
        (0..100).for_each(|_| paces.note(0x1000, Some(Duration::ZERO)));
        assert!(!paces.is_short(0x1000));
    }
}
