//! The status page: its numbers are those of the API, in JSON and as a real browser shows them.
//!
//! Without Chromium the tests with a browser are ignored, and say so; CODECACHED_REQUIRE_BROWSER=1 makes that a failure.
//! STATUS_PAGE_PICTURES=DIRECTORY keeps pictures of the page, empty and under load, light and dark, wide and narrow.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use codecached::proto::{
    EvictRequest, ExecuteRequest, GetStatusResponse, LookupRequest, ResultType, evict_request, execute_request,
    lookup_request, value::Kind,
};
use libtest_mimic::Arguments;
use serde_json::Value;
use support::{Daemon, PATIENCE, Random, call, flat, handle, trial, until};

/// lea eax, [rdi + rsi]; ret
const ADD: &[u8] = b"\x8d\x04\x37\xc3";
/// ud2
const UD2: &[u8] = b"\x0f\x0b";
const SECRET: &str = "a-key-that-nobody-else-may-see";

fn main() {
    let arguments = Arguments::from_args();
    let lacks_browser = browser().is_none();
    let test = |name, needs_browser: bool, run: fn()| {
        trial("CODECACHED_REQUIRE_BROWSER", name, (needs_browser && lacks_browser).then_some("chromium"), run)
    };
    let tests = vec![
        test("the_numbers_are_those_of_the_api", false, numbers),
        test("nothing_on_it_tells_a_key_or_an_address", false, nothing_secret),
        test("a_browser_shows_the_same_numbers_under_the_policy", true, shown),
        test("pictures_of_the_page_can_be_taken", true, pictures),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

fn browser() -> Option<&'static str> {
    let works = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|it| it.status.success());
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(works)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

fn get(daemon: &Daemon, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(&daemon.metrics).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    (head.to_owned(), body.to_owned())
}

fn json(daemon: &Daemon) -> Value {
    serde_json::from_str(&get(daemon, "/status.json").1).unwrap()
}

/// Installs, looks up, misses, calls, traps and evicts.
async fn load(daemon: &Daemon) -> GetStatusResponse {
    let client = daemon.client().await;
    let mut cache = client.cache();
    let add = cache.install(flat(SECRET, ADD)).await.unwrap().into_inner();
    let bad = cache.install(flat("bad", UD2)).await.unwrap().into_inner();
    for size in 1..40_usize {
        let code = [ADD, &vec![0x90; size * 97]].concat();
        cache.install(flat(&format!("entry-{size}"), &code)).await.unwrap();
    }
    for key in [SECRET, "bad", "no-such-entry"] {
        let target = Some(lookup_request::Target::Key(key.as_bytes().to_vec().into()));
        drop(cache.lookup(LookupRequest { target, ..LookupRequest::default() }).await);
    }
    let request: ExecuteRequest = call(handle(&add), "f", vec![Kind::I32(1), Kind::I32(2)], ResultType::I32);
    for _ in 0..50 {
        client.execution().execute(request.clone()).await.unwrap();
    }
    client.execution().execute(call(handle(&bad), "f", vec![], ResultType::Void)).await.unwrap();
    let target = Some(evict_request::Target::Key(b"entry-7".to_vec().into()));
    cache.evict(EvictRequest { target, ..EvictRequest::default() }).await.unwrap();
    client.status().await.unwrap()
}

fn assert_same(shown: &Value, status: &GetStatusResponse) {
    let (budget, counters) = (status.budget.unwrap(), status.counters.unwrap());
    for (path, value) in [
        ("/budget/limit_bytes", budget.limit_bytes),
        ("/budget/charged_bytes", budget.charged_bytes),
        ("/budget/spans_bytes", budget.spans_bytes),
        ("/budget/metadata_bytes", budget.metadata_bytes),
        ("/entries/resident", status.entries.unwrap().resident),
        ("/counters/lookup_hits", counters.lookup_hits),
        ("/counters/lookup_misses", counters.lookup_misses),
        ("/counters/installs", counters.installs),
        ("/counters/calls", counters.calls),
        ("/counters/traps", counters.traps),
        ("/counters/requested_evictions", counters.requested_evictions),
        ("/executors/threads", status.executors.unwrap().threads.into()),
    ] {
        assert_eq!(shown.pointer(path).and_then(Value::as_u64), Some(value), "{path} in {shown}");
    }
}

fn numbers() {
    let daemon = Daemon::start();
    let status = runtime().block_on(load(&daemon));
    let shown = json(&daemon);
    assert_same(&shown, &status);
    assert_eq!(shown["traps"]["ill"], 1, "{shown}");
    assert_eq!(shown["top"][0]["calls"], 50, "{shown}");
    let used: u64 = shown["areas"].as_array().unwrap().iter().map(|area| area["used_bytes"].as_u64().unwrap()).sum();
    assert_eq!(used, status.arena.unwrap().used_bytes);
    for area in shown["areas"].as_array().unwrap() {
        let runs = area["runs"].as_array().unwrap();
        let used: u64 = runs.iter().map(|run| run[2].as_u64().unwrap()).sum();
        assert_eq!(Some(used), area["used_bytes"].as_u64(), "{area}");
    }
    let called = || {
        runtime().block_on(load(&daemon));
        let shown = json(&daemon);
        let hot = shown["areas"].as_array().unwrap().iter().flat_map(|area| area["hot"].as_array().unwrap()).count();
        let points = shown["history"]["calls"].as_array().unwrap().iter().filter(|it| it.as_f64() > Some(0.0)).count();
        (hot > 0 && points > 0).then_some(())
    };
    runtime().block_on(until("calls in the map and in the history", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        std::thread::scope(|scope| scope.spawn(called).join().unwrap())
    }));
}

fn nothing_secret() {
    let daemon = Daemon::start();
    runtime().block_on(load(&daemon));
    for path in ["/status", "/status.json"] {
        let (_, body) = get(&daemon, path);
        assert!(!body.contains(SECRET) && !body.contains("default"), "{path}: {body}");
    }
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
    let arena =
        maps.lines().find(|line| line.contains(" r-xs ")).expect("an arena is mapped").split('-').next().unwrap();
    let start = u64::from_str_radix(arena, 16).unwrap();
    let body = get(&daemon, "/status.json").1;
    assert!(!body.contains(&arena[..6]) && !body.contains(&start.to_string()[..6]), "{body}");
}

/// What the page is once its script has run.
fn rendered(daemon: &Daemon, flags: &[&str]) -> String {
    let profile = tempfile::tempdir().unwrap();
    let out = Command::new(browser().unwrap())
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"])
        .args(["--enable-logging=stderr", "--log-level=0", "--disable-background-networking"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(flags)
        .arg(format!("http://{}/status", daemon.metrics))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    // What the policy refuses, and what fails in the script, a page tells its console.
    let complaints = said.lines().filter(|line| line.contains(":CONSOLE"));
    assert_eq!(complaints.collect::<Vec<_>>(), Vec::<&str>::new());
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn shown() {
    let daemon = Daemon::start();
    let status = runtime().block_on(load(&daemon));
    let page = rendered(&daemon, &["--dump-dom"]);
    let budget = status.budget.unwrap();
    for text in [
        format!("data-charged=\"{}\"", budget.charged_bytes),
        format!("data-limit=\"{}\"", budget.limit_bytes),
        ">ready<".to_owned(),
        format!("{} entries", status.entries.unwrap().resident),
        format!("<td class=\"name\">calls</td><td>{}</td>", status.counters.unwrap().calls),
        "<td class=\"name\">ill</td><td>1</td>".to_owned(),
    ] {
        assert!(page.contains(&text), "{text} is missing in\n{page}");
    }
}

/// Ends the load also where a picture fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// More entries than there is room for, some of which are called more often than others, until the end.
async fn busy(daemon: &Daemon, ended: &AtomicBool) {
    let client = daemon.client().await;
    let (mut random, mut round) = (Random(7), 0);
    while !ended.load(Ordering::Relaxed) {
        let key = format!("entry-{}", random.below(900));
        let target = Some(lookup_request::Target::Key(key.as_bytes().to_vec().into()));
        if client.cache().lookup(LookupRequest { target, ..LookupRequest::default() }).await.is_err() {
            let size = 64 << random.below(7);
            let code = [ADD, &vec![0x90; size]].concat();
            client.cache().install(flat(&key, &code)).await.unwrap();
        }
        round += 1;
        for entry in 0..random.below(12) {
            let key = format!("entry-{}", entry * entry);
            let target = Some(execute_request::Target::Key(key.into_bytes().into()));
            let arguments = call(0, "f", vec![Kind::I32(1), Kind::I32(2)], ResultType::I32);
            // It may have been evicted.
            drop(client.execution().execute(ExecuteRequest { target, ..arguments }).await);
        }
        if round % 50 == 0 {
            let bad = client.cache().install(flat("bad", UD2)).await.unwrap().into_inner();
            client.execution().execute(call(handle(&bad), "f", vec![], ResultType::Void)).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn pictures() {
    let daemon = Daemon::start_with(&["--budget-bytes", "2 MiB"]);
    let kept = std::env::var_os("STATUS_PAGE_PICTURES");
    let scratch = tempfile::tempdir().unwrap();
    let directory = kept.as_deref().map_or(scratch.path(), Path::new);
    let take = |name: &str| {
        for (theme, scheme) in [("dark", 0), ("light", 1)] {
            for (width, size) in [("wide", "1280,1150"), ("phone", "500,2300")] {
                // Each takes seconds: all of them only if somebody wants them.
                if kept.is_none() && (theme, width) != ("dark", "phone") {
                    continue;
                }
                let file = directory.join(format!("{name}-{theme}-{width}.png"));
                let flags = [
                    format!("--screenshot={}", file.display()),
                    format!("--window-size={size}"),
                    format!("--blink-settings=preferredColorScheme={scheme}"),
                    "--hide-scrollbars".to_owned(),
                ];
                rendered(&daemon, &flags.each_ref().map(String::as_str));
                let picture = std::fs::read(&file).unwrap();
                assert!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000, "{}", file.display());
            }
        }
    };
    take("empty");
    // Long enough for lines of some points, if pictures are to be kept.
    let before = if kept.is_some() { Duration::from_secs(60) } else { Duration::ZERO };
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| runtime().block_on(busy(&daemon, &ended)));
        let _end = End(&ended);
        std::thread::sleep(before);
        take("load");
    });
}
