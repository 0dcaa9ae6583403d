//! The daemon under a service manager: what it tells by systemd's protocol, sockets that it is handed, and a kernel that
//! refuses memory which is both writable and executable.

mod support;

use std::{
    fs,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixListener},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use codecached::{client::Client, proto::ResultType};
use support::{ADD, Daemon, PATIENCE, call, flat, handle, returned};

const BINARY: &str = env!("CARGO_BIN_EXE_codecached");

/// Messages until one has this line.
fn told(socket: &UnixDatagram, line: &str) -> String {
    let until = Instant::now() + PATIENCE;
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    loop {
        let mut buffer = [0; 4096];
        let bytes = socket.recv(&mut buffer).unwrap();
        let text = String::from_utf8(buffer[..bytes].to_vec()).unwrap();
        if text.lines().any(|it| it == line) {
            return text;
        }
        assert!(Instant::now() < until, "{line} does not come, only {text}");
    }
}

async fn works(target: &str) {
    let client = Client::connect(target).await.unwrap().with_timeout(PATIENCE);
    let entry = handle(&client.install(flat("add", ADD)).await.unwrap());
    returned(client.execute(call(entry, "f", Vec::new(), ResultType::I32)).await.unwrap());
}

#[test]
fn the_manager_is_told_that_it_is_ready_alive_and_stopping() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut command = Command::new(BINARY);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").stdin(Stdio::null());
    let mut daemon = Daemon::start_by(directory, command, &["--set", "server.grace_ms=1500"]);
    assert!(told(&manager, "READY=1").contains(&format!("STATUS=serving on {}", daemon.target)));
    for _ in 0..3 {
        told(&manager, "WATCHDOG=1");
    }
    daemon.terminate();
    let stopping = told(&manager, "STOPPING=1");
    assert!(stopping.contains("\nEXTEND_TIMEOUT_USEC=6500000"), "{stopping}");
    assert_eq!(daemon.wait(), Some(0));
}

#[test]
fn a_name_in_the_abstract_namespace_will_do_and_a_manager_that_is_gone_hinders_nothing() {
    let name = format!("codecached-test-{}", std::process::id());
    let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let mut command = Command::new(BINARY);
    command.env("NOTIFY_SOCKET", format!("@{name}")).env("WATCHDOG_USEC", "20000").stdin(Stdio::null());
    let mut daemon = Daemon::start_by(tempfile::tempdir().unwrap(), command, &[]);
    told(&manager, "READY=1");
    drop(manager);
    std::thread::sleep(Duration::from_millis(100));
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0));
    assert!(daemon.log().contains("the service manager cannot be told"), "{}", daemon.log());
}

#[test]
fn a_watchdog_of_another_process_is_not_fed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut command = Command::new(BINARY);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1").stdin(Stdio::null());
    let mut daemon = Daemon::start_by(directory, command, &[]);
    std::thread::sleep(Duration::from_millis(100));
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0));
    manager.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    while let Ok(bytes) = manager.recv(&mut buffer) {
        assert!(!buffer[..bytes].starts_with(b"WATCHDOG"));
    }
}

/// A shell that hands its standard input on as the first passed socket.
fn handing_on(socket: OwnedFd) -> Command {
    let mut command = Command::new("sh");
    let script = r#"LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@" 3<&0 </dev/null"#;
    command.args(["-c", script, BINARY]).stdin(socket);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_passed_is_served_and_left_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("codecached.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let kept = listener.try_clone().unwrap();
    let mut daemon = Daemon::start_by(directory, handing_on(listener.into()), &[]);
    works(&daemon.target).await;
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0));
    assert!(path.exists(), "it belongs to the manager");
    // Whoever comes between two daemons waits for the next one.
    let waiting = tokio::spawn(async move { works(&format!("unix:{}", path.display())).await });
    let path = daemon.socket();
    let _next = next_daemon(kept, &path);
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
}

/// One more on the same socket, killed on drop.
fn next_daemon(listener: UnixListener, path: &Path) -> impl Drop {
    struct Killed(std::process::Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _killed = self.0.kill();
            let _reaped = self.0.wait();
        }
    }
    let listen = format!("unix:{}", path.display());
    let mut command = handing_on(listener.into());
    command.args(["serve", "--metrics", "off", "--log-level", "error", "--listen", &listen]);
    Killed(command.spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_is_passed_as_well() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let command = handing_on(listener.into());
    let listen = format!("tcp:{address}");
    let daemon = Daemon::start_by(tempfile::tempdir().unwrap(), command, &["--listen", &listen]);
    assert!(daemon.target.contains(&format!("http://{address}")), "{}", daemon.target);
    works(&format!("http://{address}")).await;
}

#[test]
fn a_passed_socket_that_nobody_listens_on_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |socket: OwnedFd| {
        let own = format!("unix:{}/own.sock", directory.path().display());
        let mut command = handing_on(socket);
        let output = command.args(["serve", "--metrics", "off", "--listen", &own]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = refused(UnixListener::bind(directory.path().join("other.sock")).unwrap().into());
    assert!(error.contains("other.sock") && error.contains("server.listen"), "{error}");
    // No port of another machine's is served either, whoever opened it.
    let error = refused(std::net::TcpListener::bind("0.0.0.0:0").unwrap().into());
    assert!(error.contains("0.0.0.0"), "{error}");
    let error = refused(tempfile::tempfile().unwrap().into());
    assert!(error.contains("passed"), "{error}");
}

/// What `MemoryDenyWriteExecute=` of systemd asks for since Linux 6.3, and what older ones do by a filter: see the
/// profiles of deploy/seccomp.
const DENYING: &str = r"
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int count, char **arguments) {
    if (count < 2 || prctl(65 /* PR_SET_MDWE */, 1 /* PR_MDWE_REFUSE_EXEC_GAIN */, 0, 0, 0) != 0) return 77;
    if (mmap(0, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) return 78;
    execv(arguments[1], arguments + 1);
    return 79;
}";

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_denies_memory_to_be_written_and_executed_hinders_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (source, program) = (directory.path().join("deny.c"), directory.path().join("deny"));
    fs::write(&source, DENYING).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    assert!(Command::new(compiler).arg("-o").arg(&program).arg(&source).status().unwrap().success());
    let probed = Command::new(&program).arg("/bin/true").status().unwrap().code();
    if probed == Some(77) {
        eprintln!("skipped: this kernel has no PR_SET_MDWE (Linux 6.3)");
        return;
    }
    assert_eq!(probed, Some(0));
    let mut command = Command::new(&program);
    command.arg(BINARY).stdin(Stdio::null());
    let daemon = Daemon::start_by(directory, command, &[]);
    works(&daemon.target).await;
    let mode = fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
    assert!(!mode.lines().any(|line| line.contains(" rwx")), "{mode}");
    // What it keeps the daemon from is what the configuration has to allow first.
    let flags = ["check", "--set", "arena.allow_mprotect=true"];
    let check = Command::new(&program).arg(BINARY).args(flags).output().unwrap();
    let text = String::from_utf8(check.stdout).unwrap();
    assert!(text.lines().any(|line| !line.starts_with("ok") && line.contains("mprotect")), "{text}");
}
