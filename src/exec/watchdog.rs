//! The limits of time: one thread looks at every executor once a tick.
//!
//! A call pays nothing for this. The watchdog notes when it first sees a call (its odd `seq`) and how much CPU time
//! its thread had used then; when a limit is passed it stores that `seq` as the one to kill and sends one signal,
//! which it repeats ever more rarely. The handler ends the call only if that `seq` still runs: a late signal does
//! nothing. CPU limits go by the executor's CPU clock, so a thread that was preempted is not blamed.
#![allow(unsafe_code)] // Clocks of other threads, and signals to one thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::frame::{Frame, Limits};
use super::seat::Seats;
use super::signals::STOP_SIGNAL;
use super::worker::{Worker, cpu_clock};

/// Between the first and the second signal for one call; then twice that, and so on.
const RESEND_FIRST: Duration = Duration::from_millis(10);
const RESEND_MAX: Duration = Duration::from_secs(1);
/// Of a longer time between two looks no more than the greater of these counts for calls that do not end.
const GAP_MAX: Duration = Duration::from_millis(100);
const GAP_TICKS_MAX: u32 = 4;

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

/// What is known of the call that one executor was last seen with.
#[derive(Debug, Default)]
struct Watched {
    seq: u64,
    cpu_at_first_sight: Duration,
    resend: Duration,
    /// For how long it has run on since the first signal, by looks: see [`counted`].
    overdue: Option<Duration>,
    next_signal: Option<Instant>,
    is_stuck: bool,
}

/// A call that runs on long after it was to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stuck {
    /// Place in [`Seats::all`].
    pub(super) seat: usize,
    /// Id of the job.
    pub(super) job: u64,
    /// Of the call, if it is one of a series; else 0.
    pub(super) call: u64,
}

/// What one look at all seats found; places are those of [`Seats::all`].
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Calls that are stuck, each told of once.
    pub(super) stuck: Vec<Stuck>,
    /// Seats whose call was sent a signal and has not ended before this look.
    pub(super) overdue: Vec<usize>,
    /// Seats whose call was stuck and has ended after all.
    pub(super) ended: Vec<usize>,
}

/// The watchdog's own state; the pool's thread calls [`Watchdog::scan`].
#[derive(Debug)]
pub(super) struct Watchdog {
    epoch: Instant,
    stuck_after: Duration,
    tick: Duration,
    /// Of the last look.
    looked: Instant,
    watched: Vec<Watched>,
}

impl Watchdog {
    /// For the seats of a pool whose limits count from `epoch`, and of which a call counts as stuck that runs for
    /// `stuck_after` after the first signal. A look comes every `tick`.
    pub(super) fn new(epoch: Instant, stuck_after: Duration, tick: Duration, seats: &Seats) -> Watchdog {
        let watched = seats.all().map(|_| Watched::default()).collect();
        Watchdog { epoch, stuck_after, tick, looked: epoch, watched }
    }

    /// Looks at all seats once; `stop_all` ends whatever runs.
    pub(super) fn scan(&mut self, seats: &Seats, stop_all: bool) -> Found {
        let mut found = Found::default();
        let looked = Instant::now();
        let since_last = counted(looked.saturating_duration_since(self.looked), self.tick);
        self.looked = looked;
        for (index, (seat, watched)) in seats.all().zip(&mut self.watched).enumerate() {
            let Some((slot, victim)) = seat.taken() else { continue };
            let running = slot.frame().running();
            if watched.is_stuck && running.is_none_or(|(seq, _)| seq != watched.seq) {
                *watched = Watched::default();
                found.ended.push(index);
            }
            let Some((seq, limits)) = running else { continue };
            let (now, stop) = (Instant::now(), stop_all || seat.is_cancelled(limits.job, limits.call));
            watched.look(self.epoch, now, slot.frame(), &victim, seq, limits, stop, since_last);
            if victim.worker.is_some() {
                // Its executor ends the process if need be; and code can write what was read here.
                continue;
            }
            if watched.overdue.is_some() {
                found.overdue.push(index);
            }
            if !watched.is_stuck && watched.overdue.is_some_and(|overdue| overdue >= self.stuck_after) {
                watched.is_stuck = true;
                found.stuck.push(Stuck { seat: index, job: limits.job, call: limits.call });
            }
        }
        found
    }
}

impl Watched {
    #[allow(clippy::too_many_arguments)] // All of one moment.
    fn look(
        &mut self,
        epoch: Instant,
        now: Instant,
        frame: &Frame,
        victim: &Victim,
        seq: u64,
        limits: Limits,
        stop: bool,
        since_last: Duration,
    ) {
        let Some(cpu) = victim.cpu() else {
            // Of the end of a worker its executor is told. A thread that was given up ends when its code has ended after all.
            let runs_on = victim.worker.is_none() && frame.running().is_some_and(|(running, _)| running == seq);
            return if runs_on {
                vanished()
            };
        };
        if self.seq != seq {
            *self = Watched { seq, cpu_at_first_sight: cpu, resend: RESEND_FIRST, ..Watched::default() };
        }
        self.overdue = self.overdue.map(|overdue| overdue + since_last);
        let cpu_used = cpu.saturating_sub(self.cpu_at_first_sight);
        let over =
            stop || nanos(now.duration_since(epoch)) >= limits.wall_end_ns || nanos(cpu_used) >= limits.cpu_limit_ns;
        if over && self.next_signal.is_none_or(|next| now >= next) {
            // Before the signal: the handler compares.
            frame.kill.store(seq, Ordering::Release);
            victim.stop();
            self.overdue.get_or_insert_default();
            self.next_signal = Some(now + self.resend);
            self.resend = (self.resend * 2).min(RESEND_MAX);
        }
    }
}

/// What counts of the time between two looks: where the process was frozen, or the machine asleep, no call could end.
fn counted(since_last: Duration, tick: Duration) -> Duration {
    since_last.min(GAP_MAX.max(GAP_TICKS_MAX * tick))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_time_without_a_look_does_not_make_calls_stuck() {
        let (tick, second) = (Duration::from_millis(1), Duration::from_secs(1));
        assert_eq!([counted(tick, tick), counted(5 * tick, tick)], [tick, 5 * tick]);
        assert_eq!(counted(600 * second, tick), GAP_MAX);
        assert_eq!(counted(2 * second, second), 2 * second, "where looks are as rare as that");
    }
}
