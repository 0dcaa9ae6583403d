//! The daemon of the demo: a process of this same program.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::DemoError;

/// Mapping and trying executable memory takes milliseconds; a busy machine may take longer.
const START_MAX: Duration = Duration::from_secs(10);

/// The default grace, and a little more.
const STOP_MAX: Duration = Duration::from_secs(12);

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Lines of the log that are kept to explain a failure.
const LOG_LINES_MAX: usize = 20;

/// Bytes of a line of the log that are looked at.
const LOG_LINE_MAX_BYTES: u64 = 64 << 10;

/// A running daemon; stopped when dropped.
pub(super) struct Daemon {
    child: Child,
    log: Log,
    /// As a client takes it.
    pub(super) address: String,
    /// Of the HTTP server.
    pub(super) metrics: SocketAddr,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<VecDeque<String>>>);

/// What the daemon says when it takes requests.
struct Ready {
    address: String,
    metrics: SocketAddr,
}

impl Daemon {
    /// Starts one, and waits until it takes requests.
    pub(super) fn start(directory: &Path, budget_bytes: u64) -> Result<Self, DemoError> {
        let program = std::env::current_exe().map_err(DemoError::system("find this program"))?;
        let mut command = Command::new(program);
        command.arg("serve");
        command.arg("--listen").arg(format!("unix:{}", directory.join("codecached.sock").display()));
        command.args(["--metrics", "127.0.0.1:0", "--log-format", "json", "--log-level", "info"]);
        command.args(["--budget-bytes", &budget_bytes.to_string()]);
        // What the shell has set for a real daemon is not meant for this one.
        let set = std::env::vars_os().map(|(name, _)| name);
        for name in set.filter(|name| name.to_string_lossy().starts_with("CODECACHED_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = Stopping(Some(command.spawn().map_err(DemoError::system("start the daemon"))?));
        let log = Log::default();
        let ready = child.stderr().map(|stderr| log.follow(stderr));
        let ready = ready.and_then(|ready| ready.recv_timeout(START_MAX).ok());
        let Some(Ready { address, metrics }) = ready else {
            drop(child);
            return Err(DemoError::Daemon { why: "the daemon did not get ready".into(), log: log.tail() });
        };
        let child = child.0.take().expect("the child is there until it is taken here");
        Ok(Self { child, log, address, metrics })
    }

    /// Process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to drain, and waits until it has exited well.
    pub(super) fn stop(&mut self) -> Result<(), DemoError> {
        let why = match stop(&mut self.child) {
            Some(status) if status.success() => return Ok(()),
            Some(status) => format!("the daemon ended with {status}"),
            None => "the daemon did not end in time".to_owned(),
        };
        Err(DemoError::Daemon { why, log: self.log.tail() })
    }

    /// `error`, or what is behind it if the daemon is no more.
    pub(super) fn explain(&mut self, error: DemoError) -> DemoError {
        match self.child.try_wait() {
            Ok(Some(status)) => {
                DemoError::Daemon { why: format!("{error}; the daemon ended with {status}"), log: self.log.tail() }
            }
            _ => error,
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// A child that is stopped unless it is taken out.
struct Stopping(Option<Child>);

impl Stopping {
    fn stderr(&mut self) -> Option<ChildStderr> {
        self.0.as_mut().and_then(|child| child.stderr.take())
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            stop(child);
        }
    }
}

/// SIGTERM, and SIGKILL to what does not heed it; none in that case.
fn stop(child: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + STOP_MAX;
    if let Ok(None) = child.try_wait()
        && let Ok(pid) = i32::try_from(child.id())
    {
        // Not yet waited for, so the id is still the child's.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    while Instant::now() < end {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        thread::sleep(POLL_INTERVAL);
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

impl Log {
    /// Reads until the end, so that the daemon never waits for its log to be read; sends what it says when ready.
    fn follow(&self, stderr: ChildStderr) -> mpsc::Receiver<Ready> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let log = self.clone();
        thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            while let Some(line) = next_line(&mut stderr) {
                if let Some(ready) = parse_ready(&line) {
                    // The receiver may have given up.
                    let _ = sender.try_send(ready);
                }
                log.keep(line);
            }
        });
        receiver
    }

    fn keep(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LOG_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn tail(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}

fn next_line(from: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let read = from.take(LOG_LINE_MAX_BYTES).read_until(b'\n', &mut line).ok()?;
    (read > 0).then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn parse_ready(line: &str) -> Option<Ready> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = &line["fields"];
    if fields["message"] != "ready" {
        return None;
    }
    let text = |name: &str| fields[name].as_str();
    Some(Ready { address: text("listen")?.to_owned(), metrics: text("metrics")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_understood_and_others_are_not() {
        let line = r#"{"level":"INFO","fields":{"message":"ready","listen":"unix:/x/s","metrics":"127.0.0.1:9"}}"#;
        let ready = parse_ready(line).unwrap();
        assert_eq!((ready.address.as_str(), ready.metrics.port()), ("unix:/x/s", 9));
        for other in [r#"{"fields":{"message":"stopped"}}"#, "ready", r#"{"fields":{"message":"ready"}}"#] {
            assert!(parse_ready(other).is_none(), "{other}");
        }
    }

    #[test]
    fn only_the_last_lines_of_a_log_are_kept() {
        let log = Log::default();
        (0..LOG_LINES_MAX + 5).for_each(|number| log.keep(number.to_string()));
        let tail = log.tail();
        assert_eq!((tail.lines().count(), tail.lines().next()), (LOG_LINES_MAX, Some("  5")));
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let endless = vec![b'x'; LOG_LINE_MAX_BYTES as usize + 1];
        assert_eq!(next_line(&mut endless.as_slice()).unwrap().len(), LOG_LINE_MAX_BYTES as usize);
        assert_eq!(next_line(&mut [].as_slice()), None);
    }
}
