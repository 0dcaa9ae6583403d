//! The configuration: what the daemon may be told, from where, and within which bounds.
//!
//! Precedence: defaults < file < environment < flags. A key that does not exist is an error wherever it stands.

mod error;
mod keys;
mod layers;
mod listen;
mod size;
mod tree;

#[cfg(test)]
mod tests;

pub use error::ConfigError;
pub use keys::{KEYS, Key, Kind, Unit};
pub use layers::{Origin, Origins, Setting, Sources};
pub use listen::{Listen, ListenError};
pub use tree::{
    Arena, Cache, Code, Config, Confine, Confinement, Exec, HugePages, Isolation, Log, LogFormat, Perf, Screen, Server,
    SystemCallFilter, Tools, WriteWindow,
};
