//! The limits of time: one thread looks at every executor once a tick.
//!
//! A call pays nothing for this. The watchdog notes when it first sees a call (its odd `seq`) and how much CPU time
//! its thread had used then; when a limit is passed it stores that `seq` as the one to kill and sends one signal,
//! which it repeats ever more rarely. The handler ends the call only if that `seq` still runs: a late signal does
//! nothing. CPU limits go by the executor's CPU clock, so a thread that was preempted is not blamed.
#![allow(unsafe_code)] // Clocks of other threads, and signals to one thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::frame::{Frame, Limits};
use super::signals::STOP_SIGNAL;
use super::stack::Slot;
use super::worker::{Worker, cpu_clock};

/// Between the first and the second signal for one call; then twice that, and so on.
const RESEND_FIRST: Duration = Duration::from_millis(10);
const RESEND_MAX: Duration = Duration::from_secs(1);

/// How who runs an executor's calls is reached: its thread, or its worker process.
#[derive(Clone, Debug)]
pub(super) struct Victim {
    thread_id: libc::pid_t,
    cpu_clock: libc::clockid_t,
    worker: Option<Arc<Worker>>,
}

impl Victim {
    /// The calling thread.
    pub(super) fn current() -> Result<Victim, Errno> {
        let mut cpu_clock = 0;
        // SAFETY: has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        // SAFETY: the calling thread lives, and the clock id is written to a local.
        let error = unsafe { libc::pthread_getcpuclockid(thread, &raw mut cpu_clock) };
        if error != 0 {
            return Err(Errno::from_raw(error));
        }
        // SAFETY: has no preconditions.
        let thread_id = unsafe { libc::gettid() };
        Ok(Victim { thread_id, cpu_clock, worker: None })
    }

    /// A worker process.
    pub(super) fn worker(worker: &Arc<Worker>) -> Result<Victim, Errno> {
        let cpu_clock = cpu_clock(worker.pid())?;
        Ok(Victim { thread_id: worker.pid(), cpu_clock, worker: Some(Arc::clone(worker)) })
    }

    /// CPU time that it has used; `None` when it has ended.
    pub(super) fn cpu(&self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes to a local; an id of a thread that ended is an error.
        let result = unsafe { libc::clock_gettime(self.cpu_clock, &raw mut time) };
        (result == 0).then(|| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
    }

    fn stop(&self) {
        if let Some(worker) = &self.worker {
            return worker.signal(STOP_SIGNAL);
        }
        let process = std::process::id();
        // SAFETY: a signal whose default is to be ignored, to a thread of this process. A thread that ended is an error,
        // which is as good.
        unsafe { libc::syscall(libc::SYS_tgkill, process, self.thread_id, STOP_SIGNAL) };
    }
}

/// Who runs an executor's calls now, if anybody.
#[derive(Debug, Default)]
pub(super) struct VictimCell {
    victim: Mutex<Option<Victim>>,
    /// Id of the job whose caller has gone, or that somebody wants to end.
    cancelled_job: AtomicU64,
    /// Id of the call of a series that somebody wants to end.
    cancelled_call: AtomicU64,
}

impl VictimCell {
    pub(super) fn set(&self, victim: Option<Victim>) {
        *self.lock() = victim;
    }

    /// The job of this id is to end, if it is the one that runs.
    pub(super) fn cancel_job(&self, id: u64) {
        self.cancelled_job.store(id, Ordering::Relaxed);
    }

    /// The same for a call of a series.
    pub(super) fn cancel_call(&self, number: u64) {
        self.cancelled_call.store(number, Ordering::Relaxed);
    }

    /// Whether `job` was cancelled, or `call` if it is one of a series.
    pub(super) fn is_cancelled(&self, job: u64, call: u64) -> bool {
        self.cancelled_job.load(Ordering::Relaxed) == job
            || (call != 0 && self.cancelled_call.load(Ordering::Relaxed) == call)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Victim>> {
        // A value is moved under it, or a signal sent.
        self.victim.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of the call that one executor was last seen with.
#[derive(Debug, Default)]
struct Watched {
    seq: u64,
    cpu_at_first_sight: Duration,
    resend: Duration,
    next_signal: Option<Instant>,
}

/// The watchdog's own state; the pool's thread calls [`Watchdog::scan`].
#[derive(Debug)]
pub(super) struct Watchdog {
    epoch: Instant,
    watched: Vec<Watched>,
}

impl Watchdog {
    /// For `executors` of a pool whose limits count from `epoch`.
    pub(super) fn new(epoch: Instant, executors: usize) -> Watchdog {
        Watchdog { epoch, watched: (0..executors).map(|_| Watched::default()).collect() }
    }

    /// Looks at all executors once; `stop_all` ends whatever runs.
    pub(super) fn scan(&mut self, slots: &[Slot], victims: &[VictimCell], stop_all: bool) {
        for ((slot, victim), watched) in slots.iter().zip(victims).zip(&mut self.watched) {
            let Some((seq, limits)) = slot.frame().running() else { continue };
            let stop = stop_all || victim.is_cancelled(limits.job, limits.call);
            if let Some(victim) = &*victim.lock() {
                watched.look(self.epoch, slot.frame(), victim, seq, limits, stop);
            }
        }
    }
}

impl Watched {
    fn look(&mut self, epoch: Instant, frame: &Frame, victim: &Victim, seq: u64, limits: Limits, stop: bool) {
        let now = Instant::now();
        let cpu = match (victim.cpu(), &victim.worker) {
            (Some(cpu), _) => cpu,
            // Its executor is told.
            (None, Some(_)) => return,
            (None, None) => vanished(),
        };
        if self.seq != seq {
            *self = Watched { seq, cpu_at_first_sight: cpu, resend: RESEND_FIRST, next_signal: None };
        }
        let cpu_used = cpu.saturating_sub(self.cpu_at_first_sight);
        let over =
            stop || nanos(now.duration_since(epoch)) >= limits.wall_end_ns || nanos(cpu_used) >= limits.cpu_limit_ns;
        if over && self.next_signal.is_none_or(|next| now >= next) {
            // Before the signal: the handler compares.
            frame.kill.store(seq, Ordering::Release);
            victim.stop();
            self.next_signal = Some(now + self.resend);
            self.resend = (self.resend * 2).min(RESEND_MAX);
        }
    }
}

/// A thread ended in the middle of a call, which only code can do that went to the C library's instructions. Its caller
/// would wait for ever and its lanes stay locked, so the process ends, as it does for a panic there.
fn vanished() -> ! {
    eprintln!("codecached: code ended the thread that it ran on");
    std::process::abort();
}

/// Nanoseconds, at most what fits: 584 years.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
