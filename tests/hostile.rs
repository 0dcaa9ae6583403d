//! Every kind of hostile code that is known, through the built daemon, in threads and in worker processes: all kinds at
//! once from many clients, in any order, among good calls whose answers are all checked. Each call must end as the table
//! says, and afterwards the daemon must have as much of everything as before.

#[path = "hostile/kinds.rs"]
mod kinds;
#[path = "hostile/possessions.rs"]
mod possessions;
mod support;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use codecached::{
    client::Client,
    proto::{ExecuteRequest, ResultType, TrapKind, TrapStage, execute_response::Outcome, value::Kind as Argument},
};
use kinds::{End, Kind, OBJECTS};
use possessions::Possessions;
use support::{Daemon, Random, call, compile, elf, handle, returned};

/// Calls of each kind in a usual run.
const ROUNDS: u32 = 25;
/// Calls of each kind in a long one, times CODECACHED_TEST_SCALE.
const LONG_ROUNDS: u32 = 100;
/// Before anything is counted: what is made when it is first needed is there then.
const WARM_UP_ROUNDS: u32 = 5;
/// Clients that call hostile code at one time, beside those of good calls.
const CLIENTS: u64 = 8;
/// CPU time of what does not end by itself.
const SPIN_MS: i32 = 2;
/// What all processes together may have grown by, in however many calls.
const GROWTH_MAX_BYTES: u64 = 4 << 20;

fn scale() -> u32 {
    std::env::var("CODECACHED_TEST_SCALE").map_or(1, |it| it.parse().unwrap())
}

fn rounds() -> u32 {
    match scale() {
        1 => ROUNDS,
        scale => LONG_ROUNDS * scale,
    }
}

/// A daemon with everything installed, and good calls under way.
struct Scene {
    daemon: Daemon,
    client: Client,
    /// By the file of tests/objects.
    entries: HashMap<&'static str, u64>,
    counter: u64,
    counted: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    good: Vec<tokio::task::JoinHandle<u64>>,
}

impl Scene {
    async fn set(isolation: &str, flags: &[&str]) -> Scene {
        let isolation = format!("exec.isolation={isolation}");
        let set = ["--set", &isolation, "--set", "exec.worker_spawns_max_per_s=5000"];
        let daemon = Daemon::start_with(&[&set, flags].concat());
        let client = daemon.client().await;
        let mut entries = HashMap::new();
        for (file, _) in OBJECTS {
            entries.insert(*file, handle(&client.install(elf(file, compile(file))).await.unwrap()));
        }
        let doubles = handle(&client.install(elf("doubles", compile("doubles.c"))).await.unwrap());
        let counter = handle(&client.install(elf("counter", compile("counter.c"))).await.unwrap());
        let (stop, counted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(100)));
        let good = (1..=2)
            .map(|seed| {
                let calls = Good { client: client.clone(), hostile: entries["hostile.S"], doubles, counter };
                tokio::spawn(calls.until(Arc::clone(&stop), Arc::clone(&counted), seed))
            })
            .collect();
        Scene { daemon, client, entries, counter, counted, stop, good }
    }

    fn request(&self, file: &str, kind: &Kind) -> ExecuteRequest {
        let arguments = kind.arguments.map(Argument::U64).to_vec();
        let mut request = call(self.entries[file], kind.symbol, arguments, ResultType::I32);
        request.cpu_limit = Some(prost_types::Duration { seconds: 0, nanos: SPIN_MS * 1_000_000 });
        if kind.is_quick() {
            request.cpu_limit = None;
        }
        request
    }

    /// Makes all of these calls in an order that only the seed decides, some of them at one time, and answers how many.
    async fn make(&self, mut calls: Vec<(ExecuteRequest, Kind, End)>, seed: u64) -> usize {
        let (mut random, count) = (Random(seed), calls.len());
        for at in (1..count).rev() {
            calls.swap(at, random.below(at as u64 + 1) as usize);
        }
        let calls = Arc::new(Mutex::new(calls));
        let wrong = Arc::new(Mutex::new(BTreeMap::new()));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (client, calls, wrong) = (self.client.clone(), Arc::clone(&calls), Arc::clone(&wrong));
                tokio::spawn(async move {
                    let next = || calls.lock().unwrap().pop();
                    while let Some((request, kind, end)) = next() {
                        let answer = client.execute(request).await.map_err(|error| error.to_string());
                        if answer.is_err() {
                            calls.lock().unwrap().clear();
                        }
                        let outcome = answer.map(|it| it.outcome.unwrap());
                        if !outcome.as_ref().is_ok_and(|it| is_right(&kind, end, it)) {
                            let name = format!("{} {:?}", kind.symbol, kind.arguments);
                            wrong.lock().unwrap().entry(name).or_insert((0, outcome)).0 += 1;
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        let wrong = wrong.lock().unwrap();
        let lines: Vec<_> = wrong.iter().map(|(name, (times, first))| format!("{name}: {times} x {first:?}")).collect();
        assert!(lines.is_empty(), "ended otherwise than they must:\n{}", lines.join("\n"));
        count
    }

    /// Stops the good calls, all of which were answered rightly, and all of which happened once.
    async fn end(mut self) -> Daemon {
        self.stop.store(true, Relaxed);
        for task in self.good {
            assert!(task.await.unwrap() > 0, "no good call was made meanwhile");
        }
        let next = call(self.counter, "next", vec![], ResultType::U32);
        let next = returned(self.client.execute(next).await.unwrap()).0;
        assert_eq!(next, Some(Argument::U32(self.counted.load(Relaxed) + 1)), "data of other entries is as it was");
        assert!(self.daemon.is_running());
        self.daemon
    }
}

struct Good {
    client: Client,
    hostile: u64,
    doubles: u64,
    counter: u64,
}

impl Good {
    async fn until(self, stop: Arc<AtomicBool>, counted: Arc<AtomicU32>, seed: u64) -> u64 {
        let (mut random, mut calls) = (Random(seed), 0);
        let ask = async |request| returned(self.client.execute(request).await.unwrap()).0;
        while !stop.load(Relaxed) {
            let (a, b) = (random.next() as i32, random.next() as i32);
            let arguments = vec![Argument::I32(a), Argument::I32(b)];
            let sum = ask(call(self.hostile, "add", arguments, ResultType::I32)).await;
            assert_eq!(sum, Some(Argument::I32(a.wrapping_add(b))), "seed {seed}");
            let x = random.below(1 << 40) as f64;
            let root = ask(call(self.doubles, "newton_sqrt", vec![Argument::F64(x)], ResultType::F64)).await;
            let Some(Argument::F64(root)) = root else { panic!("no double") };
            assert!((root - x.sqrt()).abs() <= x.sqrt() * 1e-15, "the root of {x} came as {root}");
            ask(call(self.counter, "next", vec![], ResultType::U32)).await;
            counted.fetch_add(1, Relaxed);
            calls += 3;
        }
        calls
    }
}

fn is_right(kind: &Kind, end: End, outcome: &Outcome) -> bool {
    let trap = match outcome {
        Outcome::Returned(returned) => {
            let is_expected = matches!(end, End::Returns | End::Either(_));
            let value = returned.value.as_ref().and_then(|it| it.kind.clone());
            // What writes anywhere may write over its result too.
            return is_expected && (kind.in_threads.is_none() || value == Some(Argument::I32(42)));
        }
        Outcome::Trap(trap) => trap,
    };
    let is_one_of = |kinds: &[TrapKind]| {
        let signal = kinds::signal(trap.kind()).is_none_or(|it| it == trap.signal);
        kinds.contains(&trap.kind()) && trap.stage() == TrapStage::Call && signal
    };
    match end {
        End::Returns => false,
        End::Traps(kinds) => is_one_of(kinds) && trap.symbol == kind.symbol && !trap.outside,
        End::Leaves(kinds) | End::Either(kinds) => is_one_of(kinds),
        End::Calls(abi, number) => {
            let told = trap.system_call.as_ref().map(|it| (it.abi(), u64::from(it.number)));
            is_one_of(&[TrapKind::Syscall]) && told == Some((abi, number)) && !trap.outside
        }
    }
}

/// Calls of every kind that `end` knows how to end, each so many times.
fn calls(scene: &Scene, rounds: u32, end: impl Fn(&Kind) -> Option<End>) -> Vec<(ExecuteRequest, Kind, End)> {
    let kinds = OBJECTS.iter().flat_map(|(file, kinds)| kinds.iter().map(move |kind| (file, kind)));
    let possible = kinds.filter(|(_, kind)| kinds::is_possible(kind));
    let wanted = possible.filter_map(|(file, kind)| end(kind).map(|end| (file, kind, end)));
    wanted
        .flat_map(|(file, kind, end)| {
            let call = (scene.request(file, kind), *kind, end);
            std::iter::repeat_n(call, rounds.div_ceil(kind.one_of) as usize)
        })
        .collect()
}

/// Every kind many times, and then as much of everything as before.
async fn all_kinds(isolation: &str, end: impl Fn(&Kind) -> Option<End>, floor: usize) {
    let scene = Scene::set(isolation, &[]).await;
    scene.make(calls(&scene, WARM_UP_ROUNDS, &end), 1).await;
    let before = Possessions::when_quiet(scene.daemon.pid()).await;
    let rounds = rounds();
    let made = scene.make(calls(&scene, rounds, &end), 2).await;
    assert!(made >= floor * rounds as usize, "only {made} calls were made");
    let status = scene.client.status().await.unwrap();
    // The C library reads a setting of the kernel when it first gives memory back, and does without.
    let refused = status.system_calls.unwrap().refused;
    assert!(refused <= 1, "executors themselves were kept from {refused} system calls that they need");
    let after = Possessions::when_no_more(scene.daemon.pid(), &before).await;
    eprintln!("{isolation}: {made} hostile calls; {before:?}, then {after:?}");
    assert!(after.bytes <= before.bytes + GROWTH_MAX_BYTES, "{before:?}, then {after:?}");
    let mut daemon = scene.end().await;
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_threads_every_kind_ends_as_it_must_and_nothing_grows() {
    all_kinds("thread", |kind| kind.in_threads, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_processes_every_kind_ends_as_it_must_those_that_write_anywhere_too_and_nothing_grows() {
    all_kinds("process", |kind| Some(kind.in_processes), 230).await;
}

/// Ranges of addresses that the daemon has mapped, and that can be more than looked at.
fn mapped(daemon: &Daemon) -> Vec<(u64, u64)> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
    let ranges = maps.lines().filter(|line| !line.contains(" ---")).map(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let (end, _) = rest.split_once(' ').unwrap();
        (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap())
    });
    ranges.filter(|(_, end)| *end < 1 << 47).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_processes_writes_over_everything_that_is_mapped_and_ends_of_all_sorts_harm_nobody() {
    // Without the filter of system calls, so that code can end its process as it likes.
    let scene = Scene::set("process", &["--set", "exec.system_call_filter=off"]).await;
    let wild = OBJECTS.iter().find(|it| it.0 == "hostile/wild.S").unwrap().1[0];
    let mut calls = Vec::new();
    let mut random = Random(7);
    let mapped = mapped(&scene.daemon);
    assert!(mapped.len() > 50);
    for round in 0..scale().max(2) {
        for (start, end) in &mapped {
            let from = start + random.below((end - start) / 4096) * 4096 * u64::from(round % 2);
            let kind = Kind { symbol: "wild_write", arguments: [from, (end - from).min(1 << 20), 0, 0], ..wild };
            calls.push((scene.request("rogue.S", &kind), kind, wild.in_processes));
        }
    }
    for round in 0..rounds() {
        let dies = End::Leaves(&[TrapKind::Worker, TrapKind::Segv]);
        let exit = Kind { symbol: "end_process", arguments: [u64::from(round % 256), 0, 0, 0], ..wild };
        let kill = Kind { symbol: "kill_self", arguments: [[9, 11, 7, 4][round as usize % 4], 0, 0, 0], ..wild };
        // Without a short limit: what the kernel takes to end a process counts too.
        for kind in [exit, kill].map(|kind| Kind { in_processes: dies, ..kind }) {
            calls.push((scene.request("rogue.S", &kind), kind, dies));
        }
    }
    scene.make(calls, 3).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_times_as_many_endless_loops_as_executors_all_end_and_others_are_served() {
    for isolation in ["thread", "process"] {
        let scene = Scene::set(isolation, &["--set", "exec.executors=2", "--set", "exec.spare_executors=0"]).await;
        let kind = OBJECTS[0].1.iter().find(|it| it.symbol == "spin").unwrap();
        for round in 0..scale().max(3) {
            let begun = Instant::now();
            let mut request = scene.request("hostile.S", kind);
            request.cpu_limit = Some(prost_types::Duration { seconds: 0, nanos: 20_000_000 });
            let loops: Vec<_> = (0..8).map(|_| (request.clone(), *kind, kind.in_processes)).collect();
            scene.make(loops, 1 + u64::from(round)).await;
            assert!(begun.elapsed() >= Duration::from_millis(80), "eight loops of 20 ms on two executors");
        }
        scene.end().await;
    }
}
