//! The numbers of the status page: those of now, the last minutes, a map of the memory and the entries that are called
//! most.
//!
//! Whoever reaches the port may see it, so it names no key, digest, symbol, namespace, client or address. A handle is no
//! secret: it opens nothing that its namespace does not, and is in every answer about the entry.

mod history;
pub(super) mod page;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use self::history::{History, Sample};
use super::{
    Service,
    occupancy::{Cell, Map as Occupancy},
};
use crate::{
    arena::{AreaStats, PartKind, RunState},
    cache::{Handle, Rank, View},
    exec,
    metrics::Label as _,
    proto::{CounterStatus, GetStatusResponse},
};

/// How often [`Service::sample_status`] is to be called.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);

/// How long a map stands: making one looks at every span and every entry.
const MAP_STANDS: Duration = Duration::from_millis(1500);
/// Cells of each area's map.
const CELLS_MAX: usize = 2048;
/// Entries whose calls colour the map.
const HOT_MAX: usize = 256;
/// Entries in the table.
const TOP_MAX: usize = 10;
/// What is shown of an area, at least.
const SHOWN_MIN_BYTES: u64 = 64 << 10;

/// What the page needs from one time it is asked to the next.
#[derive(Default)]
pub(super) struct StatusPage {
    history: Mutex<History>,
    /// Held while a map is made: who asks meanwhile waits, and gets the same.
    drawn: Mutex<Option<Drawn>>,
}

/// What takes long to find out.
struct Drawn {
    at: Instant,
    areas: Value,
    top: Value,
    calls: HashMap<Handle, u64>,
}

impl Service {
    /// Adds a point to the history.
    pub fn sample_status(&self) {
        let (cache, pool) = (self.cache.stats(), self.pool.stats());
        let evictions = cache.evictions;
        let sample = Sample {
            charged_bytes: cache.charged.total_bytes(),
            hits: cache.lookups.hits,
            misses: cache.lookups.misses,
            calls: pool.calls,
            installs: cache.installs,
            evictions: [evictions.capacity, evictions.requested, evictions.replaced].iter().map(|it| it.entries).sum(),
            latencies: self.metrics.latencies(),
        };
        locked(&self.status_page.history).add(Instant::now(), sample);
    }

    /// What the page shows, as JSON. Blocks for as long as a look at each span and each entry takes, at most every 1.5
    /// seconds.
    pub fn status_json(&self) -> String {
        let mut status = self.numbers();
        let mut drawn = locked(&self.status_page.drawn);
        if drawn.as_ref().is_none_or(|it| it.at.elapsed() >= MAP_STANDS) {
            *drawn = Some(self.draw(drawn.take()));
        }
        if let Some(drawn) = &*drawn {
            status["areas"] = drawn.areas.clone();
            status["top"] = drawn.top.clone();
        }
        status.to_string()
    }

    fn numbers(&self) -> Value {
        let GetStatusResponse { budget, entries, executors, counters, .. } = self.counts();
        let (budget, entries, executors, counters) = (
            budget.unwrap_or_default(),
            entries.unwrap_or_default(),
            executors.unwrap_or_default(),
            counters.unwrap_or_default(),
        );
        let arenas = self.arenas.stats();
        let memory = arenas.total();
        let ready = self.ready();
        let traps = exec::TrapKind::ALL.iter().zip(self.pool.stats().traps);
        let traps: Map<String, Value> =
            traps.map(|(&kind, count)| (super::convert::trap_label(kind).label().to_owned(), count.into())).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "ready": ready.is_ok(),
            "reason": ready.err(),
            "draining": self.draining.load(Relaxed),
            "budget": {
                "limit_bytes": budget.limit_bytes, "charged_bytes": budget.charged_bytes,
                "spans_bytes": budget.spans_bytes, "lingering_bytes": budget.lingering_bytes,
                "metadata_bytes": budget.metadata_bytes, "uploads_bytes": budget.uploads_bytes,
            },
            "entries": { "resident": entries.resident, "lingering": entries.lingering },
            "arena": {
                "strategy": arenas.strategy, "committed_bytes": memory.committed_bytes,
                "fragmentation_ratio": memory.fragmentation_ratio(),
            },
            "executors": {
                "threads": executors.threads, "running": executors.running,
                "queued": executors.queued, "queue_max": executors.queue_max,
            },
            "counters": counted(&counters),
            "traps": traps,
            "interval_seconds": SAMPLE_INTERVAL.as_secs(),
            "history": self.last_minutes(),
        })
    }

    fn last_minutes(&self) -> Value {
        let history = locked(&self.status_page.history);
        json!({
            "charged_bytes": history.column(|it| it.charged_bytes),
            "hit_ratio": history.column(|it| it.hit_ratio),
            "calls": history.column(|it| it.calls),
            "installs": history.column(|it| it.installs),
            "evictions": history.column(|it| it.evictions),
            "median_seconds": history.column(|it| it.median_seconds),
            "p99_seconds": history.column(|it| it.p99_seconds),
        })
    }

    fn draw(&self, before: Option<Drawn>) -> Drawn {
        let now = Instant::now();
        let entries = self.cache.top_of_all(Rank::Calls, HOT_MAX);
        let seconds = before.as_ref().map_or(f64::INFINITY, |it| now.duration_since(it.at).as_secs_f64());
        let calls_before = |view: &View| before.as_ref().and_then(|it| it.calls.get(&view.handle)).copied();
        // Without an earlier count nothing can be said of how often.
        let per_second = |view: &View| (view.calls - calls_before(view).unwrap_or(view.calls)) as f64 / seconds;
        let rates: Vec<f64> = entries.iter().map(per_second).collect();
        let called = entries.iter().zip(&rates).filter(|(view, _)| view.calls > 0);
        let top: Vec<Value> = called.take(TOP_MAX).map(|(view, &rate)| row(view, rate, now)).collect();
        let hot: Vec<_> = entries.iter().zip(&rates).filter(|&(_, &rate)| rate > 0.0).collect();
        let most = rates.iter().copied().fold(0.0, f64::max);
        let area = |stats: &AreaStats| {
            let runs = self.arenas.occupancy(stats.kind, stats.arena).unwrap_or_default();
            let within = hot.iter().filter_map(|(view, rate)| {
                let offset_bytes = view.code.start.checked_sub(stats.start)?;
                let is_here = offset_bytes < stats.memory.reserved_bytes;
                is_here.then(|| (offset_bytes, view.code.end - view.code.start, rate.ln_1p() / most.ln_1p()))
            });
            area(stats, &Occupancy::bounded(&runs, CELLS_MAX), within.collect())
        };
        Drawn {
            at: now,
            areas: self.arenas.areas().iter().map(area).collect(),
            top: top.into(),
            calls: entries.iter().map(|view| (view.handle, view.calls)).collect(),
        }
    }
}

fn counted(counters: &CounterStatus) -> Value {
    let CounterStatus {
        lookup_hits,
        lookup_misses,
        installs,
        capacity_evictions,
        requested_evictions,
        replaced_evictions,
        calls,
        traps,
    } = counters;
    json!({
        "lookup_hits": lookup_hits, "lookup_misses": lookup_misses, "installs": installs, "calls": calls, "traps": traps,
        "capacity_evictions": capacity_evictions, "requested_evictions": requested_evictions,
        "replaced_evictions": replaced_evictions,
    })
}

fn row(view: &View, calls_per_second: f64, now: Instant) -> Value {
    json!({
        "handle": format!("{:#018x}", view.handle.to_bits()),
        "calls": view.calls,
        "calls_per_second": calls_per_second,
        "charged_bytes": view.charged_bytes,
        "idle_seconds": now.saturating_duration_since(view.last_used).as_secs_f64(),
    })
}

/// Offsets only: where memory lies is for nobody to know.
fn area(stats: &AreaStats, map: &Occupancy, hot: Vec<(u64, u64, f64)>) -> Value {
    let memory = &stats.memory;
    let shown = |cell: &&Cell| cell.bytes_of(RunState::Uncommitted) < cell.bytes();
    let end_bytes = map.cells.iter().rev().find(shown).map_or(0, |cell| cell.offset_bytes + cell.bytes());
    let shown_bytes = if end_bytes == 0 { 0 } else { end_bytes.max(SHOWN_MIN_BYTES).next_power_of_two() };
    let runs = map.cells.iter().filter(shown).map(|cell| {
        let of = |state| cell.bytes_of(state);
        let (used, lingering, free) = (of(RunState::Used), of(RunState::Lingering), of(RunState::Free));
        [cell.offset_bytes, cell.bytes(), used, lingering, free]
    });
    json!({
        "arena": stats.arena,
        "low": stats.low,
        "kind": match stats.kind {
            PartKind::Code => "code",
            PartKind::Rodata => "read-only data",
            PartKind::Data => "data",
        },
        "bytes": memory.reserved_bytes,
        "shown_bytes": shown_bytes.min(memory.reserved_bytes),
        "used_bytes": memory.used_bytes,
        "lingering_bytes": memory.lingering_bytes,
        "free_bytes": memory.free_bytes,
        "runs": runs.collect::<Vec<_>>(),
        "hot": hot,
    })
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is there was put there whole.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
