//! ExecuteStream: calls that come and go on one stream, through the built daemon.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use codecached::{
    client::{CallAnswers, CallSender, Client},
    proto::{
        self, FunctionCalls, InstallRequest, ListExecutionsRequest, ResultType, StreamAnswer, StreamCall, TrapKind,
        function_calls::Target, stream_answer::Outcome, value::Kind,
    },
};
use support::{Daemon, PATIENCE, call, elf, flat, handle, returned, until, value};
use tonic::Code;

/// `long f(long a, long b) { return a + b; }`
const ADD: &[u8] = &[0x48, 0x8d, 0x04, 0x37, 0xc3];
/// `long f(long a)`: twice that; an invalid instruction for 0.
const NONZERO: &[u8] = &[0x48, 0x85, 0xff, 0x74, 0x05, 0x48, 0x8d, 0x04, 0x3f, 0xc3, 0x0f, 0x0b];
/// `long f(long a)`: twice that; no end for 0.
const ENDING: &[u8] = &[0x48, 0x85, 0xff, 0x74, 0x05, 0x48, 0x8d, 0x04, 0x3f, 0xc3, 0xeb, 0xfe];

fn calls(handle: u64, symbol: &str, calls: impl IntoIterator<Item = (u64, Vec<Kind>)>) -> FunctionCalls {
    let one = |(call_id, arguments): (u64, Vec<Kind>)| StreamCall {
        call_id,
        arguments: arguments.into_iter().map(value).collect(),
    };
    FunctionCalls {
        target: Some(Target::Handle(handle)),
        symbol: symbol.to_owned(),
        result: ResultType::I64.into(),
        calls: calls.into_iter().map(one).collect(),
        ..FunctionCalls::default()
    }
}

/// Calls of a function of one number; the ids are the numbers.
fn of_one(handle: u64, numbers: impl IntoIterator<Item = i64>) -> FunctionCalls {
    calls(handle, "f", numbers.into_iter().map(|number| (number as u64, vec![Kind::I64(number)])))
}

async fn install(client: &Client, request: InstallRequest) -> u64 {
    handle(&client.install(request).await.unwrap())
}

/// The next answers, `count` of them, by their ids.
async fn read(answers: &mut CallAnswers, count: usize) -> BTreeMap<u64, Outcome> {
    let mut read = BTreeMap::new();
    while read.len() < count {
        let some = tokio::time::timeout(PATIENCE, answers.next()).await.expect("an answer in time").unwrap();
        for StreamAnswer { call_id, outcome, .. } in some.expect("more answers") {
            assert_eq!(read.insert(call_id, outcome.unwrap()), None, "call {call_id} was answered twice");
        }
    }
    assert_eq!(read.len(), count);
    read
}

fn number(outcome: &Outcome) -> i64 {
    match outcome {
        Outcome::Returned(proto::Returned { value: Some(proto::Value { kind: Some(Kind::I64(number)) }), .. }) => {
            *number
        }
        other => panic!("expected a number, not {other:?}"),
    }
}

fn trap(outcome: &Outcome) -> TrapKind {
    match outcome {
        Outcome::Trap(trap) => trap.kind(),
        other => panic!("expected a trap, not {other:?}"),
    }
}

async fn send(sender: &CallSender, functions: Vec<FunctionCalls>) {
    assert!(sender.send(functions).await, "the stream is over");
}

/// No executor has anything.
async fn until_quiet(client: &Client) {
    until("the executors to be free", async || {
        let executors = client.status().await.unwrap().executors.unwrap();
        (executors.running + executors.queued == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_many_messages_is_answered_once_and_right() {
    const MESSAGES: u64 = 200;
    const CALLS: u64 = 500;
    // Also where far fewer may be under way than are sent.
    for flags in [&[][..], &["--set", "exec.stream_calls_max=500", "--set", "exec.queue_max=2"]] {
        let daemon = Daemon::start_with(flags);
        let client = daemon.client().await;
        let add = install(&client, flat("add", ADD)).await;
        let (sender, mut answers) = client.execute_stream().await.unwrap();
        let sending = tokio::spawn(async move {
            for message in 0..MESSAGES {
                let ids = message * CALLS..(message + 1) * CALLS;
                let one = |id: u64| (id, vec![Kind::I64(id as i64), Kind::I64(3 * id as i64)]);
                send(&sender, vec![calls(add, "f", ids.map(one))]).await;
            }
        });
        let all = read(&mut answers, (MESSAGES * CALLS) as usize).await;
        assert!(all.iter().all(|(id, outcome)| number(outcome) == 4 * *id as i64));
        sending.await.unwrap();
        assert!(answers.next().await.unwrap().is_none(), "the stream ends when the client has ended its side");
        let entry = client.lookup(support_lookup("add")).await.unwrap().entry.unwrap();
        assert_eq!((entry.calls, entry.pins), (MESSAGES * CALLS, 0));
    }
}

fn support_lookup(key: &str) -> proto::LookupRequest {
    proto::LookupRequest {
        target: Some(proto::lookup_request::Target::Key(key.as_bytes().to_vec().into())),
        view: proto::EntryView::Full.into(),
        ..proto::LookupRequest::default()
    }
}

#[tokio::test]
async fn what_cannot_be_called_is_an_answer_and_the_stream_goes_on() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let declared = proto::SignatureDeclaration {
        form: Some(proto::signature_declaration::Form::Text("i64 f(i64)".to_owned())),
        ..proto::SignatureDeclaration::default()
    };
    let nonzero = install(&client, InstallRequest { signatures: vec![declared], ..flat("nonzero", NONZERO) }).await;
    let (sender, mut answers) = client.execute_stream().await.unwrap();
    let limited = |nanos| Some(prost_types::Duration { seconds: 0, nanos });
    send(
        &sender,
        vec![
            of_one(nonzero, [1, 2]),
            calls(nonzero, "g", [(10, vec![]), (11, vec![])]),
            calls(nonzero ^ 1 << 40, "f", [(12, vec![Kind::I64(1)])]),
            FunctionCalls { namespace: "other".to_owned(), ..calls(nonzero, "f", [(13, vec![])]) },
            FunctionCalls { namespace: "NO".to_owned(), ..calls(nonzero, "f", [(14, vec![])]) },
            FunctionCalls { target: None, ..calls(nonzero, "f", [(15, vec![])]) },
            FunctionCalls { cpu_limit: limited(0), ..calls(nonzero, "f", [(16, vec![])]) },
            calls(
                nonzero,
                "f",
                [
                    (17, vec![]),
                    (18, vec![Kind::I32(1)]),
                    (19, vec![Kind::OutBytes(1 << 40)]),
                    (20, vec![Kind::I64(1); 17]),
                    (3, vec![Kind::I64(3)]),
                ],
            ),
            FunctionCalls {
                calls: vec![StreamCall { call_id: 21, arguments: vec![proto::Value::default()] }],
                ..calls(nonzero, "f", [])
            },
        ],
    )
    .await;
    let all = read(&mut answers, 15).await;
    let reasons = [
        (10, "SYMBOL_NOT_FOUND", Code::NotFound),
        (11, "SYMBOL_NOT_FOUND", Code::NotFound),
        (12, "STALE_HANDLE", Code::NotFound),
        (13, "STALE_HANDLE", Code::NotFound),
        (14, "INVALID_FIELD", Code::InvalidArgument),
        (15, "INVALID_FIELD", Code::InvalidArgument),
        (16, "INVALID_FIELD", Code::InvalidArgument),
        (17, "INVALID_FIELD", Code::InvalidArgument),
        (18, "INVALID_FIELD", Code::InvalidArgument),
        (19, "INVALID_FIELD", Code::InvalidArgument),
        (20, "INVALID_FIELD", Code::InvalidArgument),
        (21, "INVALID_FIELD", Code::InvalidArgument),
    ];
    for (id, reason, code) in reasons {
        let Outcome::Error(error) = &all[&id] else { panic!("{id}: {:?}", all[&id]) };
        assert_eq!((error.reason.as_str(), error.code), (reason, code as i32), "{id}: {}", error.message);
        assert!(!error.message.is_empty());
    }
    assert!([1, 2, 3].into_iter().all(|id| number(&all[&id]) == 2 * id as i64));
    send(&sender, vec![of_one(nonzero, [5, 0, 6])]).await;
    let all = read(&mut answers, 3).await;
    assert_eq!((number(&all[&5]), trap(&all[&0]), number(&all[&6])), (10, TrapKind::Ill, 12));
    drop(sender);
    assert!(answers.next().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_an_end_holds_up_no_others_and_is_cancelled_alone() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=2"]);
    let client = daemon.client().await;
    let ending = install(&client, flat("ending", ENDING)).await;
    let (sender, mut answers) = client.execute_stream().await.unwrap();
    let cpu_limit = Some(prost_types::Duration { seconds: 50, nanos: 0 });
    let numbers = (1..100).chain([0]).chain(100..1000);
    send(&sender, vec![FunctionCalls { cpu_limit, ..of_one(ending, numbers) }]).await;
    let all = read(&mut answers, 999).await;
    assert!((1..1000_i64).all(|id| number(&all[&(id as u64)]) == 2 * id));
    let list = async || client.list_executions(ListExecutionsRequest::default()).await.unwrap().executions;
    let [execution] = &list().await[..] else { panic!("one is left") };
    assert_eq!((execution.state(), execution.symbol.as_str()), (proto::ExecutionState::Running, "f"));
    let cancel = |namespace: &str| proto::CancelExecutionRequest {
        namespace: namespace.to_owned(),
        execution_id: execution.execution_id,
    };
    let foreign = client.cancel_execution(cancel("other")).await.unwrap_err();
    assert_eq!(foreign.reason(), "EXECUTION_NOT_FOUND");
    client.cancel_execution(cancel("")).await.unwrap();
    assert_eq!(trap(&read(&mut answers, 1).await[&0]), TrapKind::Cancelled);
    assert!(list().await.is_empty());
    send(&sender, vec![of_one(ending, [7])]).await;
    assert_eq!(number(&read(&mut answers, 1).await[&7]), 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_in_mid_call_stops_what_runs() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=2"]);
    let client = daemon.client().await;
    let ending = install(&client, flat("ending", ENDING)).await;
    for _ in 0..3 {
        let (sender, answers) = client.execute_stream().await.unwrap();
        let cpu_limit = Some(prost_types::Duration { seconds: 50, nanos: 0 });
        send(&sender, vec![FunctionCalls { cpu_limit, ..of_one(ending, [0, 0, 0, 0, 5]) }]).await;
        until("two to run", async || (client.status().await.unwrap().executors.unwrap().running == 2).then_some(()))
            .await;
        drop((sender, answers));
        until_quiet(&client).await;
    }
    let single = call(ending, "f", vec![Kind::I64(4)], ResultType::I64);
    assert_eq!(returned(client.execute(single).await.unwrap()).0, Some(Kind::I64(8)));
    let entry = client.lookup(support_lookup("ending")).await.unwrap().entry.unwrap();
    assert_eq!(entry.pins, 0);
}

#[tokio::test]
async fn calls_on_writable_data_take_turns_and_a_trap_among_them_restores_it() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let counter = install(&client, elf("counter", support::compile("counter.c"))).await;
    let (sender, mut answers) = client.execute_stream().await.unwrap();
    let next = |ids: std::ops::Range<u64>| FunctionCalls {
        result: ResultType::U32.into(),
        ..calls(counter, "next", ids.map(|id| (id, vec![])))
    };
    let values = |all: BTreeMap<u64, Outcome>| {
        all.values()
            .map(|outcome| match outcome {
                Outcome::Returned(returned) => match returned.value.as_ref().unwrap().kind {
                    Some(Kind::U32(value)) => value,
                    ref other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            })
            .collect::<BTreeSet<_>>()
    };
    send(&sender, vec![next(0..100)]).await;
    assert_eq!(values(read(&mut answers, 100).await), (101..201).collect());
    send(&sender, vec![calls(counter, "spoil_and_fault", (0..3).map(|id| (id, vec![])))]).await;
    assert!(read(&mut answers, 3).await.values().all(|outcome| trap(outcome) == TrapKind::Segv));
    send(&sender, vec![next(0..50)]).await;
    assert_eq!(values(read(&mut answers, 50).await), (101..151).collect());
}

#[tokio::test]
async fn large_buffers_come_back_a_few_at_a_time() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let add = install(&client, flat("add", ADD)).await;
    let (sender, mut answers) = client.execute_stream().await.unwrap();
    let large = |id| (id, vec![Kind::OutBytes(3 << 20), Kind::I64(1)]);
    let small = |id| (id, vec![Kind::OutBytes(100), Kind::I64(1)]);
    send(&sender, vec![calls(add, "f", (0..20).map(large)), calls(add, "f", (20..40).map(small))]).await;
    // Who does not read gets nobody into trouble.
    let single = call(add, "f", vec![Kind::I64(4), Kind::I64(5)], ResultType::I64);
    assert_eq!(returned(client.execute(single).await.unwrap()).0, Some(Kind::I64(9)));
    let all = read(&mut answers, 40).await;
    for (id, outcome) in all {
        let Outcome::Returned(proto::Returned { buffers, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(buffers[0].len(), if id < 20 { 3 << 20 } else { 100 });
    }
}

#[tokio::test]
async fn streams_end_for_messages_of_too_many_calls_deadlines_silence_and_shutdown() {
    let flags = ["exec.stream_calls_max=10", "server.call_streams_max=1", "server.call_stream_idle_timeout_ms=300"];
    let mut daemon = Daemon::start_with(&flags.map(|flag| ["--set", flag]).concat());
    let client = daemon.client().await;
    let ending = install(&client, flat("ending", ENDING)).await;
    // Ends without an answer to the second message, after those to the first.
    let (sender, mut answers) = client.execute_stream().await.unwrap();
    send(&sender, vec![of_one(ending, 1..11)]).await;
    send(&sender, vec![of_one(ending, 1..12)]).await;
    read(&mut answers, 10).await;
    let error = answers.next().await.unwrap_err();
    assert_eq!(error.reason(), "INVALID_FIELD", "{error}");
    assert!(error.to_string().contains("11 calls in one message, at most 10"), "{error}");
    drop((sender, answers));
    let (sender, mut answers) = until("a place for a stream", async || client.execute_stream().await.ok()).await;
    send(&sender, vec![FunctionCalls::default(); 11]).await;
    assert!(answers.next().await.unwrap_err().to_string().contains("11 calls in one message, at most 10"));
    drop((sender, answers));
    let open = async |client: &Client| until("a place for a stream", async || client.execute_stream().await.ok()).await;
    let (_sender, mut answers) = open(&client).await;
    let refused = client.execute_stream().await.unwrap_err();
    assert_eq!(refused.reason(), "SERVER_BUSY", "{refused}");
    let idle = answers.next().await.unwrap_err();
    assert!(idle.to_string().contains("nothing came or went"), "{idle}");
    drop(answers);
    let (sender, mut answers) = open(&client.with_timeout(Duration::from_millis(200))).await;
    let cpu_limit = Some(prost_types::Duration { seconds: 50, nanos: 0 });
    let endless = || FunctionCalls { cpu_limit, ..of_one(ending, [0]) };
    send(&sender, vec![endless()]).await;
    let late = answers.next().await.unwrap_err();
    assert_eq!(late.code(), Some(Code::DeadlineExceeded), "{late}");
    drop((sender, answers));
    until_quiet(&client).await;
    let (sender, mut answers) = open(&client).await;
    send(&sender, vec![of_one(ending, [3])]).await;
    assert_eq!(number(&read(&mut answers, 1).await[&3]), 6);
    daemon.terminate();
    let error = answers.next().await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Some(Code::Unavailable), "SHUTTING_DOWN"), "{error}");
    assert_eq!(daemon.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_read_while_the_arguments_of_what_waits_are_large() {
    const MESSAGES: u64 = 100;
    let daemon = Daemon::start_with(&["--set", "exec.executors=1", "--set", "server.unary_max_bytes=1 MiB"]);
    let client = daemon.client().await;
    let ending = install(&client, flat("ending", ENDING)).await;
    let (sender, mut answers) = client.execute_stream().await.unwrap();
    let cpu_limit = Some(prost_types::Duration { seconds: 50, nanos: 0 });
    send(&sender, vec![FunctionCalls { cpu_limit, ..of_one(ending, [0]) }]).await;
    let list = async || client.list_executions(ListExecutionsRequest::default()).await.unwrap().executions;
    let endless = until("it to run", async || list().await.first().map(|it| it.execution_id)).await;
    let sent = Arc::new(AtomicU64::new(0));
    let sending = tokio::spawn({
        let sent = Arc::clone(&sent);
        async move {
            for id in 1..=MESSAGES {
                let large = Kind::Bytes(vec![0; 900 << 10].into());
                send(&sender, vec![calls(ending, "f", [(id, vec![Kind::I64(id as i64), large])])]).await;
                sent.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    // What the transport holds is among them.
    let on_the_way = sent.load(Ordering::SeqCst);
    assert!(on_the_way < MESSAGES, "all {on_the_way} messages were taken in behind a call without an end");
    let cancel = proto::CancelExecutionRequest { namespace: String::new(), execution_id: endless };
    client.cancel_execution(cancel).await.unwrap();
    let all = read(&mut answers, MESSAGES as usize + 1).await;
    assert!((1..=MESSAGES).all(|id| number(&all[&id]) == 2 * id as i64));
    sending.await.unwrap();
}
