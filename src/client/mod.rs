//! A client of the daemon: typed calls over one connection, with deadlines and the published retry policy.
//!
//! ```no_run
//! use codecached::{client::Client, proto::LookupRequest};
//!
//! # async fn example() -> Result<(), codecached::client::ClientError> {
//! let client = Client::connect("unix:/run/codecached/codecached.sock").await?;
//! let found = client.lookup(LookupRequest::default()).await?;
//! # Ok(())
//! # }
//! ```

mod address;
mod archive;
mod call_stream;
mod error;
mod retry;
#[cfg(test)]
mod tests;
mod upload;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Error as TransportError, Uri},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::proto::{
    CancelExecutionRequest, DisassembleRequest, DisassembleResponse, EvictRequest, EvictResponse, ExecuteBatchRequest,
    ExecuteBatchResponse, ExecuteRequest, ExecuteResponse, GetArenasRequest, GetArenasResponse, GetCapabilitiesRequest,
    GetCapabilitiesResponse, GetStatusRequest, GetStatusResponse, LiftQuarantineRequest, LiftQuarantineResponse,
    ListExecutionsRequest, ListExecutionsResponse, ListRequest, ListResponse, LookupRequest, LookupResponse,
    admin_service_client::AdminServiceClient, code_cache_service_client::CodeCacheServiceClient,
    execution_service_client::ExecutionServiceClient,
};

pub use address::{Address, DEFAULT_ADDRESS};
pub use archive::archive;
pub use call_stream::{CallAnswers, CallSender};
pub use error::ClientError;
use retry::Backoff;
use upload::KnownLimits;

/// A local socket answers in microseconds and a near host in milliseconds: what is slower than this is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream may hold an install of the usual limit without waiting for the window to grow.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Two such streams at once.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// The buffers of one call, which may take all of its call memory (64 MiB), with room for their framing.
const ANSWER_MAX_BYTES: usize = (64 << 20) + (1 << 20);

/// What a stub answers.
type Answer<R> = Result<Response<R>, Status>;

/// A connection to the daemon. Clones share it, and cost one reference count.
///
/// Calls fail with [`ClientError`]. `GetCapabilities`, `Lookup`, `List`, `Disassemble`, `Install` and `InstallStream` are tried up to four times while
/// the daemon is unavailable; the calls of the ExecutionService and `Evict` once, because a second try could act a second time.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    address: Address,
    timeout: Option<Duration>,
    limits: KnownLimits,
}

impl Client {
    /// Connects to `unix:PATH` or `http://HOST:PORT`.
    ///
    /// # Errors
    /// [`ClientError::Address`] for another form, [`ClientError::Transport`] if nothing answers there within 5 s.
    pub async fn connect(address: &str) -> Result<Self, ClientError> {
        let address: Address = address.parse()?;
        let channel = open(&address).await.map_err(|error| ClientError::transport(&address, &error))?;
        Ok(Self { channel, address, timeout: None, limits: KnownLimits::default() })
    }

    /// The same connection, with a deadline for each call that is `timeout` after its start, retries included.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self.clone() }
    }

    /// Where this client is connected to.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What the daemon runs on, takes and offers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn capabilities(&self) -> Result<GetCapabilitiesResponse, ClientError> {
        self.retried(GetCapabilitiesRequest {}, |mut stub, request| async move { stub.get_capabilities(request).await })
            .await
    }

    /// Finds an entry.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::is_not_found`] tells the normal miss.
    pub async fn lookup(&self, request: LookupRequest) -> Result<LookupResponse, ClientError> {
        self.retried(request, |mut stub, request| async move { stub.lookup(request).await }).await
    }

    /// Calls a symbol once. A trap is an answer, not an error.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn execute(&self, request: ExecuteRequest) -> Result<ExecuteResponse, ClientError> {
        let mut stub = self.execution();
        self.once(request, |request| async move { stub.execute(request).await }).await
    }

    /// Calls a symbol once for each row of columns. A trap is an answer, not an error; it has the rows before it.
    ///
    /// ```no_run
    /// use codecached::proto::{Column, ColumnType, ExecuteBatchRequest, execute_batch_request::Target};
    ///
    /// # async fn example(client: codecached::client::Client) -> Result<(), codecached::client::ClientError> {
    /// let values: Vec<u8> = (0..1000_i64).flat_map(i64::to_le_bytes).collect();
    /// let column = |values: Vec<u8>| Column { r#type: ColumnType::I64.into(), values: values.into() };
    /// let request = ExecuteBatchRequest {
    ///     target: Some(Target::Key("sum".into())),
    ///     symbol: "add".into(),
    ///     rows: 1000,
    ///     // The second argument is the same for all rows.
    ///     columns: vec![column(values), column(7_i64.to_le_bytes().to_vec())],
    ///     result: codecached::proto::ResultType::I64.into(),
    ///     ..ExecuteBatchRequest::default()
    /// };
    /// let sums = client.execute_batch(request).await?.results;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn execute_batch(&self, request: ExecuteBatchRequest) -> Result<ExecuteBatchResponse, ClientError> {
        let mut stub = self.execution();
        self.once(request, |request| async move { stub.execute_batch(request).await }).await
    }

    /// Opens a stream of calls, with a side to send them and one to read their answers, which come in any order. Both
    /// sides must be served at once: the daemon reads on only while answers are read. The deadline of this client
    /// is one for the whole stream.
    ///
    /// ```no_run
    /// use codecached::proto::{FunctionCalls, StreamCall, function_calls::Target};
    ///
    /// # async fn example(client: codecached::client::Client) -> Result<(), codecached::client::ClientError> {
    /// let (calls, mut answers) = client.execute_stream().await?;
    /// tokio::spawn(async move {
    ///     for message in 0..10_u64 {
    ///         let call = |at: u64| StreamCall { call_id: message * 100 + at, arguments: vec![] };
    ///         let (target, symbol) = (Some(Target::Key("sum".into())), "next".into());
    ///         let calls_of_next =
    ///             FunctionCalls { target, symbol, calls: (0..100).map(call).collect(), ..FunctionCalls::default() };
    ///         calls.send(vec![calls_of_next]).await;
    ///     }
    /// });
    /// while let Some(answers) = answers.next().await? {
    ///     for answer in answers {
    ///         println!("{}: {:?}", answer.call_id, answer.outcome);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn execute_stream(&self) -> Result<(CallSender, CallAnswers), ClientError> {
        call_stream::open(self).await
    }

    /// What runs and waits in a namespace, a page of it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_executions(&self, request: ListExecutionsRequest) -> Result<ListExecutionsResponse, ClientError> {
        let mut stub = self.execution();
        self.once(request, |request| async move { stub.list_executions(request).await }).await
    }

    /// Stops an execution: its caller is answered with a trap.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::is_not_found`] tells that it has ended.
    pub async fn cancel_execution(&self, request: CancelExecutionRequest) -> Result<(), ClientError> {
        let mut stub = self.execution();
        self.once(request, |request| async move { stub.cancel_execution(request).await }).await.map(drop)
    }

    /// Takes an entry out.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn evict(&self, request: EvictRequest) -> Result<EvictResponse, ClientError> {
        let mut stub = self.cache();
        self.once(request, |request| async move { stub.evict(request).await }).await
    }

    /// One page of entries.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self, request: ListRequest) -> Result<ListResponse, ClientError> {
        self.retried(request, |mut stub, request| async move { stub.list(request).await }).await
    }

    /// The instructions of an entry as text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn disassemble(&self, request: DisassembleRequest) -> Result<DisassembleResponse, ClientError> {
        self.retried(request, |mut stub, request| async move { stub.disassemble(request).await }).await
    }

    /// Whether a service takes requests, by grpc.health.v1. The empty name asks for the daemon as a whole.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::is_not_found`] tells a service that does not exist.
    pub async fn is_serving(&self, service: &str) -> Result<bool, ClientError> {
        let mut stub = HealthClient::new(self.channel.clone());
        let asked = HealthCheckRequest { service: service.to_owned() };
        let answer = self.once(asked, |request| async move { stub.check(request).await }).await?;
        Ok(answer.status() == ServingStatus::Serving)
    }

    /// What the daemon holds and does.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<GetStatusResponse, ClientError> {
        let mut stub = AdminServiceClient::new(self.channel.clone());
        self.once(GetStatusRequest {}, |request| async move { stub.get_status(request).await }).await
    }

    /// A map of the executable memory.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn arenas(&self, request: GetArenasRequest) -> Result<GetArenasResponse, ClientError> {
        let mut stub = AdminServiceClient::new(self.channel.clone());
        self.once(request, |request| async move { stub.get_arenas(request).await }).await
    }

    /// Lets an entry be called again that is quarantined.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lift_quarantine(&self, request: LiftQuarantineRequest) -> Result<LiftQuarantineResponse, ClientError> {
        let mut stub = AdminServiceClient::new(self.channel.clone());
        self.once(request, |request| async move { stub.lift_quarantine(request).await }).await
    }

    /// The bare stub for Install, InstallStream, Lookup, Evict, List and Disassemble: no deadline, no retry.
    #[must_use]
    pub fn cache(&self) -> CodeCacheServiceClient<Channel> {
        CodeCacheServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX_BYTES)
    }

    /// The bare stub for Execute and its kin: no deadline.
    #[must_use]
    pub fn execution(&self) -> ExecutionServiceClient<Channel> {
        ExecutionServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX_BYTES)
    }

    /// What a failure of a bare stub means.
    #[must_use]
    pub fn error(&self, status: &Status) -> ClientError {
        ClientError::from_status(&self.address, status, None)
    }

    /// Sends `message`, and again while the daemon is unavailable, attempts and time permitting.
    async fn retried<Q: Clone, R, F: Future<Output = Answer<R>>>(
        &self,
        message: Q,
        send: impl Fn(CodeCacheServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<R, ClientError> {
        let deadline = self.deadline();
        let mut backoff = Backoff::default();
        loop {
            let send = |request| send(self.cache(), request);
            let error = match self.attempt(message.clone(), deadline, send).await {
                Err(error) if error.is_unavailable() => error,
                end => return end,
            };
            let Some(pause) = backoff.next(error.retry_delay()) else { return Err(error) };
            if deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn once<Q, R, F: Future<Output = Answer<R>>>(
        &self,
        message: Q,
        send: impl FnOnce(Request<Q>) -> F,
    ) -> Result<R, ClientError> {
        self.attempt(message, self.deadline(), send).await
    }

    /// The deadline goes to the daemon with the request, and holds here too should the daemon not answer.
    async fn attempt<Q, R, F: Future<Output = Answer<R>>>(
        &self,
        message: Q,
        deadline: Option<Instant>,
        send: impl FnOnce(Request<Q>) -> F,
    ) -> Result<R, ClientError> {
        let mut request = Request::new(message);
        let answer = match deadline {
            None => send(request).await,
            Some(deadline) => {
                request.set_timeout(deadline.saturating_duration_since(Instant::now()));
                within(deadline, send(request)).await
            }
        };
        let failed = |status| ClientError::from_status(&self.address, &status, self.timeout);
        answer.map(Response::into_inner).map_err(failed)
    }

    fn deadline(&self) -> Option<Instant> {
        self.timeout.and_then(|timeout| Instant::now().checked_add(timeout))
    }
}

/// tonic ends its own wait with the headers of an answer; this one lasts until its body is there.
async fn within<R>(deadline: Instant, answer: impl Future<Output = Answer<R>>) -> Answer<R> {
    let expired = |_| Err(Status::deadline_exceeded(error::NO_ANSWER_IN_TIME));
    tokio::time::timeout_at(deadline.into(), answer).await.unwrap_or_else(expired)
}

async fn open(address: &Address) -> Result<Channel, TransportError> {
    match address {
        Address::Http(uri) => tuned(Endpoint::from(uri.clone())).connect().await,
        Address::Unix(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            // The name is only what the daemon sees as `:authority`.
            tuned(Endpoint::from_static("http://localhost")).connect_with_connector(connector).await
        }
    }
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}
