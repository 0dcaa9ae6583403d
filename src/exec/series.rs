//! A series: calls of one function that one executor runs one after the other, for one hand-over.
//!
//! Each is a call of its own, with its own limits, memory and outcome. The caller may take ends out while others still
//! run, and take back what has not begun, so that a long call holds up neither. The executor leaves a series early
//! if others wait and it took its share of time, and where data must be restored before the next call.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::call::{Arg, Done, Outcome};
use super::ticket::{CallId, Ticket};
use super::trap::Trap;

/// A call of a series: a number that no other call of the pool has, not 0, and its arguments.
pub type SeriesCall = (u64, Vec<Arg>);

/// What caller and executor share of a series.
#[derive(Debug)]
pub struct Series {
    /// Of the function that is called.
    entry: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<SeriesCall>,
    /// The call that an executor has; 0 for none.
    running: u64,
    done: Vec<(u64, Done)>,
}

/// Where a call was that is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It waited, and this end of it is among those to be taken now.
    Waiting(Trap),
    /// An executor has it.
    Running,
    /// It has ended, or was never here.
    Gone,
}

impl Series {
    pub(super) fn new(entry: u64, calls: Vec<SeriesCall>) -> Arc<Series> {
        let done = Vec::with_capacity(calls.len());
        Arc::new(Series { entry, state: Mutex::new(State { waiting: calls.into(), running: 0, done }) })
    }

    /// The call that is run and those that wait, each with whether it runs.
    pub fn calls(&self) -> Vec<(u64, bool)> {
        let state = self.lock();
        let running = (state.running != 0).then_some((state.running, true));
        running.into_iter().chain(state.waiting.iter().map(|(number, _)| (*number, false))).collect()
    }

    /// The call that an executor has.
    pub fn running(&self) -> Option<u64> {
        let running = self.lock().running;
        (running != 0).then_some(running)
    }

    /// For the executor: the last call has ended so, give me the next one.
    pub(super) fn turn(&self, last: Option<Done>) -> Option<SeriesCall> {
        let mut state = self.lock();
        state.end(last);
        let next = state.waiting.pop_front()?;
        state.running = next.0;
        Some(next)
    }

    /// For the executor: the last call has ended so, and no other is wanted.
    pub(super) fn leave(&self, last: Option<Done>) {
        self.lock().end(last);
    }

    /// The calls that have not begun end so; answers how many they are.
    pub(super) fn end_waiting(&self, done: impl Fn() -> Done) -> usize {
        let mut state = self.lock();
        let ended: Vec<_> = state.waiting.drain(..).map(|(number, _)| (number, done())).collect();
        let count = ended.len();
        state.done.extend(ended);
        count
    }

    /// The calls that have not begun.
    pub(super) fn take_waiting(&self) -> VecDeque<SeriesCall> {
        std::mem::take(&mut self.lock().waiting)
    }

    /// Ends a call that waits.
    pub(super) fn cancel(&self, number: u64) -> Place {
        let mut state = self.lock();
        if state.running == number {
            return Place::Running;
        }
        let Some(at) = state.waiting.iter().position(|(it, _)| *it == number) else { return Place::Gone };
        state.waiting.remove(at);
        let trap = Trap::before_start(self.entry);
        let done =
            Done { outcome: Outcome::Trap(trap), queued: Duration::ZERO, wall: Duration::ZERO, cpu: Duration::ZERO };
        state.done.push((number, done));
        Place::Waiting(trap)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, last: Option<Done>) {
        if let Some(done) = last {
            self.done.push((std::mem::take(&mut self.running), done));
        }
    }
}

/// Resolves when no executor has the series any more; then what still waits in it is for the caller to take back.
/// Dropping it cancels the call that runs, and drops those that wait.
#[must_use = "dropping a ticket cancels its calls"]
pub struct SeriesTicket {
    ticket: Ticket<()>,
    series: Arc<Series>,
}

impl SeriesTicket {
    pub(super) fn new(ticket: Ticket<()>, series: Arc<Series>) -> SeriesTicket {
        SeriesTicket { ticket, series }
    }

    /// What the pool calls the series by; `None` once no executor has it.
    pub fn id(&self) -> Option<CallId> {
        self.ticket.id()
    }

    /// For others to look at, and to name its calls by.
    pub fn series(&self) -> &Arc<Series> {
        &self.series
    }

    /// The ends that came since the last time, in their order.
    pub fn take_done(&self) -> Vec<(u64, Done)> {
        std::mem::take(&mut self.series.lock().done)
    }

    /// The calls that have not begun, in their order. An executor that still has the series gets no more of it.
    pub fn take_waiting(&self) -> VecDeque<SeriesCall> {
        self.series.take_waiting()
    }
}

impl Future for SeriesTicket {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.ticket).poll(context)
    }
}

impl Drop for SeriesTicket {
    fn drop(&mut self) {
        drop(self.series.take_waiting());
    }
}

impl fmt::Debug for SeriesTicket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SeriesTicket").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}
