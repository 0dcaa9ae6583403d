//! What a scrape looks like, and that every record method moves what it says.

use std::{collections::BTreeSet, time::Duration};

use super::*;

/// `type name{label keys}`, one a line: what rules and dashboards rely on.
const GOLDEN: &str = include_str!("golden.txt");

fn metrics() -> Metrics {
    Metrics::new(&BuildInfo {
        version: "1.2.3",
        revision: "abc",
        arch: "x86_64",
        strategy: "memfd-noexec",
        isolation: "thread",
    })
}

fn scrape(metrics: &Metrics) -> String {
    metrics.render(&Snapshot::default())
}

/// The value of a sample, written as in the text format.
fn value(text: &str, sample: &str) -> f64 {
    let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == sample));
    line.unwrap_or_else(|| panic!("no sample {sample} in\n{text}")).rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// Label keys of a sample, in their order, without `le`.
fn label_keys(sample: &str) -> String {
    let labels = sample.split_once('{').map_or("", |(_, rest)| rest.trim_end_matches('}'));
    let keys = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0)).filter(|key| *key != "le");
    keys.collect::<Vec<_>>().join(",")
}

fn shape(text: &str) -> String {
    let mut lines = BTreeSet::new();
    let (mut family, mut kind) = ("", "");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            (family, kind) = rest.split_once(' ').unwrap();
        } else if !line.starts_with('#') {
            let (sample, _) = line.rsplit_once(' ').unwrap();
            assert!(sample.starts_with(family), "{sample} is not of {family}");
            lines.insert(format!("{kind} {family}{{{}}}\n", label_keys(sample)));
        }
    }
    lines.into_iter().collect()
}

#[test]
fn names_types_and_labels_are_those_that_were_agreed_on() {
    let text = shape(&scrape(&metrics()));
    assert_eq!(text, GOLDEN, "review the change, then put this into golden.txt:\n{text}");
}

#[test]
fn every_family_has_a_help_and_they_are_sorted() {
    let text = scrape(&metrics());
    let lines: Vec<&str> = text.lines().collect();
    let mut families = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let family = rest.split_once(' ').unwrap().0;
            assert!(lines[index - 1].starts_with(&format!("# HELP {family} ")), "{family} has no help");
            families.push(family);
        }
    }
    assert!(families.is_sorted() && families.len() > 30, "{families:?}");
}

#[test]
fn every_combination_of_labels_stands_at_zero_from_the_start() {
    let text = scrape(&metrics());
    for rpc in Rpc::ALL {
        for code in GrpcCode::ALL {
            let labels = format!("rpc=\"{}\",grpc_code=\"{}\"", rpc.label(), code.label());
            assert_eq!(value(&text, &format!("codecache_grpc_requests_total{{{labels}}}")), 0.0);
        }
    }
    let moved: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("codecache_") && !line.ends_with(" 0") && !line.starts_with("codecache_build"))
        .collect();
    assert_eq!(moved, Vec::<&str>::new());
}

#[test]
fn executions_have_buckets_from_100_ns_to_10_s() {
    let metrics = metrics();
    metrics.execution(ExecutionOutcome::Returned, Duration::from_nanos(90), Duration::from_secs(11));
    let text = scrape(&metrics);
    assert_eq!(value(&text, "codecache_execution_queue_seconds_bucket{le=\"0.0000001\"}"), 1.0);
    assert_eq!(value(&text, "codecache_execution_duration_seconds_bucket{le=\"10\"}"), 0.0);
    assert_eq!(value(&text, "codecache_execution_duration_seconds_bucket{le=\"+Inf\"}"), 1.0);
    assert_eq!(value(&text, "codecache_execution_duration_seconds_sum"), 11.0);
    assert_eq!(value(&text, "codecache_executions_total{outcome=\"returned\"}"), 1.0);
}

#[test]
fn an_execution_that_never_began_leaves_the_times_alone() {
    let metrics = metrics();
    metrics.execution_rejected();
    metrics.execution_cancelled();
    let text = scrape(&metrics);
    assert_eq!(value(&text, "codecache_executions_total{outcome=\"rejected\"}"), 1.0);
    assert_eq!(value(&text, "codecache_executions_total{outcome=\"cancelled\"}"), 1.0);
    assert_eq!(value(&text, "codecache_execution_queue_seconds_count"), 0.0);
    assert_eq!(value(&text, "codecache_execution_duration_seconds_count"), 0.0);
}

#[test]
fn a_request_is_in_flight_until_its_guard_goes_and_is_counted_by_its_code() {
    let metrics = metrics();
    let sample = "codecache_grpc_requests_in_flight{rpc=\"Lookup\"}";
    let guard = metrics.request_started(Rpc::Lookup);
    let other = metrics.request_started(Rpc::Lookup);
    assert_eq!(value(&scrape(&metrics), sample), 2.0);
    drop((guard, other));
    metrics.grpc(Rpc::Lookup, 5, Duration::from_millis(1));
    metrics.grpc(Rpc::Other, 99, Duration::from_millis(1));
    metrics.grpc(Rpc::Other, -1, Duration::from_millis(1));
    let text = scrape(&metrics);
    assert_eq!(value(&text, sample), 0.0);
    assert_eq!(value(&text, "codecache_grpc_requests_total{rpc=\"Lookup\",grpc_code=\"NOT_FOUND\"}"), 1.0);
    assert_eq!(value(&text, "codecache_grpc_requests_total{rpc=\"other\",grpc_code=\"UNKNOWN\"}"), 2.0);
    assert_eq!(value(&text, "codecache_grpc_request_duration_seconds_count{rpc=\"Lookup\"}"), 1.0);
}

#[test]
fn installs_lookups_traps_and_times_move_their_own_samples() {
    let metrics = metrics();
    metrics.lookup(false);
    metrics.install(InstallResult::Created);
    metrics.install(InstallResult::Rejected);
    metrics.install_rejected("KEY_OCCUPIED");
    metrics.install_rejected("NEVER_HEARD_OF");
    metrics.install_stages(&InstallStages { link: Duration::from_secs(1), ..InstallStages::default() });
    metrics.blob(BlobFormat::Flat, 65);
    metrics.trap(TrapKind::StackOverflow);
    metrics.entry_lifetime(Duration::from_secs(5));
    metrics.reclaim_delay(Duration::from_micros(5));
    let text = scrape(&metrics);
    for (sample, wanted) in [
        ("codecache_lookups_total{result=\"miss\"}", 1.0),
        ("codecache_lookups_total{result=\"hit\"}", 0.0),
        ("codecache_installs_total{result=\"created\"}", 1.0),
        ("codecache_installs_total{result=\"rejected\"}", 1.0),
        ("codecache_install_rejections_total{reason=\"KEY_OCCUPIED\"}", 1.0),
        ("codecache_install_rejections_total{reason=\"other\"}", 1.0),
        ("codecache_install_duration_seconds_sum{stage=\"link\"}", 1.0),
        ("codecache_install_duration_seconds_count{stage=\"verify\"}", 1.0),
        ("codecache_installed_blob_bytes_bucket{format=\"flat\",le=\"64\"}", 0.0),
        ("codecache_installed_blob_bytes_bucket{format=\"flat\",le=\"256\"}", 1.0),
        ("codecache_traps_total{kind=\"stack_overflow\"}", 1.0),
        ("codecache_entry_lifetime_seconds_sum", 5.0),
        ("codecache_reclaim_delay_seconds_bucket{le=\"0.00001\"}", 1.0),
        ("codecache_reclaim_delay_seconds_bucket{le=\"0.000001\"}", 0.0),
    ] {
        assert_eq!(value(&text, sample), wanted, "{sample}");
    }
}

/// A different number in each field, so that no two can be swapped unseen.
fn numbered_snapshot() -> Snapshot {
    let area = |base: u64| ArenaBytes {
        used_bytes: base,
        lingering_bytes: base + 1,
        free_bytes: base + 2,
        reserved_bytes: base + 3,
    };
    Snapshot {
        ready: true,
        draining: false,
        entries_resident: 1001,
        entries_lingering: 1002,
        arena_code: area(100),
        arena_rodata: area(200),
        arena_data: area(300),
        arena_low: area(400),
        arena_low_largest_free_bytes: 1023,
        arena_resident_bytes: 1003,
        arena_huge_page_bytes: 1019,
        arena_largest_free_bytes: 1004,
        arena_fragmentation_ratio: 0.25,
        budget_spans_bytes: 1005,
        budget_lingering_bytes: 1006,
        budget_metadata_bytes: 1007,
        budget_uploads_bytes: 1020,
        budget_limit_bytes: 1008,
        lru_oldest_idle: Duration::from_millis(1500),
        executors_idle: 1009,
        executors_running: 1010,
        executors_filtered: 1021,
        executor_system_calls_refused: 1022,
        executions_in_flight: 1011,
        executors_stuck: 1023,
        inline_executions: 1024,
        inline_moved: 1025,
        quarantined_entries: 1026,
        quarantines: 1027,
        queue_refusals: 1021,
        queue_namespace_refusals: 1022,
        evicted_capacity: Evicted { entries: 1012, bytes: 1013 },
        evicted_requested: Evicted { entries: 1014, bytes: 1015 },
        evicted_replaced: Evicted { entries: 1016, bytes: 1017 },
        evicted_never_used: 1018,
        workers: Workers {
            alive: 1101,
            spawned: 1102,
            failed_spawns: 1103,
            exited: 1104,
            killed: 1105,
            stopped: 1106,
            replaced: 1107,
        },
        evicted_recently_used: 1021,
    }
}

#[test]
fn each_field_of_a_snapshot_has_its_own_sample() {
    let text = metrics().render(&numbered_snapshot());
    for (sample, wanted) in [
        ("codecache_ready", 1.0),
        ("codecache_draining", 0.0),
        ("codecache_entries{state=\"resident\"}", 1001.0),
        ("codecache_entries{state=\"lingering\"}", 1002.0),
        ("codecache_arena_bytes{kind=\"code\",state=\"used\"}", 100.0),
        ("codecache_arena_bytes{kind=\"code\",state=\"lingering\"}", 101.0),
        ("codecache_arena_bytes{kind=\"rodata\",state=\"free\"}", 202.0),
        ("codecache_arena_bytes{kind=\"data\",state=\"reserved\"}", 303.0),
        ("codecache_arena_low_bytes{state=\"used\"}", 400.0),
        ("codecache_arena_low_bytes{state=\"reserved\"}", 403.0),
        ("codecache_arena_low_largest_free_bytes", 1023.0),
        ("codecache_arena_resident_bytes", 1003.0),
        ("codecache_arena_huge_page_bytes", 1019.0),
        ("codecache_arena_largest_free_bytes", 1004.0),
        ("codecache_arena_fragmentation_ratio", 0.25),
        ("codecache_budget_bytes{component=\"spans\"}", 1005.0),
        ("codecache_budget_bytes{component=\"lingering\"}", 1006.0),
        ("codecache_budget_bytes{component=\"metadata\"}", 1007.0),
        ("codecache_budget_bytes{component=\"uploads\"}", 1020.0),
        ("codecache_budget_limit_bytes", 1008.0),
        ("codecache_lru_oldest_idle_seconds", 1.5),
        ("codecache_executors{state=\"idle\"}", 1009.0),
        ("codecache_executors{state=\"running\"}", 1010.0),
        ("codecache_executors_filtered", 1021.0),
        ("codecache_executor_system_calls_refused_total", 1022.0),
        ("codecache_executions_in_flight", 1011.0),
        ("codecache_executors{state=\"stuck\"}", 1023.0),
        ("codecache_inline_executions_total{result=\"ended\"}", 1024.0),
        ("codecache_inline_executions_total{result=\"moved\"}", 1025.0),
        ("codecache_quarantined_entries", 1026.0),
        ("codecache_quarantines_total", 1027.0),
        ("codecache_queue_refusals_total{bound=\"queue\"}", 1021.0),
        ("codecache_queue_refusals_total{bound=\"queue_namespace\"}", 1022.0),
        ("codecache_evictions_total{reason=\"capacity\"}", 1012.0),
        ("codecache_evicted_bytes_total{reason=\"capacity\"}", 1013.0),
        ("codecache_evictions_total{reason=\"requested\"}", 1014.0),
        ("codecache_evicted_bytes_total{reason=\"requested\"}", 1015.0),
        ("codecache_evictions_total{reason=\"replaced\"}", 1016.0),
        ("codecache_evicted_bytes_total{reason=\"replaced\"}", 1017.0),
        ("codecache_evicted_never_used_total", 1018.0),
        ("codecache_workers", 1101.0),
        ("codecache_worker_spawns_total", 1102.0),
        ("codecache_worker_spawn_failures_total", 1103.0),
        ("codecache_worker_deaths_total{cause=\"exited\"}", 1104.0),
        ("codecache_worker_deaths_total{cause=\"killed\"}", 1105.0),
        ("codecache_worker_deaths_total{cause=\"replaced\"}", 1107.0),
        ("codecache_worker_deaths_total{cause=\"stopped\"}", 1106.0),
        ("codecache_evicted_recently_used_total", 1021.0),
    ] {
        assert_eq!(value(&text, sample), wanted, "{sample}");
    }
}

#[test]
fn what_was_drained_by_upkeep_is_still_in_the_next_scrape() {
    let metrics = metrics();
    for _ in 0..10_000 {
        metrics.reclaim_delay(Duration::from_millis(1));
    }
    metrics.upkeep();
    metrics.upkeep();
    assert_eq!(value(&scrape(&metrics), "codecache_reclaim_delay_seconds_count"), 10_000.0);
}

#[test]
fn two_daemons_in_one_process_keep_their_numbers_apart() {
    let (one, other) = (metrics(), metrics());
    one.lookup(true);
    assert_eq!(value(&scrape(&one), "codecache_lookups_total{result=\"hit\"}"), 1.0);
    assert_eq!(value(&scrape(&other), "codecache_lookups_total{result=\"hit\"}"), 0.0);
}

#[test]
fn the_process_is_measured() {
    let text = scrape(&metrics());
    assert!(value(&text, "process_resident_memory_bytes") > 0.0);
    assert!(value(&text, "process_open_fds") > 0.0);
    assert!(value(&text, "process_start_time_seconds") > 1.6e9);
}

#[test]
fn the_build_is_told() {
    let labels = "version=\"1.2.3\",revision=\"abc\",arch=\"x86_64\",strategy=\"memfd-noexec\",isolation=\"thread\"";
    assert_eq!(value(&scrape(&metrics()), &format!("codecache_build_info{{{labels}}}")), 1.0);
}

#[test]
fn paths_of_requests_map_to_rpcs() {
    assert_eq!(Rpc::from_path("/codecache.v1.CodeCacheService/Lookup"), Rpc::Lookup);
    assert_eq!(Rpc::from_path("/codecache.v1.CodeCacheService/InstallStream"), Rpc::InstallStream);
    assert_eq!(Rpc::from_path("/codecache.v1.ExecutionService/Execute"), Rpc::Execute);
    assert_eq!(Rpc::from_path("/codecache.v1.CodeCacheService/Disassemble"), Rpc::Disassemble);
    assert_eq!(Rpc::from_path("/codecache.v1.AdminService/GetStatus"), Rpc::GetStatus);
    assert_eq!(Rpc::from_path("/codecache.v1.AdminService/GetArenas"), Rpc::GetArenas);
    for path in ["/codecache.v1.ExecutionService/Lookup", "/grpc.health.v1.Health/Check", "/Lookup", "", "/"] {
        assert_eq!(Rpc::from_path(path), Rpc::Other, "{path}");
    }
}

#[test]
fn labels_are_distinct_and_at_their_own_index() {
    fn check<L: Label + std::fmt::Debug>() {
        let distinct: BTreeSet<&str> = L::ALL.iter().map(|value| value.label()).collect();
        assert_eq!(distinct.len(), L::ALL.len());
        assert!(L::ALL.iter().enumerate().all(|(index, value)| value.index() == index));
    }
    check::<Rpc>();
    check::<GrpcCode>();
    check::<Rejection>();
    check::<TrapKind>();
    check::<ExecutionOutcome>();
    assert_eq!(GrpcCode::of_number(16), GrpcCode::Unauthenticated);
    assert_eq!(GrpcCode::ALL.len(), 17);
}
