//! Starts daemons and compiles objects for the integration tests.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    collections::BTreeSet,
    fmt::Display,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use codecached::{
    client::Client,
    proto::{
        self, BlobFormat, ExecuteResponse, InstallRequest, InstallResponse, Value, execute_response::Outcome,
        value::Kind,
    },
};
use libtest_mimic::{Failed, Trial};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// A test of what every machine has.
pub fn sure(name: impl Into<String>, run: impl FnOnce() + Send + 'static) -> Trial {
    trial("", name, None::<&str>, run)
}

/// A test of what not every machine has. Where `missing` is lacking it is ignored, and says so; with the variable
/// `required` in the environment it fails instead.
pub fn trial(
    required: &str,
    name: impl Into<String>,
    missing: Option<impl Display>,
    run: impl FnOnce() + Send + 'static,
) -> Trial {
    let name = name.into();
    let missing = missing.map(|it| format!("{name} needs {it}"));
    if let Some(missing) = &missing {
        eprintln!("{missing}");
    }
    let is_ignored = missing.is_some() && std::env::var_os(required).is_none();
    let run = move || match missing {
        Some(missing) => Err(Failed::from(missing)),
        None => {
            run();
            Ok(())
        }
    };
    Trial::test(name, run).with_ignored_flag(is_ignored)
}

/// How long anything that should happen at once may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon of the built binary, on a unix socket of its own. Killed on drop, if it still runs.
pub struct Daemon {
    child: Child,
    directory: TempDir,
    /// What clients connect to.
    pub target: String,
    /// Address of the metrics server.
    pub metrics: String,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further flags of `codecached serve`.
    pub fn start_with(flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codecached"));
        command.stdin(Stdio::null());
        Self::start_by(tempfile::tempdir().unwrap(), command, flags)
    }

    /// By a command that becomes the daemon, whose arguments come behind its own. The socket lies in the directory.
    pub fn start_by(directory: TempDir, mut command: Command, flags: &[&str]) -> Self {
        let socket = directory.path().join("codecached.sock");
        let mut child = command
            .args(["serve", "--metrics", "127.0.0.1:0", "--log-format", "json", "--listen"])
            .arg(format!("unix:{}", socket.display()))
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (target, metrics) = ready(&mut lines, &log);
        let kept = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, directory, target, metrics, log, reader: Some(reader) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("codecached.sock")
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.target).await.unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub fn terminate(&self) {
        assert!(signal(self.pid(), Signal::SIGTERM));
    }

    /// Waits for the end; the exit code, or `None` for a signal.
    pub fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "the daemon did not end; its log:\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ended = reader.join();
        }
        if thread::panicking() {
            eprintln!("log of the daemon:\n{}", self.log());
        }
    }
}

fn ready(lines: &mut BufReader<ChildStderr>, log: &Mutex<Vec<String>>) -> (String, String) {
    loop {
        let mut line = String::new();
        let read = lines.read_line(&mut line).unwrap();
        assert!(read > 0, "the daemon ended before it was ready:\n{}", log.lock().unwrap().join("\n"));
        log.lock().unwrap().push(line.trim_end().to_owned());
        let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let field = |name: &str| json["fields"][name].as_str().or(json[name].as_str()).map(str::to_owned);
        if field("message").as_deref() == Some("ready") {
            return (field("listen").unwrap(), field("metrics").unwrap());
        }
    }
}

/// Polls until `done` answers something.
pub async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < limit, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Compiles a file of tests/objects to a relocatable object with the machine's C compiler.
/// The processes that this one has started.
pub fn children(pid: u32) -> BTreeSet<u32> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    listed.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Those of this name.
pub fn children_named(pid: u32, name: &str) -> BTreeSet<u32> {
    let is_named = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|it| it.trim() == name);
    children(pid).into_iter().filter(is_named).collect()
}

/// Sends it; false if there is no such process.
pub fn signal(pid: u32, signal: Signal) -> bool {
    kill(Pid::from_raw(pid as i32), signal).is_ok()
}

pub fn compile(file: &str) -> Vec<u8> {
    compile_with(file, &["-O2", "-fPIC"])
}

pub fn compile_with(file: &str, flags: &[&str]) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects").join(file);
    let directory = tempfile::tempdir().unwrap();
    let object = directory.path().join("object.o");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let status = Command::new(&compiler).args(flags).arg("-c").arg(&source).arg("-o").arg(&object).status();
    assert!(status.unwrap_or_else(|error| panic!("cannot run {compiler}: {error}")).success());
    std::fs::read(object).unwrap()
}

pub fn elf(key: &str, blob: Vec<u8>) -> InstallRequest {
    InstallRequest {
        key: key.as_bytes().to_vec().into(),
        format: BlobFormat::ElfObject.into(),
        blob: blob.into(),
        ..InstallRequest::default()
    }
}

/// Flat code whose one entry `f` is at its start.
pub fn flat(key: &str, blob: &[u8]) -> InstallRequest {
    InstallRequest {
        key: key.as_bytes().to_vec().into(),
        format: BlobFormat::Flat.into(),
        blob: blob.to_vec().into(),
        flat_entries: vec![proto::FlatEntry { name: "f".to_owned(), offset_bytes: 0 }],
        ..InstallRequest::default()
    }
}

/// `int f(int a, int b) { return a + b; }`
pub const ADD: &[u8] = &[0x8d, 0x04, 0x37, 0xc3];

pub fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

pub fn call(handle: u64, symbol: &str, arguments: Vec<Kind>, result: proto::ResultType) -> proto::ExecuteRequest {
    proto::ExecuteRequest {
        target: Some(proto::execute_request::Target::Handle(handle)),
        symbol: symbol.to_owned(),
        arguments: arguments.into_iter().map(value).collect(),
        result: result.into(),
        ..proto::ExecuteRequest::default()
    }
}

pub fn handle(response: &InstallResponse) -> u64 {
    response.entry.as_ref().unwrap().handle
}

/// The result and the buffers of a call that returned.
pub fn returned(response: ExecuteResponse) -> (Option<Kind>, Vec<Vec<u8>>) {
    match response.outcome.unwrap() {
        Outcome::Returned(returned) => {
            (returned.value.and_then(|it| it.kind), returned.buffers.into_iter().map(|it| it.to_vec()).collect())
        }
        Outcome::Trap(trap) => panic!("trapped: {trap:?}"),
    }
}

/// The trap of a call that did not return.
pub fn trapped(response: ExecuteResponse) -> proto::Trap {
    match response.outcome.unwrap() {
        Outcome::Returned(returned) => panic!("returned: {returned:?}"),
        Outcome::Trap(trap) => trap,
    }
}

/// A generator for tests: xorshift64*, seeded.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
