//! Scenario d: one and two threads on the same arenas.

use std::{
    hint,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use crate::{
    Bench,
    api::Memory,
    churn::reserve_bytes,
    slots::{Slots, fill, replay},
    trace::Trace,
};

/// Who puts the first blocks there.
#[derive(Clone, Copy, PartialEq)]
enum Filler {
    /// The thread that starts the others, as in the harness: each then frees what another has allocated.
    Starter,
    /// Each thread those of its own slots.
    Owner,
}

pub(crate) fn run(bench: &mut Bench) {
    for (prefix, filler) in [("d.", Filler::Starter), ("d.own_fill_", Filler::Owner)] {
        for _ in 0..bench.repetitions {
            let [one, two] = [1, 2].map(|threads| operations_per_second(bench, threads, filler));
            bench.report.add(format!("{prefix}churn_1_thread"), one, "ops/s");
            bench.report.add(format!("{prefix}churn_2_threads"), two, "ops/s");
            bench.report.add(format!("{prefix}scaling"), two / one, "x");
        }
    }
}

/// The first sixth of the trace; thread k has the slots k modulo `threads`.
fn operations_per_second(bench: &Bench, threads: u32, filler: Filler) -> f64 {
    let (memory, code) = (&Memory::map(reserve_bytes(&bench.trace)), &bench.code);
    let operations = bench.trace.churn.len() / 6;
    let parts: Vec<_> = (0..threads).map(|k| bench.trace.part(k, threads, operations)).collect();
    let filled = |part: &Trace| if filler == Filler::Starter { fill(memory, &part.fill, code) } else { Slots::new() };
    let mut slots: Vec<_> = parts.iter().map(filled).collect();
    let (ready, go) = (&AtomicUsize::new(0), &AtomicBool::new(false));
    let start = thread::scope(|scope| {
        for (part, slots) in parts.iter().zip(&mut slots) {
            scope.spawn(move || {
                if filler == Filler::Owner {
                    *slots = fill(memory, &part.fill, code);
                }
                ready.fetch_add(1, Ordering::Release);
                while !go.load(Ordering::Acquire) {
                    hint::spin_loop();
                }
                replay(memory, slots, part.churn.iter(), code);
            });
        }
        while ready.load(Ordering::Acquire) != parts.len() {
            hint::spin_loop();
        }
        let start = Instant::now();
        go.store(true, Ordering::Release);
        start
    });
    operations as f64 / start.elapsed().as_secs_f64()
}
