//! What happens to every request before and after its method: bounds, deadlines, counts.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{HeaderMap, Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::{
    failure::{Failure, Reason},
    idle::IdleBound,
};
use crate::metrics::{InFlight, Metrics, Rpc};

/// A method gives up at most this long before its client stops waiting, so that the reason can still arrive: two ticks
/// of the timer. The transport's own timer would answer CANCELLED.
const ANSWER_MARGIN: Duration = Duration::from_millis(2);

/// When a method must have answered: a little before its client stops waiting, or when the server's own bound is over.
/// Every request has one, but for streams of calls whose client sets none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(pub(super) Instant);

/// A place among the streams of calls, for as long as one is open.
#[derive(Clone)]
pub(super) struct Held {
    _held: Arc<(OwnedSemaphorePermit, InFlight)>,
}

/// Bounds of the edge.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    /// Requests that may be under way, all connections together, but for those of InstallStream.
    pub(super) in_flight_max: usize,
    /// Requests of InstallStream that may be under way, all connections together.
    pub(super) streams_max: usize,
    /// Streams of ExecuteStream that may be open, all connections together.
    pub(super) call_streams_max: usize,
    /// Time that a client of InstallStream may send nothing.
    pub(super) idle_timeout: Duration,
    /// Time after which a request is given up whatever its client says.
    pub(super) timeout_max: Duration,
    /// Bytes of a message, for the text of the refusal.
    pub(super) message_max_bytes: usize,
}

/// What is left of the bounds on requests. A stream takes as long as its client likes to send, and so has bounds of its
/// own: however slow, it takes no place from the others.
pub(super) struct Permits {
    pub(super) in_flight: Arc<Semaphore>,
    pub(super) streams: Arc<Semaphore>,
    pub(super) call_streams: Arc<Semaphore>,
}

/// Wraps every service of the server.
#[derive(Clone)]
pub(super) struct Edge {
    shared: Arc<Shared>,
}

struct Shared {
    bounds: Bounds,
    permits: Permits,
    draining: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Edge {
    pub(super) fn new(bounds: Bounds, permits: Permits, draining: Arc<AtomicBool>, metrics: Arc<Metrics>) -> Self {
        Self { shared: Arc::new(Shared { bounds, permits, draining, metrics }) }
    }
}

impl<S> Layer<S> for Edge {
    type Service = EdgeService<S>;

    fn layer(&self, inner: S) -> EdgeService<S> {
        EdgeService { inner, shared: Arc::clone(&self.shared) }
    }
}

/// A service behind the edge.
#[derive(Clone)]
pub(super) struct EdgeService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for EdgeService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Future, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let started = Instant::now();
        let rpc = Rpc::from_path(request.uri().path());
        if !rpc.is_ours() {
            // Health and reflection stream for as long as their clients like, and answer while draining.
            return Answer::Through(Box::pin(self.inner.call(request)));
        }
        let shared = Arc::clone(&self.shared);
        let permit = match shared.admit(rpc) {
            Ok(permit) => permit,
            Err(failure) => return Answer::refuse(&shared, rpc, started, failure),
        };
        if rpc == Rpc::InstallStream {
            request = request.map(|body| Body::new(IdleBound::new(body, shared.bounds.idle_timeout)));
        }
        let kept = Arc::new((permit, shared.metrics.request_started(rpc)));
        let (given_up, timeout) = (started + shared.bounds.timeout_max, timeout(request.headers()));
        let margin = ANSWER_MARGIN.min(timeout.unwrap_or(Duration::MAX) / 4);
        let asked = timeout.and_then(|timeout| started.checked_add(timeout - margin));
        let deadline = asked.map_or(given_up, |asked| asked.min(given_up));
        if rpc == Rpc::ExecuteStream {
            // It goes on behind its headers, and for as long as its client likes.
            request.extensions_mut().insert(Held { _held: Arc::clone(&kept) });
        }
        if let Some(deadline) = if rpc == Rpc::ExecuteStream { asked } else { Some(deadline) } {
            request.extensions_mut().insert(Deadline(deadline));
        }
        // The method knows better what the time went by with: it has half of the margin to say so.
        let until = deadline + margin / 2;
        let answer = self.inner.call(request);
        Answer::Ours(Box::pin(async move {
            let _kept = kept;
            let response = match tokio::time::timeout_at(until.into(), answer).await {
                Ok(response) => response?,
                Err(_) => too_late().into_http(),
            };
            let response = shared.name_the_size(response);
            let code = code(response.headers());
            // A stream that has begun tells itself how it ended.
            if rpc != Rpc::ExecuteStream || code != Code::Ok as i32 {
                shared.metrics.grpc(rpc, code, started.elapsed());
            }
            Ok(response)
        }))
    }
}

/// The answer to come.
pub(super) enum Answer<F, E> {
    Ours(Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>),
    Through(Pin<Box<F>>),
    Refused(Ready<Result<Response<Body>, E>>),
}

impl<F, E> Answer<F, E> {
    fn refuse(shared: &Shared, rpc: Rpc, started: Instant, failure: Failure) -> Self {
        shared.metrics.grpc(rpc, failure.reason.code() as i32, started.elapsed());
        Self::Refused(ready(Ok(Status::from(failure).into_http())))
    }
}

impl<F: Future<Output = Result<Response<Body>, E>>, E> Future for Answer<F, E> {
    type Output = Result<Response<Body>, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Ours(answer) => answer.as_mut().poll(context),
            Self::Through(answer) => answer.as_mut().poll(context),
            Self::Refused(answer) => Pin::new(answer).poll(context),
        }
    }
}

// All three hold what they hold behind a pointer, or by value without caring where.
impl<F, E> Unpin for Answer<F, E> {}

impl Shared {
    /// A place among the requests that are under way.
    fn admit(&self, rpc: Rpc) -> Result<OwnedSemaphorePermit, Failure> {
        if self.draining.load(Relaxed) && rpc != Rpc::GetStatus {
            return Err(Failure::busy(Reason::ShuttingDown, "the daemon is shutting down; try another one"));
        }
        let (permits, max, what) = match rpc {
            Rpc::InstallStream => (&self.permits.streams, self.bounds.streams_max, "uploads"),
            Rpc::ExecuteStream => (&self.permits.call_streams, self.bounds.call_streams_max, "streams of calls"),
            _ => (&self.permits.in_flight, self.bounds.in_flight_max, "requests"),
        };
        Arc::clone(permits)
            .try_acquire_owned()
            .map_err(|_| Failure::busy(Reason::ServerBusy, format!("{max} {what} are under way; try again soon")))
    }

    /// The transport answers OUT_OF_RANGE for a message that is too large, before any method sees it, and nothing
    /// else does: say it in the words of the API.
    fn name_the_size(&self, response: Response<Body>) -> Response<Body> {
        if code(response.headers()) != Code::OutOfRange as i32 {
            return response;
        }
        let max = self.bounds.message_max_bytes;
        let message =
            format!("message has more than {max} bytes; see unary_max_bytes and stream_max_bytes in GetCapabilities");
        Status::from(Failure::new(Reason::BlobTooLarge, message).with("limit_bytes", max)).into_http()
    }
}

/// For methods that do not say it themselves. Claims nothing about what was done.
fn too_late() -> Status {
    let message = "the time for this request was over before its answer; what it asked for may have been done";
    Failure::new(Reason::DeadlineDuringCall, message).into()
}

/// The gRPC code of an answer: methods that fail say so in the headers.
fn code(headers: &HeaderMap) -> i32 {
    headers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// `grpc-timeout`: up to 8 digits and a unit. <https://grpc.github.io/grpc/core/md_doc__p_r_o_t_o_c_o_l-_h_t_t_p2.html>
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        timeout(&headers)
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        assert_eq!(parsed("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parsed("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parsed("4S"), Some(Duration::from_secs(4)));
        assert_eq!(parsed("5m"), Some(Duration::from_millis(5)));
        assert_eq!(parsed("6u"), Some(Duration::from_micros(6)));
        assert_eq!(parsed("99999999n"), Some(Duration::from_nanos(99_999_999)));
    }

    #[test]
    fn timeouts_that_are_none_are_ignored() {
        for bad in ["", "5", "m", "-1m", "5x", "999999999S", "5 m"] {
            assert_eq!(parsed(bad), None, "{bad:?}");
        }
    }
}
