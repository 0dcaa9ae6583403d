//! Builds the parts in order, runs them, and drains them.

mod check;
mod confinement;
mod execution;
mod manager;
mod passed;
mod sockets;

use std::{
    cell::Cell,
    io,
    num::NonZero,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    arena::{self, ArenaConfig, Arenas, MapError},
    cache::{Cache, CacheConfig, QuarantineRule},
    code::{self, ImportTable, ThreadSwitch},
    config::{Config, HugePages, Isolation, Perf, WriteWindow},
    confine::ConfineError,
    exec::{self, FilterState, Pool, Workers},
    metrics::{BuildInfo, Metrics},
    service::{
        Limits, SAMPLE_INTERVAL, Service, http,
        server::{self, Transport},
    },
    tools::{self, FileError, Tools, ToolsConfig, Written},
};

pub use check::{Explained, check, explain};
pub use confinement::{Confined, confinement};
use execution::{exec_config, isolation, prepare_workers, runs_inline};
use manager::Manager;
use sockets::Sockets;

/// Committed memory stays within this share of the budget.
const COMMIT_PER_BUDGET: f64 = 1.05;
/// Beyond the grace, until the process is gone: the last answers, files for profilers, memory of the arenas.
const END_GRACE: Duration = Duration::from_secs(5);
/// How often it is looked whether the daemon can go on.
const LOST_INTERVAL: Duration = Duration::from_millis(100);
/// Time for the last answers to reach their clients.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// Why the daemon could not start or stop in order.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No executable memory.
    #[error("no executable memory: {0}")]
    Arena(#[from] MapError),
    /// What must be given up cannot be.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// What tools ask for.
    #[error("cannot serve profilers: {0}")]
    Tools(#[from] FileError),
    /// Memory that is made writable and runnable in turn is one process's.
    #[error(
        "exec.isolation = \"process\" needs executable memory that can be mapped twice, which this system does not give"
    )]
    NoWorkers,
    /// No executors.
    #[error("cannot start executors: {0}")]
    Exec(exec::StartError),
    /// System calls of code cannot be contained, which the configuration requires.
    #[error("cannot start executors: {0}; {remedy}", remedy = check::required_remedy(.0))]
    Filter(exec::FilterError),
    /// Numbers that nobody can foresee.
    #[error("the system gives no random numbers: {0}")]
    Random(Errno),
    /// No runtime, or no signals.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// A listener.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// As configured.
        address: String,
        /// Of the system.
        error: io::Error,
    },
    /// The service manager.
    #[error("cannot use what the service manager passed: {0}")]
    Manager(io::Error),
    /// A socket that nobody asked for.
    #[error("the service manager passed a socket at {0}, where server.listen does not listen")]
    Passed(String),
    /// Something that cannot be had again has gone.
    #[error("the daemon cannot go on and must be started again: {0}")]
    Lost(&'static str),
    /// The transport.
    #[error("serving failed: {0}")]
    Serve(Box<dyn std::error::Error + Send + Sync>),
}

impl From<exec::StartError> for DaemonError {
    fn from(error: exec::StartError) -> Self {
        match error {
            exec::StartError::Filter { error } => Self::Filter(error),
            error => Self::Exec(error),
        }
    }
}

/// Runs the daemon until SIGTERM or SIGINT, or until it cannot go on, and drains it. Blocks.
///
/// # Errors
/// [`DaemonError`]; nothing was served if it comes from the start, all if it is [`DaemonError::Lost`].
pub fn serve(config: Config) -> Result<(), DaemonError> {
    let ground = Ground::open(&config)?;
    let sockets = Sockets::open(&config)?;
    confinement::log(&confinement::confine(&config, &ground.arenas)?);
    let Parts { service, metrics, tools } = ground.build(&config)?;
    told_of_filter(service.filter_state());
    let runtime = runtime(&config).map_err(DaemonError::Runtime)?;
    // Code that cannot be stopped would be waited for without end by the drop of what it runs in: that is left alone.
    std::mem::forget(service.clone());
    let result = runtime.block_on(run(&config, sockets, service, metrics));
    // What has not ended within the grace will not be waited for.
    runtime.shutdown_background();
    if let Some(tools) = tools {
        told_to_tools(&tools.finish());
    }
    result
}

fn told_of_filter(state: FilterState) {
    match state {
        FilterState::InForce => {}
        FilterState::Unavailable(error) => {
            tracing::warn!(%error, remedy = error.remedy(), "system calls of code are not contained");
        }
        FilterState::Off => tracing::warn!("system calls of code are not contained: exec.system_call_filter is off"),
    }
}

fn told_to_tools(written: &Written) {
    if let Some(path) = &written.path {
        let Written { bytes, left_out, failed, .. } = written;
        tracing::info!(path = %path.display(), bytes, left_out, failed, "what profilers were told");
    }
}

/// What the daemon is made of.
struct Parts {
    service: Service,
    metrics: Arc<Metrics>,
    /// For the owner to finish.
    tools: Option<Arc<Tools>>,
}

// What an image may have, executors can make.
const _: () = assert!(code::THREAD_MAX_BYTES <= exec::THREAD_MAX_BYTES as u64);
const _: () = assert!(code::CONTROL_BYTES as usize <= exec::CONTROL_BYTES);

fn imports() -> ImportTable {
    let switch = exec::thread_switch().map(|(address, direct)| ThreadSwitch { address, direct: direct.into() });
    ImportTable::new(exec::imports()).with_thread_switch(switch).with_constants(exec::constants())
}

/// What takes a thread, a new executable mapping, or a file that is written: all that a confined process cannot have.
struct Ground {
    tools: Option<Arc<Tools>>,
    arenas: Arc<Arenas>,
    /// If calls are to run in such.
    workers: Option<Workers>,
}

impl Ground {
    fn open(config: &Config) -> Result<Self, DaemonError> {
        let tools = Tools::start(&tools_config(config))?;
        let arenas = Arenas::map(&arena_config(config))?;
        // Before sockets are opened, and before this process gives up what those that it forks still need. And before
        // anything is in memory that is not for code to read, such as keys or certificates: workers have all that is
        // there now, for as long as they live, and code reads what its process can. Whatever is secret is loaded or
        // made after this line, from the system's own random numbers.
        let workers = prepare_workers(config, &arenas)?;
        Ok(Self { tools, arenas, workers })
    }

    /// The parts on top of it, with their threads.
    fn build(self, config: &Config) -> Result<Parts, DaemonError> {
        let Self { tools, arenas, workers } = self;
        if let Some(refused) = arenas.low_refused() {
            tracing::warn!(%refused, "objects with absolute addresses in 32 bits are refused: arena.low_bytes has no effect");
        }
        arenas.start_upkeep()?;
        let cache = cache(config, &arenas, tools.as_ref())?;
        let pool = match workers {
            Some(workers) => Pool::start_with_workers(workers)?,
            None => Pool::start(exec_config(config, Some(&*arenas)))?,
        };
        let metrics = Arc::new(Metrics::new(&BuildInfo {
            version: env!("CARGO_PKG_VERSION"),
            revision: option_env!("CODECACHED_REVISION").unwrap_or("unknown"),
            arch: std::env::consts::ARCH,
            strategy: arenas.stats().strategy,
            isolation: isolation(config),
        }));
        let service = Service::new(arenas, cache, pool, Arc::clone(&metrics), limits(config));
        Ok(Parts { service, metrics, tools })
    }
}

fn tenant_key() -> Result<[u8; 32], DaemonError> {
    let mut key = [0; 32];
    for part in key.chunks_exact_mut(8) {
        part.copy_from_slice(&arena::random().map_err(DaemonError::Random)?.to_le_bytes());
    }
    Ok(key)
}

fn cache(config: &Config, arenas: &Arc<Arenas>, tools: Option<&Arc<Tools>>) -> Result<Cache, DaemonError> {
    let cache = Cache::new(
        &CacheConfig {
            budget_bytes: config.cache.budget_bytes,
            eviction_window: config.cache.eviction_window,
            // Anew in every process, and from the system: the keys of this thread's hash tables were there before the
            // process that forks workers, in which code can read them.
            generation_seed: arena::random().map_err(DaemonError::Random)?,
            tenant_key: tenant_key()?,
            clock: Instant::now,
        },
        Arc::clone(arenas),
        imports(),
    );
    let cache = match tools {
        Some(tools) => cache.watched_by(tools.watcher()),
        None => cache,
    };
    let cache = cache.quarantining(QuarantineRule {
        traps: config.exec.quarantine_traps,
        window: Duration::from_millis(config.exec.quarantine_window_ms),
    });
    Ok(if config.tools.keep_addresses { cache.keeping_addresses() } else { cache })
}

async fn run(config: &Config, sockets: Sockets, service: Service, metrics: Arc<Metrics>) -> Result<(), DaemonError> {
    let mut stop_signals = StopSignals::new().map_err(DaemonError::Runtime)?;
    let manager = Arc::new(Manager::of_environment().map_err(DaemonError::Manager)?);
    let targets = sockets.targets().map_err(DaemonError::Runtime)?;
    let Sockets { listeners, metrics: metrics_socket } = sockets;
    let (stop, stopping) = watch::channel(false);
    let metrics_address = serve_metrics(metrics_socket, &service, stopping.clone()).map_err(DaemonError::Runtime)?;
    let sampled = service.clone();
    let upkeep = tokio::spawn(async move {
        let mut interval = tokio::time::interval(SAMPLE_INTERVAL);
        loop {
            interval.tick().await;
            metrics.upkeep();
            sampled.sample_status();
        }
    });
    let watched = tokio::spawn(tell_alive(Arc::clone(&manager), service.clone()));
    let (reporter, health) = server::health().await;
    let transport = Transport {
        connections_max: config.server.connections_max,
        streams_per_connection_max: config.server.streams_per_connection_max,
    };
    let serving = server::serve(&service, listeners, &transport, health, stopping);
    let is_lost = Cell::new(None);
    let drained = async {
        server::set_serving(&reporter, true).await;
        tracing::info!(listen = targets, metrics = metrics_address, pid = std::process::id(), "ready");
        manager.ready(&targets);
        let signal = tokio::select! {
            signal = stop_signals.next() => signal,
            why = lost(&service) => {
                is_lost.set(Some(why));
                "none"
            }
        };
        let grace = Duration::from_millis(config.server.grace_ms);
        let until = Instant::now() + grace;
        tracing::info!(signal, grace_ms = config.server.grace_ms, "draining");
        manager.stopping(grace, END_GRACE);
        server::set_serving(&reporter, false).await;
        service.start_draining();
        drain_calls(&service, until - ANSWER_GRACE.min(Duration::from_millis(config.server.grace_ms / 2))).await;
        stop.send_replace(true);
        // Answers still to be sent are waited for; connections that stay open without a request are not.
        service.until_idle(until).await;
        tokio::time::sleep_until(until.min(Instant::now() + ANSWER_GRACE).into()).await;
    };
    let result = tokio::select! {
        result = serving => result.map_err(DaemonError::Serve),
        () = drained => Ok(()),
    };
    upkeep.abort();
    watched.abort();
    tracing::info!("stopped");
    is_lost.get().map_or(result, |why| Err(DaemonError::Lost(why)))
}

/// Comes back when the daemon cannot go on, with why.
async fn lost(service: &Service) -> &'static str {
    let mut interval = tokio::time::interval(LOST_INTERVAL);
    loop {
        interval.tick().await;
        if let Err(why) = service.alive() {
            return why;
        }
    }
}

/// Tells the service manager's watchdog that the daemon does not hang, for as long as that is so: the runtime gets to
/// this, and the locks of the parts can be had.
async fn tell_alive(manager: Arc<Manager>, service: Service) {
    let Some(interval) = manager.alive_interval() else { return };
    let mut interval = tokio::time::interval(interval);
    loop {
        interval.tick().await;
        let service = service.clone();
        if tokio::task::spawn_blocking(move || service.touch_locks()).await.is_ok() {
            manager.alive();
        }
    }
}

async fn drain_calls(service: &Service, until: Instant) {
    let service = service.clone();
    let drained = tokio::task::spawn_blocking(move || service.drain_calls(until)).await;
    if !matches!(drained, Ok(true)) {
        tracing::warn!("some calls did not end within the grace");
    }
}

/// Starts the HTTP server of the metrics, if there is a socket for it; answers its address, or "off".
fn serve_metrics(
    socket: Option<std::net::TcpListener>,
    service: &Service,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<String> {
    let Some(socket) = socket else { return Ok("off".to_owned()) };
    let bound = socket.local_addr()?;
    let listener = TcpListener::from_std(socket)?;
    let (rendering, felt, asked, shown) = (service.clone(), service.clone(), service.clone(), service.clone());
    let pages = http::Pages {
        scrape: Arc::new(move || rendering.render_metrics()),
        liveness: Arc::new(move || Ok(felt.alive()?)),
        readiness: Arc::new(move || asked.ready()),
        status: Arc::new(move || shown.status_json()),
    };
    let stopped = async move { drop(stopping.wait_for(|stop| *stop).await) };
    let serving = http::serve(listener, pages, stopped);
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the metrics server ended");
        }
    });
    Ok(bound.to_string())
}

fn arena_config(config: &Config) -> ArenaConfig {
    let commit_limit_bytes = (config.cache.budget_bytes as f64 * COMMIT_PER_BUDGET) as u64;
    let directory = &config.arena.directory;
    ArenaConfig {
        low_bytes: config.arena.low_bytes,
        granule_bytes: config.arena.granule_bytes,
        shards: shards(config),
        keep_free_bytes: config.arena.keep_free_bytes,
        write_window: match config.arena.write_window {
            WriteWindow::Always => arena::WriteWindow::Always,
            WriteWindow::OnDemand => arena::WriteWindow::OnDemand,
        },
        directory: (!directory.as_os_str().is_empty()).then(|| directory.clone()),
        allow_mprotect: config.arena.allow_mprotect,
        inherited: config.exec.isolation == Isolation::Process,
        huge_pages: match config.arena.huge_pages {
            HugePages::Never => arena::HugePages::Never,
            HugePages::Collapse => arena::HugePages::Collapse,
            HugePages::Hugetlb => arena::HugePages::Hugetlb,
        },
        ..ArenaConfig::new(config.arena.reserve_max_bytes, commit_limit_bytes)
    }
}

fn tools_config(config: &Config) -> ToolsConfig {
    ToolsConfig {
        perf: match config.tools.perf {
            Perf::Off => None,
            Perf::Map => Some(tools::Perf::Map),
            Perf::Jitdump => Some(tools::Perf::JitDump),
        },
        directory: config.tools.directory.clone(),
        file_max_bytes: config.tools.file_max_bytes,
        gdb: config.tools.gdb,
        unwind: config.tools.unwind,
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        unary_max_bytes: config.server.unary_max_bytes,
        stream_max_bytes: config.server.stream_max_bytes,
        stream_chunk_max_bytes: config.server.stream_chunk_max_bytes,
        stream_idle_timeout: Duration::from_millis(config.server.stream_idle_timeout_ms),
        streams_max: config.server.streams_max,
        call_streams_max: config.server.call_streams_max,
        call_stream_idle_timeout: Duration::from_millis(config.server.call_stream_idle_timeout_ms),
        stream_calls_max: config.exec.stream_calls_max,
        code: code::Limits {
            blob_max_bytes: config.server.unary_max_bytes.max(config.server.stream_max_bytes),
            image_max_bytes: config.code.image_max_bytes,
            sections_max: config.code.sections_max,
            symbols_max: config.code.symbols_max,
            relocations_max: config.code.relocations_max,
            ..code::Limits::default()
        },
        screen: config.code.screen,
        keep_unwind: config.tools.unwind,
        call_memory_max_bytes: config.exec.call_memory_max_bytes,
        cpu_limit_default: Duration::from_millis(config.exec.cpu_limit_default_ms),
        cpu_limit_max: Duration::from_millis(config.exec.cpu_limit_max_ms),
        linking_max: cores(),
        in_flight_max: config.server.requests_in_flight_max,
        timeout_max: Duration::from_millis(config.server.request_timeout_max_ms),
    }
}

/// What lies in an arena lies there as a whole: not so many that the largest image would fit into none of them.
fn shards(config: &Config) -> u32 {
    match config.arena.shards {
        0 => {
            let fit = (config.arena.reserve_max_bytes / config.code.image_max_bytes).max(1);
            (cores() as u64).min(fit) as u32
        }
        shards => shards,
    }
}

fn runtime(config: &Config) -> io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if runs_inline(config) {
        builder.on_thread_start(exec::lend_thread);
    }
    builder.worker_threads(worker_threads(config)).thread_name("grpc").enable_all().build()
}

fn worker_threads(config: &Config) -> usize {
    match config.server.worker_threads {
        0 => cores(),
        threads => threads,
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// SIGTERM and SIGINT.
struct StopSignals {
    term: Signal,
    int: Signal,
}

impl StopSignals {
    fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
