//! A ticket: the caller's side of a call.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot::Receiver;

use super::batch::BatchDone;
use super::call::{Done, Outcome};

/// What a pool calls by a number that it has taken: a call, a batch or a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId {
    /// Whose it is.
    pub(super) tenant: u64,
    /// Unique in the life of the pool.
    pub(super) id: u64,
}

/// What a ticket asks of its pool.
pub(super) trait Desk: Send + Sync {
    /// The caller has gone: do not run it, or stop it.
    fn cancel(&self, call: CallId);
    /// Whether it has not begun.
    fn is_waiting(&self, call: CallId) -> bool;
}

/// What a ticket resolves to.
pub trait Answer: Send + 'static {
    /// What it is where the pool went away before the call could begin.
    fn cancelled() -> Self;
}

/// Resolves to the end of a submitted call. Dropping it cancels: a call that waits is not run, one that runs is stopped
/// like by a timeout.
#[must_use = "dropping a ticket cancels its call"]
pub struct Ticket<T: Answer = Done>(State<T>);

enum State<T> {
    /// In the queue, or on an executor.
    Submitted {
        receiver: Receiver<T>,
        /// Weak: a forgotten ticket must not keep the memory of a pool that has ended.
        desk: Weak<dyn Desk>,
        call: CallId,
    },
    /// Ended, and to be told.
    Ended(T),
    /// Told.
    Answered,
}

// Nothing in it is pinned.
impl<T: Answer> Unpin for Ticket<T> {}

impl<T: Answer> Ticket<T> {
    pub(super) fn new(receiver: Receiver<T>, desk: Weak<dyn Desk>, call: CallId) -> Ticket<T> {
        Ticket(State::Submitted { receiver, desk, call })
    }

    /// Of a call that has ended already.
    pub(super) fn ended(done: T) -> Ticket<T> {
        Ticket(State::Ended(done))
    }

    /// What the pool calls it by: no other has it in the pool's life. `None` once it has ended.
    pub fn id(&self) -> Option<CallId> {
        if let State::Submitted { call, .. } = &self.0 { Some(*call) } else { None }
    }

    /// Whether an executor has taken the call, or it has ended.
    pub fn started(&self) -> bool {
        let State::Submitted { desk, call, .. } = &self.0 else { return true };
        desk.upgrade().is_none_or(|desk| !desk.is_waiting(*call))
    }
}

impl<T: Answer> Future for Ticket<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if let State::Submitted { receiver, .. } = &mut self.0 {
            let answer = Pin::new(receiver).poll(context);
            return answer.map(|answer| {
                self.0 = State::Answered;
                answer.unwrap_or_else(|_| T::cancelled())
            });
        }
        match std::mem::replace(&mut self.0, State::Answered) {
            State::Ended(done) => Poll::Ready(done),
            // Asked again after its answer, which nobody should.
            _ => Poll::Ready(T::cancelled()),
        }
    }
}

impl<T: Answer> Drop for Ticket<T> {
    fn drop(&mut self) {
        if let State::Submitted { desk, call, .. } = &self.0
            && let Some(desk) = desk.upgrade()
        {
            desk.cancel(*call);
        }
    }
}

impl<T: Answer> fmt::Debug for Ticket<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ticket").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl Answer for Done {
    fn cancelled() -> Done {
        Done { outcome: Outcome::Cancelled, queued: Duration::ZERO, wall: Duration::ZERO, cpu: Duration::ZERO }
    }
}

impl Answer for BatchDone {
    fn cancelled() -> BatchDone {
        BatchDone { done: Done::cancelled(), rows: 0, results: Bytes::new() }
    }
}

/// Of a series, whose calls each have an end of their own.
impl Answer for () {
    fn cancelled() {}
}
