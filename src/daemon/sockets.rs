//! The sockets of the daemon, opened before it confines itself.

use std::{io, net::TcpListener};

use nix::sys::socket::{Backlog, listen};

use super::{
    DaemonError,
    passed::{self, Passed, Socket},
};
use crate::{
    config::{Config, Listen},
    service::{Endpoint, Listener},
};

/// Connections to the metrics server that may wait.
const METRICS_QUEUE_MAX: i32 = 128;

/// All that clients connect to.
pub(super) struct Sockets {
    /// For gRPC, in the order of `server.listen`.
    pub(super) listeners: Vec<Listener>,
    /// For the metrics, if they are served.
    pub(super) metrics: Option<TcpListener>,
}

impl Sockets {
    /// Those that were passed, the others opened here.
    ///
    /// # Errors
    /// [`DaemonError`]: one cannot be had, or one was passed that nobody asked for.
    pub(super) fn open(config: &Config) -> Result<Self, DaemonError> {
        Ok(Self { listeners: listeners(config)?, metrics: metrics(config)? })
    }

    /// What clients of gRPC connect to, with blanks between.
    pub(super) fn targets(&self) -> io::Result<String> {
        Ok(self.listeners.iter().map(Listener::target).collect::<Result<Vec<_>, _>>()?.join(" "))
    }
}

fn listeners(config: &Config) -> Result<Vec<Listener>, DaemonError> {
    let mut passed = passed::passed().map_err(DaemonError::Manager)?;
    let mut listeners = Vec::new();
    for listen in &config.server.listen {
        let error = |error| DaemonError::Listen { address: listen.to_string(), error };
        let there = passed.iter().position(|it| it.address == *listen).map(|at| passed.swap_remove(at));
        listeners.push(match there {
            Some(Passed { address: Listen::Unix(path), socket: Socket::Unix(socket) }) => {
                Listener::Unix { socket, path, passed: true }
            }
            Some(Passed { socket: Socket::Tcp(socket), .. }) => Listener::Tcp(socket),
            _ => Listener::bind(&endpoint(listen)).map_err(error)?,
        });
    }
    // Served nowhere, its clients would wait without end.
    passed.pop().map_or(Ok(listeners), |it| Err(DaemonError::Passed(it.address.to_string())))
}

fn metrics(config: &Config) -> Result<Option<TcpListener>, DaemonError> {
    let Some(address) = config.server.metrics else { return Ok(None) };
    let open = || {
        let socket = TcpListener::bind(address)?;
        listen(&socket, Backlog::new(METRICS_QUEUE_MAX)?)?;
        // For the runtime.
        socket.set_nonblocking(true)?;
        Ok(Some(socket))
    };
    open().map_err(|error| DaemonError::Listen { address: address.to_string(), error })
}

fn endpoint(listen: &Listen) -> Endpoint {
    match listen {
        Listen::Unix(path) => Endpoint::Unix(path.clone()),
        Listen::Tcp(address) => Endpoint::Tcp(*address),
    }
}
