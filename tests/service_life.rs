//! The daemon as a process: deadlines, clients that leave, health, reflection, start and stop.

mod support;

use std::{process::Command, time::Duration};

use codecached::proto::{ExecuteRequest, ResultType, TrapKind, value::Kind};
use support::{ADD, Daemon, PATIENCE, call, elf, flat, handle, returned, trapped, until};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// A loop that ends only when it is stopped.
const SPIN: &[u8] = &[0xeb, 0xfe];

fn spin(entry: u64, seconds: i64) -> ExecuteRequest {
    ExecuteRequest {
        cpu_limit: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..call(entry, "f", Vec::new(), ResultType::Void)
    }
}

async fn channel(daemon: &Daemon) -> tonic::transport::Channel {
    let path = daemon.socket();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    tonic::transport::Endpoint::from_static("http://daemon").connect_with_connector(connector).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_stops_a_call_and_says_whether_it_ran() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=1"]);
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    let hasty = client.with_timeout(Duration::from_millis(100));
    let error = hasty.execute(spin(entry, 30)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::DeadlineExceeded), "{error}");
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.with_timeout(Duration::from_secs(2)).execute(spin(entry, 30)).await }
    });
    until("the call to run", async || (client.status().await.unwrap().executors.unwrap().running == 1).then_some(()))
        .await;
    let waiting = hasty.execute(spin(entry, 30)).await.unwrap_err();
    assert_eq!(waiting.code(), Some(Code::DeadlineExceeded), "{waiting}");
    assert_eq!(running.await.unwrap().unwrap_err().code(), Some(Code::DeadlineExceeded));
    until("the executor to be free", async || {
        let executors = client.status().await.unwrap().executors.unwrap();
        (executors.running + executors.queued == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_tell_a_deadline_before_the_start_from_one_during_the_call() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=1"]);
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    // Of a bare stub, so that nothing but the header and the daemon's answer decide.
    let ask = async |timeout: &'static str| {
        let mut request = tonic::Request::new(spin(entry, 30));
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        let channel = channel(&daemon).await;
        let mut stub = codecached::proto::execution_service_client::ExecutionServiceClient::new(channel);
        let status = stub.execute(request).await.unwrap_err();
        tonic_types::StatusExt::get_details_error_info(&status).map(|it| it.reason).unwrap_or_default()
    };
    // The stub's own timer may be first, and knows no reason: then ask again.
    let reason = async || {
        until("the daemon's own answer", async || Some(ask("50m").await).filter(|reason| !reason.is_empty())).await
    };
    assert_eq!(reason().await, "DEADLINE_DURING_CALL");
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.execute(spin(entry, 50)).await }
    });
    until("the executor to be taken", async || {
        (client.status().await.unwrap().executors.unwrap().running == 1).then_some(())
    })
    .await;
    assert_eq!(reason().await, "DEADLINE_BEFORE_START");
    running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_during_a_call_or_an_upload_leaves_nothing_behind() {
    let mut daemon = Daemon::start();
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    let before = client.status().await.unwrap();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let open_before = descriptors();
    for _ in 0..20 {
        let leaving = daemon.client().await;
        let call = tokio::spawn(async move { leaving.execute(spin(entry, 50)).await });
        until("a call to run", async || (client.status().await.unwrap().executors.unwrap().running > 0).then_some(()))
            .await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
    for round in 0..20 {
        half_an_install(&daemon, round).await;
    }
    until("all to be as before", async || {
        let now = client.status().await.unwrap();
        let executors = now.executors.unwrap();
        let same = now.budget == before.budget && now.entries == before.entries && now.arena == before.arena;
        (same && executors.running + executors.queued == 0 && descriptors() <= open_before).then_some(())
    })
    .await;
    assert!(daemon.is_running());
}

/// Sends the head of an Install and a part of its message, and hangs up.
async fn half_an_install(daemon: &Daemon, round: usize) {
    use tokio::io::AsyncWriteExt;
    let mut stream = tokio::net::UnixStream::connect(daemon.socket()).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    // HPACK: indexed ":method: POST" and ":scheme: http", then literals without indexing.
    let mut head = vec![0x83, 0x86];
    for (name, value) in [
        (":path", "/codecache.v1.CodeCacheService/Install"),
        (":authority", "d"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        head.extend([0, name.len() as u8]);
        head.extend(name.as_bytes());
        head.push(value.len() as u8);
        head.extend(value.as_bytes());
    }
    frame(&mut stream, 1, 4, &head).await;
    let mut body = vec![0];
    body.extend(100_000_u32.to_be_bytes());
    body.resize(100 + round * 500, 0);
    frame(&mut stream, 0, 0, &body).await;
    stream.flush().await.unwrap();
}

async fn frame(stream: &mut tokio::net::UnixStream, kind: u8, flags: u8, payload: &[u8]) {
    use tokio::io::AsyncWriteExt;
    let length = (payload.len() as u32).to_be_bytes();
    stream.write_all(&[length[1], length[2], length[3], kind, flags, 0, 0, 0, 1]).await.unwrap();
    stream.write_all(payload).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_refused_at_once_and_empties_again() {
    let daemon = Daemon::start_with(&["--set", "exec.executors=1", "--set", "exec.queue_max=2"]);
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    let add = handle(&client.install(flat("add", ADD)).await.unwrap());
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut request = spin(entry, 0);
                request.cpu_limit = Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 });
                client.execute(request).await
            })
        })
        .collect();
    let (mut stopped, mut refused) = (0, 0);
    for one in calls {
        match one.await.unwrap() {
            Ok(answer) => {
                assert_eq!(trapped(answer).kind(), TrapKind::Timeout);
                stopped += 1;
            }
            Err(error) => {
                assert_eq!((error.code(), error.reason()), (Some(Code::ResourceExhausted), "EXECUTORS_SATURATED"));
                assert!(error.retry_delay().is_some());
                refused += 1;
            }
        }
    }
    // As many as may wait, and one more if the executor was quick to take one.
    assert!(stopped >= 2 && refused >= 1, "{stopped} ran, {refused} were refused");
    let sum = client.execute(call(add, "f", vec![Kind::I32(2), Kind::I32(3)], ResultType::I32)).await.unwrap();
    assert_eq!(returned(sum).0, Some(Kind::I32(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_entry_that_runs_lingers_and_evict_can_wait_for_it() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.execute(spin(entry, 1)).await }
    });
    until("the call to run", async || (client.status().await.unwrap().executors.unwrap().running == 1).then_some(()))
        .await;
    let evict = |wait| codecached::proto::EvictRequest {
        target: Some(codecached::proto::evict_request::Target::Key(b"spin"[..].into())),
        wait,
        ..Default::default()
    };
    let gone = client.evict(evict(false)).await.unwrap();
    assert_eq!(gone.state(), codecached::proto::EvictState::Lingering);
    let status = client.status().await.unwrap();
    assert_eq!(status.entries.unwrap().lingering, 1);
    assert_eq!(status.budget.unwrap().lingering_bytes, gone.charged_bytes);
    assert_eq!(trapped(running.await.unwrap().unwrap()).kind(), TrapKind::Timeout);

    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.execute(spin(entry, 1)).await }
    });
    until("the call to run", async || (client.status().await.unwrap().executors.unwrap().running == 1).then_some(()))
        .await;
    let gone = client.evict(evict(true)).await.unwrap();
    assert_eq!(gone.state(), codecached::proto::EvictState::Freed);
    assert_eq!(client.status().await.unwrap().budget.unwrap().charged_bytes, 0);
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer_in_the_standard_way() {
    let daemon = Daemon::start();
    let mut health = HealthClient::new(channel(&daemon).await);
    for service in ["", "codecache.v1.CodeCacheService", "codecache.v1.ExecutionService", "codecache.v1.AdminService"] {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let mut reflection = ServerReflectionClient::new(channel(&daemon).await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|it| it.name).collect();
    assert!(names.contains(&"codecache.v1.ExecutionService".to_owned()), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_refuses_new_work_finishes_what_runs_and_exits_0() {
    let mut daemon = Daemon::start();
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    let mut health = HealthClient::new(channel(&daemon).await);
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.execute(spin(entry, 1)).await }
    });
    until("the call to run", async || (client.status().await.unwrap().executors.unwrap().running == 1).then_some(()))
        .await;
    daemon.terminate();
    until("health to flip", async || {
        let answer = health.check(HealthCheckRequest { service: String::new() }).await.unwrap();
        (answer.into_inner().status() == ServingStatus::NotServing).then_some(())
    })
    .await;
    let refused = until("new work to be refused", async || {
        client.execute(call(entry, "f", Vec::new(), ResultType::Void)).await.err()
    })
    .await;
    assert_eq!(refused.code(), Some(Code::Unavailable), "{refused}");
    assert_eq!(trapped(running.await.unwrap().unwrap()).kind(), TrapKind::Timeout, "what ran was finished");
    assert_eq!(daemon.wait(), Some(0));
    assert!(!daemon.socket().exists(), "the socket is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_end_is_given_up_after_the_grace() {
    let mut daemon = Daemon::start_with(&["--set", "server.grace_ms=300"]);
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    let _running = tokio::spawn(async move { client.execute(spin(entry, 50)).await });
    let client = daemon.client().await;
    until("the call to run", async || (client.status().await.unwrap().executors.unwrap().running == 1).then_some(()))
        .await;
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_stay_open_do_not_hold_up_the_end() {
    let mut daemon = Daemon::start_with(&["--set", "server.grace_ms=600000"]);
    let silent = tokio::net::UnixStream::connect(daemon.socket()).await.unwrap();
    let idle = daemon.client().await;
    idle.status().await.unwrap();
    let mut health = HealthClient::new(channel(&daemon).await);
    let watch = health.watch(HealthCheckRequest { service: String::new() }).await.unwrap();
    daemon.terminate();
    // Patience is a tenth of the grace.
    assert_eq!(daemon.wait(), Some(0));
    drop((silent, idle, watch));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_that_install_one_key_at_once_make_one_entry() {
    let daemon = Daemon::start();
    for round in 0..20 {
        let installs: Vec<_> = (0..8)
            .map(|_| {
                let target = daemon.target.clone();
                tokio::spawn(async move {
                    let client = codecached::client::Client::connect(&target).await.unwrap();
                    let blob = [ADD, &vec![0x90; 40_000]].concat();
                    client.install(flat(&format!("k{round}"), &blob)).await.unwrap()
                })
            })
            .collect();
        let (mut created, mut handles) = (0, Vec::new());
        for install in installs {
            let answer = install.await.unwrap();
            created += u32::from(answer.created);
            handles.push(handle(&answer));
        }
        handles.dedup();
        assert_eq!((created, handles.len()), (1, 1), "round {round}");
    }
    let status = daemon.client().await.status().await.unwrap();
    assert_eq!((status.entries.unwrap().resident, status.counters.unwrap().capacity_evictions), (20, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_socket_is_not_taken_away_and_a_stale_one_is_replaced() {
    let first = Daemon::start();
    let target = format!("unix:{}", first.socket().display());
    let second = Command::new(env!("CARGO_BIN_EXE_codecached"))
        .args(["serve", "--metrics", "off", "--listen", &target])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("served by another process"), "{text}");
    first.client().await.status().await.unwrap();

    let directory = tempfile::tempdir().unwrap();
    let stale = directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    let third = Daemon::start_with(&["--listen", &format!("unix:{}", stale.display())]);
    assert!(third.target.contains("stale.sock"), "{}", third.target);
    let client = codecached::client::Client::connect(&format!("unix:{}", stale.display())).await.unwrap();
    client.status().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_tcp_serves_too_and_other_addresses_are_refused() {
    let daemon = Daemon::start_with(&["--listen", "tcp:127.0.0.1:0"]);
    let tcp = daemon.target.split(' ').find(|it| it.starts_with("http://")).unwrap().to_owned();
    let client = codecached::client::Client::connect(&tcp).await.unwrap();
    let entry = handle(&client.install(elf("doubles", support::compile("doubles.c"))).await.unwrap());
    returned(client.execute(call(entry, "horner", vec![Kind::F64(1.0)], ResultType::F64)).await.unwrap());
    let open = Command::new(env!("CARGO_BIN_EXE_codecached"))
        .args(["serve", "--metrics", "off", "--listen", "tcp:0.0.0.0:0"])
        .output()
        .unwrap();
    assert!(!open.status.success());
    let text = String::from_utf8_lossy(&open.stderr);
    assert!(text.contains("loopback"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_probes_answer_and_count() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("add", ADD)).await.unwrap());
    for _ in 0..5 {
        client.execute(call(entry, "f", Vec::new(), ResultType::I32)).await.unwrap();
    }
    let get = async |path: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(&daemon.metrics).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut text = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
        text
    };
    let scrape = get("/metrics").await;
    for line in [
        "codecache_executions_total{outcome=\"returned\"} 5",
        "codecache_installs_total{result=\"created\"} 1",
        "codecache_entries{state=\"resident\"} 1",
        "codecache_ready 1",
    ] {
        assert!(scrape.lines().any(|it| it == line), "{line} is not in\n{scrape}");
    }
    assert!(get("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/else").await.starts_with("HTTP/1.1 404"));
}

#[test]
fn check_and_wrong_configurations_say_what_is_wrong() {
    let run = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_codecached")).args(flags).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = run(&["check"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("memory strategy: memfd"), "{text}");
    let (code, text) = run(&["check", "--set", "cache.budget_byte=1"]);
    assert!(code != Some(0) && text.contains("budget_byte"), "{text}");
    let (code, text) = run(&["check", "--set", "exec.cpu_limit_default_ms=0"]);
    assert!(code != Some(0) && text.contains("cpu_limit_default_ms"), "{text}");
    let (code, text) = run(&["serve", "--config", "/nonexistent/config.toml"]);
    assert!(code != Some(0) && text.contains("/nonexistent/config.toml"), "{text}");
    let (code, _) = run(&["serve", "--no-such-flag"]);
    assert_eq!(code, Some(2));
}
