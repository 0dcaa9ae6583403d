//! The steps of the demo; each checks what came of it.

use std::time::Duration;

use super::{
    DemoError, check,
    child::Daemon,
    narrator::Narrator,
    program::Program,
    scrape::{self, Samples},
};
use crate::{
    client::Client,
    proto::{
        BlobFormat, ExecuteRequest, FlatEntry, InstallRequest, InstallResponse, LookupRequest, ResultType, Trap,
        TrapKind, Value, execute_request, execute_response::Outcome, lookup_request, value::Kind,
    },
};

const KEY: &str = "demo/program";

/// No step comes near it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The check value of CRC-32 is that of these digits.
const CRC32_INPUT: &str = "123456789";
const CRC32_CHECK: u32 = 0xcbf4_3926;

/// CPU time of the endless loop.
const SPIN_LIMIT: Duration = Duration::from_millis(100);

const FILLER_BYTES: usize = 128 << 10;

/// Fillers that are installed before the program is used once more, which makes them older than it.
const FILLERS_BEFORE_USE: usize = 4;

/// Evictions that are waited for; fewer than the fillers before the use.
const EVICTIONS: u64 = 3;

/// Several budgets full.
const FILLERS_MAX: usize = 64;

/// All of it, from a daemon that is ready to its metrics at the end.
pub(super) async fn tell(narrator: &mut Narrator, daemon: &Daemon, program: &Program) -> Result<(), DemoError> {
    let before = scrape::scrape(daemon.metrics)?;
    let client = Client::connect(&daemon.address).await.map_err(DemoError::client("connect"))?.with_timeout(TIMEOUT);
    introduce(narrator, daemon, &client).await?;
    install(narrator, &client, program).await?;
    call(narrator, &client, program).await?;
    contain(narrator, &client, program).await?;
    evict(narrator, &client).await?;
    show_metrics(narrator, &before, &scrape::scrape(daemon.metrics)?)
}

async fn introduce(narrator: &mut Narrator, daemon: &Daemon, client: &Client) -> Result<(), DemoError> {
    narrator.chapter("A daemon of its own, on a temporary unix socket");
    let status = client.status().await.map_err(DemoError::client("read the status"))?;
    check(status.ready && status.pid == daemon.pid(), || format!("another daemon answered: {status:?}"))?;
    let (budget, arena) = (status.budget.unwrap_or_default(), status.arena.unwrap_or_default());
    narrator.see(&format!("codecached {} is ready, pid {}", status.version, status.pid));
    narrator.say(&format!("budget {} KiB; code becomes executable by {}", budget.limit_bytes >> 10, arena.strategy));
    Ok(())
}

async fn install(narrator: &mut Narrator, client: &Client, program: &Program) -> Result<(), DemoError> {
    narrator.chapter("Compiled code goes in");
    narrator.say(&program.made_by);
    narrator.show(&program.source);
    let request = InstallRequest {
        key: KEY.into(),
        format: program.format.into(),
        blob: program.blob.clone().into(),
        flat_entries: program.entries.clone(),
        ..InstallRequest::default()
    };
    let first = client.install(request.clone()).await.map_err(DemoError::client("install the program"))?;
    let entry = first.entry.clone().unwrap_or_default();
    check(first.created && entry.key == KEY, || format!("the install was answered with {first:?}"))?;
    let sent = program.blob.len();
    narrator
        .see(&format!("installed {sent} bytes as {KEY:?}: {} bytes of code, linked and executable", entry.code_bytes));

    let again = client.install(request).await.map_err(DemoError::client("install the program again"))?;
    let same = again.entry.as_ref().is_some_and(|again| again.handle == entry.handle);
    check(!again.created && same, || format!("the second install was answered with {again:?}"))?;
    narrator.see("the same bytes again are answered with the entry that is there");

    let found = lookup(client, KEY, false).await?;
    let found = found.ok_or_else(|| DemoError::Wrong(format!("{KEY:?} was not found right after its install")))?;
    check(found == entry.handle, || format!("the lookup answered the handle {found:#x}"))?;
    let functions: Vec<_> = entry.symbols.iter().map(|symbol| symbol.name.as_str()).collect();
    narrator.see(&format!("lookup finds it: handle {found:#018x}, functions {}", functions.join(", ")));
    Ok(())
}

async fn call(narrator: &mut Narrator, client: &Client, program: &Program) -> Result<(), DemoError> {
    narrator.chapter("It runs");
    let took = crc32(client).await?;
    narrator
        .see(&format!("crc32(0, {CRC32_INPUT:?}, 9) = {CRC32_CHECK:#x}, the check value, in {took:?} on an executor"));
    if program.has_data() {
        count(client, 101).await?;
        count(client, 102).await?;
        narrator.see("count() = 101, then 102: a static variable lives across calls, as in C");
    }
    Ok(())
}

async fn contain(narrator: &mut Narrator, client: &Client, program: &Program) -> Result<(), DemoError> {
    narrator.chapter("It goes wrong, and only the call ends");
    let trap = trapped(client, request("peek", [Kind::U64(0)], ResultType::I32)).await?;
    let right = trap.kind() == TrapKind::Segv && trap.symbol == "peek" && trap.fault_address == Some(0);
    check(right, || format!("peek(NULL) trapped with {trap:?}"))?;
    narrator.see(&format!("peek(NULL): {} reading address 0x0 at {}", kind(&trap), place(&trap)));

    let trap = trapped(client, request("process_id", [], ResultType::I64)).await?;
    let name = trap.system_call.as_ref().map_or("", |it| &it.name);
    let right = trap.kind() == TrapKind::Syscall && trap.symbol == "process_id" && name == "getpid";
    check(right, || format!("process_id() trapped with {trap:?}"))?;
    narrator.see(&format!(
        "process_id(), a system call: {} {name}, which was not made, at {}",
        kind(&trap),
        place(&trap)
    ));

    let limit = prost_duration(SPIN_LIMIT);
    let spin = ExecuteRequest { cpu_limit: Some(limit), ..request("spin", [], ResultType::Void) };
    let trap = trapped(client, spin).await?;
    check(trap.kind() == TrapKind::Timeout && trap.symbol == "spin", || format!("spin() trapped with {trap:?}"))?;
    let (kind, place) = (kind(&trap), place(&trap));
    narrator.see(&format!("spin(), an endless loop: {kind} after {SPIN_LIMIT:?} of CPU time at {place}"));

    crc32(client).await?;
    narrator.see("the same daemon goes on: crc32 still has the right answer");
    if program.has_data() {
        count(client, 101).await?;
        narrator.see("count() = 101 again: after a trap, writable data is as it was installed");
    }
    narrator
        .say("(Containment of mistakes, not a security boundary: whoever may call runs code as the daemon's user.)");
    Ok(())
}

async fn evict(narrator: &mut Narrator, client: &Client) -> Result<(), DemoError> {
    narrator.chapter("The budget fills, and the least recently used goes");
    let mut names = Vec::new();
    let mut evicted = 0;
    while evicted < EVICTIONS {
        check(names.len() < FILLERS_MAX, || format!("{FILLERS_MAX} fillers did not fill the budget"))?;
        let name = format!("demo/filler-{:02}", names.len() + 1);
        evicted += install_filler(client, &name).await?.evicted_entries;
        names.push(name);
        if names.len() == FILLERS_BEFORE_USE {
            crc32(client).await?;
            narrator.say(&format!(
                "after {FILLERS_BEFORE_USE} fillers of {} KiB, crc32 is called once more",
                FILLER_BYTES >> 10
            ));
        }
    }
    narrator.say(&format!("after {} fillers, {evicted} entries had to go to make room", names.len()));
    let mut gone = Vec::new();
    for name in &names {
        if lookup(client, name, true).await?.is_none() {
            gone.push(name.clone());
        }
    }
    let oldest_first = gone.len() as u64 == evicted && names.starts_with(&gone);
    check(oldest_first, || format!("{evicted} evictions took {gone:?}, which are not the oldest"))?;
    narrator.see(&format!("gone, the oldest first: {}", gone.join(", ")));

    check(lookup(client, KEY, true).await?.is_some(), || format!("{KEY:?} was evicted though it was used"))?;
    crc32(client).await?;
    narrator.see(&format!("{KEY:?} is older than all of them but was used later: still there, still right"));

    let status = client.status().await.map_err(DemoError::client("read the status"))?;
    let budget = status.budget.unwrap_or_default();
    check(budget.charged_bytes <= budget.limit_bytes, || format!("over the budget: {budget:?}"))?;
    let (charged, limit) = (budget.charged_bytes, budget.limit_bytes);
    narrator.see(&format!("{charged} of {limit} bytes are charged: never above the limit"));
    Ok(())
}

fn show_metrics(narrator: &mut Narrator, before: &Samples, after: &Samples) -> Result<(), DemoError> {
    narrator.chapter("What the daemon counted meanwhile (/metrics)");
    let moved = scrape::moved(before, after);
    for part in ["installs", "lookups", "executions", "traps", "evictions"] {
        let start = format!("codecache_{part}_total");
        check(moved.iter().any(|(name, ..)| name.starts_with(&start)), || format!("{start} did not move"))?;
    }
    let width = moved.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    moved.iter().for_each(|(name, before, after)| narrator.show(&format!("{name:width$}  {before} -> {after}")));
    Ok(())
}

/// Calls crc32 and checks its answer; the time that the call took.
async fn crc32(client: &Client) -> Result<Duration, DemoError> {
    let arguments = [Kind::U32(0), Kind::Bytes(CRC32_INPUT.into()), Kind::U64(CRC32_INPUT.len() as u64)];
    let request = request("crc32", arguments, ResultType::U32);
    let answer = client.execute(request).await.map_err(DemoError::client("call crc32"))?;
    let right = result(answer.outcome.as_ref()) == Some(&Kind::U32(CRC32_CHECK));
    check(right, || format!("crc32 should be {CRC32_CHECK:#x}, and was {:?}", answer.outcome))?;
    Ok(Duration::from_nanos(answer.wall_ns))
}

async fn count(client: &Client, expected: i32) -> Result<(), DemoError> {
    let answer =
        client.execute(request("count", [], ResultType::I32)).await.map_err(DemoError::client("call count"))?;
    let right = result(answer.outcome.as_ref()) == Some(&Kind::I32(expected));
    check(right, || format!("count should be {expected}, and was {:?}", answer.outcome))
}

async fn trapped(client: &Client, request: ExecuteRequest) -> Result<Trap, DemoError> {
    let symbol = request.symbol.clone();
    let answer = client.execute(request).await.map_err(DemoError::client(format!("call {symbol}")))?;
    match answer.outcome {
        Some(Outcome::Trap(trap)) => Ok(trap),
        other => Err(DemoError::Wrong(format!("{symbol} should have trapped, and did not: {other:?}"))),
    }
}

/// Such as `SEGV`.
fn kind(trap: &Trap) -> &'static str {
    trap.kind().as_str_name().trim_start_matches("TRAP_KIND_")
}

fn place(trap: &Trap) -> String {
    format!("{}+{:#x}", trap.symbol, trap.offset_bytes)
}

fn result(outcome: Option<&Outcome>) -> Option<&Kind> {
    match outcome? {
        Outcome::Returned(returned) => returned.value.as_ref()?.kind.as_ref(),
        Outcome::Trap(_) => None,
    }
}

fn request(symbol: &str, arguments: impl IntoIterator<Item = Kind>, result: ResultType) -> ExecuteRequest {
    ExecuteRequest {
        target: Some(execute_request::Target::Key(KEY.into())),
        symbol: symbol.into(),
        arguments: arguments.into_iter().map(|kind| Value { kind: Some(kind) }).collect(),
        result: result.into(),
        ..ExecuteRequest::default()
    }
}

async fn install_filler(client: &Client, name: &str) -> Result<InstallResponse, DemoError> {
    const RETURN: u8 = 0xc3;
    let mut blob = vec![RETURN; FILLER_BYTES];
    // Each has bytes of its own, as real code does.
    blob[FILLER_BYTES - name.len()..].copy_from_slice(name.as_bytes());
    let request = InstallRequest {
        key: name.to_owned().into(),
        format: BlobFormat::Flat.into(),
        blob: blob.into(),
        flat_entries: vec![FlatEntry { name: "nothing".into(), offset_bytes: 0 }],
        ..InstallRequest::default()
    };
    client.install(request).await.map_err(DemoError::client(format!("install {name}")))
}

/// The handle of what is under a key; a peek is no use of it.
async fn lookup(client: &Client, key: &str, peek: bool) -> Result<Option<u64>, DemoError> {
    let target = Some(lookup_request::Target::Key(key.to_owned().into()));
    match client.lookup(LookupRequest { target, peek, ..LookupRequest::default() }).await {
        Ok(found) => Ok(found.entry.map(|entry| entry.handle)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(DemoError::client(format!("look up {key}"))(error)),
    }
}

fn prost_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: duration.as_secs() as i64, nanos: duration.subsec_nanos() as i32 }
}
