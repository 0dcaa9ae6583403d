//! The sockets that clients connect to.

use std::{
    fs, io,
    net::{self, SocketAddr},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net as unix,
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use nix::sys::socket::{Backlog, listen};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::Sleep,
};
use tonic::transport::server::Connected;

/// Pause before accepting again when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a new connection may take to say that it speaks HTTP/2. A silent one holds a place.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the connection preface and the head of the SETTINGS frame that follows it.
/// <https://www.rfc-editor.org/rfc/rfc9113#name-http-2-connection-preface>
const GREETING_BYTES: usize = 24 + 9;
/// Connections that may wait in the kernel's queue of a TCP socket.
const QUEUE_MAX: i32 = 1024;

/// Where to listen.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address; port 0 takes any.
    Tcp(SocketAddr),
}

/// A socket that listens, opened before there is a runtime: what is confined may open none.
pub enum Listener {
    /// A unix socket; the file is removed on drop if it was made here.
    Unix {
        /// That accepts.
        socket: unix::UnixListener,
        /// Its file.
        path: PathBuf,
        /// Somebody else opened it, and keeps it.
        passed: bool,
    },
    /// A TCP socket.
    Tcp(net::TcpListener),
}

impl Listener {
    /// Binds. A unix socket gets mode 0660, in a directory that is made with 0750 if it is missing; the file of a
    /// daemon that is gone is replaced, that of a live one is not.
    ///
    /// # Errors
    /// Those of the system, `AddrInUse` for a live socket or a file that is none.
    pub fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp(address) => {
                let socket = net::TcpListener::bind(address)?;
                // The library's own is shorter than the others of this daemon.
                listen(&socket, Backlog::new(QUEUE_MAX)?)?;
                Ok(Self::Tcp(socket))
            }
            Endpoint::Unix(path) => {
                make_directory(path)?;
                remove_stale(path)?;
                let listener = unix::UnixListener::bind(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
                Ok(Self::Unix { socket: listener, path: path.clone(), passed: false })
            }
        }
    }

    /// What a client connects to: `unix:PATH` or `http://ADDRESS:PORT`.
    ///
    /// # Errors
    /// Those of the system.
    pub fn target(&self) -> io::Result<String> {
        match self {
            Self::Unix { path, .. } => Ok(format!("unix:{}", path.display())),
            Self::Tcp(listener) => Ok(format!("http://{}", listener.local_addr()?)),
        }
    }

    /// To accept from, on a thread of the runtime.
    pub(super) fn incoming(self) -> io::Result<Incoming> {
        let socket = match &self {
            Self::Unix { socket, .. } => {
                socket.set_nonblocking(true)?;
                Socket::Unix(UnixListener::from_std(socket.try_clone()?)?)
            }
            Self::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                Socket::Tcp(TcpListener::from_std(socket.try_clone()?)?)
            }
        };
        Ok(Incoming { socket, _listener: self })
    }
}

/// A socket that listens, as the runtime has it.
pub(super) struct Incoming {
    socket: Socket,
    /// Its file goes with it.
    _listener: Listener,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Incoming {
    async fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Unix(socket) => Ok(Stream::Unix(socket.accept().await?.0)),
            Socket::Tcp(socket) => {
                let stream = socket.accept().await?.0;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, passed: false, .. } = self {
            // Gone already is as good.
            drop(fs::remove_file(path));
        }
    }
}

/// Accepts until told to stop. Beyond the bound of connections, clients wait in the kernel's queue.
pub(super) async fn accept(
    incoming: Incoming,
    connections: Arc<Semaphore>,
    accepted: mpsc::Sender<io::Result<Connection>>,
    mut stop: watch::Receiver<bool>,
) {
    let forever = async {
        loop {
            let stream = match incoming.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // One connection of this listener waits here; the others stay in the kernel's queue.
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            if accepted.send(Ok(Connection::new(stream, permit))).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = forever => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

fn make_directory(socket: &Path) -> io::Result<()> {
    let Some(directory) = socket.parent().filter(|it| !it.as_os_str().is_empty() && !it.exists()) else {
        return Ok(());
    };
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o750))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    let in_use = |what: &str| io::Error::new(io::ErrorKind::AddrInUse, format!("{} {what}", path.display()));
    if !metadata.file_type().is_socket() {
        return Err(in_use("is there and is no socket"));
    }
    match unix::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(in_use("is served by another process")),
    }
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connection, counted for as long as it is open.
pub(super) struct Connection {
    stream: Stream,
    greeting: Option<Greeting>,
    _permit: OwnedSemaphorePermit,
}

/// What a client must send before the transport's own keepalive watches over it.
struct Greeting {
    missing_bytes: usize,
    until: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(stream: Stream, permit: OwnedSemaphorePermit) -> Self {
        let until = Box::pin(tokio::time::sleep(GREETING_TIMEOUT));
        Self { stream, greeting: Some(Greeting { missing_bytes: GREETING_BYTES, until }), _permit: permit }
    }

    /// Counts what was read towards the greeting, or fails when its time is over.
    fn greet(&mut self, read_bytes: usize, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(greeting) = &mut self.greeting else { return Ok(()) };
        greeting.missing_bytes = greeting.missing_bytes.saturating_sub(read_bytes);
        if greeting.missing_bytes == 0 {
            self.greeting = None;
        } else if greeting.until.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Hands an operation to whichever stream it is.
macro_rules! with_stream {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().stream {
            Stream::Unix($stream) => $call,
            Stream::Tcp($stream) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = match &mut this.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        this.greet(buf.filled().len() - before, cx)?;
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        with_stream!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
