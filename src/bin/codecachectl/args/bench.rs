//! What `codecachectl bench` is told.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to do all the time
    #[arg(value_enum)]
    pub(crate) workload: Workload,
    /// Connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) connections: u16,
    /// Calls under way at once, all connections together
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) in_flight: u16,
    /// Seconds to measure
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    pub(crate) seconds: f64,
    /// Seconds of the same load before
    #[arg(long, default_value_t = 0.5, value_parser = parse_seconds)]
    pub(crate) warmup: f64,
    /// Entries to look up and call
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) keys: u32,
    /// Threads of this load generator
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) threads: u16,
    /// Bytes of each blob
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=1_048_576))]
    pub(crate) blob_bytes: u32,
    /// ELF object to install instead of flat code; the digits of its function f0000000 are changed each time
    #[arg(long, value_name = "FILE", conflicts_with = "blob_bytes")]
    pub(crate) object: Option<PathBuf>,
    /// What lookups send: a 32-byte key or a handle
    #[arg(long, value_enum, default_value = "key")]
    pub(crate) by: By,
    /// Rows of a batch, or calls of a message of a stream
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub(crate) together: u32,
    /// Print lines of name, value and unit
    #[arg(long, conflicts_with = "json")]
    pub(crate) plain: bool,
}

/// What the load generator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Find entries
    Lookup,
    /// Call `add(i32, i32)` by handle, and check the sum
    Execute,
    /// Call `add(i32, i32)` over columns, and check the sums; a call is a batch
    ExecuteBatch,
    /// Call `add(i32, i32)` on streams, one for each that is in flight; a call is a message of calls with their answers
    ExecuteStream,
    /// Install blobs that differ
    Install,
    /// 90 % execute, 9 % lookup, 1 % install
    Mixed,
}

/// What lookups send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    Key,
    Handle,
}

/// A day is longer than any measurement.
fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=86_400.0).contains(&seconds) { Ok(seconds) } else { Err("must be 0 to 86400".into()) }
}
