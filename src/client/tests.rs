//! The client against a daemon that answers from a script, over a real socket.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{TcpListenerStream, UnixListenerStream},
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    transport::{Server, server::Connected},
};
use tonic_types::{ErrorDetails, StatusExt};
use tower::Service;

use super::*;
use crate::proto::{
    CancelExecutionResponse, ExecuteStreamRequest, ExecuteStreamResponse, FunctionCalls, InstallRequest,
    InstallResponse, InstallStreamRequest, InstallStreamResponse, Limits, Returned, StreamAnswer, StreamCall, Value,
    code_cache_service_server::{CodeCacheService, CodeCacheServiceServer},
    execute_response::Outcome,
    execution_service_server::{ExecutionService, ExecutionServiceServer},
    install_stream_request::Part,
    value::Kind,
};

/// Answers each call with the next failure of the script, and well once there is none.
#[derive(Clone, Default)]
struct Fake {
    failures: Arc<Mutex<VecDeque<Status>>>,
    calls: Arc<Mutex<Vec<&'static str>>>,
    /// Bytes of the one buffer that Execute answers.
    buffer_bytes: usize,
    limits: Limits,
    /// Bytes of each message that InstallStream got: declared ones for the header.
    parts: Arc<Mutex<Vec<u64>>>,
    /// Neither answers nor ends.
    silent: bool,
}

impl Fake {
    fn failing(failures: impl IntoIterator<Item = Status>) -> Self {
        Self { failures: Arc::new(Mutex::new(failures.into_iter().collect())), ..Self::default() }
    }

    async fn answer<R: Default>(&self, rpc: &'static str) -> Result<Response<R>, Status> {
        self.calls.lock().unwrap().push(rpc);
        if self.silent {
            std::future::pending::<()>().await;
        }
        let failure = self.failures.lock().unwrap().pop_front();
        failure.map_or_else(|| Ok(Response::new(R::default())), Err)
    }

    fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    async fn client(&self, directory: &Path) -> Client {
        let path = directory.join("a socket");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(self.clone().serve(UnixListenerStream::new(listener)));
        Client::connect(&format!("unix:{}", path.display())).await.unwrap()
    }

    /// Serves both services until it is dropped.
    async fn serve<IO>(self, incoming: impl Stream<Item = io::Result<IO>>)
    where
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let route = tower::service_fn(move |request: http::Request<Body>| {
            let fake = self.clone();
            async move {
                if request.uri().path().contains("ExecutionService") {
                    ExecutionServiceServer::new(fake).call(request).await
                } else {
                    CodeCacheServiceServer::new(fake).call(request).await
                }
            }
        });
        Server::builder().serve_with_incoming(route, incoming).await.unwrap();
    }
}

#[tonic::async_trait]
impl CodeCacheService for Fake {
    async fn get_capabilities(
        &self,
        _: Request<GetCapabilitiesRequest>,
    ) -> Result<Response<GetCapabilitiesResponse>, Status> {
        let answer: Response<GetCapabilitiesResponse> = self.answer("capabilities").await?;
        Ok(answer.map(|answer| GetCapabilitiesResponse { limits: Some(self.limits), ..answer }))
    }
    async fn install(&self, _: Request<InstallRequest>) -> Result<Response<InstallResponse>, Status> {
        self.answer("install").await
    }
    async fn install_stream(
        &self,
        request: Request<Streaming<InstallStreamRequest>>,
    ) -> Result<Response<InstallStreamResponse>, Status> {
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            self.parts.lock().unwrap().push(match message.part.unwrap() {
                Part::Header(header) => {
                    assert_eq!(header.install.unwrap().blob.len(), 0);
                    header.blob_bytes
                }
                Part::Chunk(chunk) => chunk.len() as u64,
            });
        }
        self.answer("install_stream").await
    }
    async fn lookup(&self, _: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        self.answer("lookup").await
    }
    async fn evict(&self, _: Request<EvictRequest>) -> Result<Response<EvictResponse>, Status> {
        self.answer("evict").await
    }
    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        self.answer("list").await
    }
    async fn disassemble(&self, _: Request<DisassembleRequest>) -> Result<Response<DisassembleResponse>, Status> {
        self.answer("disassemble").await
    }
}

#[tonic::async_trait]
impl ExecutionService for Fake {
    async fn execute(&self, _: Request<ExecuteRequest>) -> Result<Response<ExecuteResponse>, Status> {
        let answer: Response<ExecuteResponse> = self.answer("execute").await?;
        let returned = Returned {
            value: Some(Value { kind: Some(Kind::U32(7)) }),
            buffers: vec![Bytes::from(vec![1; self.buffer_bytes])],
        };
        Ok(answer.map(|answer| ExecuteResponse { outcome: Some(Outcome::Returned(returned)), ..answer }))
    }
    async fn execute_batch(&self, _: Request<ExecuteBatchRequest>) -> Result<Response<ExecuteBatchResponse>, Status> {
        self.answer("execute_batch").await
    }
    type ExecuteStreamStream = Pin<Box<dyn Stream<Item = Result<ExecuteStreamResponse, Status>> + Send>>;
    /// One answer for each message, until the first empty one, which ends the stream by the next failure of the script.
    async fn execute_stream(
        &self,
        request: Request<Streaming<ExecuteStreamRequest>>,
    ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
        let fake = self.clone();
        let answers = request.into_inner().map(move |message| {
            let calls = message?.functions.into_iter().flat_map(|it| it.calls);
            let answers: Vec<_> =
                calls.map(|it| StreamAnswer { call_id: it.call_id, ..StreamAnswer::default() }).collect();
            let failure = if answers.is_empty() { fake.failures.lock().unwrap().pop_front() } else { None };
            failure.map_or(Ok(ExecuteStreamResponse { answers }), Err)
        });
        Ok(Response::new(Box::pin(answers)))
    }
    async fn list_executions(
        &self,
        _: Request<ListExecutionsRequest>,
    ) -> Result<Response<ListExecutionsResponse>, Status> {
        self.answer("list_executions").await
    }
    async fn cancel_execution(
        &self,
        _: Request<CancelExecutionRequest>,
    ) -> Result<Response<CancelExecutionResponse>, Status> {
        self.answer("cancel_execution").await
    }
}

fn unavailable() -> Status {
    Status::unavailable("draining")
}

#[tokio::test]
async fn calls_that_may_be_repeated_are_repeated_while_the_daemon_is_unavailable() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let client = fake.client(directory.path()).await;
    let fail_thrice = || fake.failures.lock().unwrap().extend([unavailable(), unavailable(), unavailable()]);
    fail_thrice();
    client.install(InstallRequest::default()).await.unwrap();
    fail_thrice();
    client.lookup(LookupRequest::default()).await.unwrap();
    fail_thrice();
    client.list(ListRequest::default()).await.unwrap();
    fail_thrice();
    client.capabilities().await.unwrap();
    let expected = ["install", "lookup", "list", "capabilities"].map(|rpc| [rpc; 4]);
    assert_eq!(fake.calls(), expected.as_flattened());
}

#[tokio::test]
async fn a_stream_is_sent_to_and_read_from_at_once_and_ends_with_its_sender_or_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::failing([unavailable()]);
    let client = fake.client(directory.path()).await;
    let call = |call_id| StreamCall { call_id, arguments: vec![] };
    let calls =
        |ids: std::ops::Range<u64>| vec![FunctionCalls { calls: ids.map(call).collect(), ..FunctionCalls::default() }];
    let (sender, mut answers) = client.execute_stream().await.unwrap();
    for round in 0..20 {
        assert!(sender.send(calls(round..round + 3)).await);
        let some = answers.next().await.unwrap().unwrap();
        assert!(some.iter().map(|it| it.call_id).eq(round..round + 3));
    }
    drop(sender);
    assert!(answers.next().await.unwrap().is_none());
    let (sender, mut answers) = client.execute_stream().await.unwrap();
    assert!(sender.send(vec![]).await);
    assert_eq!(answers.next().await.unwrap_err().code(), Some(Code::Unavailable));
    let gone = async { while sender.send(calls(0..1)).await {} };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("a stream that is over takes no calls");
}

#[tokio::test]
async fn what_acts_is_tried_once() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::failing([unavailable(), unavailable()]);
    let client = fake.client(directory.path()).await;
    assert!(client.execute_batch(ExecuteBatchRequest::default()).await.unwrap_err().is_unavailable());
    assert!(client.cancel_execution(CancelExecutionRequest::default()).await.unwrap_err().is_unavailable());
    client.list_executions(ListExecutionsRequest::default()).await.unwrap();
    assert_eq!(fake.calls(), ["execute_batch", "cancel_execution", "list_executions"]);
}

fn blob(bytes: usize) -> InstallRequest {
    InstallRequest { blob: vec![7; bytes].into(), ..InstallRequest::default() }
}

#[tokio::test]
async fn a_blob_that_no_message_holds_goes_in_chunks_and_the_limits_are_asked_for_once() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { unary_max_bytes: 8000, stream_chunk_max_bytes: 5000, ..Limits::default() };
    let fake = Fake { limits, ..Fake::default() };
    let client = fake.client(directory.path()).await;
    client.install(blob(4096)).await.unwrap();
    client.install(blob(8000)).await.unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let sent = Arc::clone(&told);
    client.install_with_progress(blob(12_000), move |bytes| sent.lock().unwrap().push(bytes)).await.unwrap();
    client.clone().install(blob(8001)).await.unwrap();
    assert_eq!(fake.calls(), ["install", "capabilities", "install", "install_stream", "install_stream"]);
    assert_eq!(*fake.parts.lock().unwrap(), [12_000, 5000, 5000, 2000, 8001, 5000, 3001]);
    assert_eq!(*told.lock().unwrap(), [5000, 10_000, 12_000]);
}

#[tokio::test]
async fn an_upload_is_tried_again_and_a_refused_size_makes_the_client_ask_anew() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { unary_max_bytes: 8000, stream_chunk_max_bytes: 1 << 20, ..Limits::default() };
    let fake = Fake { limits, ..Fake::default() };
    let client = fake.client(directory.path()).await;
    client.capabilities().await.unwrap();
    client.install(blob(9000)).await.unwrap();
    let details = ErrorDetails::with_error_info("BLOB_TOO_LARGE", "codecached", []);
    let too_large = Status::with_error_details(Code::InvalidArgument, "too large", details);
    fake.failures.lock().unwrap().extend([unavailable(), too_large]);
    assert_eq!(client.install(blob(9000)).await.unwrap_err().reason(), "BLOB_TOO_LARGE");
    client.install(blob(9000)).await.unwrap();
    let calls = fake.calls();
    assert_eq!(calls[..2], ["capabilities"; 2]);
    assert_eq!(calls[2..5], ["install_stream"; 3]);
    assert_eq!(calls[5..], ["capabilities", "install_stream"]);
}

#[tokio::test]
async fn the_fourth_failure_is_the_answer() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::failing(std::iter::repeat_with(unavailable).take(9));
    let error = fake.client(directory.path()).await.lookup(LookupRequest::default()).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Some(Code::Unavailable), "UNAVAILABLE"));
    assert_eq!(fake.calls(), ["lookup"; 4]);
}

#[tokio::test]
async fn execute_evict_and_other_errors_are_tried_once() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::failing([unavailable(), unavailable(), Status::resource_exhausted("full")]);
    let client = fake.client(directory.path()).await;
    assert!(client.execute(ExecuteRequest::default()).await.unwrap_err().is_unavailable());
    assert!(client.evict(EvictRequest::default()).await.unwrap_err().is_unavailable());
    assert!(!client.install(InstallRequest::default()).await.unwrap_err().is_unavailable());
    assert_eq!(fake.calls(), ["execute", "evict", "install"]);
}

#[tokio::test]
async fn a_retry_that_would_pass_the_deadline_is_not_tried() {
    let directory = tempfile::tempdir().unwrap();
    let mut details = ErrorDetails::with_error_info("SHUTTING_DOWN", "codecached", []);
    details.set_retry_info(Some(Duration::from_secs(8)));
    let fake = Fake::failing([Status::with_error_details(Code::Unavailable, "draining", details)]);
    let client = fake.client(directory.path()).await.with_timeout(Duration::from_secs(5));
    let error = client.lookup(LookupRequest::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "SHUTTING_DOWN: draining");
    assert_eq!(error.retry_delay(), Some(Duration::from_secs(8)));
    assert_eq!(fake.calls(), ["lookup"]);
}

#[tokio::test]
async fn the_reason_of_the_daemon_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let details = ErrorDetails::with_error_info("ENTRY_NOT_FOUND", "codecached", []);
    let fake = Fake::failing([Status::with_error_details(Code::NotFound, "no entry under \"k\"", details)]);
    let error = fake.client(directory.path()).await.lookup(LookupRequest::default()).await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "ENTRY_NOT_FOUND: no entry under \"k\"");
}

#[tokio::test]
async fn a_deadline_that_passes_is_deadline_exceeded() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake { silent: true, ..Fake::default() };
    let client = fake.client(directory.path()).await.with_timeout(Duration::from_millis(50));
    let error = client.execute(ExecuteRequest::default()).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Some(Code::DeadlineExceeded), "DEADLINE_EXCEEDED"));
    assert!(error.to_string().contains("50ms"), "{error}");
}

#[tokio::test]
async fn a_cancelled_of_the_daemon_is_a_passed_deadline_only_if_it_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::failing([Status::cancelled("Timeout expired"), Status::cancelled("stopped")]);
    let client = fake.client(directory.path()).await;
    let codes = [
        client.execute(ExecuteRequest::default()).await.unwrap_err().code(),
        client.execute(ExecuteRequest::default()).await.unwrap_err().code(),
    ];
    assert_eq!(codes, [Some(Code::DeadlineExceeded), Some(Code::Cancelled)]);
}

#[tokio::test]
async fn answers_may_be_as_large_as_call_memory() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake { buffer_bytes: 64 << 20, ..Fake::default() };
    let answer = fake.client(directory.path()).await.execute(ExecuteRequest::default()).await.unwrap();
    let Some(Outcome::Returned(returned)) = answer.outcome else { panic!("{answer:?}") };
    assert_eq!(returned.buffers[0].len(), 64 << 20);
}

#[tokio::test]
async fn a_socket_nobody_listens_on_is_a_transport_error_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", directory.path().join("none").display());
    let error = Client::connect(&address).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (None, "NO_CONNECTION"));
    let text = error.to_string();
    assert!(text.contains(&address) && text.contains("os error 2") && text.contains("is the daemon running"), "{text}");
}

#[tokio::test]
async fn a_daemon_that_goes_away_is_a_transport_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    // The backlog of the socket is enough to connect to.
    let client = Client::connect(&format!("unix:{}", path.display())).await.unwrap();
    drop(listener.accept().await.unwrap());
    drop(listener);
    let error = client.execute(ExecuteRequest::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::Transport { .. }), "{error:?}");
}

#[tokio::test]
async fn tcp_works_as_well() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let fake = Fake::default();
    tokio::spawn(fake.clone().serve(TcpListenerStream::new(listener)));
    let client = Client::connect(&address).await.unwrap();
    // A call must be able to move between threads.
    tokio::spawn(async move { client.install(InstallRequest::default()).await }).await.unwrap().unwrap();
    assert_eq!(fake.calls(), ["install"]);
}
