//! Scenario h: what an operation costs beside ten thousand and beside a million live blocks.

use std::{hint, time::Instant};

use crate::{
    Bench,
    api::{Draft, Memory},
    clock::ns_since,
    slots::Slots,
    trace::Random,
};

const RESERVE_BYTES: u64 = 1 << 30;
const SIZES_BYTES: (u32, u32) = (64, 512);
const OPERATIONS: usize = 1_000_000;
const REPETITIONS: usize = 3;
const SEED: u64 = 1;
/// Slots are looked at this many operations ahead: missing the cache on the bench's own table is no cost of the arenas.
const AHEAD: usize = 8;

pub(crate) fn run(bench: &mut Bench) {
    let mut medians = [0.0; 2];
    for (median, (name, live)) in medians.iter_mut().zip([("10k", 10_000), ("million", 1_000_000)]) {
        let (whole, table) = (format!("h.release_alloc_{name}"), format!("h.table_alone_{name}"));
        measure(bench, live, &whole, &table);
        *median = bench.report.median(&whole).expect("invariant: measured a moment ago");
    }
    bench.report.add("h.million_over_10k", medians[1] / medians[0], "x");
}

fn measure(bench: &mut Bench, live: u32, whole: &str, table: &str) {
    let memory = Memory::map(RESERVE_BYTES);
    let mut random = Random::new(SEED);
    let (low, high) = SIZES_BYTES;
    let mut slots: Slots = (0..live).map(|_| Some(memory.reserve(random.log_uniform(low, high)))).collect();
    for repetition in 0..=REPETITIONS {
        let steps: Vec<(u32, u32)> =
            (0..OPERATIONS + AHEAD).map(|_| (random.below(live), random.log_uniform(low, high))).collect();
        let start = Instant::now();
        each(&mut slots, &steps, |slot, size| {
            *slot = None;
            *slot = Some(memory.reserve(size));
        });
        let both = ns_since(start) / OPERATIONS as f64;
        let start = Instant::now();
        each(&mut slots, &steps, |slot, _| *slot = hint::black_box(slot.take()));
        let alone = ns_since(start) / OPERATIONS as f64;
        // The first round still finds the blocks in the order of their addresses.
        if repetition > 0 {
            bench.report.add(whole, both, "ns/op");
            bench.report.add(table, alone, "ns/op");
        }
    }
}

fn each(slots: &mut Slots, steps: &[(u32, u32)], mut operation: impl FnMut(&mut Option<Draft>, u32)) {
    for (step, later) in steps.iter().zip(&steps[AHEAD..]) {
        hint::black_box(slots[later.0 as usize].is_some());
        operation(&mut slots[step.0 as usize], step.1);
    }
}
