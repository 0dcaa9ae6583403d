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
    case(2, &["install", "j", &add], "not an ELF object");
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
