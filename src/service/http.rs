//! The small HTTP server beside gRPC: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever keeps the daemon up,
//! `/status` for people.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections at a time, each at most [`CONNECTION_LIFETIME`] long and for one request
//! (every answer closes it), so that a peer that sends its headers slowly, or never reads the answer, holds one place
//! for that long. Bodies of requests are never read; hyper bounds headers (about 400 KiB, 100 of them).

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::status_page::page::{PAGE, POLICY};
use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderValue, StatusCode, header};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};

/// Connections at a time: several scrapers and probes, far from the daemon's limit of descriptors.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a connection may live. A scrape takes milliseconds; Prometheus itself gives up after 10 s.
pub const CONNECTION_LIFETIME: Duration = Duration::from_secs(10);

const NOT_FOUND: &str = "not found: /metrics, /livez, /readyz and /status are here\n";
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One scrape. Called on a thread of the runtime, so it must not block for long.
pub type Scrape = Arc<dyn Fn() -> String + Send + Sync>;

/// Whether requests are taken, or why not. Called on a thread of the runtime, too.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The numbers of the status page, as JSON. Called where it may block.
pub type StatusNumbers = Arc<dyn Fn() -> String + Send + Sync>;

/// What is served.
#[derive(Clone)]
pub struct Pages {
    /// `/metrics`
    pub scrape: Scrape,
    /// `/livez`: whether the process can go on.
    pub liveness: Readiness,
    /// `/readyz`
    pub readiness: Readiness,
    /// `/status.json`
    pub status: StatusNumbers,
}

/// Serves until `shutdown`, and then for as long as a connection may still live.
///
/// # Errors
/// Those of the transport. Errors of accept are logged and tried again instead.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = Bounded::new(listener, CONNECTIONS_MAX, CONNECTION_LIFETIME);
    serve_bounded(listener, pages, shutdown).await
}

async fn serve_bounded(
    listener: Bounded,
    pages: Pages,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(liveness))
        .route("/readyz", get(readiness))
        .route("/status", get(async || page()))
        .route("/status.json", get(status))
        .fallback(async || answer(StatusCode::NOT_FOUND, TEXT, NOT_FOUND))
        .with_state(pages);
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

async fn metrics(State(pages): State<Pages>) -> Response {
    answer(StatusCode::OK, PROMETHEUS_TEXT, (pages.scrape)())
}

async fn liveness(State(pages): State<Pages>) -> Response {
    match (pages.liveness)() {
        Ok(()) => answer(StatusCode::OK, TEXT, "ok\n"),
        Err(reason) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not alive: {reason}\n")),
    }
}

async fn readiness(State(pages): State<Pages>) -> Response {
    match (pages.readiness)() {
        Ok(()) => answer(StatusCode::OK, TEXT, "ready\n"),
        Err(reason) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {reason}\n")),
    }
}

/// No cache keeps it, no other page frames it, and nothing but itself runs in it.
fn page() -> Response {
    let mut response = answer(StatusCode::OK, HTML, PAGE.as_str());
    let headers = response.headers_mut();
    let policy = HeaderValue::from_static(POLICY.as_str());
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn status(State(pages): State<Pages>) -> Response {
    match tokio::task::spawn_blocking(move || (pages.status)()).await {
        Ok(numbers) => answer(StatusCode::OK, JSON, numbers),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("the numbers broke off: {error}\n")),
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: impl IntoResponse) -> Response {
    (status, [(header::CONTENT_TYPE, content_type), (header::CONNECTION, "close")], body).into_response()
}

/// Accepts while there are places.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    lifetime: Duration,
}

impl Bounded {
    fn new(listener: TcpListener, connections_max: usize, lifetime: Duration) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connections_max)), lifetime }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Mortal;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Mortal, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("invariant: the semaphore is never closed");
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (Mortal { stream, death: Box::pin(sleep(self.lifetime)), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails at the end of its lifetime.
struct Mortal {
    stream: TcpStream,
    death: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Mortal {
    /// An operation of the stream, or the error of a connection that is past its lifetime. Reads and writes are polled
    /// by one task, so one timer wakes for both.
    fn alive<T>(
        &mut self,
        cx: &mut Context<'_>,
        operation: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.death.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let done = ready!(operation(Pin::new(&mut self.stream), cx));
        Poll::Ready(done)
    }
}

impl AsyncRead for Mortal {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.alive(cx, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.alive(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream as Client,
        sync::atomic::{AtomicBool, Ordering},
    };

    use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};

    use super::*;

    /// Only a test that fails waits so long.
    const PATIENCE: Duration = Duration::from_secs(60);

    struct Served {
        runtime: Runtime,
        address: SocketAddr,
        alive: Arc<AtomicBool>,
        ready: Arc<AtomicBool>,
        stop: oneshot::Sender<()>,
        server: JoinHandle<io::Result<()>>,
    }

    fn served(connections_max: usize, lifetime: Duration) -> Served {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (alive, ready) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (felt, asked) = (alive.clone(), ready.clone());
        let pages = Pages {
            scrape: Arc::new(|| "up 1\n".to_owned()),
            liveness: Arc::new(move || {
                felt.load(Ordering::SeqCst).then_some(()).ok_or_else(|| "no workers".to_owned())
            }),
            readiness: Arc::new(move || {
                asked.load(Ordering::SeqCst).then_some(()).ok_or_else(|| "draining".to_owned())
            }),
            status: Arc::new(|| "{\"up\":1}".to_owned()),
        };
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { stopped.await.unwrap_or(()) };
        let server = runtime.spawn(serve_bounded(Bounded::new(listener, connections_max, lifetime), pages, shutdown));
        Served { runtime, address, alive, ready, stop, server }
    }

    fn connect(address: SocketAddr) -> Client {
        let client = Client::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// The whole answer: the server closes the connection behind it.
    fn request(address: SocketAddr, method: &str, path: &str) -> String {
        let mut client = connect(address);
        write!(client, "{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer.to_lowercase()
    }

    #[test]
    fn metrics_are_served_as_text_of_version_0_0_4_and_the_connection_is_closed() {
        let served = served(4, PATIENCE);
        let answer = request(served.address, "GET", "/metrics");
        assert!(answer.starts_with("http/1.1 200 "), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nup 1\n"), "{answer}");
    }

    #[test]
    fn liveness_and_readiness_follow_the_daemon() {
        let served = served(4, PATIENCE);
        assert!(request(served.address, "GET", "/livez").starts_with("http/1.1 200 "));
        let answer = request(served.address, "GET", "/readyz");
        assert!(answer.starts_with("http/1.1 503 ") && answer.ends_with("not ready: draining\n"), "{answer}");
        served.ready.store(true, Ordering::SeqCst);
        assert!(request(served.address, "GET", "/readyz").starts_with("http/1.1 200 "));
        served.alive.store(false, Ordering::SeqCst);
        let answer = request(served.address, "GET", "/livez");
        assert!(answer.starts_with("http/1.1 503 ") && answer.ends_with("not alive: no workers\n"), "{answer}");
    }

    #[test]
    fn the_status_page_comes_with_a_policy_and_its_numbers_as_json() {
        let served = served(4, PATIENCE);
        let page = request(served.address, "GET", "/status");
        assert!(page.starts_with("http/1.1 200 ") && page.contains("content-type: text/html"), "{page}");
        assert!(page.contains("content-security-policy: default-src 'none'; style-src 'sha256-"), "{page}");
        let numbers = request(served.address, "GET", "/status.json");
        assert!(numbers.contains("content-type: application/json") && numbers.ends_with("{\"up\":1}"), "{numbers}");
    }

    #[test]
    fn anything_else_is_not_found_or_not_allowed() {
        let served = served(4, PATIENCE);
        for path in ["/", "/metrics/", "/metrics2", "/../metrics"] {
            assert!(request(served.address, "GET", path).starts_with("http/1.1 404 "), "{path}");
        }
        let mut client = connect(served.address);
        write!(client, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    }

    #[test]
    fn a_silent_connection_ends_and_its_place_is_given_to_the_next() {
        let served = served(1, Duration::from_millis(100));
        let mut silent = connect(served.address);
        let mut slow = connect(served.address);
        slow.write_all(b"GET /livez HTTP/1.1\r\nHost:").unwrap();
        let end = |client: &mut Client| matches!(client.read(&mut [0; 1]), Ok(0) | Err(_));
        assert!(end(&mut silent) && end(&mut slow));
        assert!(request(served.address, "GET", "/livez").starts_with("http/1.1 200 "));
    }

    #[test]
    fn shutdown_ends_the_server_although_a_connection_is_open() {
        let served = served(4, Duration::from_millis(100));
        let _open = connect(served.address);
        served.stop.send(()).unwrap();
        served
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, served.server).await })
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
