//! What a call costs: the guard, the recovery, the hand-over to an executor, many calls at once, and limits of time, in
//! process, in worker processes and by gRPC.
//!
//! ```text
//! cargo bench --bench exec -- [--peer FILE ...]
//! ```
//!
//! Prints `name value unit`, medians of some rounds. Given the output of the Wasmtime and the Redis harness by `--peer`,
//! which may be given twice, it prints the ratios to the typed call of the one and the pipelined EVALSHA of the other.
//! Latencies of one call in flight depend on whether the cores sleep meanwhile.
#![allow(clippy::print_stdout)] // Its figures are its output.

mod grpc;
mod limits;
mod worker;

use std::{
    error::Error,
    fs,
    hint::black_box,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use codecached::{
    arena::{ArenaConfig, Arenas},
    cache::{Cache, CacheConfig, Install, Name, Namespace, Pinned, Target},
    code::{FlatEntry, Image, ImportTable, Limits},
    exec::{
        Arg, Batch, Call, Column, ColumnType, ExecConfig, FilterPolicy, Guarded, Outcome, Pool, Priority, ResultType,
        Scalar, TrapKind,
    },
};
use tokio::runtime::Runtime;

const ROUNDS: usize = 7;
const CALLS: u64 = 2_000_000;
const TRAPS: usize = 2000;
const HANDOVERS: usize = 20_000;
const ROWS: u64 = 1 << 20;
const SERIES: u64 = 256;
const STACK_BYTES: usize = 1 << 20;
const MEMORY_BYTES: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Rows per second that a batch aims at, and how many times a plain call a guarded one may take.
const AIM_ROWS: f64 = 100e6;
const AIM_RATIO: f64 = 4.0;
const AIM_GUARDED_NS: f64 = 8.0;
/// Of Wasmtime's typed call.
const AIM_TO_WASMTIME: f64 = 0.45;
const AIM_RECOVERY_US: f64 = 4.0;

/// A namespace with an entry `add`.
const OTHER: &str = "other";

/// `lea rax, [rdi + rsi]; ret`
const ADD: &[u8] = &[0x48, 0x8d, 0x04, 0x37, 0xc3];
/// `mulsd xmm0, xmm1; ret`
const MULTIPLY: &[u8] = &[0xf2, 0x0f, 0x59, 0xc1, 0xc3];
/// `ud2`
const INVALID: &[u8] = &[0x0f, 0x0b];
/// `call` to itself.
const RECURSION: &[u8] = &[0xe8, 0xfb, 0xff, 0xff, 0xff];
/// `jmp` to itself.
const ENDLESS: &[u8] = &[0xeb, 0xfe];
/// `dec rdi; jnz` to that`; ret`
const COUNT: &[u8] = &[0x48, 0xff, 0xcf, 0x75, 0xfb, 0xc3];
/// `sub rsp, 2 MiB; push rax; ud2`: a frame that the stack is too small for.
const LARGE_FRAME: &[u8] = &[0x48, 0x81, 0xec, 0x00, 0x00, 0x20, 0x00, 0x50, 0x0f, 0x0b];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|it| it != "--bench");
    let mut peer = String::new();
    while let Some(flag) = arguments.next() {
        match (flag.as_str(), arguments.next()) {
            ("--peer", Some(file)) => peer += &fs::read_to_string(file)?,
            _ => return Err("cargo bench --bench exec -- [--peer FILE ...]".into()),
        }
    }
    let code = Code::new()?;
    let config = config(&code);
    let workers = worker::prepare(&code, &config)?;
    guarded(&code, &peer)?;
    let pool = Pool::start(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    recovery(&code, &pool, &runtime);
    handover(&code, &pool, &runtime);
    batches(&code, &pool, &runtime)?;
    series(&code, &pool, &runtime);
    limits::all(&code, &pool, &runtime);
    // Its threads spin for a moment after a call, as those of the daemon do.
    drop(pool);
    worker::all(&code, workers, &runtime)?;
    grpc::all(&runtime, &peer)
}

fn config(code: &Code) -> ExecConfig {
    ExecConfig {
        executors: 2,
        spare_executors: 0,
        queue_max: 1024,
        queue_tenant_max: 1024,
        stack_bytes: STACK_BYTES,
        stack_guard_bytes: 64 << 20,
        call_memory_max_bytes: MEMORY_BYTES,
        inline_threads: 0,
        inline: Duration::ZERO,
        stuck_after: Duration::from_secs(60),
        stuck_max: 0,
        cpu_limit_default: Duration::ZERO,
        tick: Duration::from_millis(1),
        code: code.arenas.executable_ranges().collect(),
        code_flips: code.arenas.flips_protection(),
        filter: FilterPolicy::Require,
    }
}

/// Entries to call.
struct Code {
    arenas: Arc<Arenas>,
    cache: Cache,
}

impl Code {
    fn new() -> Result<Self, Box<dyn Error>> {
        // So that worker processes have it, too.
        let arenas = Arenas::map(&ArenaConfig { inherited: true, ..ArenaConfig::new(64 << 20, 64 << 20) })?;
        let config = CacheConfig { eviction_window: 16, ..CacheConfig::foreseeable(32 << 20) };
        let cache = Cache::new(&config, Arc::clone(&arenas), ImportTable::default());
        let blobs = [
            ("add", ADD),
            ("multiply", MULTIPLY),
            ("invalid", INVALID),
            ("large_frame", LARGE_FRAME),
            ("recursion", RECURSION),
            ("endless", ENDLESS),
            ("count", COUNT),
        ];
        for (namespace, (key, blob)) in blobs.map(|blob| ("", blob)).into_iter().chain([(OTHER, ("add", ADD))]) {
            let entry = FlatEntry { name: "f".to_owned(), offset_bytes: 0 };
            let image = Image::parse_flat(blob, vec![entry], &Limits::default())?;
            let mut identity = [0; 32];
            identity[..key.len()].copy_from_slice(key.as_bytes());
            let install =
                Install { name: name(namespace, key)?, digest: identity, identity, replace: false, reentrant: false };
            cache.install(&install, image)?;
        }
        Ok(Self { arenas, cache })
    }

    fn pin(&self, key: &str) -> Pinned {
        self.pin_in("", key)
    }

    fn pin_in(&self, namespace: &str, key: &str) -> Pinned {
        let name = name(namespace, key).expect("a name");
        self.cache.pin(Target::Name(&name)).expect("an entry")
    }

    fn call(&self, key: &str, args: Vec<Arg>, result: ResultType) -> Call<Pinned> {
        let callee = self.pin(key);
        let entry = callee.function("f").expect("a function");
        let priority = Priority::Normal;
        Call { callee, entry, priority, args, result, cpu_limit: LIMIT, wall_cap: LIMIT, deadline: None }
    }
}

fn name(namespace: &str, key: &str) -> Result<Name, Box<dyn Error>> {
    Ok(Name::new(Namespace::new(namespace)?, key.as_bytes())?)
}

#[inline(never)]
extern "C" fn plain_add(first: u64, second: u64) -> u64 {
    first.wrapping_add(second)
}

/// The guard alone, beside an indirect call without one.
fn guarded(code: &Code, peer: &str) -> Result<(), Box<dyn Error>> {
    let plain_fn: extern "C" fn(u64, u64) -> u64 = plain_add;
    let mut sum = 1;
    let plain = ns_per_call(|at| sum = black_box(plain_fn)(sum, at));
    let callee = code.pin("add");
    // Its thread keeps the signal set-up.
    let guarded = thread::spawn(move || {
        let entry = callee.function("f").expect("a function");
        let add = Guarded::enter(callee, entry, STACK_BYTES).expect("a guard");
        let mut sum = 1;
        ns_per_call(|at| sum = add.call(black_box(sum), at).expect("a sum"))
    });
    let guarded = guarded.join().map_err(|_| "a guarded call panicked")?;
    println!("exec.plain_indirect_call {plain:.2} ns");
    println!("exec.guarded_call {guarded:.2} ns");
    println!("exec.ratio.guarded_to_plain {:.2} x", guarded / plain);
    aim("guarded_to_plain", guarded / plain, AIM_RATIO, guarded / plain <= AIM_RATIO);
    aim("guarded_ns", guarded, AIM_GUARDED_NS, guarded <= AIM_GUARDED_NS);
    if let Some(theirs) = value(peer, "wasmtime.call_typed") {
        println!("exec.ratio.guarded_to_wasmtime_typed {:.3} x", guarded / theirs);
        aim("guarded_to_wasmtime_typed", guarded / theirs, AIM_TO_WASMTIME, guarded / theirs <= AIM_TO_WASMTIME);
    }
    black_box(sum);
    Ok(())
}

/// From an executor's taking the call to the trap being known, with the memory given back. The recursion has also filled
/// a stack of a MiB, page by page, by then.
fn recovery(code: &Code, pool: &Pool<Pinned>, runtime: &Runtime) {
    let kinds =
        [("invalid", TrapKind::Ill), ("large_frame", TrapKind::StackOverflow), ("recursion", TrapKind::StackOverflow)];
    for (key, kind) in kinds {
        let mut walls: Vec<f64> = (0..TRAPS)
            .map(|_| {
                let ticket =
                    pool.submit(code.call(key, vec![], ResultType::Void)).map_err(|it| it.refusal).expect("room");
                let done = runtime.block_on(ticket);
                assert!(matches!(done.outcome, Outcome::Trap(trap) if trap.kind == kind), "{done:?}");
                done.wall.as_secs_f64() * 1e6
            })
            .collect();
        let median = quantile(&mut walls, 0.5);
        println!("exec.recovery.{key} {median:.2} us");
        aim(&format!("recovery_{key}_us"), median, AIM_RECOVERY_US, median <= AIM_RECOVERY_US);
        println!("exec.recovery.{key}_p99 {:.2} us", quantile(&mut walls, 0.99));
    }
}

/// From submit to the answer in a task of a runtime of two threads, one call in flight.
fn handover(code: &Code, pool: &Pool<Pinned>, runtime: &Runtime) {
    let one = || code.call("add", vec![Arg::U64(2), Arg::U64(3)], ResultType::U64);
    let mut times = runtime.block_on(async {
        let mut times = Vec::with_capacity(HANDOVERS);
        for at in 0..HANDOVERS + 1000 {
            let call = one();
            let start = Instant::now();
            let done = pool.submit(call).map_err(|it| it.refusal).expect("room").await;
            let took = start.elapsed().as_secs_f64() * 1e6;
            assert_eq!(done.outcome, Outcome::Returned { value: Some(Scalar::U64(5)), buffers: vec![] });
            if at >= 1000 {
                times.push(took);
            }
        }
        times
    });
    println!("exec.handover.submit_to_answer_p50 {:.2} us", quantile(&mut times, 0.5));
    println!("exec.handover.submit_to_answer_p99 {:.2} us", quantile(&mut times, 0.99));
}

/// Rows per second of batches of a million.
fn batches(code: &Code, pool: &Pool<Pinned>, runtime: &Runtime) -> Result<(), Box<dyn Error>> {
    let i64s = || {
        let values: Vec<u8> = (0..ROWS as i64).flat_map(i64::to_le_bytes).collect();
        Column { kind: ColumnType::I64, values: values.into() }
    };
    let i32s = || {
        let values: Vec<u8> = (0..ROWS as i32).flat_map(i32::to_le_bytes).collect();
        Column { kind: ColumnType::I32, values: values.into() }
    };
    let f64s = || {
        let values: Vec<u8> = (0..ROWS as i32).flat_map(|it| f64::from(it).to_le_bytes()).collect();
        Column { kind: ColumnType::F64, values: values.into() }
    };
    let one = Column { kind: ColumnType::I64, values: 1_i64.to_le_bytes().to_vec().into() };
    let shapes = [
        ("add_i64", "add", ResultType::I64, vec![i64s(), i64s()]),
        ("add_i32", "add", ResultType::I32, vec![i32s(), i32s()]),
        ("add_i64_constant", "add", ResultType::I64, vec![i64s(), one]),
        ("multiply_f64", "multiply", ResultType::F64, vec![f64s(), f64s()]),
        ("sixteen_i64", "add", ResultType::I64, vec![i64s(); 16]),
    ];
    for (shape, key, result, columns) in shapes {
        let batch = Batch::new(ROWS, columns)?;
        let mut cpu = Vec::new();
        let rates = (0..ROUNDS).map(|_| {
            let ticket = pool
                .submit_batch(code.call(key, vec![], result), batch.clone())
                .map_err(|it| it.refusal)
                .expect("room");
            let done = runtime.block_on(ticket);
            assert_eq!(done.rows as u64, ROWS);
            cpu.push(done.done.cpu.as_secs_f64() * 1e9 / ROWS as f64);
            ROWS as f64 / done.done.wall.as_secs_f64()
        });
        let rate = quantile(&mut rates.collect::<Vec<_>>(), 0.5);
        println!("exec.batch.{shape} {:.1} Mrows/s", rate / 1e6);
        println!("exec.batch.{shape}_row {:.2} ns", 1e9 / rate);
        // Where others use the machine meanwhile this says more.
        println!("exec.batch.{shape}_row_cpu_least {:.2} ns", quantile(&mut cpu, 0.0));
        if shape == "add_i64" {
            aim("batch_add_i64_mrows", rate / 1e6, AIM_ROWS / 1e6, rate >= AIM_ROWS);
        }
    }
    Ok(())
}

/// What a call costs that goes to an executor with others, from submit to the ends being taken.
fn series(code: &Code, pool: &Pool<Pinned>, runtime: &Runtime) {
    let mut number = 0;
    let times = (0..ROUNDS * 100).map(|_| {
        let call = code.call("add", vec![], ResultType::U64);
        let calls = (1..=SERIES).map(|at| (number + at, vec![Arg::U64(at), Arg::U64(1)])).collect();
        number += SERIES;
        let start = Instant::now();
        let mut ticket = pool.submit_series(call, calls).map_err(|it| it.refusal).expect("room");
        runtime.block_on(&mut ticket);
        let done = ticket.take_done();
        let took = start.elapsed().as_secs_f64() * 1e9;
        assert_eq!(done.len() as u64, SERIES);
        took / SERIES as f64
    });
    println!("exec.series.call {:.1} ns", quantile(&mut times.collect::<Vec<_>>(), 0.5));
}

fn ns_per_call(mut call: impl FnMut(u64)) -> f64 {
    let round = |_| {
        let start = Instant::now();
        (0..CALLS).for_each(&mut call);
        start.elapsed().as_secs_f64() * 1e9 / CALLS as f64
    };
    quantile(&mut (0..ROUNDS).map(round).collect::<Vec<_>>(), 0.5)
}

fn aim(name: &str, value: f64, aim: f64, is_met: bool) {
    println!("exec.aim.{name} {value:.2} {aim} {}", if is_met { "pass" } else { "short" });
}

fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * at) as usize).min(values.len() - 1)]
}

/// The figure of a line `name value unit`.
fn value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split_whitespace().next()?.parse().ok())
}
