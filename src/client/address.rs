//! Where a daemon listens.

use std::{fmt, path::PathBuf, str::FromStr};

use tonic::transport::Uri;

use super::ClientError;

/// Where the daemon listens unless it is told otherwise.
pub const DEFAULT_ADDRESS: &str = "unix:/run/codecached/codecached.sock";

/// Where a daemon listens, in the form `unix:PATH` or `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A host and a port, without TLS.
    Http(Uri),
}

impl Address {
    /// Short name of the transport, for reports: `uds` or `tcp`.
    #[must_use]
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Unix(_) => "uds",
            Self::Http(_) => "tcp",
        }
    }
}

impl FromStr for Address {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let refused = || ClientError::Address { address: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///run/x` is how other gRPC clients spell an absolute path.
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(refused()) } else { Ok(Self::Unix(path.into())) };
        }
        let uri: Uri = text.parse().map_err(|_| refused())?;
        let complete = uri.scheme_str() == Some("http") && uri.port_u16().is_some() && uri.path() == "/";
        if complete { Ok(Self::Http(uri)) } else { Err(refused()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(to, "unix:{}", path.display()),
            Self::Http(uri) => write!(to, "http://{}", uri.authority().map_or("", |authority| authority.as_str())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_written_alike() {
        for text in ["unix:/run/a b/%41.sock", "unix:relative.sock", "http://127.0.0.1:7070", "http://[::1]:7070"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("unix:///run/x".parse::<Address>().unwrap(), Address::Unix("/run/x".into()));
        assert_eq!("http://h:1/".parse::<Address>().unwrap().to_string(), "http://h:1");
        assert_eq!("unix:a".parse::<Address>().unwrap().transport(), "uds");
        assert_eq!("http://h:1".parse::<Address>().unwrap().transport(), "tcp");
    }

    #[test]
    fn other_forms_are_refused() {
        for text in ["", "unix:", "/run/x", "https://h:1", "http://h", "http://h:1/path", "tcp:127.0.0.1:1", "http://"]
        {
            assert!(matches!(text.parse::<Address>(), Err(ClientError::Address { .. })), "{text:?} was taken");
        }
    }
}
