//! The tree of values, with its defaults.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{
    ConfigError, KEYS, Key, Listen, Origins, Sources,
    keys::{self, Kind, Unit},
    layers::Layers,
    size,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Everything the daemon may be told. [`KEYS`] has the range of each key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Listeners and the bounds of what they take.
    pub server: Server,
    /// How much stays resident.
    pub cache: Cache,
    /// Executable memory.
    pub arena: Arena,
    /// Bounds of objects.
    pub code: Code,
    /// Calls into resident code.
    pub exec: Exec,
    /// What the process gives up once it has started.
    pub confine: Confine,
    /// What profilers and debuggers are told.
    pub tools: Tools,
    /// What is told on standard error.
    pub log: Log,
}

/// Listeners and the bounds of what they take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Where gRPC is served, 1 to 16 listeners.
    pub listen: Vec<Listen>,
    /// Where `/metrics` and the probes are served over plain HTTP; `None` ("off"): nowhere.
    #[serde(with = "keys::address_or_off")]
    pub metrics: Option<SocketAddr>,
    /// Bytes of a blob in one unary request.
    pub unary_max_bytes: u64,
    /// Bytes of a blob that comes in chunks.
    pub stream_max_bytes: u64,
    /// Bytes of one chunk.
    pub stream_chunk_max_bytes: u64,
    /// Milliseconds that a client may send nothing of a blob that comes in chunks.
    pub stream_idle_timeout_ms: u64,
    /// Blobs that come in chunks at a time, over all connections.
    pub streams_max: usize,
    /// Streams of calls at a time, over all connections.
    pub call_streams_max: usize,
    /// Milliseconds during which nothing may come or go on such a stream.
    pub call_stream_idle_timeout_ms: u64,
    /// Connections at a time, over all listeners.
    pub connections_max: usize,
    /// Concurrent HTTP/2 streams of one connection.
    pub streams_per_connection_max: u32,
    /// Requests at a time, over all connections.
    pub requests_in_flight_max: usize,
    /// Milliseconds that any request may take, whatever deadline the client asks for.
    pub request_timeout_max_ms: u64,
    /// Milliseconds that running work is given after SIGTERM.
    pub grace_ms: u64,
    /// Threads of the async runtime; 0: one per core.
    pub worker_threads: usize,
}

/// How much stays resident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Bytes that the charges of all entries together never exceed.
    pub budget_bytes: u64,
    /// How many of the least recently used entries may go out of order for the sake of contiguity; 0: strict LRU.
    pub eviction_window: usize,
}

/// Executable memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Arena {
    /// Bytes of address space that are reserved at start for each kind of memory (code, read-only data, data).
    /// At least `cache.budget_bytes`, which may only ever move below it.
    pub reserve_max_bytes: u64,
    /// The same for one arena more, below 2 GiB, for objects with absolute addresses in 32 bits; 0: none.
    pub low_bytes: u64,
    /// Bytes that spans are rounded up to: a power of two.
    pub granule_bytes: u64,
    /// Parts that threads allocate from side by side; 0: one per core.
    pub shards: u32,
    /// Bytes of free committed memory that each shard keeps before whole free chunks go back to the system.
    pub keep_free_bytes: u64,
    /// When code memory can be written.
    pub write_window: WriteWindow,
    /// Where a nameless file may back the arenas if the system gives no memory file; empty: nowhere.
    pub directory: PathBuf,
    /// Whether changing the protection of pages back and forth may do if nothing else works.
    pub allow_mprotect: bool,
    /// Whether the arenas lie on huge pages.
    pub huge_pages: HugePages,
}

/// When code memory can be written, where it cannot run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteWindow {
    /// At any time.
    #[default]
    Always,
    /// While something is written or given back.
    OnDemand,
}

/// Whether the arenas lie on huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// No.
    #[default]
    Never,
    /// Full 2 MiB chunks become huge pages in the background.
    Collapse,
    /// All of it, from the pool that the system administrator has set aside.
    Hugetlb,
}

/// Bounds of objects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Code {
    /// Bytes of code, read-only data and data of one image, linked.
    pub image_max_bytes: u64,
    /// Sections of one object.
    pub sections_max: u32,
    /// Symbols of one object.
    pub symbols_max: u32,
    /// Relocations of one object.
    pub relocations_max: u32,
    /// Whether code is read before it is installed.
    pub screen: Screen,
}

/// Whether code is read for what it must not do before it is installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Screen {
    /// No.
    #[default]
    Off,
    /// What is found is sent back and logged.
    Warn,
    /// What is found refuses the install.
    Reject,
}

/// Calls into resident code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exec {
    /// Threads that run code; 0: one per core, at least 2.
    pub executors: usize,
    /// Threads beside them for namespaces of which no call runs.
    pub spare_executors: usize,
    /// Calls that may wait, all together.
    pub queue_max: usize,
    /// Calls of one namespace that may wait; 0: three quarters of `queue_max`.
    pub queue_namespace_max: usize,
    /// Microseconds: calls of functions that took no longer of late run on the thread that serves the request; 0: none.
    pub inline_us: u64,
    /// Calls of a message of ExecuteStream, and calls of a stream under way from which on no further message is read.
    pub stream_calls_max: usize,
    /// Bytes of stack of a call.
    pub stack_bytes: usize,
    /// Bytes of inaccessible address space below a stack.
    pub stack_guard_bytes: usize,
    /// Bytes of arguments, buffers and allocations of one call.
    pub call_memory_max_bytes: usize,
    /// Milliseconds of CPU time of a call that does not ask for less.
    pub cpu_limit_default_ms: u64,
    /// Milliseconds of CPU time that a call may ask for. At least `cpu_limit_default_ms`.
    pub cpu_limit_max_ms: u64,
    /// Milliseconds after the first signal after which a call counts as stuck.
    pub stuck_after_ms: u64,
    /// Executors that may be replaced at one time because their calls are stuck.
    pub stuck_max: usize,
    /// Traps within the window that quarantine an entry; 0: none do.
    pub quarantine_traps: u64,
    /// Milliseconds of that window.
    pub quarantine_window_ms: u64,
    /// Microseconds between two looks of the watchdog while code runs.
    pub watchdog_tick_us: u64,
    /// Whether system calls of code are contained.
    pub system_call_filter: SystemCallFilter,
    /// Where calls run.
    pub isolation: Isolation,
    /// Worker processes that are forked in a second.
    pub worker_spawns_max_per_s: u32,
}

/// Whether executors run under a filter that keeps code from system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SystemCallFilter {
    /// Without it the daemon does not start.
    #[default]
    Require,
    /// Where the system gives it.
    Try,
    /// No.
    Off,
}

/// What the process gives up once it has started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Confine {
    /// System calls that it has no need of, by a filter of its own.
    pub system_calls: Confinement,
    /// Files, ports and other processes, by the kernel's sandbox.
    pub landlock: Confinement,
}

/// Whether a measure is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confinement {
    /// Without it the daemon does not start.
    Require,
    /// Where the system gives it.
    #[default]
    Try,
    /// No.
    Off,
}

/// Where calls run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In threads of the daemon.
    #[default]
    Thread,
    /// In worker processes.
    Process,
}

/// What profilers and debuggers are told of resident code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tools {
    /// What is written for `perf`.
    pub perf: Perf,
    /// Where it is written.
    pub directory: PathBuf,
    /// Bytes of that file.
    pub file_max_bytes: u64,
    /// Whether addresses of evicted code are not used again before the budget or the arenas need them.
    pub keep_addresses: bool,
    /// Whether code is registered by GDB's interface for JIT compilers.
    pub gdb: bool,
    /// Whether unwind tables of objects are linked and registered.
    pub unwind: bool,
}

/// What is written for `perf`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Perf {
    /// Nothing.
    #[default]
    Off,
    /// Addresses and names, as text.
    Map,
    /// Those with times and the code itself.
    Jitdump,
}

/// What is told on standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Directives of tracing's env-filter, such as `info` or `info,codecached::service=debug`.
    pub level: String,
    /// Text for people, JSON lines for programs.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Lays the sources over the defaults and validates the result.
    ///
    /// # Errors
    /// The file cannot be read or parsed, a key does not exist, or a value is not in its range: the error names key,
    /// value, range and origin.
    pub fn load(sources: &Sources) -> Result<(Self, Origins), ConfigError> {
        let layers = Layers::merge(sources)?;
        let config: Self = Value::Table(layers.table)
            .try_into()
            .map_err(|error: toml::de::Error| ConfigError::Shape { message: error.message().to_owned() })?;
        config.validate(&layers.origins)?;
        Ok((config, layers.origins))
    }

    /// Holds every value against its range, and the values that depend on each other against each other.
    ///
    /// # Errors
    /// The first value that is out of its range, with its origin.
    pub fn validate(&self, origins: &Origins) -> Result<(), ConfigError> {
        let table = self.table()?;
        for key in KEYS {
            let raw = keys::find(&table, key).expect("invariant: a test holds KEYS equal to the fields of the tree");
            key.read(raw, origins.of(key.path()))?;
        }
        self.validate_pairs(origins)
    }

    /// Every key with its value as a person writes it, in the order of [`KEYS`].
    ///
    /// # Errors
    /// A number that no file could hold, which [`Config::validate`] refuses as well.
    pub fn effective(&self) -> Result<Vec<(&'static str, String)>, ConfigError> {
        let table = self.table()?;
        Ok(KEYS.iter().filter_map(|key| Some((key.path(), shown(key, keys::find(&table, key)?)))).collect())
    }

    /// The tree as TOML, whose integers end at `i64::MAX`.
    pub(super) fn table(&self) -> Result<Table, ConfigError> {
        Table::try_from(self).map_err(|error| ConfigError::Shape { message: error.to_string() })
    }

    fn validate_pairs(&self, origins: &Origins) -> Result<(), ConfigError> {
        let pairs = [
            ("cache.budget_bytes", self.cache.budget_bytes, "arena.reserve_max_bytes", self.arena.reserve_max_bytes),
            (
                "exec.cpu_limit_default_ms",
                self.exec.cpu_limit_default_ms,
                "exec.cpu_limit_max_ms",
                self.exec.cpu_limit_max_ms,
            ),
        ];
        for (low, low_value, high, high_value) in pairs {
            if low_value > high_value {
                let (low_origin, high_origin) = (origins.of(low).clone(), origins.of(high).clone());
                return Err(ConfigError::Order { low, low_value, low_origin, high, high_value, high_origin });
            }
        }
        Ok(())
    }
}

fn shown(key: &Key, value: &Value) -> String {
    match (key.kind, value) {
        (Kind::Number { unit: Unit::Bytes, .. } | Kind::PowerOfTwo { .. }, Value::Integer(bytes)) => {
            size::format(bytes.unsigned_abs())
        }
        // Not taken for a path, which begins with a slash.
        (Kind::Directory, Value::String(text)) if text.is_empty() => "empty".to_owned(),
        (_, Value::String(text)) => text.clone(),
        (_, Value::Array(items)) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        _ => keys::written(value),
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: vec![Listen::Unix("/run/codecached/codecached.sock".into())],
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
            unary_max_bytes: 4 * MIB,
            stream_max_bytes: 64 * MIB,
            stream_chunk_max_bytes: MIB,
            stream_idle_timeout_ms: 10_000,
            streams_max: 16,
            call_streams_max: 64,
            call_stream_idle_timeout_ms: 600_000,
            connections_max: 1024,
            streams_per_connection_max: 256,
            requests_in_flight_max: 1024,
            request_timeout_max_ms: 120_000,
            grace_ms: 10_000,
            worker_threads: 0,
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { budget_bytes: 256 * MIB, eviction_window: 16 }
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self {
            reserve_max_bytes: GIB,
            low_bytes: 0,
            granule_bytes: 64,
            shards: 0,
            keep_free_bytes: 8 * MIB,
            write_window: WriteWindow::Always,
            directory: PathBuf::new(),
            allow_mprotect: false,
            huge_pages: HugePages::Never,
        }
    }
}

impl Default for Code {
    fn default() -> Self {
        // As much as the largest streamed blob. The counts are far above what real code of a quarter of that has, with
        // a section for each function; a symbol and a relocation take 24 bytes of the blob each.
        Self {
            image_max_bytes: 64 * MIB,
            sections_max: 65_536,
            symbols_max: 262_144,
            relocations_max: 524_288,
            screen: Screen::Off,
        }
    }
}

impl Default for Exec {
    fn default() -> Self {
        Self {
            executors: 0,
            spare_executors: 1,
            queue_max: 1024,
            queue_namespace_max: 0,
            inline_us: 20,
            stream_calls_max: 4096,
            stack_bytes: 1 << 20,
            stack_guard_bytes: 64 << 20,
            call_memory_max_bytes: 64 << 20,
            cpu_limit_default_ms: 1_000,
            cpu_limit_max_ms: 60_000,
            stuck_after_ms: 2_000,
            stuck_max: 4,
            quarantine_traps: 0,
            quarantine_window_ms: 60_000,
            watchdog_tick_us: 1_000,
            system_call_filter: SystemCallFilter::Require,
            isolation: Isolation::Thread,
            worker_spawns_max_per_s: 200,
        }
    }
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            perf: Perf::Off,
            // The one place where perf looks for maps.
            directory: "/tmp".into(),
            file_max_bytes: 256 * MIB,
            keep_addresses: false,
            gdb: false,
            unwind: false,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}
