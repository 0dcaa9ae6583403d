//! Code for another processor is refused before it runs, through the built daemon.

mod support;

use std::{fs, process::Command};

use codecached::proto::InstallRequest;
use support::{ADD, Daemon, elf, flat};
use tonic::Code;

/// An object that notes these levels of x86-64 as needed, and all as used, as assemblers write it.
fn noted(bits: u32) -> Vec<u8> {
    let text = format!(
        ".text\n.globl f\n.type f,@function\nf: lea (%rdi,%rsi),%eax\nret\n.size f,.-f\n\
         .section .note.gnu.property,\"a\"\n.balign 8\n.long 4, 32, 5\n.asciz \"GNU\"\n\
         .long 0xc0008002, 4, {bits:#x}, 0\n.long 0xc0010002, 4, 0xffffffff, 0\n"
    );
    let directory = tempfile::tempdir().unwrap();
    let (file, object) = (directory.path().join("a.s"), directory.path().join("a.o"));
    fs::write(&file, text).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    assert!(Command::new(compiler).arg("-c").arg(&file).arg("-o").arg(&object).status().unwrap().success());
    fs::read(object).unwrap()
}

fn requiring(key: &str, names: &[&str]) -> InstallRequest {
    InstallRequest { required_cpu_features: names.iter().map(|it| (*it).to_owned()).collect(), ..flat(key, ADD) }
}

#[tokio::test]
async fn features_that_are_there_are_taken_and_what_is_missing_is_named() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let capabilities = client.capabilities().await.unwrap();
    let (features, levels) = (&capabilities.cpu_features, &capabilities.cpu_levels);
    assert!(features.contains(&"sse2".to_owned()) && features.is_sorted(), "{features:?}");
    assert_eq!(levels[0], "x86-64");
    let all: Vec<&str> = features.iter().chain(levels).map(String::as_str).collect();
    assert!(client.install(requiring("all", &all)).await.unwrap().created);
    let error = client.install(requiring("k", &["sse2", "avx99", "tbm9"])).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Some(Code::FailedPrecondition), "TARGET_MISMATCH"), "{error}");
    let text =
        "does not have what the install requires: avx99 (not a known name), tbm9 (not a known name); compile for";
    assert!(error.to_string().contains(text), "{error}");
    for (names, needle) in [(vec![""], "name 0 must have"), (vec!["sse2"; 257], "are 257, at most 256")] {
        let error = client.install(requiring("k", &names)).await.unwrap_err();
        assert_eq!(error.reason(), "INVALID_FIELD");
        assert!(error.to_string().contains(needle), "{error}");
    }
    assert_eq!(client.status().await.unwrap().counters.unwrap().installs, 1);
}

#[tokio::test]
async fn an_upload_for_another_processor_is_refused_before_its_bytes_are_asked_for() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let blob = [ADD, &vec![0x90; 5 << 20]].concat();
    let request = InstallRequest { blob: blob.into(), ..requiring("k", &["avx99"]) };
    let error = client.install(request).await.unwrap_err();
    assert_eq!(error.reason(), "TARGET_MISMATCH", "{error}");
    assert_eq!(client.status().await.unwrap().budget.unwrap().charged_bytes, 0);
}

#[tokio::test]
async fn an_object_is_taken_where_the_processor_has_the_levels_that_it_notes_as_needed() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let levels = client.capabilities().await.unwrap().cpu_levels;
    assert!(client.install(elf("none", noted(0))).await.unwrap().created, "what is only used is no reason");
    for (level, name) in ["x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4"].into_iter().enumerate() {
        let installed = client.install(elf(name, noted((1 << (level + 1)) - 1))).await;
        match installed {
            Ok(installed) => assert!(installed.created && levels.contains(&name.to_owned())),
            Err(error) => {
                assert!(error.to_string().contains("(lacks ") && !levels.contains(&name.to_owned()), "{error}")
            }
        }
    }
    let error = client.install(elf("future", noted(1 << 20 | 1))).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Some(Code::FailedPrecondition), "TARGET_MISMATCH"), "{error}");
    let text = "the object's property note says that it needs: a level of x86-64 above those known (bits 0x100000)";
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn the_client_shows_levels_and_names_what_is_missing() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let object = directory.path().join("future.o");
    fs::write(&object, noted(1 << 20)).unwrap();
    let case = |code: i32, arguments: &[&str], needle: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codecachectl"));
        let output = command.args(["--server", &daemon.target]).args(arguments).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(needle), "{arguments:?} should say {needle}: {text}");
    };
    let object = object.to_str().unwrap();
    case(0, &["capabilities"], "cpu levels");
    case(1, &["install", "k", object], "TARGET_MISMATCH: this processor does not have");
    case(1, &["install", "k", object, "--check"], "k: error: TARGET_MISMATCH: ");
    case(1, &["install", "k", object, "--require", "avx99", "--check"], "avx99 (not a known name)");
}
