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
pub struct Ticket {
    receiver: Receiver<Done>,
    /// Weak: a forgotten ticket must not keep the memory of a pool that has ended.
    desk: Weak<dyn Desk>,
    call: CallId,
    answered: bool,
}

impl Ticket {
    pub(super) fn new(receiver: Receiver<Done>, desk: Weak<dyn Desk>, call: CallId) -> Ticket {
        Ticket { receiver, desk, call, answered: false }
    }

    /// Whether an executor has taken the call, or it has ended.
    pub fn started(&self) -> bool {
        self.desk.upgrade().is_none_or(|desk| !desk.is_waiting(self.call))
    }
}

impl Future for Ticket {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Done> {
        let answer = Pin::new(&mut self.receiver).poll(context);
        answer.map(|answer| {
            self.answered = true;
            answer.unwrap_or_else(|_| pool_ended())
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        if let Some(desk) = self.desk.upgrade() {
            desk.cancel(self.call);
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Ticket")
            .field("id", &self.call.id)
            .field("answered", &self.answered)
            .finish_non_exhaustive()
    }
}

/// The pool dropped the call while it waited.
fn pool_ended() -> Done {
    Done { outcome: Outcome::Cancelled, queued: Duration::ZERO, wall: Duration::ZERO, cpu: Duration::ZERO }
}
