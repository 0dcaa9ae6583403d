//! Entries whose code misbehaves: too many traps, and code that cannot be stopped.

mod support;

use std::time::Duration;

use codecached::{
    client::Client,
    proto::{
        Entry, EntryView, ExecuteBatchRequest, ExecuteRequest, FunctionCalls, InstallRequest, LiftQuarantineRequest,
        ListRequest, LookupRequest, ResultType, StreamAnswer, StreamCall, TrapKind, TrapStage, execute_batch_request,
        function_calls, lift_quarantine_request, lookup_request, stream_answer,
    },
};
use support::{ADD, Daemon, PATIENCE, call, flat, handle, returned, trapped, until};
use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpStream};
use tonic::Code;

const UD2: &[u8] = &[0x0f, 0x0b];
const SPIN: &[u8] = &[0xeb, 0xfe];
/// Blocks all signals by a system call, then loops: `rt_sigprocmask(SIG_BLOCK, {all}, NULL, 8)`.
const UNSTOPPABLE: &[u8] = &[
    0xb8, 0x0e, 0x00, 0x00, 0x00, // mov eax, 14
    0x31, 0xff, // xor edi, edi
    0x6a, 0xff, // push -1
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0x31, 0xd2, // xor edx, edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov r10d, 8
    0x0f, 0x05, // syscall
    0xf3, 0x90, // 2: pause
    0xeb, 0xfc, // jmp 2b
];

fn request(entry: u64, limit_ms: u64) -> ExecuteRequest {
    let limit = Duration::from_millis(limit_ms);
    ExecuteRequest { cpu_limit: Some(limit.try_into().unwrap()), ..call(entry, "f", vec![], ResultType::Void) }
}

async fn install(client: &Client, key: &str, code: &[u8]) -> u64 {
    handle(&client.install(flat(key, code)).await.unwrap())
}

async fn lift(client: &Client, key: &str) -> Option<String> {
    let target = Some(lift_quarantine_request::Target::Key(key.as_bytes().to_vec().into()));
    let answer = client.lift_quarantine(LiftQuarantineRequest { target, ..LiftQuarantineRequest::default() }).await;
    answer.unwrap().lifted.map(|it| it.reason)
}

async fn lookup(client: &Client, key: &str) -> Entry {
    let target = Some(lookup_request::Target::Key(key.as_bytes().to_vec().into()));
    let request = LookupRequest { target, view: EntryView::Full.into(), ..LookupRequest::default() };
    client.lookup(request).await.unwrap().entry.unwrap()
}

/// Two calls that go together, answered.
async fn stream_of_two(client: &Client, entry: u64) -> Vec<StreamAnswer> {
    let (sender, mut answers) = client.execute_stream().await.unwrap();
    let functions = FunctionCalls {
        target: Some(function_calls::Target::Handle(entry)),
        symbol: "f".to_owned(),
        result: ResultType::Void.into(),
        calls: [1, 2].map(|call_id| StreamCall { call_id, arguments: vec![] }).into(),
        ..FunctionCalls::default()
    };
    assert!(sender.send(vec![functions]).await);
    let mut all = Vec::new();
    while all.len() < 2 {
        all.extend(tokio::time::timeout(PATIENCE, answers.next()).await.expect("in time").unwrap().unwrap());
    }
    all
}

/// Reason and message.
fn error_of(answer: StreamAnswer) -> (String, String) {
    match answer.outcome.unwrap() {
        stream_answer::Outcome::Error(error) => (error.reason, error.message),
        other => panic!("{other:?}"),
    }
}

async fn get(daemon: &Daemon, path: &str) -> String {
    let mut stream = TcpStream::connect(&daemon.metrics).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_traps_too_often_is_not_called_until_that_is_lifted_or_it_is_replaced() {
    let daemon = Daemon::start_with(&["--set", "exec.quarantine_traps=3"]);
    let client = daemon.client().await;
    let (bad, good) = (install(&client, "bad", UD2).await, install(&client, "good", ADD).await);
    for _ in 0..3 {
        assert_eq!(trapped(client.execute(request(bad, 1000)).await.unwrap()).kind(), TrapKind::Ill);
    }
    let error = client.execute(request(bad, 1000)).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Some(Code::FailedPrecondition), "ENTRY_QUARANTINED"));
    for part in ["after 3 traps", "ILL at f+0x0", "codecachectl unquarantine"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let batch = ExecuteBatchRequest {
        target: Some(execute_batch_request::Target::Handle(bad)),
        symbol: "f".to_owned(),
        rows: 1,
        result: ResultType::Void.into(),
        ..ExecuteBatchRequest::default()
    };
    let error = client.execute_batch(batch).await.unwrap_err();
    assert!(error.reason() == "ENTRY_QUARANTINED" && error.to_string().contains("after 3 traps"), "{error}");
    let reasons: Vec<_> = stream_of_two(&client, bad).await.into_iter().map(|it| error_of(it).0).collect();
    assert_eq!(reasons, ["ENTRY_QUARANTINED"; 2]);
    returned(client.execute(request(good, 1000)).await.unwrap());
    let listed = client.list(ListRequest::default()).await.unwrap().entries;
    let states: Vec<_> = listed.iter().map(|it| (&it.key[..], it.quarantine.as_ref().map(|it| it.traps))).collect();
    assert_eq!(states, [(&b"bad"[..], Some(3)), (b"good", None)]);
    assert_eq!(lookup(&client, "bad").await.quarantine.unwrap().reason, "ILL at f+0x0");
    assert_eq!(client.status().await.unwrap().entries.unwrap().quarantined, 1);
    let scrape = get(&daemon, "/metrics").await;
    for line in ["codecache_quarantined_entries 1", "codecache_quarantines_total 1"] {
        assert!(scrape.lines().any(|it| it == line), "{line} is not in\n{scrape}");
    }
    assert_eq!(lift(&client, "bad").await.as_deref(), Some("ILL at f+0x0"));
    assert_eq!(lift(&client, "bad").await, None, "once");
    for _ in 0..3 {
        trapped(client.execute(request(bad, 1000)).await.unwrap());
    }
    let same = client.install(flat("bad", UD2)).await.unwrap();
    assert!(!same.created && same.entry.unwrap().quarantine.is_some(), "the same bytes change nothing");
    let anew = client.install(InstallRequest { replace: true, ..flat("bad", UD2) }).await.unwrap();
    assert!(anew.entry.as_ref().unwrap().quarantine.is_none());
    trapped(client.execute(request(handle(&anew), 1000)).await.unwrap());
    let error = client.lift_quarantine(LiftQuarantineRequest::default()).await.unwrap_err();
    assert_eq!(error.reason(), "INVALID_FIELD", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_stream_behind_the_trap_that_was_too_much_do_not_run() {
    let daemon = Daemon::start_with(&["--set", "exec.quarantine_traps=1"]);
    let client = daemon.client().await;
    let bad = install(&client, "bad", UD2).await;
    let mut answers = stream_of_two(&client, bad).await;
    answers.sort_by_key(|it| it.call_id);
    let second = error_of(answers.pop().unwrap());
    assert!(second.0 == "ENTRY_QUARANTINED" && second.1.contains("after 1 traps"), "{second:?}");
    assert!(matches!(answers[0].outcome, Some(stream_answer::Outcome::Trap(_))), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_count_as_traps_but_not_deadlines_lower_limits_and_clients_that_leave() {
    let flags = ["quarantine_traps=2", "executors=1", "cpu_limit_default_ms=20"].map(|it| format!("exec.{it}"));
    let flags: Vec<_> = flags.iter().flat_map(|it| ["--set", it.as_str()]).collect();
    let daemon = Daemon::start_with(&flags);
    let client = daemon.client().await;
    let spin = install(&client, "spin", SPIN).await;
    let calls = async || client.status().await.unwrap().counters.unwrap().calls;
    for ended in 1..=3 {
        let hasty = client.with_timeout(Duration::from_millis(60));
        assert_eq!(hasty.execute(request(spin, 60_000)).await.unwrap_err().code(), Some(Code::DeadlineExceeded));
        until("it to end", async || (calls().await == ended).then_some(())).await;
    }
    for limit_ms in [5, 5, 5, 20, 20] {
        assert_eq!(trapped(client.execute(request(spin, limit_ms)).await.unwrap()).kind(), TrapKind::Timeout);
    }
    let error = client.execute(request(spin, 5)).await.unwrap_err();
    assert_eq!(error.reason(), "ENTRY_QUARANTINED");
    assert!(error.to_string().contains("TIMEOUT at f+0x0"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_cannot_be_stopped_is_answered_quarantined_and_told_of_and_the_daemon_goes_on_and_ends() {
    let flags = ["executors=1", "spare_executors=0", "stuck_after_ms=100", "system_call_filter=off"];
    let flags = flags.map(|it| format!("exec.{it}"));
    let flags: Vec<_> = flags.iter().flat_map(|it| ["--set", it.as_str()]).collect();
    let mut daemon = Daemon::start_with(&flags);
    let client = daemon.client().await;
    let (bad, good) = (install(&client, "bad", UNSTOPPABLE).await, install(&client, "good", ADD).await);
    let trap = trapped(client.execute(request(bad, 20)).await.unwrap());
    assert_eq!((trap.kind(), trap.stage(), trap.outside), (TrapKind::Timeout, TrapStage::Stuck, true), "{trap:?}");
    let error = client.execute(request(bad, 20)).await.unwrap_err();
    assert_eq!(error.reason(), "ENTRY_QUARANTINED", "{error}");
    assert!(error.to_string().contains("could not be stopped"), "{error}");
    for _ in 0..20 {
        returned(client.execute(request(good, 1000)).await.unwrap());
    }
    let status = client.status().await.unwrap();
    let executors = status.executors.unwrap();
    assert_eq!((executors.threads, executors.stuck, executors.missing, executors.replaced), (1, 1, 0, 1));
    assert!(status.ready);
    let scrape = get(&daemon, "/metrics").await;
    assert!(scrape.contains("codecache_executors{state=\"stuck\"} 1"), "{scrape}");
    let evicted = client.evict(codecached::proto::EvictRequest {
        target: Some(codecached::proto::evict_request::Target::Handle(bad)),
        ..Default::default()
    });
    assert_eq!(evicted.await.unwrap().state(), codecached::proto::EvictState::Lingering, "code is not freed under it");
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0), "nobody waits for what does not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_replacement_the_daemon_is_not_ready_and_says_why() {
    let flags = ["executors=1", "spare_executors=0", "stuck_after_ms=100", "stuck_max=0", "system_call_filter=off"]
        .map(|it| format!("exec.{it}"));
    let flags: Vec<_> = flags.iter().flat_map(|it| ["--set", it.as_str()]).collect();
    let daemon = Daemon::start_with(&flags);
    let client = daemon.client().await;
    let (bad, good) = (install(&client, "bad", UNSTOPPABLE).await, install(&client, "good", ADD).await);
    assert!(get(&daemon, "/readyz").await.starts_with("HTTP/1.1 200"));
    trapped(client.execute(request(bad, 20)).await.unwrap());
    let answer = get(&daemon, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("1 executors are held by code"), "{answer}");
    let error = client.execute(request(good, 1000)).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Some(Code::Unavailable), "EXECUTORS_STUCK"), "{error}");
    assert!(!client.status().await.unwrap().ready);
}
