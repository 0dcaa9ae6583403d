//! What a pool is started with, and why it cannot be.

use std::ops::Range;
use std::time::Duration;

use nix::errno::Errno;

use super::confine::{FilterError, FilterPolicy, FilterState, try_filter};
use super::filter::RANGES_MAX;
use super::schedule::Bounds;
use super::seat::Seats;
use super::stack::{Backing, SlotError, SlotSizes};

/// Shorter ticks would cost more of a core than they give.
const TICK_MIN: Duration = Duration::from_micros(100);

/// Sizes of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecConfig {
    /// Threads that run code, at least 1; with the spare ones at most [`super::EXECUTORS_MAX`].
    pub executors: usize,
    /// Threads beside them that run code only of tenants of which no other call runs.
    pub spare_executors: usize,
    /// Calls that may wait, all together; at least 1.
    pub queue_max: usize,
    /// Calls of one tenant that may wait; at least 1.
    pub queue_tenant_max: usize,
    /// Stack of a call, in bytes.
    pub stack_bytes: usize,
    /// Inaccessible bytes below it: a function with a larger frame could jump over them. 64 MiB is usual.
    pub stack_guard_bytes: usize,
    /// Memory for the buffers and the heap of a call, per executor, in bytes.
    pub call_memory_max_bytes: usize,
    /// Threads that may be lent for inline calls; see [`super::lend_thread`]. With the executors at most
    /// [`super::EXECUTORS_MAX`].
    pub inline_threads: usize,
    /// Calls of functions that took no longer of late run inline. Zero, or a tick above 5 ms: none does.
    pub inline: Duration,
    /// A call that still runs so long after it was to stop counts as stuck: it is answered, and its executor replaced.
    pub stuck_after: Duration,
    /// Executors that may be replaced so, at one time. With all others at most [`super::EXECUTORS_MAX`].
    pub stuck_max: usize,
    /// CPU time that a call has whose caller asks for no other: what ends by a lower limit, its caller wanted so.
    pub cpu_limit_default: Duration,
    /// How often limits are checked, and so how exact they are; at least 100 us, 1 ms is usual.
    pub tick: Duration,
    /// Where code may lie, at most 16 ranges of addresses: system calls that are made there are traps.
    pub code: Vec<Range<u64>>,
    /// It is made writable and executable by turns, also by executors, which give code memory back.
    pub code_flips: bool,
    /// Whether executors run under a filter of system calls.
    pub filter: FilterPolicy,
}

impl ExecConfig {
    pub(super) fn check(&self) -> Result<(), StartError> {
        let ExecConfig { executors, queue_max, queue_tenant_max, tick, .. } = *self;
        if executors == 0 || queue_max == 0 || queue_tenant_max == 0 || tick < TICK_MIN {
            return Err(StartError::Config { executors, queue_max, queue_tenant_max, tick });
        }
        if self.code.len() > RANGES_MAX {
            return Err(StartError::Ranges { given: self.code.len() });
        }
        Ok(())
    }

    /// The same for calls in worker processes: none runs inline, and each can be stopped.
    pub(super) fn in_processes(&self) -> ExecConfig {
        ExecConfig { inline_threads: 0, inline: Duration::ZERO, stuck_max: 0, ..self.clone() }
    }

    pub(super) fn bounds(&self) -> Bounds {
        let executors = self.executors + self.spare_executors;
        Bounds {
            executors,
            seats: executors + self.stuck_max,
            spare: self.spare_executors,
            waiting_max: self.queue_max,
            waiting_tenant_max: self.queue_tenant_max,
        }
    }
}

/// Why a pool cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No executor, no queue, or a tick that is too short.
    #[error(
        "a pool needs at least 1 executor (given {executors}), 1 waiting call (given {queue_max}, {queue_tenant_max} of a tenant) and a tick of {TICK_MIN:?} (given {tick:?})"
    )]
    Config {
        /// Executors in the configuration.
        executors: usize,
        /// Waiting calls in the configuration.
        queue_max: usize,
        /// Of one tenant.
        queue_tenant_max: usize,
        /// Tick in the configuration.
        tick: Duration,
    },
    /// More ranges of code than the filter of system calls takes.
    #[error("code may lie in at most {RANGES_MAX} ranges of addresses (given {given})")]
    Ranges {
        /// Ranges in the configuration.
        given: usize,
    },
    /// System calls of code cannot be contained, which the configuration requires.
    #[error("system calls of code cannot be contained: {error}")]
    Filter {
        /// Why.
        error: FilterError,
    },
    /// Memory of an executor.
    #[error("executor {executor}: {error}")]
    Slot {
        /// Which one.
        executor: usize,
        /// What failed.
        error: SlotError,
    },
    /// The process's signal handler.
    #[error("installing the signal handler: {0}")]
    Signals(Errno),
    /// The operating system gave no thread.
    #[error("starting the thread {name}: {error}")]
    Thread {
        /// Its name.
        name: String,
        /// Why.
        error: std::io::Error,
    },
    /// No worker process could be had, or it did not run what does nothing.
    #[error("executor {executor}: no worker process runs anything: see the log")]
    NoWorker {
        /// Which one.
        executor: usize,
    },
    /// A step towards worker processes.
    #[error("worker processes: {step}: {errno}{}", worker_remedy(*errno))]
    Worker {
        /// Which one.
        step: &'static str,
        /// Why.
        errno: Errno,
    },
    /// Alternate stack, signal mask or CPU clock of an executor.
    #[error("setting up the signals of executor {executor}: {errno}")]
    SetUp {
        /// Which one.
        executor: usize,
        /// Why.
        errno: Errno,
    },
}

fn worker_remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => {
            "; if this runs under a seccomp profile, take one that lets it fork (deploy/seccomp/process.*)"
        }
        Errno::ENOSYS => "; use Linux 5.9 or newer, and a seccomp profile that knows close_range and pidfd_open",
        Errno::EAGAIN => "; raise the limit of processes that this runs under",
        Errno::EBUSY => "; start the daemon without libraries that start threads",
        _ => "",
    }
}

/// What executors will run under. It is tried out, even if it need not be had: either all executors have it or none.
pub(super) fn filter_state(policy: FilterPolicy) -> Result<FilterState, StartError> {
    match policy {
        FilterPolicy::Off => Ok(FilterState::Off),
        FilterPolicy::Require => {
            try_filter().map(|()| FilterState::InForce).map_err(|error| StartError::Filter { error })
        }
        FilterPolicy::Try => Ok(try_filter().map_or_else(FilterState::Unavailable, |()| FilterState::InForce)),
    }
}

/// With memory that can be shared with processes that are forked later, or not.
pub(super) fn seats(config: &ExecConfig, backing: Backing) -> Result<Seats, StartError> {
    let sizes = SlotSizes {
        guard_bytes: config.stack_guard_bytes,
        stack_bytes: config.stack_bytes,
        memory_bytes: config.call_memory_max_bytes,
    };
    Seats::prepared(config.bounds().executors, config.stuck_max, config.inline_threads, sizes, backing)
        .map_err(|(executor, error)| StartError::Slot { executor, error })
}
