//! ExecutionService: run resident code.

use std::time::{Duration, Instant};

use tonic::{Request, Response, Status, Streaming};

use super::{
    Service, batch, call_stream, convert,
    edge::{Deadline, Held},
    executions::{self, Execution, Job, Shown},
    failure::{Failure, Reason},
    function::{Called, Function, Times},
};
use crate::{
    cache::{Conduct, Pinned, Quarantine},
    exec::{self, Arg, Call, Done, Outcome, Refusal, Ticket, TrapKind},
    metrics::ExecutionOutcome,
    proto::{self, execute_response, execution_service_server::ExecutionService},
};

#[tonic::async_trait]
impl ExecutionService for Service {
    type ExecuteStreamStream = call_stream::Answers;

    async fn execute(
        &self,
        request: Request<proto::ExecuteRequest>,
    ) -> Result<Response<proto::ExecuteResponse>, Status> {
        let deadline = deadline(&request);
        let answer = execute(self, request.into_inner(), deadline).await;
        Ok(Response::new(answer.inspect_err(|failure| count_failure(self, failure))?))
    }

    async fn execute_batch(
        &self,
        request: Request<proto::ExecuteBatchRequest>,
    ) -> Result<Response<proto::ExecuteBatchResponse>, Status> {
        let deadline = deadline(&request);
        let answer = batch::answer(self, request.into_inner(), deadline).await;
        Ok(Response::new(answer.inspect_err(|failure| count_failure(self, failure))?))
    }

    async fn execute_stream(
        &self,
        request: Request<Streaming<proto::ExecuteStreamRequest>>,
    ) -> Result<Response<call_stream::Answers>, Status> {
        let (deadline, held) = (deadline(&request), request.extensions().get::<Held>().cloned());
        Ok(Response::new(call_stream::open(self, request.into_inner(), deadline, held)))
    }

    async fn list_executions(
        &self,
        request: Request<proto::ListExecutionsRequest>,
    ) -> Result<Response<proto::ListExecutionsResponse>, Status> {
        Ok(Response::new(executions::list(self, request.get_ref())?))
    }

    async fn cancel_execution(
        &self,
        request: Request<proto::CancelExecutionRequest>,
    ) -> Result<Response<proto::CancelExecutionResponse>, Status> {
        executions::cancel(self, request.get_ref())?;
        Ok(Response::new(proto::CancelExecutionResponse {}))
    }
}

impl Service {
    /// Shows a job until the answer is dropped.
    pub(super) fn show(&self, called: &Called, symbol: std::sync::Arc<str>, cpu_limit: Duration, job: Job) -> Shown {
        let (meta, handle, since) = (std::sync::Arc::clone(&called.meta), called.handle, Instant::now());
        self.executions.show(Execution { meta, handle, symbol, cpu_limit, since, job })
    }
}

fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    request.extensions().get::<Deadline>().map(|deadline| deadline.0)
}

fn count_failure(service: &Service, failure: &Failure) {
    match failure.reason {
        Reason::DeadlineDuringCall => service.metrics.execution_cancelled(),
        _ => service.metrics.execution_rejected(),
    }
}

async fn execute(
    service: &Service,
    request: proto::ExecuteRequest,
    deadline: Option<Instant>,
) -> Result<proto::ExecuteResponse, Failure> {
    let Times { cpu_limit, wall_cap } = Times::new(service, request.cpu_limit, request.wall_cap)?;
    let priority = convert::priority(request.priority)?;
    let args = convert::arguments(request.arguments)?;
    exec::check_args(&args, service.limits.call_memory_max_bytes)?;
    check_answer(&args, service.limits.unary_max_bytes)?;
    let function = Function::find(service, &request.namespace, request.target, request.symbol)?;
    let result = function.check(&args, request.result)?;
    let called = function.called();
    let Function { callee, entry, symbol } = function;
    let call = Call { callee, entry, priority, args, result, cpu_limit, wall_cap, deadline };
    let ticket = service.pool.submit(call).map_err(|it| refused(it.refusal, &it.call))?;
    called.meta.count_call();
    // What ran inline has ended.
    let single = |id| service.show(&called, symbol.into(), cpu_limit, Job::Single { id, rows: 0 });
    let _shown = ticket.id().map(single);
    let done = finished(ticket, deadline, |done: &Done| &done.outcome).await?;
    record(service, &done);
    let outcome = match done.outcome {
        Outcome::Returned { value, buffers } => {
            execute_response::Outcome::Returned(proto::Returned { value: value.map(convert::value), buffers })
        }
        Outcome::Trap(trap) => execute_response::Outcome::Trap(called.trap(service, &trap)),
        Outcome::Stuck(held) => return Err(held.into()),
        Outcome::Quarantined => return Err(in_quarantine(&called.meta.conduct)),
        Outcome::DeadlineBeforeStart => return Err(cancelled(false)),
        Outcome::Cancelled => return Err(cancelled(true)),
    };
    Ok(proto::ExecuteResponse {
        outcome: Some(outcome),
        queued_ns: convert::nanos(done.queued),
        wall_ns: convert::nanos(done.wall),
        cpu_ns: convert::nanos(done.cpu),
    })
}

/// Why the pool did not take a call.
pub(super) fn refused(refusal: Refusal, call: &Call<Pinned>) -> Failure {
    match refusal {
        Refusal::Quarantined => in_quarantine(&call.callee.meta().conduct),
        refusal => refusal.into(),
    }
}

/// Why calls of a quarantined entry are not run. It may have been lifted meanwhile.
pub(super) fn in_quarantine(conduct: &Conduct) -> Failure {
    conduct.quarantine().map_or_else(|| Refusal::Quarantined.into(), |it| quarantined(&it))
}

fn quarantined(quarantine: &Quarantine) -> Failure {
    let Quarantine { since, traps, reason } = quarantine;
    let ago_ms = since.elapsed().as_millis();
    let message = format!(
        "the entry is quarantined since {ago_ms} ms, after {traps} traps, the last: {reason}; install it again with \
         replace, or have it lifted (AdminService/LiftQuarantine, `codecachectl unquarantine KEY`)"
    );
    Failure::new(Reason::EntryQuarantined, message).with("since_ms", ago_ms).with("traps", traps).with("reason", reason)
}

/// Counts a call that began.
pub(super) fn record(service: &Service, done: &Done) {
    let outcome = match &done.outcome {
        Outcome::Returned { .. } => ExecutionOutcome::Returned,
        Outcome::Trap(trap) => {
            service.metrics.trap(convert::trap_label(trap.kind));
            outcome_of(trap.kind)
        }
        // Counted as the failures that they become.
        Outcome::DeadlineBeforeStart | Outcome::Cancelled | Outcome::Stuck(_) | Outcome::Quarantined => return,
    };
    service.metrics.execution(outcome, done.queued, done.wall);
}

pub(super) fn outcome_of(kind: TrapKind) -> ExecutionOutcome {
    match kind {
        TrapKind::Timeout => ExecutionOutcome::Timeout,
        TrapKind::Cancelled => ExecutionOutcome::Cancelled,
        _ => ExecutionOutcome::Trapped,
    }
}

/// Waits for the call. When the deadline passes first, the ticket is dropped, and that stops the call.
///
/// The pool knows the deadline too, and either may notice first.
pub(super) async fn finished<T: exec::Answer>(
    mut ticket: Ticket<T>,
    deadline: Option<Instant>,
    outcome: impl Fn(&T) -> &Outcome,
) -> Result<T, Failure> {
    let Some(deadline) = deadline else { return Ok(ticket.await) };
    let done = tokio::time::timeout_at(deadline.into(), &mut ticket).await.map_err(|_| cancelled(ticket.started()))?;
    let timed_out = matches!(outcome(&done), Outcome::Trap(trap) if trap.kind == TrapKind::Timeout);
    if timed_out && Instant::now() >= deadline { Err(cancelled(true)) } else { Ok(done) }
}

/// What a call is answered with whose time was over.
pub(super) fn cancelled(started: bool) -> Failure {
    if started {
        return Failure::new(Reason::DeadlineDuringCall, "the deadline passed while the call ran; it was stopped");
    }
    Failure::new(Reason::DeadlineBeforeStart, "the deadline passed before the call could start; it did not run")
}

/// Bytes of the buffers that a call sends back.
pub(super) fn answer_bytes(args: &[Arg]) -> u64 {
    args.iter().fold(0_u64, |sum, arg| match arg {
        Arg::Out(bytes) => sum.saturating_add(*bytes),
        Arg::InOut(content) => sum.saturating_add(content.len() as u64),
        _ => sum,
    })
}

/// A request of a few bytes must not ask for an answer that is larger than any request may be.
pub(super) fn check_answer(args: &[Arg], max_bytes: u64) -> Result<(), Failure> {
    let bytes = answer_bytes(args);
    if bytes <= max_bytes {
        return Ok(());
    }
    let message = format!("buffers to send back have {bytes} bytes, at most {max_bytes} fit into an answer");
    Err(Failure::field("arguments", message))
}
