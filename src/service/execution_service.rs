//! ExecutionService: run resident code.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Request, Response, Status};

use super::{
    Service,
    asked::Asked,
    convert, disassemble,
    edge::Deadline,
    failure::{Failure, Reason},
    signature,
};
use crate::{
    cache::{Pinned, Quarantine},
    exec::{self, Arg, Call, Done, Outcome, Refusal, Rejected, Ticket, TrapKind},
    metrics::ExecutionOutcome,
    proto::{self, execute_response, execution_service_server::ExecutionService},
};

/// Wall clock that a call may take for each unit of its CPU limit, unless it says otherwise: calls share the
/// processors with others.
const WALL_PER_CPU: u32 = 20;

#[tonic::async_trait]
impl ExecutionService for Service {
    async fn execute(
        &self,
        request: Request<proto::ExecuteRequest>,
    ) -> Result<Response<proto::ExecuteResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        let request = request.into_inner();
        let answer = execute(self, request, deadline).await;
        Ok(Response::new(answer.inspect_err(|failure| match failure.reason {
            Reason::DeadlineDuringCall => self.metrics.execution_cancelled(),
            _ => self.metrics.execution_rejected(),
        })?))
    }
}

async fn execute(
    service: &Service,
    request: proto::ExecuteRequest,
    deadline: Option<Instant>,
) -> Result<proto::ExecuteResponse, Failure> {
    let (cpu_limit, wall_cap) = limits(service, &request)?;
    let priority = convert::priority(request.priority)?;
    let args = convert::arguments(request.arguments)?;
    exec::check_args(&args, service.limits.call_memory_max_bytes)?;
    check_answer(&args, service.limits.unary_max_bytes)?;
    let asked = Asked::new(&request.namespace, request.target)?;
    let callee = service.cache.pin(asked.target()).ok_or_else(|| asked.absent())?;
    let entry = callee.function(&request.symbol).ok_or_else(|| no_function(&callee, &request.symbol))?;
    let declared = callee.signature(&request.symbol);
    let result = signature::check(&request.symbol, declared, &args, request.result)?;
    let (meta, code, handle) = (Arc::clone(callee.meta()), callee.code_range(), callee.handle());
    let call = Call { callee, entry, priority, args, result, cpu_limit, wall_cap, deadline };
    let ticket = service.pool.submit(call);
    let ticket = ticket.map_err(refused)?;
    meta.count_call();
    let done = finished(ticket, deadline).await?;
    let outcome = match done.outcome {
        Outcome::Returned { value, buffers } => {
            service.metrics.execution(ExecutionOutcome::Returned, done.queued, done.wall);
            execute_response::Outcome::Returned(proto::Returned { value: value.map(convert::value), buffers })
        }
        Outcome::Trap(trap) => {
            let outcome = match trap.kind {
                TrapKind::Timeout => ExecutionOutcome::Timeout,
                _ => ExecutionOutcome::Trapped,
            };
            service.metrics.execution(outcome, done.queued, done.wall);
            service.metrics.trap(convert::trap_label(trap.kind));
            let instruction = disassemble::trapped(service, handle, &meta.name, &trap);
            execute_response::Outcome::Trap(convert::trap(&trap, &meta, &code, instruction))
        }
        Outcome::Stuck(held) => return Err(held.into()),
        Outcome::DeadlineBeforeStart => return Err(late(false)),
        Outcome::Cancelled => return Err(late(true)),
    };
    Ok(proto::ExecuteResponse {
        outcome: Some(outcome),
        queued_ns: convert::nanos(done.queued),
        wall_ns: convert::nanos(done.wall),
        cpu_ns: convert::nanos(done.cpu),
    })
}

/// Why the pool did not take the call.
fn refused(rejected: Rejected<Pinned>) -> Failure {
    let quarantine = rejected.call.callee.meta().conduct.quarantine();
    match (rejected.refusal, quarantine) {
        (Refusal::Quarantined, Some(quarantine)) => quarantined(&quarantine),
        (refusal, _) => refusal.into(),
    }
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

/// Waits for the call. When the deadline passes first, the ticket is dropped, and that stops the call.
///
/// The pool knows the deadline too, and either may notice first.
async fn finished(mut ticket: Ticket, deadline: Option<Instant>) -> Result<Done, Failure> {
    let Some(deadline) = deadline else { return Ok(ticket.await) };
    let done = tokio::time::timeout_at(deadline.into(), &mut ticket).await.map_err(|_| late(ticket.started()))?;
    let timed_out = matches!(done.outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Timeout);
    if timed_out && Instant::now() >= deadline { Err(late(true)) } else { Ok(done) }
}

fn late(started: bool) -> Failure {
    if started {
        return Failure::new(Reason::DeadlineDuringCall, "the deadline passed while the call ran; it was stopped");
    }
    Failure::new(Reason::DeadlineBeforeStart, "the deadline passed before the call could start; it did not run")
}

/// A request of a few bytes must not ask for an answer that is larger than any request may be.
fn check_answer(args: &[Arg], max_bytes: u64) -> Result<(), Failure> {
    let bytes = args.iter().fold(0_u64, |sum, arg| match arg {
        Arg::Out(bytes) => sum.saturating_add(*bytes),
        Arg::InOut(content) => sum.saturating_add(content.len() as u64),
        _ => sum,
    });
    if bytes <= max_bytes {
        return Ok(());
    }
    let message = format!("buffers to send back have {bytes} bytes, at most {max_bytes} fit into an answer");
    Err(Failure::field("arguments", message))
}

fn limits(service: &Service, request: &proto::ExecuteRequest) -> Result<(Duration, Duration), Failure> {
    let max = service.limits.cpu_limit_max;
    let cpu_limit = match request.cpu_limit {
        Some(wire) => convert::duration("cpu_limit", wire)?,
        None => service.limits.cpu_limit_default,
    };
    if cpu_limit.is_zero() || cpu_limit > max {
        return Err(Failure::field("cpu_limit", format!("must be above 0 and at most {} ms", max.as_millis())));
    }
    let wall_cap_max = max * WALL_PER_CPU;
    let wall_cap = match request.wall_cap {
        Some(wire) => convert::duration("wall_cap", wire)?,
        None => cpu_limit * WALL_PER_CPU,
    };
    if wall_cap.is_zero() || wall_cap > wall_cap_max {
        let message = format!("must be above 0 and at most {} ms", wall_cap_max.as_millis());
        return Err(Failure::field("wall_cap", message));
    }
    Ok((cpu_limit, wall_cap))
}

fn no_function(callee: &Pinned, symbol: &str) -> Failure {
    let functions = callee.meta().exports.symbols().iter().filter(|it| it.is_function).map(|it| &*it.name);
    let offered: Vec<&str> = functions.take(8).collect();
    let message = format!("no function {:?} in the entry; it has {}", symbol, offered.join(", "));
    Failure::absent(Reason::SymbolNotFound, "symbol", symbol.escape_debug().take(256).collect::<String>(), message)
}
