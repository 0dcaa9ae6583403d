//! Scenario g: the price of making code runnable.

use std::{
    hint,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use crate::{
    Bench,
    api::{Draft, Memory, Published, publish, publish_many},
    clock::{Clock, Ticks, ns_since, ticks},
    report::Report,
    slots::write,
};

/// A page.
pub(crate) const CODE_BYTES: u32 = 4096;
const RESERVE_BYTES: u64 = 64 << 20;
/// Pages that are written in turn: the pool of the harness for publishing methods, more than a core's own caches hold.
const PAGES: usize = 4096;
/// As many as such a cache holds: the copy is then as fast as it can be.
const CACHED_PAGES: usize = 128;
const REPETITIONS: usize = 15;
const BATCH: usize = 64;
const BATCHES: usize = 200;

pub(crate) fn run(bench: &mut Bench) {
    for (pages, suffix) in [(PAGES, ""), (CACHED_PAGES, ".cached")] {
        for repetition in 0..REPETITIONS {
            let memory = Memory::map_keeping_all(RESERVE_BYTES);
            commit(&memory, pages);
            // Neither is always the first to meet the pages. What ran is not fresh, but a copy does not mind.
            let (copied, published) = if repetition % 2 == 0 {
                let copied = copy(&memory, pages, &bench.code);
                (copied, publish_fresh(&memory, pages, &bench.code))
            } else {
                let published = publish_fresh(&memory, pages, &bench.code);
                (copy(&memory, pages, &bench.code), published)
            };
            bench.report.add(format!("g.copy_4K{suffix}"), copied, "ns");
            let (published, reserved) = published;
            bench.report.add(format!("g.publish_4K_fresh{suffix}"), published, "ns");
            bench.report.add(format!("g.reserve_4K{suffix}"), reserved, "ns");
            bench.report.add(format!("g.reserve_and_publish_over_copy{suffix}"), (reserved + published) / copied, "x");
            bench.report.add(format!("g.publish_over_copy{suffix}"), published / copied, "x");
        }
    }
    reuse(&mut bench.report, bench.clock, &bench.code, "");
    beside_a_running_thread(|| reuse(&mut bench.report, bench.clock, &bench.code, ".second_thread_running"));
}

/// Leaves these pages committed and without an owner; they have both views and never ran.
fn commit(memory: &Memory, pages: usize) {
    drop((0..pages).map(|_| memory.reserve(CODE_BYTES)).collect::<Vec<Draft>>());
}

/// Plain copies to the pages, each in turn. They hold traps before and after.
fn copy(memory: &Memory, pages: usize, code: &[u8]) -> f64 {
    let mut drafts: Vec<Draft> = (0..pages).map(|_| memory.reserve(CODE_BYTES)).collect();
    let mut blocks: Vec<&mut [u8]> = drafts.iter_mut().map(Draft::code_mut).collect();
    let start = Instant::now();
    for block in &mut blocks {
        block.copy_from_slice(hint::black_box(&code[..CODE_BYTES as usize]));
    }
    ns_since(start) / pages as f64
}

/// The same pages, by way of the arenas: copy and publish, and the reservation before it. What was published is given
/// back after the clock has stopped.
fn publish_fresh(memory: &Memory, pages: usize, code: &[u8]) -> (f64, f64) {
    // Written before the clock starts: faults on the bench's own table are no cost of the arenas.
    let mut drafts: Vec<Option<Draft>> = (0..pages).map(|_| None).collect();
    let mut slots: Vec<Option<Published>> = (0..pages).map(|_| None).collect();
    let (committed, barriers) = (memory.space().committed, memory.barriers());
    let start = Instant::now();
    for draft in &mut drafts {
        *draft = Some(memory.reserve(CODE_BYTES));
    }
    let reserved_ns = ns_since(start) / pages as f64;
    let start = Instant::now();
    for (draft, slot) in drafts.iter_mut().zip(&mut slots) {
        *slot = draft.take().map(|mut draft| {
            write(&mut draft, CODE_BYTES, hint::black_box(code));
            publish(draft)
        });
    }
    let ns = ns_since(start) / pages as f64;
    assert_eq!(memory.space().committed, committed, "the pages were committed before");
    assert_eq!(memory.barriers(), barriers, "the pages never ran");
    (ns, reserved_ns)
}

/// Publishing where other code ran before: each time alone, and many at once.
fn reuse(report: &mut Report, clock: Clock, code: &[u8], suffix: &str) {
    let memory = Memory::map_keeping_all(RESERVE_BYTES);
    for (name, batch) in [("g.publish_reuse_alone", 1), ("g.publish_reuse_batch64", BATCH)] {
        publish_many(drafts(&memory, code, batch));
        let barriers = memory.barriers();
        let mut durations = Ticks::with_capacity(clock, BATCHES);
        for _ in 0..BATCHES {
            let drafts = drafts(&memory, code, batch);
            let start = ticks();
            let published = publish_many(drafts);
            durations.add(start, ticks());
            drop(published);
        }
        let barriers = (memory.barriers() - barriers) as f64 / BATCHES as f64;
        report.add(format!("{name}{suffix}"), durations.quantile_ns(0.5), "ns");
        report.add(format!("{name}_each{suffix}"), durations.quantile_ns(0.5) / batch as f64, "ns");
        report.add(format!("{name}_barriers{suffix}"), barriers, "per_batch");
    }
}

fn drafts(memory: &Memory, code: &[u8], count: usize) -> Vec<Draft> {
    let mut drafts = memory.reserve_many(CODE_BYTES, count);
    drafts.iter_mut().for_each(|draft| write(draft, CODE_BYTES, code));
    drafts
}

/// A barrier has to interrupt whatever runs.
fn beside_a_running_thread(measure: impl FnOnce()) {
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                hint::spin_loop();
            }
        });
        measure();
        stop.store(true, Ordering::Relaxed);
    });
}
