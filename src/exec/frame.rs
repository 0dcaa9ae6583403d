//! What the trampoline, the signal handler, the watchdog and the executor share about one executor.
//!
//! A frame stands at a fixed place of its executor's slot, so that a stack pointer into the slot is enough to find it.
//! All fields are atomics: the watchdog reads while the executor writes, and code that runs could scribble over it,
//! so there is never a plain Rust reference to its contents. Zeroed memory is a valid frame.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering, fence};

use super::arch::{Constants, Context};
use super::heap::HeapState;
use super::trap::RawTrap;
use super::worker::Desk;

/// The limits of the call that runs, as the watchdog needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// The job's id.
    pub(super) job: u64,
    /// The call's, if it is one of a series; else 0.
    pub(super) call: u64,
    /// CPU time that it may use, in nanoseconds.
    pub(super) cpu_limit_ns: u64,
    /// When it must have ended, in nanoseconds since the pool's start.
    pub(super) wall_end_ns: u64,
}

/// One executor's frame.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Frame {
    /// What the assembly knows; must stay first.
    pub(super) context: Context,
    /// The watchdog asks to end the call that has this `seq`.
    pub(super) kill: AtomicU64,
    job: AtomicU64,
    call: AtomicU64,
    cpu_limit_ns: AtomicU64,
    wall_end_ns: AtomicU64,
    trap: TrapRecord,
    /// Signals that came on this alternate stack; see [`Frame::take_signals`].
    signals: AtomicU32,
    /// What the thread blocks while it is an executor's.
    pub(super) blocked_signals: AtomicU64,
    /// The thread is under the filter of system calls.
    pub(super) filtered: AtomicBool,
    /// System calls between calls of code that the filter refused.
    refused: AtomicU64,
    /// The heap of the call.
    pub(super) heap: HeapState,
    /// Where the executor and its worker process meet, if it has one.
    pub(super) desk: Desk,
}

#[repr(C)]
#[derive(Debug)]
struct TrapRecord {
    count: AtomicU32,
    signal: AtomicI32,
    code: AtomicI32,
    pc: AtomicU64,
    address: AtomicU64,
    abort_return: AtomicU64,
    number: AtomicI32,
    arch: AtomicU32,
}

impl Frame {
    /// For an executor whose calls run in a worker process: makes the frame what the next call needs, whatever code has
    /// left in it. The next call's `seq` is one more than the even `seq`.
    pub(super) fn clean(&self, seq: u64) {
        self.context.clean(seq);
        self.kill.store(0, Ordering::Relaxed);
        self.trap.count.store(0, Ordering::Relaxed);
    }

    /// In the process that runs the prepared call: what its thread has of its own.
    pub(super) fn restore(&self, constants: &Constants, blocked_signals: u64, filtered: bool) {
        self.context.restore(constants);
        self.blocked_signals.store(blocked_signals, Ordering::Relaxed);
        self.filtered.store(filtered, Ordering::Relaxed);
    }

    /// Stores the limits of the call that runs next. Before `seq` turns odd.
    pub(super) fn set_limits(&self, limits: Limits) {
        // Release: who reads one of these also sees that `seq` had become even, and finds it changed.
        self.job.store(limits.job, Ordering::Release);
        self.call.store(limits.call, Ordering::Release);
        self.cpu_limit_ns.store(limits.cpu_limit_ns, Ordering::Release);
        self.wall_end_ns.store(limits.wall_end_ns, Ordering::Release);
    }

    /// The running call's `seq` and limits; `None` if nothing runs or it ended while reading.
    pub(super) fn running(&self) -> Option<(u64, Limits)> {
        let seq = self.context.seq.load(Ordering::Acquire);
        if seq.is_multiple_of(2) {
            return None;
        }
        let limits = Limits {
            job: self.job.load(Ordering::Relaxed),
            call: self.call.load(Ordering::Relaxed),
            cpu_limit_ns: self.cpu_limit_ns.load(Ordering::Relaxed),
            wall_end_ns: self.wall_end_ns.load(Ordering::Relaxed),
        };
        // Orders the loads above before the second look at `seq`: with the Release stores of `set_limits`, limits of
        // a later call mean a changed `seq`.
        fence(Ordering::Acquire);
        (self.context.seq.load(Ordering::Relaxed) == seq).then_some((seq, limits))
    }

    /// Notes what ended the call, unless something did before; answers how many times it was asked in this call.
    /// For the signal handler: atomics only.
    pub(super) fn record_trap(&self, raw: &RawTrap) -> u32 {
        let before = self.trap.count.load(Ordering::Relaxed);
        if before == 0 {
            self.trap.signal.store(raw.signal, Ordering::Relaxed);
            self.trap.code.store(raw.code, Ordering::Relaxed);
            self.trap.pc.store(raw.pc, Ordering::Relaxed);
            self.trap.address.store(raw.address, Ordering::Relaxed);
            self.trap.abort_return.store(raw.abort_return, Ordering::Relaxed);
            self.trap.number.store(raw.number, Ordering::Relaxed);
            self.trap.arch.store(raw.arch, Ordering::Relaxed);
        }
        self.trap.count.store(before + 1, Ordering::Relaxed);
        before + 1
    }

    /// A signal has come. For the signal handler: atomics only.
    pub(super) fn count_signal(&self) {
        // Only the handler of this thread writes while it runs, and it is not interrupted by itself.
        self.signals.store(self.signals.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// How many signals have come since this was asked: the kernel has stored registers on the alternate stack as often.
    pub(super) fn take_signals(&self) -> u32 {
        self.signals.swap(0, Ordering::Relaxed)
    }

    /// Overwrites what the last calls have left here, while nothing runs.
    pub(super) fn forget(&self) {
        self.context.forget();
        self.trap.signal.store(0, Ordering::Relaxed);
        self.trap.code.store(0, Ordering::Relaxed);
        for word in [&self.trap.pc, &self.trap.address, &self.trap.abort_return] {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// The executor itself was kept from a system call. For the signal handler: atomics only.
    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How often.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// What ended the last call, once; `None` if it returned.
    pub(super) fn take_trap(&self) -> Option<RawTrap> {
        // Nothing else writes now: `seq` is even, so the handler leaves the frame alone.
        if self.trap.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.trap.count.store(0, Ordering::Relaxed);
        Some(RawTrap {
            signal: self.trap.signal.load(Ordering::Relaxed),
            code: self.trap.code.load(Ordering::Relaxed),
            pc: self.trap.pc.load(Ordering::Relaxed),
            address: self.trap.address.load(Ordering::Relaxed),
            abort_return: self.trap.abort_return.load(Ordering::Relaxed),
            number: self.trap.number.load(Ordering::Relaxed),
            arch: self.trap.arch.load(Ordering::Relaxed),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn things_are_where_hostile_code_of_tests_writes_them() {
        // tests/objects/rogue.S
        assert_eq!(
            (offset_of!(Context, seq), offset_of!(Context, int_result), offset_of!(Frame, desk)),
            (8, 160, 1600)
        );
    }
}
