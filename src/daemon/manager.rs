//! What the service manager is told, by systemd's protocol: datagrams to the socket that `NOTIFY_SOCKET` names.
//! <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    time::Duration,
};

/// Whoever started the daemon and wants to know how it is; nobody, mostly.
#[derive(Debug, Default)]
pub(super) struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Silence of this length makes it kill the daemon.
    watchdog: Option<Duration>,
}

impl Manager {
    /// Of the environment.
    ///
    /// # Errors
    /// `NOTIFY_SOCKET` is no address, or there is no socket to send from.
    pub(super) fn of_environment() -> io::Result<Self> {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Self::default());
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold up the daemon.
        socket.set_nonblocking(true)?;
        let watchdog = watchdog(env::var_os("WATCHDOG_USEC").as_deref(), env::var_os("WATCHDOG_PID").as_deref());
        Ok(Self { socket: Some((socket, address(&name)?)), watchdog })
    }

    /// Requests are taken from now on.
    pub(super) fn ready(&self, targets: &str) {
        self.tell(&format!("READY=1\nSTATUS=serving on {targets}"));
    }

    /// What runs is given `grace` to end; the manager shall wait as long, and `beyond` for the end of the process.
    pub(super) fn stopping(&self, grace: Duration, beyond: Duration) {
        let patience_us = (grace + beyond).as_micros();
        self.tell(&format!("STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={patience_us}"));
    }

    /// How often [`Manager::alive`] is wanted: twice in the time that the watchdog waits.
    pub(super) fn alive_interval(&self) -> Option<Duration> {
        Some(self.watchdog? / 2).filter(|interval| !interval.is_zero())
    }

    /// The daemon does not hang.
    pub(super) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    fn tell(&self, text: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            tracing::warn!(%error, "the service manager cannot be told");
        }
    }
}

/// A path, or behind `@` a name in the abstract namespace.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("NOTIFY_SOCKET={}", name.display()))),
    }
}

/// The watchdog's patience, if it watches this process.
fn watchdog(patience_us: Option<&OsStr>, pid: Option<&OsStr>) -> Option<Duration> {
    let number = |text: &OsStr| text.to_str()?.parse::<u64>().ok();
    let ours = pid.is_none_or(|pid| number(pid) == Some(u64::from(process::id())));
    patience_us.and_then(number).filter(|_| ours).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_another_processes_or_none_unless_it_names_this_one() {
        let own = process::id().to_string();
        let ask = |patience: &str, pid: Option<&str>| watchdog(Some(patience.as_ref()), pid.map(OsStr::new));
        assert_eq!(ask("2000000", Some(&own)), Some(Duration::from_secs(2)));
        assert_eq!(ask("2000000", None), Some(Duration::from_secs(2)));
        assert_eq!(ask("2000000", Some("1")), None);
        assert_eq!(ask("soon", None), None);
        assert_eq!(watchdog(None, Some(own.as_ref())), None);
        assert_eq!(
            Manager { watchdog: ask("1", None), ..Manager::default() }.alive_interval(),
            Some(Duration::from_nanos(500))
        );
        assert_eq!(Manager { watchdog: ask("0", None), ..Manager::default() }.alive_interval(), None);
    }

    #[test]
    fn an_address_is_a_path_or_abstract() {
        assert_eq!(address("/run/x".as_ref()).unwrap().as_pathname(), Some("/run/x".as_ref()));
        assert_eq!(address("@x".as_ref()).unwrap().as_abstract_name(), Some(&b"x"[..]));
        assert!(address("vsock:2:1".as_ref()).is_err());
    }
}
