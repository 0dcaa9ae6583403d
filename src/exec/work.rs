//! What executors are given to do, and who is answered.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::batch::{Batch, BatchDone};
use super::call::{Call, Done, Outcome};
use super::counts::Counters;
use super::series::Series;
use super::ticket::Answer as _;

/// A job of the queue.
#[derive(Debug)]
pub(super) struct Job<C> {
    pub(super) work: Work<C>,
    pub(super) submitted: Instant,
}

/// A function, what is to be done with it, and who waits for that.
#[derive(Debug)]
pub(super) struct Work<C> {
    pub(super) call: Call<C>,
    pub(super) order: Order,
    pub(super) asker: Asker,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Order {
    /// One call.
    Call,
    /// The call for each row.
    Batch(Batch),
    /// The call with the arguments of each of a series.
    Series(Arc<Series>),
}

/// Who is answered, by the kind of order.
#[derive(Debug)]
pub(super) enum Asker {
    Call(oneshot::Sender<Done>),
    Batch(oneshot::Sender<BatchDone>),
    Series(oneshot::Sender<()>),
}

/// How an order ended; a series has the ends of its calls itself.
#[derive(Debug)]
pub(super) struct End {
    pub(super) done: Done,
    /// Of a batch: rows that returned, and their results.
    pub(super) rows: usize,
    pub(super) results: Bytes,
}

impl<C> Work<C> {
    /// Answers without having run, and counts the calls that have ended so.
    pub(super) fn give_back(self, outcome: &Outcome, submitted: Instant, counters: &Counters) {
        let Work { call, order, asker } = self;
        // Before the answer: a caller that has it finds nothing of the call left.
        drop(call);
        let done = || Done { outcome: outcome.clone(), queued: submitted.elapsed(), ..Done::cancelled() };
        let ended = match &order {
            Order::Series(series) => series.end_waiting(done),
            Order::Call | Order::Batch(_) => 1,
        };
        (0..ended).for_each(|_| counters.count(outcome));
        asker.answer(done().into());
    }
}

impl Order {
    pub(super) fn series(&self) -> Option<&Arc<Series>> {
        if let Order::Series(series) = self { Some(series) } else { None }
    }
}

impl Asker {
    /// Whether nobody waits any more.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Asker::Call(sender) => sender.is_closed(),
            Asker::Batch(sender) => sender.is_closed(),
            Asker::Series(sender) => sender.is_closed(),
        }
    }

    pub(super) fn answer(self, end: End) {
        let End { done, rows, results } = end;
        // An error means that the caller has gone.
        let _gone = match self {
            Asker::Call(sender) => sender.send(done).is_err(),
            Asker::Batch(sender) => sender.send(BatchDone { done, rows, results }).is_err(),
            Asker::Series(sender) => sender.send(()).is_err(),
        };
    }
}

impl From<Done> for End {
    fn from(done: Done) -> End {
        End { done, rows: 0, results: Bytes::new() }
    }
}
