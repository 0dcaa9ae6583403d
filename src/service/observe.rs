//! Counts of all parts, for GetStatus and for a scrape.

use std::sync::atomic::Ordering::Relaxed;

use super::{Service, convert};
use crate::{
    arena::{ArenaStats, KindStats, PartKind},
    cache::EvictionCount,
    exec::{FilterState, WorkerStats},
    metrics::{ArenaBytes, Evicted, Snapshot, Workers},
    proto::{ArenaStatus, BudgetStatus, CounterStatus, EntryStatus, ExecutorStatus, GetStatusResponse, LowArenaStatus},
};

impl Service {
    /// Executable memory at one moment.
    pub fn arena_stats(&self) -> ArenaStats {
        self.arenas.stats()
    }

    /// Takes each lock of the cache, the arenas and the executors once. Blocks for as long as one of them is held.
    pub fn touch_locks(&self) {
        let _counts = self.counts();
    }

    /// Whether system calls of code are contained.
    pub fn filter_state(&self) -> FilterState {
        self.pool.stats().filter
    }

    /// The counts in a status; who and how it is stays for the caller to fill in.
    pub(super) fn counts(&self) -> GetStatusResponse {
        let (cache, arena, pool) = (self.cache.stats(), self.arenas.stats(), self.pool.stats());
        let (charged, memory) = (cache.charged, arena.total());
        GetStatusResponse {
            budget: Some(BudgetStatus {
                limit_bytes: cache.budget_bytes,
                charged_bytes: charged.total_bytes(),
                spans_bytes: charged.live.spans_bytes,
                lingering_bytes: charged.lingering.total_bytes(),
                metadata_bytes: charged.live.metadata_bytes,
                uploads_bytes: charged.live.uploads_bytes,
            }),
            entries: Some(EntryStatus {
                resident: cache.resident_entries,
                lingering: charged.lingering_entries,
                quarantined: cache.quarantines.entries,
            }),
            arena: Some(ArenaStatus {
                low: low_arena(&arena),
                strategy: arena.strategy.to_owned(),
                strategy_reason: arena.reason,
                reserved_bytes: memory.reserved_bytes,
                committed_bytes: memory.committed_bytes,
                used_bytes: memory.used_bytes,
                free_bytes: memory.free_bytes,
                spans: memory.spans,
                strategy_attempts: arena.attempts,
                lingering_bytes: memory.lingering_bytes,
                metadata_bytes: arena.metadata_bytes,
            }),
            executors: Some(ExecutorStatus {
                threads: pool.executors as u32,
                running: pool.running as u32,
                queued: pool.queued as u32,
                queue_max: pool.queue_max as u32,
                spare: pool.spare_executors as u32,
                queue_namespace_max: pool.queue_tenant_max as u32,
                namespaces_queued: pool.tenants_queued as u32,
                stuck: pool.stuck as u32,
                missing: pool.missing as u32,
                replaced: pool.replaced,
                inline_calls: pool.inline,
                inline_moved: pool.inline_moved,
            }),
            system_calls: Some(convert::system_calls(&pool)),
            workers: self.pool.workers().map(convert::workers),
            counters: Some(CounterStatus {
                lookup_hits: cache.lookups.hits,
                lookup_misses: cache.lookups.misses,
                installs: cache.installs,
                capacity_evictions: cache.evictions.capacity.entries,
                requested_evictions: cache.evictions.requested.entries,
                replaced_evictions: cache.evictions.replaced.entries,
                calls: pool.calls,
                traps: pool.traps.iter().sum(),
            }),
            ..GetStatusResponse::default()
        }
    }

    /// One scrape of the metrics.
    pub fn render_metrics(&self) -> String {
        for delay in self.cache.take_reclaim_delays() {
            self.metrics.reclaim_delay(delay);
        }
        self.metrics.render(&self.snapshot())
    }

    fn snapshot(&self) -> Snapshot {
        let (cache, arena, pool) = (self.cache.stats(), self.arenas.stats(), self.pool.stats());
        let memory = arena.total();
        let draining = self.draining.load(Relaxed);
        let [code, rodata, data] = [PartKind::Code, PartKind::Rodata, PartKind::Data].map(|kind| arena.all(kind));
        let largest = [code, rodata, data].map(|kind| kind.largest_free_bytes);
        Snapshot {
            ready: self.ready().is_ok(),
            draining,
            entries_resident: cache.resident_entries,
            entries_lingering: cache.charged.lingering_entries,
            arena_code: arena_bytes(&code),
            arena_rodata: arena_bytes(&rodata),
            arena_data: arena_bytes(&data),
            arena_low: arena_bytes(&arena.low_total()),
            arena_low_largest_free_bytes: arena.low_largest_free_bytes(),
            arena_resident_bytes: memory.committed_bytes,
            arena_huge_page_bytes: self.arenas.huge_bytes(),
            arena_largest_free_bytes: largest.into_iter().min().unwrap_or_default(),
            arena_fragmentation_ratio: memory.fragmentation_ratio(),
            budget_spans_bytes: cache.charged.live.spans_bytes,
            budget_lingering_bytes: cache.charged.lingering.total_bytes(),
            budget_metadata_bytes: cache.charged.live.metadata_bytes,
            budget_uploads_bytes: cache.charged.live.uploads_bytes,
            budget_limit_bytes: cache.budget_bytes,
            lru_oldest_idle: cache.oldest_idle.unwrap_or_default(),
            executors_idle: (pool.executors - pool.missing).saturating_sub(pool.running) as u64,
            executors_stuck: pool.stuck as u64,
            inline_executions: pool.inline,
            inline_moved: pool.inline_moved,
            quarantined_entries: cache.quarantines.entries,
            quarantines: cache.quarantines.begun,
            executors_running: pool.running as u64,
            queue_refusals: pool.refused,
            queue_namespace_refusals: pool.refused_tenant,
            executors_filtered: if pool.filter == FilterState::InForce { pool.executors as u64 } else { 0 },
            executor_system_calls_refused: pool.refused_system_calls,
            executions_in_flight: (pool.running + pool.inline_running + pool.queued) as u64,
            evicted_capacity: evicted(cache.evictions.capacity),
            evicted_requested: evicted(cache.evictions.requested),
            evicted_replaced: evicted(cache.evictions.replaced),
            evicted_never_used: cache.evictions.never_used,
            workers: self.pool.workers().map(workers).unwrap_or_default(),
            evicted_recently_used: cache.evictions.recently_used,
        }
    }
}

/// Below 2 GiB, if the configuration asks for that.
fn low_arena(arena: &ArenaStats) -> Option<LowArenaStatus> {
    let memory = arena.low_total();
    let status = LowArenaStatus {
        reserved_bytes: memory.reserved_bytes,
        committed_bytes: memory.committed_bytes,
        used_bytes: memory.used_bytes,
        lingering_bytes: memory.lingering_bytes,
        free_bytes: memory.free_bytes,
        spans: memory.spans,
        largest_free_bytes: arena.low_largest_free_bytes(),
        refused: arena.low_refused.map(|refused| refused.to_string()).unwrap_or_default(),
    };
    (memory.reserved_bytes > 0 || arena.low_refused.is_some()).then_some(status)
}

fn arena_bytes(kind: &KindStats) -> ArenaBytes {
    ArenaBytes {
        used_bytes: kind.used_bytes,
        lingering_bytes: kind.lingering_bytes,
        free_bytes: kind.free_bytes,
        reserved_bytes: kind.reserved_bytes,
    }
}

fn workers(stats: WorkerStats) -> Workers {
    let WorkerStats { alive, ready: _, spawned, failed_spawns, exited, killed, stopped, replaced } = stats;
    Workers { alive: alive as u64, spawned, failed_spawns, exited, killed, stopped, replaced }
}

fn evicted(count: EvictionCount) -> Evicted {
    Evicted { entries: count.entries, bytes: count.bytes }
}
