//! ListExecutions and CancelExecution: what runs now, and its end.

mod support;

use std::time::Instant;

use codecached::{
    client::Client,
    proto::{
        CancelExecutionRequest, Column, ColumnType, ExecuteBatchRequest, ExecuteRequest, Execution, ExecutionState,
        ListExecutionsRequest, ResultType, TrapKind, TrapStage, execute_batch_request,
    },
};
use support::{Daemon, call, flat, handle, trapped, until};

/// A loop that ends only when it is stopped.
const SPIN: &[u8] = &[0xeb, 0xfe];

fn limit(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn spin(entry: u64) -> ExecuteRequest {
    ExecuteRequest { cpu_limit: limit(50), ..call(entry, "f", Vec::new(), ResultType::Void) }
}

async fn list(client: &Client, namespace: &str) -> Vec<Execution> {
    let request = ListExecutionsRequest { namespace: namespace.to_owned(), ..ListExecutionsRequest::default() };
    let page = client.list_executions(request).await.unwrap();
    assert!(page.next_page_token.is_empty());
    page.executions
}

async fn until_listed(client: &Client, namespace: &str, count: usize) -> Vec<Execution> {
    until("executions to be listed", async || {
        let listed = list(client, namespace).await;
        let runs = listed.first().is_none_or(|it| it.state() == ExecutionState::Running);
        (listed.len() == count && runs).then_some(listed)
    })
    .await
}

async fn cancel(client: &Client, namespace: &str, execution_id: u64) -> Result<(), String> {
    let request = CancelExecutionRequest { namespace: namespace.to_owned(), execution_id };
    client.cancel_execution(request).await.map_err(|error| error.reason().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_and_waits_is_listed_and_ends_when_it_is_cancelled() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=1"]);
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    assert_eq!(list(&client, "").await, []);
    let start = |request: ExecuteRequest| {
        let client = client.clone();
        tokio::spawn(async move { client.execute(request).await.unwrap() })
    };
    let running = start(spin(entry));
    until_listed(&client, "", 1).await;
    let waiting = start(spin(entry));
    let [first, second] = &until_listed(&client, "", 2).await[..] else { panic!("two are listed") };
    assert_eq!((&first.key[..], first.handle, first.symbol.as_str()), (&b"spin"[..], entry, "f"));
    assert_eq!((first.state(), second.state()), (ExecutionState::Running, ExecutionState::Queued));
    assert_eq!((first.cpu_limit, first.rows), (limit(50), 0));
    assert!(first.execution_id < second.execution_id && first.age_ms >= second.age_ms);

    cancel(&client, "", second.execution_id).await.unwrap();
    let trap = trapped(waiting.await.unwrap());
    assert_eq!((trap.kind(), trap.stage(), trap.signal), (TrapKind::Cancelled, TrapStage::Waiting, 0));
    assert_eq!(cancel(&client, "", second.execution_id).await, Err("EXECUTION_NOT_FOUND".to_owned()));
    assert!(!running.is_finished());
    cancel(&client, "", first.execution_id).await.unwrap();
    let trap = trapped(running.await.unwrap());
    assert_eq!((trap.kind(), trap.stage(), trap.symbol.as_str()), (TrapKind::Cancelled, TrapStage::Call, "f"));
    assert_eq!(list(&client, "").await, []);
    for absent in [0, first.execution_id, u64::MAX] {
        assert_eq!(cancel(&client, "", absent).await, Err("EXECUTION_NOT_FOUND".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn executions_of_other_namespaces_are_neither_shown_nor_stopped() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=2"]);
    let client = daemon.client().await;
    let install = codecached::proto::InstallRequest { namespace: "ours".to_owned(), ..flat("spin", SPIN) };
    let entry = handle(&client.install(install).await.unwrap());
    let request = ExecuteRequest { namespace: "ours".to_owned(), ..spin(entry) };
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.execute(request).await.unwrap() }
    });
    let id = until_listed(&client, "ours", 1).await[0].execution_id;
    for foreign in ["", "theirs"] {
        assert_eq!(list(&client, foreign).await, []);
        assert_eq!(cancel(&client, foreign, id).await, Err("EXECUTION_NOT_FOUND".to_owned()));
    }
    assert_eq!(cancel(&client, "NO", id).await, Err("INVALID_FIELD".to_owned()));
    assert_eq!(list(&client, "ours").await.len(), 1, "it still runs");
    cancel(&client, "ours", id).await.unwrap();
    assert_eq!(trapped(running.await.unwrap()).kind(), TrapKind::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_pages_and_batches_show_their_rows() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=1"]);
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    let column = Column { r#type: ColumnType::I32.into(), values: vec![0; 4].into() };
    let batch = ExecuteBatchRequest {
        target: Some(execute_batch_request::Target::Handle(entry)),
        symbol: "f".to_owned(),
        rows: 77,
        columns: vec![column],
        cpu_limit: limit(50),
        ..ExecuteBatchRequest::default()
    };
    // One after the other: of some at once the one that runs need not be the first of the list.
    let (mut tasks, mut all) = (Vec::new(), Vec::new());
    for count in 1..=5 {
        let (client, batch) = (client.clone(), batch.clone());
        tasks.push(tokio::spawn({
            let client = client.clone();
            async move { client.execute_batch(batch).await.unwrap() }
        }));
        all = until_listed(&client, "", count).await;
    }
    assert!(all.iter().all(|it| it.rows == 77));
    let mut request = ListExecutionsRequest { page_size: 2, ..ListExecutionsRequest::default() };
    let mut ids = Vec::new();
    let mut sizes = Vec::new();
    loop {
        let page = client.list_executions(request.clone()).await.unwrap();
        sizes.push(page.executions.len());
        ids.extend(page.executions.iter().map(|it| it.execution_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!((sizes, &ids), (vec![2, 2, 1], &all.iter().map(|it| it.execution_id).collect()));
    for bad in [
        ListExecutionsRequest { page_size: 1001, ..ListExecutionsRequest::default() },
        ListExecutionsRequest { page_token: b"x"[..].into(), ..ListExecutionsRequest::default() },
        ListExecutionsRequest { page_token: b"123456789"[..].into(), ..ListExecutionsRequest::default() },
    ] {
        assert_eq!(client.list_executions(bad).await.unwrap_err().reason(), "INVALID_FIELD");
    }
    // The younger first, so that none of them runs meanwhile.
    for id in ids.iter().rev() {
        let started = Instant::now();
        cancel(&client, "", *id).await.unwrap();
        assert!(started.elapsed() < support::PATIENCE);
    }
    for task in tasks {
        let answer = task.await.unwrap();
        assert_eq!((answer.rows, answer.trap.unwrap().kind()), (0, TrapKind::Cancelled));
    }
}
