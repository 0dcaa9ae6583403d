//! The main job through the built daemon: install, look up, call, list, evict, and what is refused.

mod support;

use codecached::{
    client::ClientError,
    proto::{
        Digest, DigestAlgorithm, EntryView, EvictRequest, EvictState, ExecuteRequest, InstallRequest, ListOrder,
        ListRequest, LookupRequest, ResultType, evict_request, lookup_request, value::Kind,
    },
};
use support::{ADD, Daemon, Random, call, elf, flat, handle, returned, trapped};
use tonic::Code;

fn by_key(key: &str) -> LookupRequest {
    LookupRequest {
        target: Some(lookup_request::Target::Key(key.as_bytes().to_vec().into())),
        view: EntryView::Full.into(),
        ..LookupRequest::default()
    }
}

fn evict(key: &str) -> EvictRequest {
    EvictRequest { target: Some(evict_request::Target::Key(key.as_bytes().to_vec().into())), ..EvictRequest::default() }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(answer: Result<T, ClientError>, code: Code, reason: &str) -> String {
    let error = answer.expect_err("should have been refused");
    assert_eq!((error.code(), error.reason()), (Some(code), reason), "{error}");
    error.to_string()
}

#[tokio::test]
async fn an_object_made_by_a_compiler_is_installed_found_called_and_evicted() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let object = support::compile_with("asks_much.c", &["-O2", "-fPIC", "-fno-builtin"]);
    let installed = client.install(elf("asks", object.clone())).await.unwrap();
    assert!(installed.created && !installed.replaced);
    let entry = installed.entry.clone().unwrap();
    assert!(entry.symbols.iter().any(|symbol| symbol.name == "crc32_bitwise" && symbol.size_bytes > 0));
    let found = client.lookup(by_key("asks")).await.unwrap().entry.unwrap();
    assert_eq!((found.handle, &found.symbols, &found.digest), (entry.handle, &entry.symbols, &entry.digest));
    let again = client.install(elf("asks", object)).await.unwrap();
    assert!(!again.created, "the same bytes again are the entry that is there");
    assert_eq!(handle(&again), entry.handle);

    let text = b"123456789".to_vec();
    let crc = call(
        entry.handle,
        "crc32_bitwise",
        vec![Kind::U32(0), Kind::Bytes(text.into()), Kind::U32(9)],
        ResultType::U32,
    );
    assert_eq!(returned(client.execute(crc).await.unwrap()).0, Some(Kind::U32(0xcbf4_3926)));

    let gone = client.evict(evict("asks")).await.unwrap();
    assert_eq!((gone.state(), gone.charged_bytes), (EvictState::Freed, entry.charged_bytes));
    assert_refused(client.lookup(by_key("asks")).await, Code::NotFound, "ENTRY_NOT_FOUND");
    assert_refused(client.evict(evict("asks")).await, Code::NotFound, "ENTRY_NOT_FOUND");
    let stale = call(entry.handle, "length", Vec::new(), ResultType::Void);
    assert_refused(client.execute(stale).await, Code::NotFound, "STALE_HANDLE");
    let status = client.status().await.unwrap();
    assert_eq!(status.budget.unwrap().charged_bytes, 0);
    assert_eq!(status.arena.unwrap().used_bytes, 0);
}

#[tokio::test]
async fn arguments_results_and_buffers_are_passed_as_c_passes_them() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let object = support::compile_with("asks_much.c", &["-O2", "-fPIC", "-fno-builtin"]);
    let entry = handle(&client.install(elf("asks", object)).await.unwrap());
    let run = async |symbol: &str, arguments: Vec<Kind>, result: ResultType| {
        returned(client.execute(call(entry, symbol, arguments, result)).await.unwrap())
    };
    let longs = (1..=6).map(|it| Kind::I64(it * 1_000_000_007)).collect();
    assert_eq!(run("six", longs, ResultType::I64).await.0, Some(Kind::I64(91 * 1_000_000_007)));
    let doubles = (1..=8).map(|it| Kind::F64(f64::from(it) * 0.5)).collect();
    assert_eq!(run("eight", doubles, ResultType::F64).await.0, Some(Kind::F64(102.0)));
    let hello = || Kind::Bytes(b"hello\0"[..].into());
    assert_eq!(run("length", vec![hello()], ResultType::U64).await.0, Some(Kind::U64(5)));
    assert_eq!(run("is_hello", vec![hello()], ResultType::I32).await.0, Some(Kind::I32(1)));
    let (value, buffers) = run("fill", vec![Kind::OutBytes(5), Kind::U32(3), Kind::U32(7)], ResultType::Void).await;
    assert_eq!((value, buffers), (None, vec![vec![7, 7, 7, 0, 0]]));
    let (_, buffers) = run("reverse", vec![Kind::Inout(b"abcd"[..].into()), Kind::U32(4)], ResultType::Void).await;
    assert_eq!(buffers, vec![b"dcba".to_vec()]);
    assert_eq!(run("heap_sum", vec![Kind::U32(1000)], ResultType::U64).await.0, Some(Kind::U64(500_500)));
    for round in 0..20 {
        let dirt = run("heap_dirt", vec![Kind::U32(100_000)], ResultType::U32).await.0;
        assert_eq!(dirt, Some(Kind::U32(0)), "round {round}: memory of an earlier call shows");
    }
    let Some(Kind::U32(mib)) = run("heap_mib", Vec::new(), ResultType::U32).await.0 else { panic!() };
    assert!((32..=64).contains(&mib), "a call got {mib} MiB of 64");
}

#[tokio::test]
async fn double_arithmetic_gives_the_bits_of_the_host() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let flags = ["-O2", "-fPIC", "-ffp-contract=off"];
    let entry = handle(&client.install(elf("doubles", support::compile_with("doubles.c", &flags))).await.unwrap());
    let horner = |x: f64| {
        let c = [1.0, -0.5, 1.0 / 3.0, -0.25, 0.2, -1.0 / 6.0, 1.0 / 7.0];
        c.iter().rev().fold(0.0, |sum, c| sum * x + c) * x
    };
    let mut random = Random(5);
    for _ in 0..500 {
        let x = f64::from_bits(random.next() >> 2 | 1 << 61) % 1e9;
        let answer = client.execute(call(entry, "horner", vec![Kind::F64(x)], ResultType::F64)).await.unwrap();
        let Some(Kind::F64(got)) = returned(answer).0 else { panic!() };
        assert_eq!(got.to_bits(), horner(x).to_bits(), "horner({x})");
    }
    let a: Vec<f64> = (0..100).map(|_| random.below(1 << 50) as f64 / 7.0).collect();
    let b: Vec<f64> = (0..100).map(|_| random.below(1 << 50) as f64 / 3.0).collect();
    let bytes = |v: &[f64]| Kind::Bytes(v.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>().into());
    let dot = call(entry, "dot", vec![bytes(&a), bytes(&b), Kind::U32(100)], ResultType::F64);
    let expected = a.iter().zip(&b).fold(0.0, |sum, (a, b)| sum + a * b);
    assert_eq!(returned(client.execute(dot).await.unwrap()).0, Some(Kind::F64(expected)));
    let mixed = vec![Kind::F32(1.5), Kind::F64(2.25), Kind::I32(7), Kind::F32(0.3)];
    let mix = returned(client.execute(call(entry, "mix", mixed, ResultType::F32)).await.unwrap()).0;
    assert_eq!(mix, Some(Kind::F32(1.5 * 2.25 + 7.0 / 0.3_f32)));
}

#[tokio::test(flavor = "multi_thread")]
async fn writable_data_lives_across_calls_is_serialised_and_is_restored_after_a_trap() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=4"]);
    let client = daemon.client().await;
    let object = support::compile("counter.c");
    let entry = handle(&client.install(elf("counter", object.clone())).await.unwrap());
    let next = async || returned(client.execute(call(entry, "next", Vec::new(), ResultType::U32)).await.unwrap()).0;
    assert_eq!((next().await, next().await), (Some(Kind::U32(101)), Some(Kind::U32(102))));

    let calls: Vec<_> = (0..40)
        .map(|_| {
            let client = client.clone();
            let slow = call(entry, "slow_next", vec![Kind::U32(200_000)], ResultType::U32);
            tokio::spawn(async move { returned(client.execute(slow).await.unwrap()).0 })
        })
        .collect();
    let mut counts = Vec::new();
    for one in calls {
        let Some(Kind::U32(count)) = one.await.unwrap() else { panic!() };
        counts.push(count);
    }
    counts.sort_unstable();
    assert_eq!(counts, (103..143).collect::<Vec<_>>(), "two calls overlapped");

    let spoil = call(entry, "spoil_and_fault", Vec::new(), ResultType::U32);
    trapped(client.execute(spoil).await.unwrap());
    assert_eq!(next().await, Some(Kind::U32(101)), "data is as it was installed");
    let peek = call(entry, "peek_zeroed", Vec::new(), ResultType::U32);
    assert_eq!(returned(client.execute(peek).await.unwrap()).0, Some(Kind::U32(0)));
    let mut spin = call(entry, "spoil_and_spin", Vec::new(), ResultType::U32);
    spin.cpu_limit = Some(prost_types::Duration { seconds: 0, nanos: 5_000_000 });
    trapped(client.execute(spin).await.unwrap());
    assert_eq!(next().await, Some(Kind::U32(101)));

    let request = InstallRequest { reentrant: true, ..elf("free", object) };
    let free = client.install(request).await.unwrap().entry.unwrap();
    assert!(free.reentrant);
    assert_eq!(next().await, Some(Kind::U32(102)), "another entry has data of its own");
}

#[tokio::test]
async fn namespaces_do_not_see_each_other() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let request = InstallRequest { namespace: "a".to_owned(), ..flat("k", ADD) };
    let entry = handle(&client.install(request).await.unwrap());
    let foreign = LookupRequest { namespace: "b".to_owned(), ..by_key("k") };
    assert_refused(client.lookup(foreign).await, Code::NotFound, "ENTRY_NOT_FOUND");
    let foreign = call(entry, "f", vec![Kind::I32(1), Kind::I32(2)], ResultType::I32);
    let by_other = assert_refused(client.execute(foreign.clone()).await, Code::NotFound, "STALE_HANDLE");
    let made_up = ExecuteRequest {
        target: Some(codecached::proto::execute_request::Target::Handle(entry ^ 1)),
        ..foreign.clone()
    };
    assert_eq!(by_other, assert_refused(client.execute(made_up).await, Code::NotFound, "STALE_HANDLE"));
    let own = ExecuteRequest { namespace: "a".to_owned(), ..foreign };
    assert_eq!(returned(client.execute(own).await.unwrap()).0, Some(Kind::I32(3)));
    let listed = client.list(ListRequest { namespace: "b".to_owned(), ..ListRequest::default() }).await.unwrap();
    assert!(listed.entries.is_empty());
}

#[tokio::test]
async fn other_bytes_under_a_live_key_need_replace() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let first = handle(&client.install(flat("k", ADD)).await.unwrap());
    let other = [0x90, 0x8d, 0x04, 0x37, 0xc3];
    assert_refused(client.install(flat("k", &other)).await, Code::AlreadyExists, "KEY_OCCUPIED");
    let options = InstallRequest { reentrant: true, ..flat("k", ADD) };
    assert_refused(client.install(options).await, Code::AlreadyExists, "KEY_OCCUPIED");
    let replaced = client.install(InstallRequest { replace: true, ..flat("k", &other) }).await.unwrap();
    assert!(replaced.created && replaced.replaced);
    assert_eq!(client.status().await.unwrap().counters.unwrap().replaced_evictions, 1);
    let stale = call(first, "f", Vec::new(), ResultType::Void);
    assert_refused(client.execute(stale).await, Code::NotFound, "STALE_HANDLE");
}

#[tokio::test]
async fn lists_come_in_pages_by_key_and_as_tops() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let keys: Vec<String> = (0..25).map(|it| format!("key-{it:02}")).collect();
    for (at, key) in keys.iter().enumerate() {
        let mut blob = ADD.to_vec();
        blob.resize(4 + 100 * (at * 7 % 25), 0x90);
        client.install(flat(key, &blob)).await.unwrap();
    }
    client.install(flat("other", ADD)).await.unwrap();
    let (mut listed, mut token) = (Vec::new(), bytes::Bytes::new());
    loop {
        let request =
            ListRequest { key_prefix: b"key-"[..].into(), page_size: 7, page_token: token, ..ListRequest::default() };
        let page = client.list(request).await.unwrap();
        assert!(page.entries.len() <= 7);
        listed.extend(page.entries.into_iter().map(|it| String::from_utf8(it.key.to_vec()).unwrap()));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, keys);
    let top = async |order: ListOrder| {
        let request = ListRequest { order: order.into(), page_size: 3, ..ListRequest::default() };
        let entries = client.list(request).await.unwrap().entries;
        entries.into_iter().map(|it| String::from_utf8(it.key.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    client.lookup(by_key("key-00")).await.unwrap();
    assert_eq!(top(ListOrder::MostRecent).await, ["key-00", "other", "key-24"]);
    assert_eq!(top(ListOrder::LeastRecent).await, ["key-01", "key-02", "key-03"]);
    let sizes: Vec<_> = (0..25).map(|at| (at * 7 % 25, at)).collect();
    let largest = sizes.iter().max().unwrap().1;
    assert_eq!(top(ListOrder::Size).await[0], keys[largest]);
    let called =
        handle(&client.install(flat("key-11", &[ADD, &[0x90; 200]].concat())).await.unwrap_or_else(|_| panic!()));
    client.execute(call(called, "f", Vec::new(), ResultType::Void)).await.unwrap();
    assert_eq!(top(ListOrder::Calls).await[0], "key-11");
}

#[tokio::test]
async fn bad_requests_are_refused_with_their_reason_and_leave_nothing() {
    let daemon = Daemon::start_with(&["--set", "server.unary_max_bytes=64 KiB"]);
    let client = daemon.client().await;
    let invalid = |request| (request, Code::InvalidArgument, "INVALID_FIELD");
    let sha = |value: Vec<u8>| Some(Digest { algorithm: DigestAlgorithm::Sha256.into(), value: value.into() });
    let arm = {
        let mut object = support::compile("doubles.c");
        object[18] = 183;
        object
    };
    let undefined = support::compile("undefined.c");
    let cases: Vec<(InstallRequest, Code, &str)> = vec![
        invalid(flat("", ADD)),
        invalid(flat(&"k".repeat(257), ADD)),
        invalid(InstallRequest { namespace: "Upper".to_owned(), ..flat("k", ADD) }),
        invalid(InstallRequest { format: 0, ..flat("k", ADD) }),
        invalid(InstallRequest { format: 77, ..flat("k", ADD) }),
        invalid(flat("k", b"")),
        invalid(InstallRequest { flat_entries: Vec::new(), ..flat("k", ADD) }),
        invalid(InstallRequest { digest: sha(vec![1, 2]), ..flat("k", ADD) }),
        (InstallRequest { digest: sha(vec![0; 32]), ..flat("k", ADD) }, Code::InvalidArgument, "DIGEST_MISMATCH"),
        (elf("k", b"not an object".to_vec()), Code::InvalidArgument, "MALFORMED_OBJECT"),
        (elf("k", arm), Code::FailedPrecondition, "TARGET_MISMATCH"),
        (elf("k", undefined), Code::InvalidArgument, "UNRESOLVED_SYMBOL"),
    ];
    for (request, code, reason) in cases {
        assert_refused(client.install(request).await, code, reason);
    }
    // In one message, which the client would not choose for them; the last is larger than the transport takes.
    for bytes in [65 << 10, 300 << 10, 2 << 20] {
        let status = client.cache().install(flat("k", &vec![0x90; bytes])).await.unwrap_err();
        assert_refused(Err::<(), _>(client.error(&status)), Code::InvalidArgument, "BLOB_TOO_LARGE");
    }
    let object = support::compile("undefined.c");
    let message = assert_refused(client.install(elf("k", object)).await, Code::InvalidArgument, "UNRESOLVED_SYMBOL");
    assert!(message.contains("first_missing") && message.contains("second_missing"), "{message}");
    let status = client.status().await.unwrap();
    assert_eq!(status.budget.unwrap().charged_bytes, 0);
    assert_eq!(status.counters.unwrap().installs, 0);
}

#[tokio::test]
async fn bad_calls_are_refused_with_their_reason() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("k", ADD)).await.unwrap());
    let request = |arguments| call(entry, "f", arguments, ResultType::I32);
    let seventeen = vec![Kind::I32(0); 17];
    assert_refused(client.execute(request(seventeen)).await, Code::InvalidArgument, "INVALID_FIELD");
    let huge = vec![Kind::OutBytes(1 << 40)];
    assert_refused(client.execute(request(huge)).await, Code::InvalidArgument, "INVALID_FIELD");
    let answer = vec![Kind::OutBytes(3 << 20), Kind::OutBytes(3 << 20)];
    assert_refused(client.execute(request(answer)).await, Code::InvalidArgument, "INVALID_FIELD");
    let unset = ExecuteRequest { arguments: vec![Default::default()], ..request(Vec::new()) };
    assert_refused(client.execute(unset).await, Code::InvalidArgument, "INVALID_FIELD");
    let unknown = ExecuteRequest { symbol: "g".to_owned(), ..request(Vec::new()) };
    let message = assert_refused(client.execute(unknown).await, Code::NotFound, "SYMBOL_NOT_FOUND");
    assert!(message.contains('f'), "{message}");
    let long =
        ExecuteRequest { cpu_limit: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }), ..request(Vec::new()) };
    assert_refused(client.execute(long).await, Code::InvalidArgument, "INVALID_FIELD");
    let nothing = ExecuteRequest { target: None, ..request(Vec::new()) };
    assert_refused(client.execute(nothing).await, Code::InvalidArgument, "INVALID_FIELD");
}

#[tokio::test]
async fn a_sha256_digest_is_taken_too() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let value = <sha2::Sha256 as sha2::Digest>::digest(ADD).to_vec().into();
    let digest = Some(Digest { algorithm: DigestAlgorithm::Sha256.into(), value });
    client.install(InstallRequest { digest, ..flat("k", ADD) }).await.unwrap();
}

#[tokio::test]
async fn a_small_budget_evicts_the_least_recently_used_and_refuses_what_is_larger_than_all() {
    let daemon = Daemon::start_with(&["--budget-bytes", "1048576", "--set", "cache.eviction_window=0"]);
    let client = daemon.client().await;
    let blob = [ADD, &[0x90; 100_000]].concat();
    for at in 0..9 {
        client.install(flat(&format!("k{at}"), &blob)).await.unwrap();
    }
    client.lookup(by_key("k0")).await.unwrap();
    let mut went = 0;
    for at in 9..14 {
        went += client.install(flat(&format!("k{at}"), &blob)).await.unwrap().evicted_entries;
    }
    assert!(went >= 4);
    client.lookup(by_key("k0")).await.expect("what was used stays");
    assert_refused(client.lookup(by_key("k1")).await, Code::NotFound, "ENTRY_NOT_FOUND");
    let whole = flat("whole", &[ADD, &[0x90; 1 << 20]].concat());
    assert_refused(client.install(whole).await, Code::ResourceExhausted, "BUDGET_EXHAUSTED");
    client.lookup(by_key("k0")).await.expect("what is refused evicts nothing");
    let budget = client.status().await.unwrap().budget.unwrap();
    assert!(budget.charged_bytes <= budget.limit_bytes);
}
