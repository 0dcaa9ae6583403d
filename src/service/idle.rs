//! A request body that ends when its client sends nothing.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::{Status, body::Body};

use super::failure::{Failure, Reason};

/// Whatever comes, be it a part of a message, gives the client its time anew. Time during which nobody asks for more is
/// not counted.
pub(super) struct IdleBound {
    inner: Body,
    timeout: Duration,
    until: Option<Pin<Box<Sleep>>>,
}

impl IdleBound {
    pub(super) fn new(inner: Body, timeout: Duration) -> Self {
        Self { inner, timeout, until: None }
    }
}

impl HttpBody for IdleBound {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        if polled.is_ready() {
            this.until = None;
            return polled;
        }
        let timeout = this.timeout;
        let until = this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        until.as_mut().poll(context).map(|()| Some(Err(idle(timeout).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn idle(timeout: Duration) -> Failure {
    let message = format!("the client sent nothing for {} ms; nothing was done", timeout.as_millis());
    Failure::new(Reason::DeadlineBeforeStart, message)
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, future::poll_fn, time::Instant};

    use tonic::Code;

    use super::*;

    /// Frames after pauses; then nothing, without an end.
    struct Slow {
        pauses: VecDeque<Duration>,
        until: Option<Pin<Box<Sleep>>>,
    }

    impl HttpBody for Slow {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let this = self.get_mut();
            let Some(&pause) = this.pauses.front() else { return Poll::Pending };
            let until = this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            std::task::ready!(until.as_mut().poll(context));
            (this.until, _) = (None, this.pauses.pop_front());
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }

    #[tokio::test]
    async fn a_body_ends_after_a_pause_that_is_too_long_and_not_for_many_short_ones() {
        let pauses = VecDeque::from([Duration::from_millis(50); 4]);
        let timeout = Duration::from_millis(150);
        let mut body = IdleBound::new(Body::new(Slow { pauses, until: None }), timeout);
        let mut next = async || poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.unwrap();
        for _ in 0..4 {
            assert!(next().await.unwrap().is_data());
        }
        let waiting = Instant::now();
        let status = next().await.unwrap_err();
        assert!(waiting.elapsed() >= timeout);
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("150 ms"), "{status}");
    }
}
