//! Messages to values and back.

use std::time::{Duration, Instant};

use super::{failure::Failure, signature};
use crate::{
    cache::{Dependency, Meta, Quarantine, Rank, View},
    code::PartKind,
    exec::{
        Abi, Arg, FilterState, PoolStats, Priority, ResultType, Scalar, SystemCall, Trap, TrapKind, TrapStage,
        WorkerStats,
    },
    metrics,
    proto::{self, value::Kind},
};

/// Basic: what hot paths need and what fits into one packet whatever the entry.
pub(super) fn basic_entry(view: &View) -> proto::Entry {
    let sizes = &view.meta.sizes;
    proto::Entry {
        handle: view.handle.to_bits(),
        generation: view.handle.generation(),
        charged_bytes: view.charged_bytes,
        code_bytes: sizes.code.size_bytes,
        rodata_bytes: sizes.rodata.size_bytes,
        data_bytes: sizes.data.size_bytes,
        ..proto::Entry::default()
    }
}

/// All but the symbols.
pub(super) fn listed_entry(view: &View, now: Instant) -> proto::Entry {
    proto::Entry {
        key: view.meta.name.key().to_vec().into(),
        digest: Some(proto::Digest {
            algorithm: proto::DigestAlgorithm::Blake3.into(),
            value: view.meta.digest.to_vec().into(),
        }),
        calls: view.calls,
        idle_ms: millis(now.saturating_duration_since(view.last_used)),
        age_ms: millis(now.saturating_duration_since(view.meta.installed_at)),
        pins: u32::try_from(view.pins).unwrap_or(u32::MAX),
        reentrant: view.meta.reentrant,
        link_state_bytes: view.link_state_bytes,
        initialisers_waiting: view.meta.startup.waiting(),
        dependencies: view.meta.reached.direct().map(linked_entry).collect(),
        dependants: view.dependants,
        quarantine: view.meta.conduct.quarantine().map(|it| quarantine(it, now)),
        ..basic_entry(view)
    }
}

pub(super) fn quarantine(quarantine: Quarantine, now: Instant) -> proto::Quarantine {
    let Quarantine { since, traps, reason } = quarantine;
    proto::Quarantine { since_ms: millis(now.saturating_duration_since(since)), traps, reason }
}

fn linked_entry(dependency: &Dependency) -> proto::LinkedEntry {
    proto::LinkedEntry {
        key: dependency.meta.name.key().to_vec().into(),
        generation: dependency.handle.generation(),
        handle: dependency.handle.to_bits(),
    }
}

/// Everything.
pub(super) fn full_entry(view: &View, now: Instant) -> proto::Entry {
    proto::Entry { symbols: symbols(&view.meta), ..listed_entry(view, now) }
}

fn symbols(meta: &Meta) -> Vec<proto::Symbol> {
    let symbol = |symbol: &crate::code::Symbol| proto::Symbol {
        name: symbol.name.to_string(),
        kind: match (symbol.is_function, symbol.part) {
            (true, _) => proto::SymbolKind::Function.into(),
            (false, PartKind::Code) => proto::SymbolKind::Unspecified.into(),
            (false, PartKind::Rodata | PartKind::Data) => proto::SymbolKind::Data.into(),
        },
        offset_bytes: symbol.offset_bytes,
        size_bytes: symbol.size_bytes,
        signature: symbol.signature.as_deref().map(signature::to_proto),
        signature_text: symbol
            .signature
            .as_ref()
            .map(|it| it.declaration(&symbol.name).to_string())
            .unwrap_or_default(),
    };
    meta.exports.symbols().iter().map(symbol).collect()
}

/// `None` for order by key.
pub(super) fn rank(order: i32) -> Result<Option<Rank>, Failure> {
    use proto::ListOrder as Order;
    match Order::try_from(order) {
        Ok(Order::Unspecified | Order::Key) => Ok(None),
        Ok(Order::MostRecent) => Ok(Some(Rank::MostRecent)),
        Ok(Order::LeastRecent) => Ok(Some(Rank::LeastRecent)),
        Ok(Order::Size) => Ok(Some(Rank::Size)),
        Ok(Order::Calls) => Ok(Some(Rank::Calls)),
        Err(_) => Err(Failure::field("order", format!("{order} is no order that this version knows"))),
    }
}

pub(super) fn arguments(values: Vec<proto::Value>) -> Result<Vec<Arg>, Failure> {
    let argument = |(at, value): (usize, proto::Value)| {
        Ok(match value.kind {
            Some(Kind::I32(it)) => Arg::I32(it),
            Some(Kind::U32(it)) => Arg::U32(it),
            Some(Kind::I64(it)) => Arg::I64(it),
            Some(Kind::U64(it)) => Arg::U64(it),
            Some(Kind::F32(it)) => Arg::F32(it),
            Some(Kind::F64(it)) => Arg::F64(it),
            Some(Kind::Bytes(it)) => Arg::Bytes(it),
            Some(Kind::OutBytes(it)) => Arg::Out(it),
            Some(Kind::Inout(it)) => Arg::InOut(it),
            None => return Err(Failure::field("arguments", format!("argument {at} has no value"))),
        })
    };
    values.into_iter().enumerate().map(argument).collect()
}

pub(super) fn result_type(wire: i32) -> Result<ResultType, Failure> {
    use proto::ResultType as Wire;
    match Wire::try_from(wire) {
        Ok(Wire::Unspecified | Wire::Void) => Ok(ResultType::Void),
        Ok(Wire::I32) => Ok(ResultType::I32),
        Ok(Wire::U32) => Ok(ResultType::U32),
        Ok(Wire::I64) => Ok(ResultType::I64),
        Ok(Wire::U64) => Ok(ResultType::U64),
        Ok(Wire::F32) => Ok(ResultType::F32),
        Ok(Wire::F64) => Ok(ResultType::F64),
        Err(_) => Err(Failure::field("result", format!("{wire} is no type that this version knows"))),
    }
}

pub(super) fn priority(wire: i32) -> Result<Priority, Failure> {
    use proto::Priority as Wire;
    match Wire::try_from(wire) {
        Ok(Wire::Low) => Ok(Priority::Low),
        Ok(Wire::Unspecified | Wire::Normal) => Ok(Priority::Normal),
        Ok(Wire::High) => Ok(Priority::High),
        Err(_) => Err(Failure::field("priority", format!("{wire} is no priority that this version knows"))),
    }
}

pub(super) fn value(scalar: Scalar) -> proto::Value {
    let kind = match scalar {
        Scalar::I32(it) => Kind::I32(it),
        Scalar::U32(it) => Kind::U32(it),
        Scalar::I64(it) => Kind::I64(it),
        Scalar::U64(it) => Kind::U64(it),
        Scalar::F32(it) => Kind::F32(it),
        Scalar::F64(it) => Kind::F64(it),
    };
    proto::Value { kind: Some(kind) }
}

/// Names where a trap happened: `code` is where the entry's code lay, `instruction` what stands there.
pub(super) fn trap(trap: &Trap, meta: &Meta, code: &std::ops::Range<u64>, instruction: String) -> proto::Trap {
    let kind = match trap.kind {
        TrapKind::Segv => proto::TrapKind::Segv,
        TrapKind::Bus => proto::TrapKind::Bus,
        TrapKind::Ill => proto::TrapKind::Ill,
        TrapKind::Fpe => proto::TrapKind::Fpe,
        TrapKind::Breakpoint => proto::TrapKind::Breakpoint,
        TrapKind::StackOverflow => proto::TrapKind::StackOverflow,
        TrapKind::Timeout => proto::TrapKind::Timeout,
        TrapKind::Abort => proto::TrapKind::Abort,
        TrapKind::Syscall => proto::TrapKind::Syscall,
        TrapKind::Cancelled => proto::TrapKind::Cancelled,
        TrapKind::Worker => proto::TrapKind::Worker,
    };
    let dependency = meta.reached.all().iter().find(|it| it.code.contains(&trap.pc));
    let place = match dependency {
        Some(dependency) => Some((&*dependency.meta, &dependency.code)),
        None => code.contains(&trap.pc).then_some((meta, code)),
    };
    let offset_bytes = place.map_or(0, |(_, code)| trap.pc - code.start);
    let function = place.and_then(|(meta, _)| meta.exports.function_at(offset_bytes));
    proto::Trap {
        kind: kind.into(),
        symbol: function.map(|it| it.name.to_string()).unwrap_or_default(),
        offset_bytes: offset_bytes - function.map_or(0, |it| it.offset_bytes),
        outside: place.is_none(),
        fault_address: trap.fault_address,
        signal: trap.signal,
        instruction,
        stage: match trap.stage {
            TrapStage::Call => proto::TrapStage::Call,
            TrapStage::Initialiser => proto::TrapStage::Initialiser,
            TrapStage::KeptMemory => proto::TrapStage::InitialiserKeptMemory,
            TrapStage::Stuck => proto::TrapStage::Stuck,
            TrapStage::Waiting => proto::TrapStage::Waiting,
        }
        .into(),
        dependency_key: dependency.map(|it| it.meta.name.key().to_vec().into()).unwrap_or_default(),
        system_call: trap.system_call.map(system_call),
        exit_status: trap.exit_status,
    }
}

fn system_call(call: SystemCall) -> proto::SystemCall {
    let abi = match call.abi {
        Abi::X86_64 => proto::SystemCallAbi::X8664,
        Abi::X32 => proto::SystemCallAbi::X32,
        Abi::I386 => proto::SystemCallAbi::I386,
    };
    proto::SystemCall { abi: abi.into(), number: call.number, name: call.name().unwrap_or_default().to_owned() }
}

/// Worker processes, for GetStatus.
pub(super) fn workers(stats: WorkerStats) -> proto::WorkerStatus {
    proto::WorkerStatus {
        alive: stats.alive as u32,
        ready: stats.ready as u32,
        spawned: stats.spawned,
        failed_spawns: stats.failed_spawns,
        exited: stats.exited,
        killed: stats.killed,
        stopped: stats.stopped,
        replaced: stats.replaced,
    }
}

/// Whether system calls are contained, and what the daemon itself was refused.
pub(super) fn system_calls(pool: &PoolStats) -> proto::SystemCallStatus {
    let (containment, reason) = match pool.filter {
        FilterState::InForce => (proto::SystemCallContainment::InForce, String::new()),
        FilterState::Unavailable(error) => (proto::SystemCallContainment::Unavailable, error.to_string()),
        FilterState::Off => (proto::SystemCallContainment::Off, String::new()),
    };
    proto::SystemCallStatus { containment: containment.into(), reason, refused: pool.refused_system_calls }
}

pub(super) fn trap_label(kind: TrapKind) -> metrics::TrapKind {
    match kind {
        TrapKind::Segv => metrics::TrapKind::Segv,
        TrapKind::Bus => metrics::TrapKind::Bus,
        TrapKind::Ill => metrics::TrapKind::Ill,
        TrapKind::Fpe => metrics::TrapKind::Fpe,
        TrapKind::Breakpoint => metrics::TrapKind::Breakpoint,
        TrapKind::StackOverflow => metrics::TrapKind::StackOverflow,
        TrapKind::Timeout => metrics::TrapKind::Timeout,
        TrapKind::Abort => metrics::TrapKind::Abort,
        TrapKind::Syscall => metrics::TrapKind::Syscall,
        TrapKind::Cancelled => metrics::TrapKind::Cancelled,
        TrapKind::Worker => metrics::TrapKind::Worker,
    }
}

/// # Errors
/// INVALID_FIELD for a negative or absurd duration.
pub(super) fn duration(field: &'static str, wire: prost_types::Duration) -> Result<Duration, Failure> {
    Duration::try_from(wire).map_err(|_| Failure::field(field, "must not be negative"))
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
