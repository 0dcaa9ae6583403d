//! ExecuteBatch: one function over columns, through the built daemon.

mod support;

use std::time::Duration;

use codecached::{
    client::{Client, ClientError},
    proto::{
        self, Column, ColumnType, ExecuteBatchRequest, ExecuteBatchResponse, InstallRequest, ResultType, TrapKind,
        execute_batch_request::Target, value::Kind,
    },
};
use support::{Daemon, call, elf, flat, handle, returned, until};
use tonic::Code;

/// `long f(long a, long b) { return a + b; }`
const ADD: &[u8] = &[0x48, 0x8d, 0x04, 0x37, 0xc3];
/// `long f(long a)`: twice that; an invalid instruction for 0.
const NONZERO: &[u8] = &[0x48, 0x85, 0xff, 0x74, 0x05, 0x48, 0x8d, 0x04, 0x3f, 0xc3, 0x0f, 0x0b];
/// `long f(long a)`: twice that; no end for 0.
const ENDING: &[u8] = &[0x48, 0x85, 0xff, 0x74, 0x05, 0x48, 0x8d, 0x04, 0x3f, 0xc3, 0xeb, 0xfe];

fn i64s(values: impl IntoIterator<Item = i64>) -> Column {
    let values: Vec<u8> = values.into_iter().flat_map(i64::to_le_bytes).collect();
    Column { r#type: ColumnType::I64.into(), values: values.into() }
}

fn numbers(column: &Column) -> Vec<i64> {
    assert_eq!(column.r#type(), ColumnType::I64);
    column.values.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn batch(handle: u64, symbol: &str, rows: u64, columns: Vec<Column>) -> ExecuteBatchRequest {
    ExecuteBatchRequest {
        target: Some(Target::Handle(handle)),
        symbol: symbol.to_owned(),
        rows,
        columns,
        result: ResultType::I64.into(),
        ..ExecuteBatchRequest::default()
    }
}

fn whole(answer: ExecuteBatchResponse) -> Vec<i64> {
    assert_eq!(answer.trap, None);
    let results = numbers(&answer.results.unwrap());
    assert_eq!(results.len() as u64, answer.rows);
    results
}

async fn install(client: &Client, request: InstallRequest) -> u64 {
    handle(&client.install(request).await.unwrap())
}

#[track_caller]
fn refused(answer: Result<ExecuteBatchResponse, ClientError>, code: Code, reason: &str, needle: &str) {
    let error = answer.expect_err("should have been refused");
    assert_eq!((error.code(), error.reason()), (Some(code), reason), "{error}");
    assert!(error.to_string().contains(needle), "{error} does not say {needle}");
}

#[tokio::test]
async fn columns_go_in_and_a_column_comes_back() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let add = install(&client, flat("add", ADD)).await;
    for rows in [0, 1, 3, 100_000] {
        let sums =
            whole(client.execute_batch(batch(add, "f", rows as u64, vec![i64s(0..rows), i64s([7])])).await.unwrap());
        assert!(sums.into_iter().eq(7..rows + 7), "{rows} rows");
    }
    let by_key = ExecuteBatchRequest {
        target: Some(Target::Key("add".into())),
        ..batch(0, "f", 2, vec![i64s([1, 2]), i64s([10, 20])])
    };
    assert_eq!(whole(client.execute_batch(by_key).await.unwrap()), [11, 22]);
    let without =
        ExecuteBatchRequest { result: ResultType::Void.into(), ..batch(add, "f", 5, vec![i64s([1]), i64s([2])]) };
    let answer = client.execute_batch(without).await.unwrap();
    assert_eq!((answer.rows, answer.results, answer.trap), (5, None, None));
}

#[tokio::test]
async fn columns_that_make_no_batch_are_refused_with_their_number() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let declared = proto::SignatureDeclaration {
        form: Some(proto::signature_declaration::Form::Text("i64 f(i64, i64)".to_owned())),
        ..proto::SignatureDeclaration::default()
    };
    let add = install(&client, InstallRequest { signatures: vec![declared], ..flat("add", ADD) }).await;
    let column = |kind: ColumnType, bytes: usize| Column { r#type: kind.into(), values: vec![0; bytes].into() };
    let cases = [
        (2, vec![i64s([1, 2]), i64s([1, 2, 3])], "columns: column 1 has 24 bytes, must have 16"),
        (2, vec![column(ColumnType::I64, 15), i64s([1])], "column 0 has 15 bytes"),
        (2, vec![column(ColumnType::Unspecified, 16), i64s([1])], "column 0 has no type"),
        (2, vec![i64s([1]), Column { r#type: 77, values: vec![0; 8].into() }], "column 1 is of no type"),
        (2, vec![i64s([1]); 17], "17 arguments, at most 16"),
        (4 << 20 | 1, vec![i64s([1]), i64s([1])], "rows: 4194305 rows, at most 4194304"),
        (u64::MAX, vec![i64s([1]), i64s([1])], "rows: 18446744073709551615 rows"),
        (1 << 20, vec![i64s([1]), i64s([1])], "rows: their results have 8388608 bytes, at most 4194304"),
        (2, vec![i64s([1]), column(ColumnType::F64, 8)], "argument 1 of f is f64, must be i64"),
        (2, vec![i64s([1])], "f takes 2 arguments, 1 are given"),
    ];
    for (rows, columns, needle) in cases {
        let answer = client.execute_batch(batch(add, "f", rows, columns)).await;
        refused(answer, Code::InvalidArgument, "INVALID_FIELD", needle);
    }
    let columns = || vec![i64s([1]), i64s([1])];
    let absent = client.execute_batch(batch(add, "g", 1, columns())).await;
    refused(absent, Code::NotFound, "SYMBOL_NOT_FOUND", "no function \"g\"");
    let stale = client.execute_batch(batch(add ^ 1 << 40, "f", 1, columns())).await;
    refused(stale, Code::NotFound, "STALE_HANDLE", "look its key up");
    let foreign = ExecuteBatchRequest { namespace: "other".to_owned(), ..batch(add, "f", 1, columns()) };
    refused(client.execute_batch(foreign).await, Code::NotFound, "STALE_HANDLE", "namespace other");
}

#[tokio::test]
async fn a_trap_names_its_row_and_the_rows_before_it_come_back() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let nonzero = install(&client, flat("nonzero", NONZERO)).await;
    for faulting in [0, 1, 500, 999] {
        let columns = vec![i64s((0..1000).map(|row| row - faulting))];
        let answer = client.execute_batch(batch(nonzero, "f", 1000, columns)).await.unwrap();
        let trap = answer.trap.unwrap();
        assert_eq!((answer.rows as i64, trap.kind()), (faulting, TrapKind::Ill));
        assert_eq!((trap.symbol.as_str(), trap.offset_bytes, trap.instruction.as_str()), ("f", 10, "ud2"));
        assert!(numbers(&answer.results.unwrap()).into_iter().eq((0..faulting).map(|row| 2 * (row - faulting))));
    }
    let answer = client.execute_batch(batch(nonzero, "f", 1000, vec![i64s([0])])).await.unwrap();
    assert_eq!((answer.rows, answer.trap.map(|trap| trap.kind())), (0, Some(TrapKind::Ill)), "every row would");
}

#[tokio::test]
async fn limits_hold_for_all_rows_together_and_a_client_that_leaves_stops_them() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=1"]);
    let client = daemon.client().await;
    let ending = install(&client, flat("ending", ENDING)).await;
    let request = move |seconds| ExecuteBatchRequest {
        cpu_limit: Some(prost_types::Duration { seconds, nanos: 5_000_000 }),
        ..batch(ending, "f", 10, vec![i64s((0..10).map(|row| row - 6))])
    };
    let answer = client.execute_batch(request(0)).await.unwrap();
    assert_eq!((answer.rows, answer.trap.map(|trap| trap.kind())), (6, Some(TrapKind::Timeout)));
    let error = client.with_timeout(Duration::from_millis(200)).execute_batch(request(30)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::DeadlineExceeded), "{error}");
    let leaving = tokio::spawn({
        let client = client.clone();
        async move { client.execute_batch(request(30)).await }
    });
    let running = async || client.status().await.unwrap().executors.unwrap().running;
    until("it to run", async || (running().await == 1).then_some(())).await;
    leaving.abort();
    until("it to be stopped", async || (running().await == 0).then_some(())).await;
}

#[tokio::test]
async fn writable_data_lives_from_row_to_row_and_is_restored_after_a_trap() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let counter = install(&client, elf("counter", support::compile("counter.c"))).await;
    let u32s = |request: ExecuteBatchRequest| ExecuteBatchRequest { result: ResultType::U32.into(), ..request };
    let next = async |rows| {
        let answer = client.execute_batch(u32s(batch(counter, "next", rows, vec![]))).await.unwrap();
        assert_eq!(answer.trap, None);
        let values = answer.results.unwrap().values;
        values.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(next(3).await, [101, 102, 103]);
    assert_eq!(next(2).await, [104, 105]);
    let spoilt = client.execute_batch(u32s(batch(counter, "spoil_and_fault", 3, vec![]))).await.unwrap();
    assert_eq!((spoilt.rows, spoilt.trap.unwrap().kind()), (0, TrapKind::Segv));
    assert_eq!(next(2).await, [101, 102]);
    // Batches and calls at once take turns: none is lost.
    let rounds = Column { r#type: ColumnType::U32.into(), values: 200_u32.to_le_bytes().to_vec().into() };
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (client, request) = (client.clone(), u32s(batch(counter, "slow_next", 50, vec![rounds.clone()])));
            tokio::spawn(async move {
                assert_eq!(client.execute_batch(request).await.unwrap().trap, None);
                let single = call(counter, "slow_next", vec![Kind::U32(200)], ResultType::U32);
                client.execute(single).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(next(1).await, [102 + 4 * 51 + 1]);
}

#[tokio::test]
async fn what_must_run_before_the_first_call_runs_before_the_first_row() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let entry = install(&client, elf("initialisers", support::compile("initialisers.c"))).await;
    let request = ExecuteBatchRequest { result: ResultType::I32.into(), ..batch(entry, "digits", 2, vec![]) };
    let answer = client.execute_batch(request).await.unwrap();
    assert_eq!(
        answer.results.unwrap().values,
        [123_i32, 123].iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>()
    );
    let single = client.execute(call(entry, "digits", vec![], ResultType::I32)).await.unwrap();
    assert_eq!(returned(single).0, Some(Kind::I32(123)));
}
