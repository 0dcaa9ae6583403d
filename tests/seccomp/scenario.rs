//! What a daemon in a container does in its life: it starts, installs, calls, contains, measures, drains.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use codecached::{
    client::{Client, ClientError},
    proto::{
        EvictRequest, EvictState, ExecuteRequest, ExecuteResponse, ResultType, Trap, TrapKind, evict_request,
        execute_response::Outcome, value::Kind,
    },
};
use serde_json::Value;

use crate::{
    container::{Container, VOLUME},
    support::{ADD, call, flat, handle},
};

/// `ud2`
const BROKEN: &[u8] = &[0x0f, 0x0b];
/// `mov eax, 39; syscall; ret`
const ASKING: &[u8] = &[0xb8, 0x27, 0, 0, 0, 0x0f, 0x05, 0xc3];
/// `jmp .`
const SPIN: &[u8] = &[0xeb, 0xfe];
/// `call .`
const DEEP: &[u8] = &[0xe8, 0xfb, 0xff, 0xff, 0xff];
/// Writes 0 to what the handler finds the call by, 8 bytes into the last page of the slot; then for ever again, or `int3`.
const STUBBORN: &[u8] = &[
    0x48, 0x89, 0xe0, 0x48, 0x0d, 0xff, 0xff, 0xff, 0x0f, 0x48, 0x2d, 0xff, 0x0f, 0, 0, 0x48, 0xc7, 0x40, 8, 0, 0, 0,
    0, 0xeb, 0xf6,
];
const LOST: &[u8] = &[
    0x48, 0x89, 0xe0, 0x48, 0x0d, 0xff, 0xff, 0xff, 0x0f, 0x48, 0x2d, 0xff, 0x0f, 0, 0, 0x48, 0xc7, 0x40, 8, 0, 0, 0,
    0, 0xcc,
];
const LONG: Duration = Duration::from_secs(1);
/// More than what is kept of free memory, so that the rest goes back to the system.
const LARGE_BYTES: usize = 3 << 20;

/// Whether all of it went well, each step within `patience`; if not, what did not.
pub fn run(variant: &str, profile: &Value, patience: Duration) -> Result<(), String> {
    let listen = format!("unix:{VOLUME}/codecached.sock");
    let isolation = format!("exec.isolation={variant}");
    let arguments = [
        "serve",
        "--listen",
        &listen,
        "--metrics",
        "127.0.0.1:0",
        "--log-format",
        "json",
        "--budget-bytes",
        "4 MiB",
        "--set",
        "server.grace_ms=2000",
        "--set",
        &isolation,
    ];
    let mut daemon = Container::run(Path::new(env!("CARGO_BIN_EXE_codecached")), &arguments, Some(profile));
    life(&mut daemon, variant, patience).map_err(|error| format!("{error}\n{}", daemon.output().join("\n")))
}

fn life(daemon: &mut Container, variant: &str, patience: Duration) -> Result<(), String> {
    let metrics = ready(daemon, patience)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
    let socket = daemon.volume().join("codecached.sock");
    let work = async { tokio::time::timeout(patience, work(&socket, patience)).await.map_err(|_| "too late")? };
    let client = runtime.block_on(work)?;
    if variant == "process" {
        let workers = async { tokio::time::timeout(patience, workers(&client)).await.map_err(|_| "too late")? };
        runtime.block_on(workers)?;
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).map_err(text)?.permissions());
    expect("mode of the socket", mode & 0o777, 0o660)?;
    let page = scrape(&metrics, patience)?;
    expect("descriptors in the metrics", page.contains("\nprocess_open_fds "), true)?;
    let health = daemon.exec(&["/bin/codecachectl", "health"]);
    expect("health from within", health.code(), Some(0))?;
    // A call under way when the drain begins comes to its end.
    let spin = async { client.execute(timed("spin", Duration::from_millis(400))).await };
    let both = async { tokio::join!(spin, async { drain(daemon, &client).await }).0 };
    expect("a call during the drain", trap(runtime.block_on(both))?, TrapKind::Timeout)?;
    expect("exit code", daemon.ended_within(patience), Some(0))?;
    expect("a socket that is left", socket.exists(), false)
}

/// Waits for the line that says so; answers the address of the metrics.
fn ready(daemon: &mut Container, patience: Duration) -> Result<String, String> {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        let lines = daemon.output();
        let mut lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if let Some(line) = lines.find(|line| line["fields"]["message"] == "ready") {
            return line["fields"]["metrics"].as_str().map(str::to_owned).ok_or_else(|| "no metrics".to_owned());
        }
        if let Some(code) = daemon.ended_within(Duration::from_millis(10)) {
            return Err(format!("ended with {code} before it was ready"));
        }
    }
    Err("not ready in time".to_owned())
}

async fn work(socket: &Path, patience: Duration) -> Result<Client, String> {
    let client = Client::connect(&format!("unix:{}", socket.display())).await.map_err(text)?.with_timeout(patience);
    let installed = client.install(flat("add", ADD)).await.map_err(text)?;
    let sum = call(handle(&installed), "f", vec![Kind::I32(2), Kind::I32(3)], ResultType::I32);
    match client.execute(sum).await.map_err(text)?.outcome {
        Some(Outcome::Returned(it)) => expect("sum", it.value.and_then(|it| it.kind), Some(Kind::I32(5)))?,
        other => return Err(format!("sum: {other:?}")),
    }
    for (key, code, kind) in [
        ("broken", BROKEN, TrapKind::Ill),
        ("spin", SPIN, TrapKind::Timeout),
        ("deep", DEEP, TrapKind::StackOverflow),
        ("asking", ASKING, TrapKind::Syscall),
    ] {
        client.install(flat(key, code)).await.map_err(text)?;
        expect(key, trap(client.execute(timed(key, Duration::from_millis(50))).await)?, kind)?;
    }
    // Memory that ran is used again, and more than is kept goes back.
    for round in 0..3 {
        let large = [ADD, &vec![0x90; LARGE_BYTES + round]].concat();
        let installed = client.install(flat(&format!("large{round}"), &large)).await.map_err(text)?;
        client.execute(call(handle(&installed), "f", Vec::new(), ResultType::I32)).await.map_err(text)?;
    }
    let key = evict_request::Target::Key(b"large2".as_slice().into());
    let evicted = client.evict(EvictRequest { target: Some(key), wait: true, ..EvictRequest::default() });
    expect("evict", evicted.await.map_err(text)?.state(), EvictState::Freed)?;
    client.install(flat("spin", SPIN)).await.map_err(text)?;
    Ok(client)
}

/// What ends processes, and calls after it. A call that nobody can stop has run for as long as it was to, no longer.
async fn workers(client: &Client) -> Result<(), String> {
    // By SIGKILL from the daemon, and by SIGTRAP from itself.
    for (key, code, how) in [("stubborn", STUBBORN, (TrapKind::Timeout, 9)), ("lost", LOST, (TrapKind::Worker, 5))] {
        client.install(flat(key, code)).await.map_err(text)?;
        for _ in 0..4 {
            let trap = whole_trap(client.execute(timed(key, Duration::from_millis(50))).await)?;
            expect(key, (trap.kind(), trap.signal), how)?;
        }
    }
    // The large ones have pushed it out.
    client.install(flat("broken", BROKEN)).await.map_err(text)?;
    expect("after the ends of workers", trap(client.execute(timed("broken", LONG)).await)?, TrapKind::Ill)?;
    let used = client.execute(timed("spin", Duration::from_millis(50))).await.map_err(text)?.cpu_ns;
    expect("CPU time", used > 10_000_000, true)
}

/// Says to stop once the call runs.
async fn drain(daemon: &Container, client: &Client) {
    for _ in 0..200 {
        let running = client.status().await.ok().and_then(|it| it.executors).is_some_and(|it| it.running > 0);
        if running {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    daemon.terminate();
}

fn timed(key: &str, limit: Duration) -> ExecuteRequest {
    use codecached::proto::execute_request::Target;
    ExecuteRequest {
        target: Some(Target::Key(key.as_bytes().to_vec().into())),
        cpu_limit: limit.try_into().ok(),
        ..call(0, "f", Vec::new(), ResultType::Void)
    }
}

fn trap(answer: Result<ExecuteResponse, ClientError>) -> Result<TrapKind, String> {
    whole_trap(answer).map(|trap| trap.kind())
}

fn whole_trap(answer: Result<ExecuteResponse, ClientError>) -> Result<Trap, String> {
    match answer.map_err(text)?.outcome {
        Some(Outcome::Trap(trap)) => Ok(trap),
        other => Err(format!("no trap: {other:?}")),
    }
}

fn scrape(address: &str, patience: Duration) -> Result<String, String> {
    let mut stream = TcpStream::connect(address).map_err(text)?;
    stream.set_read_timeout(Some(patience)).map_err(text)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    if answer.starts_with("HTTP/1.1 200") { Ok(answer) } else { Err(answer) }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(format!("{what}: {got:?} instead of {wanted:?}")) }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
