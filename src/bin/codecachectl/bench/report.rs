//! What was measured, in three forms.

use std::fmt::Write;

use serde_json::{Value, json};

use super::load::Tally;
use crate::{
    args::{Bench, By, Workload},
    table, units,
};

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// A table for people.
pub(super) fn human(asked: &Bench, transport: &str, tally: &Tally) -> String {
    let load = format!(
        "{} over {transport}, in flight {}, connections {}, threads {}, {:.1} s",
        name(asked),
        asked.in_flight,
        asked.connections,
        asked.threads,
        tally.elapsed.as_secs_f64()
    );
    let latency = QUANTILES.map(|(name, quantile)| {
        let nanoseconds = tally.latency.value_at_quantile(quantile);
        format!("{name} {}", units::nanoseconds(nanoseconds))
    });
    let errors: Vec<_> = tally.errors.iter().map(|(reason, times)| format!("{times} {reason}")).collect();
    let many = unit(asked).map(|unit| {
        let per_second = throughput(tally) * f64::from(asked.together);
        (unit, format!("{per_second:.0} {unit}/s, {} together", asked.together))
    });
    let first = [("load", load), ("throughput", format!("{:.0} calls/s ({} calls)", throughput(tally), tally.calls()))];
    let last = [
        ("latency", latency.join(", ")),
        ("errors", if errors.is_empty() { "none".into() } else { errors.join(", ") }),
    ];
    table::pairs(first.into_iter().chain(many).chain(last))
}

/// A line for each number.
pub(super) fn plain(asked: &Bench, transport: &str, tally: &Tally) -> String {
    let (connections, in_flight) = (asked.connections, asked.in_flight);
    let prefix = format!("codecached.{transport}.{}_{in_flight}inflight_{connections}conn", name(asked));
    let mut text = format!("{prefix}.throughput {:.0} ops/s\n", throughput(tally));
    if let Some(unit) = unit(asked) {
        let _ = writeln!(text, "{prefix}.{unit} {:.0} {unit}/s", throughput(tally) * f64::from(asked.together));
    }
    for (quantile, at) in QUANTILES {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{prefix}.{quantile} {:.1} us", microseconds(tally, at));
    }
    let _ = writeln!(text, "{prefix}.errors {} count", tally.errors.values().sum::<u64>());
    for (reason, times) in &tally.errors {
        let reason = reason.split(':').next().unwrap_or_default();
        let _ = writeln!(text, "{prefix}.errors.{reason} {times} count");
    }
    text
}

/// For programs.
pub(super) fn to_json(asked: &Bench, transport: &str, tally: &Tally) -> Value {
    let latency: serde_json::Map<_, _> = QUANTILES
        .iter()
        .map(|(name, quantile)| (name.replace('.', "_"), json!(microseconds(tally, *quantile))))
        .collect();
    json!({
        "workload": name(asked),
        "transport": transport,
        "connections": asked.connections,
        "in_flight": asked.in_flight,
        "threads": asked.threads,
        "keys": asked.keys,
        "blob_bytes": asked.blob_bytes,
        "seconds": tally.elapsed.as_secs_f64(),
        "calls": tally.calls(),
        "calls_per_second": throughput(tally),
        "together": unit(asked).map(|_| asked.together),
        "latency_us": latency,
        "errors": tally.errors,
    })
}

/// What a call of the workload has many of.
fn unit(asked: &Bench) -> Option<&'static str> {
    match asked.workload {
        Workload::ExecuteBatch => Some("rows"),
        Workload::ExecuteStream => Some("stream_calls"),
        Workload::Lookup | Workload::Execute | Workload::Install | Workload::Mixed => None,
    }
}

fn throughput(tally: &Tally) -> f64 {
    let seconds = tally.elapsed.as_secs_f64();
    if seconds > 0.0 { tally.calls() as f64 / seconds } else { 0.0 }
}

fn microseconds(tally: &Tally, quantile: f64) -> f64 {
    tally.latency.value_at_quantile(quantile) as f64 / 1e3
}

fn name(asked: &Bench) -> &'static str {
    match (asked.workload, asked.by) {
        (Workload::Lookup, By::Key) => "lookup",
        (Workload::Lookup, By::Handle) => "lookup_by_handle",
        (Workload::Execute, _) => "execute",
        (Workload::ExecuteBatch, _) => "execute_batch",
        (Workload::ExecuteStream, _) => "execute_stream",
        (Workload::Install, _) => "install",
        (Workload::Mixed, _) => "mixed",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    fn measured() -> (Bench, Tally) {
        let Command::Bench(asked) = Arguments::parse_from(["codecachectl", "bench", "execute"]).command else {
            panic!("another command")
        };
        let mut tally = Tally::new();
        tally.elapsed = Duration::from_secs(2);
        (1..=1000).for_each(|count| tally.record(Duration::from_micros(count)));
        tally.errors.insert("STALE_HANDLE".into(), 3);
        (asked, tally)
    }

    #[test]
    fn plain_lines_are_name_value_unit() {
        let (asked, tally) = measured();
        let text = plain(&asked, "uds", &tally);
        assert!(text.starts_with("codecached.uds.execute_64inflight_1conn.throughput 500 ops/s\n"), "{text}");
        assert!(text.contains("\ncodecached.uds.execute_64inflight_1conn.p50 500.2 us\n"), "{text}");
        assert!(
            text.ends_with(".errors 3 count\ncodecached.uds.execute_64inflight_1conn.errors.STALE_HANDLE 3 count\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.split(' ').count() == 3), "{text}");
    }

    #[test]
    fn the_other_forms_have_the_same_numbers() {
        let (asked, tally) = measured();
        let text = human(&asked, "tcp", &tally);
        assert!(text.contains("500 calls/s (1000 calls)") && text.contains("3 STALE_HANDLE"), "{text}");
        let json = to_json(&asked, "tcp", &tally);
        assert_eq!((&json["calls"], &json["errors"]["STALE_HANDLE"]), (&json!(1000), &json!(3)));
        assert!(json["latency_us"]["p99_9"].as_f64().unwrap() > 990.0, "{json}");
    }
}
