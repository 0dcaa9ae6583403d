//! A ticket: the caller's side of a call.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot::Receiver;

use super::call::{Done, Outcome};

/// A call of a pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallId {
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

/// Resolves to the end of a submitted call. Dropping it cancels: a call that waits is not run, one that runs is stopped
/// like by a timeout.
#[must_use = "dropping a ticket cancels its call"]
pub struct Ticket(State);

enum State {
    /// In the queue, or on an executor.
    Submitted {
        receiver: Receiver<Done>,
        /// Weak: a forgotten ticket must not keep the memory of a pool that has ended.
        desk: Weak<dyn Desk>,
        call: CallId,
    },
    /// Ended, and to be told.
    Ended(Done),
    /// Told.
    Answered,
}

impl Ticket {
    pub(super) fn new(receiver: Receiver<Done>, desk: Weak<dyn Desk>, call: CallId) -> Ticket {
        Ticket(State::Submitted { receiver, desk, call })
    }

    /// Of a call that has ended already.
    pub(super) fn ended(done: Done) -> Ticket {
        Ticket(State::Ended(done))
    }

    /// Whether an executor has taken the call, or it has ended.
    pub fn started(&self) -> bool {
        let State::Submitted { desk, call, .. } = &self.0 else { return true };
        desk.upgrade().is_none_or(|desk| !desk.is_waiting(*call))
    }
}

impl Future for Ticket {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Done> {
        if let State::Submitted { receiver, .. } = &mut self.0 {
            let answer = Pin::new(receiver).poll(context);
            return answer.map(|answer| {
                self.0 = State::Answered;
                answer.unwrap_or_else(|_| pool_ended())
            });
        }
        match std::mem::replace(&mut self.0, State::Answered) {
            State::Ended(done) => Poll::Ready(done),
            // Asked again after its answer, which nobody should.
            _ => Poll::Ready(pool_ended()),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let State::Submitted { desk, call, .. } = &self.0
            && let Some(desk) = desk.upgrade()
        {
            desk.cancel(*call);
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = match &self.0 {
            State::Submitted { call, .. } => Some(call.id),
            State::Ended(_) | State::Answered => None,
        };
        formatter.debug_struct("Ticket").field("id", &id).finish_non_exhaustive()
    }
}

/// The pool dropped the call while it waited.
fn pool_ended() -> Done {
    Done { outcome: Outcome::Cancelled, queued: Duration::ZERO, wall: Duration::ZERO, cpu: Duration::ZERO }
}
