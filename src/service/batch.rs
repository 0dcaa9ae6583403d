//! ExecuteBatch: one function over columns.

use std::time::Instant;

use super::{
    Service,
    execution_service::{cancelled, finished, in_quarantine, record, refused},
    executions::Job,
    failure::Failure,
    function::{Function, Times},
};
use crate::{
    exec::{Arg, Batch, BatchDone, Call, Column, ColumnType, Outcome, Priority},
    proto,
};

/// # Errors
/// What the rpc is answered with.
pub(super) async fn answer(
    service: &Service,
    request: proto::ExecuteBatchRequest,
    deadline: Option<Instant>,
) -> Result<proto::ExecuteBatchResponse, Failure> {
    let Times { cpu_limit, wall_cap } = Times::new(service, request.cpu_limit, request.wall_cap)?;
    let columns = request.columns.into_iter().enumerate().map(|(at, column)| from_proto(at, column));
    let batch = Batch::new(request.rows, columns.collect::<Result<_, _>>()?)?;
    let function = Function::find(service, &request.namespace, request.target, request.symbol)?;
    let samples: Vec<_> = batch.columns().iter().map(|column| sample(column.kind)).collect();
    let result = function.check(&samples, request.result)?;
    let kind = ColumnType::of_result(result);
    check_answer(batch.rows(), kind, service.limits.unary_max_bytes)?;
    let (called, rows) = (function.called(), batch.rows() as u64);
    let Function { callee, entry, symbol } = function;
    let priority = Priority::Normal;
    let call = Call { callee, entry, priority, args: Vec::new(), result, cpu_limit, wall_cap, deadline };
    let ticket = service.pool.submit_batch(call, batch).map_err(|it| refused(it.refusal, &it.call))?;
    called.meta.count_call();
    let single = |id| service.show(&called, symbol.into(), cpu_limit, Job::Single { id, rows });
    let _shown = ticket.id().map(single);
    let BatchDone { done, rows, results } = finished(ticket, deadline, |it: &BatchDone| &it.done.outcome).await?;
    record(service, &done);
    let trap = match done.outcome {
        Outcome::Returned { .. } => None,
        Outcome::Trap(trap) => Some(called.trap(service, &trap)),
        Outcome::Stuck(held) => return Err(held.into()),
        Outcome::Quarantined => return Err(in_quarantine(&called.meta.conduct)),
        Outcome::DeadlineBeforeStart => return Err(cancelled(false)),
        Outcome::Cancelled => return Err(cancelled(true)),
    };
    Ok(proto::ExecuteBatchResponse {
        rows: rows as u64,
        results: kind.map(|kind| proto::Column { r#type: to_proto(kind).into(), values: results }),
        trap,
        queued_ns: super::convert::nanos(done.queued),
        wall_ns: super::convert::nanos(done.wall),
        cpu_ns: super::convert::nanos(done.cpu),
    })
}

/// A batch of a few bytes must not ask for an answer that is larger than any request may be.
fn check_answer(rows: usize, kind: Option<ColumnType>, max_bytes: u64) -> Result<(), Failure> {
    let bytes = (rows * kind.map_or(0, ColumnType::width_bytes)) as u64;
    if bytes <= max_bytes {
        return Ok(());
    }
    Err(Failure::field("rows", format!("their results have {bytes} bytes, at most {max_bytes} fit into an answer")))
}

fn from_proto(at: usize, column: proto::Column) -> Result<Column, Failure> {
    use proto::ColumnType as Wire;
    let kind = match Wire::try_from(column.r#type) {
        Ok(Wire::I32) => ColumnType::I32,
        Ok(Wire::U32) => ColumnType::U32,
        Ok(Wire::I64) => ColumnType::I64,
        Ok(Wire::U64) => ColumnType::U64,
        Ok(Wire::F32) => ColumnType::F32,
        Ok(Wire::F64) => ColumnType::F64,
        Ok(Wire::Unspecified) => return Err(Failure::field("columns", format!("column {at} has no type"))),
        Err(_) => return Err(Failure::field("columns", format!("column {at} is of no type that this version knows"))),
    };
    Ok(Column { kind, values: column.values })
}

fn to_proto(kind: ColumnType) -> proto::ColumnType {
    match kind {
        ColumnType::I32 => proto::ColumnType::I32,
        ColumnType::U32 => proto::ColumnType::U32,
        ColumnType::I64 => proto::ColumnType::I64,
        ColumnType::U64 => proto::ColumnType::U64,
        ColumnType::F32 => proto::ColumnType::F32,
        ColumnType::F64 => proto::ColumnType::F64,
    }
}

/// An argument of the column's type, for the check against the signature.
fn sample(kind: ColumnType) -> Arg {
    match kind {
        ColumnType::I32 => Arg::I32(0),
        ColumnType::U32 => Arg::U32(0),
        ColumnType::I64 => Arg::I64(0),
        ColumnType::U64 => Arg::U64(0),
        ColumnType::F32 => Arg::F32(0.0),
        ColumnType::F64 => Arg::F64(0.0),
    }
}
