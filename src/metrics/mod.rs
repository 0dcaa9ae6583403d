//! The metrics of one daemon, in Prometheus' text format.
//!
//! Labels come from closed enums, and every combination stands at 0 from the start. What is timed is recorded when it
//! happens, through handles made once; what the layers count themselves comes in as a [`Snapshot`] at each scrape.

mod catalog;
mod labels;
mod latency;
mod registry;
mod snapshot;

#[cfg(test)]
mod tests;

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::PrometheusHandle;

pub use labels::{
    BlobFormat, BudgetComponent, EntryState, EvictionReason, ExecutionOutcome, ExecutorState, GrpcCode, InlineResult,
    InstallResult, InstallStage, Label, LookupResult, MemoryKind, MemoryState, QueueBound, Rejection, Rpc, TrapKind,
    WorkerDeath,
};
pub use latency::LatencyCounts;
pub use snapshot::{ArenaBytes, Evicted, Snapshot, Workers};

use latency::Latencies;
use registry::{By, Registry};
use snapshot::SnapshotHandles;

/// What runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildInfo {
    /// Of the daemon, such as "0.1.0".
    pub version: &'static str,
    /// Of its source, or "unknown".
    pub revision: &'static str,
    /// Such as "x86_64".
    pub arch: &'static str,
    /// How code becomes executable, such as "memfd-noexec".
    pub strategy: &'static str,
    /// Where code runs, such as "thread".
    pub isolation: &'static str,
}

/// Times of the stages of an install that made an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstallStages {
    /// The digest.
    pub verify: Duration,
    /// Bytes to image.
    pub parse: Duration,
    /// Budget, victims and spans.
    pub reserve: Duration,
    /// Image to memory.
    pub link: Duration,
    /// Visible to all cores, and in the index.
    pub publish: Duration,
}

/// The metrics of one daemon.
pub struct Metrics {
    registry: Registry,
    exporter: PrometheusHandle,
    process: metrics_process::Collector,
    snapshot: SnapshotHandles,
    grpc_requests: By<Rpc, By<GrpcCode, Counter>>,
    grpc_duration: By<Rpc, Histogram>,
    grpc_in_flight: By<Rpc, Gauge>,
    latencies: Latencies,
    lookups: By<LookupResult, Counter>,
    installs: By<InstallResult, Counter>,
    install_rejections: By<Rejection, Counter>,
    install_duration: By<InstallStage, Histogram>,
    installed_blob_bytes: By<BlobFormat, Histogram>,
    executions: By<ExecutionOutcome, Counter>,
    execution_duration: Histogram,
    execution_queue: Histogram,
    traps: By<TrapKind, Counter>,
    entry_lifetime: Histogram,
    reclaim_delay: Histogram,
}

/// A request that is not answered yet; dropped when it is.
#[must_use = "the request counts as in flight until this is dropped"]
pub struct InFlight(Gauge);

impl Metrics {
    /// Registers everything, at 0.
    pub fn new(build: &BuildInfo) -> Self {
        let registry = Registry::new();
        let process = metrics_process::Collector::default();
        metrics::with_local_recorder(registry.recorder(), || process.describe());
        let BuildInfo { version, revision, arch, strategy, isolation } = *build;
        let labels = [
            ("version", version),
            ("revision", revision),
            ("arch", arch),
            ("strategy", strategy),
            ("isolation", isolation),
        ];
        registry.gauge(catalog::BUILD_INFO, &labels).set(1.0);
        Self {
            exporter: registry.handle(),
            process,
            snapshot: SnapshotHandles::new(&registry),
            grpc_requests: By::new(|rpc: Rpc| {
                By::new(|code: GrpcCode| {
                    registry.counter(catalog::GRPC_REQUESTS, &[("rpc", rpc.label()), ("grpc_code", code.label())])
                })
            }),
            grpc_duration: registry.histograms(&catalog::GRPC_DURATION, "rpc"),
            grpc_in_flight: registry.gauges(catalog::GRPC_IN_FLIGHT, "rpc"),
            latencies: Latencies::new(),
            lookups: registry.counters(catalog::LOOKUPS, "result"),
            installs: registry.counters(catalog::INSTALLS, "result"),
            install_rejections: registry.counters(catalog::INSTALL_REJECTIONS, "reason"),
            install_duration: registry.histograms(&catalog::INSTALL_DURATION, "stage"),
            installed_blob_bytes: registry.histograms(&catalog::INSTALLED_BLOB_BYTES, "format"),
            executions: registry.counters(catalog::EXECUTIONS, "outcome"),
            execution_duration: registry.histogram(&catalog::EXECUTION_DURATION, &[]),
            execution_queue: registry.histogram(&catalog::EXECUTION_QUEUE, &[]),
            traps: registry.counters(catalog::TRAPS, "kind"),
            entry_lifetime: registry.histogram(&catalog::ENTRY_LIFETIME, &[]),
            reclaim_delay: registry.histogram(&catalog::RECLAIM_DELAY, &[]),
            registry,
        }
    }

    /// A request was answered. `code` is gRPC's number; one that gRPC does not know counts as UNKNOWN.
    pub fn grpc(&self, rpc: Rpc, code: i32, duration: Duration) {
        self.grpc_requests.get(rpc).get(GrpcCode::of_number(code)).increment(1);
        self.grpc_duration.get(rpc).record(duration);
        self.latencies.record(duration);
    }

    /// Times of all requests since the start.
    pub fn latencies(&self) -> LatencyCounts {
        self.latencies.read()
    }

    /// A request came in; it is in flight until the guard is dropped.
    pub fn request_started(&self, rpc: Rpc) -> InFlight {
        let gauge = self.grpc_in_flight.get(rpc).clone();
        gauge.increment(1.0);
        InFlight(gauge)
    }

    /// A lookup that is a use (a peek is none) was answered.
    pub fn lookup(&self, hit: bool) {
        self.lookups.get(if hit { LookupResult::Hit } else { LookupResult::Miss }).increment(1);
    }

    /// An install ended.
    pub fn install(&self, result: InstallResult) {
        self.installs.get(result).increment(1);
    }

    /// Why an install was rejected, by the reason in its error. It is an [`Metrics::install`] as well.
    pub fn install_rejected(&self, reason: &str) {
        self.install_rejections.get(Rejection::of_reason(reason)).increment(1);
    }

    /// The stages of an install that made an entry.
    pub fn install_stages(&self, stages: &InstallStages) {
        for (stage, duration) in [
            (InstallStage::Verify, stages.verify),
            (InstallStage::Parse, stages.parse),
            (InstallStage::Reserve, stages.reserve),
            (InstallStage::Link, stages.link),
            (InstallStage::Publish, stages.publish),
        ] {
            self.install_duration.get(stage).record(duration);
        }
    }

    /// The blob of an install that made an entry.
    pub fn blob(&self, format: BlobFormat, bytes: u64) {
        self.installed_blob_bytes.get(format).record(bytes as f64);
    }

    /// An execution that began has ended.
    pub fn execution(&self, outcome: ExecutionOutcome, queued: Duration, wall: Duration) {
        self.executions.get(outcome).increment(1);
        self.execution_queue.record(queued);
        self.execution_duration.record(wall);
    }

    /// Executions that have ended, beside one that was timed for all of them.
    pub fn executions(&self, outcome: ExecutionOutcome, count: u64) {
        self.executions.get(outcome).increment(count);
    }

    /// An execution never began, so it has no times.
    pub fn execution_rejected(&self) {
        self.executions.get(ExecutionOutcome::Rejected).increment(1);
    }

    /// The client of an execution went away, or its deadline passed: nobody was told its times.
    pub fn execution_cancelled(&self) {
        self.executions.get(ExecutionOutcome::Cancelled).increment(1);
    }

    /// An execution did not return. It is an [`Metrics::execution`] as well.
    pub fn trap(&self, kind: TrapKind) {
        self.traps.get(kind).increment(1);
    }

    /// An entry went, this long after its install.
    pub fn entry_lifetime(&self, lifetime: Duration) {
        self.entry_lifetime.record(lifetime);
    }

    /// The memory of an entry came back, this long after its eviction.
    pub fn reclaim_delay(&self, delay: Duration) {
        self.reclaim_delay.record(delay);
    }

    /// Sorts recorded times into their buckets. To be called every second or two: until then each waits in memory with
    /// 16 bytes, which at 100,000 executions a second of three times each is 5 MB a second.
    pub fn upkeep(&self) {
        self.exporter.run_upkeep();
    }

    /// One scrape, in text format 0.0.4, families and samples in the order of their names.
    pub fn render(&self, now: &Snapshot) -> String {
        self.snapshot.set(now);
        metrics::with_local_recorder(self.registry.recorder(), || self.process.collect());
        sorted(&self.exporter.render())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// The exporter writes families and samples in the order of its hash maps, which differs from scrape to scrape.
/// Buckets keep their order: it is by bound already.
fn sorted(text: &str) -> String {
    let mut families: Vec<Vec<&str>> = text.split("\n\n").map(|family| family.lines().collect()).collect();
    families.retain(|family| !family.is_empty());
    for family in &mut families {
        let head = family.iter().take_while(|line| line.starts_with('#')).count();
        let is_histogram = family[..head].iter().any(|line| line.ends_with(" histogram"));
        if !is_histogram {
            family[head..].sort_unstable();
        }
    }
    families.sort_unstable_by_key(|family| family[0].split(' ').nth(2));
    let mut out = String::with_capacity(text.len());
    for line in families.iter().flatten() {
        out.push_str(line);
        out.push('\n');
    }
    out
}
