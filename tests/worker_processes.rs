//! Calls in worker processes, through the built daemon: what they answer, what kills a worker, and what that costs others.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use codecached::{
    client::Client,
    proto::{
        Column, ColumnType, ExecuteBatchRequest, ExecuteRequest, ExecuteResponse, InstallRequest, ResultType, Trap,
        TrapKind::{self, Ill, Segv, StackOverflow, Syscall, Timeout, Worker},
        TrapStage, execute_batch_request,
        value::Kind,
    },
};
use nix::sys::signal::Signal;
use support::{Daemon, Random, call, children, children_named, compile, elf, handle, returned, signal, trapped, until};

/// Calls of each kind of mischief.
const ROUNDS: u32 = 100;
/// What limits calls that do not end.
const SPIN_MS: i32 = 5;

fn start(flags: &[&str]) -> Daemon {
    let set = ["--set", "exec.isolation=process", "--set", "exec.worker_spawns_max_per_s=2000"];
    Daemon::start_with(&[&set, flags].concat())
}

fn workers(daemon: &Daemon) -> BTreeSet<u32> {
    children_named(daemon.pid(), "codecached-work")
}

/// R: running, S: asleep, Z: has ended and is not waited for.
fn state(pid: u32) -> Option<char> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("State:"))?.trim().chars().next()
}

fn lives(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

fn threads(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count()
}

fn limited(mut request: ExecuteRequest) -> ExecuteRequest {
    request.cpu_limit = Some(prost_types::Duration { seconds: 0, nanos: SPIN_MS * 1_000_000 });
    request
}

fn void(handle: u64, symbol: &str, arguments: Vec<Kind>) -> ExecuteRequest {
    limited(call(handle, symbol, arguments, ResultType::Void))
}

async fn add(client: &Client, handle: u64, a: i32, b: i32) -> Option<Kind> {
    let request = call(handle, "add", vec![Kind::I32(a), Kind::I32(b)], ResultType::I32);
    returned(client.execute(request).await.unwrap()).0
}

/// A daemon with good calls under way.
struct Scene {
    daemon: Daemon,
    client: Client,
    rogue: u64,
    counter: u64,
    stop: Arc<AtomicBool>,
    good: Vec<tokio::task::JoinHandle<u64>>,
}

impl Scene {
    async fn set(flags: &[&str]) -> Scene {
        let daemon = start(flags);
        let client = daemon.client().await;
        let rogue = handle(&client.install(elf("rogue", compile("rogue.S"))).await.unwrap());
        let counter = handle(&client.install(elf("counter", compile("counter.c"))).await.unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let good = (1..=2).map(|seed| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut random, mut calls) = (Random(seed), 0);
                while !stop.load(Relaxed) {
                    let (a, b) = (random.next() as i32, random.next() as i32);
                    assert_eq!(add(&client, rogue, a, b).await, Some(Kind::I32(a.wrapping_add(b))), "seed {seed}");
                    calls += 1;
                }
                calls
            })
        });
        let good = good.collect();
        Scene { daemon, client, rogue, counter, stop, good }
    }

    async fn trap(&self, symbol: &str, arguments: Vec<Kind>) -> Trap {
        trapped(self.client.execute(void(self.rogue, symbol, arguments)).await.unwrap())
    }

    async fn next(&self) -> Option<Kind> {
        returned(self.client.execute(call(self.counter, "next", vec![], ResultType::U32)).await.unwrap()).0
    }

    async fn end(mut self) {
        self.stop.store(true, Relaxed);
        for task in self.good {
            assert!(task.await.unwrap() > 0, "no good call was made meanwhile");
        }
        assert!(self.daemon.is_running());
    }
}

fn is_death(trap: &Trap) -> bool {
    trap.kind() == Worker && trap.stage() == TrapStage::Call
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_answer_what_they_answer_in_threads_and_data_lives_on() {
    let mut answers = Vec::new();
    for isolation in ["thread", "process"] {
        let daemon = Daemon::start_with(&["--set", &format!("exec.isolation={isolation}")]);
        let client = daemon.client().await;
        assert_eq!(client.capabilities().await.unwrap().isolation, isolation);
        let counter = handle(&client.install(elf("counter", compile("counter.c"))).await.unwrap());
        let doubles = handle(&client.install(elf("doubles", compile("doubles.c"))).await.unwrap());
        let digits = handle(&client.install(elf("digits", compile("initialisers.c"))).await.unwrap());
        let mut seen: Vec<Option<Kind>> = Vec::new();
        let mut ask = async |handle, symbol: &str, arguments, result| {
            let answer: ExecuteResponse = client.execute(call(handle, symbol, arguments, result)).await.unwrap();
            seen.push(returned(answer).0);
        };
        for _ in 0..20 {
            ask(counter, "next", vec![], ResultType::U32).await;
            ask(digits, "digits", vec![], ResultType::I32).await;
            ask(doubles, "newton_sqrt", vec![Kind::F64(2.0)], ResultType::F64).await;
        }
        let trap = client.execute(call(counter, "spoil_and_fault", vec![], ResultType::U32)).await.unwrap();
        assert_eq!(trapped(trap).kind(), Segv, "{isolation}");
        ask(counter, "next", vec![], ResultType::U32).await;
        ask(counter, "peek_zeroed", vec![], ResultType::U32).await;
        answers.push(seen);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0][57], Some(Kind::U32(120)), "the data lived through twenty calls");
    assert_eq!(answers[0][60], Some(Kind::U32(101)), "and was restored after a trap");
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_traps_are_recovered_and_cost_no_worker() {
    let scene = Scene::set(&[]).await;
    let before = workers(&scene.daemon);
    for _ in 0..ROUNDS {
        for (symbol, kind) in [("fault", Ill), ("overflow", StackOverflow), ("spin", Timeout)] {
            let trap = scene.trap(symbol, vec![]).await;
            assert_eq!(trap.kind(), kind, "{symbol}: {trap:?}");
            assert_eq!((trap.symbol.as_str(), trap.exit_status), (symbol, None));
        }
        let trap = scene.trap("end_process", vec![Kind::I32(3)]).await;
        assert_eq!((trap.kind(), trap.system_call.unwrap().name.as_str()), (Syscall, "exit_group"));
        let trap = scene.trap("kill_parent", vec![]).await;
        assert_eq!((trap.kind(), trap.system_call.unwrap().name.as_str()), (Syscall, "getppid"));
    }
    assert_eq!(workers(&scene.daemon), before, "the same processes as before");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kills_its_worker_or_cannot_be_stopped_is_told_and_costs_nobody_else_anything() {
    let scene = Scene::set(&[]).await;
    for round in 0..ROUNDS {
        for symbol in ["smash_stack", "lose_frame"] {
            let trap = scene.trap(symbol, vec![]).await;
            assert!(is_death(&trap) || [Segv, Ill].contains(&trap.kind()), "{symbol}: {trap:?}");
        }
        if round % 20 == 0 {
            let answer = scene.client.execute(void(scene.rogue, "stubborn", vec![])).await.unwrap();
            assert!(answer.cpu_ns >= SPIN_MS as u64 * 1_000_000, "{answer:?} of a call that used all of its limit");
            let trap = trapped(answer);
            assert_eq!((trap.kind(), trap.signal), (Timeout, 9), "{trap:?}");
        }
        assert_eq!(scene.next().await, Some(Kind::U32(101 + round)), "data of others is as it was");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_filter_a_worker_that_ends_itself_is_told_with_how_it_did() {
    let scene = Scene::set(&["--set", "exec.system_call_filter=off"]).await;
    for round in 0..ROUNDS {
        let status = (round % 100) as i32;
        let trap = scene.trap("end_process", vec![Kind::I32(status)]).await;
        assert!(is_death(&trap), "{trap:?}");
        assert_eq!((trap.exit_status, trap.signal), (Some(status), 0));
        let trap = scene.trap("kill_self", vec![Kind::I32(9)]).await;
        assert!(is_death(&trap), "{trap:?}");
        assert_eq!((trap.exit_status, trap.signal), (None, 9));
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_over_everything_that_is_mapped_harm_no_other_call() {
    let scene = Scene::set(&[]).await;
    // Workers have what the daemon had when they were forked, at the same addresses, and what each shares with it.
    let maps = fs::read_to_string(format!("/proc/{}/maps", scene.daemon.pid())).unwrap();
    let mapped = maps.lines().map(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        (address(start)..address(end), rest.to_owned())
    });
    let mapped: Vec<_> = mapped.filter(|(range, rest)| range.end < 1 << 47 && !rest.starts_with("---")).collect();
    assert!(mapped.len() > 50);
    let (mut died, mut survived) = (0, 0);
    for (round, (range, rest)) in mapped.iter().cycle().take(mapped.len().max(300)).enumerate() {
        // From its start, and from some page inside.
        let pages = (range.end - range.start) / 4096;
        let from = range.start + Random(round as u64 + 1).below(pages) * 4096 * (round as u64 % 2);
        let bytes = (range.end - from).min(1 << 20);
        let request = void(scene.rogue, "wild_write", vec![Kind::U64(from), Kind::U64(bytes)]);
        match scene.client.execute(request).await.unwrap().outcome.unwrap() {
            codecached::proto::execute_response::Outcome::Returned(_) => survived += 1,
            codecached::proto::execute_response::Outcome::Trap(trap) => {
                let kinds: &[TrapKind] = &[Segv, TrapKind::Bus, Worker, Timeout, Ill, StackOverflow];
                assert!(kinds.contains(&trap.kind()), "{rest}: {trap:?}");
                died += u32::from(trap.kind() == Worker);
            }
        }
        assert_eq!(scene.next().await, Some(Kind::U32(101 + round as u32)), "after {rest}");
    }
    println!("{died} workers died, {survived} calls returned");
    scene.end().await;
}

/// One executor, and so one worker that runs calls, and an entry.
async fn alone() -> (Daemon, Client, u64) {
    let flags = ["--set", "exec.executors=1", "--set", "exec.spare_executors=0"];
    let daemon = start(&flags);
    let client = daemon.client().await;
    let rogue = handle(&client.install(elf("rogue", compile("rogue.S"))).await.unwrap());
    (daemon, client, rogue)
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_runs_on_after_its_call_is_ended() {
    let (daemon, client, rogue) = alone().await;
    for symbol in ["run_on", "run_on_and_spoil"] {
        // It says that it has ended, before its limit.
        returned(client.execute(void(rogue, symbol, vec![])).await.unwrap());
        let many = (0..10).map(Kind::U64).collect();
        let next = call(rogue, "add", many, ResultType::I32);
        client.execute(limited(next)).await.unwrap();
        let before = workers(&daemon);
        until("the end of its worker", async || (!before.is_subset(&workers(&daemon))).then_some(())).await;
        assert_eq!(add(&client, rogue, 2, 3).await, Some(Kind::I32(5)), "after {symbol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_takes_its_worker_over_harms_its_own_namespace_alone() {
    let (_daemon, client, rogue) = alone().await;
    let other = InstallRequest { namespace: "other".to_owned(), ..elf("rogue", compile("rogue.S")) };
    let theirs = handle(&client.install(other).await.unwrap());
    let add_there = ExecuteRequest {
        namespace: "other".to_owned(),
        ..call(theirs, "add", vec![Kind::I32(7), Kind::I32(9)], ResultType::I32)
    };
    for round in 0..5 {
        returned(client.execute(void(rogue, "answer_others", vec![])).await.unwrap());
        assert_eq!(add(&client, rogue, 7, 9).await, Some(Kind::I32(7)), "it answers what it likes");
        let answer = client.execute(add_there.clone()).await.unwrap();
        assert_eq!(returned(answer).0, Some(Kind::I32(16)), "round {round}");
        assert_eq!(add(&client, rogue, 7, 9).await, Some(Kind::I32(16)), "that worker is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_code_takes_where_nothing_was_put_for_it_goes_back() {
    let (daemon, client, rogue) = alone().await;
    let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
    let windows = maps.lines().filter(|line| line.contains("codecached-worker")).filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
    });
    let window = windows.max_by_key(|range| range.end - range.start).unwrap();
    assert!(window.end - window.start > 96 << 20, "room for data and for batches");
    let taken = || -> u64 {
        let files = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().map(|file| file.unwrap().path());
        let named =
            |path: &PathBuf| fs::read_link(path).is_ok_and(|it| it.to_string_lossy().contains("codecached-worker"));
        files.filter(named).map(|path| 512 * fs::metadata(path).unwrap().blocks()).sum()
    };
    assert_eq!(taken(), 0);
    for round in 0..10 {
        let from = window.end - (64 << 20) + round * (2 << 20);
        let mut request = call(rogue, "wild_write", vec![Kind::U64(from), Kind::U64(512 << 10)], ResultType::Void);
        request.cpu_limit = Some(prost_types::Duration { seconds: 5, nanos: 0 });
        client.execute(request.clone()).await.unwrap();
        assert!(taken() <= 64 << 10, "round {round}: {} bytes", taken());
        // So much that it is seen while it runs.
        request.arguments[1].kind = Some(Kind::U64(32 << 20));
        let trap = trapped(client.execute(request).await.unwrap());
        assert_eq!((trap.kind(), trap.signal), (Worker, 9), "{trap:?}");
        assert_eq!(taken(), 0, "round {round}");
    }
    assert_eq!(add(&client, rogue, 2, 3).await, Some(Kind::I32(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_from_outside_is_told_and_replaced() {
    let scene = Scene::set(&["--set", "exec.executors=2"]).await;
    let client = scene.client.clone();
    for round in 0..30 {
        let mut request = call(scene.rogue, "spin", vec![], ResultType::Void);
        request.cpu_limit = Some(prost_types::Duration { seconds: 30, nanos: 0 });
        let running = tokio::spawn({
            let client = client.clone();
            async move { trapped(client.execute(request).await.unwrap()) }
        });
        tokio::time::sleep(Duration::from_millis(round)).await;
        // Whichever runs: those that die before they run anything are forked ever more rarely.
        let mut told = false;
        while !told {
            for pid in workers(&scene.daemon).into_iter().filter(|pid| state(*pid) == Some('R')) {
                signal(pid, Signal::SIGKILL);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            told = running.is_finished();
        }
        let trap = running.await.unwrap();
        assert_eq!((trap.kind(), trap.signal), (Worker, 9), "{trap:?}");
        if round == 0 {
            // Good calls that ran then were told the same; from here on there are none.
            scene.stop.store(true, Relaxed);
        }
        assert_eq!(add(&client, scene.rogue, 1, 2).await, Some(Kind::I32(3)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_run_in_workers_too() {
    let daemon = start(&[]);
    let client = daemon.client().await;
    let handle = handle(&client.install(support::flat("add", &[0x48, 0x8d, 0x04, 0x37, 0xc3])).await.unwrap());
    let column = |values: &mut dyn Iterator<Item = i64>| Column {
        r#type: ColumnType::I64.into(),
        values: values.flat_map(i64::to_le_bytes).collect::<Vec<u8>>().into(),
    };
    for rows in [0, 1, 1000, 100_000_i64] {
        let request = ExecuteBatchRequest {
            target: Some(execute_batch_request::Target::Handle(handle)),
            symbol: "f".to_owned(),
            rows: rows as u64,
            columns: vec![column(&mut (0..rows)), column(&mut std::iter::once(5))],
            result: ResultType::I64.into(),
            ..ExecuteBatchRequest::default()
        };
        let answer = client.execute_batch(request).await.unwrap();
        assert_eq!((answer.trap, answer.rows), (None, rows as u64));
        assert_eq!(answer.results.unwrap(), column(&mut (5..rows + 5)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_a_function_with_data_finds_both_its_columns_and_its_data() {
    let scene = Scene::set(&["--set", "exec.executors=1", "--set", "exec.spare_executors=0"]).await;
    let column = |first: u64| Column {
        r#type: ColumnType::U64.into(),
        values: (0..1000).flat_map(|row| (first + row).to_le_bytes()).collect::<Vec<u8>>().into(),
    };
    let mut counted = 100_u64;
    // Other calls between them show a worker other data, or none.
    for round in 0..20 {
        let request = ExecuteBatchRequest {
            target: Some(execute_batch_request::Target::Handle(scene.counter)),
            symbol: "add_counted".to_owned(),
            rows: 1000,
            columns: vec![column(1_000_000)],
            result: ResultType::U64.into(),
            ..ExecuteBatchRequest::default()
        };
        let answer = scene.client.execute_batch(request).await.unwrap();
        let expected = (1..=1000_u64).flat_map(|row| (999_999 + row + counted + row).to_le_bytes());
        assert_eq!(answer.results.unwrap().values, expected.collect::<Vec<u8>>(), "round {round}");
        counted += 1000;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_grows_and_nothing_is_left_at_the_end() {
    let mut daemon = start(&["--set", "exec.executors=2", "--set", "exec.spare_executors=0"]);
    let client = daemon.client().await;
    let rogue = handle(&client.install(elf("rogue", compile("rogue.S"))).await.unwrap());
    let round = async |client: &Client| {
        for _ in 0..50 {
            trapped(client.execute(void(rogue, "lose_frame", vec![])).await.unwrap());
            assert_eq!(add(client, rogue, 2, 3).await, Some(Kind::I32(5)));
        }
    };
    round(&client).await;
    let steady = async |what: &str| {
        until(what, async || {
            // Of two calls at one time each executor gets one, and asks for a worker if its own has died.
            let _both = tokio::join!(add(&client, rogue, 2, 3), add(&client, rogue, 2, 3));
            (workers(&daemon).len() == 4).then(|| (descriptors(&daemon), threads(&daemon)))
        })
        .await
    };
    let before = steady("two executors' workers and two that are ready").await;
    for _ in 0..4 {
        round(&client).await;
    }
    until("as many descriptors and threads as before", async || (steady("four workers").await == before).then_some(()))
        .await;
    let all = children(daemon.pid());
    assert_eq!(all.len(), 5, "and the process that forks them");
    let told = client.status().await.unwrap().workers.unwrap();
    assert_eq!((told.alive, told.ready, told.failed_spawns), (4, 2, 0), "{told:?}");
    assert_eq!(told.spawned - told.exited - told.killed - told.stopped - told.replaced, 4, "{told:?}");
    assert!(told.killed >= 250, "{told:?}");
    drop(client);
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0));
    for pid in all {
        until("the end of the process", async || (!lives(pid)).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_end_with_the_daemon_however_it_ends() {
    let daemon = start(&[]);
    let all = children(daemon.pid());
    assert!(all.len() >= 5);
    drop(daemon);
    for pid in all {
        until("the end of the process", async || (!lives(pid)).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn short_calls_run_inline_in_threads_only() {
    for isolation in ["thread", "process"] {
        let daemon =
            Daemon::start_with(&["--set", "exec.inline_us=1000", "--set", &format!("exec.isolation={isolation}")]);
        let client = daemon.client().await;
        let add = handle(&client.install(support::flat("add", support::ADD)).await.unwrap());
        let run = async || {
            for _ in 0..100 {
                client.execute(call(add, "f", vec![Kind::I32(1), Kind::I32(2)], ResultType::I32)).await.unwrap();
            }
            client.status().await.unwrap().executors.unwrap().inline_calls
        };
        if isolation == "thread" {
            until("a call that runs inline", async || (run().await > 0).then_some(())).await;
        } else {
            assert_eq!((run().await, run().await), (0, 0));
        }
    }
}
