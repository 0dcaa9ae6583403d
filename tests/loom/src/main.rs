//! Explores the interleavings of the arena's reuse of memory: reserve, write, publish, pin, run, free, reuse.
//!
//! Each model also runs in a form that leaves a step out, and must then fail: a model that cannot fail shows nothing.

mod exec;
mod reuse;
mod shelf;

/// What stands for the standard library's atomics in the files that are included.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

#[path = "../../../src/arena/epochs.rs"]
#[allow(dead_code)]
mod epochs;
#[path = "../../../src/arena/shelves.rs"]
#[allow(dead_code)]
mod shelves;

use std::{
    env,
    process::{Command, Stdio},
};

/// More changes of threads than this within one run find nothing that fewer do not, and take days.
const PREEMPTIONS_MAX: usize = 3;

type Model = fn(Flaw);

/// Each with the flaws that it must find.
const MODELS: [(&str, Model, &[Flaw]); 8] = [
    ("one address, replaced while it may run", reuse::replace, &[Flaw::NoBarrier, Flaw::NoPin]),
    ("two addresses, published side by side", reuse::side_by_side, &[Flaw::NoBarrier, Flaw::EarlyStamp]),
    ("a span that goes by way of a shelf", shelf::hand_over, &[Flaw::LateWipe]),
    ("shelves that are closed", shelf::close, &[Flaw::DrainOnly]),
    ("calls for executors that fall asleep", exec::plain_calls, &[Flaw::LostWake]),
    ("calls that take turns", exec::calls_of_a_lane, &[Flaw::LostWake]),
    ("a call behind one that ends late", exec::call_behind_a_late_end, &[Flaw::LostWake, Flaw::ComesNot]),
    ("calls that a worker process runs", exec::desk::turns, &[Flaw::LostWake, Flaw::NoFence]),
];

/// The step that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    /// Memory that ran is published without a barrier.
    NoBarrier,
    /// Memory is given back while a thread still runs it.
    NoPin,
    /// The stamp is that of the last barrier that began, not of the next.
    EarlyStamp,
    /// A span is wiped when it is on the shelf already.
    LateWipe,
    /// The shelves are emptied at the end, but not closed.
    DrainOnly,
    /// A sleeping thread that is woken sleeps on.
    LostWake,
    /// A thread that says that it comes for the next call ends instead.
    ComesNot,
    /// Who says that it sleeps, and who has something for it, do not see each other.
    NoFence,
}

fn explore(model: Model, flaw: Flaw) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(move || model(flaw));
}

/// Whether a model fails with a flaw: in a process of its own, as what fails may abort.
fn is_found(model: usize, flaw: usize) -> bool {
    let own = env::current_exe().expect("the path of this program");
    let run = Command::new(own).args([model.to_string(), flaw.to_string()]).stderr(Stdio::null()).status();
    !run.expect("this program runs").success()
}

fn main() {
    let arguments: Vec<usize> = env::args().skip(1).map(|it| it.parse().expect("a number")).collect();
    if let [model] = arguments[..] {
        return explore(MODELS[model].1, Flaw::None);
    }
    if let [model, flaw] = arguments[..] {
        let (_, model, flaws) = MODELS[model];
        return explore(model, flaws[flaw]);
    }
    for (at, (name, model, flaws)) in MODELS.into_iter().enumerate() {
        explore(model, Flaw::None);
        for (number, flaw) in flaws.iter().enumerate() {
            assert!(is_found(at, number), "{name}: nothing was found with {flaw:?}");
        }
        println!("{name}: holds, and fails with each of {flaws:?}");
    }
}
