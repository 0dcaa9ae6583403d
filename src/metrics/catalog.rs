//! Names, helps and buckets: what a scrape looks like, in one list.

/// A histogram.
pub(super) struct Histogram {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// Upper bounds, ascending, in the unit of the name.
    pub(super) buckets: &'static [f64],
}

/// Name and help of a counter or a gauge.
pub(super) type Named = (&'static str, &'static str);

pub(super) const GRPC_REQUESTS: Named = ("codecache_grpc_requests_total", "Requests answered, by rpc and status code.");
pub(super) const LOOKUPS: Named = ("codecache_lookups_total", "Lookups, by result. Peeks are not counted.");
pub(super) const INSTALLS: Named = ("codecache_installs_total", "Installs, by result.");
pub(super) const INSTALL_REJECTIONS: Named =
    ("codecache_install_rejections_total", "Installs that were refused, by the reason in the error.");
pub(super) const EXECUTIONS: Named = ("codecache_executions_total", "Executions, by outcome.");
pub(super) const TRAPS: Named =
    ("codecache_traps_total", "Executions that did not return, by what ended them; timeouts are among them.");
pub(super) const QUEUE_REFUSALS: Named =
    ("codecache_queue_refusals_total", "Executions that were refused because too many waited, by the bound.");
pub(super) const INLINE_EXECUTIONS: Named = (
    "codecache_inline_executions_total",
    "Executions that began on the thread of their request: ended there, or moved to an executor as they took too long.",
);
pub(super) const QUARANTINES: Named = ("codecache_quarantines_total", "Times that an entry was quarantined.");
pub(super) const EVICTIONS: Named = ("codecache_evictions_total", "Entries that went, by reason.");
pub(super) const EVICTED_BYTES: Named =
    ("codecache_evicted_bytes_total", "Charged bytes of entries that went, by reason.");
pub(super) const EVICTED_NEVER_USED: Named =
    ("codecache_evicted_never_used_total", "Entries that went without a lookup or an execution since their install.");
pub(super) const EVICTED_RECENTLY_USED: Named = (
    "codecache_evicted_recently_used_total",
    "Entries that went to make room although they had been used less than a minute before.",
);
pub(super) const EXECUTOR_SYSTEM_CALLS_REFUSED: Named = (
    "codecache_executor_system_calls_refused_total",
    "System calls of executors between calls that the filter refused, of which one is usual; what code is refused are traps.",
);

pub(super) const BUILD_INFO: Named = ("codecache_build_info", "Always 1; the labels say what runs.");
pub(super) const GRPC_IN_FLIGHT: Named =
    ("codecache_grpc_requests_in_flight", "Requests that are not answered yet, by rpc.");
pub(super) const READY: Named = ("codecache_ready", "1 if requests are taken.");
pub(super) const DRAINING: Named = ("codecache_draining", "1 if the daemon finishes what runs and takes nothing new.");
pub(super) const ENTRIES: Named = ("codecache_entries", "Entries, by state.");
pub(super) const ARENA_BYTES: Named = ("codecache_arena_bytes", "Arena memory in bytes, by kind and state.");
pub(super) const ARENA_LOW_BYTES: Named =
    ("codecache_arena_low_bytes", "Of codecache_arena_bytes, what lies below 2 GiB, all kinds together, by state.");
pub(super) const ARENA_LOW_LARGEST_FREE_BYTES: Named = (
    "codecache_arena_low_largest_free_bytes",
    "The longest part that could still be placed in every kind of memory below 2 GiB.",
);
pub(super) const ARENA_RESIDENT_BYTES: Named =
    ("codecache_arena_resident_bytes", "Memory of the kernel behind the arenas in bytes.");
pub(super) const ARENA_HUGE_PAGE_BYTES: Named =
    ("codecache_arena_huge_page_bytes", "Of codecache_arena_resident_bytes, what lies on huge pages.");
pub(super) const ARENA_LARGEST_FREE_BYTES: Named = (
    "codecache_arena_largest_free_bytes",
    "The longest part that could still be placed in every kind of memory, but for that below 2 GiB.",
);
pub(super) const ARENA_FRAGMENTATION_RATIO: Named = (
    "codecache_arena_fragmentation_ratio",
    "Of committed arena memory, the share that has no owner, from 0 to 1: gaps, and what is kept for later.",
);
pub(super) const BUDGET_BYTES: Named = ("codecache_budget_bytes", "Bytes charged against the budget, by component.");
pub(super) const BUDGET_LIMIT_BYTES: Named =
    ("codecache_budget_limit_bytes", "What the sum of codecache_budget_bytes never exceeds.");
pub(super) const LRU_OLDEST_IDLE: Named =
    ("codecache_lru_oldest_idle_seconds", "Time since the last use of the entry that goes next; 0 without entries.");
pub(super) const EXECUTORS: Named = ("codecache_executors", "Threads that run code, by state.");
pub(super) const QUARANTINED_ENTRIES: Named =
    ("codecache_quarantined_entries", "Entries that are not called because their code misbehaved.");
pub(super) const EXECUTORS_FILTERED: Named =
    ("codecache_executors_filtered", "Threads that run code under the filter of system calls: all of them or none.");
pub(super) const EXECUTIONS_IN_FLIGHT: Named = ("codecache_executions_in_flight", "Executions that wait or run.");
pub(super) const WORKERS: Named =
    ("codecache_workers", "Worker processes that are alive; 0 where calls run in threads.");
pub(super) const WORKER_SPAWNS: Named = ("codecache_worker_spawns_total", "Worker processes that were forked.");
pub(super) const WORKER_SPAWN_FAILURES: Named = (
    "codecache_worker_spawn_failures_total",
    "Worker processes that could not be forked, or died before they could run anything.",
);
pub(super) const WORKER_DEATHS: Named = ("codecache_worker_deaths_total", "Worker processes that ended, by cause.");

pub(super) const GRPC_DURATION: Histogram = Histogram {
    name: "codecache_grpc_request_duration_seconds",
    help: "Time from a request's headers to its answer, by rpc.",
    buckets: &[
        25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
        10.0, 60.0,
    ],
};
pub(super) const INSTALL_DURATION: Histogram = Histogram {
    name: "codecache_install_duration_seconds",
    help: "Time of each stage of an install that made an entry.",
    buckets: &[1e-6, 2.5e-6, 5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 0.1, 1.0],
};
pub(super) const INSTALLED_BLOB_BYTES: Histogram = Histogram {
    name: "codecache_installed_blob_bytes",
    help: "Size of blobs that made an entry, by format.",
    buckets: &[64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0, 67108864.0],
};
pub(super) const EXECUTION_DURATION: Histogram = Histogram {
    name: "codecache_execution_duration_seconds",
    help: "Wall time of executions that began.",
    buckets: EXECUTION_SECONDS,
};
pub(super) const EXECUTION_QUEUE: Histogram = Histogram {
    name: "codecache_execution_queue_seconds",
    help: "Time that executions waited before they began.",
    buckets: EXECUTION_SECONDS,
};
pub(super) const ENTRY_LIFETIME: Histogram = Histogram {
    name: "codecache_entry_lifetime_seconds",
    help: "Time from install to eviction.",
    buckets: &[0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0],
};
pub(super) const RECLAIM_DELAY: Histogram = Histogram {
    name: "codecache_reclaim_delay_seconds",
    help: "Time from eviction to the return of the memory.",
    buckets: &[1e-6, 10e-6, 100e-6, 1e-3, 10e-3, 0.1, 1.0, 10.0, 60.0],
};

/// 100 ns to 10 s: a call costs some nanoseconds, and the default CPU limit is a second.
const EXECUTION_SECONDS: &[f64] = &[
    100e-9, 250e-9, 500e-9, 1e-6, 2.5e-6, 5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3,
    25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

pub(super) const COUNTERS: &[Named] = &[
    GRPC_REQUESTS,
    LOOKUPS,
    INSTALLS,
    INSTALL_REJECTIONS,
    EXECUTIONS,
    TRAPS,
    QUEUE_REFUSALS,
    INLINE_EXECUTIONS,
    QUARANTINES,
    EVICTIONS,
    EVICTED_BYTES,
    EVICTED_NEVER_USED,
    EVICTED_RECENTLY_USED,
    EXECUTOR_SYSTEM_CALLS_REFUSED,
    WORKER_SPAWNS,
    WORKER_SPAWN_FAILURES,
    WORKER_DEATHS,
];

pub(super) const GAUGES: &[Named] = &[
    BUILD_INFO,
    GRPC_IN_FLIGHT,
    READY,
    DRAINING,
    ENTRIES,
    ARENA_BYTES,
    ARENA_LOW_BYTES,
    ARENA_LOW_LARGEST_FREE_BYTES,
    ARENA_RESIDENT_BYTES,
    ARENA_HUGE_PAGE_BYTES,
    ARENA_LARGEST_FREE_BYTES,
    ARENA_FRAGMENTATION_RATIO,
    BUDGET_BYTES,
    BUDGET_LIMIT_BYTES,
    LRU_OLDEST_IDLE,
    EXECUTORS,
    QUARANTINED_ENTRIES,
    EXECUTORS_FILTERED,
    EXECUTIONS_IN_FLIGHT,
    WORKERS,
];

pub(super) const HISTOGRAMS: &[Histogram] = &[
    GRPC_DURATION,
    INSTALL_DURATION,
    INSTALLED_BLOB_BYTES,
    EXECUTION_DURATION,
    EXECUTION_QUEUE,
    ENTRY_LIFETIME,
    RECLAIM_DELAY,
];
