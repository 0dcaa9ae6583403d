//! The allocator against a model that knows each granule's owner.

use super::*;
use crate::arena::testing::{Random, lines_touched};

/// Enough to fill and drain an area many times.
const STEPS: u32 = if cfg!(miri) { 40 } else { 4000 };

enum Op {
    Take { granules: u32, align: u32 },
    Give { which: usize },
    Shrink { which: usize },
    Grow { which: usize, more: u32 },
    GiveAgain { which: usize },
    GiveForged { which: usize },
}

impl Op {
    fn random(random: &mut Random, options: &Options) -> Self {
        let which = random.below(u32::MAX) as usize;
        match random.below(100) {
            0..4 => Self::GiveAgain { which },
            4..8 => Self::GiveForged { which },
            8..13 => Self::Shrink { which },
            13..18 => Self::Grow { which, more: random.small(options.granules_max.min(200)) },
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

const OPTIONS: [Options; 7] = [
    Options { area: 64, granules_max: 8, align_bits: 0, take_percent: 60 },
    Options { area: 4096, granules_max: 1, align_bits: 6, take_percent: 65 },
    Options { area: 4096, granules_max: 300, align_bits: 0, take_percent: 65 },
    Options { area: 32768, granules_max: 1024, align_bits: 6, take_percent: 62 },
    Options { area: 32768, granules_max: 40, align_bits: 3, take_percent: 82 },
    Options { area: 4096, granules_max: 4096, align_bits: 8, take_percent: 60 },
    Options { area: 8192, granules_max: 6, align_bits: 0, take_percent: 70 },
];

/// Who owns each granule, and every span that was ever given back.
struct Model {
    owners: Vec<Option<Span>>,
    live: Vec<Span>,
    dead: Vec<Span>,
}

impl Model {
    fn free_runs(&self) -> Vec<Range<u32>> {
        let runs = self.runs().into_iter();
        runs.filter(|run| !run.used).map(|run| run.granules).collect()
    }

    fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (at, owner) in self.owners.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if self.owners[at - 1] == *owner => run.granules.end += 1,
                _ => runs.push(Run { granules: at as u32..at as u32 + 1, used: owner.is_some() }),
            }
        }
        runs
    }

    /// The best fit with the lowest address, where the run at the area's end counts as the longest. Runs of 128
    /// granules and more are told apart by eighths of a power of two.
    fn best(&self, granules: u32) -> Option<u32> {
        let area = self.owners.len() as u32;
        let fits = self.free_runs().into_iter().filter(|run| run.len() as u32 >= granules);
        let length = |run: &Range<u32>| {
            let length = run.len() as u32;
            if length < 128 { length } else { length >> (length.ilog2() - 3) << (length.ilog2() - 3) }
        };
        fits.min_by_key(|run| (run.end == area, length(run), run.start)).map(|run| run.start)
    }

    fn fits(&self, granules: u32, align: u32) -> bool {
        self.free_runs().iter().any(|run| run.start.next_multiple_of(align) + granules <= run.end)
    }

    fn take(&mut self, span: Span) {
        let owners = &mut self.owners[span.start as usize..span.range().end as usize];
        assert!(owners.iter().all(Option::is_none), "{span:?} overlaps");
        owners.fill(Some(span));
        self.live.push(span);
    }

    /// Answers the free run around the span.
    fn give(&mut self, which: usize) -> Range<u32> {
        let span = self.live.swap_remove(which);
        self.owners[span.start as usize..span.range().end as usize].fill(None);
        self.dead.push(span);
        self.free_runs().into_iter().find(|run| run.contains(&span.start)).unwrap()
    }

    fn resize(&mut self, which: usize, span: Span) {
        let old = self.live.swap_remove(which);
        self.owners[old.start as usize..old.range().end as usize].fill(None);
        self.take(span);
    }
}

impl Blocks {
    /// Panics if the sets and tags are not those that the granules' bits demand.
    fn validate(&self) {
        let area = self.cells.granules();
        let mut listed = Classes::new(self.cells.count());
        let mut top = area;
        for run in self.runs().filter(|run| !run.used) {
            if run.granules.end == area {
                top = run.granules.start;
            } else {
                assert_eq!(self.cells.run_start_before(run.granules.end), run.granules.start, "{run:?}");
                listed.insert(class_of(run.granules.len() as u32), run.granules.start / CELL_GRANULES);
            }
        }
        assert_eq!(self.top, top);
        assert!(self.classes == listed, "the sets are not those of the runs");
    }
}

fn step(blocks: &mut Blocks, model: &mut Model, op: Op, random: &mut Random, context: &str) {
    match op {
        Op::Take { granules, align } => {
            let best = (align == 1 && granules < 128).then(|| model.best(granules));
            let fits = model.fits(granules, align);
            assert_eq!(blocks.has_room(granules, align), fits, "{context}: {granules} at {align}");
            let taken = blocks.take(granules, align);
            assert_eq!(taken.is_some(), fits, "{context}: {granules} at {align}");
            if let Some(best) = best {
                assert_eq!(taken.map(|span| span.start), best, "{context}: {granules} granules");
            }
            if let Some(span) = taken {
                assert_eq!((span.granules, span.start % align), (granules, 0), "{context}");
                model.take(span);
            }
        }
        Op::GiveAgain { which } if !model.dead.is_empty() => {
            let span = model.dead[which % model.dead.len()];
            let is_live = model.owners[span.start as usize] == Some(span);
            assert!(is_live || blocks.give(&span).is_err(), "{context}: {span:?} was given twice");
        }
        _ if model.live.is_empty() => {}
        Op::Give { which } => {
            let which = which % model.live.len();
            let given = blocks.give(&model.live[which].clone());
            assert_eq!(given, Ok(model.give(which)), "{context}");
        }
        Op::Shrink { which } => {
            let which = which % model.live.len();
            let span = model.live[which];
            let kept = blocks.shrink(&span, 1 + random.below(span.granules)).unwrap();
            assert_eq!(kept.start, span.start, "{context}");
            model.resize(which, kept);
        }
        Op::Grow { which, more } => {
            let which = which % model.live.len();
            let Span { start, granules } = model.live[which];
            let wanted = Span { start, granules: granules + more };
            let behind = model.owners.get((start + granules) as usize..wanted.range().end as usize);
            let free = behind.is_some_and(|it| it.iter().all(Option::is_none));
            let grown = blocks.grow(&model.live[which].clone(), wanted.granules).unwrap();
            assert_eq!(grown, free.then_some(wanted), "{context}");
            if free {
                model.resize(which, wanted);
            }
        }
        Op::GiveForged { which } => {
            let forged = forged(model.live[which % model.live.len()], random);
            let is_live = model.live.contains(&forged);
            assert!(is_live || blocks.give(&forged).is_err(), "{context}: {forged:?} is no span");
        }
        Op::GiveAgain { .. } => {}
    }
}

/// A span that starts inside a live one, or ends elsewhere.
fn forged(span: Span, random: &mut Random) -> Span {
    let Span { start, granules } = span;
    match random.below(4) {
        0 => Span { start: start + 1, granules: granules - 1 },
        1 => Span { start: start + 1, granules },
        2 => Span { start, granules: granules - 1 },
        _ => Span { start, granules: granules + 1 },
    }
}

fn compare(blocks: &Blocks, model: &Model, random: &mut Random, context: &str) {
    blocks.validate();
    assert_eq!(blocks.runs().collect::<Vec<_>>(), model.runs(), "{context}");
    let longest = model.free_runs().iter().map(|run| run.len() as u32).max().unwrap_or(0);
    assert_eq!(blocks.largest_free(), longest, "{context}");
    for granule in 0..model.owners.len() as u32 {
        assert_eq!(blocks.find(granule), model.owners[granule as usize], "{context}: granule {granule}");
    }
    assert_eq!(blocks.find(model.owners.len() as u32), None);
    for _ in 0..20 {
        let start = random.below(model.owners.len() as u32);
        let range = start..start + 1 + random.small(model.owners.len() as u32 - start);
        let free = model.owners[range.start as usize..range.end as usize].iter().all(Option::is_none);
        assert_eq!(blocks.is_free(&range), free, "{context}: {range:?}");
    }
}

fn run(options: &Options, seed: u64) {
    let mut random = Random::new(seed);
    let mut blocks = Blocks::new(options.area);
    let mut model = Model { owners: vec![None; options.area as usize], live: Vec::new(), dead: Vec::new() };
    for at in 0..STEPS {
        let context = format!("{options:?} seed {seed} step {at}");
        let op = Op::random(&mut random, options);
        step(&mut blocks, &mut model, op, &mut random, &context);
        if at % 128 == 0 {
            compare(&blocks, &model, &mut random, &context);
        }
    }
    while !model.live.is_empty() {
        assert_eq!(blocks.give(&model.live[0].clone()), Ok(model.give(0)), "{options:?} seed {seed}");
    }
    blocks.validate();
    assert_eq!(blocks.largest_free(), options.area, "{options:?} seed {seed}");
}

#[test]
fn blocks_agree_with_a_naive_model_for_every_kind_of_load() {
    for options in &OPTIONS {
        for seed in 0..if cfg!(miri) { 1 } else { 3 } {
            run(options, seed);
        }
    }
}

#[test]
fn a_whole_area_can_be_taken_at_the_largest_alignment_and_then_nothing_more() {
    for granules in if cfg!(miri) { [64, 4096, 45 * 64] } else { [32768, AREA_GRANULES_MAX, 12_345 * 64] } {
        let mut blocks = Blocks::new(granules);
        let span = blocks.take(granules, 64).expect("the area is empty");
        assert_eq!(blocks.take(1, 1), None);
        assert_eq!(blocks.largest_free(), 0);
        assert_eq!(blocks.give(&span), Ok(0..granules));
        assert_eq!(blocks.take(granules + 1, 1), None);
        assert_eq!(blocks.take(u32::MAX, 64), None);
    }
}

#[test]
fn alignment_wastes_nothing_because_the_gap_before_a_span_stays_free() {
    let mut blocks = Blocks::new(256);
    let spans = [blocks.take(1, 1), blocks.take(64, 64), blocks.take(63, 1), blocks.take(128, 1)].map(Option::unwrap);
    assert_eq!(spans.map(|it| it.range()), [0..1, 64..128, 1..64, 128..256]);
}

#[test]
fn what_is_given_back_must_be_a_span_and_the_error_says_what_is_there_instead() {
    let mut blocks = Blocks::new(256);
    let span = blocks.take(10, 1).unwrap();
    assert_eq!(blocks.give(&Span::new(250, 10)), Err(FreeError::Outside { start: 250, granules: 10, area: 256 }));
    assert!(blocks.give(&Span::new(u32::MAX, 1)).is_err());
    let inner = FreeError::NotASpan { start: 3, granules: 7, found_start: 0, found_granules: 10 };
    assert_eq!(blocks.give(&Span::new(3, 7)), Err(inner));
    assert_eq!(blocks.give(&span), Ok(0..256));
    assert_eq!(blocks.give(&span), Err(FreeError::NotAllocated { start: 0 }));
    assert_eq!(blocks.shrink(&span, 1), Err(FreeError::NotAllocated { start: 0 }));
    assert_eq!(blocks.grow(&span, 11), Err(FreeError::NotAllocated { start: 0 }));
}

#[test]
fn tables_take_at_most_16_thousandths_of_the_memory_at_granules_of_64_bytes() {
    for granules in [32768, 1 << 20, AREA_GRANULES_MAX] {
        let share = Blocks::new(granules).metadata_bytes() as f64 / (f64::from(granules) * 64.0);
        assert!(share <= 0.016, "{granules} granules: {share}");
    }
}

/// The most cache lines of tables that a take and a give look at while random spans of 64 to 512 bytes replace each
/// other.
fn lines_max(spans: u32) -> (usize, usize) {
    let mut random = Random::new(u64::from(spans));
    let mut blocks = Blocks::new((spans * 6).next_multiple_of(CELL_GRANULES));
    let mut live: Vec<Span> = (0..spans).map(|_| blocks.take(1 + random.below(8), 1).unwrap()).collect();
    let (mut take, mut give) = (0, 0);
    for _ in 0..if cfg!(miri) { 20 } else { 100_000 } {
        let span = &mut live[random.below(spans) as usize];
        let (given, lines) = lines_touched(|| blocks.give(span));
        given.unwrap();
        give = give.max(lines);
        let granules = 1 + random.below(8);
        let (taken, lines) = lines_touched(|| blocks.take(granules, 1));
        *span = taken.unwrap();
        take = take.max(lines);
    }
    (take, give)
}

#[test]
fn an_operation_looks_at_as_few_cache_lines_with_a_million_spans_as_with_ten_thousand() {
    const LINES_MAX: usize = 16;
    for spans in if cfg!(miri) { [100, 1000] } else { [10_000, 1_000_000] } {
        let (take, give) = lines_max(spans);
        assert!(take > 1 && take <= LINES_MAX, "{spans} spans: {take} lines to take one");
        assert!(give > 1 && give <= LINES_MAX, "{spans} spans: {give} lines to give one back");
    }
}

#[test]
fn a_span_of_many_granules_adds_only_the_lines_of_its_own_cells() {
    const LINES_MAX: usize = 24;
    let mut random = Random::new(1);
    let mut blocks = Blocks::new(1 << 20);
    // Half the area, so that a longer run is left and nothing is searched in full.
    let mut live: Vec<Span> = (0..128).map(|_| blocks.take(1 + random.below(4096), 1).unwrap()).collect();
    for at in 0..if cfg!(miri) { 10 } else { 20_000 } {
        let span = &mut live[random.below(128) as usize];
        let own = |granules: usize| granules / 64 * 24 / 64;
        let (given, lines) = lines_touched(|| blocks.give(span));
        given.unwrap();
        assert!(lines <= own(span.granules as usize) + LINES_MAX, "step {at}: {lines} lines to give {span:?} back");
        let granules = 1 + random.below(4096);
        let (taken, lines) = lines_touched(|| blocks.take(granules, 1));
        *span = taken.unwrap();
        assert!(lines <= own(span.granules as usize) + LINES_MAX, "step {at}: {lines} lines to take {span:?}");
    }
}

#[test]
fn holes_that_almost_fit_are_not_all_looked_at_while_a_run_is_left_that_fits() {
    const LINES_MAX: usize = 24;
    for (hole, granules, align) in [(128, 130, 1), (2, 2, 4), (200, 200, 256)] {
        let holes = if cfg!(miri) { 40 } else { 4000 };
        let mut blocks = Blocks::new(1 << 22);
        // Walls as long as the holes, and one before them, so that few or none of the holes are aligned.
        let mut take = || blocks.take(hole, 1).unwrap();
        take();
        let spans: Vec<Span> = (0..holes).map(|_| (take(), take()).0).collect();
        for span in &spans {
            blocks.give(span).unwrap();
        }
        let (taken, lines) = lines_touched(|| blocks.take(granules, align));
        assert!(
            taken.is_some() && lines <= LINES_MAX,
            "{lines} lines for {granules} at {align} beside holes of {hole}"
        );
    }
}

#[test]
fn the_only_run_that_fits_is_found_behind_many_that_do_not_when_the_area_is_full() {
    let mut blocks = Blocks::new(64 * 64);
    let mut take = |granules| blocks.take(granules, 1).unwrap();
    let mut holes: Vec<Span> = (0..20).map(|_| (take(128), take(1)).0).collect();
    let fits = take(130);
    holes.push(fits);
    let rest = 64 * 64 - take(1).range().end;
    take(rest);
    for span in &holes {
        blocks.give(span).unwrap();
    }
    assert_eq!(blocks.take(130, 1), Some(fits));
    assert_eq!(blocks.take(130, 1), None);
}

#[test]
fn a_run_that_just_holds_a_long_span_is_taken_before_a_longer_one() {
    let mut blocks = Blocks::new(1024);
    let [longer, _, fits, _] = [200, 1, 130, 1].map(|granules| blocks.take(granules, 1).unwrap());
    blocks.give(&longer).unwrap();
    blocks.give(&fits).unwrap();
    assert_eq!(blocks.take(130, 1), Some(fits));
}
