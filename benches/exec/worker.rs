//! What a call costs in a worker process, both sides spinning and both asleep, and what a worker's death costs.

use std::{
    error::Error,
    thread,
    time::{Duration, Instant},
};

use codecached::{
    cache::Pinned,
    confine::Needs,
    exec::{Arg, Call, ExecConfig, Outcome, Pool, ResultType, Workers},
};
use tokio::runtime::Runtime;

use crate::{Code, OTHER, ROUNDS, SERIES, quantile};

/// Longer than either side spins.
const PAUSE: Duration = Duration::from_millis(2);
const PARKED: usize = 1000;
const TURNS: usize = 1000;
/// Round trips as were measured of a bare ring: spinning, in nanoseconds, and by futex, in microseconds.
const AIM_SPINNING_NS: f64 = 1000.0;
const AIM_PARKED_US: f64 = 30.0;

/// Forks what forks workers: while there is one thread.
pub fn prepare(code: &Code, config: &ExecConfig) -> Result<Workers, Box<dyn Error>> {
    Ok(Workers::prepare(config, &code.arenas.data_ranges(), 100, &Needs::default())?)
}

pub fn all(code: &Code, workers: Workers, runtime: &Runtime) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let pool = Pool::start_with_workers(workers)?;
    println!("exec.worker.pool_start {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    let spinning = spinning(code, &pool, runtime);
    println!("exec.worker.call_spinning {spinning:.1} ns");
    crate::aim("worker_call_spinning_ns", spinning, AIM_SPINNING_NS, spinning <= AIM_SPINNING_NS);
    let mut parked = parked(code, &pool, runtime);
    let median = quantile(&mut parked, 0.5);
    println!("exec.worker.call_parked_p50 {median:.2} us");
    println!("exec.worker.call_parked_p99 {:.2} us", quantile(&mut parked, 0.99));
    crate::aim("worker_call_parked_us", median, AIM_PARKED_US, median <= AIM_PARKED_US);
    let mut replaced = taking_turns(code, &pool, runtime);
    println!("exec.worker.call_of_other_namespace_p50 {:.1} us", quantile(&mut replaced, 0.5));
    println!("exec.worker.call_of_other_namespace_p99 {:.1} us", quantile(&mut replaced, 0.99));
    Ok(())
}

/// A call of a series, each of which is a round trip of its own.
fn spinning(code: &Code, pool: &Pool<Pinned>, runtime: &Runtime) -> f64 {
    let mut number = 0;
    let times = (0..ROUNDS * 100).map(|_| {
        let call = code.call("add", vec![], ResultType::U64);
        let calls = (1..=SERIES).map(|at| (number + at, vec![Arg::U64(at), Arg::U64(1)])).collect();
        number += SERIES;
        let mut ticket = pool.submit_series(call, calls).map_err(|it| it.refusal).expect("room");
        runtime.block_on(&mut ticket);
        let walls: Duration = ticket.take_done().iter().map(|(_, done)| done.wall).sum();
        walls.as_secs_f64() * 1e9 / SERIES as f64
    });
    quantile(&mut times.collect::<Vec<_>>(), 0.5)
}

/// Calls of two namespaces in turn, so that each may take the place of the other's worker.
fn taking_turns(code: &Code, pool: &Pool<Pinned>, runtime: &Runtime) -> Vec<f64> {
    let times = (0..TURNS).map(|at| {
        let callee = code.pin_in(["", OTHER][at % 2], "add");
        let entry = callee.function("f").expect("a function");
        let call = Call { callee, entry, ..code.call("add", vec![Arg::U64(2), Arg::U64(3)], ResultType::U64) };
        let done = runtime.block_on(pool.submit(call).map_err(|it| it.refusal).expect("room"));
        assert!(matches!(done.outcome, Outcome::Returned { .. }), "{done:?}");
        done.wall.as_secs_f64() * 1e6
    });
    times.collect()
}

/// From an executor's taking the call, when its worker has slept for a while.
fn parked(code: &Code, pool: &Pool<Pinned>, runtime: &Runtime) -> Vec<f64> {
    let times = (0..PARKED).map(|_| {
        thread::sleep(PAUSE);
        let call = code.call("add", vec![Arg::U64(2), Arg::U64(3)], ResultType::U64);
        let done = runtime.block_on(pool.submit(call).map_err(|it| it.refusal).expect("room"));
        assert!(matches!(done.outcome, Outcome::Returned { .. }), "{done:?}");
        done.wall.as_secs_f64() * 1e6
    });
    times.collect()
}
