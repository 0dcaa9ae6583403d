//! Numbers that the layers count themselves, taken over when somebody asks.

use std::time::Duration;

use metrics::{Counter, Gauge};

use super::{
    catalog,
    labels::{
        BudgetComponent, EntryState, EvictionReason, ExecutorState, InlineResult, MemoryKind, MemoryState, QueueBound,
        WorkerDeath,
    },
    registry::{By, Registry},
};

/// What the daemon holds at one moment, and what it has counted since its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Takes requests.
    pub ready: bool,
    /// Finishes what runs and takes nothing new.
    pub draining: bool,
    /// Entries that lookups find.
    pub entries_resident: u64,
    /// Entries that are evicted and still run.
    pub entries_lingering: u64,
    /// Memory for machine code.
    pub arena_code: ArenaBytes,
    /// Memory for read-only data.
    pub arena_rodata: ArenaBytes,
    /// Memory for writable data.
    pub arena_data: ArenaBytes,
    /// Of all of these, what lies below 2 GiB.
    pub arena_low: ArenaBytes,
    /// The longest part that could still be placed in every kind of memory there, in bytes.
    pub arena_low_largest_free_bytes: u64,
    /// Memory of the kernel behind the arenas, in bytes.
    pub arena_resident_bytes: u64,
    /// Of that, what lies on huge pages, in bytes.
    pub arena_huge_page_bytes: u64,
    /// The longest part that could still be placed, the least over the kinds of memory, in bytes.
    pub arena_largest_free_bytes: u64,
    /// Of committed memory, the share that has no owner, from 0 to 1.
    pub arena_fragmentation_ratio: f64,
    /// Charged for rounded spans, in bytes.
    pub budget_spans_bytes: u64,
    /// Charged for entries that are evicted and still run, in bytes.
    pub budget_lingering_bytes: u64,
    /// Charged for metadata and link state, in bytes.
    pub budget_metadata_bytes: u64,
    /// Charged for uploads under way, in bytes.
    pub budget_uploads_bytes: u64,
    /// What the four together never exceed, in bytes.
    pub budget_limit_bytes: u64,
    /// Since the last use of the entry that goes next; zero without entries.
    pub lru_oldest_idle: Duration,
    /// Executors that wait.
    pub executors_idle: u64,
    /// Executors that run a call.
    pub executors_running: u64,
    /// Threads with a call that cannot be stopped.
    pub executors_stuck: u64,
    /// Executions that ended on the thread of their request, since the start.
    pub inline_executions: u64,
    /// Executions that began so and were moved to an executor, since the start.
    pub inline_moved: u64,
    /// Entries in quarantine.
    pub quarantined_entries: u64,
    /// Times that an entry was quarantined, since the start.
    pub quarantines: u64,
    /// Executors under the filter of system calls.
    pub executors_filtered: u64,
    /// System calls that executors themselves were refused, since the start.
    pub executor_system_calls_refused: u64,
    /// Executions that wait or run.
    pub executions_in_flight: u64,
    /// Executions that were refused because as many waited as may, since the start.
    pub queue_refusals: u64,
    /// Executions that were refused because as many of their namespace waited as may, since the start.
    pub queue_namespace_refusals: u64,
    /// Entries that went to make room, since the start.
    pub evicted_capacity: Evicted,
    /// Entries that went because a client asked, since the start.
    pub evicted_requested: Evicted,
    /// Entries that went because other bytes came under their key, since the start.
    pub evicted_replaced: Evicted,
    /// Entries that went without a use, since the start.
    pub evicted_never_used: u64,
    /// Entries that went to make room though their last use was less than a minute ago.
    pub evicted_recently_used: u64,
    /// Worker processes.
    pub workers: Workers,
}

/// Worker processes: of this moment, and since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workers {
    /// That are alive now.
    pub alive: u64,
    /// Forked.
    pub spawned: u64,
    /// That could not be forked.
    pub failed_spawns: u64,
    /// Ended by themselves.
    pub exited: u64,
    /// Ended by a signal that was not the daemon's.
    pub killed: u64,
    /// Ended by the daemon, as their code could not be stopped otherwise, or took memory that nobody gave it.
    pub stopped: u64,
    /// Ended by the daemon, as a call of another namespace came.
    pub replaced: u64,
}

/// Memory of one kind, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaBytes {
    /// Owned by resident entries and by installs under way.
    pub used_bytes: u64,
    /// Owned by evicted entries that still run.
    pub lingering_bytes: u64,
    /// Committed, without owner.
    pub free_bytes: u64,
    /// Address space.
    pub reserved_bytes: u64,
}

/// What went, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Entries.
    pub entries: u64,
    /// Their charged bytes.
    pub bytes: u64,
}

/// Handles that a [`Snapshot`] is written to.
pub(super) struct SnapshotHandles {
    ready: Gauge,
    draining: Gauge,
    entries: By<EntryState, Gauge>,
    arena_bytes: By<MemoryKind, By<MemoryState, Gauge>>,
    arena_low_bytes: By<MemoryState, Gauge>,
    arena_low_largest_free_bytes: Gauge,
    arena_resident_bytes: Gauge,
    arena_huge_page_bytes: Gauge,
    arena_largest_free_bytes: Gauge,
    arena_fragmentation_ratio: Gauge,
    budget_bytes: By<BudgetComponent, Gauge>,
    budget_limit_bytes: Gauge,
    lru_oldest_idle: Gauge,
    executors: By<ExecutorState, Gauge>,
    executors_filtered: Gauge,
    executor_system_calls_refused: Counter,
    executions_in_flight: Gauge,
    queue_refusals: By<QueueBound, Counter>,
    inline_executions: By<InlineResult, Counter>,
    quarantined_entries: Gauge,
    quarantines: Counter,
    evictions: By<EvictionReason, Counter>,
    evicted_bytes: By<EvictionReason, Counter>,
    evicted_never_used: Counter,
    workers: Gauge,
    worker_spawns: Counter,
    worker_spawn_failures: Counter,
    worker_deaths: By<WorkerDeath, Counter>,
    evicted_recently_used: Counter,
}

impl SnapshotHandles {
    pub(super) fn new(registry: &Registry) -> Self {
        use super::labels::Label;
        Self {
            ready: registry.gauge(catalog::READY, &[]),
            draining: registry.gauge(catalog::DRAINING, &[]),
            entries: registry.gauges(catalog::ENTRIES, "state"),
            arena_bytes: By::new(|kind: MemoryKind| {
                By::new(|state: MemoryState| {
                    registry.gauge(catalog::ARENA_BYTES, &[("kind", kind.label()), ("state", state.label())])
                })
            }),
            arena_low_bytes: registry.gauges(catalog::ARENA_LOW_BYTES, "state"),
            arena_low_largest_free_bytes: registry.gauge(catalog::ARENA_LOW_LARGEST_FREE_BYTES, &[]),
            arena_resident_bytes: registry.gauge(catalog::ARENA_RESIDENT_BYTES, &[]),
            arena_huge_page_bytes: registry.gauge(catalog::ARENA_HUGE_PAGE_BYTES, &[]),
            arena_largest_free_bytes: registry.gauge(catalog::ARENA_LARGEST_FREE_BYTES, &[]),
            arena_fragmentation_ratio: registry.gauge(catalog::ARENA_FRAGMENTATION_RATIO, &[]),
            budget_bytes: registry.gauges(catalog::BUDGET_BYTES, "component"),
            budget_limit_bytes: registry.gauge(catalog::BUDGET_LIMIT_BYTES, &[]),
            lru_oldest_idle: registry.gauge(catalog::LRU_OLDEST_IDLE, &[]),
            executors: registry.gauges(catalog::EXECUTORS, "state"),
            executors_filtered: registry.gauge(catalog::EXECUTORS_FILTERED, &[]),
            executor_system_calls_refused: registry.counter(catalog::EXECUTOR_SYSTEM_CALLS_REFUSED, &[]),
            executions_in_flight: registry.gauge(catalog::EXECUTIONS_IN_FLIGHT, &[]),
            queue_refusals: registry.counters(catalog::QUEUE_REFUSALS, "bound"),
            inline_executions: registry.counters(catalog::INLINE_EXECUTIONS, "result"),
            quarantined_entries: registry.gauge(catalog::QUARANTINED_ENTRIES, &[]),
            quarantines: registry.counter(catalog::QUARANTINES, &[]),
            evictions: registry.counters(catalog::EVICTIONS, "reason"),
            evicted_bytes: registry.counters(catalog::EVICTED_BYTES, "reason"),
            evicted_never_used: registry.counter(catalog::EVICTED_NEVER_USED, &[]),
            workers: registry.gauge(catalog::WORKERS, &[]),
            worker_spawns: registry.counter(catalog::WORKER_SPAWNS, &[]),
            worker_spawn_failures: registry.counter(catalog::WORKER_SPAWN_FAILURES, &[]),
            worker_deaths: registry.counters(catalog::WORKER_DEATHS, "cause"),
            evicted_recently_used: registry.counter(catalog::EVICTED_RECENTLY_USED, &[]),
        }
    }

    pub(super) fn set(&self, now: &Snapshot) {
        self.set_state(now);
        self.set_memory(now);
        self.set_evictions(now);
        self.set_workers(&now.workers);
    }

    fn set_workers(&self, now: &Workers) {
        set(&self.workers, now.alive);
        self.worker_spawns.absolute(now.spawned);
        self.worker_spawn_failures.absolute(now.failed_spawns);
        for (cause, count) in [
            (WorkerDeath::Exited, now.exited),
            (WorkerDeath::Killed, now.killed),
            (WorkerDeath::Stopped, now.stopped),
            (WorkerDeath::Replaced, now.replaced),
        ] {
            self.worker_deaths.get(cause).absolute(count);
        }
    }

    fn set_state(&self, now: &Snapshot) {
        self.ready.set(f64::from(u8::from(now.ready)));
        self.draining.set(f64::from(u8::from(now.draining)));
        set(self.entries.get(EntryState::Resident), now.entries_resident);
        set(self.entries.get(EntryState::Lingering), now.entries_lingering);
        set(self.executors.get(ExecutorState::Idle), now.executors_idle);
        set(self.executors.get(ExecutorState::Running), now.executors_running);
        set(self.executors.get(ExecutorState::Stuck), now.executors_stuck);
        self.inline_executions.get(InlineResult::Ended).absolute(now.inline_executions);
        self.inline_executions.get(InlineResult::Moved).absolute(now.inline_moved);
        set(&self.quarantined_entries, now.quarantined_entries);
        self.quarantines.absolute(now.quarantines);
        set(&self.executors_filtered, now.executors_filtered);
        self.executor_system_calls_refused.absolute(now.executor_system_calls_refused);
        set(&self.executions_in_flight, now.executions_in_flight);
        self.queue_refusals.get(QueueBound::All).absolute(now.queue_refusals);
        self.queue_refusals.get(QueueBound::Namespace).absolute(now.queue_namespace_refusals);
        self.lru_oldest_idle.set(now.lru_oldest_idle.as_secs_f64());
    }

    fn set_memory(&self, now: &Snapshot) {
        for (states, bytes) in [
            (self.arena_bytes.get(MemoryKind::Code), now.arena_code),
            (self.arena_bytes.get(MemoryKind::Rodata), now.arena_rodata),
            (self.arena_bytes.get(MemoryKind::Data), now.arena_data),
            (&self.arena_low_bytes, now.arena_low),
        ] {
            set(states.get(MemoryState::Used), bytes.used_bytes);
            set(states.get(MemoryState::Lingering), bytes.lingering_bytes);
            set(states.get(MemoryState::Free), bytes.free_bytes);
            set(states.get(MemoryState::Reserved), bytes.reserved_bytes);
        }
        set(&self.arena_low_largest_free_bytes, now.arena_low_largest_free_bytes);
        set(&self.arena_resident_bytes, now.arena_resident_bytes);
        set(&self.arena_huge_page_bytes, now.arena_huge_page_bytes);
        set(&self.arena_largest_free_bytes, now.arena_largest_free_bytes);
        self.arena_fragmentation_ratio.set(now.arena_fragmentation_ratio);
        set(self.budget_bytes.get(BudgetComponent::Spans), now.budget_spans_bytes);
        set(self.budget_bytes.get(BudgetComponent::Lingering), now.budget_lingering_bytes);
        set(self.budget_bytes.get(BudgetComponent::Metadata), now.budget_metadata_bytes);
        set(self.budget_bytes.get(BudgetComponent::Uploads), now.budget_uploads_bytes);
        set(&self.budget_limit_bytes, now.budget_limit_bytes);
    }

    fn set_evictions(&self, now: &Snapshot) {
        for (reason, evicted) in [
            (EvictionReason::Capacity, now.evicted_capacity),
            (EvictionReason::Requested, now.evicted_requested),
            (EvictionReason::Replaced, now.evicted_replaced),
        ] {
            self.evictions.get(reason).absolute(evicted.entries);
            self.evicted_bytes.get(reason).absolute(evicted.bytes);
        }
        self.evicted_never_used.absolute(now.evicted_never_used);
        self.evicted_recently_used.absolute(now.evicted_recently_used);
    }
}

/// Prometheus knows floating-point numbers only: exact up to 2^53.
fn set(gauge: &Gauge, value: u64) {
    gauge.set(value as f64);
}
