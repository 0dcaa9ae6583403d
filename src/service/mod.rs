//! The gRPC edge: convert, authorise, answer.
//!
//! Knows the messages, the cache and the pool of executors; brings values from one to the other. Absent here: how memory
//! is mapped, how signals are handled, where the configuration comes from. Authorisation is who may open the socket.

mod admin_service;
mod arenas;
mod asked;
mod batch;
mod cache_service;
mod call_stream;
mod canary;
mod capabilities;
mod convert;
mod cpu;
mod dependencies;
mod disassemble;
mod edge;
mod execution_service;
mod executions;
mod failure;
mod function;
pub mod http;
mod idle;
mod install;
mod listener;
mod observe;
mod occupancy;
mod screen;
pub mod server;
mod signature;
mod status_page;
mod target;
mod upload;
mod validate;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

pub use self::{
    failure::{DOMAIN, Reason},
    listener::{Endpoint, Listener},
    status_page::SAMPLE_INTERVAL,
};
use canary::Canary;
use executions::Executions;
use status_page::StatusPage;
use tokio::sync::{Notify, Semaphore};

use crate::{
    arena::Arenas,
    cache::{Cache, Pinned},
    code,
    config::Screen,
    exec::Pool,
    metrics::Metrics,
};

/// Bounds that requests are held to.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a blob in Install.
    pub unary_max_bytes: u64,
    /// Bytes of a blob in InstallStream.
    pub stream_max_bytes: u64,
    /// Bytes of a chunk in InstallStream.
    pub stream_chunk_max_bytes: u64,
    /// Time that a client of InstallStream may send nothing.
    pub stream_idle_timeout: Duration,
    /// Requests of InstallStream that may be under way, all connections together.
    pub streams_max: usize,
    /// Streams of ExecuteStream that may be open, all connections together.
    pub call_streams_max: usize,
    /// Time during which nothing comes or goes, after which such a stream is ended.
    pub call_stream_idle_timeout: Duration,
    /// Calls of such a stream under way from which on no more is read, and calls of a message.
    pub stream_calls_max: usize,
    /// Bounds of an object.
    pub code: code::Limits,
    /// What becomes of installs that hold what they must not.
    pub screen: Screen,
    /// Unwind tables of objects are linked.
    pub keep_unwind: bool,
    /// Bytes of arguments, buffers and per-call allocations of one call.
    pub call_memory_max_bytes: usize,
    /// CPU time of a call that does not ask for less.
    pub cpu_limit_default: Duration,
    /// CPU time that a call may ask for.
    pub cpu_limit_max: Duration,
    /// Other requests that may be under way, all connections together.
    pub in_flight_max: usize,
    /// Large installs that may be worked on at once; further ones wait with their requests.
    pub linking_max: usize,
    /// Time after which a request is given up whatever its client says.
    pub timeout_max: Duration,
}

/// What answers requests. Cheap to clone: all clones are one service.
#[derive(Clone)]
pub struct Service {
    arenas: Arc<Arenas>,
    cache: Arc<Cache>,
    pool: Arc<Pool<Pinned>>,
    metrics: Arc<Metrics>,
    limits: Arc<Limits>,
    draining: Arc<AtomicBool>,
    /// Told when `draining` turns true.
    drained: Arc<Notify>,
    executions: Arc<Executions>,
    /// Requests that may still come under way, but for those of InstallStream.
    in_flight: Arc<Semaphore>,
    /// Requests of InstallStream that may still come under way.
    streams: Arc<Semaphore>,
    /// Streams of ExecuteStream that may still be opened.
    call_streams: Arc<Semaphore>,
    /// Installs that may still be taken beside the runtime's threads.
    linking: Arc<Semaphore>,
    /// Maps of the arenas that may be made at once.
    mapping: Arc<Semaphore>,
    canary: Arc<Canary>,
    status_page: Arc<StatusPage>,
    /// What the processor has.
    features: Arc<code::CpuFeatures>,
    started: Instant,
}

impl Service {
    /// Joins the parts.
    pub fn new(arenas: Arc<Arenas>, cache: Cache, pool: Pool<Pinned>, metrics: Arc<Metrics>, limits: Limits) -> Self {
        Self {
            arenas,
            cache: Arc::new(cache),
            pool: Arc::new(pool),
            metrics,
            in_flight: Arc::new(Semaphore::new(limits.in_flight_max)),
            streams: Arc::new(Semaphore::new(limits.streams_max)),
            call_streams: Arc::new(Semaphore::new(limits.call_streams_max)),
            linking: Arc::new(Semaphore::new(limits.linking_max)),
            mapping: Arc::new(Semaphore::new(1)),
            canary: Arc::default(),
            status_page: Arc::default(),
            features: Arc::new(cpu::features()),
            limits: Arc::new(limits),
            draining: Arc::new(AtomicBool::new(false)),
            drained: Arc::default(),
            executions: Arc::default(),
            started: Instant::now(),
        }
    }

    /// Whether requests are taken, and new code runs; if not, why. Tries the latter at most once a second, which takes
    /// some microseconds.
    ///
    /// # Errors
    /// The reason, for a person.
    pub fn ready(&self) -> Result<(), String> {
        if self.draining.load(Relaxed) {
            return Err("draining".to_owned());
        }
        self.executors_ready()?;
        self.canary
            .ask(Instant::now(), || self.arenas.canary().map_err(|error| format!("new code does not run: {error}")))
    }

    /// Whether this process can go on; if not, why: another one must take its place.
    ///
    /// # Errors
    /// The reason, for a person.
    pub fn alive(&self) -> Result<(), &'static str> {
        if self.pool.is_barren() { Err("the process that forks workers has ended") } else { Ok(()) }
    }

    /// Threads that are held by code that cannot be stopped are missing from then on: only a new process has them again.
    fn executors_ready(&self) -> Result<(), String> {
        self.alive()?;
        let stats = self.pool.stats();
        match (stats.missing, stats.stuck_lent) {
            (0, 0) => Ok(()),
            (0, lent) => Err(format!("{lent} threads that serve requests are held by code that cannot be stopped")),
            (missing, _) => {
                Err(format!("{missing} executors are held by code that cannot be stopped, and no more may be replaced"))
            }
        }
    }

    /// Refuses new work from now on.
    pub fn start_draining(&self) {
        self.draining.store(true, Relaxed);
        self.drained.notify_waiters();
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Waits until no request is under way, up to `until`.
    pub async fn until_idle(&self, until: Instant) {
        let all = |max: usize| u32::try_from(max).unwrap_or(u32::MAX);
        let idle = async {
            let _requests = self.in_flight.acquire_many(all(self.limits.in_flight_max)).await;
            let _streams = self.streams.acquire_many(all(self.limits.streams_max)).await;
            let _calls = self.call_streams.acquire_many(all(self.limits.call_streams_max)).await;
        };
        // Resolves with an error at the end of the time: then there is nothing left to wait for either.
        drop(tokio::time::timeout_at(until.into(), idle).await);
    }

    /// Waits until no call runs or waits, up to `until`. False if some still do. Blocks.
    pub fn drain_calls(&self, until: Instant) -> bool {
        self.pool.drain(until)
    }
}
