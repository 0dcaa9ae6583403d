//! The allocator against a model that knows each granule's owner.

use super::*;
use crate::arena::testing::Random;

/// Enough to fill and drain an area many times.
const STEPS: u32 = if cfg!(miri) { 60 } else { 4000 };

enum Op {
    Take { granules: u32, align: u32 },
    Give { which: usize },
    GiveAgain { which: usize },
    GiveForged { which: usize },
}

impl Op {
    fn random(random: &mut Random, options: &Options) -> Self {
        let which = random.below(u32::MAX) as usize;
        match random.below(100) {
            0..4 => Self::GiveAgain { which },
            4..8 => Self::GiveForged { which },
            it if it < options.take_percent => {
                let granules = 1 + random.small(options.granules_max);
                Self::Take { granules, align: 1 << random.below(options.align_bits + 1) }
            }
            _ => Self::Give { which },
        }
    }
}

#[derive(Debug)]
struct Options {
    area: u32,
    granules_max: u32,
    align_bits: u32,
    take_percent: u32,
}

const OPTIONS: [Options; 6] = [
    Options { area: 64, granules_max: 8, align_bits: 0, take_percent: 55 },
    Options { area: 4096, granules_max: 1, align_bits: 6, take_percent: 60 },
    Options { area: 4096, granules_max: 300, align_bits: 0, take_percent: 60 },
    Options { area: 32768, granules_max: 1024, align_bits: 6, take_percent: 58 },
    Options { area: 32768, granules_max: 40, align_bits: 3, take_percent: 80 },
    Options { area: 4096, granules_max: 4096, align_bits: 6, take_percent: 55 },
];

/// Who owns each granule, and every span that was ever given back.
struct Model {
    owners: Vec<Option<Span>>,
    live: Vec<Span>,
    dead: Vec<Span>,
}

impl Model {
    fn take(&mut self, span: Span, granules: u32, align: u32) {
        let range = span.range();
        assert_eq!((range.len() as u32, range.start % align), (granules, 0));
        let owners = &mut self.owners[range.start as usize..range.end as usize];
        assert!(owners.iter().all(Option::is_none), "{span:?} overlaps");
        owners.fill(Some(span));
        self.live.push(span);
    }

    /// Answers the free run around the span.
    fn give(&mut self, which: usize) -> Range<u32> {
        let span = self.live.swap_remove(which);
        self.owners[span.range().start as usize..span.range().end as usize].fill(None);
        self.dead.push(span);
        let before =
            self.owners[..span.range().start as usize].iter().rev().take_while(|it| it.is_none()).count() as u32;
        let after = self.owners[span.range().end as usize..].iter().take_while(|it| it.is_none()).count() as u32;
        span.range().start - before..span.range().end + after
    }

    fn longest_free(&self) -> u32 {
        self.owners.split(Option::is_some).map(<[_]>::len).max().unwrap_or(0) as u32
    }
}

impl Blocks {
    /// Panics if the structure contradicts itself.
    fn validate(&self, granules: u32) {
        let (mut at, mut before, mut block, mut free) = (0, NONE, 0, Vec::new());
        let mut previous_free = false;
        while block != NONE {
            let node = self.slab.node(block);
            assert_eq!((node.start, node.before), (at, before), "block {block}");
            assert!(node.granules > 0 && node.state != State::Vacant, "block {block}");
            let is_free = node.state == State::Free;
            assert!(!(is_free && previous_free), "block {block} was not merged");
            if is_free {
                free.push(block);
            }
            (previous_free, at, before, block) = (is_free, at + node.granules, block, node.after);
        }
        assert_eq!(at, granules, "blocks do not cover the area");
        let mut listed = Vec::new();
        for class in 0..CLASSES {
            let blocks: Vec<u32> = self.listed_in(class).collect();
            let bit = self.listed[class / 64] >> (class % 64) & 1 == 1;
            assert_eq!(bit, !blocks.is_empty(), "class {class}");
            assert!(blocks.iter().all(|&it| class_of(self.slab.node(it).granules) == class), "class {class}");
            listed.extend(blocks);
        }
        listed.sort_unstable();
        free.sort_unstable();
        assert_eq!(listed, free, "free blocks and listed blocks differ");
    }
}

fn run(options: &Options, seed: u64) {
    let mut random = Random::new(seed);
    let mut blocks = Blocks::new(options.area);
    let mut model = Model { owners: vec![None; options.area as usize], live: Vec::new(), dead: Vec::new() };
    for step in 0..STEPS {
        let context = format!("{options:?} seed {seed} step {step}");
        match Op::random(&mut random, options) {
            Op::Take { granules, align } => match blocks.take(granules, align) {
                Some(span) => model.take(span, granules, align),
                None => {
                    // A class is a sixteenth wide, so a run that is longer than this by more cannot have been missed.
                    let enough = granules + align - 1;
                    assert!(model.longest_free() < enough + enough / 16 + 1, "{context}: a fit was missed");
                }
            },
            Op::Give { which } if !model.live.is_empty() => {
                let which = which % model.live.len();
                let given = blocks.give(&model.live[which].clone());
                assert_eq!(given, Ok(model.give(which)), "{context}");
            }
            Op::GiveAgain { which } if !model.dead.is_empty() => {
                let refused = blocks.give(&model.dead[which % model.dead.len()]);
                assert!(matches!(refused, Err(FreeError::Stale { .. })), "{context}: {refused:?}");
            }
            Op::GiveForged { which } if !model.live.is_empty() => {
                let refused = blocks.give(&forged(model.live[which % model.live.len()], &mut random));
                assert!(matches!(refused, Err(FreeError::Mismatch { .. })), "{context}: {refused:?}");
            }
            _ => {}
        }
        if step % 64 == 0 {
            blocks.validate(options.area);
            let (longest, told) = (model.longest_free(), blocks.largest_free());
            assert!(told <= longest && told >= longest - longest / 16, "{context}: {told} for {longest}");
        }
    }
    while !model.live.is_empty() {
        assert_eq!(blocks.give(&model.live[0].clone()), Ok(model.give(0)), "{options:?} seed {seed}");
    }
    blocks.validate(options.area);
    assert_eq!(blocks.largest_free(), options.area, "{options:?} seed {seed}");
}

/// A span that starts inside a live one, or ends elsewhere.
fn forged(span: Span, random: &mut Random) -> Span {
    match random.below(3) {
        0 => Span { start: span.start + 1, granules: span.granules - 1, ..span },
        1 => Span { start: span.start + 1, ..span },
        _ => Span { granules: span.granules + 1, ..span },
    }
}

#[test]
fn blocks_agree_with_a_naive_model_for_every_kind_of_load() {
    for options in &OPTIONS {
        for seed in 0..if cfg!(miri) { 1 } else { 6 } {
            run(options, seed);
        }
    }
}

#[test]
fn a_whole_area_can_be_taken_at_the_largest_alignment_and_then_nothing_more() {
    for granules in [32768, 1 << 22, 12_345 * 64] {
        let mut blocks = Blocks::new(granules);
        let span = blocks.take(granules, 64).expect("the area is empty");
        assert_eq!(blocks.take(1, 1), None);
        assert_eq!(blocks.largest_free(), 0);
        assert_eq!(blocks.give(&span), Ok(0..granules));
    }
}

#[test]
fn alignment_wastes_nothing_because_the_gap_before_a_span_stays_free() {
    let mut blocks = Blocks::new(256);
    let spans = [blocks.take(1, 1), blocks.take(64, 64), blocks.take(63, 1), blocks.take(128, 1)].map(Option::unwrap);
    assert_eq!(spans.map(|it| it.range()), [0..1, 64..128, 1..64, 128..256]);
}

#[test]
fn a_span_of_a_block_that_never_was_is_refused() {
    let mut blocks = Blocks::new(64);
    let span = Span { block: 1024, generation: 0, start: 0, granules: 1 };
    assert_eq!(blocks.give(&span), Err(FreeError::Unknown { block: 1024 }));
    let span = Span { block: NONE, ..span };
    assert_eq!(blocks.give(&span), Err(FreeError::Unknown { block: NONE }));
}

#[test]
fn classes_grow_with_length_and_each_holds_what_it_promises() {
    let mut lengths: Vec<u32> = (1..1000).collect();
    lengths.extend((1000..=1 << 22).step_by(997));
    for pair in lengths.windows(2) {
        assert!(class_of(pair[0]) <= class_of(pair[1]), "{pair:?}");
    }
    for &length in &lengths {
        let class = class_holding(length);
        assert!(class < CLASSES && class_of(length) <= class && class <= class_of(length) + 1, "{length}");
        assert!(length == 1 || class_of(length - 1) < class, "a shorter block is in the class that holds {length}");
    }
}
