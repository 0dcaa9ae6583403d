//! An executor's hand: by which it has calls run in a worker.
//!
//! The executor decides by what it keeps itself: which turn it waits for, and when the call must be over. A worker that
//! does not stop when it is asked to is killed.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::child::Worker;
use super::desk::Before;
use super::nursery::Nursery;
use super::system::Death;
use super::window::Window;
use crate::exec::frame::Frame;
use crate::exec::stack::PAGE_BYTES;
use crate::exec::trap::RawTrap;

/// How long an executor sleeps before it looks at limits. It is woken before if the call or the worker ends.
const SLICE: Duration = Duration::from_millis(2);
/// Time that a worker has to end a call after its limits, by itself or asked by the watchdog.
const GRACE: Duration = Duration::from_millis(200);
/// Workers that may die before they are this executor's, for one call.
const TRIES_MAX: u32 = 4;
/// Memory of a window beyond what was put there: nothing is counted so exactly that it had to be less.
const SLACK_BYTES: usize = 64 << 10;

/// Why code did not come back, and left nothing in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exec) enum Lost {
    /// The worker ended before it had told of the end of the call.
    Died(Death),
    /// It was killed, as the code was over its limits and did not end.
    Stopped,
    /// There was no worker in time, or each died before it could be told of the call; how the last one did.
    Never(Option<Death>),
}

/// What an executor knows when it looks at a call that runs.
pub(in crate::exec) trait Watch {
    /// Whether it should have ended, if calls here had used so much CPU time when it began.
    fn is_over(&self, began: Duration) -> bool;
    /// CPU time that calls here have used.
    fn cpu(&self) -> Duration;
    /// The worker that runs it from now on; `None`: none.
    fn changed(&self, worker: Option<&Arc<Worker>>);
}

/// What a call needs beside what the frame holds.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::exec) struct Turn<'a> {
    /// Addresses of the data that it may touch.
    pub(in crate::exec) data: &'a [Range<u64>],
    /// See [`Callee::code_epoch`](crate::exec::call::Callee::code_epoch).
    pub(in crate::exec) code_epoch: u64,
    /// What is in registers is not for it to see.
    pub(in crate::exec) clears_registers: bool,
}

/// One executor's.
#[derive(Debug)]
pub(in crate::exec) struct Hand {
    nursery: Arc<Nursery>,
    executor: usize,
    worker: RefCell<Option<Arc<Worker>>>,
    /// Whose code the worker may have run.
    tenant: Cell<Option<u64>>,
    turn: Cell<u32>,
    seq: Cell<u64>,
    /// That of the worker's last call; `None` before its first.
    code_epoch: Cell<Option<u64>>,
    /// The data that lies in the window.
    held: RefCell<Vec<Range<u64>>>,
}

impl Hand {
    pub(in crate::exec) fn new(nursery: Arc<Nursery>, executor: usize) -> Hand {
        Hand {
            nursery,
            executor,
            worker: RefCell::default(),
            tenant: Cell::new(None),
            turn: Cell::new(0),
            seq: Cell::new(0),
            code_epoch: Cell::new(None),
            held: RefCell::default(),
        }
    }

    /// A call of `tenant` comes next. Code may have taken its worker over for good, whatever that says: so one that ran
    /// code of another tenant has ended before anything of this one lies where it could see it.
    pub(in crate::exec) fn serve(&self, tenant: u64) {
        if self.tenant.replace(Some(tenant)).is_none_or(|before| before == tenant) {
            return;
        }
        if let Some(worker) = self.worker.take() {
            self.nursery.replace(&worker);
        }
        self.forget();
    }

    /// Makes the frame what a call needs whatever the one before left there. Before anything is put in it.
    pub(in crate::exec) fn ready(&self, frame: &Frame) {
        self.ready_again(frame);
        frame.heap.mistrust();
    }

    /// The same, but what is allocated stays so.
    pub(in crate::exec) fn ready_again(&self, frame: &Frame) {
        self.seq.set(self.seq.get() + 2);
        frame.clean(self.seq.get());
    }

    /// Has the worker run what the frame holds. What trapped, if it did not return, or why nothing is known of it.
    pub(in crate::exec) fn run(
        &self,
        frame: &Frame,
        turn: &Turn<'_>,
        watch: &impl Watch,
    ) -> Result<Option<RawTrap>, Lost> {
        self.show(turn.data);
        let worker = self.worker(frame, watch)?;
        // From here to the end it may use CPU time.
        worker.turns.fetch_add(1, Ordering::SeqCst);
        let ran = self.turn(&worker, frame, turn, watch);
        worker.turns.fetch_add(1, Ordering::SeqCst);
        if let Err(lost) = ran {
            watch.changed(None);
            *self.worker.borrow_mut() = None;
            return Err(lost);
        }
        // Looked at once: code can write there at any time.
        let trap = frame.take_trap();
        if trap.is_none() {
            turn.data.iter().for_each(|range| self.window().copy_out(range));
        }
        if !self.window().has_columns() {
            self.shrink();
        }
        Ok(trap)
    }

    /// Gives back what columns and results of a batch took.
    pub(in crate::exec) fn release_columns(&self) {
        self.window().release_columns();
        self.shrink();
    }

    /// Nothing of what code left in the window is there for the next call.
    pub(in crate::exec) fn forget(&self) {
        self.held.borrow_mut().clear();
        self.window().clear();
    }

    /// This executor's part of the memory that it shares.
    pub(in crate::exec) fn window(&self) -> &Window {
        &self.nursery.site.windows()[self.executor]
    }

    fn show(&self, data: &[Range<u64>]) {
        if self.held.borrow().as_slice() != data {
            self.window().clear_data();
            *self.held.borrow_mut() = data.to_vec();
        }
        let shown = data.iter().all(|range| self.window().copy_in(range));
        assert!(shown, "invariant: all writable data lies where windows are");
    }

    /// Whether the window takes more memory than what was put there: code has written elsewhere in it.
    fn is_swollen(&self) -> bool {
        let page = |address: u64, up: usize| (address as usize + up) & !(PAGE_BYTES - 1);
        let pages = |range: &Range<u64>| page(range.end, PAGE_BYTES - 1) - page(range.start, 0);
        let data: usize = self.held.borrow().iter().map(pages).sum();
        self.window().memory_bytes() > data + self.window().columns_bytes() + SLACK_BYTES
    }

    /// Gives what nobody put there back to the system: it is charged to no one.
    fn shrink(&self) {
        if self.is_swollen() {
            self.forget();
        }
    }

    /// The executor's worker, or a new one.
    fn worker(&self, frame: &Frame, watch: &impl Watch) -> Result<Arc<Worker>, Lost> {
        let mut held = self.worker.borrow_mut();
        if let Some(worker) = held.as_ref().filter(|worker| worker.death().is_none()) {
            return Ok(Arc::clone(worker));
        }
        *held = None;
        watch.changed(None);
        let (mut died, began) = (None, watch.cpu());
        for _ in 0..TRIES_MAX {
            // Nobody but its worker writes there, and that is dead.
            frame.desk.clear();
            self.turn.set(0);
            self.code_epoch.set(None);
            let Some(worker) = self.nursery.take(self.executor, || watch.is_over(began)) else { break };
            match self.joined(&worker, || watch.is_over(began)) {
                Ok(()) => {
                    watch.changed(Some(&worker));
                    return Ok(Arc::clone(held.insert(worker)));
                }
                Err(death) => died = Some(death),
            }
        }
        Err(Lost::Never(died))
    }

    /// Waits until the worker can be told of calls, or how it died before.
    fn joined(&self, worker: &Worker, is_over: impl Fn() -> bool) -> Result<(), Death> {
        loop {
            if self.nursery.wait_joined(worker, SLICE) {
                return Ok(());
            }
            if let Some(death) = worker.death() {
                return Err(death);
            }
            if is_over() {
                return Err(self.nursery.replace(worker));
            }
        }
    }

    fn turn(&self, worker: &Worker, frame: &Frame, what: &Turn<'_>, watch: &impl Watch) -> Result<(), Lost> {
        let turn = self.turn.get().wrapping_add(1);
        self.turn.set(turn);
        let refetches = self.code_epoch.replace(Some(what.code_epoch)) != Some(what.code_epoch);
        frame.desk.post(turn, Before { refetches, clears_registers: what.clears_registers });
        let (mut began, mut over_since, mut lost) = (None, None, None);
        loop {
            if frame.desk.wait(turn, SLICE) {
                return Ok(());
            }
            if let Some(death) = worker.death() {
                return Err(lost.unwrap_or(Lost::Died(death)));
            }
            // Not asked for earlier, as most calls have ended by now; so limits are kept a little later.
            let began = *began.get_or_insert_with(|| watch.cpu());
            if lost.is_some() {
                continue;
            }
            if self.is_swollen() {
                worker.stop();
                lost = Some(Lost::Died(Death::Signal(libc::SIGKILL)));
            } else if watch.is_over(began) {
                let since: Instant = *over_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= GRACE {
                    worker.stop();
                    lost = Some(Lost::Stopped);
                }
            }
        }
    }
}
