//! Sockets that the service manager opened and passed on, by systemd's protocol.
//! <https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html>

#![allow(unsafe_code)] // Descriptors that come with the process.

use std::{
    env,
    ffi::OsStr,
    io,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    process,
};

use nix::sys::socket::{SockType, getsockopt, sockopt};

use crate::config::Listen;

/// The descriptor of the first one.
const FIRST: RawFd = 3;
/// More than anybody listens on; `server.listen` takes 16.
const COUNT_MAX: RawFd = 64;

/// A socket that listens already.
#[derive(Debug)]
pub(super) struct Passed {
    /// Where.
    pub(super) address: Listen,
    pub(super) socket: Socket,
}

#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Those that were passed to this process.
///
/// # Errors
/// One of them is not open, or is no stream socket that listens at a path or an IP address.
pub(super) fn passed() -> io::Result<Vec<Passed>> {
    let count = count(env::var_os("LISTEN_PID").as_deref(), env::var_os("LISTEN_FDS").as_deref());
    (FIRST..FIRST + count).map(|number| own(number).and_then(Passed::of)).collect()
}

/// How many there are for this process.
fn count(pid: Option<&OsStr>, count: Option<&OsStr>) -> RawFd {
    let number = |text: Option<&OsStr>| text?.to_str()?.parse::<u32>().ok();
    let ours = number(pid) == Some(process::id());
    let count = number(count).filter(|_| ours).and_then(|count| RawFd::try_from(count).ok());
    count.unwrap_or(0).min(COUNT_MAX)
}

/// A descriptor of our own, which no program inherits; the passed one stays as it is.
fn own(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the manager opened it for this process, and nothing here closes a descriptor that it does not own. Were it
    // not open, the only use of it, the next line, would fail with EBADF.
    let passed = unsafe { BorrowedFd::borrow_raw(number) };
    passed.try_clone_to_owned()
}

impl Passed {
    fn of(descriptor: OwnedFd) -> io::Result<Self> {
        let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("a passed socket {what}"));
        if getsockopt(&descriptor.as_fd(), sockopt::SockType)? != SockType::Stream {
            return Err(refused("is no stream"));
        }
        if !getsockopt(&descriptor.as_fd(), sockopt::AcceptConn)? {
            return Err(refused("does not listen"));
        }
        let unix = UnixListener::from(descriptor);
        if let Ok(address) = unix.local_addr() {
            let path = address.as_pathname().ok_or_else(|| refused("has no path"))?.to_owned();
            return Ok(Self { address: Listen::Unix(path), socket: Socket::Unix(unix) });
        }
        let tcp = TcpListener::from(OwnedFd::from(unix));
        let address = Listen::Tcp(tcp.local_addr()?);
        Ok(Self { address, socket: Socket::Tcp(tcp) })
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn only_descriptors_for_this_process_are_taken() {
        let own = process::id().to_string();
        let ask = |pid: &str, fds: &str| count(Some(pid.as_ref()), Some(fds.as_ref()));
        assert_eq!(ask(&own, "2"), 2);
        assert_eq!(ask("1", "2"), 0);
        assert_eq!(ask(&own, "many"), 0);
        assert_eq!(ask(&own, "4000000000"), 0);
        assert_eq!(ask(&own, "100"), COUNT_MAX);
        assert_eq!(count(None, Some("2".as_ref())), 0);
    }

    #[test]
    fn listeners_tell_where_they_are_and_what_does_not_listen_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let unix = Passed::of(UnixListener::bind(&path).unwrap().into()).unwrap();
        assert_eq!(unix.address, Listen::Unix(path));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        assert_eq!(Passed::of(tcp.into()).unwrap().address, Listen::Tcp(address));
        let refused = |descriptor: OwnedFd| Passed::of(descriptor).unwrap_err().to_string();
        assert!(refused(UdpSocket::bind("127.0.0.1:0").unwrap().into()).contains("no stream"));
        assert!(refused(UnixStream::pair().unwrap().0.into()).contains("does not listen"));
        assert!(Passed::of(tempfile::tempfile().unwrap().into()).is_err());
    }
}
