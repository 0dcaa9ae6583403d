//! Entries that are linked against others, through the built daemon.

mod support;

use std::{fs, process::Command, time::Duration};

use codecached::{
    client::{Client, ClientError},
    proto::{
        Dependency, DisassembleRequest, Entry, EntryView, EvictRequest, EvictResponse, EvictState, InstallRequest,
        ListRequest, LookupRequest, ResultType, TrapKind, disassemble_request, evict_request, lookup_request,
        value::Kind,
    },
};
use support::{ADD, Daemon, call, elf, flat, handle, returned, trapped};
use tonic::Code;

fn object(flags: &[&str]) -> Vec<u8> {
    support::compile_with("linked.c", &[&["-O2", "-fPIC"], flags].concat())
}

fn base() -> InstallRequest {
    elf("base", object(&["-DBASE", "-DFACTOR=1"]))
}

fn middle() -> InstallRequest {
    needs(elf("middle", object(&["-DMIDDLE"])), &["base"])
}

fn top() -> InstallRequest {
    needs(elf("top", object(&["-DTOP"])), &["middle"])
}

fn needs(request: InstallRequest, keys: &[&str]) -> InstallRequest {
    let dependency = |key: &&str| Dependency { namespace: String::new(), key: key.as_bytes().to_vec().into() };
    InstallRequest { dependencies: keys.iter().map(dependency).collect(), ..request }
}

async fn chain(client: &Client) -> [Entry; 3] {
    let mut entries = Vec::new();
    for request in [base(), middle(), top()] {
        entries.push(client.install(request).await.unwrap().entry.unwrap());
    }
    entries.try_into().unwrap()
}

async fn number(client: &Client, handle: u64, symbol: &str, arguments: &[i32]) -> i32 {
    let arguments = arguments.iter().map(|it| Kind::I32(*it)).collect();
    let answer = client.execute(call(handle, symbol, arguments, ResultType::I32)).await.unwrap();
    match returned(answer).0 {
        Some(Kind::I32(number)) => number,
        other => panic!("{symbol} returned {other:?}"),
    }
}

async fn find(client: &Client, key: &str) -> Result<Entry, ClientError> {
    let target = Some(lookup_request::Target::Key(key.as_bytes().to_vec().into()));
    let request = LookupRequest { target, peek: true, view: EntryView::Full.into(), ..LookupRequest::default() };
    Ok(client.lookup(request).await?.entry.unwrap())
}

async fn evict(client: &Client, key: &str) -> EvictResponse {
    let target = Some(evict_request::Target::Key(key.as_bytes().to_vec().into()));
    client.evict(EvictRequest { target, ..EvictRequest::default() }).await.unwrap()
}

fn keys(entry: &Entry) -> Vec<&[u8]> {
    entry.dependencies.iter().map(|it| &it.key[..]).collect()
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(answer: Result<T, ClientError>, code: Code, reason: &str, words: &str) {
    let error = answer.expect_err("should have been refused");
    assert_eq!((error.code(), error.reason()), (Some(code), reason), "{error}");
    assert!(error.to_string().contains(words), "no {words:?} in {error}");
}

#[tokio::test]
async fn functions_and_data_of_dependencies_are_used_through_a_chain_of_three() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let [base, middle, top] = chain(&client).await;
    assert_eq!(number(&client, top.handle, "function_of_sum", &[3]).await, 11);
    assert_eq!(number(&client, middle.handle, "sum", &[3, 4]).await, 25);
    assert_eq!(number(&client, middle.handle, "entry_of_table", &[2]).await, 30);
    assert_eq!(number(&client, middle.handle, "ask", &[2]).await, -1, "a weak symbol that nobody has");
    let found = [find(&client, "base").await, find(&client, "middle").await, find(&client, "top").await];
    let found = found.map(Result::unwrap);
    assert_eq!((keys(&found[0]), keys(&found[1]), keys(&found[2])), (vec![], vec![&b"base"[..]], vec![&b"middle"[..]]));
    assert_eq!(found[1].dependencies[0].generation, base.generation);
    assert_eq!(found[1].dependencies[0].handle, base.handle);
    assert_eq!(found.map(|it| (it.dependants, it.pins)), [(2, 0), (1, 0), (0, 0)]);
    let listed = client.list(ListRequest::default()).await.unwrap().entries;
    assert_eq!(listed.iter().map(|it| it.dependants).collect::<Vec<_>>(), [2, 1, 0]);
}

#[tokio::test]
async fn code_that_is_not_made_to_be_moved_reaches_data_of_an_entry_near_by() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    client.install(base()).await.unwrap();
    let blob = object(&["-DMIDDLE", "-fno-pic", "-fpie", "-O0"]);
    let middle = handle(&client.install(needs(elf("middle", blob), &["base"])).await.unwrap());
    assert_eq!(number(&client, middle, "entry_of_table", &[1]).await, 20);
    assert_eq!(number(&client, middle, "sum", &[1, 2]).await, 5);
}

#[tokio::test]
async fn of_two_that_have_a_name_the_first_is_taken_and_a_weak_one_is_found() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    client.install(base()).await.unwrap();
    client.install(elf("other", object(&["-DOTHER"]))).await.unwrap();
    let blob = object(&["-DMIDDLE"]);
    let first = handle(&client.install(needs(elf("a", blob.clone()), &["base", "other"])).await.unwrap());
    let second = handle(&client.install(needs(elf("b", blob.clone()), &["other", "base"])).await.unwrap());
    assert_eq!(number(&client, first, "sum", &[3, 4]).await, 25);
    assert_eq!(number(&client, second, "sum", &[3, 4]).await, -7);
    assert_eq!(number(&client, second, "ask", &[3]).await, 1003);
    let other_order = needs(elf("a", blob), &["other", "base"]);
    assert_refused(client.install(other_order).await, Code::AlreadyExists, "KEY_OCCUPIED", "");
}

#[tokio::test]
async fn under_pressure_a_dependency_goes_only_after_the_last_that_needs_it() {
    let daemon = Daemon::start_with(&["--budget-bytes", "1 MiB"]);
    let client = daemon.client().await;
    let [_, _, top] = chain(&client).await;
    let fill = async |number: usize| {
        let mut blob = vec![0x90; 60_000];
        blob[..4].copy_from_slice(ADD);
        let request = InstallRequest { key: format!("fill {number}").into_bytes().into(), ..flat("", &blob) };
        client.install(request).await.unwrap().evicted_entries
    };
    for number in 0..100 {
        fill(number).await;
        assert_eq!(self::number(&client, top.handle, "function_of_sum", &[3]).await, 11, "in use after {number}");
    }
    let mut there = vec![3];
    for number in 100..200 {
        fill(number).await;
        let found = [find(&client, "base").await, find(&client, "middle").await, find(&client, "top").await];
        match found.each_ref().map(Result::is_ok) {
            [true, true, true] => there.push(3),
            [true, true, false] => there.push(2),
            [true, false, false] => there.push(1),
            [false, false, false] => there.push(0),
            other => panic!("a dependency went before who needs it: {other:?}"),
        }
    }
    assert!(there.is_sorted_by(|a, b| a >= b) && there.last() == Some(&0), "{there:?}");
    assert_eq!(client.status().await.unwrap().entries.unwrap().lingering, 0);
}

#[tokio::test]
async fn an_evicted_dependency_lingers_is_found_no_more_and_goes_with_the_last_that_needs_it() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let [base, middle, top] = chain(&client).await;
    let evicted = evict(&client, "base").await;
    assert_eq!(
        (evicted.state(), evicted.dependants, evicted.charged_bytes),
        (EvictState::Lingering, 2, base.charged_bytes)
    );
    assert_refused(find(&client, "base").await, Code::NotFound, "ENTRY_NOT_FOUND", "base");
    let stale = client.execute(call(base.handle, "square", vec![Kind::I32(2)], ResultType::I32)).await;
    assert_refused(stale, Code::NotFound, "STALE_HANDLE", "");
    assert_eq!(number(&client, top.handle, "function_of_sum", &[3]).await, 11, "what needs it runs on");
    let status = client.status().await.unwrap();
    let (budget, entries) = (status.budget.unwrap(), status.entries.unwrap());
    assert_eq!((entries.resident, entries.lingering, budget.lingering_bytes), (2, 1, base.charged_bytes));
    assert_eq!(budget.charged_bytes, base.charged_bytes + middle.charged_bytes + top.charged_bytes);

    assert_eq!(evict(&client, "middle").await.dependants, 1);
    assert_eq!(evict(&client, "top").await.state(), EvictState::Freed);
    let status = client.status().await.unwrap();
    assert_eq!(status.entries.unwrap(), Default::default());
    assert_eq!(status.budget.unwrap().charged_bytes, 0);
    assert_eq!(status.arena.unwrap().used_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_the_memory_of_a_dependency_is_answered_when_the_last_that_needs_it_goes() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    client.install(base()).await.unwrap();
    client.install(middle()).await.unwrap();
    let waiting = tokio::spawn({
        let client = client.clone();
        let target = Some(evict_request::Target::Key(b"base".to_vec().into()));
        async move { client.evict(EvictRequest { target, wait: true, ..EvictRequest::default() }).await.unwrap() }
    });
    while find(&client, "base").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished(), "its memory is needed");
    assert_eq!(evict(&client, "middle").await.state(), EvictState::Freed);
    assert_eq!(waiting.await.unwrap().state(), EvictState::Freed);
}

#[tokio::test]
async fn a_replaced_dependency_serves_those_linked_against_it_until_they_are_installed_again() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    client.install(base()).await.unwrap();
    let before = client.install(middle()).await.unwrap().entry.unwrap();
    let again = client.install(middle()).await.unwrap();
    assert!(!again.created && handle(&again) == before.handle, "the same against the same");

    let other = InstallRequest { replace: true, ..elf("base", object(&["-DBASE", "-DFACTOR=10"])) };
    let other = client.install(other).await.unwrap().entry.unwrap();
    assert_eq!(number(&client, before.handle, "sum", &[3, 4]).await, 25);
    assert_eq!(client.status().await.unwrap().entries.unwrap().lingering, 1);
    let found = find(&client, "middle").await.unwrap();
    assert_eq!(found.dependencies, before.dependencies);
    assert_ne!(found.dependencies[0].generation, other.generation);

    assert_refused(client.install(middle()).await, Code::AlreadyExists, "KEY_OCCUPIED", "replace");
    let renewed = client.install(InstallRequest { replace: true, ..middle() }).await.unwrap();
    assert!(renewed.replaced);
    assert_eq!(number(&client, handle(&renewed), "sum", &[3, 4]).await, 250);
    assert_eq!(client.status().await.unwrap().entries.unwrap().lingering, 0, "the old one went with its last");
}

#[tokio::test]
async fn circles_absent_entries_other_namespaces_and_what_needs_no_symbols_are_refused() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    chain(&client).await;
    let install = async |request: InstallRequest| client.install(request).await;
    let replacing = |keys: &[&str]| InstallRequest { replace: true, ..needs(base(), keys) };
    let precondition = Code::FailedPrecondition;
    assert_refused(install(replacing(&["base"])).await, precondition, "DEPENDENCY_CYCLE", "cannot need itself");
    assert_refused(install(replacing(&["top"])).await, precondition, "DEPENDENCY_CYCLE", "default/top is linked");
    evict(&client, "base").await;
    assert_refused(install(replacing(&["top"])).await, precondition, "DEPENDENCY_CYCLE", "default/base would need");
    assert_refused(install(middle()).await, Code::NotFound, "ENTRY_NOT_FOUND", "no entry under default/base");

    let invalid = async |request, words: &str| {
        assert_refused(install(request).await, Code::InvalidArgument, "INVALID_FIELD", words);
    };
    let mut foreign = needs(base(), &["top"]);
    foreign.dependencies[0].namespace = "other".to_owned();
    invalid(foreign, "isolated").await;
    invalid(needs(elf("x", object(&["-DTOP"])), &["middle", "middle"]), "twice").await;
    invalid(needs(base(), &[""]), "number 0").await;
    invalid(needs(base(), &["middle"; 17]), "17 are named").await;
    invalid(needs(flat("flat", ADD), &["middle"]), "flat code").await;
    let unknown = needs(elf("x", object(&["-DTOP"])), &["top"]);
    assert_refused(install(unknown).await, Code::InvalidArgument, "UNRESOLVED_SYMBOL", "sum");

    let mut own = needs(elf("y", object(&["-DTOP"])), &["middle"]);
    own.dependencies[0].namespace = "default".to_owned();
    install(own).await.unwrap();
    let elsewhere = InstallRequest { namespace: "other".to_owned(), ..needs(base(), &["middle"]) };
    assert_refused(install(elsewhere).await, Code::NotFound, "ENTRY_NOT_FOUND", "other/middle");
}

#[tokio::test]
async fn a_trap_in_a_dependency_names_its_function_and_its_key() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let [_, _, top] = chain(&client).await;
    let trap = async || trapped(client.execute(call(top.handle, "far_trap", vec![], ResultType::I32)).await.unwrap());
    let first = trap().await;
    assert_eq!((first.kind(), first.outside, first.fault_address), (TrapKind::Segv, false, Some(16)));
    assert_eq!((&first.symbol[..], &first.dependency_key[..]), ("read_at", &b"base"[..]));
    assert!(first.offset_bytes < 32 && first.instruction.contains("dword ptr [rdi]"), "{first:?}");
    evict(&client, "base").await;
    assert_eq!(trap().await, first, "though it only lingers");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_a_dependency_is_shared_serialised_and_restored_with_that_of_who_needs_it() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=4"]);
    let client = daemon.client().await;
    let counter = handle(&client.install(elf("counter", object(&["-DCOUNTER"]))).await.unwrap());
    let counts = object(&["-DCOUNTS"]);
    let one = handle(&client.install(needs(elf("one", counts.clone()), &["counter"])).await.unwrap());
    let two = handle(&client.install(needs(elf("two", counts), &["counter"])).await.unwrap());
    assert_eq!(number(&client, one, "twice", &[]).await, 102);
    assert_eq!(number(&client, two, "twice", &[]).await, 104);
    assert_eq!(number(&client, counter, "next", &[]).await, 105);

    let calls: Vec<_> = (0..30)
        .map(|number| {
            let (handle, symbol) = [(one, "slow_through"), (two, "slow_through"), (counter, "slow_next")][number % 3];
            let client = client.clone();
            let slow = call(handle, symbol, vec![Kind::U32(200_000)], ResultType::I32);
            tokio::spawn(async move { returned(client.execute(slow).await.unwrap()).0 })
        })
        .collect();
    let mut seen = Vec::new();
    for one in calls {
        let Some(Kind::I32(count)) = one.await.unwrap() else { panic!() };
        seen.push(count);
    }
    seen.sort_unstable();
    assert_eq!(seen, (106..136).collect::<Vec<_>>(), "two calls overlapped");

    assert_eq!(number(&client, two, "own_value", &[]).await, 8, "data of its own");
    let spoil = client.execute(call(one, "spoil_and_trap", vec![], ResultType::I32)).await.unwrap();
    assert_eq!(trapped(spoil).kind(), TrapKind::Ill);
    assert_eq!(number(&client, one, "own_value", &[]).await, 7, "as it was installed");
    assert_eq!(number(&client, counter, "next", &[]).await, 101, "the dependency's too");
    assert_eq!(number(&client, two, "own_value", &[]).await, 8, "the other's was not in reach");
}

#[tokio::test(flavor = "multi_thread")]
async fn constructors_of_dependencies_run_once_before_those_of_who_needs_them() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    client.install(elf("digits", support::compile("initialisers.c"))).await.unwrap();
    let blob = support::compile("needs_digits.c");
    let needs_it = |key| needs(elf(key, blob.clone()), &["digits"]);
    let first = handle(&client.install(needs_it("first")).await.unwrap());
    let second = handle(&client.install(needs_it("second")).await.unwrap());
    let calls = [first, second, first, second].map(|handle| {
        let client = client.clone();
        tokio::spawn(async move { number(&client, handle, "seen_at_start", &[]).await })
    });
    for call in calls {
        assert_eq!(call.await.unwrap(), 123, "constructed before it was asked");
    }
    assert_eq!(find(&client, "digits").await.unwrap().initialisers_waiting, 0);
    // A trap restores the data of both as it was constructed.
    let base = find(&client, "digits").await.unwrap().handle;
    trapped(client.execute(call(base, "spoil_and_fault", vec![], ResultType::I32)).await.unwrap());
    assert_eq!(number(&client, second, "digits_now", &[]).await, 123);
    assert_eq!(number(&client, base, "digits", &[]).await, 123);
}

#[tokio::test]
async fn calls_of_functions_in_other_entries_are_named_in_a_listing() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    chain(&client).await;
    let target = Some(disassemble_request::Target::Key(b"middle".to_vec().into()));
    let request = DisassembleRequest { target, symbol: "sum".to_owned(), ..DisassembleRequest::default() };
    let lines = client.disassemble(request).await.unwrap().instructions;
    assert!(lines.iter().any(|it| it.text.contains("call square")), "{lines:#?}");
}

#[test]
fn the_client_installs_against_keys_and_shows_who_needs_whom() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, blob: Vec<u8>| {
        let path = directory.path().join(name);
        fs::write(&path, blob).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let run = |arguments: &[&str]| {
        let ctl = env!("CARGO_BIN_EXE_codecachectl");
        let output = Command::new(ctl).args(["--server", &daemon.target]).args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(output.stderr));
        text(output.stdout)
    };
    run(&["install", "base", &file("base.o", object(&["-DBASE", "-DFACTOR=1"]))]);
    run(&["install", "other", &file("other.o", object(&["-DOTHER"]))]);
    run(&["install", "middle", &file("middle.o", object(&["-DMIDDLE"])), "--needs", "base", "--needs", "other"]);
    assert!(run(&["call", "middle", "sum", "i32:3", "i32:4", "--result", "i32"]).contains("25"));
    assert!(run(&["lookup", "middle"]).lines().any(|it| it.starts_with("needs ") && it.ends_with("base other")));
    assert!(run(&["list"]).contains("base other"));
    let json: serde_json::Value = serde_json::from_str(&run(&["--json", "lookup", "base"])).unwrap();
    assert_eq!((&json["dependants"], &json["dependencies"]), (&1.into(), &serde_json::json!([])));
    let trap = Command::new(env!("CARGO_BIN_EXE_codecachectl"))
        .args(["--server", &daemon.target, "call", "middle", "read_nothing", "--result", "i32"])
        .output()
        .unwrap();
    assert!(String::from_utf8(trap.stdout).unwrap().contains("read_at+0x0 of base"));
    assert!(run(&["evict", "base"]).contains("linked against it"));
}
