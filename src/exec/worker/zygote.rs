//! The zygote: a process that does nothing but fork workers.
//!
//! It is forked from the daemon while that has one thread, no connection and no key, when executable memory is mapped but
//! empty; so each worker finds code, host functions and its slot at the daemon's addresses, and a fork copies little.
//! Of the arenas it has what is run and what is read, through mappings that can never become writable; it holds no
//! descriptor but one end of a socket pair. It runs no code of clients.
//!
//! Its workers are the daemon's children, not its own: the daemon waits for them, and they end when it does.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libc::pid_t;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::life::{self, status};
use super::site::Site;
use super::system;
use crate::confine::{self, Needs};

/// What the zygote says first.
const READY: i32 = 0;
/// Longest time for the answer to a request, which is a fork that takes a millisecond: it may be stopped or throttled for a
/// while, and without it the daemon must end.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Of that time at once. Counted by these, not by the clock: of a process that was frozen with this one none passes.
const SLICE: Duration = Duration::from_millis(10);

/// The daemon's side.
#[derive(Debug)]
pub(super) struct Zygote {
    control: OwnedFd,
    process: OwnedFd,
    /// It has ended, or does not answer: no further worker can be had, as this process has threads by now.
    gone: AtomicBool,
}

impl Zygote {
    /// Forks it.
    ///
    /// # Errors
    /// The step and what the system said; `EBUSY` if this process has more than one thread.
    pub(super) fn start(site: &Site, needs: &Needs) -> Result<Zygote, (&'static str, Errno)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
        let (control, other) = pair.map_err(|errno| ("making a socket pair", errno))?;
        let daemon = std::process::id() as pid_t;
        let forked = system::fork().map_err(|errno| ("forking the process that forks workers", errno))?;
        let Some(pid) = forked else {
            drop(control);
            serve(site, needs, &other, daemon)
        };
        let process = system::open_process(pid).map_err(|errno| ("opening a descriptor of a process", errno))?;
        let zygote = Zygote { control, process, gone: AtomicBool::new(false) };
        match zygote.answer(|| ()) {
            Ok(READY) => Ok(zygote),
            Ok(errno) => Err(("setting up the process that forks workers", Errno::from_raw(errno))),
            Err(errno) => Err(("hearing of the process that forks workers", errno)),
        }
    }

    /// Forks a worker, which waits at this cell. Who asks is the only one to ask, and sees to what else it has to while that
    /// takes long: `meanwhile` is called again and again.
    pub(super) fn fork_worker(&self, cell: u32, meanwhile: impl FnMut()) -> Result<pid_t, Errno> {
        // There is room for it: there is one request at a time.
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let sent = send(self.control.as_raw_fd(), &cell.to_ne_bytes(), flags);
        match sent.and_then(|_| self.answer(meanwhile)) {
            Ok(pid) if pid > 0 => Ok(pid),
            Ok(errno) => Err(Errno::from_raw(-errno)),
            Err(errno) => {
                // What it may still answer would be taken for the answer to another request.
                self.give_up();
                Err(errno)
            }
        }
    }

    /// Whether no worker can be forked any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// It is no longer asked for anything.
    pub(super) fn give_up(&self) {
        system::send_signal(self.process.as_fd(), libc::SIGKILL);
        if !self.gone.swap(true, Ordering::Relaxed) {
            tracing::error!("the process that forks workers has ended, or does not answer");
        }
    }

    /// Readable when it has ended.
    pub(super) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    fn answer(&self, mut meanwhile: impl FnMut()) -> Result<i32, Errno> {
        let slice = PollTimeout::try_from(SLICE).unwrap_or(PollTimeout::MAX);
        for _ in 0..ANSWER_MAX.as_millis() / SLICE.as_millis() {
            match poll(&mut [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)], slice) {
                Ok(0) | Err(Errno::EINTR) => meanwhile(),
                Ok(_) => return self.receive(),
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::ETIMEDOUT)
    }

    fn receive(&self) -> Result<i32, Errno> {
        let mut bytes = [0; 4];
        match recv(self.control.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)? {
            4 => Ok(i32::from_ne_bytes(bytes)),
            // It has ended.
            _ => Err(Errno::EPIPE),
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        system::send_signal(self.process.as_fd(), libc::SIGKILL);
        system::reap(self.process.as_fd(), true);
    }
}

/// The zygote's own life.
fn serve(site: &Site, needs: &Needs, control: &OwnedFd, daemon: pid_t) -> ! {
    let _end = ExitOnPanic;
    let set_up = set_up(site, control, daemon).and_then(|()| confine_as(needs));
    let answer = set_up.map_or_else(|errno| errno as i32, |()| READY);
    tell(control, answer);
    if set_up.is_err() {
        system::exit(status::SET_UP);
    }
    loop {
        let mut bytes = [0; 4];
        match recv(control.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(4) => {}
            Err(Errno::EINTR) => continue,
            // The daemon has closed its end.
            _ => system::exit(0),
        }
        match system::fork_sibling() {
            Ok(None) => life::live(site, u32::from_ne_bytes(bytes) as usize, daemon),
            Ok(Some(pid)) => tell(control, pid),
            Err(errno) => tell(control, -(errno as i32)),
        }
    }
}

fn set_up(site: &Site, control: &OwnedFd, daemon: pid_t) -> Result<(), Errno> {
    // Signals for the daemon's process group are not for this.
    SigSet::all().thread_set_mask()?;
    system::set_name(c"codecached-fork");
    system::bind_to(daemon)?;
    system::limit(libc::RLIMIT_CORE, 0)?;
    system::limit(libc::RLIMIT_FSIZE, 0)?;
    let control = control.as_raw_fd() as u32;
    if control > 0 {
        system::close_all(0, control - 1)?;
    }
    system::close_all(control + 1, u32::MAX)?;
    // The arenas' data is not here. Nothing else shall come to lie there.
    site.layout().data().try_for_each(|range| system::reserve_at(range.clone()))
}

/// Gives up what the daemon will, for itself and the workers; and what only the daemon needs. Of files a worker writes one:
/// where it says that it goes first if memory is short. No code of clients can open it, as there are no descriptors.
fn confine_as(daemon: &Needs) -> Result<(), Errno> {
    let appends = vec![system::PROCESSES.into()];
    let needs = Needs { removes: Vec::new(), appends, signals_children: false, inspected: false, ..daemon.clone() };
    confine::apply(&needs).map(drop).map_err(|_| Errno::EPERM)
}

fn tell(control: &OwnedFd, answer: i32) {
    if send(control.as_raw_fd(), &answer.to_ne_bytes(), MsgFlags::MSG_NOSIGNAL).is_err() {
        system::exit(0);
    }
}

/// A panic must not unwind into what the daemon does after the fork.
pub(super) struct ExitOnPanic;

impl Drop for ExitOnPanic {
    fn drop(&mut self) {
        system::exit(status::PANIC);
    }
}
