//! The queue of `src/exec` over the checker's mutexes and threads: no call is left waiting while an executor sleeps.

pub(crate) mod desk;
#[path = "../../../src/exec/fair.rs"]
mod fair;
#[path = "../../../src/exec/pauses.rs"]
mod pauses;
#[path = "../../../src/exec/queue.rs"]
#[allow(dead_code)]
mod queue;
#[path = "../../../src/exec/schedule.rs"]
#[allow(dead_code)]
mod schedule;
#[path = "../../../src/exec/writable.rs"]
#[allow(dead_code)]
mod writable;

use std::time::Instant;

use loom::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::Flaw;
use call::Priority;
use queue::{Incoming, Queue};
use schedule::Bounds;
use writable::{Writable, Writables};

/// What the queue asks of the standard library.
mod sync {
    use std::cell::Cell;

    pub(super) use loom::hint::spin_loop;
    pub(super) use loom::sync::atomic::{AtomicUsize, Ordering};
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(super) use loom::thread::park;
    pub(super) use std::sync::PoisonError;

    /// Each look is a step, and one shows what many do.
    pub(super) const SPINS: usize = 1;

    thread_local! {
        /// Wakes get lost.
        pub(super) static IS_DEAF: Cell<bool> = const { Cell::new(false) };
    }

    /// Stores by exchanging: the checker has no order of plain stores and exchanges by threads that do not know of each
    /// other, and would let an exchange read the value before the last, as no machine does.
    #[derive(Debug, Default)]
    pub(super) struct AtomicBool(loom::sync::atomic::AtomicBool);

    impl AtomicBool {
        pub(super) fn new(value: bool) -> AtomicBool {
            AtomicBool(loom::sync::atomic::AtomicBool::new(value))
        }

        pub(super) fn load(&self, order: Ordering) -> bool {
            self.0.load(order)
        }

        pub(super) fn store(&self, value: bool, order: Ordering) {
            self.0.swap(value, order);
        }

        pub(super) fn swap(&self, value: bool, order: Ordering) -> bool {
            self.0.swap(value, order)
        }
    }

    #[derive(Debug)]
    pub(super) struct Thread(loom::thread::Thread);

    pub(super) fn current() -> Thread {
        Thread(loom::thread::current())
    }

    impl Thread {
        pub(super) fn unpark(&self) {
            // All threads of a model run on one of the system's.
            if !IS_DEAF.get() {
                self.0.unpark();
            }
        }
    }
}

/// As `src/exec/call.rs` has it.
mod call {
    #[derive(Clone, Copy, Debug)]
    pub(super) enum Priority {
        Low,
        Normal,
        High,
    }

    impl Priority {
        pub(super) const ALL: [Priority; 3] = [Priority::Low, Priority::Normal, Priority::High];
    }
}

/// As `src/exec/watchdog.rs` has it.
mod watchdog {
    pub(super) fn nanos(_: std::time::Duration) -> u64 {
        // Time that goes on would make runs that cannot be repeated.
        1
    }
}

const EXECUTORS: usize = 2;

struct Scene {
    queue: Queue<u64>,
    /// Calls that are still to come.
    left: AtomicUsize,
}

impl Scene {
    fn submit(&self, job: u64, lane: Option<Writable>) {
        let incoming = Incoming { tenant: 1, priority: Priority::Normal, lanes: lane.into(), now: Instant::now(), job };
        assert!(self.queue.submit(incoming).is_ok(), "there is room");
    }

    /// The body of an executor.
    fn execute(&self, executor: usize) {
        self.queue.register(executor);
        while let Some((entry, _)) = self.queue.next(executor) {
            let lanes: Writables = entry.lanes;
            self.queue.settle(&lanes, false, 1, |_| ());
            // Who waits for a call that nobody takes waits for ever, which the checker finds.
            if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
                assert!(self.queue.stop().is_empty(), "all calls were taken");
            }
        }
    }
}

/// Two executors, and so many calls that come while they fall asleep; `lane` is theirs. The checker finds it if all wait.
fn calls(count: u64, lane: Option<Writable>, flaw: Flaw) {
    sync::IS_DEAF.set(flaw == Flaw::LostWake);
    let bounds = Bounds { executors: EXECUTORS, seats: EXECUTORS, spare: 0, waiting_max: 9, waiting_tenant_max: 9 };
    let queue = Queue::new(bounds, 0, Instant::now());
    let scene = Arc::new(Scene { queue, left: AtomicUsize::new(count as usize) });
    let executors: Vec<_> = (0..EXECUTORS)
        .map(|executor| {
            let scene = Arc::clone(&scene);
            thread::spawn(move || scene.execute(executor))
        })
        .collect();
    (0..count).for_each(|job| scene.submit(job, lane));
    executors.into_iter().for_each(|executor| executor.join().expect("it ends"));
}

/// Calls that any executor can take.
pub(crate) fn plain_calls(flaw: Flaw) {
    calls(2, None, flaw);
}

/// Calls that take turns: the end of one makes the next ready.
pub(crate) fn calls_of_a_lane(flaw: Flaw) {
    calls(2, Some(Writable { id: 1, reentrant: false }), flaw);
}

/// A call that was given up ends after all, on a thread that takes no other, and another one waits for its lane.
pub(crate) fn call_behind_a_late_end(flaw: Flaw) {
    sync::IS_DEAF.set(flaw == Flaw::LostWake);
    let bounds = Bounds { executors: 1, seats: EXECUTORS, spare: 0, waiting_max: 9, waiting_tenant_max: 9 };
    let queue = Queue::new(bounds, 0, Instant::now());
    let scene = Arc::new(Scene { queue, left: AtomicUsize::new(1) });
    let lane = Some(Writable { id: 1, reentrant: false });
    scene.submit(0, lane);
    scene.queue.register(0);
    let (late, _) = scene.queue.next(0).expect("it waits");
    assert!(scene.queue.lose(0, Instant::now(), false).is_empty(), "nothing else waits");
    let other = {
        let scene = Arc::clone(&scene);
        thread::spawn(move || scene.execute(1))
    };
    scene.queue.found(&late.lanes);
    scene.submit(1, lane);
    scene.queue.settle(&late.lanes, true, usize::from(flaw == Flaw::ComesNot), |_| ());
    other.join().expect("it ends");
}
