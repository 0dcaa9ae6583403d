//! Every key with its unit and range.

use std::{fmt, net::SocketAddr, path::Path};

use toml::{Table, Value};

use super::{ConfigError, Listen, Origin, size};

/// Listeners at most: one for each way in is plenty.
const LISTEN_MAX: usize = 16;
/// Bytes of the filter of the log.
const LEVEL_MAX_BYTES: usize = 4096;
/// Bytes of a path: what the system takes, but for the zero at its end.
const PATH_MAX_BYTES: usize = 4095;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HOUR_MS: u64 = 3_600_000;

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    path: &'static str,
    /// Form and range of its value.
    pub kind: Kind,
}

/// Form and range of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number from `min` to `max`.
    Number {
        /// What it counts.
        unit: Unit,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A power of two from `min` to `max`, in bytes.
    PowerOfTwo {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// true or false.
    Switch,
    /// One of these words, at least two.
    Word(&'static [&'static str]),
    /// The absolute path of a directory, or nothing.
    Directory,
    /// A list of [`Listen`].
    Listeners,
    /// `ADDRESS:PORT` or "off".
    AddressOrOff,
    /// Directives of tracing's env-filter. Their syntax is checked by whoever sets up the log.
    Filter,
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes; may be written with a unit, such as "256 MiB".
    Bytes,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
    /// Things.
    Count,
}

/// All keys, in the order of the shipped file.
pub const KEYS: &[Key] = &[
    Key { path: "server.listen", kind: Kind::Listeners },
    Key { path: "server.metrics", kind: Kind::AddressOrOff },
    bytes("server.unary_max_bytes", 4 * KIB, 16 * MIB),
    // Not above what an image may have.
    bytes("server.stream_max_bytes", 4 * KIB, 512 * MIB),
    // Each is one message, as is a unary request.
    bytes("server.stream_chunk_max_bytes", 4 * KIB, 16 * MIB),
    milliseconds("server.stream_idle_timeout_ms", 1, HOUR_MS),
    count("server.streams_max", 1, 65_536),
    count("server.call_streams_max", 1, 65_536),
    milliseconds("server.call_stream_idle_timeout_ms", 1, HOUR_MS),
    count("server.connections_max", 1, 65_536),
    count("server.streams_per_connection_max", 1, 65_536),
    count("server.requests_in_flight_max", 1, 65_536),
    milliseconds("server.request_timeout_max_ms", 1, HOUR_MS),
    milliseconds("server.grace_ms", 0, HOUR_MS),
    count("server.worker_threads", 0, 1024),
    bytes("cache.budget_bytes", 64 * KIB, 1024 * GIB),
    count("cache.eviction_window", 0, 1024),
    bytes("arena.reserve_max_bytes", 2 * MIB, 1024 * GIB),
    // Three times this and guards leave more than half of the addresses below 2 GiB to be placed among.
    bytes("arena.low_bytes", 0, 256 * MIB),
    Key { path: "arena.granule_bytes", kind: Kind::PowerOfTwo { min: 16, max: 4 * KIB } },
    count("arena.shards", 0, 64),
    bytes("arena.keep_free_bytes", 0, GIB),
    Key { path: "arena.write_window", kind: Kind::Word(&["always", "on-demand"]) },
    Key { path: "arena.directory", kind: Kind::Directory },
    Key { path: "arena.allow_mprotect", kind: Kind::Switch },
    Key { path: "arena.huge_pages", kind: Kind::Word(&["never", "collapse", "hugetlb"]) },
    // Code reaches all of its image by 32-bit displacements, so the bound is below 2 GiB.
    bytes("code.image_max_bytes", 4 * KIB, 512 * MIB),
    // Objects number their sections with 16 bits.
    count("code.sections_max", 1, 65_536),
    count("code.symbols_max", 1, 16_777_216),
    count("code.relocations_max", 1, 16_777_216),
    Key { path: "code.screen", kind: Kind::Word(&["off", "warn", "reject"]) },
    // With those beside them no more than a process can have: `exec::EXECUTORS_MAX`.
    count("exec.executors", 0, 192),
    count("exec.spare_executors", 0, 32),
    count("exec.queue_max", 1, 65_536),
    count("exec.queue_namespace_max", 0, 65_536),
    Key { path: "exec.inline_us", kind: Kind::Number { unit: Unit::Microseconds, min: 0, max: 1000 } },
    count("exec.stream_calls_max", 1, 65_536),
    bytes("exec.stack_bytes", 64 * KIB, GIB),
    bytes("exec.stack_guard_bytes", 64 * KIB, GIB),
    bytes("exec.call_memory_max_bytes", 64 * KIB, GIB),
    milliseconds("exec.cpu_limit_default_ms", 1, HOUR_MS),
    milliseconds("exec.cpu_limit_max_ms", 1, HOUR_MS),
    milliseconds("exec.stuck_after_ms", 10, HOUR_MS),
    count("exec.stuck_max", 0, 32),
    count("exec.quarantine_traps", 0, 10_000),
    milliseconds("exec.quarantine_window_ms", 1, HOUR_MS),
    Key { path: "exec.watchdog_tick_us", kind: Kind::Number { unit: Unit::Microseconds, min: 100, max: 1_000_000 } },
    Key { path: "exec.system_call_filter", kind: Kind::Word(&["require", "try", "off"]) },
    Key { path: "exec.isolation", kind: Kind::Word(&["thread", "process"]) },
    count("exec.worker_spawns_max_per_s", 1, 10_000),
    Key { path: "confine.system_calls", kind: Kind::Word(&["require", "try", "off"]) },
    Key { path: "confine.landlock", kind: Kind::Word(&["require", "try", "off"]) },
    Key { path: "tools.perf", kind: Kind::Word(&["off", "map", "jitdump"]) },
    Key { path: "tools.directory", kind: Kind::Directory },
    bytes("tools.file_max_bytes", 64 * KIB, 1024 * GIB),
    Key { path: "tools.keep_addresses", kind: Kind::Switch },
    Key { path: "tools.gdb", kind: Kind::Switch },
    Key { path: "tools.unwind", kind: Kind::Switch },
    Key { path: "log.level", kind: Kind::Filter },
    Key { path: "log.format", kind: Kind::Word(&["text", "json"]) },
];

impl Key {
    /// Section and name, such as "cache.budget_bytes".
    pub fn path(&self) -> &'static str {
        self.path
    }

    /// The section, such as "cache".
    pub fn section(&self) -> &'static str {
        self.parts().0
    }

    /// The name within its section, such as "budget_bytes".
    pub fn name(&self) -> &'static str {
        self.parts().1
    }

    /// The environment variable, such as "CODECACHED_CACHE_BUDGET_BYTES".
    pub fn variable(&self) -> String {
        format!("CODECACHED_{}_{}", self.section(), self.name()).to_uppercase()
    }

    /// Brings a value into the one form that the tree is read from.
    ///
    /// # Errors
    /// [`ConfigError::Value`]: the wrong form, or out of range.
    pub(super) fn read(&self, raw: &Value, origin: &Origin) -> Result<Value, ConfigError> {
        self.kind.read(raw).map_err(|expected| ConfigError::Value {
            key: self.path,
            value: written(raw),
            expected,
            origin: origin.clone(),
        })
    }

    fn parts(&self) -> (&'static str, &'static str) {
        self.path.split_once('.').expect("invariant: a test holds KEYS equal to the sections of the tree")
    }
}

/// The key of this path, if there is one.
pub(super) fn by_path(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The value of a key in a table of sections.
pub(super) fn find<'a>(table: &'a Table, key: &Key) -> Option<&'a Value> {
    table.get(key.section())?.get(key.name())
}

/// A value as its TOML has it, or nearly so.
pub(super) fn written(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(truth) => truth.to_string(),
        Value::Datetime(time) => time.to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        Value::Table(_) => "a table".to_owned(),
    }
}

impl Kind {
    /// The value in its one form, or what was expected instead.
    fn read(self, raw: &Value) -> Result<Value, String> {
        let text = |fits: &dyn Fn(&str) -> bool| raw.as_str().filter(|text| fits(text)).map(Value::from);
        let number = |unit: Unit, fits: &dyn Fn(u64) -> bool| {
            unit.read(raw).filter(|number| fits(*number)).and_then(|it| i64::try_from(it).ok()).map(Value::Integer)
        };
        let value = match self {
            Self::Number { unit, min, max } => number(unit, &|it| (min..=max).contains(&it)),
            Self::PowerOfTwo { min, max } => {
                number(Unit::Bytes, &|it| it.is_power_of_two() && (min..=max).contains(&it))
            }
            Self::Switch => read_switch(raw),
            Self::Word(words) => text(&|text| words.contains(&text)),
            Self::Directory => text(&is_directory),
            Self::Listeners => return read_listeners(raw).map_err(|why| format!("{self}: {why}")),
            Self::AddressOrOff => text(&|text| text == "off" || text.parse::<SocketAddr>().is_ok()),
            Self::Filter => text(&|text| !text.is_empty() && text.len() <= LEVEL_MAX_BYTES),
        };
        value.ok_or_else(|| self.to_string())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Number { unit: Unit::Bytes, min, max } => {
                write!(f, "bytes, {} to {}", size::format(min), size::format(max))
            }
            Self::Number { unit: Unit::Milliseconds, min, max } => write!(f, "milliseconds, {min} to {max}"),
            Self::Number { unit: Unit::Microseconds, min, max } => write!(f, "microseconds, {min} to {max}"),
            Self::Number { unit: Unit::Count, min, max } => write!(f, "count, {min} to {max}"),
            Self::PowerOfTwo { min, max } => {
                write!(f, "bytes, a power of two, {} to {}", size::format(min), size::format(max))
            }
            Self::Switch => write!(f, "true or false"),
            Self::Word([first @ .., last]) => write!(f, "{} or {last}", first.join(", ")),
            Self::Word([]) => write!(f, "no word"),
            Self::Directory => write!(f, "absolute path of a directory, or empty"),
            Self::Listeners => write!(f, "1 to {LISTEN_MAX} of unix:PATH and tcp:ADDRESS:PORT, each once"),
            Self::AddressOrOff => write!(f, "ADDRESS:PORT or off"),
            Self::Filter => write!(f, "env-filter directives, 1 to {LEVEL_MAX_BYTES} bytes"),
        }
    }
}

impl Unit {
    fn read(self, raw: &Value) -> Option<u64> {
        match (self, raw) {
            (_, Value::Integer(number)) => u64::try_from(*number).ok(),
            (Self::Bytes, Value::String(text)) => size::parse(text),
            (_, Value::String(text)) => text.parse().ok(),
            _ => None,
        }
    }
}

/// A truth value, or its word as flags and the environment have it.
fn read_switch(raw: &Value) -> Option<Value> {
    match raw {
        Value::Boolean(on) => Some(*on),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
    .map(Value::Boolean)
}

/// Whether there is such a directory is for the arenas to find out.
fn is_directory(text: &str) -> bool {
    text.is_empty() || (Path::new(text).is_absolute() && text.len() <= PATH_MAX_BYTES && !text.contains('\0'))
}

/// A list, or one text with commas as flags and the environment have it.
fn read_listeners(raw: &Value) -> Result<Value, String> {
    let texts: Vec<&str> = match raw {
        Value::String(text) => text.split(',').collect(),
        Value::Array(items) => items.iter().map(Value::as_str).collect::<Option<_>>().ok_or("not a list of texts")?,
        _ => return Err("not a list of texts".to_owned()),
    };
    if texts.is_empty() || texts.len() > LISTEN_MAX {
        return Err(format!("{} are given", texts.len()));
    }
    let mut seen: Vec<Listen> = Vec::with_capacity(texts.len());
    for text in texts {
        let listen: Listen = text.parse().map_err(|error: super::ListenError| error.to_string())?;
        let any_port = matches!(listen, Listen::Tcp(address) if address.port() == 0);
        if seen.contains(&listen) && !any_port {
            return Err(format!("{listen} stands there twice"));
        }
        seen.push(listen);
    }
    Ok(seen.into_iter().map(String::from).collect::<Vec<_>>().into())
}

const fn bytes(path: &'static str, min: u64, max: u64) -> Key {
    Key { path, kind: Kind::Number { unit: Unit::Bytes, min, max } }
}

const fn milliseconds(path: &'static str, min: u64, max: u64) -> Key {
    Key { path, kind: Kind::Number { unit: Unit::Milliseconds, min, max } }
}

const fn count(path: &'static str, min: u64, max: u64) -> Key {
    Key { path, kind: Kind::Number { unit: Unit::Count, min, max } }
}

/// `Option<SocketAddr>` as "ADDRESS:PORT" or "off".
pub(super) mod address_or_off {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    pub(crate) fn serialize<S: Serializer>(address: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => to.collect_str(address),
            None => to.serialize_str("off"),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
        match String::deserialize(from)?.as_str() {
            "off" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| D::Error::custom(format!("{text:?} is not ADDRESS:PORT or off")))
            }
        }
    }
}
