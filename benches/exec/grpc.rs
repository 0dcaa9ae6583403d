//! Batches and streams of calls through gRPC: the built daemon on a unix socket, and a client in this process, over one
//! connection. Both share the cores, so a figure is that of the pair.

use std::{
    error::Error,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Instant,
};

use codecached::{
    client::{CallAnswers, Client},
    proto::{
        BlobFormat, Column, ColumnType, ExecuteBatchRequest, FlatEntry, FunctionCalls, InstallRequest, ResultType,
        StreamCall, Value, execute_batch_request, function_calls, stream_answer::Outcome, value::Kind,
    },
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{ADD, ROUNDS, aim, quantile, value};

/// Rows of a request: two columns of a MiB, within the usual limit of a message.
const ROWS: usize = 1 << 17;
/// Requests of a round, and in flight.
const BATCHES: usize = 64;
const BATCHES_IN_FLIGHT: usize = 4;
/// Calls of a message, messages of a round, and how many of them may be unanswered.
const CALLS: u64 = 512;
const MESSAGES: u64 = 1000;
const MESSAGES_UNANSWERED: u64 = 6;

/// Per second, through one connection.
const AIM_ROWS: f64 = 20e6;
const AIM_CALLS: f64 = 1e6;

/// Runs all of it. `peer` is the output of a harness of peers.
pub(super) fn all(runtime: &Runtime, peer: &str) -> Result<(), Box<dyn Error>> {
    let daemon = Daemon::start()?;
    runtime.block_on(async {
        let client = Client::connect(&daemon.address).await?;
        let entry = FlatEntry { name: "f".to_owned(), offset_bytes: 0 };
        let install = InstallRequest {
            key: "add".into(),
            blob: ADD.to_vec().into(),
            format: BlobFormat::Flat.into(),
            flat_entries: vec![entry],
            ..InstallRequest::default()
        };
        let handle = client.install(install).await?.entry.ok_or("no entry")?.handle;
        batches(&client, handle).await?;
        calls(&client, handle, peer).await
    })
}

/// A daemon of the same build. Ended on drop.
struct Daemon {
    child: Child,
    address: String,
    _directory: TempDir,
}

impl Daemon {
    fn start() -> Result<Self, Box<dyn Error>> {
        let directory = tempfile::tempdir()?;
        let address = format!("unix:{}", directory.path().join("s").display());
        let child = Command::new(env!("CARGO_BIN_EXE_codecached"))
            .args(["serve", "--metrics", "off", "--log-format", "json", "--listen", &address])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut daemon = Self { child, address, _directory: directory };
        let log = BufReader::new(daemon.child.stderr.take().ok_or("no log")?);
        // The log says little more: the pipe holds it.
        let ready = log.lines().map_while(Result::ok).any(|line| line.contains("\"ready\""));
        if ready { Ok(daemon) } else { Err("the daemon did not start".into()) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Rows per second, some requests in flight.
async fn batches(client: &Client, handle: u64) -> Result<(), Box<dyn Error>> {
    let column = || {
        let values: Vec<u8> = (0..ROWS as i64).flat_map(i64::to_le_bytes).collect();
        Column { r#type: ColumnType::I64.into(), values: values.into() }
    };
    let request = ExecuteBatchRequest {
        target: Some(execute_batch_request::Target::Handle(handle)),
        symbol: "f".to_owned(),
        rows: ROWS as u64,
        columns: vec![column(), column()],
        result: ResultType::I64.into(),
        ..ExecuteBatchRequest::default()
    };
    let (mut rates, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let tasks: Vec<_> =
            (0..BATCHES_IN_FLIGHT).map(|_| tokio::spawn(some(client.clone(), request.clone()))).collect();
        let mut wall_ns = 0;
        for task in tasks {
            wall_ns += task.await??;
        }
        let took = start.elapsed().as_secs_f64();
        rates.push((BATCHES * ROWS) as f64 / took);
        shares.push(wall_ns as f64 / (BATCHES * ROWS) as f64);
    }
    let rate = quantile(&mut rates, 0.5);
    println!("exec.grpc.batch.add_i64 {:.2} Mrows/s", rate / 1e6);
    println!("exec.grpc.batch.add_i64_row {:.1} ns", 1e9 / rate);
    println!("exec.grpc.batch.add_i64_row_on_executor {:.1} ns", quantile(&mut shares, 0.5));
    aim("grpc_batch_add_i64_mrows", rate / 1e6, AIM_ROWS / 1e6, rate >= AIM_ROWS);
    Ok(())
}

/// One after the other; nanoseconds on executors.
async fn some(client: Client, request: ExecuteBatchRequest) -> Result<u64, codecached::client::ClientError> {
    let mut wall_ns = 0;
    for _ in 0..BATCHES / BATCHES_IN_FLIGHT {
        let answer = client.execute_batch(request.clone()).await?;
        let sums = answer.results.unwrap_or_default().values;
        let last = (2 * (ROWS as i64 - 1)).to_le_bytes();
        assert!(answer.rows as usize == ROWS && sums.len() == 8 * ROWS && sums.ends_with(&last), "right sums");
        wall_ns += answer.wall_ns;
    }
    Ok(wall_ns)
}

/// Calls per second of a stream that always has some messages under way.
async fn calls(client: &Client, handle: u64, peer: &str) -> Result<(), Box<dyn Error>> {
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let (sender, mut answers) = client.execute_stream().await?;
        let (answered, mut unanswered) = tokio::sync::mpsc::unbounded_channel::<()>();
        let start = Instant::now();
        let sending = tokio::spawn(async move {
            for message in 0..MESSAGES {
                if message >= MESSAGES_UNANSWERED {
                    unanswered.recv().await;
                }
                sender.send(vec![message_of(handle, message)]).await;
            }
        });
        let mut count = 0;
        while count < MESSAGES * CALLS {
            let before = count / CALLS;
            count += read(&mut answers).await?;
            (before..count / CALLS).for_each(|_| answered.send(()).unwrap_or_default());
        }
        rates.push(count as f64 / start.elapsed().as_secs_f64());
        sending.await?;
    }
    let rate = quantile(&mut rates, 0.5);
    println!("exec.grpc.stream.calls {:.3} Mcalls/s", rate / 1e6);
    aim("grpc_stream_mcalls", rate / 1e6, AIM_CALLS / 1e6, rate >= AIM_CALLS);
    if let Some(theirs) = value(peer, "redis.uds.evalsha_50conn_pipeline16.throughput") {
        println!("exec.ratio.grpc_stream_to_redis_evalsha_pipeline16 {:.2} x", rate / theirs);
    }
    Ok(())
}

fn message_of(handle: u64, message: u64) -> FunctionCalls {
    let value = |number| Value { kind: Some(Kind::I64(number)) };
    let call = |call_id: u64| StreamCall { call_id, arguments: vec![value(call_id as i64), value(1)] };
    FunctionCalls {
        target: Some(function_calls::Target::Handle(handle)),
        symbol: "f".to_owned(),
        result: ResultType::I64.into(),
        calls: (message * CALLS..(message + 1) * CALLS).map(call).collect(),
        ..FunctionCalls::default()
    }
}

/// How many answers a message had, all of them right.
async fn read(answers: &mut CallAnswers) -> Result<u64, Box<dyn Error>> {
    let some = answers.next().await?.ok_or("the stream ended")?;
    for answer in &some {
        let sum = Some(Value { kind: Some(Kind::I64(answer.call_id as i64 + 1)) });
        let is_right = matches!(&answer.outcome, Some(Outcome::Returned(returned)) if returned.value == sum);
        assert!(is_right, "{answer:?}");
    }
    Ok(some.len() as u64)
}
