//! Scenario b: the trace, with its live bytes in place.

use std::time::Instant;

use crate::{
    Bench,
    api::Memory,
    clock::{Ticks, ns_since, ticks},
    slots::{fill, replay, write},
    trace::Trace,
};

/// Successive parts of the operations, over which medians are taken.
const PARTS: usize = 5;
const RESERVE_MIN_BYTES: u64 = 256 << 20;

/// Addresses that leave no scenario short of room.
pub(crate) fn reserve_bytes(trace: &Trace) -> u64 {
    (4 * trace.live_bytes()).max(RESERVE_MIN_BYTES)
}

pub(crate) fn run(bench: &mut Bench) {
    parts_timed(bench);
    whole_timed(bench);
}

/// A timer around each of the three parts of an operation.
fn parts_timed(bench: &mut Bench) {
    let Bench { trace, code, clock, report, .. } = bench;
    let memory = Memory::map(reserve_bytes(trace));
    let mut slots = fill(&memory, &trace.fill, code);
    let fifth = trace.churn.len() / PARTS;
    for steps in trace.churn.chunks_exact(fifth) {
        let [mut release, mut alloc, mut writing] = [(); 3].map(|()| Ticks::with_capacity(*clock, fifth));
        for step in steps {
            let slot = &mut slots[step.slot as usize];
            let start = ticks();
            *slot = None;
            let released = ticks();
            let draft = slot.insert(memory.reserve(step.size));
            let allocated = ticks();
            write(draft, step.size, code);
            let written = ticks();
            release.add(start, released);
            alloc.add(released, allocated);
            writing.add(allocated, written);
        }
        report.add("b.alloc_mean", alloc.mean_ns(), "ns");
        report.add("b.alloc_p50", alloc.quantile_ns(0.5), "ns");
        report.add("b.alloc_p99", alloc.quantile_ns(0.99), "ns");
        report.add("b.alloc_p99.9", alloc.quantile_ns(0.999), "ns");
        report.add("b.alloc_max", alloc.quantile_ns(1.0), "ns");
        report.add("b.write_mean", writing.mean_ns(), "ns");
        report.add("b.write_p50", writing.quantile_ns(0.5), "ns");
        report.add("b.release_mean", release.mean_ns(), "ns");
        report.add("b.release_p50", release.quantile_ns(0.5), "ns");
        report.add("b.release_p99", release.quantile_ns(0.99), "ns");
    }
}

/// The same without a timer inside the loop.
fn whole_timed(bench: &mut Bench) {
    let Bench { trace, code, report, .. } = bench;
    let memory = Memory::map(reserve_bytes(trace));
    let start = Instant::now();
    let mut slots = fill(&memory, &trace.fill, code);
    report.add("b.fill_alloc_write", ns_since(start) / slots.len() as f64, "ns/op");
    let fifth = trace.churn.len() / PARTS;
    for steps in trace.churn.chunks_exact(fifth) {
        let start = Instant::now();
        replay(&memory, &mut slots, steps.iter(), code);
        report.add("b.churn_release_alloc_write", ns_since(start) / fifth as f64, "ns/op");
    }
}
