//! One worker process, as the daemon knows it.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use libc::{c_int, pid_t};

use super::system::{self, Death};

/// One worker process, a child of this one.
pub(in crate::exec) struct Worker {
    pid: pid_t,
    pub(super) process: OwnedFd,
    pub(super) cell: u32,
    pub(super) death: OnceLock<Death>,
    /// The executor that it is of, and one; 0 before.
    pub(super) executor: AtomicUsize,
    /// Odd while its executor has it run a call.
    pub(super) turns: AtomicU64,
    /// Its executor gave it up, because of no fault.
    pub(super) is_replaced: AtomicBool,
    /// It is killed as its code cannot be stopped otherwise.
    pub(super) is_stopped: AtomicBool,
    idle: Mutex<Idle>,
    pub(super) born: Instant,
}

/// What is known of a worker between two calls.
#[derive(Debug, Default)]
struct Idle {
    turns: u64,
    cpu: Duration,
}

impl Worker {
    /// A child that was forked a moment ago.
    pub(super) fn new(pid: pid_t, process: OwnedFd, cell: u32) -> Worker {
        Worker {
            pid,
            process,
            cell,
            death: OnceLock::new(),
            executor: AtomicUsize::new(0),
            turns: AtomicU64::new(0),
            is_replaced: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            idle: Mutex::default(),
            born: Instant::now(),
        }
    }

    /// Its process id, also when it has ended.
    pub(in crate::exec) fn pid(&self) -> pid_t {
        self.pid
    }

    /// How it ended; `None` while it lives, as far as is known.
    pub(super) fn death(&self) -> Option<Death> {
        self.death.get().copied()
    }

    /// CPU time that it has used between two calls, since it was first looked at there.
    pub(super) fn idle_cpu(&self) -> Duration {
        let turns = self.turns.load(Ordering::SeqCst);
        if turns == 0 || !turns.is_multiple_of(2) {
            return Duration::ZERO;
        }
        let Some(cpu) = system::cpu(self.pid) else { return Duration::ZERO };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.turns != turns {
            *idle = Idle { turns, cpu };
        }
        // A call may have begun since.
        if self.turns.load(Ordering::SeqCst) == turns { cpu.saturating_sub(idle.cpu) } else { Duration::ZERO }
    }

    /// Sends it a signal, unless it has ended.
    pub(in crate::exec) fn signal(&self, signal: c_int) {
        system::send_signal(self.process.as_fd(), signal);
    }

    /// Kills it, as its code cannot be stopped otherwise.
    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        self.signal(libc::SIGKILL);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Worker").field("pid", &self.pid).field("death", &self.death).finish_non_exhaustive()
    }
}
