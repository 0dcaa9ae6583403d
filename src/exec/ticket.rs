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

/// What a ticket asks of its pool.
pub(super) trait Desk: Send + Sync {
    /// The caller has gone: do not run it, or stop it.
    fn cancel(&self, id: u64);
    /// Whether it has not begun.
    fn is_waiting(&self, id: u64) -> bool;
}

/// What a ticket resolves to.
pub trait Answer: Send + 'static {
    /// What it is where the pool went away before the call could begin.
    fn cancelled() -> Self;
}

/// Resolves to the end of a submitted call. Dropping it cancels: a call that waits is not run, one that runs is stopped
/// like by a timeout.
#[must_use = "dropping a ticket cancels its call"]
pub struct Ticket<T: Answer = Done> {
    receiver: Receiver<T>,
    /// Weak: a forgotten ticket must not keep the memory of a pool that has ended.
    desk: Weak<dyn Desk>,
    id: u64,
    answered: bool,
}

impl<T: Answer> Ticket<T> {
    pub(super) fn new(receiver: Receiver<T>, desk: Weak<dyn Desk>, id: u64) -> Ticket<T> {
        Ticket { receiver, desk, id, answered: false }
    }

    /// What the pool calls it by: no other has it in the pool's life.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether an executor has taken the call, or it has ended.
    pub fn started(&self) -> bool {
        self.desk.upgrade().is_none_or(|desk| !desk.is_waiting(self.id))
    }
}

impl<T: Answer> Future for Ticket<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let answer = Pin::new(&mut self.receiver).poll(context);
        answer.map(|answer| {
            self.answered = true;
            answer.unwrap_or_else(|_| T::cancelled())
        })
    }
}

impl<T: Answer> Drop for Ticket<T> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        if let Some(desk) = self.desk.upgrade() {
            desk.cancel(self.id);
        }
    }
}

impl<T: Answer> fmt::Debug for Ticket<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ticket").field("id", &self.id).field("answered", &self.answered).finish_non_exhaustive()
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
