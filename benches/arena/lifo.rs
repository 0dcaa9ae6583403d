//! Scenario a: blocks released in the reverse of the order in which they were allocated, 1 and 64 deep.

use std::time::Instant;

use crate::{
    Bench,
    api::{Draft, Memory},
    churn::reserve_bytes,
    clock::ns_since,
    slots::{put, write},
    trace::Step,
};

const REPETITIONS: usize = 5;
const WARM_UP: usize = 2000;
const DEPTH: usize = 64;

pub(crate) fn run(bench: &mut Bench) {
    let pairs = bench.trace.churn.len() / 5 / DEPTH * DEPTH;
    for _ in 0..REPETITIONS {
        let (steps, code) = (&bench.trace.churn[..pairs], &bench.code);
        let memory = Memory::map(reserve_bytes(&bench.trace));
        alloc_write_release(&memory, &steps[..WARM_UP.min(pairs)], code);
        let figures = [
            ("a.lifo_depth1_alloc_write_release", time(|| alloc_write_release(&memory, steps, code))),
            ("a.lifo_depth1_alloc_release", time(|| alloc_release(&memory, steps))),
            ("a.lifo_depth64_alloc_write_release", {
                deep(&memory, steps, code);
                time(|| deep(&memory, steps, code))
            }),
        ];
        for (name, ns) in figures {
            bench.report.add(name, ns / pairs as f64, "ns/pair");
        }
    }
}

fn time(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    ns_since(start)
}

fn alloc_write_release(memory: &Memory, steps: &[Step], code: &[u8]) {
    for step in steps {
        write(&mut memory.reserve(step.size), step.size, code);
    }
}

fn alloc_release(memory: &Memory, steps: &[Step]) {
    for step in steps {
        drop(memory.reserve(step.size));
    }
}

fn deep(memory: &Memory, steps: &[Step], code: &[u8]) {
    let mut stack: [Option<Draft>; DEPTH] = [const { None }; DEPTH];
    for steps in steps.chunks_exact(DEPTH) {
        for (slot, step) in stack.iter_mut().zip(steps) {
            put(memory, slot, step.size, code);
        }
        for slot in stack.iter_mut().rev() {
            *slot = None;
        }
    }
}
