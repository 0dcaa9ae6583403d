//! `codecached demo`: the whole main job in a few seconds, told to the person who watches.

mod child;
mod flat;
mod narrator;
mod program;
mod scrape;
mod story;

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::client::ClientError;
use child::Daemon;
use narrator::Narrator;
use program::Program;

/// Small enough that a handful of installs fill it.
const BUDGET_BYTES: u64 = 2 << 20;

/// Starts a daemon in a temporary directory, tells the story with it, and stops it. Prints to standard output.
///
/// Exit code 0 if every step did what it should, else 1 with the reason on standard error.
#[must_use]
pub fn run() -> ExitCode {
    let mut narrator = Narrator::new();
    match tell(&mut narrator) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            narrator.failed(&error);
            ExitCode::FAILURE
        }
    }
}

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    /// The operating system refused something.
    #[error("cannot {doing}: {error}")]
    System {
        doing: String,
        #[source]
        error: io::Error,
    },
    /// The daemon did not start, or did not stop.
    #[error("{why}; the last lines of its log:\n{log}")]
    Daemon { why: String, log: String },
    /// The daemon refused something.
    #[error("cannot {doing}: {error}")]
    Client {
        doing: String,
        #[source]
        error: ClientError,
    },
    /// The compiler refused the program.
    #[error("cc failed: {0}")]
    Compiler(String),
    /// A step ended, but not as it should.
    #[error("{0}")]
    Wrong(String),
}

impl DemoError {
    /// `doing` fits "cannot {doing}".
    fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |error| Self::System { doing: doing.into(), error }
    }

    fn client(doing: impl Into<String>) -> impl FnOnce(ClientError) -> Self {
        |error| Self::Client { doing: doing.into(), error }
    }
}

/// Fails with `wrong` unless `right`.
fn check(right: bool, wrong: impl FnOnce() -> String) -> Result<(), DemoError> {
    if right { Ok(()) } else { Err(DemoError::Wrong(wrong())) }
}

fn tell(narrator: &mut Narrator) -> Result<(), DemoError> {
    let directory = TemporaryDirectory::create()?;
    let program = Program::make(directory.path())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(DemoError::system("start the runtime"))?;
    let mut daemon = Daemon::start(directory.path(), BUDGET_BYTES)?;
    runtime.block_on(story::tell(narrator, &daemon, &program)).map_err(|error| daemon.explain(error))?;
    // With it goes the connection, for which the daemon would wait until its grace is over.
    drop(runtime);
    daemon.stop()?;
    narrator.end();
    Ok(())
}

/// A directory of this user only, which goes away with this value.
struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    fn create() -> Result<Self, DemoError> {
        const PRIVATE: u32 = 0o700;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let path = std::env::temp_dir().join(format!("codecached-demo-{}-{since:x}", std::process::id()));
        // Fails if it is there: what another user put there is not to be trusted.
        let created = fs::DirBuilder::new().mode(PRIVATE).create(&path);
        created.map_err(DemoError::system(format!("create {}", path.display())))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // What cannot be removed is left to those who clean up temporary directories.
        let _ = fs::remove_dir_all(&self.0);
    }
}
