//! A container without an image: runc, with the machine's libraries mounted read-only.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Nobody's, as in the image.
const USER: u32 = 65532;
/// Where the volume is in the container.
pub const VOLUME: &str = "/run/codecached";

/// A running container; stopped and removed on drop.
pub struct Container {
    child: Child,
    directory: TempDir,
    id: String,
    output: Arc<Mutex<Vec<String>>>,
}

impl Container {
    /// Runs a program of this machine under a profile, or under none.
    pub fn run(program: &Path, arguments: &[&str], profile: Option<&Value>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::tempdir().unwrap();
        let id = format!("codecached-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        for name in ["rootfs", "volume", "state"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        // The daemon's user must come to its own directory.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        chown(directory.path().join("volume"), Some(USER), Some(USER)).unwrap();
        let own = directory.path().join("volume/file");
        fs::write(&own, "").unwrap();
        chown(own, Some(USER), Some(USER)).unwrap();
        let bundle = bundle(directory.path(), program, arguments, profile);
        fs::write(directory.path().join("config.json"), bundle.to_string()).unwrap();
        let mut child = runc(directory.path())
            .args(["run", "--bundle"])
            .arg(directory.path())
            .arg(&id)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::default();
        collect(child.stdout.take().unwrap(), &output);
        collect(child.stderr.take().unwrap(), &output);
        Self { child, directory, id, output }
    }

    /// All lines so far, of both channels.
    pub fn output(&self) -> Vec<String> {
        self.output.lock().unwrap().clone()
    }

    /// The volume, as this machine sees it.
    pub fn volume(&self) -> PathBuf {
        self.directory.path().join("volume")
    }

    /// Runs a program of the container in it, as `docker exec` and health checks do.
    pub fn exec(&self, arguments: &[&str]) -> ExitStatus {
        runc(self.directory.path()).arg("exec").arg(&self.id).args(arguments).output().unwrap().status
    }

    pub fn terminate(&self) {
        let sent = runc(self.directory.path()).args(["kill", &self.id, "TERM"]).status();
        assert!(sent.unwrap().success());
    }

    /// The exit code, or nothing if it has not ended by then.
    pub fn ended_within(&mut self, patience: Duration) -> Option<i32> {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                // What was written last is still on its way.
                thread::sleep(Duration::from_millis(20));
                return Some(status.code().unwrap_or(-1));
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let removed =
            || runc(self.directory.path()).args(["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        let _gone = removed();
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
        let _gone = removed();
    }
}

fn runc(directory: &Path) -> Command {
    let mut command = Command::new("runc");
    command.arg("--root").arg(directory.join("state")).stdin(Stdio::null());
    command
}

fn collect(from: impl Read + Send + 'static, output: &Arc<Mutex<Vec<String>>>) {
    let output = Arc::clone(output);
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            output.lock().unwrap().push(line);
        }
    });
}

/// As `--read-only --cap-drop=ALL --user 65532:65532 --security-opt no-new-privileges` say it.
fn bundle(directory: &Path, program: &Path, arguments: &[&str], profile: Option<&Value>) -> Value {
    let inside = format!("/bin/{}", program.file_name().unwrap().to_str().unwrap());
    let command: Vec<&str> = std::iter::once(inside.as_str()).chain(arguments.iter().copied()).collect();
    let mount = |from: &Path, to: &str, mode: &str| json!({ "destination": to, "source": from, "type": "bind", "options": ["rbind", "nosuid", "nodev", mode] });
    let mut mounts = vec![json!({ "destination": "/proc", "type": "proc", "source": "proc" })];
    let libraries = ["/lib", "/lib64", "/usr/lib"].into_iter().filter(|path| Path::new(path).exists());
    mounts.extend(libraries.map(|path| mount(Path::new(path), path, "ro")));
    let client = Path::new(env!("CARGO_BIN_EXE_codecachectl"));
    mounts.push(mount(client, "/bin/codecachectl", "ro"));
    if program != client {
        mounts.push(mount(program, &inside, "ro"));
    }
    mounts.push(mount(&directory.join("volume"), VOLUME, "rw"));
    let none: [&str; 0] = [];
    let capabilities = json!({ "bounding": none, "effective": none, "permitted": none, "ambient": none });
    let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": USER, "gid": USER },
            "args": command,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": capabilities,
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": mounts,
        "linux": { "namespaces": namespaces, "seccomp": profile },
    })
}
