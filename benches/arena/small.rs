//! Scenario f: a hundred thousand blocks of 128 B, from nothing.

use std::time::Instant;

use crate::{
    Bench,
    api::Memory,
    churn::reserve_bytes,
    clock::ns_since,
    report::MIB,
    slots::{Slots, put},
};

const REPETITIONS: usize = 5;
const BLOCKS: usize = 100_000;
pub(crate) const BLOCK_BYTES: u32 = 128;

pub(crate) fn run(bench: &mut Bench) {
    for _ in 0..REPETITIONS {
        alloc_and_release(bench);
        alloc_and_write(bench);
    }
}

fn empty() -> Slots {
    (0..BLOCKS).map(|_| None).collect()
}

fn alloc_and_release(bench: &mut Bench) {
    let memory = Memory::map(reserve_bytes(&bench.trace));
    let mut slots = empty();
    let start = Instant::now();
    for slot in &mut slots {
        *slot = Some(memory.reserve(BLOCK_BYTES));
    }
    bench.report.add("f.alloc_100k_of_128B", ns_since(start) * 1e-6, "ms");
    let space = memory.space();
    bench.report.add("f.reserved", space.reserved as f64 / MIB, "MiB");
    bench.report.add("f.used", space.used as f64 / MIB, "MiB");
    let start = Instant::now();
    for slot in &mut slots {
        *slot = None;
    }
    bench.report.add("f.release_100k_in_order", ns_since(start) * 1e-6, "ms");
}

fn alloc_and_write(bench: &mut Bench) {
    let memory = Memory::map(reserve_bytes(&bench.trace));
    let mut slots = empty();
    let start = Instant::now();
    for slot in &mut slots {
        put(&memory, slot, BLOCK_BYTES, &bench.code);
    }
    bench.report.add("f.alloc_write_100k_of_128B_cold", ns_since(start) * 1e-6, "ms");
}
