//! Where gRPC is served.

use std::{fmt, net::SocketAddr, os::unix::ffi::OsStrExt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes of a path in `sockaddr_un`, without the NUL at its end (unix(7)).
const UNIX_PATH_MAX_BYTES: usize = 107;

/// One listener, written `unix:PATH` or `tcp:ADDRESS:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A loopback address; port 0 lets the system choose.
    Tcp(SocketAddr),
}

/// Why a text is no listener.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ListenError {
    /// Neither of the forms.
    #[error("{0:?} is neither unix:PATH nor tcp:ADDRESS:PORT")]
    Form(String),
    /// `unix:` with nothing behind it, or with what no path can hold.
    #[error("{0:?} names no path")]
    Path(String),
    /// The kernel takes no path as long as that.
    #[error("a socket path of {bytes} bytes is longer than {UNIX_PATH_MAX_BYTES}")]
    PathTooLong {
        /// Bytes of the path.
        bytes: usize,
    },
    /// Not an IP address with a port.
    #[error("{0:?} is not ADDRESS:PORT with an IP address")]
    Address(String),
    /// Whoever reaches the daemon runs code in it, and there is no TLS yet.
    #[error("{0} is not a loopback address; without TLS and an access list no other one is served")]
    NotLoopback(SocketAddr),
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        match text.split_once(':') {
            Some(("unix", path)) => unix(path),
            Some(("tcp", address)) => tcp(address),
            _ => Err(ListenError::Form(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = ListenError;

    fn try_from(text: String) -> Result<Self, ListenError> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

fn unix(path: &str) -> Result<Listen, ListenError> {
    if path.is_empty() || path.contains('\0') {
        return Err(ListenError::Path(path.to_owned()));
    }
    let path = PathBuf::from(path);
    match path.as_os_str().as_bytes().len() {
        bytes if bytes > UNIX_PATH_MAX_BYTES => Err(ListenError::PathTooLong { bytes }),
        _ => Ok(Listen::Unix(path)),
    }
}

fn tcp(text: &str) -> Result<Listen, ListenError> {
    let address: SocketAddr = text.parse().map_err(|_| ListenError::Address(text.to_owned()))?;
    if address.ip().is_loopback() { Ok(Listen::Tcp(address)) } else { Err(ListenError::NotLoopback(address)) }
}
