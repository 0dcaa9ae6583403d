//! Scenario e: replacements where 95 % are in use.

use crate::{
    Bench,
    api::{Memory, size_bytes},
    clock::{Ticks, ticks},
    report::MIB,
    slots::{Slots, put, write},
};

/// One block of the peer's, and one area here.
const RESERVE_BYTES: u64 = 64 << 20;
const FULL: f64 = 0.95;
const REPLACEMENTS: usize = 100_000;

pub(crate) fn run(bench: &mut Bench) {
    for (name, fixed_bytes) in [("e.full95_mixed_", None), ("e.full95_1KiB_", Some(1024))] {
        for _ in 0..bench.repetitions {
            replace(bench, name, fixed_bytes);
        }
    }
}

fn replace(bench: &mut Bench, name: &str, fixed_bytes: Option<u32>) {
    let memory = Memory::map_whole(RESERVE_BYTES);
    let mut slots = filled(bench, &memory, fixed_bytes);
    let mut all = Ticks::with_capacity(bench.clock, REPLACEMENTS);
    let mut refused = Ticks::with_capacity(bench.clock, REPLACEMENTS);
    for step in bench.trace.churn.iter().cycle().take(REPLACEMENTS) {
        let size = fixed_bytes.unwrap_or(step.size);
        let at = step.slot as usize * slots.len() / bench.trace.fill.len();
        let slot = &mut slots[at];
        let old_size = slot.as_ref().map_or(size, size_bytes);
        *slot = None;
        let start = ticks();
        let found = memory.try_reserve(size);
        let end = ticks();
        // A refusal is waited for like any other answer.
        all.add(start, end);
        match found {
            Some(draft) => write(slot.insert(draft), size, &bench.code),
            // The peer grows. Here as much as was there a moment ago is put back, so that it stays as full.
            None => {
                refused.add(start, end);
                put(&memory, slot, old_size, &bench.code);
            }
        }
    }
    report(bench, name, &memory, all, refused);
}

/// Blocks of the trace's sizes, or all of one.
fn filled(bench: &Bench, memory: &Memory, fixed_bytes: Option<u32>) -> Slots {
    let full_bytes = (FULL * memory.space().reserved as f64) as u64;
    let mut slots = Slots::new();
    let mut sizes = bench.trace.fill.iter().cycle();
    while memory.space().used < full_bytes {
        let size = fixed_bytes.or(sizes.next().copied()).expect("invariant: a trace has slots");
        slots.push(None);
        put(memory, slots.last_mut().expect("invariant: pushed a moment ago"), size, &bench.code);
    }
    slots
}

fn report(bench: &mut Bench, name: &str, memory: &Memory, mut all: Ticks, mut refused: Ticks) {
    let mut add = |row: &str, value, unit| bench.report.add(format!("{name}{row}"), value, unit);
    add("block", memory.space().reserved as f64 / MIB, "MiB");
    add("alloc_p50", all.quantile_ns(0.5), "ns");
    add("alloc_p99", all.quantile_ns(0.99), "ns");
    add("alloc_p99.9", all.quantile_ns(0.999), "ns");
    add("alloc_max", all.quantile_ns(1.0), "ns");
    add("refused", refused.count() as f64, "ops");
    if refused.count() > 0 {
        add("refused_p50", refused.quantile_ns(0.5), "ns");
    }
    // There is no more than was reserved.
    add("reserved_growth", 0.0, "MiB");
    add("first_growth", -1.0, "op(-1=never)");
}
