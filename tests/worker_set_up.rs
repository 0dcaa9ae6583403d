//! Worker processes that do not come as far as to run a call: what that costs, what is told, and how it ends.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::{MetadataExt, chown},
    process::Command,
    time::Duration,
};

use codecached::{
    client::Client,
    proto::{ResultType, Trap, TrapKind, TrapStage, execute_response::Outcome, value::Kind},
};
use nix::sys::signal::Signal;
use support::{ADD, Daemon, call, children_named, compile, elf, flat, handle, returned, signal, trapped, until};

fn start(flags: &[&str]) -> Daemon {
    let set =
        ["exec.isolation=process", "exec.executors=1", "exec.spare_executors=0", "exec.worker_spawns_max_per_s=2000"];
    let set: Vec<&str> = set.into_iter().flat_map(|it| ["--set", it]).collect();
    Daemon::start_with(&[&set, flags].concat())
}

fn workers(daemon: &Daemon) -> BTreeSet<u32> {
    children_named(daemon.pid(), "codecached-work")
}

fn zygote(daemon: &Daemon) -> u32 {
    let forks = children_named(daemon.pid(), "codecached-fork");
    assert_eq!(forks.len(), 1);
    forks.into_iter().next().unwrap()
}

fn kill(pids: &BTreeSet<u32>) {
    for pid in pids {
        // It may have ended meanwhile.
        signal(*pid, Signal::SIGKILL);
    }
}

fn get(daemon: &Daemon, path: &str) -> String {
    let mut stream = TcpStream::connect(&daemon.metrics).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", daemon.metrics).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn metric(daemon: &Daemon, name: &str) -> u64 {
    let page = get(daemon, "/metrics");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
    value.parse::<f64>().unwrap() as u64
}

fn failures(daemon: &Daemon) -> u64 {
    metric(daemon, "codecache_worker_spawn_failures_total")
}

async fn add(client: &Client, add: u64) -> Result<Option<Kind>, Trap> {
    let request = call(add, "f", vec![Kind::I32(1), Kind::I32(2)], ResultType::I32);
    match client.execute(request).await.unwrap().outcome.unwrap() {
        Outcome::Returned(it) => Ok(it.value.unwrap().kind),
        Outcome::Trap(trap) => Err(trap),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_die_before_they_are_anybodys_are_forked_ever_more_rarely() {
    let daemon = start(&[]);
    let client = daemon.client().await;
    let code = handle(&client.install(flat("add", ADD)).await.unwrap());
    assert_eq!(add(&client, code).await, Ok(Some(Kind::I32(3))));
    let spawned = || metric(&daemon, "codecache_worker_spawns_total");
    let (all, before) = (workers(&daemon), spawned());
    for _ in 0..100 {
        // Whatever it is that ends them: it lasts.
        kill(&workers(&daemon));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let more = spawned() - before;
    assert!((1..20).contains(&more), "{more} workers were forked although all died");
    assert!(failures(&daemon) > 0);
    assert_eq!(daemon.log().matches("end before they can run anything").count(), 1, "{}", daemon.log());
    assert_eq!(add(&client, code).await, Ok(Some(Kind::I32(3))), "when it is over");
    assert!(workers(&daemon).is_disjoint(&all));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signal_that_ends_a_worker_is_told_as_what_it_is() {
    let daemon = start(&[]);
    let client = daemon.client().await;
    let rogue = handle(&client.install(elf("rogue", compile("rogue.S"))).await.unwrap());
    for (symbol, signal) in [("lose_frame", 4), ("lose_frame_at_breakpoint", 5)] {
        let trap = trapped(client.execute(call(rogue, symbol, vec![], ResultType::Void)).await.unwrap());
        assert_eq!((trap.kind(), trap.stage(), trap.signal), (TrapKind::Worker, TrapStage::Call, signal), "{symbol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_step_at_which_workers_fail_is_told_and_no_call_is_lost_once_it_works_again() {
    let daemon = start(&[]);
    let client = daemon.client().await;
    let code = handle(&client.install(flat("add", ADD)).await.unwrap());
    let descriptors = |limit: &str| {
        let limit = ["--pid".to_owned(), zygote(&daemon).to_string(), format!("--nofile={limit}")];
        assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    };
    // So it cannot look into /proc.
    descriptors("0:4096");
    kill(&workers(&daemon));
    let trap = until("a call without a worker", async || add(&client, code).await.err()).await;
    assert_eq!((trap.kind(), trap.stage(), trap.exit_status), (TrapKind::Worker, TrapStage::Waiting, Some(98)));
    assert_eq!(daemon.log().matches("\"step\":\"setting RLIMIT_AS\"").count(), 1, "{}", daemon.log());
    assert!(failures(&daemon) >= 4);
    descriptors("4096:4096");
    // Those that are ready were forked before.
    kill(&workers(&daemon));
    until("a call", async || add(&client, code).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_process_that_forks_workers_the_daemon_says_so_drains_and_ends_by_itself() {
    let mut daemon = start(&["--set", "server.grace_ms=30000"]);
    let client = daemon.client().await;
    let rogue = handle(&client.install(elf("rogue", compile("rogue.S"))).await.unwrap());
    assert!(get(&daemon, "/livez").starts_with("HTTP/1.1 200"));
    let mut request = call(rogue, "spin", vec![], ResultType::Void);
    request.cpu_limit = Some(prost_types::Duration { seconds: 10, nanos: 0 });
    let running = tokio::spawn({
        let client = client.clone();
        async move { trapped(client.execute(request).await.unwrap()) }
    });
    until("that it runs", async || (client.status().await.unwrap().executors?.running == 1).then_some(())).await;
    kill(&BTreeSet::from([zygote(&daemon)]));
    let lost = "the process that forks workers has ended";
    until("that it is not alive", async || get(&daemon, "/livez").contains(lost).then_some(())).await;
    until("that requests are not taken", async || {
        let health = Command::new(env!("CARGO_BIN_EXE_codecachectl"));
        (ended(health, &["--server", &daemon.target, "health"]) == Some(5)).then_some(())
    })
    .await;
    assert!(!running.is_finished() && daemon.is_running(), "what runs is waited for");
    // Nobody waits for it any more.
    running.abort();
    assert_eq!(daemon.wait(), Some(1));
    until("why it has ended", async || daemon.log().contains(lost).then_some(())).await;
}

/// `unlink(path)` by this architecture's instruction: what the kernel says.
fn unlinks(path: &std::path::Path) -> Vec<u8> {
    // mov eax, 87; lea rdi, [rip + 3]; syscall; ret
    let code = [0xb8, 87, 0, 0, 0, 0x48, 0x8d, 0x3d, 3, 0, 0, 0, 0x0f, 0x05, 0xc3];
    [&code, path.to_str().unwrap().as_bytes(), b"\0"].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemon_gives_up_workers_give_up_too_and_more() {
    let daemon = start(&["--set", "exec.system_call_filter=off", "--set", "confine.system_calls=require"]);
    let client = daemon.client().await;
    let all = until("workers", async || Some(workers(&daemon)).filter(|all| all.len() == 3)).await;
    for pid in all.into_iter().chain([zygote(&daemon)]) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.lines().any(|it| it == line), "{line} of {pid}: {status}");
        }
    }
    if !daemon.log().contains("landlock, ") {
        return println!("no landlock here");
    }
    // Where the daemon itself may remove its socket.
    let victim = daemon.socket().with_file_name("victim");
    fs::write(&victim, "").unwrap();
    let code = handle(&client.install(flat("unlink", &unlinks(&victim))).await.unwrap());
    let said = returned(client.execute(call(code, "f", vec![], ResultType::I64)).await.unwrap()).0;
    assert_eq!(said, Some(Kind::I64(-13)), "EACCES");
    assert!(victim.exists());
}

/// A daemon of a user without privileges, whoever runs this.
fn of_nobody(flags: &[&str]) -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return Daemon::start_by(directory, Command::new(env!("CARGO_BIN_EXE_codecached")), flags);
    }
    // The build may lie where nobody else can look.
    let program = directory.path().join("codecached");
    fs::copy(env!("CARGO_BIN_EXE_codecached"), &program).unwrap();
    chown(directory.path(), Some(65534), Some(65534)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    Daemon::start_by(directory, command, flags)
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_go_first_where_memory_is_short_and_what_forks_them_does_not() {
    let daemon = of_nobody(&["--set", "exec.isolation=process"]);
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
    let all = until("workers", async || Some(workers(&daemon)).filter(|all| all.len() > 2)).await;
    for pid in all {
        until("that it says so", async || (score(pid) == "1000").then_some(())).await;
    }
    assert_eq!(score(zygote(&daemon)), score(daemon.pid()));
    assert_ne!(score(daemon.pid()), "1000");
}

fn ended(mut command: Command, arguments: &[&str]) -> Option<i32> {
    command.args(arguments).output().unwrap().status.code()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_process_that_forks_workers_is_stopped_deaths_are_told_and_calls_wait() {
    let daemon = start(&[]);
    let client = daemon.client().await;
    let rogue = handle(&client.install(elf("rogue", compile("rogue.S"))).await.unwrap());
    until("workers that are ready", async || (workers(&daemon).len() == 3).then_some(())).await;
    let zygote = zygote(&daemon);
    assert!(signal(zygote, Signal::SIGSTOP));
    for _ in 0..3 {
        let trap = trapped(client.execute(call(rogue, "lose_frame", vec![], ResultType::Void)).await.unwrap());
        assert_eq!((trap.kind(), trap.stage()), (TrapKind::Worker, TrapStage::Call), "{trap:?}");
    }
    assert_eq!(workers(&daemon).len(), 0);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move {
            let request = call(rogue, "add", vec![Kind::I32(1), Kind::I32(2)], ResultType::I32);
            client.execute(request).await.unwrap().outcome
        }
    });
    // Longer than a fork takes.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    assert!(signal(zygote, Signal::SIGCONT));
    assert!(matches!(waiting.await.unwrap(), Some(Outcome::Returned(_))));
    assert!(get(&daemon, "/livez").starts_with("HTTP/1.1 200"));
}
