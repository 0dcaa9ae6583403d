//! Calls into resident code and comes back, whatever the code does.
//!
//! A [`Pool`] owns a fixed number of executor threads. Each has memory of its own (a guarded stack, the memory that
//! holds a call's buffers and heap, an alternate signal stack) and runs one call at a time through a trampoline. Code
//! that faults, overflows its stack, wrecks the registers or never ends is stopped by a signal handler that resumes
//! behind the trampoline; the caller gets a [`Trap`].
//!
//! Where [`Workers`] are prepared, calls run in processes of their own instead: see `worker`.
//!
//! In threads this contains faults and system calls. It is not a security boundary: code runs in this process, so a wild write can
//! hit any memory of it, other threads' included, and it can jump to instructions of the daemon, which may make the few
//! system calls that executors need. A user shadow stack must be off (Rust programs do not ask for
//! one): the recovery moves the stack pointer without it.
//!
//! Files, from the bottom: `stack` maps an executor's memory, `frame` is what trampoline, handler, watchdog and
//! executor share, `x86_64` is the trampoline, `row_loop` what runs it for many rows, `signals` the handler, `filter` says which
//! system calls threads may make, `confine` puts them under it, `system_call` is one that was refused, `memory` and `heap` what code may use
//! while it runs, `traces` and `registers` what of that another tenant must not find, `host` the functions it may call, `thread` the thread pointer that some have of their own,
//! `thread_switch` how it is exchanged, `errno` the host's error number, `processor` what code may know of that, `watchdog` the limits, `work` what there is to do, of which `batch` and `series` are many calls at once,
//! `stuck` what becomes of calls that do not keep their limits, `fair` whose turn it is, `schedule` who runs next, `writable` what keeps calls from that, `queue` that behind a lock, `seat` where threads sit,
//! `executor` one thread and what runs before the first call, `pace` which calls are short, `pauses` when none runs so, `inline` how those run
//! where they are submitted, `worker` calls in other processes, `start` what a pool is started with, `pool`, `refusal` and `ticket` the face. `measure` is for the bench.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("exec has a trampoline for x86-64 Linux only; another architecture needs a file beside exec/x86_64.rs");

mod batch;
mod call;
mod callee;
mod confine;
mod counts;
mod errno;
mod executor;
mod fair;
mod filter;
mod frame;
mod heap;
mod host;
mod inline;
mod measure;
mod memory;
mod pace;
mod pauses;
mod pool;
mod processor;
mod queue;
mod refusal;
mod registers;
mod row_loop;
mod rseq;
mod schedule;
mod seat;
mod series;
mod signals;
mod stack;
mod start;
mod stuck;
mod sync;
mod system_call;
mod thread;
mod thread_switch;
mod ticket;
mod traces;
mod trap;
mod watchdog;
mod work;
mod worker;
mod writable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(test)]
mod batch_tests;
#[cfg(test)]
mod chain_tests;
#[cfg(test)]
mod confined_tests;
#[cfg(test)]
mod fair_tests;
#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod initialise_tests;
#[cfg(test)]
mod inline_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod schedule_tests;
#[cfg(test)]
mod series_tests;
#[cfg(test)]
mod stuck_tests;
#[cfg(test)]
mod system_call_tests;
#[cfg(test)]
mod test_code;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod thread_tests;
#[cfg(test)]
mod traces_tests;

pub use batch::{Batch, BatchDone, BatchError, Column, ColumnType, ROWS_MAX};
pub use call::{
    ARGS_MAX, Arg, ArgError, Call, Callee, Done, Held, Outcome, Priority, ResultType, Scalar, Step, Thread, check_args,
};
pub use confine::{FilterError, FilterPolicy, FilterState, try_filter};
pub use counts::PoolStats;
pub use host::{IMPORTS_VERSION, imports};
pub use inline::lend_thread;
pub use measure::Guarded;
pub use pool::Pool;
pub use processor::constants;
pub use refusal::{Refusal, Rejected, RejectedSeries};
pub use series::{Series, SeriesCall, SeriesTicket};
pub use stack::{EXECUTORS_MAX, SlotError};
pub use start::{ExecConfig, StartError};
pub use system_call::{Abi, SystemCall};
pub use thread::{CONTROL_BYTES, THREAD_MAX_BYTES};
pub use thread_switch::thread_switch;
pub use ticket::{Answer, CallId, Ticket};
pub use trap::{Trap, TrapKind, TrapStage};
pub use worker::{Death, WorkerStats, Workers, try_workers};
pub use writable::{Writable, Writables};

#[cfg(target_arch = "x86_64")]
use x86_64 as arch;
