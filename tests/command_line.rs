//! `codecachectl` as people and scripts use it: what it prints, and the codes it exits with.

mod support;

use std::{fs, process::Command};

use support::{ADD, Daemon};

/// Runs the client; its exit code, standard output and standard error.
fn ctl(target: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_codecachectl")).args(["--server", target]).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_file_is_installed_found_called_listed_and_evicted() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let object = directory.path().join("asks.o");
    fs::write(&object, support::compile_with("asks_much.c", &["-O2", "-fPIC", "-fno-builtin"])).unwrap();
    let run = |arguments: &[&str]| {
        let (code, out, err) = ctl(&daemon.target, arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
        out
    };
    run(&["install", "asks", object.to_str().unwrap()]);
    assert!(run(&["lookup", "asks", "--symbols"]).contains("crc32_bitwise"));
    let sum = ["call", "asks", "crc32_bitwise", "u32:0", "bytes:text:123456789", "u32:9", "--result", "u32"];
    assert!(run(&sum).contains("3421780262"));
    let json: serde_json::Value = serde_json::from_str(&run(&[&["--json"], &sum[..]].concat())).unwrap();
    assert!(json.to_string().contains("3421780262"), "{json}");
    let out = directory.path().join("out");
    let written = format!("0={}", out.display());
    run(&["call", "asks", "fill", "out:4", "u32:4", "u32:65", "--result", "void", "--output", &written]);
    assert_eq!(fs::read(&out).unwrap(), b"AAAA");
    assert!(run(&["list"]).contains("asks"));
    assert!(run(&["stats"]).contains("budget"));
    run(&["evict", "asks"]);
    run(&["bench", "mixed", "--seconds", "0.3", "--warmup", "0.1", "--keys", "10", "--plain"])
        .lines()
        .for_each(|line| assert_eq!(line.split(' ').count(), 3, "{line}"));
}

#[test]
fn what_goes_wrong_has_an_exit_code_and_a_text_of_its_own() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (add, trap, other) = (file("add", ADD), file("trap", &[0x0f, 0x0b]), file("other", &[0x90, 0xc3]));
    let case = |code: i32, arguments: &[&str], needle: &str| {
        let (got, out, err) = ctl(&daemon.target, arguments);
        assert_eq!(got, Some(code), "{arguments:?}: {out}{err}");
        assert!(format!("{out}{err}").contains(needle), "{arguments:?} should say {needle}: {out}{err}");
    };
    case(0, &["install", "k", &add, "--flat", "f=0"], "");
    case(1, &["install", "k", &other, "--flat", "f=0"], "KEY_OCCUPIED");
    case(2, &["install", "j", &add], "neither an ELF object nor an archive");
    case(1, &["install", "j", &file("broken", &support::compile("doubles.c")[..200])], "MALFORMED_OBJECT");
    case(2, &["install"], "Usage");
    case(3, &["lookup", "nothing"], "ENTRY_NOT_FOUND");
    case(3, &["call", "k", "g"], "SYMBOL_NOT_FOUND");
    case(0, &["install", "t", &trap, "--flat", "f=0"], "");
    case(4, &["call", "t", "f"], "ILL");
    let (code, _, err) = ctl("unix:/nonexistent/socket", &["stats"]);
    assert_eq!(code, Some(5), "{err}");
    assert!(err.contains("/nonexistent/socket"), "{err}");
}

#[test]
fn health_tells_by_its_exit_code_whether_requests_are_taken() {
    let mut daemon = Daemon::start_with(&["--set", "server.grace_ms=4000"]);
    let health = |arguments: &[&str]| ctl(&daemon.target, &[&["health"], arguments].concat());
    assert_eq!(health(&[]), (Some(0), "serving\n".to_owned(), String::new()));
    assert_eq!(health(&["codecache.v1.ExecutionService"]).0, Some(0));
    let (code, out, _) = health(&["--json"]);
    assert_eq!((code, serde_json::from_str(&out).unwrap()), (Some(0), serde_json::json!({ "serving": true })));
    let (code, _, err) = health(&["codecache.v1.Nothing"]);
    assert_eq!(code, Some(3), "{err}");
    // A call that runs keeps a daemon that drains from ending.
    let directory = tempfile::tempdir().unwrap();
    let spin = directory.path().join("spin");
    fs::write(&spin, [0xeb, 0xfe]).unwrap();
    assert_eq!(ctl(&daemon.target, &["install", "spin", spin.to_str().unwrap(), "--flat", "f=0"]).0, Some(0));
    let mut call = Command::new(env!("CARGO_BIN_EXE_codecachectl"))
        .args(["--server", &daemon.target, "--timeout", "60s", "call", "spin", "f", "--cpu-limit", "50s"])
        .spawn()
        .unwrap();
    eventually("the call to run", || ctl(&daemon.target, &["stats"]).1.contains("1 of"));
    daemon.terminate();
    eventually("the drain to be told", || health(&[]) == (Some(5), "not serving\n".to_owned(), String::new()));
    assert_eq!(daemon.wait(), Some(0));
    let (code, out, err) = ctl(&daemon.target, &["health"]);
    assert_eq!((code, out.as_str()), (Some(5), ""), "{err}");
    assert!(!call.wait().unwrap().success());
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let limit = std::time::Instant::now() + support::PATIENCE;
    while !done() {
        assert!(std::time::Instant::now() < limit, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_file_that_no_message_holds_is_installed_and_a_program_sees_no_progress() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("large");
    fs::write(&file, [ADD, &vec![0x90; 5 << 20]].concat()).unwrap();
    let (code, out, err) = ctl(&daemon.target, &["install", "large", file.to_str().unwrap(), "--flat", "f=0"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("created"), "{out}");
    let (_, out, err) = ctl(&daemon.target, &["call", "large", "f", "i32:2", "i32:3", "--result", "i32"]);
    assert!(out.contains('5'), "{out}{err}");
    let (_, out, _) = ctl(&daemon.target, &["--json", "capabilities"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["limits"]["stream_max_bytes"], 64 << 20);
}

#[test]
fn the_arenas_are_drawn_for_people_and_listed_for_programs() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("add");
    fs::write(&file, ADD).unwrap();
    let run = |arguments: &[&str]| {
        let (code, out, err) = ctl(&daemon.target, arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
        out
    };
    run(&["install", "add", file.to_str().unwrap(), "--flat", "f=0"]);
    let text = run(&["arenas", "--kind", "code", "--width", "60"]);
    assert!(text.contains("strategy") && text.contains("64 B used in 1 spans") && text.contains('█'), "{text}");
    assert!(text.lines().filter(|line| line.ends_with('|')).all(|line| line.chars().count() == 60), "{text}");
    assert!(!text.contains('\x1b') && !text.contains("data of arena"), "{text}");
    assert!(run(&["arenas", "--color", "always"]).contains("\x1b[32m█\x1b[0m"));
    let json: serde_json::Value = serde_json::from_str(&run(&["--json", "arenas", "--arena", "0"])).unwrap();
    let kinds: Vec<_> = json["areas"].as_array().unwrap().iter().map(|area| area["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["code", "rodata", "data"]);
    assert_eq!(json["totals"]["used_bytes"], 64);
    let (code, _, err) = ctl(&daemon.target, &["arenas", "--arena", "1000"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("counted from 0"), "{err}");
}

/// `codecached check` in a shell with a limit set before; its exit code and all that it wrote.
fn check(limit: &str) -> (Option<i32>, String) {
    let line = format!("{limit} exec \"$0\" check");
    let output = Command::new("sh").args(["-c", &line, env!("CARGO_BIN_EXE_codecached")]).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn check_says_what_works_and_the_remedy_for_what_does_not() {
    let (code, text) = check("");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.lines().any(|line| line.starts_with("ok  ")), "{text}");
    assert!(text.contains("arena.write_window = always (from the defaults)"), "{text}");
    // Less than the reservation, but enough to start.
    let (code, text) = check("ulimit -v 1000000;");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.lines().any(|line| line.starts_with("failed  ") && line.contains("ENOMEM")), "{text}");
    assert!(text.lines().any(|line| line.contains("remedy: ") && line.contains("RLIMIT_AS")), "{text}");
}

#[test]
fn a_batch_is_called_over_columns_and_its_trap_has_a_row() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    // int f(int a, int b) { return a + b; }, and one that faults for a = 0.
    let faults = [0x85, 0xff, 0x74, 0x03, 0x89, 0xf8, 0xc3, 0x0f, 0x0b];
    for (name, code) in [("add", ADD), ("faults", &faults)] {
        fs::write(path(name), code).unwrap();
        let (code, _, err) = ctl(&daemon.target, &["install", name, &path(name), "--flat", "f=0"]);
        assert_eq!(code, Some(0), "{err}");
    }
    fs::write(path("numbers"), "1 2\n3\n").unwrap();
    let column = format!("i32:@{}", path("numbers"));
    let sum = ["batch", "add", "f", &column, "i32:-10", "--result", "i32"];
    let (code, out, err) = ctl(&daemon.target, &sum);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("-9\n-8\n-7\n") && out.contains("3 returned"), "{out}");
    let (code, _, err) = ctl(&daemon.target, &[&sum[..], &["--output", &path("out")]].concat());
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(fs::read(path("out")).unwrap(), [-9_i32, -8, -7].map(i32::to_le_bytes).concat());
    let raw = format!("i32:raw@{}", path("out"));
    let (code, out, _) = ctl(&daemon.target, &["--json", "batch", "add", "f", &raw, "i32:9", "--result", "i32"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &json["results"], &json["rows"]),
        (Some(0), &serde_json::json!([0, 1, 2]), &serde_json::json!(3))
    );
    let (code, out, _) = ctl(&daemon.target, &["batch", "faults", "f", "i32:5,6,0,7", "--result", "i32"]);
    assert_eq!(code, Some(4), "{out}");
    assert!(out.contains("2 trapped") && out.contains("ILL") && out.contains("f+0x7"), "{out}");
    let (code, out, _) =
        ctl(&daemon.target, &["batch", "add", "f", "i32:1", "i32:2", "--rows", "4", "--result", "i32"]);
    assert_eq!((code, out.matches("3\n").count()), (Some(0), 4), "{out}");
    for workload in ["execute-batch", "execute-stream"] {
        let few = ["--seconds", "0.3", "--warmup", "0.1", "--keys", "3", "--in-flight", "2", "--plain"];
        let (code, out, err) = ctl(&daemon.target, &[&["bench", workload][..], &few].concat());
        assert_eq!(code, Some(0), "{out}{err}");
        assert!(out.lines().all(|line| line.split(' ').count() == 3) && out.contains("/s\n"), "{out}");
    }
}

#[test]
fn what_runs_is_shown_and_stopped() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let spin = directory.path().join("spin");
    fs::write(&spin, [0xeb, 0xfe]).unwrap();
    let run = |arguments: &[&str]| ctl(&daemon.target, arguments);
    assert_eq!(run(&["install", "spin", spin.to_str().unwrap(), "--flat", "f=0"]).0, Some(0));
    let calling = std::thread::spawn({
        let target = daemon.target.clone();
        move || ctl(&target, &["call", "spin", "f", "--cpu-limit", "50s", "--timeout", "100s"])
    });
    let until = std::time::Instant::now() + support::PATIENCE;
    let id = loop {
        let json: serde_json::Value = serde_json::from_str(&run(&["--json", "executions"]).1).unwrap();
        if let Some(id) = json["executions"][0]["execution_id"].as_u64() {
            break id.to_string();
        }
        assert!(std::time::Instant::now() < until, "the call is never shown");
    };
    let (code, out, _) = run(&["executions"]);
    assert!(code == Some(0) && out.contains("spin") && out.contains("running"), "{out}");
    let (code, _, err) = run(&["cancel", &id, "--namespace", "other"]);
    assert!(code == Some(3) && err.contains("EXECUTION_NOT_FOUND"), "{err}");
    assert_eq!(run(&["cancel", &id]).0, Some(0));
    let (code, out, err) = calling.join().unwrap();
    assert!(code == Some(4) && out.contains("CANCELLED"), "{out}{err}");
    assert!(run(&["executions"]).1.contains("0 executions"));
}
