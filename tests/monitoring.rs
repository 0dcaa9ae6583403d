//! What deploy/monitoring ships is held to a running daemon.
//!
//! Where promtool or prometheus are not installed (Debian: prometheus) their tests are ignored; CODECACHED_REQUIRE_PROMETHEUS=1
//! makes that a failure.

#[path = "monitoring/prometheus.rs"]
mod prometheus;
#[path = "monitoring/queries.rs"]
mod queries;
mod support;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use codecached::proto::{LookupRequest, ResultType, lookup_request::Target, value::Kind};
use libtest_mimic::Arguments;
use prometheus::{Prometheus, http_get};
use queries::{Asked, Samples, asked};
use serde_json::Value;
use support::{ADD, Daemon, call, flat, handle, trial};

/// What agents add to every series.
const ADDED_LABELS: &[&str] = &["job", "instance", "le"];
const HITS: usize = 30;
const MISSES: usize = 10;
const RETURNED: usize = 45;
const TRAPPED: usize = 5;

fn main() {
    let arguments = Arguments::from_args();
    let test = |name, tool: Option<&str>, run: fn()| {
        trial("CODECACHED_REQUIRE_PROMETHEUS", name, tool.filter(|tool| !installed(tool)), run)
    };
    let tests = vec![
        test("what_rules_and_dashboard_ask_for_is_in_a_scrape", None, asked_is_there),
        test("every_metric_is_documented_and_nothing_else", None, documented),
        test("every_alert_and_recording_rule_is_tested", None, rules_are_tested),
        test("panels_of_the_dashboard_have_places_of_their_own", None, panels),
        test("a_misspelt_metric_label_or_value_is_found", None, misspelt),
        test("promtool_finds_nothing_wrong", Some("promtool"), promtool),
        test("a_prometheus_records_what_a_daemon_did", Some("prometheus"), recorded),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

fn installed(tool: &str) -> bool {
    let version = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitoring")
}

fn file(name: &str) -> String {
    fs::read_to_string(directory().join(name)).unwrap()
}

fn dashboard() -> Value {
    serde_json::from_str(&file("dashboard.json")).unwrap()
}

/// Every expression of the dashboard, with what Grafana puts in.
fn expressions() -> Vec<String> {
    let mut found = Vec::new();
    collect(&dashboard(), &mut found);
    assert!(found.len() > 50, "{}", found.len());
    let filled = |text: &String| text.replace("$instance", ".*").replace("$__rate_interval", "1m");
    found.iter().map(filled).collect()
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| collect(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// Names after `- record:` or `- alert:`.
fn named(text: &str, kind: &str) -> BTreeSet<String> {
    let mark = format!("- {kind}: ");
    text.lines().filter_map(|line| line.trim().strip_prefix(&mark)).map(str::to_owned).collect()
}

fn scraped() -> Samples {
    let daemon = Daemon::start();
    Samples::parse(&http_get(&daemon.metrics, "/metrics").unwrap())
}

/// What is wrong with a query: a name, label or value that no daemon has.
fn problems(asked: &Asked, samples: &Samples, recorded: &BTreeSet<String>) -> Vec<String> {
    if asked.name.contains(':') {
        let known = recorded.contains(&asked.name);
        return if known { vec![] } else { vec![format!("{} is recorded by nothing", asked.name)] };
    }
    let Some(labels) = samples.labels(&asked.name) else { return vec![format!("{} is in no scrape", asked.name)] };
    let mut problems = Vec::new();
    for (label, values) in asked.matchers.iter().filter(|(label, _)| !ADDED_LABELS.contains(&label.as_str())) {
        match labels.get(label) {
            None => problems.push(format!("{} has no label {label}", asked.name)),
            Some(there) => {
                let missing = values.iter().filter(|value| !there.contains(*value));
                problems.extend(missing.map(|value| format!("{}{{{label}={value:?}}} is in no scrape", asked.name)));
            }
        }
    }
    problems
}

fn asked_is_there() {
    let (rules, alerts) = (file("recording-rules.yml"), file("alert-rules.yml"));
    let recorded = named(&rules, "record");
    assert!(recorded.len() > 5);
    let samples = scraped();
    let all = [rules, alerts, expressions().join("\n")].concat();
    let asked = asked(&all);
    assert!(asked.len() > 100, "{}", asked.len());
    let problems: Vec<String> = asked.iter().flat_map(|asked| problems(asked, &samples, &recorded)).collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

fn misspelt() {
    let samples = Samples::parse("codecache_a_total{reason=\"x\"} 1\ncodecache_b_bucket{le=\"1\"} 2\n");
    let recorded = BTreeSet::from(["codecache:a:b".to_owned()]);
    for (query, count) in [
        ("rate(codecache_a_total{job=\"c\",reason=\"x\"}[5m]) + codecache_b_bucket{le=\"7\"} + codecache:a:b", 0),
        ("codecache_c_total", 1),
        ("codecache_a_total{reason=\"y\"}", 1),
        ("codecache_a_total{reason=~\"x|y|z\"}", 2),
        ("codecache_a_total{reason!=\"y\"}", 1),
        ("codecache_a_total{other=\"x\"}", 1),
        ("codecache:a:c", 1),
    ] {
        let found: Vec<String> = asked(query).iter().flat_map(|it| problems(it, &samples, &recorded)).collect();
        assert_eq!(found.len(), count, "{query}: {found:?}");
    }
}

fn documented() {
    let golden = include_str!("../src/metrics/golden.txt");
    let wanted: BTreeSet<String> = golden
        .lines()
        .map(|line| {
            let (kind, rest) = line.split_once(' ').unwrap();
            let (name, labels) = rest.trim_end_matches('}').split_once('{').unwrap();
            format!("`{name}` | {kind} | {}", labels.replace(',', ", "))
        })
        .collect();
    let table = file("README.md");
    let rows = table.lines().filter(|line| line.starts_with("| `codecache_") || line.starts_with("| `process_"));
    let there: BTreeSet<String> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches(['|', ' ']).split('|').map(str::trim).collect();
            assert!(cells.len() == 4 && cells[3].len() > 5, "{row}");
            cells[..3].join(" | ")
        })
        .collect();
    let differ: Vec<&String> = there.symmetric_difference(&wanted).collect();
    assert!(differ.is_empty(), "in the table or in golden.txt, but not in both: {differ:#?}");
}

fn rules_are_tested() {
    let tests = file("alert-tests.yml");
    for alert in named(&file("alert-rules.yml"), "alert") {
        let name = format!("alertname: {alert}\n");
        let asked = tests.split(&name).skip(1);
        let fires = asked.filter(|after| after.trim_start().starts_with("exp_alerts:")).count();
        assert!(fires > 0, "no test in which {alert} fires");
    }
    let rules = [file("alert-rules.yml"), tests].concat();
    for rule in named(&file("recording-rules.yml"), "record") {
        assert!(rules.contains(&rule), "{rule} is neither tested nor part of an alert");
    }
}

fn panels() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()) && panel["title"].is_string(), "{panel}");
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{}", panel["title"]);
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
    }
}

fn promtool() {
    let run = |arguments: &[&str]| {
        let output = Command::new("promtool").args(arguments).current_dir(directory()).output().unwrap();
        assert!(output.status.success(), "promtool {arguments:?}: {output:?}");
        output
    };
    run(&["check", "config", "prometheus.yml"]);
    run(&["check", "rules", "recording-rules.yml", "alert-rules.yml"]);
    run(&["test", "rules", "alert-tests.yml"]);
    // It reads a scrape from standard input, and says what it would call otherwise.
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("page");
    fs::write(&page, http_get(&daemon.metrics, "/metrics").unwrap()).unwrap();
    let page = fs::File::open(page).unwrap();
    let output = Command::new("promtool").args(["check", "metrics"]).stdin(page).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

fn recorded() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    let prometheus = Prometheus::start(&directory(), &daemon.metrics);
    // What happens before the first scrape is in no rate.
    prometheus.until("codecache_ready", |value| value == 1.0);
    runtime.block_on(work(&daemon));
    // As the daemon counts: the sample of the last scrape has all of it.
    prometheus.until("sum(codecache_executions_total)", |value| value == (RETURNED + TRAPPED) as f64);
    let near = |wanted: f64| move |value: f64| (value - wanted).abs() < 1e-9;
    let all = (HITS + MISSES) as f64;
    prometheus.until("codecache:lookups_hit:ratio_rate5m", near(HITS as f64 / all));
    let all = (RETURNED + TRAPPED) as f64;
    prometheus.until("codecache:executions_trapped:ratio_rate5m", near(TRAPPED as f64 / all));
    prometheus.until("codecache:installs_rejected:ratio_rate5m", near(0.25));
    let status = runtime.block_on(async { daemon.client().await.status().await.unwrap() });
    let budget = status.budget.unwrap();
    prometheus.until("codecache:budget_charged:ratio", near(budget.charged_bytes as f64 / budget.limit_bytes as f64));
    prometheus.until("codecache:execution_duration_seconds:p99_rate5m", |value| value > 0.0 && value < 10.0);
    // What was refused and trapped here on purpose does not last as long as an alert waits.
    assert_eq!(prometheus.value("count(ALERTS{alertstate=\"firing\"})"), None);
    for expression in expressions() {
        let answer = prometheus.query(&expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        // Starts are marked only where there was one.
        assert!(!answer.is_empty() || expression.contains("changes("), "{expression} answers nothing");
    }
}

async fn work(daemon: &Daemon) {
    let client = daemon.client().await;
    let add = handle(&client.install(flat("add", ADD)).await.unwrap());
    let broken = handle(&client.install(flat("broken", &[0x0f, 0x0b])).await.unwrap());
    client.install(flat("third", ADD)).await.unwrap();
    client.install(flat("add", &[0x90, 0xc3])).await.unwrap_err();
    for round in 0..HITS + MISSES {
        let key = if round < HITS { "add" } else { "nothing" };
        let target = Some(Target::Key(key.as_bytes().to_vec().into()));
        let found = client.lookup(LookupRequest { target, ..LookupRequest::default() }).await;
        assert_eq!(found.is_ok(), round < HITS);
    }
    for _ in 0..RETURNED {
        let sum = call(add, "f", vec![Kind::I32(2), Kind::I32(3)], ResultType::I32);
        client.execute(sum).await.unwrap();
    }
    for _ in 0..TRAPPED {
        client.execute(call(broken, "f", Vec::new(), ResultType::Void)).await.unwrap();
    }
}
