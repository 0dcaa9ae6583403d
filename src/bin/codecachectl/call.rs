//! `call`: one function, once or many times.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use codecached::proto::{
    ExecuteRequest, ExecuteResponse, Priority, ResultType, Returned, SystemCall, SystemCallAbi, Trap, TrapKind,
    TrapStage, execute_request::Target, execute_response::Outcome, value::Kind,
};
use hdrhistogram::Histogram;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    args::Call,
    context::{self, Context, Report},
    failure::{Exit, Failure},
    signatures, table, units, value,
};

/// Bytes of a buffer that are shown where nobody asked for a file.
const SHOWN_BYTES: usize = 32;

/// Names and values.
type Lines = Vec<(String, String)>;

/// Times of repeated calls, in nanoseconds.
struct Times {
    calls: u32,
    wall: Histogram<u64>,
    round_trip: Histogram<u64>,
}

/// Calls a function, prints what it returned or how it trapped.
pub(crate) async fn run(context: &Context, asked: Call) -> Result<Report, Failure> {
    let request = request(context, &asked).await?;
    let failed = |error| Failure::client(&format!("call {:?} of {:?}", asked.symbol, asked.key), error);
    let mut times = Times::new();
    let answer = loop {
        let start = Instant::now();
        let answer = context.client.execute(request.clone()).await.map_err(failed)?;
        times.record(start.elapsed(), answer.wall_ns);
        if times.calls == asked.repeat || matches!(answer.outcome, Some(Outcome::Trap(_))) {
            break answer;
        }
    };
    match &answer.outcome {
        Some(Outcome::Returned(returned)) => {
            write_buffers(returned, &asked.output)?;
            let human =
                || table::pairs([returned_human(returned, &asked.output), times_human(&answer, &times)].concat());
            Ok(context.report(human, || returned_json(returned, &answer, &times)))
        }
        Some(Outcome::Trap(trap)) => {
            let human = || table::pairs([trap_human(trap), times_human(&answer, &times)].concat());
            let report = context.report(human, || trap_json(trap, &answer, &times));
            Ok(Report { exit: Exit::Trapped, ..report })
        }
        None => Err(Failure::answer("the daemon answered without an outcome")),
    }
}

async fn request(context: &Context, asked: &Call) -> Result<ExecuteRequest, Failure> {
    let arguments = signatures::typed(context, &asked.key, &asked.symbol, &asked.arguments).await?;
    let buffers = arguments.iter().filter(|argument| comes_back(argument)).count();
    if let Some((index, _)) = asked.output.iter().find(|(index, _)| *index >= buffers) {
        return Err(Failure::misuse(format!(
            "--output {index}: the call has {buffers} out and inout buffers, counted from 0"
        )));
    }
    let reads = arguments.iter().any(|argument| !matches!(argument, value::Argument::Ready(_)));
    // Numbers alone cannot be too large, and then one round trip is saved.
    let bytes_max = if reads { context.limits().await?.call_memory_max_bytes } else { 0 };
    Ok(ExecuteRequest {
        namespace: context.namespace.clone(),
        target: Some(Target::Key(context::key(&asked.key)?)),
        symbol: asked.symbol.clone(),
        arguments: value::resolve(&arguments, bytes_max)?,
        result: asked.result.map_or(ResultType::Unspecified, ResultType::from).into(),
        cpu_limit: asked.cpu_limit.map(to_proto),
        wall_cap: asked.wall_cap.map(to_proto),
        priority: Priority::from(asked.priority).into(),
    })
}

fn comes_back(argument: &value::Argument) -> bool {
    matches!(argument, value::Argument::Ready(Kind::OutBytes(_)) | value::Argument::InOut(_))
}

pub(crate) fn to_proto(duration: Duration) -> prost_types::Duration {
    // Command-line times end at a day.
    prost_types::Duration { seconds: duration.as_secs() as i64, nanos: duration.subsec_nanos() as i32 }
}

fn write_buffers(returned: &Returned, output: &[(usize, PathBuf)]) -> Result<(), Failure> {
    for (index, path) in output {
        let missing = || Failure::answer(format!("the daemon sent no buffer {index}"));
        let buffer = returned.buffers.get(*index).ok_or_else(missing)?;
        fs::write(path, buffer).map_err(|error| Failure::local(format!("cannot write {}: {error}", path.display())))?;
    }
    Ok(())
}

impl Times {
    fn new() -> Self {
        const DIGITS: u8 = 3;
        let histogram = || Histogram::new(DIGITS).expect("3 digits are a precision that the histogram has");
        Self { calls: 0, wall: histogram(), round_trip: histogram() }
    }

    fn record(&mut self, round_trip: Duration, wall_ns: u64) {
        self.calls += 1;
        const GROWS: &str = "a histogram that grows takes every number";
        self.round_trip.record(round_trip.as_nanos() as u64).expect(GROWS);
        self.wall.record(wall_ns).expect(GROWS);
    }

    fn quantiles(histogram: &Histogram<u64>) -> [(&'static str, u64); 3] {
        [("p50", 0.5), ("p99", 0.99), ("max", 1.0)]
            .map(|(name, quantile)| (name, histogram.value_at_quantile(quantile)))
    }
}

fn returned_human(returned: &Returned, output: &[(usize, PathBuf)]) -> Lines {
    let result = match returned.value.as_ref().and_then(|value| value.kind.as_ref()) {
        None => "void".to_owned(),
        Some(Kind::I32(number)) => format!("i32 {number}"),
        Some(Kind::U32(number)) => format!("u32 {number} ({number:#x})"),
        Some(Kind::I64(number)) => format!("i64 {number}"),
        Some(Kind::U64(number)) => format!("u64 {number} ({number:#x})"),
        Some(Kind::F32(number)) => format!("f32 {number:?}"),
        Some(Kind::F64(number)) => format!("f64 {number:?}"),
        Some(Kind::Bytes(_) | Kind::OutBytes(_) | Kind::Inout(_)) => "of an unknown type".to_owned(),
    };
    let mut lines = vec![("result".to_owned(), result)];
    for (index, buffer) in returned.buffers.iter().enumerate() {
        let file = output.iter().find(|(wanted, _)| *wanted == index).map(|(_, path)| path);
        let content = file.map_or_else(|| preview(buffer), |path| format!("written to {}", path.display()));
        lines.push((format!("buffer {index}"), format!("{} bytes, {content}", buffer.len())));
    }
    lines
}

fn preview(buffer: &[u8]) -> String {
    let shown = &buffer[..buffer.len().min(SHOWN_BYTES)];
    let rest = if shown.len() < buffer.len() { "..." } else { "" };
    format!("hex {}{rest}", units::hex(shown))
}

pub(crate) fn trap_human(trap: &Trap) -> Lines {
    let (name, words) = kind(trap.kind());
    let mut lines = vec![("trap".to_owned(), format!("{name}: {words}")), ("where".to_owned(), place(trap))];
    if let Some((_, words)) = stage(trap) {
        lines.push(("while".to_owned(), words.to_owned()));
    }
    if let Some(call) = &trap.system_call {
        lines.push(("system call".to_owned(), system_call(call)));
    }
    if !trap.instruction.is_empty() {
        lines.push(("instruction".to_owned(), trap.instruction.clone()));
    }
    if let Some(address) = trap.fault_address {
        lines.push(("fault address".to_owned(), format!("{address:#018x}")));
    }
    if trap.signal != 0 {
        let name = signal_name(trap.signal).unwrap_or("unknown");
        lines.push(("signal".to_owned(), format!("{} ({name})", trap.signal)));
    }
    if let Some(status) = trap.exit_status {
        lines.push(("exit status".to_owned(), status.to_string()));
    }
    lines
}

/// Such as "getpid (39)".
fn system_call(call: &SystemCall) -> String {
    let name = if call.name.is_empty() { "unknown" } else { &call.name };
    let by = match abi(call) {
        "x86-64" => String::new(),
        other => format!(" by the {other} interface"),
    };
    format!("{name} ({}){by}", call.number)
}

fn abi(call: &SystemCall) -> &'static str {
    match call.abi() {
        SystemCallAbi::X8664 => "x86-64",
        SystemCallAbi::X32 => "x32",
        SystemCallAbi::I386 => "i386",
        SystemCallAbi::Unspecified => "unknown",
    }
}

/// What was running, if it was not the function that was called.
fn stage(trap: &Trap) -> Option<(&'static str, &'static str)> {
    match trap.stage() {
        TrapStage::Unspecified | TrapStage::Call => None,
        TrapStage::Stuck => {
            Some(("STUCK", "could not be stopped: it keeps its thread and data, and the entry is quarantined"))
        }
        TrapStage::Initialiser => Some(("INITIALISER", "running what must run before the first call")),
        TrapStage::InitialiserKeptMemory => {
            Some(("INITIALISER_KEPT_MEMORY", "an initialiser returned without freeing what it had allocated"))
        }
        TrapStage::Waiting => Some(("WAITING", "waiting for an executor; it did not run")),
    }
}

fn place(trap: &Trap) -> String {
    let entry = match &trap.dependency_key[..] {
        b"" => String::new(),
        key => format!(" of {}", units::key(key)),
    };
    match (trap.outside, trap.symbol.as_str()) {
        (true, _) => "outside of the entry".to_owned(),
        (false, "") => format!("code+{:#x}{entry}", trap.offset_bytes),
        (false, symbol) => format!("{symbol}+{:#x}{entry}", trap.offset_bytes),
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Signal::try_from(signal).ok().map(Signal::as_str)
}

fn kind(kind: TrapKind) -> (&'static str, &'static str) {
    match kind {
        TrapKind::Unspecified => ("UNKNOWN", "the daemon did not say"),
        TrapKind::Segv => ("SEGV", "access to memory that is not there or not allowed"),
        TrapKind::Bus => ("BUS", "access that the memory cannot answer"),
        TrapKind::Ill => ("ILL", "invalid or privileged instruction"),
        TrapKind::Fpe => ("FPE", "division by zero, overflow of one, or a floating-point exception"),
        TrapKind::Breakpoint => ("BREAKPOINT", "breakpoint, single step, or a jump into free code memory"),
        TrapKind::StackOverflow => ("STACK_OVERFLOW", "the stack ran into its guard"),
        TrapKind::Timeout => ("TIMEOUT", "the CPU limit or the wall cap passed"),
        TrapKind::Abort => ("ABORT", "the code gave up"),
        TrapKind::Syscall => ("SYSCALL", "a system call, which was not made"),
        TrapKind::Cancelled => ("CANCELLED", "somebody stopped it"),
        TrapKind::Worker => ("WORKER", "the worker process ended, or none could be had"),
    }
}

fn times_human(answer: &ExecuteResponse, times: &Times) -> Lines {
    let [wall, cpu, queued] = [answer.wall_ns, answer.cpu_ns, answer.queued_ns].map(units::nanoseconds);
    let mut lines = vec![("time".to_owned(), format!("wall {wall}, cpu {cpu}, queued {queued}"))];
    if times.calls > 1 {
        let all = |histogram| {
            Times::quantiles(histogram).map(|(name, ns)| format!("{name} {}", units::nanoseconds(ns))).join(", ")
        };
        lines.push(("calls".to_owned(), times.calls.to_string()));
        lines.push(("wall".to_owned(), all(&times.wall)));
        lines.push(("round trip".to_owned(), all(&times.round_trip)));
    }
    lines
}

fn returned_json(returned: &Returned, answer: &ExecuteResponse, times: &Times) -> Value {
    let (name, value) = match returned.value.as_ref().and_then(|value| value.kind.as_ref()) {
        Some(Kind::I32(number)) => ("i32", json!(number)),
        Some(Kind::U32(number)) => ("u32", json!(number)),
        Some(Kind::I64(number)) => ("i64", json!(number)),
        Some(Kind::U64(number)) => ("u64", json!(number)),
        Some(Kind::F32(number)) => ("f32", float(f64::from(*number))),
        Some(Kind::F64(number)) => ("f64", float(*number)),
        None | Some(Kind::Bytes(_) | Kind::OutBytes(_) | Kind::Inout(_)) => ("void", Value::Null),
    };
    let mut json = times_json(answer, times);
    json["outcome"] = json!("returned");
    json["result"] = json!({ "type": name, "value": value });
    json["buffers_hex"] = returned.buffers.iter().map(|buffer| units::hex(buffer)).collect();
    json
}

/// JSON has no infinities and no NaN: they are text.
fn float(number: f64) -> Value {
    if number.is_finite() { json!(number) } else { json!(number.to_string()) }
}

fn trap_json(trap: &Trap, answer: &ExecuteResponse, times: &Times) -> Value {
    let mut json = times_json(answer, times);
    json["outcome"] = json!("trapped");
    json["trap"] = trap_fields(trap);
    json
}

pub(crate) fn trap_fields(trap: &Trap) -> Value {
    json!({
        "kind": kind(trap.kind()).0,
        "symbol": trap.symbol,
        "offset_bytes": trap.offset_bytes,
        "instruction": trap.instruction,
        "outside": trap.outside,
        "stage": stage(trap).map_or("CALL", |(name, _)| name),
        "dependency_key": units::key(&trap.dependency_key),
        "fault_address": trap.fault_address.map(|address| format!("{address:#018x}")),
        "signal": trap.signal,
        "signal_name": signal_name(trap.signal),
        "system_call": trap.system_call.as_ref().map(|call| json!({
            "abi": abi(call),
            "number": call.number,
            "name": call.name,
        })),
        "exit_status": trap.exit_status,
    })
}

fn times_json(answer: &ExecuteResponse, times: &Times) -> Value {
    let quantiles = |histogram| {
        Times::quantiles(histogram).into_iter().map(|(name, ns)| (format!("{name}_ns"), json!(ns))).collect()
    };
    let [wall, round_trip]: [serde_json::Map<_, _>; 2] = [quantiles(&times.wall), quantiles(&times.round_trip)];
    json!({
        "queued_ns": answer.queued_ns,
        "wall_ns": answer.wall_ns,
        "cpu_ns": answer.cpu_ns,
        "calls": times.calls,
        "wall": wall,
        "round_trip": round_trip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trap_says_what_where_and_why() {
        let kind = TrapKind::Segv.into();
        let trap = Trap {
            kind,
            symbol: "peek".into(),
            offset_bytes: 2,
            outside: false,
            fault_address: Some(0),
            signal: 11,
            instruction: "mov eax, dword ptr [rdi]".into(),
            stage: TrapStage::Initialiser.into(),
            ..Trap::default()
        };
        let text = table::pairs(trap_human(&trap));
        for part in ["SEGV", "peek+0x2", "dword ptr [rdi]", "0x0000000000000000", "11 (SIGSEGV)"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        let json = trap_json(&trap, &ExecuteResponse::default(), &Times::new());
        assert_eq!(json["trap"]["signal_name"], "SIGSEGV");
        assert_eq!(place(&Trap { outside: true, ..trap.clone() }), "outside of the entry");
        assert_eq!(place(&Trap { dependency_key: "base".into(), ..trap.clone() }), "peek+0x2 of base");
        assert_eq!(place(&Trap { symbol: String::new(), ..trap }), "code+0x2");
    }

    #[test]
    fn results_keep_their_type_and_their_infinities() {
        let with = |kind| Returned { value: Some(codecached::proto::Value { kind: Some(kind) }), buffers: vec![] };
        let json = |kind| returned_json(&with(kind), &ExecuteResponse::default(), &Times::new())["result"].clone();
        assert_eq!(json(Kind::U64(u64::MAX)), json!({ "type": "u64", "value": u64::MAX }));
        assert_eq!(json(Kind::F64(f64::INFINITY)), json!({ "type": "f64", "value": "inf" }));
        assert_eq!(returned_human(&with(Kind::U32(255)), &[])[0].1, "u32 255 (0xff)");
        assert_eq!(returned_human(&Returned::default(), &[])[0].1, "void");
    }

    #[test]
    fn a_long_buffer_is_shown_in_part() {
        assert_eq!(preview(&[1, 2]), "hex 0102");
        assert_eq!(preview(&[0; 33]), format!("hex {}...", "00".repeat(32)));
    }
}
