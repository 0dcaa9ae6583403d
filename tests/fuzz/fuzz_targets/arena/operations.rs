//! Bytes read as operations, against the owner of each granule.

use super::blocks::{Blocks, Span};

/// Granules: several words of the upper level of the sets.
const AREA: u32 = 64 * 64 * 3;

struct Model {
    blocks: Blocks,
    owners: Vec<bool>,
    live: Vec<Span>,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut model = Model { blocks: Blocks::new(AREA), owners: vec![false; AREA as usize], live: Vec::new() };
    for operation in bytes.chunks_exact(4) {
        let [kind, which, low, high] = [0, 1, 2, 3].map(|at| operation[at]);
        let number = u32::from(u16::from_le_bytes([low, high]));
        model.apply(kind, usize::from(which), number);
    }
    model.finish();
}

impl Model {
    fn apply(&mut self, kind: u8, which: usize, number: u32) {
        let any = (!self.live.is_empty()).then(|| which % self.live.len());
        match (kind % 8, any) {
            (0..3, _) => self.take(1 + number % if kind & 8 == 0 { 200 } else { AREA }, 1 << (which % 9)),
            (3..5, Some(at)) => {
                let span = self.live.swap_remove(at);
                self.blocks.give(&span).expect("a live span is taken back");
                self.set(span, false);
                assert!(self.blocks.give(&span).is_err(), "given twice");
            }
            (5, Some(at)) => {
                let kept = self.blocks.shrink(&self.live[at], 1 + number % self.live[at].range().len() as u32);
                self.replace(at, kept.expect("a live span shrinks"));
            }
            (6, Some(at)) => self.grow(at, number % 300),
            (_, Some(at)) => {
                let range = self.live[at].range();
                let forged = Span::new(range.start + number % 3, (range.len() as u32 + number / 3 % 3).wrapping_sub(1));
                assert!(self.live.contains(&forged) || self.blocks.give(&forged).is_err(), "{forged:?} was taken back");
            }
            (_, None) => {}
        }
    }

    fn take(&mut self, granules: u32, align: u32) {
        match self.blocks.take(granules, align) {
            Some(span) => {
                assert_eq!((span.range().len() as u32, span.range().start % align), (granules, 0));
                assert!(span.range().all(|at| !self.owners[at as usize]), "{span:?} has an owner");
                self.set(span, true);
                self.live.push(span);
            }
            None => {
                let fits = (0..AREA).step_by(align as usize).any(|start| self.is_free(start, granules));
                assert!(!fits, "{granules} granules at a multiple of {align} were not found");
            }
        }
    }

    fn grow(&mut self, at: usize, more: u32) {
        let range = self.live[at].range();
        let grown = self.blocks.grow(&self.live[at], range.len() as u32 + more).expect("a live span may grow");
        assert_eq!(grown.is_some(), self.is_free(range.end, more));
        if let Some(span) = grown {
            self.replace(at, span);
        }
    }

    fn replace(&mut self, at: usize, span: Span) {
        self.set(self.live[at], false);
        self.set(span, true);
        self.live[at] = span;
    }

    fn set(&mut self, span: Span, owned: bool) {
        self.owners[span.range().start as usize..span.range().end as usize].fill(owned);
    }

    fn is_free(&self, start: u32, granules: u32) -> bool {
        let owners = self.owners.get(start as usize..(start + granules) as usize);
        owners.is_some_and(|owners| owners.iter().all(|owned| !owned))
    }

    fn finish(&mut self) {
        let (mut longest, mut end) = (0, 0);
        for run in self.blocks.runs() {
            assert_eq!(run.granules.start, end);
            end = run.granules.end;
            assert!(run.granules.clone().all(|at| self.owners[at as usize] == run.used));
            if run.used {
                assert_eq!(self.blocks.find(end - 1).map(|span| span.range()), Some(run.granules));
            } else {
                longest = longest.max(run.granules.len() as u32);
            }
        }
        assert_eq!((end, self.blocks.largest_free()), (AREA, longest));
        for span in self.live.drain(..) {
            self.blocks.give(&span).expect("a live span is taken back");
        }
        assert_eq!(self.blocks.largest_free(), AREA);
    }
}
