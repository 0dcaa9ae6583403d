//! The client against a daemon that answers from a script, over a real socket.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tokio_stream::{
    Stream,
    wrappers::{TcpListenerStream, UnixListenerStream},
};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    transport::{Server, server::Connected},
};
use tonic_types::{ErrorDetails, StatusExt};
use tower::Service;

use super::*;
use crate::proto::{
    Returned, Value,
    code_cache_service_server::{CodeCacheService, CodeCacheServiceServer},
    execute_response::Outcome,
    execution_service_server::{ExecutionService, ExecutionServiceServer},
    value::Kind,
};

/// Answers each call with the next failure of the script, and well once there is none.
#[derive(Clone, Default)]
struct Fake {
    failures: Arc<Mutex<VecDeque<Status>>>,
    calls: Arc<Mutex<Vec<&'static str>>>,
    /// Bytes of the one buffer that Execute answers.
    buffer_bytes: usize,
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
        self.answer("capabilities").await
    }
    async fn install(&self, _: Request<InstallRequest>) -> Result<Response<InstallResponse>, Status> {
        self.answer("install").await
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
