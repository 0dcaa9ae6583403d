//! Namespaces that share a daemon: what one does, another must not feel.

mod support;

use std::time::Duration;

use codecached::{
    client::Client,
    proto::{
        Column, ColumnType, ExecuteBatchRequest, ExecuteRequest, FunctionCalls, InstallRequest, ListExecutionsRequest,
        Priority, ResultType, StreamCall, TrapKind, execute_batch_request, function_calls, stream_answer, value::Kind,
    },
};
use support::{ADD, Daemon, PATIENCE, call, flat, handle, returned, trapped, until};
use tokio::task::JoinHandle;
use tonic::Code;

/// A loop that ends only when it is stopped.
const SPIN: &[u8] = &[0xeb, 0xfe];

fn of(namespace: &str, request: InstallRequest) -> InstallRequest {
    InstallRequest { namespace: namespace.to_owned(), ..request }
}

async fn install(client: &Client, namespace: &str, code: &[u8]) -> u64 {
    handle(&client.install(of(namespace, flat("code", code))).await.unwrap())
}

fn request(namespace: &str, entry: u64, limit_ms: u64) -> ExecuteRequest {
    let limit = Duration::from_millis(limit_ms);
    ExecuteRequest {
        namespace: namespace.to_owned(),
        cpu_limit: Some(limit.try_into().unwrap()),
        ..call(entry, "f", vec![Kind::I32(2), Kind::I32(3)], ResultType::I32)
    }
}

/// A batch of two rows.
fn batch(namespace: &str, entry: u64) -> ExecuteBatchRequest {
    let column = |value: i32| Column { r#type: ColumnType::I32.into(), values: value.to_le_bytes().to_vec().into() };
    ExecuteBatchRequest {
        namespace: namespace.to_owned(),
        target: Some(execute_batch_request::Target::Handle(entry)),
        symbol: "f".to_owned(),
        rows: 2,
        columns: vec![column(2), column(3)],
        result: ResultType::I32.into(),
        ..ExecuteBatchRequest::default()
    }
}

fn spinning(client: &Client, namespace: &'static str, entry: u64, limit_ms: u64) -> JoinHandle<()> {
    let client = client.clone();
    tokio::spawn(async move {
        let answer = client.with_timeout(Duration::from_secs(120)).execute(request(namespace, entry, limit_ms)).await;
        assert_eq!(trapped(answer.unwrap()).kind(), TrapKind::Timeout);
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_with_long_calls_does_not_hold_up_another() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=2"]);
    let client = daemon.client().await;
    let slow = install(&client, "slow", SPIN).await;
    let fast = install(&client, "fast", ADD).await;
    let spins: Vec<_> = (0..8).map(|_| spinning(&client, "slow", slow, 1000)).collect();
    until("both executors to be held", async || {
        let executors = client.status().await.unwrap().executors.unwrap();
        (executors.running == 2 && executors.queued == 6 && executors.namespaces_queued == 1).then_some(())
    })
    .await;
    for _ in 0..100 {
        let answer = client.execute(request("fast", fast, 1000)).await.unwrap();
        assert_eq!(returned(answer).0, Some(Kind::I32(5)));
    }
    let executors = client.status().await.unwrap().executors.unwrap();
    assert!(executors.queued > 0, "the others would have ended first: {executors:?}");
    for spin in spins {
        spin.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_long_calls_gives_way_to_calls_and_batches_of_another_namespace() {
    const CALLS: u64 = 100;
    let daemon = Daemon::start_with(&["--set", "exec.executors=1", "--set", "exec.spare_executors=0"]);
    let client = daemon.client().await;
    let slow = install(&client, "slow", SPIN).await;
    let fast = install(&client, "fast", ADD).await;
    let (sender, mut answers) = client.execute_stream().await.unwrap();
    let functions = FunctionCalls {
        namespace: "slow".to_owned(),
        target: Some(function_calls::Target::Handle(slow)),
        symbol: "f".to_owned(),
        result: ResultType::Void.into(),
        cpu_limit: Some(Duration::from_millis(20).try_into().unwrap()),
        calls: (0..CALLS).map(|call_id| StreamCall { call_id, arguments: vec![] }).collect(),
        ..FunctionCalls::default()
    };
    assert!(sender.send(vec![functions]).await);
    until("it to run", async || (client.status().await.unwrap().executors.unwrap().running == 1).then_some(())).await;
    for _ in 0..10 {
        assert_eq!(returned(client.execute(request("fast", fast, 1000)).await.unwrap()).0, Some(Kind::I32(5)));
        let batch = client.execute_batch(batch("fast", fast)).await.unwrap();
        assert_eq!((batch.rows, batch.trap), (2, None));
    }
    let slow = ListExecutionsRequest { namespace: "slow".to_owned(), ..ListExecutionsRequest::default() };
    let left = client.list_executions(slow).await.unwrap().executions;
    assert!(!left.is_empty(), "all calls of the stream came before them");
    let mut ended = 0;
    while ended < CALLS {
        let some = tokio::time::timeout(PATIENCE, answers.next()).await.expect("an answer in time").unwrap().unwrap();
        for answer in &some {
            let is_timeout = |it: &stream_answer::Outcome| matches!(it, stream_answer::Outcome::Trap(trap) if trap.kind() == TrapKind::Timeout);
            assert!(answer.outcome.as_ref().is_some_and(is_timeout), "{answer:?}");
        }
        ended += some.len() as u64;
    }
    assert_eq!(ended, CALLS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_whose_queue_is_full_is_told_which_bound_it_met_and_others_have_room() {
    let flags = ["--set", "exec.executors=1", "--set", "exec.queue_max=9", "--set", "exec.queue_namespace_max=2"];
    let daemon = Daemon::start_with(&flags);
    let client = daemon.client().await;
    let slow = install(&client, "slow", SPIN).await;
    let fast = install(&client, "fast", ADD).await;
    let mut spins = vec![spinning(&client, "slow", slow, 1500)];
    until("it to run", async || (client.status().await.unwrap().executors.unwrap().running == 1).then_some(())).await;
    spins.extend((0..2).map(|_| spinning(&client, "slow", slow, 100)));
    until("the queue of the namespace to be full", async || {
        (client.status().await.unwrap().executors.unwrap().queued == 2).then_some(())
    })
    .await;
    let error = client.execute(request("slow", slow, 1000)).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Some(Code::ResourceExhausted), "EXECUTORS_SATURATED"));
    assert!(error.to_string().contains("2 calls of this namespace wait already"), "{error}");
    assert!(error.retry_delay().is_some());
    let error = client.execute_batch(batch("slow", slow)).await.unwrap_err();
    assert_eq!(error.reason(), "EXECUTORS_SATURATED", "a batch has no place of its own: {error}");
    let answer = client.execute(request("fast", fast, 1000)).await.unwrap();
    assert_eq!(returned(answer).0, Some(Kind::I32(5)));
    for spin in spins {
        spin.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_orders_the_waiting_calls_and_one_that_is_none_is_refused() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=1"]);
    let client = daemon.client().await;
    let entry = install(&client, "n", SPIN).await;
    let first = spinning(&client, "n", entry, 1000);
    let executors = async || client.status().await.unwrap().executors.unwrap();
    until("it to run", async || (executors().await.running == 1).then_some(())).await;
    let (ended, mut order) = tokio::sync::mpsc::unbounded_channel();
    for (waiting, priority) in [Priority::Low, Priority::Normal, Priority::High].into_iter().enumerate() {
        let (client, ended) = (client.with_timeout(Duration::from_secs(120)), ended.clone());
        tokio::spawn(async move {
            let request = ExecuteRequest { priority: priority.into(), ..request("n", entry, 20) };
            client.execute(request).await.unwrap();
            ended.send(priority).unwrap();
        });
        until("it to wait", async || (executors().await.queued as usize > waiting).then_some(())).await;
    }
    first.await.unwrap();
    let order = [order.recv().await, order.recv().await, order.recv().await];
    assert_eq!(order, [Some(Priority::High), Some(Priority::Normal), Some(Priority::Low)]);
    let error = client.execute(ExecuteRequest { priority: 77, ..request("n", entry, 20) }).await.unwrap_err();
    assert_eq!(error.reason(), "INVALID_FIELD", "{error}");
    assert!(error.to_string().contains("priority"), "{error}");
}
