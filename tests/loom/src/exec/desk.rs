//! The desk of `src/exec/worker` over the checker's threads, with a mutex in place of the kernel's futex: what either side
//! has put in place is there for the other, and none sleeps on while there is something for it.
//!
//! A sleep has no end by itself here, as that of an executor has: so no call waits for it.

#[path = "../../../../src/exec/worker/desk.rs"]
#[allow(dead_code)]
mod desk;

use std::time::Duration;

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use crate::Flaw;
use desk::{Before, Desk};

/// What the desk asks of the standard library and the kernel.
mod sync {
    use std::cell::Cell;
    use std::time::Duration;

    use loom::sync::{Condvar, Mutex};

    pub(super) use loom::sync::atomic::{AtomicU32, Ordering};

    thread_local! {
        /// Wakes get lost.
        pub(super) static IS_DEAF: Cell<bool> = const { Cell::new(false) };
        /// Fences are left out.
        pub(super) static HAS_NO_FENCE: Cell<bool> = const { Cell::new(false) };
    }

    loom::lazy_static! {
        /// The kernel's: both words have one queue here.
        static ref KERNEL: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    }

    pub(super) fn fence(order: Ordering) {
        if !HAS_NO_FENCE.get() {
            loom::sync::atomic::fence(order);
        }
    }

    pub(super) fn futex_wait(word: &AtomicU32, value: u32, _: Option<Duration>) {
        let queue = KERNEL.0.lock().unwrap();
        if word.load(Ordering::SeqCst) == value {
            drop(KERNEL.1.wait(queue).unwrap());
        }
    }

    pub(super) fn futex_wake(_: &AtomicU32) {
        let queue = KERNEL.0.lock().unwrap();
        if !IS_DEAF.get() {
            KERNEL.1.notify_all();
        }
        drop(queue);
    }

    /// Each look is a step, and one shows what many do.
    pub(super) fn spin(is_so: impl Fn() -> bool) -> bool {
        is_so()
    }
}

/// What lies beside the desk is loaded and stored without an order of its own: what the desk does not order is found old.
#[derive(Default)]
struct Frame {
    desk: Desk,
    argument: AtomicU32,
    result: AtomicU32,
}

const TURNS: u32 = 2;

/// A worker runs calls one after the other.
pub(crate) fn turns(flaw: Flaw) {
    sync::IS_DEAF.set(flaw == Flaw::LostWake);
    sync::HAS_NO_FENCE.set(flaw == Flaw::NoFence);
    let frame = Arc::new(Frame::default());
    let worker = {
        let frame = Arc::clone(&frame);
        thread::spawn(move || {
            for _ in 0..TURNS {
                let turn = frame.desk.next();
                assert_eq!(frame.desk.before().refetches, turn == 1);
                let argument = frame.argument.load(Ordering::Relaxed);
                frame.result.store(argument + 1, Ordering::Relaxed);
                frame.desk.finish();
            }
        })
    };
    for turn in 1..=TURNS {
        frame.argument.store(10 * turn, Ordering::Relaxed);
        frame.desk.post(turn, Before { refetches: turn == 1, clears_registers: false });
        while !frame.desk.wait(turn, Duration::ZERO) {}
        assert_eq!(frame.result.load(Ordering::Relaxed), 10 * turn + 1);
    }
    worker.join().unwrap();
}
