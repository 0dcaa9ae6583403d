//! An executor's hand: by which it has calls run in a worker.
//!
//! The executor decides by what it keeps itself: which turn it waits for, and when the call must be over. A worker that
//! does not stop when it is asked to is killed.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::desk::Before;
use super::nursery::{Nursery, Worker};
use super::system::Death;
use super::window::Window;
use crate::exec::frame::Frame;

/// How long an executor sleeps before it looks at limits. It is woken before if the call or the worker ends.
const SLICE: Duration = Duration::from_millis(2);
/// Time that a worker has to end a call after its limits, by itself or asked by the watchdog.
const GRACE: Duration = Duration::from_millis(200);
/// Workers that may die before they begin, for one call.
const TRIES_MAX: u32 = 4;

/// Why code did not come back, and left nothing in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exec) enum Lost {
    /// The worker ended while the code ran.
    Died(Death),
    /// It was killed, as the code was over its limits and did not end.
    Stopped,
    /// There was no worker in time, or each died before the code began; how the last one did.
    Never(Option<Death>),
}

/// What an executor knows when it looks at a call that runs.
pub(in crate::exec) trait Watch {
    /// Whether it should have ended, if the worker had used so much CPU time when it began.
    fn is_over(&self, began: Duration) -> bool;
    /// CPU time that the worker has used.
    fn cpu(&self) -> Duration;
    /// When nobody waits for it to begin any more.
    fn give_up(&self) -> Instant;
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
            turn: Cell::new(0),
            seq: Cell::new(0),
            code_epoch: Cell::new(None),
            held: RefCell::default(),
        }
    }

    /// Makes the frame what a call needs whatever the one before left there. Before anything is put in it.
    pub(in crate::exec) fn ready(&self, frame: &Frame, stack_end: usize) {
        self.ready_again(frame, stack_end);
        frame.heap.mistrust();
    }

    /// The same, but what is allocated stays so.
    pub(in crate::exec) fn ready_again(&self, frame: &Frame, stack_end: usize) {
        self.seq.set(self.seq.get() + 2);
        frame.clean(self.seq.get(), stack_end);
    }

    /// Has the worker run what the frame holds. The trap of code that did not come back is in the frame, or it is lost.
    pub(in crate::exec) fn run(&self, frame: &Frame, turn: &Turn<'_>, watch: &impl Watch) -> Result<(), Lost> {
        self.show(turn.data);
        let mut died = None;
        for _ in 0..TRIES_MAX {
            let Some(worker) = self.worker(frame, watch) else { return Err(Lost::Never(died)) };
            match self.turn(&worker, frame, turn, watch) {
                Ok(()) => {
                    turn.data.iter().filter(|_| !frame.has_trap()).for_each(|range| self.window().copy_out(range));
                    return Ok(());
                }
                Err(lost) => {
                    watch.changed(None);
                    *self.worker.borrow_mut() = None;
                    match lost {
                        Lost::Died(death) if !frame.desk.has_begun(self.turn.get()) => died = Some(death),
                        lost => return Err(lost),
                    }
                }
            }
        }
        Err(Lost::Never(died))
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
            self.forget();
            self.held.borrow_mut().extend_from_slice(data);
        }
        let shown = data.iter().all(|range| self.window().copy_in(range));
        assert!(shown, "invariant: all writable data lies where windows are");
    }

    /// The executor's worker, or a new one.
    fn worker(&self, frame: &Frame, watch: &impl Watch) -> Option<Arc<Worker>> {
        let mut held = self.worker.borrow_mut();
        if let Some(worker) = held.as_ref().filter(|worker| worker.death().is_none()) {
            return Some(Arc::clone(worker));
        }
        // Nobody but its worker writes there, and that is dead.
        frame.desk.clear();
        self.turn.set(0);
        self.code_epoch.set(None);
        *held = self.nursery.take(self.executor, watch.give_up());
        watch.changed(held.as_ref());
        held.clone()
    }

    fn turn(&self, worker: &Arc<Worker>, frame: &Frame, what: &Turn<'_>, watch: &impl Watch) -> Result<(), Lost> {
        let turn = self.turn.get().wrapping_add(1);
        self.turn.set(turn);
        let refetches = self.code_epoch.replace(Some(what.code_epoch)) != Some(what.code_epoch);
        frame.desk.post(turn, Before { refetches, clears_registers: what.clears_registers });
        let (mut began, mut over_since, mut stopped) = (None, None, false);
        loop {
            let ended = frame.desk.wait(turn, SLICE);
            if let Some(death) = worker.death() {
                return Err(if stopped { Lost::Stopped } else { Lost::Died(death) });
            }
            if ended {
                return Ok(());
            }
            // Not asked for earlier, as most calls have ended by now; so limits are kept a little later.
            let began = *began.get_or_insert_with(|| watch.cpu());
            if stopped || !watch.is_over(began) {
                continue;
            }
            let since: Instant = *over_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= GRACE {
                worker.stop();
                stopped = true;
            }
        }
    }
}
