//! Inputs in a daemon: many in one entry, a call of each.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use codecached::{
    client::{Client, ClientError},
    proto::{
        self, EvictRequest, ExecuteRequest, ExecuteResponse, FlatEntry, InstallRequest, ResultType, Trap,
        execute_response::Outcome, value::Kind,
    },
};

use crate::{
    generate::Generator,
    support::{ADD, Daemon, Random, call, flat, handle},
};

/// CPU time of each call.
const LIMIT: Duration = Duration::from_millis(1);
/// After which a daemon that does not answer counts as lost.
const SILENCE: Duration = Duration::from_secs(30);
const TRIES: u32 = 20;
const ALIGN_BYTES: usize = 16;
/// The key of what means well.
const GOOD: &str = "good";
const TRAP: u8 = 0xcc;

/// How calls ended, by how often.
pub type Ends = BTreeMap<String, u64>;

/// The daemon is no more, or not what it was.
#[derive(Debug)]
pub struct Lost {
    /// The input that was under way.
    pub at: u64,
}

pub async fn start(isolation: &str) -> Daemon {
    let isolation = format!("exec.isolation={isolation}");
    let daemon = Daemon::start_with(&["--set", &isolation, "--set", "exec.worker_spawns_max_per_s=10000"]);
    daemon.client().await.install(flat(GOOD, ADD)).await.unwrap();
    daemon
}

/// Installs the inputs of this range and calls each once, in order. Then a call that means well must be answered as ever.
pub async fn run(client: &Client, generator: &Generator, range: Range<u64>, ends: &mut Ends) -> Result<(), Lost> {
    let inputs: Vec<_> = range.clone().map(|number| (number, generator.input(number))).collect();
    let mut pieces = vec![inputs];
    while let Some(mut piece) = pieces.pop() {
        let Some(&(first, _)) = piece.first() else { continue };
        let lost = |_| Lost { at: first };
        match answered(client.install(install(&piece))).await.map_err(lost)? {
            Ok(installed) => call_each(client, handle(&installed), &piece, ends).await?,
            // What touches the host's thread pointer, where that can be seen.
            Err(_) if piece.len() == 1 => *ends.entry("refused".to_owned()).or_default() += 1,
            Err(_) => {
                let half = piece.split_off(piece.len() / 2);
                pieces.extend([half, piece]);
            }
        }
    }
    match answered(client.execute(good())).await {
        Ok(Ok(answer)) if is_42(&answer) => Ok(()),
        _ => Err(Lost { at: range.end - 1 }),
    }
}

fn good() -> ExecuteRequest {
    let mut request = call(0, "f", vec![Kind::I32(20), Kind::I32(22)], ResultType::I32);
    request.target = Some(proto::execute_request::Target::Key(GOOD.into()));
    request
}

fn is_42(answer: &ExecuteResponse) -> bool {
    let Some(Outcome::Returned(returned)) = &answer.outcome else { return false };
    returned.value.as_ref().is_some_and(|value| value.kind == Some(Kind::I32(42)))
}

async fn call_each(client: &Client, entry: u64, piece: &[(u64, Vec<u8>)], ends: &mut Ends) -> Result<(), Lost> {
    for (number, _) in piece {
        let lost = |_| Lost { at: *number };
        let mut answer = answered(client.execute(request(entry, *number))).await.map_err(lost)?;
        // Who is refused for now, such as where an executor is being replaced, comes again.
        for _ in 0..TRIES {
            if answer.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            answer = answered(client.execute(request(entry, *number))).await.map_err(lost)?;
        }
        let end = answer.map_or_else(|error| error.to_string(), |answer| end(&answer));
        *ends.entry(end).or_default() += 1;
    }
    let evict = EvictRequest { target: Some(proto::evict_request::Target::Handle(entry)), ..EvictRequest::default() };
    let first = piece[0].0;
    answered(client.evict(evict)).await.map_err(|_| Lost { at: first })?.ok();
    Ok(())
}

/// An answer, even if it is no; an error if there is none.
async fn answered<T>(question: impl Future<Output = Result<T, ClientError>>) -> Result<Result<T, ClientError>, ()> {
    match tokio::time::timeout(SILENCE, question).await {
        Err(_) | Ok(Err(ClientError::Transport { .. })) => Err(()),
        Ok(answer) => Ok(answer),
    }
}

fn install(piece: &[(u64, Vec<u8>)]) -> InstallRequest {
    let (mut blob, mut entries) = (Vec::new(), Vec::new());
    for (number, code) in piece {
        blob.resize(blob.len().next_multiple_of(ALIGN_BYTES), TRAP);
        entries.push(FlatEntry { name: name(*number), offset_bytes: blob.len() as u64 });
        blob.extend_from_slice(code);
    }
    let key = format!("random-{}", piece[0].0);
    InstallRequest { flat_entries: entries, replace: true, ..flat(&key, &blob) }
}

fn name(number: u64) -> String {
    format!("f{number}")
}

/// Memory, its size, a number, and something that may be taken for a pointer.
pub fn request(entry: u64, number: u64) -> ExecuteRequest {
    let mut random = Random(number | 1 << 63);
    let memory: Vec<u8> = (0..256).map(|_| random.next() as u8).collect();
    let arguments = vec![
        Kind::Inout(memory.into()),
        Kind::U64(256),
        Kind::U64(random.below(1000)),
        Kind::U64(random.next() >> random.below(64)),
        Kind::OutBytes(4096),
        Kind::F64(random.below(1000) as f64),
    ];
    let mut request = call(entry, &name(number), arguments, ResultType::U64);
    request.cpu_limit = Some(LIMIT.try_into().unwrap());
    request
}

/// The trap of a single input that is called alone, or none.
pub async fn trap_of(client: &Client, generator: &Generator, number: u64) -> Option<Trap> {
    let installed = client.install(install(&[(number, generator.input(number))])).await.ok()?;
    match client.execute(request(handle(&installed), number)).await.unwrap().outcome.unwrap() {
        Outcome::Trap(trap) => Some(trap),
        Outcome::Returned(_) => None,
    }
}

fn end(answer: &ExecuteResponse) -> String {
    match answer.outcome.as_ref().unwrap() {
        Outcome::Returned(_) => "returned".to_owned(),
        Outcome::Trap(trap) => trap.kind().as_str_name().trim_start_matches("TRAP_KIND_").to_lowercase(),
    }
}
