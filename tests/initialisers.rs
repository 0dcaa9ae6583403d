//! What runs before the first call, through the built daemon: constructors in their order, once, under the guard of
//! calls; and functions that choose their implementation.

mod support;

use std::{path::Path, process::Command};

use codecached::{
    client::Client,
    proto::{
        Entry, EvictRequest, ExecuteRequest, LookupRequest, ResultType, Trap, TrapKind, TrapStage, evict_request,
        lookup_request, value::Kind,
    },
};
use support::{Daemon, call, compile, compile_with, elf, handle, returned, trapped};

async fn number(client: &Client, handle: u64, symbol: &str, arguments: Vec<Kind>) -> i32 {
    let answer = client.execute(call(handle, symbol, arguments, ResultType::I32)).await.unwrap();
    match returned(answer).0 {
        Some(Kind::I32(number)) => number,
        other => panic!("{other:?}"),
    }
}

async fn trap(client: &Client, request: ExecuteRequest) -> Trap {
    trapped(client.execute(request).await.unwrap())
}

async fn look(client: &Client, key: &str) -> Entry {
    let target = Some(lookup_request::Target::Key(key.as_bytes().to_vec().into()));
    let request = LookupRequest { target, view: 2, ..LookupRequest::default() };
    client.lookup(request).await.unwrap().entry.unwrap()
}

async fn install(client: &Client, key: &str, blob: Vec<u8>) -> Entry {
    client.install(elf(key, blob)).await.unwrap().entry.unwrap()
}

fn limited(handle: u64, symbol: &str, cpu_ms: i32) -> ExecuteRequest {
    let cpu_limit = Some(prost_types::Duration { seconds: 0, nanos: cpu_ms * 1_000_000 });
    ExecuteRequest { cpu_limit, ..call(handle, symbol, vec![], ResultType::I32) }
}

#[tokio::test]
async fn constructors_run_once_in_the_order_of_their_priority_and_a_trap_restores_what_they_left() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let entry = install(&client, "c", compile("initialisers.c")).await;
    assert_eq!(entry.initialisers_waiting, 3, "the destructor is none");
    for _ in 0..3 {
        assert_eq!(number(&client, entry.handle, "digits", vec![]).await, 123);
    }
    assert_eq!(look(&client, "c").await.initialisers_waiting, 0);
    let trap = trap(&client, call(entry.handle, "spoil_and_fault", vec![], ResultType::I32)).await;
    assert_eq!((trap.kind(), trap.stage()), (TrapKind::Segv, TrapStage::Call));
    assert_eq!(number(&client, entry.handle, "digits", vec![]).await, 123, "as constructed, and not run again");
}

#[tokio::test]
async fn an_entry_that_comes_back_after_it_was_evicted_is_constructed_again() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let blob = compile("initialisers.c");
    for _ in 0..3 {
        let entry = install(&client, "c", blob.clone()).await;
        assert_eq!(entry.initialisers_waiting, 3);
        assert_eq!(number(&client, entry.handle, "digits", vec![]).await, 123);
        let same = install(&client, "c", blob.clone()).await;
        assert_eq!((same.handle, same.initialisers_waiting), (entry.handle, 0));
        let target = Some(evict_request::Target::Key(b"c".to_vec().into()));
        client.evict(EvictRequest { target, ..EvictRequest::default() }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_calls_of_several_clients_at_once_find_it_constructed_exactly_once() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=2"]);
    let client = daemon.client().await;
    let entry = install(&client, "slow", compile_with("initialiser_alone.c", &["-O1", "-fPIC", "-DSLOW"])).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = daemon.client().await;
        calls.spawn(async move { number(&client, entry.handle, "get", vec![]).await });
    }
    assert_eq!(calls.join_all().await, [11; 8]);
}

#[tokio::test]
async fn a_constructor_that_faults_or_never_ends_is_a_trap_in_its_own_name_and_is_tried_again() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    for (flag, kind) in [("-DFAULT", TrapKind::Segv), ("-DSPIN", TrapKind::Timeout)] {
        let entry = install(&client, flag, compile_with("initialiser_alone.c", &["-O1", "-fPIC", flag])).await;
        for _ in 0..2 {
            let trap = trap(&client, limited(entry.handle, "get", 20)).await;
            assert_eq!((trap.kind(), trap.stage(), &*trap.symbol), (kind, TrapStage::Initialiser, "start"), "{flag}");
            assert_eq!(look(&client, flag).await.initialisers_waiting, 1);
        }
    }
    let entry = install(&client, "slow", compile_with("initialiser_alone.c", &["-O1", "-fPIC", "-DSLOW"])).await;
    let trap = trap(&client, limited(entry.handle, "get", 5)).await;
    assert_eq!((trap.kind(), trap.stage()), (TrapKind::Timeout, TrapStage::Initialiser));
    assert_eq!(number(&client, entry.handle, "get", vec![]).await, 11, "its data was restored in between");
}

#[tokio::test]
async fn a_constructor_may_borrow_memory_and_may_not_keep_it() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let borrow = install(&client, "borrow", compile_with("initialiser_alone.c", &["-O1", "-fPIC", "-DBORROW"])).await;
    assert_eq!(number(&client, borrow.handle, "get", vec![]).await, 11);
    let keep = install(&client, "keep", compile_with("initialiser_alone.c", &["-O1", "-fPIC", "-DKEEP"])).await;
    let trap = trap(&client, call(keep.handle, "get", vec![], ResultType::I32)).await;
    assert_eq!((trap.kind(), trap.stage()), (TrapKind::Abort, TrapStage::InitialiserKeptMemory));
    assert_eq!((&*trap.symbol, trap.offset_bytes), ("start", 0));
}

#[tokio::test]
async fn static_objects_of_cpp_are_constructed_and_never_destroyed() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    for flags in [&["-O0", "-fPIC"][..], &["-O2", "-fPIC"], &["-O2", "-fpie"]] {
        let key = flags.concat();
        let entry = install(&client, &key, compile_with("statics.cpp", flags)).await;
        assert_eq!(number(&client, entry.handle, "value", vec![]).await, 42 + 84, "{key}");
        assert_eq!(number(&client, entry.handle, "next", vec![]).await, 43);
        assert_eq!(number(&client, entry.handle, "next", vec![]).await, 44);
    }
}

#[tokio::test]
async fn a_function_that_chooses_is_called_as_chosen_and_has_one_address() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let entry = install(&client, "i", compile("chosen.c")).await;
    assert_eq!((entry.initialisers_waiting, entry.data_bytes), (2, 0), "slots are no writable data");
    let five = || vec![Kind::I32(5)];
    assert_eq!(number(&client, entry.handle, "chosen", five()).await, 10, "itself");
    assert_eq!(number(&client, entry.handle, "direct", five()).await, 1006);
    assert_eq!(number(&client, entry.handle, "through_table", five()).await, 1006);
    assert_eq!(number(&client, entry.handle, "equal", vec![]).await, 1);
    assert_eq!(look(&client, "i").await.initialisers_waiting, 0);
}

#[tokio::test]
async fn clones_for_several_processors_work_and_features_are_those_that_the_compilers_library_finds() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let native = native_features();
    for flags in [&["-O3", "-fPIC"][..], &["-O3", "-fpie"], &["-O3", "-fno-pic", "-mcmodel=large"], &["-O0", "-fPIC"]] {
        let key = flags.concat();
        let entry = install(&client, &key, compile_with("clones.c", flags)).await;
        assert_eq!((entry.initialisers_waiting, entry.data_bytes), (1, 0), "{key}");
        let values: Vec<u8> = (1..=1000_i32).flat_map(i32::to_le_bytes).collect();
        let arguments = vec![Kind::Bytes(values.into()), Kind::I32(1000)];
        assert_eq!(number(&client, entry.handle, "sum", arguments).await, 500_500, "{key}");
        let answer = client.execute(call(entry.handle, "features", vec![], ResultType::U64)).await.unwrap();
        assert_eq!(returned(answer).0, Some(Kind::U64(native)), "{key}");
    }
}

/// What a program finds that was linked with the compiler's own library.
fn native_features() -> u64 {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("features");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects/clones.c");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let status = Command::new(compiler).args(["-DPRINT", "-O1"]).arg(source).arg("-o").arg(&program).status().unwrap();
    assert!(status.success());
    String::from_utf8(Command::new(program).output().unwrap().stdout).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn the_command_line_tells_what_waits_and_what_failed() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codecachectl"));
        let output = command.args(["--server", &daemon.target]).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let file = directory.path().join("c.o");
    std::fs::write(&file, compile("initialisers.c")).unwrap();
    let text = run(&["install", "c", file.to_str().unwrap()]);
    assert!(text.contains("3 initialisers run before the first call"), "{text}");
    assert!(run(&["lookup", "c"]).contains("3 wait for the first call"));
    std::fs::write(&file, compile_with("initialiser_alone.c", &["-O1", "-fPIC", "-DFAULT"])).unwrap();
    let text = run(&["install", "f", file.to_str().unwrap()]);
    assert!(text.contains("1 initialiser runs before the first call"), "{text}");
    let text = run(&["call", "f", "get", "--result", "i32"]);
    assert!(text.contains("start+0x") && text.contains("running what must run before the first call"), "{text}");
}

#[tokio::test]
async fn a_constructor_under_the_exports_of_an_archive_runs_if_its_member_is_taken() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let members = [("c.o", compile("initialisers.c")), ("n.o", compile("counter.c"))];
    let archive = codecached::client::archive(members.iter().map(|(name, bytes)| (*name, &bytes[..])));
    for (export, waiting) in [("digits", 3), ("next", 0)] {
        let request = codecached::proto::InstallRequest {
            format: codecached::proto::BlobFormat::Archive.into(),
            exports: vec![export.to_owned()],
            ..elf(export, archive.clone())
        };
        let installed = client.install(request).await.unwrap();
        assert_eq!(installed.entry.as_ref().unwrap().initialisers_waiting, waiting, "{export}");
        let expected = if waiting > 0 { 123 } else { 101 };
        assert_eq!(number(&client, handle(&installed), export, vec![]).await, expected);
    }
}
