//! The command line.

mod bench;

use std::{path::PathBuf, sync::LazyLock, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use codecached::proto::{FlatEntry, ListOrder, MemoryKind, Priority, ResultType};

pub(crate) use self::bench::{Bench, By, Workload};
use crate::{batch::Given, units, value::Argument};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the daemon answered with an error
  2  misuse, or a file here cannot be read or written
  3  not found: no such entry, symbol or handle
  4  the call trapped
  5  the daemon cannot be reached, is shutting down, or did not answer in time

A KEY is text, or bytes in the form hex:00ff.
The server may also be given by the environment variable CODECACHED_SERVER.";

/// Of the package, and of the source it was built from.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let revision = option_env!("CODECACHED_REVISION").unwrap_or("unknown");
    format!("{} (revision {revision})", env!("CARGO_PKG_VERSION"))
});

/// Talks to a running codecached: installs, finds, calls, evicts and measures.
#[derive(Debug, Parser)]
#[command(name = "codecachectl", version = VERSION.as_str(), after_help = EXIT_CODES, max_term_width = 120)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Where the daemon listens: unix:PATH or http://HOST:PORT [default: unix:/run/codecached/codecached.sock]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(crate) server: Option<String>,
    /// Namespace of the keys
    #[arg(long, global = true, default_value = "", hide_default_value = true)]
    pub(crate) namespace: String,
    /// Longest wait for one answer, such as 500ms, 10s or 2m
    #[arg(long, global = true, default_value = "10s", value_parser = units::parse_duration, value_name = "TIME")]
    pub(crate) timeout: Duration,
    /// Print JSON for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install compiled code under a key
    ///
    /// Each FILE is an entry of its own. For several, KEY must hold `{}`, which becomes the name of the file without
    /// directory and extension: `install 'zlib/{}' crc32.o adler32.o` installs zlib/crc32 and zlib/adler32.
    Install(Install),
    /// Show the entry under a key
    Lookup(Lookup),
    /// List the symbols of an entry with their signatures
    Symbols(Symbols),
    /// Call a function of an entry
    Call(Call),
    /// Call a function of an entry for each row of columns of numbers
    Batch(Batch),
    /// Show what runs and waits in the namespace
    Executions,
    /// Stop what runs or waits; its caller is told by a trap
    Cancel(Cancel),
    /// Take an entry out
    Evict(Evict),
    /// Let an entry be called again that is quarantined for its traps
    Unquarantine(Unquarantine),
    /// List entries
    List(List),
    /// Show the instructions of an entry
    Disasm(Disasm),
    /// Show what the daemon holds and does
    Stats,
    /// Show where the executable memory is used, lingers and is free, as a picture
    Arenas(Arenas),
    /// Show what the daemon runs on, takes and offers
    Capabilities,
    /// Ask whether requests are taken. Exit code 0 if so, 5 if not or if nobody answers, 3 if there is no such service
    Health(Health),
    /// Measure throughput and latency; its entries push out others if the budget is full
    Bench(Bench),
}

#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Key; `{}` in it stands for the stem of the file's name, and each file becomes an entry. Without it several
    /// objects are joined into one
    pub(crate) key: String,
    /// ELF relocatable objects (`cc -c`), a static archive, or flat code with --flat
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The files are flat position-independent code; an entry point and its offset in bytes (repeatable)
    #[arg(long, value_name = "NAME=OFFSET", value_parser = parse_flat)]
    pub(crate) flat: Vec<FlatEntry>,
    /// Symbol that the entry shall have; of an archive what it needs is taken (repeatable; without it: all that is global)
    #[arg(long, value_name = "SYMBOL")]
    pub(crate) export: Vec<String>,
    /// Keep sections that nothing exported needs
    #[arg(long)]
    pub(crate) keep_unused: bool,
    /// Key of an installed entry whose symbols the code may use, before those of the daemon (repeatable; the first that
    /// has a name is taken)
    #[arg(long, value_name = "KEY")]
    pub(crate) needs: Vec<String>,
    /// Take the place of other bytes under the key
    #[arg(long)]
    pub(crate) replace: bool,
    /// Calls may overlap although the code has writable data
    #[arg(long)]
    pub(crate) reentrant: bool,
    /// What an exported function takes and returns, such as 'i32 add(i32, i32)'; calls are held to it (repeatable)
    #[arg(long, value_name = "DECLARATION")]
    pub(crate) signature: Vec<String>,
    /// A file of such declarations, one a line; lines that start with # or // are comments (repeatable)
    #[arg(long, value_name = "FILE")]
    pub(crate) signatures: Vec<PathBuf>,
    /// Refuse the install where the processor lacks this feature or level, such as avx2 or x86-64-v3 (repeatable)
    #[arg(long, value_name = "FEATURE")]
    pub(crate) require: Vec<String>,
    /// Install nothing: show all that is wrong with the files. Exit code 1 if an install would be refused
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Symbols {
    /// Key
    pub(crate) key: String,
}

#[derive(Debug, Args)]
pub(crate) struct Lookup {
    /// Key
    pub(crate) key: String,
    /// Show the exported symbols too
    #[arg(long)]
    pub(crate) symbols: bool,
    /// Leave recency and the hit counters alone
    #[arg(long)]
    pub(crate) peek: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Key
    pub(crate) key: String,
    /// Function
    pub(crate) symbol: String,
    /// i32:-1 u32:7 i64:-1 u64:0xff f32:1.5 f64:1.5, bytes:SOURCE (pointer to a copy), inout:SOURCE (the same, printed
    /// afterwards), out:N (pointer to N zeroed bytes, printed afterwards); SOURCE is @FILE, @- (standard input),
    /// hex:00ff or text:abc. The type may be left out where the function has a declared signature: 7, text:abc
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    pub(crate) arguments: Vec<Argument>,
    /// Type of the result [default: that of the declared signature, else void]
    #[arg(long, value_enum)]
    pub(crate) result: Option<ResultName>,
    /// CPU time that the call may take
    #[arg(long, value_parser = units::parse_duration, value_name = "TIME")]
    pub(crate) cpu_limit: Option<Duration>,
    /// Time on the wall clock that the call may take
    #[arg(long, value_parser = units::parse_duration, value_name = "TIME")]
    pub(crate) wall_cap: Option<Duration>,
    /// Which of the waiting calls of the namespace goes first
    #[arg(long, value_enum, default_value = "normal")]
    pub(crate) priority: PriorityName,
    /// Write the Nth out or inout buffer, counted from 0, to a file (repeatable)
    #[arg(long, value_name = "N=FILE", value_parser = parse_output)]
    pub(crate) output: Vec<(usize, PathBuf)>,
    /// Call this many times, one after the other, until one traps
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) repeat: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Batch {
    /// Key
    pub(crate) key: String,
    /// Function
    pub(crate) symbol: String,
    /// An argument for all rows, as TYPE:NUMBERS. TYPE is i32, u32, i64, u64, f32 or f64; NUMBERS are 1,2,3 or @FILE (text,
    /// with spaces, commas or lines between them) or raw@FILE (little-endian bytes). A single number stands for all rows
    #[arg(value_name = "COLUMN", allow_negative_numbers = true)]
    pub(crate) columns: Vec<Given>,
    /// How many rows [default: those of the longest column]
    #[arg(long)]
    pub(crate) rows: Option<u64>,
    /// Type of the result [default: that of the declared signature, else void]
    #[arg(long, value_enum)]
    pub(crate) result: Option<ResultName>,
    /// CPU time that all rows together may take
    #[arg(long, value_parser = units::parse_duration, value_name = "TIME")]
    pub(crate) cpu_limit: Option<Duration>,
    /// Time on the wall clock that all rows together may take
    #[arg(long, value_parser = units::parse_duration, value_name = "TIME")]
    pub(crate) wall_cap: Option<Duration>,
    /// Write the results to a file, as little-endian bytes, instead of printing them
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// As `executions` shows it
    pub(crate) id: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Evict {
    /// Key
    pub(crate) key: String,
    /// Wait until the memory has come back
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Unquarantine {
    /// Key
    pub(crate) key: String,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only keys that start with this
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// What comes first
    #[arg(long, value_enum, default_value = "key")]
    pub(crate) order: Order,
    /// Entries at most; orders other than by key end at one page of the daemon
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Disasm {
    /// Key
    pub(crate) key: String,
    /// Function, exported or not [default: all code]
    pub(crate) symbol: Option<String>,
    /// Instructions at most
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Arenas {
    /// Only memory of this kind
    #[arg(long, value_enum)]
    pub(crate) kind: Option<Kind>,
    /// Only this arena, counted from 0
    #[arg(long, value_name = "N")]
    pub(crate) arena: Option<u32>,
    /// Columns of the picture [default: COLUMNS, else those of the terminal, else 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(20..=1000))]
    pub(crate) width: Option<u16>,
    /// Colours: auto is for terminals, unless NO_COLOR is set
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) color: Color,
}

#[derive(Debug, Args)]
pub(crate) struct Health {
    /// Full name of a service, such as codecache.v1.ExecutionService [default: the daemon as a whole]
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) service: String,
}

/// Type of a result.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ResultName {
    Void,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

impl From<ResultName> for ResultType {
    fn from(name: ResultName) -> Self {
        match name {
            ResultName::Void => Self::Void,
            ResultName::I32 => Self::I32,
            ResultName::U32 => Self::U32,
            ResultName::I64 => Self::I64,
            ResultName::U64 => Self::U64,
            ResultName::F32 => Self::F32,
            ResultName::F64 => Self::F64,
        }
    }
}

/// Which of the waiting calls of one namespace goes first.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PriorityName {
    Low,
    Normal,
    High,
}

impl From<PriorityName> for Priority {
    fn from(name: PriorityName) -> Self {
        match name {
            PriorityName::Low => Self::Low,
            PriorityName::Normal => Self::Normal,
            PriorityName::High => Self::High,
        }
    }
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    Key,
    /// The most recently used
    Recent,
    /// The next victim
    Oldest,
    /// The largest
    Size,
    /// The most called
    Calls,
}

impl From<Order> for ListOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::Key => Self::Key,
            Order::Recent => Self::MostRecent,
            Order::Oldest => Self::LeastRecent,
            Order::Size => Self::Size,
            Order::Calls => Self::Calls,
        }
    }
}

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Code,
    Rodata,
    Data,
}

impl From<Kind> for MemoryKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Code => Self::Code,
            Kind::Rodata => Self::Rodata,
            Kind::Data => Self::Data,
        }
    }
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

fn parse_flat(text: &str) -> Result<FlatEntry, String> {
    let (name, offset) = text.rsplit_once('=').ok_or("must be NAME=OFFSET")?;
    let offset_bytes = units::parse_integer(offset)?;
    Ok(FlatEntry { name: name.into(), offset_bytes })
}

fn parse_output(text: &str) -> Result<(usize, PathBuf), String> {
    let (index, path) = text.split_once('=').ok_or("must be N=FILE")?;
    let index = index.parse().map_err(|_| format!("{index:?} is not the number of a buffer"))?;
    Ok((index, path.into()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn arguments_of_a_call_may_look_like_options() {
        let line = "codecachectl call k f i64:-5 out:100 -7 --result u32 --output 0=a=b --cpu-limit 100ms";
        let Command::Call(call) = Arguments::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("another command")
        };
        assert_eq!(call.arguments.len(), 3);
        assert_eq!(call.output, [(0, "a=b".into())]);
        assert_eq!(call.cpu_limit, Some(Duration::from_millis(100)));
    }

    #[test]
    fn bad_values_are_misuse() {
        for line in [
            "install k",
            "install k f --flat main",
            "install k f --flat main=x",
            "call k f u32:-1",
            "call k f --output x=f",
            "call k f --repeat 0",
            "list --limit 0",
            "disasm k --limit 10001",
            "bench lookup --seconds NaN",
            "bench lookup --in-flight 100000",
            "batch k f i64:@",
            "batch k f x:1",
            "cancel x",
            "stats --timeout 10",
            "arenas --kind heap",
            "arenas --width 5",
            "arenas --color red",
        ] {
            let parsed = Arguments::try_parse_from(std::iter::once("codecachectl").chain(line.split(' ')));
            assert_eq!(parsed.expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
