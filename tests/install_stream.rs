//! Blobs that come in chunks: what is installed, what is refused, and that the budget is exact whatever clients do.

mod support;

use std::time::Duration;

use bytes::Bytes;
use codecached::{
    client::{Client, ClientError},
    proto::{
        BudgetStatus, EvictRequest, InstallRequest, InstallResponse, InstallStreamHeader, InstallStreamRequest,
        InstallStreamResponse, ListRequest, ResultType, evict_request::Target, install_stream_request::Part,
        value::Kind,
    },
};
use support::{ADD, Daemon, Random, call, elf, flat, handle, returned, until};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// An upload by hand.
struct Upload {
    client: Client,
    parts: mpsc::Sender<InstallStreamRequest>,
    answer: JoinHandle<Result<Response<InstallStreamResponse>, Status>>,
}

impl Upload {
    fn open(client: &Client) -> Self {
        let (parts, coming) = mpsc::channel(1);
        let mut stub = client.cache();
        let answer = tokio::spawn(async move { stub.install_stream(ReceiverStream::new(coming)).await });
        Self { client: client.clone(), parts, answer }
    }

    /// With its header sent: flat code under `key`.
    async fn begin(client: &Client, key: &str, blob_bytes: usize) -> Self {
        let upload = Self::open(client);
        upload.send(header(flat(key, b""), blob_bytes)).await;
        upload
    }

    /// A daemon that has refused already takes nothing more: its answer says why.
    async fn send(&self, part: Part) {
        let _taken = self.parts.send(InstallStreamRequest { part: Some(part) }).await;
    }

    async fn chunk(&self, bytes: &[u8]) {
        self.send(Part::Chunk(Bytes::copy_from_slice(bytes))).await;
    }

    async fn end(self) -> Result<InstallResponse, ClientError> {
        drop(self.parts);
        match self.answer.await.unwrap() {
            Ok(answer) => Ok(answer.into_inner().install.unwrap()),
            Err(status) => Err(self.client.error(&status)),
        }
    }

    /// The answer before the end of the stream.
    async fn refused(self) -> ClientError {
        let status = self.answer.await.unwrap().unwrap_err();
        drop(self.parts);
        self.client.error(&status)
    }

    async fn leave(self) {
        self.answer.abort();
        assert!(self.answer.await.unwrap_err().is_cancelled());
    }
}

fn header(install: InstallRequest, blob_bytes: usize) -> Part {
    Part::Header(InstallStreamHeader { install: Some(install), blob_bytes: blob_bytes as u64 })
}

/// [`ADD`] and a filling.
fn code(bytes: usize) -> Vec<u8> {
    let mut blob = vec![0x90; bytes];
    blob[..ADD.len()].copy_from_slice(ADD);
    blob
}

/// The budget; its parts make up the whole.
async fn budget(client: &Client) -> BudgetStatus {
    let budget = client.status().await.unwrap().budget.unwrap();
    let parts = [budget.spans_bytes, budget.metadata_bytes, budget.lingering_bytes, budget.uploads_bytes];
    assert_eq!(parts.iter().sum::<u64>(), budget.charged_bytes, "{budget:?}");
    assert!(budget.charged_bytes <= budget.limit_bytes, "{budget:?}");
    budget
}

async fn until_uploads_are(client: &Client, bytes: usize) {
    until("the uploads to be charged", async || (budget(client).await.uploads_bytes == bytes as u64).then_some(()))
        .await;
}

async fn until_budget_is(client: &Client, wanted: BudgetStatus) {
    until("the budget to be as before", async || (budget(client).await == wanted).then_some(())).await;
}

fn assert_is(error: &ClientError, code: Code, reason: &str, needles: &[&str]) {
    assert_eq!((error.code(), error.reason()), (Some(code), reason), "{error}");
    for needle in needles {
        assert!(error.to_string().contains(needle), "{error} should say {needle}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_6_mib_comes_in_chunks_by_itself_and_runs() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let blob = support::compile("large.S");
    assert!(blob.len() > 6 * MIB);
    let status = client.cache().install(elf("large", blob.clone())).await.unwrap_err();
    assert_is(&client.error(&status), Code::InvalidArgument, "BLOB_TOO_LARGE", &[]);
    let installed = client.install(elf("large", blob.clone())).await.unwrap();
    assert!(installed.created);
    let answer = client.execute(call(handle(&installed), "last", Vec::new(), ResultType::U32)).await.unwrap();
    assert_eq!(returned(answer).0, Some(Kind::U32(0x5eed_5eed)));
    let again = client.install(elf("large", blob)).await.unwrap();
    assert_eq!((again.created, handle(&again)), (false, handle(&installed)));
    let now = budget(&client).await;
    assert_eq!((now.uploads_bytes, now.charged_bytes), (0, installed.entry.unwrap().charged_bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_any_size_make_the_blob_that_one_message_makes() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let blob = code(100_000);
    let whole = client.install(flat("k", &blob)).await.unwrap();
    let mut random = Random(5);
    let upload = Upload::begin(&client, "k", blob.len()).await;
    let mut rest = &blob[..];
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(rest.len().min(1 + random.below(9000) as usize));
        upload.chunk(chunk).await;
        rest = after;
    }
    let in_chunks = upload.end().await.unwrap();
    assert_eq!((in_chunks.created, handle(&in_chunks)), (false, handle(&whole)), "the same bytes are the same entry");
    let small = Upload::begin(&client, "small", ADD.len()).await;
    small.chunk(ADD).await;
    let small = small.end().await.unwrap();
    let sum = client.execute(call(handle(&small), "f", vec![Kind::I32(2), Kind::I32(3)], ResultType::I32)).await;
    assert_eq!(returned(sum.unwrap()).0, Some(Kind::I32(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_bytes_are_charged_before_any_comes_and_return_when_the_client_leaves() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    client.install(flat("resident", &code(1000))).await.unwrap();
    let before = budget(&client).await;
    for chunks in 0..6 {
        let leaving = daemon.client().await;
        let upload = Upload::begin(&leaving, "leaving", 8 * MIB).await;
        until_uploads_are(&client, 8 * MIB).await;
        for _ in 0..chunks {
            upload.chunk(&[0x90; MIB]).await;
        }
        assert_eq!(budget(&client).await.uploads_bytes, 8 * MIB as u64);
        upload.leave().await;
        until_budget_is(&client, before).await;
    }
    let upload = Upload::begin(&client, "staying", 100_000).await;
    upload.chunk(&code(100_000)).await;
    let entry = upload.end().await.unwrap().entry.unwrap();
    let after = budget(&client).await;
    assert_eq!((after.uploads_bytes, after.charged_bytes), (0, before.charged_bytes + entry.charged_bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_in_the_wrong_order_and_headers_that_cannot_be_are_refused_and_leave_nothing() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let before = budget(&client).await;
    let chunk = || Part::Chunk(Bytes::from_static(ADD));
    let bare = Part::Header(InstallStreamHeader { install: None, blob_bytes: 4 });
    let cases = [
        (vec![], "header: must be the first message"),
        (vec![chunk()], "header: must be the first message"),
        (vec![chunk(), header(flat("k", b""), 4)], "header: must be the first message"),
        (vec![header(flat("k", b""), 4), header(flat("k", b""), 4), chunk()], "the first message only"),
        (vec![header(flat("k", b""), 8), chunk(), header(flat("k", b""), 8)], "the first message only"),
        (vec![header(flat("k", ADD), 4), chunk()], "must be empty"),
        (vec![bare, chunk()], "header.install: is missing"),
        (vec![header(flat("k", b""), 0)], "is empty"),
        (vec![header(flat("k", b""), 4), Part::Chunk(Bytes::new()), chunk()], "chunk: is empty"),
        (vec![header(flat("", b""), 4), chunk()], "key"),
        (vec![header(InstallRequest { format: 0, ..flat("k", b"") }, 4), chunk()], "format"),
    ];
    for (parts, needle) in cases {
        let upload = Upload::open(&client);
        for part in parts {
            upload.send(part).await;
        }
        assert_is(&upload.end().await.unwrap_err(), Code::InvalidArgument, "INVALID_FIELD", &[needle]);
    }
    let upload = Upload::open(&client);
    let _taken = upload.parts.send(InstallStreamRequest { part: None }).await;
    assert_is(&upload.end().await.unwrap_err(), Code::InvalidArgument, "INVALID_FIELD", &["a header or a chunk"]);
    assert_eq!(budget(&client).await, before);
    assert_eq!(client.status().await.unwrap().counters.unwrap().installs, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_or_more_bytes_than_declared_are_refused_with_both_numbers() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let before = budget(&client).await;
    for chunks in [0, 1, 3] {
        let upload = Upload::begin(&client, "few", 40_000).await;
        for _ in 0..chunks {
            upload.chunk(&[0x90; 10_000]).await;
        }
        let received = format!("{} bytes came", chunks * 10_000);
        let error = upload.end().await.unwrap_err();
        assert_is(&error, Code::InvalidArgument, "INVALID_FIELD", &["40000 bytes are declared", &received]);
    }
    let upload = Upload::begin(&client, "many", 15_000).await;
    for _ in 0..2 {
        upload.chunk(&[0x90; 10_000]).await;
    }
    // At once: the rest is not waited for.
    let error = upload.refused().await;
    assert_is(
        &error,
        Code::InvalidArgument,
        "INVALID_FIELD",
        &["15000 bytes are declared", "20000 bytes or more came"],
    );
    until_budget_is(&client, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_too_large_is_refused_whether_or_not_it_can_be_a_message() {
    let daemon = Daemon::start_with(&["--set", "server.stream_chunk_max_bytes=64 KiB"]);
    let client = daemon.client().await;
    let before = budget(&client).await;
    for bytes in [64 * KIB + 1, 5 * MIB] {
        let upload = Upload::begin(&client, "k", 6 * MIB).await;
        upload.chunk(&vec![0x90; bytes]).await;
        assert_is(&upload.refused().await, Code::InvalidArgument, "INVALID_FIELD", &["chunk", "65536"]);
    }
    let upload = Upload::begin(&client, "k", 64 * KIB).await;
    upload.chunk(&code(64 * KIB)).await;
    upload.end().await.unwrap();
    let large = client.install(flat("large", &code(5 * MIB))).await.unwrap();
    assert!(large.created, "the client keeps to the limit");
    assert_eq!(before.uploads_bytes, budget(&client).await.uploads_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_declared_larger_than_the_limit_or_the_budget_is_refused_before_it_comes() {
    let daemon = Daemon::start_with(&["--budget-bytes", "4 MiB", "--set", "server.stream_max_bytes=8 MiB"]);
    let client = daemon.client().await;
    client.install(flat("resident", &code(MIB))).await.unwrap();
    let before = budget(&client).await;
    let limits = client.capabilities().await.unwrap().limits.unwrap();
    assert_eq!((limits.stream_max_bytes, limits.stream_chunk_max_bytes), (8 << 20, 1 << 20));
    let error = Upload::begin(&client, "k", 8 * MIB + 1).await.refused().await;
    assert_is(&error, Code::InvalidArgument, "BLOB_TOO_LARGE", &["8388609", "8388608"]);
    let error = Upload::begin(&client, "k", 4 * MIB + 1).await.refused().await;
    assert_is(&error, Code::ResourceExhausted, "BUDGET_EXHAUSTED", &["4194305", "4194304"]);
    assert_eq!(budget(&client).await, before, "nobody had to go");
    // A client that is still sending hears why, not that the stream was cut off.
    for _ in 0..10 {
        let error = client.install(flat("k", &code(8 * MIB + 1))).await.unwrap_err();
        assert_is(&error, Code::InvalidArgument, "BLOB_TOO_LARGE", &[]);
        let error = client.install(flat("k", &code(6 * MIB))).await.unwrap_err();
        assert_is(&error, Code::ResourceExhausted, "BUDGET_EXHAUSTED", &[]);
    }
    assert_eq!(budget(&client).await, before);
    // It could come, but not lie beside what is made of it.
    let upload = Upload::begin(&client, "k", 5 * MIB / 2).await;
    for chunk in code(5 * MIB / 2).chunks(MIB) {
        upload.chunk(chunk).await;
    }
    assert_is(&upload.end().await.unwrap_err(), Code::ResourceExhausted, "BUDGET_EXHAUSTED", &["4194304"]);
    assert_eq!(budget(&client).await, before, "it fits beside the resident entry while it comes");
}

#[tokio::test(flavor = "multi_thread")]
async fn room_for_an_upload_is_made_by_the_least_recently_used() {
    let daemon = Daemon::start_with(&["--budget-bytes", "4 MiB"]);
    let client = daemon.client().await;
    for key in ["oldest", "older", "newest"] {
        client.install(flat(key, &code(MIB))).await.unwrap();
    }
    let keys = async || {
        let entries = client.list(ListRequest::default()).await.unwrap().entries;
        entries.into_iter().map(|it| String::from_utf8(it.key.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    let upload = Upload::begin(&client, "upload", 5 * MIB / 4).await;
    until_uploads_are(&client, 5 * MIB / 4).await;
    assert_eq!(keys().await, ["newest", "older"]);
    upload.chunk(&code(MIB)).await;
    upload.chunk(&[0x90; MIB / 4]).await;
    let answer = upload.end().await.unwrap();
    assert_eq!((answer.evicted_entries, keys().await), (2, vec!["newest".to_owned(), "upload".to_owned()]));
    let now = budget(&client).await;
    assert!(now.uploads_bytes == 0 && answer.evicted_bytes > 2 << 20, "{answer:?}");
    // All that is there may be an upload; then nobody can go.
    let upload = Upload::begin(&client, "all", 4 * MIB).await;
    until_uploads_are(&client, 4 * MIB).await;
    assert!(keys().await.is_empty());
    let error = client.install(flat("k", ADD)).await.unwrap_err();
    assert_is(&error, Code::ResourceExhausted, "ALL_ENTRIES_PINNED", &[]);
    upload.leave().await;
    until_uploads_are(&client, 0).await;
    assert_eq!(budget(&client).await.charged_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_nothing_is_refused_and_one_that_sends_little_is_not() {
    let daemon = Daemon::start_with(&["--set", "server.stream_idle_timeout_ms=1000"]);
    let client = daemon.client().await;
    let before = budget(&client).await;
    let error = Upload::open(&client).refused().await;
    assert_is(&error, Code::DeadlineExceeded, "DEADLINE_BEFORE_START", &["1000 ms"]);
    let upload = Upload::begin(&client, "k", 1000).await;
    upload.chunk(&[0x90; 999]).await;
    assert_is(&upload.refused().await, Code::DeadlineExceeded, "DEADLINE_BEFORE_START", &["nothing"]);
    until_budget_is(&client, before).await;
    let blob = code(8);
    let upload = Upload::begin(&client, "slow", blob.len()).await;
    for byte in blob.chunks(1) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        upload.chunk(byte).await;
    }
    assert!(upload.end().await.unwrap().created, "1.6 s in all, but never 1 s without a word");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_during_an_upload_ends_it() {
    let daemon = Daemon::start_with(&["--set", "server.request_timeout_max_ms=500"]);
    let client = daemon.client().await;
    let upload = Upload::begin(&client, "k", 1000).await;
    let error = upload.refused().await;
    assert_is(&error, Code::DeadlineExceeded, "DEADLINE_BEFORE_START", &["before its blob was there"]);
    until_uploads_are(&client, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_uploads_than_allowed_are_refused_and_take_no_place_from_other_requests() {
    let flags = ["--set", "server.streams_max=2", "--set", "server.requests_in_flight_max=1"];
    let daemon = Daemon::start_with(&flags);
    let client = daemon.client().await;
    let blob = code(100_000);
    let first = Upload::begin(&client, "first", blob.len()).await;
    let second = Upload::begin(&client, "second", blob.len()).await;
    until_uploads_are(&client, 200_000).await;
    let error = Upload::begin(&client, "third", blob.len()).await.refused().await;
    assert_is(&error, Code::ResourceExhausted, "SERVER_BUSY", &["2 uploads"]);
    assert!(error.retry_delay().is_some());
    client.install(flat("unary", ADD)).await.unwrap();
    first.chunk(&blob).await;
    first.end().await.unwrap();
    second.leave().await;
    until_uploads_are(&client, 0).await;
    until("a place to be free", async || {
        let third = Upload::begin(&client, "third", blob.len()).await;
        third.chunk(&blob).await;
        third.end().await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_under_way_is_finished_when_the_daemon_stops() {
    let mut daemon = Daemon::start();
    let client = daemon.client().await;
    let blob = code(100_000);
    let upload = Upload::begin(&client, "k", blob.len()).await;
    upload.chunk(&blob[..50_000]).await;
    until_uploads_are(&client, blob.len()).await;
    daemon.terminate();
    let absent =
        || EvictRequest { target: Some(Target::Key(Bytes::from_static(b"absent"))), ..EvictRequest::default() };
    until("new work to be refused", async || client.evict(absent()).await.unwrap_err().is_unavailable().then_some(()))
        .await;
    upload.chunk(&blob[50_000..]).await;
    assert!(upload.end().await.unwrap().created);
    assert_eq!(daemon.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_is_exact_while_uploads_come_fail_and_leave_at_once() {
    let daemon = Daemon::start_with(&["--budget-bytes", "8 MiB"]);
    let watcher = daemon.client().await;
    let mut clients = Vec::new();
    for seed in 1..=4 {
        let client = daemon.client().await;
        clients.push(tokio::spawn(async move { upload_at_random(&client, seed).await }));
    }
    while clients.iter().any(|client| !client.is_finished()) {
        // Holds the budget to its limit and to its parts.
        budget(&watcher).await;
    }
    let mut installed = 0;
    for client in clients {
        installed += client.await.unwrap();
    }
    assert!(installed > 20, "only {installed} were installed");
    until_uploads_are(&watcher, 0).await;
    let entries = watcher.list(ListRequest::default()).await.unwrap().entries;
    let charged: u64 = entries.iter().map(|entry| entry.charged_bytes).sum();
    assert_eq!(budget(&watcher).await.charged_bytes, charged);
    assert!(watcher.status().await.unwrap().counters.unwrap().capacity_evictions > 10, "little was evicted");
}

/// Uploads that end well, end early, bring too much, or leave; how many ended well.
async fn upload_at_random(client: &Client, seed: u64) -> u32 {
    let mut random = Random(seed);
    let mut installed = 0;
    for step in 0..60 {
        let blob = code(20_000 + random.below(MIB as u64) as usize);
        let upload = Upload::begin(client, &format!("{seed}/{step}"), blob.len()).await;
        let kind = random.below(6);
        let part = if kind < 3 { blob.len() } else { random.below(blob.len() as u64) as usize };
        for chunk in blob[..part].chunks(100_000) {
            upload.chunk(chunk).await;
        }
        match kind {
            0..3 => match upload.end().await {
                Ok(_) => installed += 1,
                Err(error) => assert_eq!(error.code(), Some(Code::ResourceExhausted), "seed {seed}, {step}: {error}"),
            },
            3 => assert!(upload.end().await.is_err(), "seed {seed}, {step}"),
            4 => {
                upload.chunk(&blob).await;
                assert!(upload.end().await.is_err(), "seed {seed}, {step}");
            }
            _ => {
                // It may have been refused already for lack of room.
                upload.answer.abort();
                let _left = upload.answer.await;
            }
        }
    }
    installed
}
