//! What limits of CPU time are worth: how much longer endless loops run, and whether calls are blamed for what others use.

use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use codecached::{
    cache::Pinned,
    exec::{Arg, Call, Done, Outcome, Pool, ResultType, TrapKind},
};
use tokio::runtime::Runtime;

use crate::{Code, aim, quantile};

const LIMIT: Duration = Duration::from_millis(5);
const LOOPS: usize = 10_000;
/// With neighbours, of each kind.
const MIXED: usize = 500;
const NEIGHBOURS: usize = 4;
/// Calls at one time: as many as there are executors.
const AT_ONCE: usize = 2;
const AIM_OVERRUN_MS: f64 = 10.0;

pub fn all(code: &Code, pool: &Pool<Pinned>, runtime: &Runtime) {
    let endless = || Call { cpu_limit: LIMIT, ..code.call("endless", vec![], ResultType::Void) };
    let done = run(pool, runtime, LOOPS, |_| endless());
    let stopped = done.iter().filter(|it| is_timeout(it)).count();
    println!("exec.limits.endless_loops_stopped {stopped} of_{LOOPS}");
    let over = |time: Duration| time.saturating_sub(LIMIT).as_secs_f64() * 1e3;
    let mut cpu: Vec<f64> = done.iter().map(|it| over(it.cpu)).collect();
    let mut wall: Vec<f64> = done.iter().map(|it| over(it.wall)).collect();
    for (what, times) in [("cpu", &mut cpu), ("wall", &mut wall)] {
        for (name, at) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            println!("exec.limits.overrun_{what}_{name} {:.3} ms", quantile(times, at));
        }
    }
    let worst = quantile(&mut wall, 0.99);
    aim("overrun_p99_ms", worst, AIM_OVERRUN_MS, stopped == LOOPS && worst < AIM_OVERRUN_MS);
    neighbours(code, pool, runtime);
}

/// Calls that stay below their limit and calls that do not, on fewer cores than there are threads that want one.
fn neighbours(code: &Code, pool: &Pool<Pinned>, runtime: &Runtime) {
    let counted = |turns: u64| code.call("count", vec![Arg::U64(turns)], ResultType::Void);
    let turns = 20_000_000;
    let trial = run(pool, runtime, 5, |_| counted(turns));
    let per_turn = quantile(&mut trial.iter().map(|it| it.cpu.as_secs_f64()).collect::<Vec<_>>(), 0.5) / turns as f64;
    // Well below the limit, as the clock of the processor may slow down meanwhile.
    let turns = (0.4 * LIMIT.as_secs_f64() / per_turn) as u64;
    let stop = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        for _ in 0..NEIGHBOURS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    spin_loop();
                }
            });
        }
        let call = |at: usize| match at % 2 {
            0 => Call { cpu_limit: LIMIT, ..counted(turns) },
            _ => Call { cpu_limit: LIMIT, ..code.call("endless", vec![], ResultType::Void) },
        };
        let done = run(pool, runtime, 2 * MIXED, call);
        stop.store(true, Ordering::Relaxed);
        done
    });
    let blamed = done.iter().filter(|it| is_timeout(it) && it.cpu < LIMIT).count();
    let stopped = done.iter().filter(|it| is_timeout(it)).count();
    let longest = done.iter().filter(|it| !is_timeout(it)).map(|it| it.wall).max().unwrap_or_default();
    println!("exec.limits.with_neighbours.stopped {stopped} of_{}", 2 * MIXED);
    println!("exec.limits.with_neighbours.returned_after_wall_max {:.1} ms", longest.as_secs_f64() * 1e3);
    aim("blamed_below_limit", blamed as f64, 0.0, blamed == 0 && stopped == MIXED);
}

fn is_timeout(done: &Done) -> bool {
    matches!(done.outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Timeout)
}

fn run(pool: &Pool<Pinned>, runtime: &Runtime, count: usize, call: impl Fn(usize) -> Call<Pinned>) -> Vec<Done> {
    let mut done = Vec::with_capacity(count);
    while done.len() < count {
        let some = (0..AT_ONCE.min(count - done.len())).map(|at| {
            let call = call(done.len() + at);
            pool.submit(call).map_err(|it| it.refusal).expect("room")
        });
        let some: Vec<_> = some.collect();
        done.extend(some.into_iter().map(|ticket| runtime.block_on(ticket)));
    }
    done
}
