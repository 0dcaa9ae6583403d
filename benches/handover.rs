//! Measures how a call goes from the runtime to where it runs and back, without transport.
//!
//! ```text
//! cargo bench --bench handover
//! ```
//!
//! Prints `name value unit`, medians of rounds that take turns. `executor`: handed over to an executor thread. `inline`: on
//! the thread of its caller. `task`: a message to another task of the same runtime and its answer. With 1 in flight p50 is the time
//! of one call. `beside_long_calls`: one namespace with one call in flight, while another one always has calls of 10 ms
//! waiting, with and without a spare executor.
#![allow(clippy::print_stdout)] // Its figures are its output.

use std::{
    error::Error,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use codecached::{
    arena::{ArenaConfig, Arenas},
    cache::{Cache, CacheConfig, Install, Name, Namespace, Pinned, Target},
    code::{FlatEntry, Image, ImportTable, Limits},
    exec::{self, Arg, Call, ExecConfig, FilterPolicy, Outcome, Pool, Priority, ResultType, Scalar},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    task::JoinSet,
};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
const IN_FLIGHT: usize = 64;
const THREADS: usize = 2;
const SHORT: Duration = Duration::from_micros(20);
const LONG: Duration = Duration::from_millis(10);
/// `lea eax, [rdi + rsi]; ret`
const ADD: &[u8] = &[0x8d, 0x04, 0x37, 0xc3];
/// `jmp` to itself.
const SPIN: &[u8] = &[0xeb, 0xfe];

type Failure = Box<dyn Error + Send + Sync>;
type Figures = Vec<(String, &'static str, Vec<f64>)>;

fn main() -> Result<(), Failure> {
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(THREADS).on_thread_start(exec::lend_thread).enable_all().build()?;
    let (cache, code) = cache()?;
    let cache = Arc::new(cache);
    let scene = |inline, spare| {
        let pool = pool(code.clone(), inline, spare)?;
        Ok::<_, Failure>(Scene { cache: Arc::clone(&cache), pool: Arc::new(pool) })
    };
    let scenes = [("executor", scene(Duration::ZERO, 0)?), ("inline", scene(SHORT, 0)?)];
    let shared = [("no_spare", scene(Duration::ZERO, 0)?), ("spare", scene(Duration::ZERO, 1)?)];
    let mut figures = Figures::new();
    for _ in 0..ROUNDS {
        for in_flight in [1, IN_FLIGHT] {
            for (name, scene) in &scenes {
                let times = runtime.block_on(load(in_flight, || calls(scene.clone())))?;
                note(&mut figures, &format!("{name}_{in_flight}inflight"), times);
            }
            let times = runtime.block_on(load(in_flight, echoes))?;
            note(&mut figures, &format!("task_{in_flight}inflight"), times);
        }
        for (name, scene) in &shared {
            let times = beside_long_calls(&runtime, scene)?;
            note(&mut figures, &format!("beside_long_calls_{name}"), times);
        }
    }
    for (name, unit, mut values) in figures {
        values.sort_by(f64::total_cmp);
        println!("handover.{name} {:.0} {unit}", values[values.len() / 2]);
    }
    Ok(())
}

/// Keeps the figures of one round.
fn note(figures: &mut Figures, name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_nanos() as f64;
    let per_second = times.len() as f64 / ROUND.as_secs_f64();
    for (kind, unit, value) in [("p50", "ns", at(0.5)), ("p99", "ns", at(0.99)), ("throughput", "calls/s", per_second)]
    {
        let name = format!("{name}.{kind}");
        match figures.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, _, values)) => values.push(value),
            None => figures.push((name, unit, vec![value])),
        }
    }
}

/// So many tasks at once for one round; the times of all that they did.
async fn load<F>(in_flight: usize, task: impl Fn() -> F) -> Result<Vec<Duration>, Failure>
where
    F: Future<Output = Result<Vec<Duration>, Failure>> + Send + 'static,
{
    let mut tasks: JoinSet<_> = (0..in_flight).map(|_| task()).collect();
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended??);
    }
    Ok(times)
}

#[derive(Clone)]
struct Scene {
    cache: Arc<Cache>,
    pool: Arc<Pool<Pinned>>,
}

/// One call after the other.
async fn calls(scene: Scene) -> Result<Vec<Duration>, Failure> {
    let (mut times, end) = (Vec::new(), Instant::now() + ROUND);
    while Instant::now() < end {
        let start = Instant::now();
        let outcome = scene.call("one", ADD, Duration::from_secs(1)).await?;
        times.push(start.elapsed());
        if !matches!(outcome, Outcome::Returned { value: Some(Scalar::I32(5)), .. }) {
            return Err(format!("the call ended as {outcome:?}").into());
        }
    }
    Ok(times)
}

/// One message after the other to a task that answers.
async fn echoes() -> Result<Vec<Duration>, Failure> {
    let (sender, mut receiver) = mpsc::channel::<(u64, oneshot::Sender<u64>)>(1);
    let answering = tokio::spawn(async move {
        while let Some((number, answer)) = receiver.recv().await {
            // Who asked has gone at the end of the round.
            let _ = answer.send(number);
        }
    });
    let (mut times, end) = (Vec::new(), Instant::now() + ROUND);
    while Instant::now() < end {
        let start = Instant::now();
        let (answer, answered) = oneshot::channel();
        sender.send((5, answer)).await?;
        answered.await?;
        times.push(start.elapsed());
    }
    drop(sender);
    answering.await?;
    Ok(times)
}

/// Calls of one namespace while another one keeps all executors that it may have.
fn beside_long_calls(runtime: &Runtime, scene: &Scene) -> Result<Vec<Duration>, Failure> {
    runtime.block_on(async {
        let long: JoinSet<_> = (0..4 * THREADS)
            .map(|_| {
                let scene = scene.clone();
                async move { while scene.call("other", SPIN, LONG).await.is_ok() {} }
            })
            .collect();
        tokio::time::sleep(2 * LONG).await;
        let times = tokio::spawn(calls(scene.clone())).await?;
        drop(long);
        times
    })
}

impl Scene {
    async fn call(&self, namespace: &str, code: &[u8], cpu_limit: Duration) -> Result<Outcome, Failure> {
        let callee = self.cache.pin(Target::Name(&name(namespace, code)?)).ok_or("the entry is there")?;
        let entry = callee.function("f").ok_or("the function is there")?;
        let args = vec![Arg::I32(2), Arg::I32(3)];
        let (priority, result, wall_cap, deadline) = (Priority::Normal, ResultType::I32, 20 * cpu_limit, None);
        let call = Call { callee, entry, priority, args, result, cpu_limit, wall_cap, deadline };
        let ticket = self.pool.submit(call).map_err(|rejected| rejected.refusal.to_string())?;
        Ok(ticket.await.outcome)
    }
}

fn name(namespace: &str, code: &[u8]) -> Result<Name, Failure> {
    Ok(Name::new(Namespace::new(namespace)?, code)?)
}

/// And where its code lies.
fn cache() -> Result<(Cache, Vec<Range<u64>>), Failure> {
    let budget_bytes = 4 << 20;
    let arenas = Arenas::map(&ArenaConfig::new(64 << 20, budget_bytes * 21 / 20))?;
    let code = arenas.executable_ranges().collect();
    let config = CacheConfig { eviction_window: 16, ..CacheConfig::foreseeable(budget_bytes) };
    let cache = Cache::new(&config, arenas, ImportTable::new(exec::imports()));
    for (namespace, code) in [("one", ADD), ("other", SPIN)] {
        let entries = vec![FlatEntry { name: "f".into(), offset_bytes: 0 }];
        let image = Image::parse_flat(code, entries, &Limits::default())?;
        let identity = [code[0]; 32];
        let install =
            Install { name: name(namespace, code)?, digest: identity, identity, replace: false, reentrant: true };
        cache.install(&install, image)?;
    }
    Ok((cache, code))
}

fn pool(code: Vec<Range<u64>>, inline: Duration, spare_executors: usize) -> Result<Pool<Pinned>, Failure> {
    let config = ExecConfig {
        executors: THREADS,
        spare_executors,
        queue_max: 1024,
        queue_tenant_max: 1024,
        stack_bytes: 1 << 20,
        stack_guard_bytes: 64 << 20,
        call_memory_max_bytes: 64 << 20,
        inline_threads: THREADS,
        inline,
        stuck_after: Duration::from_secs(60),
        stuck_max: 0,
        cpu_limit_default: Duration::ZERO,
        tick: Duration::from_millis(1),
        code,
        code_flips: false,
        filter: FilterPolicy::Try,
    };
    Ok(Pool::start(config)?)
}
