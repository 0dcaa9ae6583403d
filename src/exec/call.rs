//! A call: what goes in, what comes out.

use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::memory::layout_bytes;
use super::trap::Trap;
use super::writable::Writables;

/// Arguments of a call. The platform passes up to 6 integers and pointers and up to 8 floating-point values in registers,
/// further ones on the stack.
pub const ARGS_MAX: usize = 16;

/// What a call runs in. The pool keeps it alive until the call has ended, so code is never freed under a thread.
pub trait Callee: Send + Sync + 'static {
    /// Addresses of the executable bytes.
    fn code_range(&self) -> Range<u64>;

    /// Whose calls these are, by a number that says nothing else. Tenants share the executors' time in equal parts, and what
    /// the calls of one leave behind is kept from the code of others.
    fn tenant(&self) -> u64;

    /// The writable data that its calls may touch and that others share. No data is shared between tenants.
    fn writable(&self) -> Writables;

    /// What is made anew for each call in the thread that runs it; `None`: the executor's own thread pointer will do.
    /// Only where [`super::thread_switch`] answers something.
    fn thread(&self) -> Option<Thread> {
        None
    }

    /// Addresses of all writable data that its calls may touch, its own and that of what it is linked against: there as
    /// long as the callee is held.
    fn data(&self) -> Vec<Range<u64>> {
        Vec::new()
    }

    /// A number that is another one whenever its code may lie where other code has run: for processes which the barriers
    /// of this one do not reach. Read before each call.
    fn code_epoch(&self) -> u64 {
        0
    }

    /// Puts the writable data of this [`Writable::id`](super::Writable::id), which is among them, back to its initial
    /// image. Called after a call that did not return, and only while no call runs that may touch it. Must not panic:
    /// the process ends if it does.
    fn restore(&self, id: u64);

    /// Whether something must run before the first call and has not. While it is so, [`Callee::writable`] answers a
    /// serial lane.
    fn is_pending(&self) -> bool {
        false
    }

    /// What must run before the first call: the step `index`; `None` behind the last, though after
    /// [`Callee::initialised`] something else may be pending.
    fn step(&self, _index: usize) -> Option<Step> {
        None
    }

    /// A step returned `address` for its slot. False if that cannot be stored.
    fn resolve(&self, _slot: u64, _address: u64) -> bool {
        true
    }

    /// Whether its code must not be called for now: see [`Callee::trapped`].
    fn is_quarantined(&self) -> bool {
        false
    }

    /// A call has ended by this trap, which was neither its caller's doing nor its deadline's.
    fn trapped(&self, _trap: &Trap) {}

    /// All steps have returned, and nothing of the callee runs: they are not pending from now on, and what the data is
    /// now is its initial image. Must not panic.
    fn initialised(&self) {}
}

/// What a callee has of its own in the thread that runs it: thread-local variables, and a thread pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Address of the initial bytes of its variables, which are there as long as the callee is held.
    pub template: u64,
    /// How many there are, at most `size_bytes`.
    pub template_bytes: usize,
    /// Bytes of the variables, which end at the thread pointer and start as zero beyond the initial bytes. At most
    /// [`super::THREAD_MAX_BYTES`].
    pub size_bytes: usize,
    /// Alignment of the thread pointer: a power of two, at most a page.
    pub align_bytes: usize,
    /// Bytes from the thread pointer to the `errno` of the code, inside of the block.
    pub errno_offset: isize,
}

/// A function without arguments that must run before the first call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Absolute address.
    pub entry: u64,
    /// What the function returns is an address for the slot at this address.
    pub slot: Option<u64>,
}

/// One argument, in the order of the C signature.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// A 32-bit signed integer.
    I32(i32),
    /// A 32-bit unsigned integer.
    U32(u32),
    /// A 64-bit signed integer.
    I64(i64),
    /// A 64-bit unsigned integer.
    U64(u64),
    /// A C `float`.
    F32(f32),
    /// A C `double`.
    F64(f64),
    /// A pointer to a copy of these bytes, 16-byte aligned.
    Bytes(Bytes),
    /// A pointer to this many zeroed bytes, which are returned.
    Out(u64),
    /// A pointer to a copy of these bytes, which is returned.
    InOut(Bytes),
}

impl Arg {
    /// Whether it goes in a vector register, if one is left.
    pub(super) fn is_float(&self) -> bool {
        matches!(self, Arg::F32(_) | Arg::F64(_))
    }
}

/// What the code returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultType {
    /// Nothing.
    Void,
    /// A 32-bit signed integer.
    I32,
    /// A 32-bit unsigned integer.
    U32,
    /// A 64-bit signed integer.
    I64,
    /// A 64-bit unsigned integer.
    U64,
    /// A C `float`.
    F32,
    /// A C `double`.
    F64,
}

/// A returned value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// A 32-bit signed integer.
    I32(i32),
    /// A 32-bit unsigned integer.
    U32(u32),
    /// A 64-bit signed integer.
    I64(i64),
    /// A 64-bit unsigned integer.
    U64(u64),
    /// A C `float`.
    F32(f32),
    /// A C `double`.
    F64(f64),
}

impl Scalar {
    /// Reads the result of type `kind` out of the integer and the vector result register; `None` for void.
    pub(super) fn from_registers(kind: ResultType, int: u64, vector: u64) -> Option<Scalar> {
        Some(match kind {
            ResultType::Void => return None,
            ResultType::I32 => Scalar::I32(int as i32),
            ResultType::U32 => Scalar::U32(int as u32),
            ResultType::I64 => Scalar::I64(int as i64),
            ResultType::U64 => Scalar::U64(int),
            ResultType::F32 => Scalar::F32(f32::from_bits(vector as u32)),
            ResultType::F64 => Scalar::F64(f64::from_bits(vector)),
        })
    }
}

/// Which calls of one tenant go first. Gains nothing over other tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// After the others.
    Low,
    /// As most.
    #[default]
    Normal,
    /// Before the others.
    High,
}

impl Priority {
    /// Every priority, the lowest first.
    pub const ALL: [Priority; 3] = [Priority::Low, Priority::Normal, Priority::High];
}

/// One call of one entry.
#[derive(Debug)]
pub struct Call<C> {
    /// What is called; held until the call has ended.
    pub callee: C,
    /// Absolute address of the entry, inside [`Callee::code_range`].
    pub entry: u64,
    /// Among the calls of its tenant. In a lane of writable data calls keep the order in which they came.
    pub priority: Priority,
    /// Arguments; see [`check_args`] for their limits.
    pub args: Vec<Arg>,
    /// Type of the result.
    pub result: ResultType,
    /// Longest time by the executor's CPU clock, to the watchdog's tick; more is a trap of kind TIMEOUT.
    pub cpu_limit: Duration,
    /// Longest time by the wall clock, to the watchdog's tick; more is a trap of kind TIMEOUT.
    pub wall_cap: Duration,
    /// When the caller stops waiting: a call that has not begun then is not run, one that runs is stopped (TIMEOUT).
    pub deadline: Option<Instant>,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The code returned.
    Returned {
        /// The result; `None` for void.
        value: Option<Scalar>,
        /// Contents of the `Out` and `InOut` arguments, in their order.
        buffers: Vec<Bytes>,
    },
    /// The code did something that ended the call, or was stopped by a limit.
    Trap(Trap),
    /// The deadline had passed when an executor took the call; the code did not run.
    DeadlineBeforeStart,
    /// The pool went away first, or the ticket was dropped.
    Cancelled,
    /// It cannot run: what it needs is held by code that cannot be stopped.
    Stuck(Held),
    /// The callee was quarantined after the call was taken in; the code did not run.
    Quarantined,
}

/// What code that cannot be stopped holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Writable data that the call may touch.
    Data,
    /// All executors.
    Executors,
}

/// A finished call and its times.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// How it ended.
    pub outcome: Outcome,
    /// From submit until an executor took it.
    pub queued: Duration,
    /// From then until the code ended, with copying of the buffers.
    pub wall: Duration,
    /// CPU time of that, at most `wall` and at most 20 us too high. Zero for calls shorter than 20 us: asking the
    /// thread's CPU clock would cost more than such a call.
    pub cpu: Duration,
}

/// Why arguments cannot be passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgError {
    /// More than [`ARGS_MAX`].
    #[error("{given} arguments, at most {ARGS_MAX} can be passed")]
    TooMany {
        /// How many the call has.
        given: usize,
    },
    /// The buffers do not fit into an executor's call memory.
    #[error("buffers need more than the {max_bytes} bytes of memory that a call may use")]
    TooMuchMemory {
        /// What a call may use, in bytes.
        max_bytes: usize,
    },
}

/// Checks that `args` are not too many and, with each buffer rounded up to 16 bytes, fit `call_memory_max_bytes`.
pub fn check_args(args: &[Arg], call_memory_max_bytes: usize) -> Result<(), ArgError> {
    if args.len() > ARGS_MAX {
        return Err(ArgError::TooMany { given: args.len() });
    }
    match layout_bytes(args) {
        Some(bytes) if bytes <= call_memory_max_bytes => Ok(()),
        _ => Err(ArgError::TooMuchMemory { max_bytes: call_memory_max_bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_arguments_than_sixteen_are_refused_with_their_count() {
        assert_eq!(check_args(&vec![Arg::I32(0); 16], 0), Ok(()));
        assert_eq!(check_args(&vec![Arg::F32(0.0); 16], 0), Ok(()));
        assert_eq!(check_args(&vec![Arg::F64(0.0); 17], 0), Err(ArgError::TooMany { given: 17 }));
    }

    #[test]
    fn buffers_are_counted_in_units_of_sixteen_bytes_and_without_overflow() {
        let two = [Arg::Out(1), Arg::Bytes(Bytes::from_static(b"x"))];
        assert_eq!(check_args(&two, 32), Ok(()));
        assert_eq!(check_args(&two, 31), Err(ArgError::TooMuchMemory { max_bytes: 31 }));
        let huge = [Arg::Out(u64::MAX), Arg::Out(u64::MAX)];
        assert_eq!(check_args(&huge, usize::MAX), Err(ArgError::TooMuchMemory { max_bytes: usize::MAX }));
    }
}
