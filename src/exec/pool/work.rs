//! What executors are given to do.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::exec::batch::{Batch, BatchDone};
use crate::exec::call::{Call, Done, Outcome};
use crate::exec::series::Series;
use crate::exec::ticket::Answer as _;
use crate::exec::trap::Trap;

/// A job of the queue.
#[derive(Debug)]
pub(in crate::exec) struct Job<C> {
    pub(in crate::exec) work: Work<C>,
    pub(in crate::exec) submitted: Instant,
}

/// What an executor is to do.
#[derive(Debug)]
pub(in crate::exec) enum Work<C> {
    /// One call.
    Call(Call<C>, oneshot::Sender<Done>),
    /// The call for each row.
    Batch(Call<C>, Batch, oneshot::Sender<BatchDone>),
    /// The call with the arguments of each of a series.
    Series(Call<C>, Arc<Series>, oneshot::Sender<()>),
}

impl<C> Work<C> {
    pub(super) fn into_call(self) -> Call<C> {
        match self {
            Work::Call(call, _) | Work::Batch(call, ..) | Work::Series(call, ..) => call,
        }
    }

    /// Answers that it was cancelled before it began. A series does that for each of its calls.
    pub(super) fn cancel(self, submitted: Instant) -> Outcome {
        let queued = submitted.elapsed();
        let outcome = |call: &Call<C>| Outcome::Trap(Trap::before_start(call.entry));
        // An error means that the caller has gone.
        match self {
            Work::Call(call, sender) => {
                let outcome = outcome(&call);
                drop(call);
                let _ = sender.send(Done { outcome: outcome.clone(), queued, ..Done::cancelled() });
                outcome
            }
            Work::Batch(call, _, sender) => {
                let outcome = outcome(&call);
                drop(call);
                let done = Done { outcome: outcome.clone(), queued, ..Done::cancelled() };
                let _ = sender.send(BatchDone { done, ..BatchDone::cancelled() });
                outcome
            }
            Work::Series(..) => Outcome::Cancelled,
        }
    }
}
