//! Objects with absolute addresses in 32 bits, which lie in the arena below 2 GiB, through the built daemon.

mod support;

use std::{fs, process::Command};

use codecached::{
    client::{Client, ClientError},
    proto::{
        ArenaArea, Dependency, EvictRequest, ExecuteRequest, GetArenasRequest, InstallRequest, LookupRequest,
        ResultType, TrapKind, evict_request, lookup_request, value::Kind,
    },
};
use support::{ADD, Daemon, call, elf, flat, handle, returned, trapped, until};
use tonic::Code;

const LOW: [&str; 2] = ["--set", "arena.low_bytes=2 MiB"];
const LOW_END: u64 = 1 << 31;
const ABSOLUTE: [&str; 4] = ["-O2", "-fno-pic", "-fno-pie", "-mcmodel=small"];

fn object(flags: &[&str]) -> Vec<u8> {
    support::compile_with("low.c", &[&ABSOLUTE[..], flags].concat())
}

/// One more than half of the read-only memory below 2 GiB fits once.
fn half(key: &str) -> InstallRequest {
    elf(key, object(&["-DBYTES=1100000"]))
}

fn needs(request: InstallRequest, keys: &[&str]) -> InstallRequest {
    let dependency = |key: &&str| Dependency { namespace: String::new(), key: key.as_bytes().to_vec().into() };
    InstallRequest { dependencies: keys.iter().map(dependency).collect(), ..request }
}

async fn ask(client: &Client, entry: u64, symbol: &str, arguments: &[i32]) -> i32 {
    let arguments = arguments.iter().map(|it| Kind::I32(*it)).collect();
    let answer = client.execute(call(entry, symbol, arguments, ResultType::I32)).await.unwrap();
    match returned(answer).0 {
        Some(Kind::I32(number)) => number,
        other => panic!("{symbol} returned {other:?}"),
    }
}

async fn ask_u64(client: &Client, entry: u64, symbol: &str, arguments: Vec<Kind>) -> (u64, Vec<Vec<u8>>) {
    let answer = client.execute(call(entry, symbol, arguments, ResultType::U64)).await.unwrap();
    match returned(answer) {
        (Some(Kind::U64(number)), buffers) => (number, buffers),
        other => panic!("{symbol} returned {other:?}"),
    }
}

async fn is_there(client: &Client, key: &str) -> bool {
    let target = Some(lookup_request::Target::Key(key.as_bytes().to_vec().into()));
    client.lookup(LookupRequest { target, peek: true, ..LookupRequest::default() }).await.is_ok()
}

async fn metrics(daemon: &Daemon) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(&daemon.metrics).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

async fn evict(client: &Client, key: &str) {
    let target = Some(evict_request::Target::Key(key.as_bytes().to_vec().into()));
    client.evict(EvictRequest { target, ..EvictRequest::default() }).await.unwrap();
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(answer: Result<T, ClientError>, code: Code, reason: &str, words: &[&str]) {
    let error = answer.expect_err("should have been refused");
    assert_eq!((error.code(), error.reason()), (Some(code), reason), "{error}");
    assert!(words.iter().all(|it| error.to_string().contains(it)), "not all of {words:?} in {error}");
}

#[tokio::test]
async fn tables_switches_strings_and_variables_are_addressed_in_32_bits_and_give_what_they_must() {
    let daemon = Daemon::start_with(&LOW);
    let client = daemon.client().await;
    for level in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
        let entry = handle(&client.install(elf(level, object(&[level]))).await.unwrap());
        for number in 0..16 {
            assert_eq!(ask(&client, entry, "square", &[number]).await, number * number, "{level}");
        }
        for (at, length) in [4, 3, 3, 5].into_iter().enumerate() {
            assert_eq!(ask_u64(&client, entry, "name_length", vec![Kind::U32(at as u32)]).await.0, length, "{level}");
        }
        let text = b"hello from below 2 GiB";
        let out = vec![Kind::OutBytes(text.len() as u64), Kind::U64(text.len() as u64)];
        assert_eq!(ask_u64(&client, entry, "greeting", out).await, (text.len() as u64, vec![text.to_vec()]));
        let results: [i32; 11] = [17, 7, 60, 4, 13, 9, 2, 12 << 5, !12, -1, -1];
        for (op, result) in (0..).zip(results) {
            assert_eq!(ask(&client, entry, "opcode", &[op, 12, 5]).await, result, "{level} {op}");
        }
        assert_eq!([ask(&client, entry, "bump", &[2]).await, ask(&client, entry, "bump", &[-1]).await], [7, 6]);
        assert_eq!([ask(&client, entry, "mark", &[999]).await, ask(&client, entry, "mark", &[999]).await], [1, 2]);
        assert_eq!(ask(&client, entry, "is_one_function", &[]).await, 1, "{level}: by 32 bits and by 64");
        assert!(ask_u64(&client, entry, "place", vec![]).await.0 < LOW_END);
        let trap = trapped(client.execute(call(entry, "process", vec![], ResultType::U64)).await.unwrap());
        assert_eq!((trap.kind(), &*trap.symbol), (TrapKind::Syscall, "process"), "{level}: code there is code");
        let trap = trapped(client.execute(call(entry, "fault", vec![Kind::U32(8)], ResultType::I32)).await.unwrap());
        assert_eq!((trap.kind(), &*trap.symbol, trap.fault_address), (TrapKind::Segv, "fault", Some((1 << 32) + 8)));
        assert_eq!(ask(&client, entry, "bump", &[0]).await, 5, "{level}: restored after the trap");
    }
}

#[tokio::test]
async fn without_the_arena_they_are_refused_with_the_key_that_helps_and_nobody_goes_for_them() {
    let daemon = Daemon::start_with(&["--budget-bytes", "1 MiB"]);
    let client = daemon.client().await;
    // Hardly anything more fits beside it.
    client.install(flat("there", &[ADD, &vec![0x90; (1 << 20) - (16 << 10)]].concat())).await.unwrap();
    let answer = client.install(elf("low", object(&["-DBYTES=100000"]))).await;
    let words = ["R_X86_64_32", " in section ", " at offset ", "compile with -fPIC", "arena.low_bytes"];
    assert_refused(answer, Code::InvalidArgument, "UNSUPPORTED_RELOCATION", &words);
    assert!(is_there(&client, "there").await);
    let validated = InstallRequest { validate_only: true, ..elf("low", object(&[])) };
    let found = client.install(validated).await.unwrap();
    assert!(found.diagnostics_total > 5, "each place is told: {found:?}");
    assert!(found.diagnostics.iter().all(|it| it.message.contains("arena.low_bytes")), "{found:?}");
    assert_eq!(client.capabilities().await.unwrap().limits.unwrap().low_bytes, 0);
    assert_eq!(client.status().await.unwrap().arena.unwrap().low, None);
}

#[tokio::test]
async fn validation_tells_whether_it_would_fit() {
    let daemon = Daemon::start_with(&LOW);
    let client = daemon.client().await;
    let validate = async |blob: Vec<u8>| {
        let answer = client.install(InstallRequest { validate_only: true, ..elf("low", blob) }).await.unwrap();
        let told: Vec<_> = answer.diagnostics.into_iter().map(|it| (it.reason, it.message)).collect();
        assert_eq!(answer.diagnostics_total, told.len() as u64);
        told
    };
    assert_eq!(validate(object(&[])).await, []);
    let large = object(&["-DBYTES=2200000"]);
    let told = validate(large.clone()).await;
    assert_eq!((told.len(), &*told[0].0), (1, "BUDGET_EXHAUSTED"), "{told:?}");
    assert!(told[0].1.contains("below 2 GiB at once, of at most 2097152"), "{told:?}");
    let refused = client.install(elf("low", large)).await;
    assert_refused(refused, Code::ResourceExhausted, "BUDGET_EXHAUSTED", &[&told[0].1]);
    assert_eq!(client.status().await.unwrap().budget.unwrap().charged_bytes, 0);
}

#[tokio::test]
async fn a_field_that_zeroes_follow_and_one_that_is_sign_extended_take_their_own_ranges() {
    let daemon = Daemon::start_with(&LOW);
    let client = daemon.client().await;
    for (key, operand, name, fits) in [
        ("a", "$data + 0x7fffffff", "R_X86_64_32", true),
        ("b", "$data - 0x80000000", "R_X86_64_32", false),
        ("c", "data + 0x7fffffff(,%rax)", "R_X86_64_32S", false),
        ("d", "data - 0x80000000(,%rax)", "R_X86_64_32S", true),
    ] {
        let blob = assembled(&format!(".globl f\nf: mov {operand}, %eax\nret\n.data\ndata: .long 1\n"));
        let validated = InstallRequest { validate_only: true, ..elf(key, blob.clone()) };
        let found = client.install(validated).await.unwrap().diagnostics;
        let installed = client.install(elf(key, blob)).await;
        if fits {
            assert!(found.is_empty() && installed.is_ok(), "{operand}: {found:?} {installed:?}");
        } else {
            let words = [&*format!("relocation {name} overflows: "), "does not fit in section .text at offset"];
            assert!(found.len() == 1 && words.iter().all(|it| found[0].message.contains(it)), "{found:?}");
            assert_refused(installed, Code::InvalidArgument, "UNSUPPORTED_RELOCATION", &words);
        }
    }
}

fn assembled(text: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (source, object) = (directory.path().join("low.S"), directory.path().join("low.o"));
    fs::write(&source, text).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    assert!(Command::new(compiler).arg("-c").arg(source).arg("-o").arg(&object).status().unwrap().success());
    fs::read(object).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_arena_gives_up_what_lies_there_and_nothing_else_and_then_says_so() {
    let daemon = Daemon::start_with(&LOW);
    let client = daemon.client().await;
    client.install(flat("oldest", ADD)).await.unwrap();
    let first = handle(&client.install(half("first")).await.unwrap());
    let answer = client.install(half("second")).await.unwrap();
    assert_eq!((answer.evicted_entries, is_there(&client, "first").await), (1, false));
    assert!(is_there(&client, "oldest").await, "its going would make no room there");
    let second = handle(&answer);
    assert_ne!(first, second);

    let spin = ExecuteRequest {
        cpu_limit: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..call(second, "spin", vec![], ResultType::I32)
    };
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.execute(spin).await }
    });
    until("the call to run", async || (client.status().await.unwrap().executors.unwrap().running == 1).then_some(()))
        .await;
    let words = ["no contiguous room", "rodata below 2 GiB", "largest free run"];
    assert_refused(client.install(half("third")).await, Code::ResourceExhausted, "ARENA_FRAGMENTED", &words);
    // Evicted, it runs on, and holds its place.
    evict(&client, "second").await;
    assert_refused(client.install(half("third")).await, Code::ResourceExhausted, "ARENA_FRAGMENTED", &words);
    client.install(flat("other", ADD)).await.unwrap();
    running.abort();
    let third = until("the call to be stopped", async || client.install(half("third")).await.ok()).await;
    assert_eq!(ask(&client, handle(&third), "square", &[7]).await, 49);
    assert!(is_there(&client, "oldest").await && is_there(&client, "other").await);
}

const FAR: &str = "int add_far(int a, int b) { return a + b; }";
const NEAR: &str = "static int sum(int a, int b) { return 10 * (a + b); }\nint (*const add_near)(int, int) = sum;\n\
                    int shared[4] = { 10, 20, 30, 40 };\nint *place(void) { return shared; }";
/// Found by whoever may lie anywhere: it loads what it needs from slots.
const ANYWHERE: &str = "int square(unsigned); extern int shared[4];\n\
                        int both(unsigned at) { return square(at) + shared[at & 3]; }";

fn compiled(text: &str, flags: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (source, object) = (directory.path().join("text.c"), directory.path().join("text.o"));
    fs::write(&source, text).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let status = Command::new(compiler).args(flags).arg("-c").arg(source).arg("-o").arg(&object).status();
    assert!(status.unwrap().success());
    fs::read(object).unwrap()
}

#[tokio::test]
async fn what_lies_here_and_there_is_linked_together() {
    let daemon = Daemon::start_with(&LOW);
    let client = daemon.client().await;
    let anywhere = ["-O2", "-fPIC"];
    client.install(elf("far", compiled(FAR, &anywhere))).await.unwrap();
    client.install(elf("near", compiled(NEAR, &ABSOLUTE))).await.unwrap();
    let caller = needs(elf("caller", object(&["-DCALLER"])), &["far", "near"]);
    let caller = handle(&client.install(caller).await.unwrap());
    assert_eq!(ask(&client, caller, "through", &[3, 4]).await, 7 + 70);
    assert_eq!(ask(&client, caller, "by_pointer", &[3, 4]).await, 7, "the function's address in 32 bits is its stub's");
    assert_eq!(ask(&client, caller, "from_table", &[2]).await, 30);

    client.install(elf("low", object(&[]))).await.unwrap();
    let above = needs(elf("above", compiled(ANYWHERE, &anywhere)), &["low"]);
    let above = handle(&client.install(above).await.unwrap());
    assert_eq!(ask(&client, above, "both", &[3]).await, 9 + 40);

    // What reads a variable by its distance must lie near it, whatever it holds itself.
    let reads = "extern int shared[4]; int get(void) { return shared[2]; }";
    for flags in [&ABSOLUTE[..], &["-O2", "-fPIE"]] {
        let reader = || needs(elf("reader", compiled(reads, flags)), &["low"]);
        let validated = InstallRequest { validate_only: true, ..reader() };
        assert_eq!(client.install(validated).await.unwrap().diagnostics, [], "{flags:?}");
        let entry = handle(&client.install(reader()).await.unwrap());
        assert_eq!(ask(&client, entry, "get", &[]).await, 30, "{flags:?}");
        evict(&client, "reader").await;
    }

    // Data of another entry that lies elsewhere cannot be addressed in 32 bits.
    let elsewhere = compiled("int shared[4];", &anywhere);
    client.install(elf("elsewhere", elsewhere)).await.unwrap();
    let caller = needs(elf("caller2", object(&["-DCALLER"])), &["far", "elsewhere", "near"]);
    let words = ["for symbol shared", "of another entry, which does not lie below 2 GiB", "compile with -fPIC"];
    assert_refused(client.install(caller).await, Code::InvalidArgument, "UNSUPPORTED_RELOCATION", &words);

    // They go with those who need them, and leave nothing.
    for key in ["caller", "above", "far", "near", "low", "elsewhere"] {
        evict(&client, key).await;
    }
    let arena = client.status().await.unwrap().arena.unwrap();
    assert_eq!((arena.used_bytes, arena.low.unwrap().used_bytes), (0, 0));
}

#[tokio::test]
async fn the_status_the_map_and_the_metrics_have_it() {
    let daemon = Daemon::start_with(&LOW);
    let client = daemon.client().await;
    client.install(flat("add", ADD)).await.unwrap();
    let sizes = client.install(elf("low", object(&[]))).await.unwrap().entry.unwrap();
    let arena = client.status().await.unwrap().arena.unwrap();
    let low = arena.low.clone().unwrap();
    assert_eq!((low.reserved_bytes, low.spans, &*low.refused), (3 * (2 << 20), 3, ""));
    assert_eq!(low.used_bytes, arena.used_bytes - 64, "sums have both");
    let largest_part = sizes.code_bytes.max(sizes.rodata_bytes).max(sizes.data_bytes).next_multiple_of(64);
    assert_eq!(low.largest_free_bytes, (2 << 20) - largest_part);
    let metrics = metrics(&daemon).await;
    for (sample, bytes) in [
        ("bytes{state=\"used\"}", low.used_bytes),
        ("bytes{state=\"reserved\"}", low.reserved_bytes),
        ("largest_free_bytes", low.largest_free_bytes),
    ] {
        let line = format!("codecache_arena_low_{sample} {bytes}");
        assert!(metrics.lines().any(|it| it == line), "{line} in {metrics}");
    }
    assert!(low.used_bytes >= sizes.code_bytes + sizes.rodata_bytes + sizes.data_bytes);
    assert!(arena.strategy_reason.contains("below 2 GiB"), "{}", arena.strategy_reason);
    assert_eq!(client.capabilities().await.unwrap().limits.unwrap().low_bytes, 2 << 20);

    let map = client.arenas(GetArenasRequest::default()).await.unwrap();
    let is_low = |area: &&ArenaArea| area.low;
    let used: u64 = map.areas.iter().filter(is_low).map(|area| area.used_bytes).sum();
    assert_eq!((map.areas.iter().filter(is_low).count(), used, &*map.low_refused), (3, low.used_bytes, ""));
    assert!(map.areas.iter().rev().take(3).all(|area| area.low && area.bytes == 2 << 20), "it comes last");
    assert_eq!(map.totals.unwrap().used_bytes, arena.used_bytes);
    let one = GetArenasRequest { arena: Some(map.areas.last().unwrap().arena), ..GetArenasRequest::default() };
    assert!(client.arenas(one).await.unwrap().areas.iter().all(|area| area.low));

    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codecachectl"));
        let output = command.args(["--server", &daemon.target]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["arenas"]).contains("(below 2 GiB): "));
    let stats = run(&["stats"]);
    assert!(stats.lines().any(|line| line.starts_with("below 2 GiB") && line.contains("of 6 MiB")), "{stats}");
    assert!(run(&["capabilities"]).contains("up to 2 MiB of each part"));
    let json: serde_json::Value = serde_json::from_str(&run(&["--json", "stats"])).unwrap();
    assert_eq!(json["arena"]["low"]["used_bytes"], low.used_bytes);
}

#[tokio::test]
async fn what_runs_there_may_choose_initialise_and_have_threads_variables_of_its_own() {
    let text = "#include <errno.h>\n#include <math.h>\n\
                static int table[3]; static _Thread_local int mine = 4;\n\
                __attribute__((constructor)) static void fill(void) { for (int at = 0; at < 3; at++) table[at] = at + 7; }\n\
                static int one(void) { return 1; }\n\
                static int (*choose(void))(void) { return one; }\n\
                int chosen(void) __attribute__((ifunc(\"choose\")));\n\
                int filled(unsigned at) { return table[at % 3]; }\n\
                int through(void) { int (*volatile function)(void) = chosen; return function(); }\n\
                int threads(unsigned at) { errno = 5; return ++mine + errno + table[at % 3]; }";
    let daemon = Daemon::start_with(&LOW);
    let client = daemon.client().await;
    let entry = handle(&client.install(elf("low", compiled(text, &ABSOLUTE))).await.unwrap());
    assert_eq!([ask(&client, entry, "filled", &[2]).await, ask(&client, entry, "through", &[]).await], [9, 1]);
    for _ in 0..2 {
        assert_eq!(ask(&client, entry, "threads", &[0]).await, 5 + 5 + 7);
    }
}

#[test]
fn check_says_whether_there_is_one() {
    let check = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_codecached")).arg("check").args(flags).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    let (code, text) = check(&LOW);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.lines().any(|line| line.starts_with("ok ") && line.contains("addresses below 2 GiB")), "{text}");
    assert!(text.contains("2097152 bytes for each of code, read-only data and data, below 2 GiB"), "{text}");
    let (code, text) = check(&[]);
    assert!(code == Some(0) && text.contains("off: objects with absolute addresses in 32 bits are refused"), "{text}");
    let (code, text) = check(&["--set", "arena.low_bytes=65 MiB", "--set", "arena.granule_bytes=16"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("at most 67108864 in granules of 16 bytes"), "{text}");
}
