//! `stats` and `capabilities`: what the daemon says about itself.

use codecached::proto::{
    ArenaStatus, BlobFormat, ExecutorStatus, GetCapabilitiesResponse, GetStatusResponse, LowArenaStatus,
    SystemCallContainment, WorkerStatus,
};
use serde_json::{Value, json};

use crate::{
    context::{Context, Report},
    failure::Failure,
    table, units,
};

/// Columns of the bar of the budget.
const BAR_COLUMNS: u64 = 30;

/// Shows what the daemon holds and does.
pub(crate) async fn stats(context: &Context) -> Result<Report, Failure> {
    let status = context.client.status().await.map_err(|error| Failure::client("read the status", error))?;
    Ok(context.report(|| stats_human(&status), || stats_json(&status)))
}

/// Shows what the daemon runs on, takes and offers.
pub(crate) async fn capabilities(context: &Context) -> Result<Report, Failure> {
    let answer = context.client.capabilities().await;
    let answer = answer.map_err(|error| Failure::client("read the capabilities", error))?;
    Ok(context.report(|| capabilities_human(&answer), || capabilities_json(&answer)))
}

fn stats_human(status: &GetStatusResponse) -> String {
    let budget = status.budget.unwrap_or_default();
    let entries = status.entries.unwrap_or_default();
    let arena = status.arena.clone().unwrap_or_default();
    let executors = status.executors.unwrap_or_default();
    let counters = status.counters.unwrap_or_default();
    let state = match (status.draining, status.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let b = units::bytes;
    let low = arena.low.as_ref().map(|low| ("below 2 GiB", low_arena(low)));
    let pairs = [
        ("daemon", format!("codecached {}, pid {}, {state}", status.version, status.pid)),
        ("up", units::milliseconds(status.uptime_seconds.saturating_mul(1000))),
        ("budget", bar(budget.charged_bytes, budget.limit_bytes)),
        (
            "",
            format!(
                "spans {}, lingering {}, metadata {}, uploads {}",
                b(budget.spans_bytes),
                b(budget.lingering_bytes),
                b(budget.metadata_bytes),
                b(budget.uploads_bytes)
            ),
        ),
        (
            "entries",
            format!(
                "{} resident, {} lingering, {} quarantined",
                entries.resident, entries.lingering, entries.quarantined
            ),
        ),
        (
            "arena",
            format!(
                "{} used, {} lingering, {} free, {} committed",
                b(arena.used_bytes),
                b(arena.lingering_bytes),
                b(arena.free_bytes),
                b(arena.committed_bytes)
            ),
        ),
        ("", format!("{} reserved, {} spans", b(arena.reserved_bytes), arena.spans)),
    ];
    let others = [
        ("strategy", strategy(&arena)),
        ("executors", executors_run(&executors)),
        ("", executors_changed(&executors)),
        ("workers", workers(status)),
        ("system calls", system_calls(status)),
        ("lookups", format!("{} hits, {} misses{}", counters.lookup_hits, counters.lookup_misses, hit_ratio(status))),
        ("installs", counters.installs.to_string()),
        (
            "evictions",
            format!(
                "{} for room, {} asked for, {} replaced",
                counters.capacity_evictions, counters.requested_evictions, counters.replaced_evictions
            ),
        ),
        ("calls", format!("{}, {} trapped", counters.calls, counters.traps)),
    ];
    table::pairs(pairs.into_iter().chain(low).chain(others))
}

fn executors_run(it: &ExecutorStatus) -> String {
    format!(
        "{} of {} run ({} spare), {} of {} wait ({} namespaces, {} of each at most)",
        it.running, it.threads, it.spare, it.queued, it.queue_max, it.namespaces_queued, it.queue_namespace_max
    )
}

fn executors_changed(it: &ExecutorStatus) -> String {
    let ExecutorStatus { stuck, missing, replaced, inline_calls, inline_moved, .. } = it;
    format!("{stuck} stuck, {missing} missing, {replaced} replaced; {inline_calls} calls inline, {inline_moved} moved")
}

fn workers(status: &GetStatusResponse) -> String {
    let Some(it) = status.workers else { return "none: calls run in threads".to_owned() };
    format!(
        "{} alive ({} ready), {} forked, {} failed; {} exited, {} killed, {} stopped, {} replaced",
        it.alive, it.ready, it.spawned, it.failed_spawns, it.exited, it.killed, it.stopped, it.replaced
    )
}

fn low_arena(low: &LowArenaStatus) -> String {
    if !low.refused.is_empty() {
        return format!("none: {}", low.refused);
    }
    let b = units::bytes;
    format!(
        "{} used, {} lingering, {} free, {} committed of {}, {} at once",
        b(low.used_bytes),
        b(low.lingering_bytes),
        b(low.free_bytes),
        b(low.committed_bytes),
        b(low.reserved_bytes),
        b(low.largest_free_bytes)
    )
}

/// Whether those of code are contained, and whether executors are kept from any that they need.
fn system_calls(status: &GetStatusResponse) -> String {
    let calls = status.system_calls.clone().unwrap_or_default();
    let contained = match calls.containment() {
        SystemCallContainment::InForce => "of code are contained".to_owned(),
        SystemCallContainment::Unavailable => format!("of code are NOT contained: {}", calls.reason),
        SystemCallContainment::Off => "of code are NOT contained: exec.system_call_filter is off".to_owned(),
        SystemCallContainment::Unspecified => "the daemon does not say".to_owned(),
    };
    match calls.refused {
        0 => contained,
        refused => format!("{contained}; executors themselves were refused {refused}"),
    }
}

/// How and why, and what was tried before.
fn strategy(arena: &ArenaStatus) -> String {
    let before = match arena.strategy_attempts.len() {
        0 => String::new(),
        _ => format!("; before: {}", arena.strategy_attempts.join("; ")),
    };
    format!("{}: {}{before}", arena.strategy, arena.strategy_reason)
}

fn bar(charged_bytes: u64, limit_bytes: u64) -> String {
    let part = if limit_bytes == 0 { 0.0 } else { (charged_bytes as f64 / limit_bytes as f64).min(1.0) };
    let full = (part * BAR_COLUMNS as f64).round() as usize;
    let rest = BAR_COLUMNS as usize - full;
    let (charged, limit) = (units::bytes(charged_bytes), units::bytes(limit_bytes));
    format!("[{}{}] {:.1} %, {charged} of {limit}", "#".repeat(full), ".".repeat(rest), part * 100.0)
}

fn hit_ratio(status: &GetStatusResponse) -> String {
    let counters = status.counters.unwrap_or_default();
    match counters.lookup_hits + counters.lookup_misses {
        0 => String::new(),
        lookups => format!(" ({:.1} % hits)", counters.lookup_hits as f64 * 100.0 / lookups as f64),
    }
}

fn stats_json(status: &GetStatusResponse) -> Value {
    let budget = status.budget.unwrap_or_default();
    let entries = status.entries.unwrap_or_default();
    let arena = status.arena.clone().unwrap_or_default();
    let executors = status.executors.unwrap_or_default();
    let system_calls = status.system_calls.clone().unwrap_or_default();
    let counters = status.counters.unwrap_or_default();
    json!({
        "version": status.version,
        "uptime_seconds": status.uptime_seconds,
        "pid": status.pid,
        "ready": status.ready,
        "draining": status.draining,
        "budget": {
            "limit_bytes": budget.limit_bytes,
            "charged_bytes": budget.charged_bytes,
            "spans_bytes": budget.spans_bytes,
            "lingering_bytes": budget.lingering_bytes,
            "metadata_bytes": budget.metadata_bytes,
            "uploads_bytes": budget.uploads_bytes,
        },
        "entries": { "resident": entries.resident, "lingering": entries.lingering, "quarantined": entries.quarantined },
        "arena": {
            "strategy": arena.strategy,
            "strategy_reason": arena.strategy_reason,
            "strategy_attempts": arena.strategy_attempts,
            "reserved_bytes": arena.reserved_bytes,
            "committed_bytes": arena.committed_bytes,
            "used_bytes": arena.used_bytes,
            "lingering_bytes": arena.lingering_bytes,
            "free_bytes": arena.free_bytes,
            "spans": arena.spans,
            "metadata_bytes": arena.metadata_bytes,
            "low": arena.low.as_ref().map(low_json),
        },
        "executors": executors_json(&executors),
        "workers": status.workers.as_ref().map(workers_json),
        "system_calls": {
            "containment": match system_calls.containment() {
                SystemCallContainment::Unspecified => "unknown",
                SystemCallContainment::InForce => "in-force",
                SystemCallContainment::Unavailable => "unavailable",
                SystemCallContainment::Off => "off",
            },
            "reason": system_calls.reason,
            "refused": system_calls.refused,
        },
        "counters": {
            "lookup_hits": counters.lookup_hits,
            "lookup_misses": counters.lookup_misses,
            "installs": counters.installs,
            "capacity_evictions": counters.capacity_evictions,
            "requested_evictions": counters.requested_evictions,
            "replaced_evictions": counters.replaced_evictions,
            "calls": counters.calls,
            "traps": counters.traps,
        },
    })
}

fn executors_json(it: &ExecutorStatus) -> Value {
    json!({
        "threads": it.threads,
        "running": it.running,
        "queued": it.queued,
        "queue_max": it.queue_max,
        "spare": it.spare,
        "queue_namespace_max": it.queue_namespace_max,
        "namespaces_queued": it.namespaces_queued,
        "stuck": it.stuck,
        "missing": it.missing,
        "replaced": it.replaced,
        "inline_calls": it.inline_calls,
        "inline_moved": it.inline_moved,
    })
}

fn workers_json(it: &WorkerStatus) -> Value {
    json!({
        "alive": it.alive,
        "ready": it.ready,
        "spawned": it.spawned,
        "failed_spawns": it.failed_spawns,
        "exited": it.exited,
        "killed": it.killed,
        "stopped": it.stopped,
        "replaced": it.replaced,
    })
}

fn low_json(low: &LowArenaStatus) -> Value {
    json!({
        "reserved_bytes": low.reserved_bytes,
        "committed_bytes": low.committed_bytes,
        "used_bytes": low.used_bytes,
        "lingering_bytes": low.lingering_bytes,
        "free_bytes": low.free_bytes,
        "spans": low.spans,
        "largest_free_bytes": low.largest_free_bytes,
        "refused": low.refused,
    })
}

fn capabilities_human(answer: &GetCapabilitiesResponse) -> String {
    let limits = answer.limits.unwrap_or_default();
    let b = units::bytes;
    table::pairs([
        ("daemon", format!("codecached {}", answer.version)),
        ("architecture", answer.architecture.clone()),
        ("cpu features", answer.cpu_features.join(" ")),
        ("cpu levels", answer.cpu_levels.join(" ")),
        ("isolation", answer.isolation.clone()),
        ("formats", formats(answer).join(" ")),
        ("relocations", answer.relocations.join(" ")),
        ("imports", format!("version {}: {}", answer.imports_version, answer.imports.join(" "))),
        ("budget", b(limits.budget_bytes)),
        (
            "blob",
            format!(
                "up to {}, or {} in chunks of up to {}",
                b(limits.unary_max_bytes),
                b(limits.stream_max_bytes),
                b(limits.stream_chunk_max_bytes)
            ),
        ),
        ("key", format!("up to {}", b(limits.key_max_bytes.into()))),
        (
            "object",
            format!(
                "up to {} sections, {} symbols, {} relocations",
                limits.sections_max, limits.symbols_max, limits.relocations_max
            ),
        ),
        (
            "below 2 GiB",
            match limits.low_bytes {
                0 => "nothing: objects with absolute addresses in 32 bits are refused".to_owned(),
                bytes => format!("up to {} of each part of objects with absolute addresses in 32 bits", b(bytes)),
            },
        ),
        ("call", format!("up to {} arguments, {} of memory", limits.arguments_max, b(limits.call_memory_max_bytes))),
        (
            "cpu limit",
            format!("{} ms, or up to {} ms if asked for", limits.cpu_limit_default_ms, limits.cpu_limit_max_ms),
        ),
        ("page of list", format!("up to {} entries", limits.page_max)),
    ])
}

fn capabilities_json(answer: &GetCapabilitiesResponse) -> Value {
    let limits = answer.limits.unwrap_or_default();
    json!({
        "version": answer.version,
        "architecture": answer.architecture,
        "cpu_features": answer.cpu_features,
        "cpu_levels": answer.cpu_levels,
        "isolation": answer.isolation,
        "formats": formats(answer),
        "relocations": answer.relocations,
        "imports": answer.imports,
        "imports_version": answer.imports_version,
        "limits": {
            "unary_max_bytes": limits.unary_max_bytes,
            "key_max_bytes": limits.key_max_bytes,
            "budget_bytes": limits.budget_bytes,
            "sections_max": limits.sections_max,
            "symbols_max": limits.symbols_max,
            "relocations_max": limits.relocations_max,
            "arguments_max": limits.arguments_max,
            "call_memory_max_bytes": limits.call_memory_max_bytes,
            "cpu_limit_default_ms": limits.cpu_limit_default_ms,
            "cpu_limit_max_ms": limits.cpu_limit_max_ms,
            "page_max": limits.page_max,
            "stream_max_bytes": limits.stream_max_bytes,
            "stream_chunk_max_bytes": limits.stream_chunk_max_bytes,
            "low_bytes": limits.low_bytes,
        },
    })
}

fn formats(answer: &GetCapabilitiesResponse) -> Vec<&'static str> {
    let name = |format| match format {
        BlobFormat::Unspecified => "unknown",
        BlobFormat::ElfObject => "elf-object",
        BlobFormat::Flat => "flat",
        BlobFormat::Archive => "archive",
    };
    answer.formats().map(name).collect()
}

#[cfg(test)]
mod tests {
    use codecached::proto::{BudgetStatus, CounterStatus, SystemCallStatus};

    use super::*;

    #[test]
    fn the_bar_is_as_full_as_the_budget() {
        assert_eq!(bar(0, 0), format!("[{}] 0.0 %, 0 B of 0 B", ".".repeat(30)));
        assert_eq!(bar(512, 1024), format!("[{}{}] 50.0 %, 512 B of 1 KiB", "#".repeat(15), ".".repeat(15)));
        assert!(bar(9, 8).starts_with(&format!("[{}] 100.0 %", "#".repeat(30))));
    }

    #[test]
    fn the_status_is_told_in_both_forms() {
        let status = GetStatusResponse {
            ready: true,
            draining: true,
            budget: Some(BudgetStatus { limit_bytes: 2048, charged_bytes: 1024, ..BudgetStatus::default() }),
            counters: Some(CounterStatus { lookup_hits: 3, lookup_misses: 1, ..CounterStatus::default() }),
            ..GetStatusResponse::default()
        };
        let text = stats_human(&status);
        assert!(text.contains("draining") && text.contains("1 KiB of 2 KiB") && text.contains("75.0 % hits"), "{text}");
        assert_eq!(stats_json(&status)["budget"]["charged_bytes"], 1024);
    }

    #[test]
    fn system_calls_that_are_not_contained_are_told_with_the_reason() {
        let told = |containment: SystemCallContainment, reason: &str, refused| {
            let reason = reason.to_owned();
            let calls = SystemCallStatus { containment: containment.into(), reason, refused };
            system_calls(&GetStatusResponse { system_calls: Some(calls), ..GetStatusResponse::default() })
        };
        assert_eq!(told(SystemCallContainment::InForce, "", 0), "of code are contained");
        let unavailable = told(SystemCallContainment::Unavailable, "EPERM", 0);
        assert_eq!(unavailable, "of code are NOT contained: EPERM");
        assert!(told(SystemCallContainment::InForce, "", 3).ends_with("were refused 3"));
        assert!(told(SystemCallContainment::Off, "", 0).contains("off"));
    }
}
