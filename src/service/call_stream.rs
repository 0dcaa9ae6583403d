//! ExecuteStream: calls that come and go on one stream.
//!
//! One task a stream turns messages into calls (`intake`), hands them to executors many at a time (`handover`) and sends
//! what comes back. It reads on only while there is room for more calls, so a client that sends faster than its calls run
//! is slowed down by the transport, and one that reads no answers stops its own stream.

mod handover;
mod intake;

use std::{
    future::poll_fn,
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc::{self, Sender},
    time::{Interval, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{
    Service,
    edge::Held,
    execution_service::cancelled,
    failure::{Failure, Reason},
};
use crate::{
    metrics::Rpc,
    proto::{ExecuteStreamRequest, ExecuteStreamResponse},
};
use handover::Handover;
use intake::Intake;

/// What a client reads.
pub(super) type Answers = ReceiverStream<Result<ExecuteStreamResponse, Status>>;

/// Messages that wait for the transport; what comes meanwhile goes into the next one.
const MESSAGES_MAX: usize = 4;
/// How long calls may run before their series is looked at: about what a call is late by that ended behind a long one.
const TICK: Duration = Duration::from_millis(1);
/// How long the last word of a stream may wait for a client that does not read.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Starts the task of a stream. `held` is kept for as long as it runs.
pub(super) fn open(
    service: &Service,
    messages: Streaming<ExecuteStreamRequest>,
    deadline: Option<Instant>,
    held: Option<Held>,
) -> Answers {
    let (sender, answers) = mpsc::channel(MESSAGES_MAX);
    let (service, started) = (service.clone(), Instant::now());
    tokio::spawn(async move {
        let _held = held;
        let end = CallStream::new(&service).run(messages, &sender, deadline).await;
        let code = end.as_ref().map_or_else(|failure| failure.reason.code(), |code| *code);
        service.metrics.grpc(Rpc::ExecuteStream, code as i32, started.elapsed());
        if let Err(failure) = end {
            // Who does not take it in time has lost interest.
            let _ = timeout(LAST_WORD, sender.send(Err(failure.into()))).await;
        }
    });
    ReceiverStream::new(answers)
}

struct CallStream<'a> {
    service: &'a Service,
    intake: Intake,
    handover: Handover,
    /// Why no more is read, once that is so; the stream ends when all calls are answered.
    ending: Option<Result<Code, Failure>>,
    /// When something came or went.
    moved: Instant,
}

/// What the task wakes up for.
enum Event {
    Message(Result<Option<ExecuteStreamRequest>, Status>),
    Ended(usize),
    Sent,
    Tick,
    Draining,
    Gone,
    Late,
    Idle,
}

impl<'a> CallStream<'a> {
    fn new(service: &'a Service) -> Self {
        Self {
            service,
            intake: Intake::default(),
            handover: Handover::new(service),
            ending: None,
            moved: Instant::now(),
        }
    }

    /// Until the stream is over: how it ended.
    async fn run(
        mut self,
        mut messages: Streaming<ExecuteStreamRequest>,
        sender: &Sender<Result<ExecuteStreamResponse, Status>>,
        deadline: Option<Instant>,
    ) -> Result<Code, Failure> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let drained = self.service.drained.notified();
        tokio::pin!(drained);
        drained.as_mut().enable();
        if self.service.is_draining() {
            self.ending = Some(Err(shutting_down()));
        }
        loop {
            self.handover.feed(self.service, &mut self.intake);
            if self.intake.is_empty() && self.handover.is_empty() && self.ending.is_some() {
                return self.ending.unwrap_or(Ok(Code::Ok));
            }
            let event = self.next(&mut messages, sender, deadline, &mut ticks, drained.as_mut()).await;
            match event {
                Event::Message(message) => self.read(message),
                Event::Ended(at) => self.handover.ended(self.service, at, &mut self.intake),
                Event::Tick => self.handover.tick(self.service, &mut self.intake),
                Event::Sent => self.moved = Instant::now(),
                Event::Draining => self.ending = Some(Err(shutting_down())),
                // What runs is stopped with its tickets.
                Event::Gone => return Ok(Code::Cancelled),
                Event::Late => return Err(cancelled(true)),
                Event::Idle => return Err(idle(self.service.limits.call_stream_idle_timeout)),
            }
        }
    }

    async fn next(
        &mut self,
        messages: &mut Streaming<ExecuteStreamRequest>,
        sender: &Sender<Result<ExecuteStreamResponse, Status>>,
        deadline: Option<Instant>,
        ticks: &mut Interval,
        drained: Pin<&mut tokio::sync::futures::Notified<'_>>,
    ) -> Event {
        let limits = &self.service.limits;
        let (intake, handover) = (&mut self.intake, &mut self.handover);
        let is_full = intake.len() + handover.len() >= limits.stream_calls_max
            || intake.len() >= handover::SERIES_MAX
            || intake.bytes() + handover.args_bytes() >= limits.unary_max_bytes;
        let (reads, has_answers) = (self.ending.is_none() && !is_full, handover.has_answers());
        let ticking = handover.is_running() || !intake.is_empty();
        // Nobody to wait for but the client.
        let is_idle = !handover.is_running() && intake.is_empty();
        let idle_until = self.moved + limits.call_stream_idle_timeout;
        // In this order: what is behind costs something only when there is nothing to do.
        tokio::select! {
            biased;
            _ = ticks.tick(), if ticking => Event::Tick,
            permit = sender.reserve(), if has_answers => match permit {
                Ok(permit) => {
                    permit.send(Ok(handover.message()));
                    Event::Sent
                }
                Err(_) => Event::Gone,
            },
            at = poll_fn(|context| handover.poll_ended(context)), if handover.is_running() => Event::Ended(at),
            message = messages.message(), if reads => Event::Message(message),
            () = drained, if self.ending.is_none() => Event::Draining,
            () = sender.closed(), if !has_answers => Event::Gone,
            () = until(deadline), if deadline.is_some() => Event::Late,
            () = sleep_until(idle_until.into()), if is_idle => Event::Idle,
        }
    }

    fn read(&mut self, message: Result<Option<ExecuteStreamRequest>, Status>) {
        self.moved = Instant::now();
        match message {
            Ok(Some(message)) => {
                if let Err(failure) = self.intake.take(self.service, &mut self.handover, message) {
                    self.ending = Some(Err(failure));
                }
            }
            Ok(None) => self.ending = Some(Ok(Code::Ok)),
            Err(status) => self.ending = Some(Err(broken(&status, self.service.limits.unary_max_bytes))),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => poll_fn(|_| Poll::Pending).await,
    }
}

/// What the transport says of a stream that it cannot read on.
fn broken(status: &Status, max_bytes: u64) -> Failure {
    match status.code() {
        Code::OutOfRange => {
            let message = format!("a message of a stream may have about {max_bytes} bytes");
            Failure::new(Reason::BlobTooLarge, message).with("limit_bytes", max_bytes)
        }
        _ => Failure::field("functions", format!("cannot be read: {}", status.message())),
    }
}

fn shutting_down() -> Failure {
    Failure::busy(
        Reason::ShuttingDown,
        "the daemon is shutting down; what was under way is answered, nothing more is read",
    )
}

fn idle(timeout: Duration) -> Failure {
    let message = format!("nothing came or went on the stream for {} ms", timeout.as_millis());
    Failure::new(Reason::DeadlineBeforeStart, message)
}
