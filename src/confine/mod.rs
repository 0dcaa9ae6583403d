//! What the process gives up once it has started, for good: privileges to come, core dumps, being looked into, files
//! that are written, programs that are run, memory that becomes executable.
//!
//! [`apply`] is called by the one thread that there is, after all memory was mapped and all listeners were opened;
//! threads that are started later inherit it. Nothing that is forbidden is deadly: who asks gets an error.
//!
//! Files, from the bottom: `program` makes programs for system calls, `seccomp` puts a thread under one, `filter` is the one
//! for this process, `files` the kernel's sandbox, `attempts` tries what must be refused.

mod attempts;
mod files;
mod filter;
#[cfg(test)]
pub(crate) mod machine;
mod program;
mod seccomp;

use std::{fs, io, ops::Range, path::PathBuf, thread, time::Duration};

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};

pub use attempts::Attempt;
pub use program::{ALLOWED, AUDIT_ARCH_X86_64, INSTRUCTIONS_MAX, Program, Test, X32_BIT};
pub use seccomp::{InstallError, install};

/// How often it is looked whether a thread has ended, and how long it is waited in between.
const ENDING_LOOKS: u32 = 100;
const ENDING_PAUSE: Duration = Duration::from_millis(1);

/// Whether a measure is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Without it the process does not go on.
    Require,
    /// If it can be had.
    #[default]
    Try,
    /// No.
    Off,
}

/// What a process still needs.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Whether its system calls are filtered.
    pub system_calls: Policy,
    /// Whether the kernel's sandbox is asked for.
    pub landlock: Policy,
    /// Addresses of its executable memory.
    pub code: Vec<Range<u64>>,
    /// That memory changes between writable and executable, for want of a second view.
    pub flips_protection: bool,
    /// Directories of files that it removes.
    pub removes: Vec<PathBuf>,
    /// Directories of files that it opens to append to them.
    pub appends: Vec<PathBuf>,
    /// Sends signals to processes that it started before.
    pub signals_children: bool,
    /// Debuggers and profilers of the same user may look into it.
    pub inspected: bool,
}

/// One thing that the process gives up.
#[derive(Clone, Debug)]
pub struct Measure {
    /// What.
    pub name: &'static str,
    /// Whether it did.
    pub state: State,
    /// What is refused if it is in force, to be tried.
    pub attempts: &'static [Attempt],
}

/// Whether a measure is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is, with what is to be said of it.
    InForce(String),
    /// It cannot be had.
    Missing {
        /// What does not work.
        why: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// Nobody asked for it.
    Off(&'static str),
}

/// A measure that is required cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the process cannot be confined: {why}; {remedy}, or set {key} to try")]
pub struct ConfineError {
    /// What does not work.
    pub why: String,
    /// What can be done.
    pub remedy: &'static str,
    /// Of the configuration.
    pub key: &'static str,
}

/// What came of a step, and what is refused if it is in force.
type Taken = (State, &'static [Attempt]);
type Step<'a> = &'a dyn Fn() -> Taken;

/// Gives up all that is not needed, for good, and says what that was.
///
/// # Errors
/// What is required cannot be had. The process may have given up a part already.
pub fn apply(needs: &Needs) -> Result<Vec<Measure>, ConfineError> {
    let mut measures = vec![no_new_privileges(), no_core_dumps(), not_inspected(needs.inspected)];
    let places = files::Places {
        removes: needs.removes.clone(),
        writes: needs.appends.clone(),
        signals: needs.signals_children,
    };
    let process = filter::Process {
        code: needs.code.clone(),
        flips_protection: needs.flips_protection,
        appends: !needs.appends.is_empty(),
    };
    let steps: [(_, _, _, Step<'_>); 2] = [
        ("landlock", needs.landlock, "confine.landlock", &|| files::restrict(&places)),
        // Last: it might refuse what the others need.
        ("system calls", needs.system_calls, "confine.system_calls", &|| filtered(&process)),
    ];
    let threads = threads();
    for (name, policy, key, step) in steps {
        let (state, attempts) = match (policy, &threads) {
            (Policy::Off, _) => (State::Off("as the configuration says"), &[][..]),
            // It would hold for this one alone.
            (_, Ok(2..)) => alone("other threads run already"),
            (_, Err(_)) => alone("whether other threads run cannot be told without /proc"),
            (_, Ok(_)) => step(),
        };
        if let (Policy::Require, State::Missing { why, remedy }) = (policy, &state) {
            return Err(ConfineError { why: why.clone(), remedy, key });
        }
        measures.push(Measure { name, state, attempts });
    }
    Ok(measures)
}

fn alone(why: &str) -> Taken {
    (State::Missing { why: why.to_owned(), remedy: "start the daemon without libraries that start threads" }, &[])
}

/// How many there are. One that has ended may be seen for a moment.
fn threads() -> io::Result<usize> {
    for _ in 0..ENDING_LOOKS {
        if fs::read_dir("/proc/self/task")?.count() == 1 {
            return Ok(1);
        }
        thread::sleep(ENDING_PAUSE);
    }
    Ok(fs::read_dir("/proc/self/task")?.count())
}

fn filtered(process: &filter::Process) -> Taken {
    match install(&filter::program(process)) {
        Ok(()) => (State::InForce("a filter (seccomp)".to_owned()), attempts::BY_FILTER),
        Err(error) => (State::Missing { why: error.to_string(), remedy: error.remedy() }, &[]),
    }
}

/// Files with the set-user-ID bit give nothing any more.
fn no_new_privileges() -> Measure {
    let done = prctl::set_no_new_privs().and_then(|()| prctl::get_no_new_privs());
    Measure { name: "no new privileges", state: said(done, "prctl(PR_SET_NO_NEW_PRIVS)"), attempts: &[] }
}

/// Neither code nor data of clients in files.
fn no_core_dumps() -> Measure {
    let none = setrlimit(Resource::RLIMIT_CORE, 0, 0).and_then(|()| getrlimit(Resource::RLIMIT_CORE));
    let done = none.map(|limits| limits == (0, 0));
    Measure { name: "no core dumps", state: said(done, "setrlimit(RLIMIT_CORE)"), attempts: &[] }
}

/// No other process of this user looks into the memory.
fn not_inspected(inspected: bool) -> Measure {
    let state = if inspected {
        State::Off("as debuggers or profilers are served (tools.gdb, tools.perf)")
    } else {
        said(prctl::set_dumpable(false).and_then(|()| prctl::get_dumpable()).map(|it| !it), "prctl(PR_SET_DUMPABLE)")
    };
    Measure { name: "not dumpable", state, attempts: &[] }
}

fn said(done: nix::Result<bool>, call: &str) -> State {
    let remedy = "let the seccomp profile that this runs under allow it";
    match done {
        Ok(true) => State::InForce(call.to_owned()),
        Ok(false) => State::Missing { why: format!("{call} had no effect"), remedy },
        Err(errno) => State::Missing { why: format!("{call}: {errno}"), remedy },
    }
}
