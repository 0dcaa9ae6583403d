//! perf and gdb, pointed at a daemon whose code runs, name its functions.
//!
//! Where they are not installed, or not allowed to look at other processes, the tests are ignored, and say what is missing;
//! CODECACHED_REQUIRE_JIT_TOOLS=1 makes that a failure.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use codecached::{
    client::Client,
    proto::{EvictRequest, ResultType, evict_request::Target, value::Kind},
};
use libtest_mimic::Arguments;
use support::{Daemon, call, compile, elf, handle, trial, until};
use tempfile::TempDir;

/// Steps of the loop that nobody waits for.
const ENDLESS: u64 = u64::MAX;
/// CPU time of the daemon's calls: longer than any tool takes.
const LIMIT: &str = "exec.cpu_limit_default_ms=3600000";
const LIMIT_MAX: &str = "exec.cpu_limit_max_ms=3600000";

fn main() {
    let arguments = Arguments::from_args();
    let test =
        |name, missing: &Option<String>, run: fn()| trial("CODECACHED_REQUIRE_JIT_TOOLS", name, missing.as_ref(), run);
    let (perf, gdb) = (missing_perf(), missing_gdb());
    let tests = vec![
        test("samples_of_perf_lie_in_the_function_that_the_map_names", &perf, perf_map),
        test("perf_names_and_shows_functions_by_the_jitdump", &perf, jitdump),
        test("gdb_shows_the_way_through_resident_code_into_the_executor", &gdb, gdb_backtrace),
        test("gdb_finds_no_symbol_file_of_what_was_evicted", &gdb, gdb_after_eviction),
        test("a_map_has_a_line_for_each_function_and_stays_within_its_bound", &None, map_lines),
        test("a_directory_that_cannot_be_written_stops_the_start_with_its_name", &None, no_directory),
        test("kept_addresses_are_not_used_again_until_the_budget_needs_them", &None, kept_addresses),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

/// Really asks for samples of another process: it may be there and not be allowed to.
fn missing_perf() -> Option<String> {
    let works = tool("perf", &["record", "-e", "cpu-clock", "-o", "/dev/null", "true"]).is_ok();
    (!works).then(|| "perf (Debian: linux-perf), allowed to sample".to_owned())
}

/// Really attaches to another process.
fn missing_gdb() -> Option<String> {
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let attached = tool("gdb", &["-nx", "-batch", "-p", &child.id().to_string(), "-ex", "info threads"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let works = attached.is_ok_and(|text| text.contains("* 1"));
    (!works).then(|| "gdb, allowed to attach".to_owned())
}

/// What a tool says on both channels.
fn tool(name: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null()).env("DEBUGINFOD_URLS", "");
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if output.status.success() { Ok(text) } else { Err(format!("{name}: {}\n{text}", output.status)) }
}

fn run(name: &str, arguments: &[&str]) -> String {
    tool(name, arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// A daemon with these keys of `tools.`.
fn daemon(keys: &[&str]) -> Daemon {
    let flags: Vec<&str> = keys.iter().copied().chain([LIMIT, LIMIT_MAX]).flat_map(|key| ["--set", key]).collect();
    Daemon::start_with(&flags)
}

/// Runs `test` while the loop of an entry "spinner" runs in the daemon.
fn while_spinning(daemon: &Daemon, test: impl FnOnce()) {
    runtime().block_on(async {
        let client = daemon.client().await;
        let entry = handle(&client.install(elf("spinner", compile("spinner.c"))).await.unwrap());
        let request = call(entry, "spin_outer", vec![Kind::U64(ENDLESS)], ResultType::U64);
        let spinning = client.clone();
        // Dropped at the end, which stops the call.
        let spinning = tokio::spawn(async move { spinning.execute(request).await });
        let pid = daemon.pid();
        until("the loop", async || (cpu_ticks(pid) > 5).then_some(())).await;
        tokio::task::block_in_place(test);
        spinning.abort();
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

/// CPU time of the busiest executor, in ticks of the system.
fn cpu_ticks(pid: u32) -> u64 {
    let ticks = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, fields) = stat.rsplit_once(')')?;
        let is_executor = name.contains("exec");
        fields.split(' ').nth(12).filter(|_| is_executor)?.parse::<u64>().ok()
    };
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(|task| ticks(task.ok()?)).max().unwrap_or(0)
}

/// Samples of the daemon for a second.
fn record(daemon: &Daemon, directory: &TempDir, clock: &[&str]) -> PathBuf {
    let data = directory.path().join("perf.data");
    let pid = daemon.pid().to_string();
    let target = ["-e", "cpu-clock", "-o", data.to_str().unwrap(), "-p", &pid, "--", "sleep", "1"];
    while_spinning(daemon, || {
        run("perf", &[&["record"], clock, &target].concat());
    });
    data
}

fn report(data: &Path) -> String {
    run("perf", &["report", "--stdio", "-i", data.to_str().unwrap()])
}

/// perf itself asks a map about anonymous memory only, so the samples' addresses are looked up here.
fn perf_map() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&["tools.perf=map", &format!("tools.directory={}", directory.path().display())]);
    let data = record(&daemon, &directory, &[]);
    let samples = run("perf", &["script", "-F", "ip", "-i", data.to_str().unwrap()]);
    let map = fs::read_to_string(directory.path().join(format!("perf-{}.map", daemon.pid()))).unwrap();
    let line = map.lines().find(|it| it.ends_with(" spin_inner [default/spinner]")).unwrap();
    let (start, size) = line.split_once(' ').unwrap();
    let [start, size] = [start, size.split(' ').next().unwrap()].map(|it| u64::from_str_radix(it, 16).unwrap());
    let addresses: Vec<u64> = samples.lines().filter_map(|it| u64::from_str_radix(it.trim(), 16).ok()).collect();
    let inside = addresses.iter().filter(|&&it| (start..start + size).contains(&it)).count();
    assert!(inside > 50, "{inside} of {} samples are in {line}", addresses.len());
}

fn jitdump() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = daemon(&["tools.perf=jitdump", &format!("tools.directory={}", directory.path().display())]);
    let data = record(&daemon, &directory, &["-k", "1"]);
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
    let injected = directory.path().join("injected.data");
    run("perf", &["inject", "--jit", "-i", data.to_str().unwrap(), "-o", injected.to_str().unwrap()]);
    let report = report(&injected);
    assert!(report.contains("spin_inner [default/spinner]"), "{report}");
    // One object for each function, with its code: perf disassembles that.
    let made = fs::read_dir(directory.path())
        .unwrap()
        .filter(|it| it.as_ref().unwrap().file_name().to_string_lossy().starts_with("jitted-"));
    assert!(made.count() >= 4, "{report}");
}

fn gdb(daemon: &Daemon, commands: &[&str]) -> String {
    let pid = daemon.pid().to_string();
    let commands: Vec<&str> = commands.iter().flat_map(|command| ["-ex", command]).collect();
    run("gdb", &[&["-nx", "-batch", "-p", &pid], &commands[..]].concat())
}

fn gdb_backtrace() {
    let daemon = daemon(&["tools.gdb=true", "tools.unwind=true"]);
    while_spinning(&daemon, || {
        let text = gdb(&daemon, &["thread apply all bt"]);
        let thread = text.split("\nThread ").find(|it| it.contains("spin_inner"));
        let thread = thread.unwrap_or_else(|| panic!("no thread is in the code:\n{text}"));
        let mut rest = thread;
        for name in ["spin_inner", "spin_outer", "codecached::exec::executor::run", "clone"] {
            let at = rest.find(name).unwrap_or_else(|| panic!("no {name} where it should be:\n{thread}"));
            rest = &rest[at..];
        }
    });
}

fn gdb_after_eviction() {
    let daemon = daemon(&["tools.gdb=true"]);
    // The first symbol file: the third word of the descriptor. What does not end with an error comes last.
    let known = || gdb(&daemon, &["info address spin_inner", "print/x ((long *)&__jit_debug_descriptor)[2]"]);
    runtime().block_on(async {
        let client = daemon.client().await;
        client.install(elf("spinner", compile("spinner.c"))).await.unwrap();
        let text = known();
        assert!(text.contains("\"spin_inner\" is at 0x") && !text.contains("= 0x0\n"), "{text}");
        evict(&client, "spinner").await;
        let text = known();
        assert!(!text.contains("\"spin_inner\" is at 0x") && text.contains("= 0x0\n"), "{text}");
    });
}

async fn evict(client: &Client, key: &str) {
    let target = Some(Target::Key(key.as_bytes().to_vec().into()));
    client.evict(EvictRequest { target, ..EvictRequest::default() }).await.unwrap();
}

fn map_lines() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = daemon(&[
        "tools.perf=map",
        &format!("tools.directory={}", directory.path().display()),
        "tools.file_max_bytes=65536",
    ]);
    let path = directory.path().join(format!("perf-{}.map", daemon.pid()));
    let object = compile("spinner.c");
    runtime().block_on(async {
        let client = daemon.client().await;
        client.install(elf("spinner", object.clone())).await.unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.splitn(3, ' ').collect()).collect();
        let names: Vec<&str> = lines.iter().map(|it| it[2]).collect();
        for name in ["spin_inner", "spin_outer", "call_inner", "call_outer"] {
            assert!(names.contains(&&*format!("{name} [default/spinner]")), "{text}");
        }
        assert!(
            lines.iter().all(|it| u64::from_str_radix(it[0], 16).is_ok() && u64::from_str_radix(it[1], 16).is_ok())
        );
        for key in 0..1000 {
            client.install(elf(&format!("spinner{key}"), object.clone())).await.unwrap();
        }
    });
    let bytes = fs::metadata(&path).unwrap().len();
    assert!((60_000..=65_536).contains(&bytes), "{bytes} bytes");
    assert!(fs::read_to_string(&path).unwrap().ends_with('\n'));
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0));
    assert_eq!(daemon.log().matches("file_max_bytes is reached").count(), 1, "{}", daemon.log());
}

fn no_directory() {
    let output = Command::new(env!("CARGO_BIN_EXE_codecached"))
        .args(["serve", "--metrics", "off", "--set", "tools.perf=map", "--set", "tools.directory=/nowhere"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("/nowhere/perf-") && text.contains("tools.directory"), "{text}");
}

fn kept_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&[
        "tools.perf=map",
        &format!("tools.directory={}", directory.path().display()),
        "tools.keep_addresses=true",
        "cache.budget_bytes=1 MiB",
    ]);
    let path = directory.path().join(format!("perf-{}.map", daemon.pid()));
    let object = compile("spinner.c");
    const ROUNDS: usize = 50;
    runtime().block_on(async {
        let client = daemon.client().await;
        for _ in 0..ROUNDS {
            client.install(elf("spinner", object.clone())).await.unwrap();
            evict(&client, "spinner").await;
        }
        let text = fs::read_to_string(&path).unwrap();
        let mut starts: Vec<&str> =
            text.lines().filter(|it| it.contains("spin_inner")).map(|it| it.split(' ').next().unwrap()).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), ROUNDS, "an address had two names:\n{text}");
        // Far more than the budget holds: what is kept goes for it.
        for _ in 0..2000 {
            client.install(elf("spinner", object.clone())).await.unwrap();
            evict(&client, "spinner").await;
        }
        let budget = client.status().await.unwrap().budget.unwrap();
        assert!(budget.charged_bytes <= 1 << 20 && budget.lingering_bytes > 0, "{budget:?}");
    });
}
