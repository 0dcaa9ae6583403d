//! What can be wrong with a configuration.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::Origin;

/// What is wrong with a configuration. Each text fits "bad configuration: {error}".
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Of the file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a configuration, by its size.
    #[error("{} is larger than {max_bytes} bytes", path.display())]
    FileTooLarge {
        /// Of the file.
        path: PathBuf,
        /// Bytes at most.
        max_bytes: u64,
    },
    /// The file is not TOML.
    #[error("cannot parse {}: {message}", path.display())]
    Syntax {
        /// Of the file.
        path: PathBuf,
        /// What the parser said, with line and column.
        message: String,
    },
    /// There is no such key.
    #[error("there is no key {key:?} (from {origin})")]
    UnknownKey {
        /// As it was written, with its section.
        key: String,
        /// Who named it.
        origin: Origin,
    },
    /// A value has the wrong form or is out of its range.
    #[error("{key} = {value} (from {origin}) is refused: expected {expected}")]
    Value {
        /// With its section.
        key: &'static str,
        /// As it was written.
        value: String,
        /// Form, unit and range.
        expected: String,
        /// Who gave it.
        origin: Origin,
    },
    /// A value is larger than another one that bounds it.
    #[error("{low} = {low_value} (from {low_origin}) is above {high} = {high_value} (from {high_origin})")]
    Order {
        /// Key of the bounded value.
        low: &'static str,
        /// The bounded value, in the unit of its key.
        low_value: u64,
        /// Who gave it.
        low_origin: Origin,
        /// Key of the bound.
        high: &'static str,
        /// The bound, in the unit of its key.
        high_value: u64,
        /// Who gave it.
        high_origin: Origin,
    },
    /// The values do not make a tree.
    #[error("the values do not fit together: {message}")]
    Shape {
        /// What the deserialiser said.
        message: String,
    },
}
