//! Measures the arenas by the scenarios of the AsmJit harness, on the same trace.
//!
//! ```text
//! cargo bench --bench arena -- [--trace FILE] [--peer FILE] [--only abcdefgh] [--repetitions N]
//!     [--seed N] [--live-bytes N] [--operations N] [--size-min N] [--size-max N]
//! ```
//!
//! Prints `name value unit`, medians. Without `--trace` it makes the trace itself, by default the one that the published
//! figures refer to. Given the harness's output by `--peer`, it prints the ratios of rows with the same name, and for each
//! aim `name value limit pass|short`. What falls short is no error: the exit code says only whether it could measure.
#![allow(clippy::print_stdout)] // Its figures are its output.

mod aims;
mod api;
mod arguments;
mod churn;
mod clock;
mod full;
mod lifo;
mod many;
mod peer;
mod publishing;
mod report;
mod slots;
mod small;
mod space;
mod threads;
mod trace;

use std::{error::Error, process::ExitCode};

use arguments::Arguments;
use clock::Clock;
use peer::Peer;
use report::Report;
use trace::Trace;

/// What every scenario needs.
struct Bench {
    trace: Trace,
    /// Written into every block, from its start.
    code: Vec<u8>,
    clock: Clock,
    repetitions: usize,
    peer: Peer,
    report: Report,
}

type Scenario = (char, fn(&mut Bench));

const SCENARIOS: &[Scenario] = &[
    ('a', lifo::run),
    ('b', churn::run),
    ('c', space::run),
    ('d', threads::run),
    ('e', full::run),
    ('f', small::run),
    ('g', publishing::run),
    ('h', many::run),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("arena: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let trace = match &arguments.trace {
        Some(path) => Trace::read(path)?,
        None => Trace::generate(&arguments.law)?,
    };
    let code_bytes = trace.size_max().max(publishing::CODE_BYTES).max(small::BLOCK_BYTES) as usize;
    let mut bench = Bench {
        trace,
        code: (0..code_bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
        clock: Clock::calibrate(),
        repetitions: arguments.repetitions,
        peer: arguments.peer.as_deref().map(Peer::read).transpose()?.unwrap_or_default(),
        report: Report::default(),
    };
    println!("arena.timer_subtracted {} ns", report::short(bench.clock.own_ns()));
    for (_, scenario) in SCENARIOS.iter().filter(|(letter, _)| arguments.only.contains(*letter)) {
        scenario(&mut bench);
        bench.report.print_new();
    }
    bench.peer.print_shares();
    bench.report.print_ratios(&bench.peer);
    aims::print(&bench.report, &bench.peer);
    Ok(())
}
