//! Calls to executors, many at a time, and their ends to answers.
//!
//! How many go together follows what is seen of them: twice as many each time when they were short, and single ones
//! when one of them took longer than some ticks; then those behind it are taken back, for other executors.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::intake::{Intake, Target, Waiting};
use crate::{
    exec::{Done, Outcome, Refusal, ResultType, SeriesTicket},
    proto::{CallError, ExecuteStreamResponse, Returned, StreamAnswer, stream_answer},
    service::{
        Service, convert,
        execution_service::{in_quarantine, outcome_of, record, refused},
        executions::{Job, Shown},
        failure::{Failure, Reason},
    },
};

/// Calls that go together at most: many times what a hand-over costs, if they are short.
pub(super) const SERIES_MAX: usize = 256;
/// As many go together at first.
const SERIES_FIRST: usize = 16;
/// Series for each executor: one to run, and one to follow without a pause.
const SERIES_PER_EXECUTOR: usize = 2;
/// A call that runs for so many ticks is long. More than one: its executor may have had to wait for a processor.
const LONG_TICKS: u32 = 2;
/// Bytes of a message of answers, about: the rest follows in the next one.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Answers of a message.
const MESSAGE_ANSWERS_MAX: usize = 4096;
/// Bytes of an answer beside its buffers, about.
const ANSWER_BYTES: u64 = 64;
/// Bytes of the text of an error.
const ERROR_MAX_BYTES: usize = 1024;

/// Calls under way of one stream, and answers that were not sent.
pub(super) struct Handover {
    series: Vec<UnderWay>,
    series_max: usize,
    /// How many go together now.
    together: usize,
    /// Executors took no more; tried again with the next tick.
    is_refused: bool,
    answers: VecDeque<(StreamAnswer, u64)>,
    /// Calls in `series`.
    running: usize,
    /// Of their arguments.
    args_bytes: u64,
    /// Of the buffers in the answers to all of these.
    bytes: u64,
    bytes_max: u64,
}

/// A series that the pool has.
struct UnderWay {
    ticket: SeriesTicket,
    target: Arc<Target>,
    result: ResultType,
    /// Those without an end, about in the order of their ends.
    calls: VecDeque<Known>,
    /// The call that ran when it was last looked at, and how often before.
    seen: (Option<u64>, u32),
    _shown: Option<Shown>,
}

/// What is known of a call while an executor has it.
struct Known {
    number: u64,
    call_id: u64,
    args_bytes: u64,
    answer_bytes: u64,
}

impl Handover {
    pub(super) fn new(service: &Service) -> Self {
        Self {
            series: Vec::new(),
            series_max: SERIES_PER_EXECUTOR * service.pool.stats().executors,
            together: SERIES_FIRST,
            is_refused: false,
            answers: VecDeque::new(),
            running: 0,
            args_bytes: 0,
            bytes: 0,
            bytes_max: service.limits.unary_max_bytes,
        }
    }

    /// Calls that have not been answered.
    pub(super) fn len(&self) -> usize {
        self.running + self.answers.len()
    }

    /// Bytes of arguments.
    pub(super) fn args_bytes(&self) -> u64 {
        self.args_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn is_running(&self) -> bool {
        !self.series.is_empty()
    }

    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Hands over what waits, as far as there is room.
    pub(super) fn feed(&mut self, service: &Service, intake: &mut Intake) {
        while !self.is_refused && self.series.len() < self.series_max {
            let (mut bytes, max, is_first) = (self.bytes, self.bytes_max, self.is_empty());
            // However large, one call goes.
            let fits = |more: u64| {
                let goes = bytes + more <= max || (is_first && bytes == 0);
                bytes += more;
                goes
            };
            let calls = intake.next(self.together, fits);
            if calls.is_empty() {
                return;
            }
            self.submit(service, intake, calls);
        }
    }

    /// Answers that a call cannot be made.
    pub(super) fn refuse(&mut self, service: &Service, call_id: u64, failure: &Failure) {
        service.metrics.execution_rejected();
        self.answers.push_back((refusal(call_id, failure), 0));
    }

    /// The number of a series that is over.
    pub(super) fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        let ended = |it: &mut UnderWay| Pin::new(&mut it.ticket).poll(context).is_ready();
        self.series.iter_mut().position(ended).map_or(Poll::Pending, Poll::Ready)
    }

    /// Takes in what a series that is over leaves.
    pub(super) fn ended(&mut self, service: &Service, at: usize, intake: &mut Intake) {
        let mut series = self.series.swap_remove(at);
        self.collect(service, &mut series);
        self.take_back(&mut series, intake);
        debug_assert!(series.calls.is_empty(), "a call has an end or waits");
        self.together = (2 * self.together).min(SERIES_MAX);
        self.is_refused = false;
    }

    /// Looks at what runs.
    pub(super) fn tick(&mut self, service: &Service, intake: &mut Intake) {
        self.is_refused = false;
        let mut all = std::mem::take(&mut self.series);
        for series in &mut all {
            self.collect(service, series);
            let runs = series.ticket.series().running();
            let times = if runs.is_some() && runs == series.seen.0 { series.seen.1 + 1 } else { 0 };
            series.seen = (runs, times);
            if times >= LONG_TICKS && self.take_back(series, intake) {
                self.together = 1;
            }
        }
        self.series = all;
    }

    /// The next message; there are answers.
    pub(super) fn message(&mut self) -> ExecuteStreamResponse {
        let (mut answers, mut message_bytes) = (Vec::with_capacity(self.answers.len().min(MESSAGE_ANSWERS_MAX)), 0);
        while let Some((_, bytes)) = self.answers.front() {
            message_bytes += bytes + ANSWER_BYTES;
            if answers.len() == MESSAGE_ANSWERS_MAX || (message_bytes > MESSAGE_BYTES_MAX && !answers.is_empty()) {
                break;
            }
            if let Some((answer, bytes)) = self.answers.pop_front() {
                self.bytes -= bytes;
                answers.push(answer);
            }
        }
        ExecuteStreamResponse { answers }
    }

    fn submit(&mut self, service: &Service, intake: &mut Intake, calls: Vec<Waiting>) {
        let Some(first) = calls.first() else { return };
        let (target, result) = (Arc::clone(&first.target), first.result);
        let (mut known, mut numbered) = (VecDeque::with_capacity(calls.len()), Vec::with_capacity(calls.len()));
        for Waiting { number, call_id, args, args_bytes, answer_bytes, .. } in calls {
            known.push_back(Known { number, call_id, args_bytes, answer_bytes });
            numbered.push((number, args));
        }
        match service.pool.submit_series(target.call(result), numbered) {
            Ok(ticket) => {
                let series = Arc::clone(ticket.series());
                let job = ticket.id().map(|id| Job::Series { id, series });
                let show = |job| service.show(&target.called, Arc::clone(&target.symbol), target.times.cpu_limit, job);
                let _shown = job.map(show);
                self.running += known.len();
                self.bytes += known.iter().map(|it| it.answer_bytes).sum::<u64>();
                self.args_bytes += known.iter().map(|it| it.args_bytes).sum::<u64>();
                self.series.push(UnderWay { ticket, target, result, calls: known, seen: (None, 0), _shown });
            }
            Err(rejected)
                if matches!(rejected.refusal, Refusal::Saturated { .. } | Refusal::TenantSaturated { .. }) =>
            {
                self.is_refused = true;
                let back = known.into_iter().zip(rejected.calls);
                intake.put_back(back.map(|(known, (_, args))| known.waiting(&target, result, args)));
            }
            Err(rejected) => {
                let failure = refused(rejected.refusal, &rejected.call);
                known.iter().for_each(|it| self.refuse(service, it.call_id, &failure));
            }
        }
    }

    /// Makes answers of the ends that have come.
    fn collect(&mut self, service: &Service, series: &mut UnderWay) {
        let (mut returned, mut is_first, before) = (0, true, self.running as u64);
        for (number, done) in series.ticket.take_done() {
            let Some(Known { call_id, args_bytes, answer_bytes, .. }) = series.remove(number) else { continue };
            self.running -= 1;
            self.args_bytes -= args_bytes;
            // One of them is timed, for all that came together.
            match &done.outcome {
                _ if is_first => record(service, &done),
                Outcome::Returned { .. } => returned += 1,
                Outcome::Trap(trap) => {
                    service.metrics.trap(convert::trap_label(trap.kind));
                    service.metrics.executions(outcome_of(trap.kind), 1);
                }
                Outcome::DeadlineBeforeStart | Outcome::Cancelled | Outcome::Stuck(_) | Outcome::Quarantined => {}
            }
            is_first = false;
            self.answers.push_back((answer(service, &series.target, call_id, done), answer_bytes));
        }
        service.metrics.executions(crate::metrics::ExecutionOutcome::Returned, returned);
        series.target.called.meta.count_calls(before - self.running as u64);
    }

    /// Takes the calls of a series back that have not begun; whether there were any.
    fn take_back(&mut self, series: &mut UnderWay, intake: &mut Intake) -> bool {
        let waiting = series.ticket.take_waiting();
        let any = !waiting.is_empty();
        let mut back = Vec::with_capacity(waiting.len());
        for (number, args) in waiting {
            if let Some(known) = series.remove(number) {
                self.running -= 1;
                self.bytes -= known.answer_bytes;
                self.args_bytes -= known.args_bytes;
                back.push(known.waiting(&series.target, series.result, args));
            }
        }
        intake.put_back(back.into_iter());
        any
    }
}

impl UnderWay {
    fn remove(&mut self, number: u64) -> Option<Known> {
        // Nearly always the first.
        let at = self.calls.iter().position(|it| it.number == number)?;
        self.calls.remove(at)
    }
}

impl Known {
    fn waiting(self, target: &Arc<Target>, result: ResultType, args: Vec<crate::exec::Arg>) -> Waiting {
        let Self { number, call_id, args_bytes, answer_bytes } = self;
        Waiting { target: Arc::clone(target), result, number, call_id, args, args_bytes, answer_bytes }
    }
}

fn answer(service: &Service, target: &Target, call_id: u64, done: Done) -> StreamAnswer {
    let outcome = match done.outcome {
        Outcome::Returned { value, buffers } => {
            stream_answer::Outcome::Returned(Returned { value: value.map(convert::value), buffers })
        }
        Outcome::Trap(trap) => stream_answer::Outcome::Trap(target.called.trap(service, &trap)),
        Outcome::Stuck(held) => return refusal(call_id, &held.into()),
        Outcome::Quarantined => return refusal(call_id, &in_quarantine(&target.called.meta.conduct)),
        Outcome::DeadlineBeforeStart | Outcome::Cancelled => {
            let message = "the daemon is shutting down; the call did not run to its end";
            return refusal(call_id, &Failure::busy(Reason::ShuttingDown, message));
        }
    };
    StreamAnswer {
        call_id,
        outcome: Some(outcome),
        queued_ns: convert::nanos(done.queued),
        wall_ns: convert::nanos(done.wall),
        cpu_ns: convert::nanos(done.cpu),
    }
}

fn refusal(call_id: u64, failure: &Failure) -> StreamAnswer {
    let (code, reason) = (failure.reason.code() as i32, failure.reason.as_str().to_owned());
    let mut message = failure.message.clone();
    while message.len() > ERROR_MAX_BYTES {
        message.pop();
    }
    let error = CallError { code, reason, message };
    StreamAnswer { call_id, outcome: Some(stream_answer::Outcome::Error(error)), ..StreamAnswer::default() }
}
