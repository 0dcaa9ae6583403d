//! A confined process is refused what it gave up, one thing after the other, and only that; a daemon is confined.
//!
//! Each case runs in a process of its own, this program started again: once confined, and once not, to see that it is the
//! confinement that refuses. What landlock does is ignored where the kernel has none; CODECACHED_REQUIRE_LANDLOCK=1 makes
//! that a failure.

#[path = "confinement/cases.rs"]
mod cases;
mod support;

use std::{
    env, fs, iter,
    path::Path,
    process::{Command, ExitStatus, Stdio, exit},
    thread,
    time::Duration,
};

use cases::{ALLOWED, BY_FILTER, BY_LANDLOCK, Case, Place};
use codecached::confine::{self, Needs, Policy, Program, State};
use libtest_mimic::Arguments;
use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, getrlimit},
    },
};
use support::{Daemon, sure, trial};

/// Names the case that this process shall run.
const CASE: &str = "CODECACHED_TEST_CASE";
/// How it is confined: "filter", "landlock", "both" or "not".
const HOW: &str = "CODECACHED_TEST_CONFINED";
/// Exit code of a case that went well; beyond it the errno of one that failed.
const WELL: i32 = 100;

fn main() {
    if let Ok(name) = env::var(CASE) {
        again(&name);
    }
    let arguments = Arguments::from_args();
    let lacks = (landlock_version() < 6).then_some("Linux 6.12 with landlock");
    let mut tests = Vec::new();
    for case in BY_FILTER {
        tests.push(sure(format!("the_filter_refuses_{}", case.name), || refused(case, "filter", &[Errno::EPERM])));
    }
    for case in BY_LANDLOCK {
        let errors = &[Errno::EACCES, Errno::EPERM];
        let name = format!("landlock_refuses_{}", case.name);
        tests.push(trial("CODECACHED_REQUIRE_LANDLOCK", name, lacks, || refused(case, "landlock", errors)));
    }
    for case in ALLOWED {
        tests.push(sure(format!("a_confined_process_may_{}", case.name), || {
            assert_eq!(tried(case.name, "both"), Ok(()))
        }));
    }
    for (name, _) in ALONE {
        tests.push(sure(*name, move || assert_eq!(tried(name, "not"), Ok(()))));
    }
    tests.push(sure("the_32_bit_interface_is_refused", foreign));
    tests.push(sure("every_thread_of_a_daemon_is_confined", daemon));
    tests.push(sure("a_daemon_says_what_it_does_without", unconfined));
    tests.push(sure("check_shows_what_is_in_force", check));
    libtest_mimic::run(&arguments, tests).exit();
}

/// Confined it is refused, else not, whatever else may come of it.
fn refused(case: &'static Case, how: &str, errors: &[Errno]) {
    let confined = tried(case.name, how).expect_err("it was done");
    assert!(errors.contains(&confined), "{confined:?}");
    let free = tried(case.name, "not");
    // Where it needs a right that the tests do not have, nothing can be told apart.
    let telling = free.is_ok_and(|()| true) || free.is_err_and(|errno| !errors.contains(&errno));
    assert!(telling || NEEDS_RIGHTS.contains(&case.name), "{free:?} without confinement too");
}

/// Refused with the same error to users without rights, or in containers.
const NEEDS_RIGHTS: &[&str] = &["open_by_handle_at", "bpf", "userfaultfd", "io_uring_setup", "ptrace", "personality"];

/// What came of a case in a process of its own.
fn tried(name: &str, how: &str) -> Result<(), Errno> {
    let status = start(name, how);
    match status.code() {
        Some(WELL) => Ok(()),
        Some(code) if code > WELL => Err(Errno::from_raw(code - WELL)),
        _ => panic!("{name} ended with {status}"),
    }
}

fn start(name: &str, how: &str) -> ExitStatus {
    let directory = tempfile::tempdir().unwrap();
    for name in ["free", "held"] {
        fs::create_dir(directory.path().join(name)).unwrap();
        fs::write(directory.path().join(name).join("there"), "x").unwrap();
    }
    let mut command = Command::new(env::current_exe().unwrap());
    let output = command.env(CASE, name).env(HOW, how).current_dir(directory.path()).stdin(Stdio::null()).output();
    let output = output.unwrap();
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    output.status
}

/// In the process of a case.
fn again(name: &str) -> ! {
    if let Some((_, run)) = ALONE.iter().find(|(it, _)| *it == name) {
        run();
        exit(WELL);
    }
    let place = env::current_dir().unwrap();
    confine_as(&env::var(HOW).unwrap(), &place);
    let all = BY_FILTER.iter().chain(BY_LANDLOCK).chain(ALLOWED);
    let result = match all.into_iter().find(|it| it.name == name) {
        Some(case) => (case.run)(&Place(&place)),
        None => {
            assert_eq!(name, FOREIGN);
            let answer = cases::process_id_32();
            if answer < 0 { Err(Errno::from_raw(-answer)) } else { Ok(()) }
        }
    };
    exit(WELL + result.map_or_else(|errno| errno as i32, |()| 0));
}

fn confine_as(how: &str, place: &Path) {
    let (system_calls, landlock) = match how {
        "filter" => (Policy::Require, Policy::Off),
        "landlock" => (Policy::Off, Policy::Require),
        // A kernel without landlock allows it all the more.
        "both" => (Policy::Require, Policy::Try),
        _ => return,
    };
    let free = vec![place.join("free")];
    let needs = Needs { system_calls, landlock, removes: free.clone(), appends: free, ..Needs::default() };
    confine::apply(&needs).unwrap();
}

/// Cases that confine themselves, each in a process of its own.
const ALONE: &[(&str, fn())] = &[
    ("privileges_core_dumps_and_looks_into_it_are_given_up", basics),
    ("who_serves_debuggers_may_be_looked_into", inspected),
    ("without_a_file_to_append_to_none_is_opened_for_it", no_appending),
    ("code_changes_to_be_executable_only_where_that_is_wanted", flipping),
    ("code_is_not_moved", moved),
    ("where_other_threads_run_what_is_required_fails_and_the_rest_is_said", threads),
    ("where_filters_are_refused_what_is_required_fails_and_the_rest_is_said", no_filters),
    ("what_is_off_is_not_in_force", off),
];

fn needs(system_calls: Policy, landlock: Policy) -> Needs {
    Needs { system_calls, landlock, ..Needs::default() }
}

fn basics() {
    let limits = || getrlimit(Resource::RLIMIT_CORE).unwrap();
    confine::apply(&needs(Policy::Off, Policy::Off)).unwrap();
    assert_eq!((prctl::get_no_new_privs(), prctl::get_dumpable(), limits()), (Ok(true), Ok(false), (0, 0)));
}

fn inspected() {
    let measures = confine::apply(&Needs { inspected: true, ..needs(Policy::Off, Policy::Off) }).unwrap();
    assert_eq!(prctl::get_dumpable(), Ok(true));
    let state = measures.into_iter().find(|it| it.name == "not dumpable").map(|it| it.state);
    assert!(matches!(state, Some(State::Off(why)) if why.contains("tools.gdb")));
}

fn no_appending() {
    let case = BY_LANDLOCK.iter().find(|it| it.name == "append-elsewhere").unwrap();
    confine::apply(&needs(Policy::Require, Policy::Off)).unwrap();
    assert_eq!((case.run)(&Place(&env::current_dir().unwrap())), Err(Errno::EPERM));
}

fn flipping() {
    let (ours, other) = (cases::code(), cases::code());
    let code = iter::once(ours..ours + 4096).collect();
    confine::apply(&Needs { code, flips_protection: true, ..needs(Policy::Require, Policy::Off) }).unwrap();
    let (writable, executable) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_EXEC);
    assert_eq!(cases::change(ours, writable).and_then(|()| cases::change(ours, executable)), Ok(()));
    assert_eq!(cases::change(ours, writable | executable), Err(Errno::EPERM));
    assert_eq!(cases::change(other, executable), Err(Errno::EPERM));
}

fn moved() {
    let (ours, other) = (cases::code(), cases::code());
    let code = iter::once(ours..ours + 4096).collect();
    confine::apply(&Needs { code, ..needs(Policy::Require, Policy::Off) }).unwrap();
    assert_eq!(cases::change(ours, libc::PROT_READ | libc::PROT_EXEC), Err(Errno::EPERM));
    assert_eq!(cases::shift(ours), Err(Errno::EPERM));
    assert_eq!(cases::shift(other), Ok(()));
}

fn threads() {
    thread::spawn(|| thread::sleep(Duration::MAX));
    let error = confine::apply(&needs(Policy::Require, Policy::Try)).unwrap_err();
    assert!(error.to_string().contains("other threads"), "{error}");
    let measures = confine::apply(&needs(Policy::Try, Policy::Try)).unwrap();
    assert_eq!(measures.iter().filter(|it| matches!(it.state, State::Missing { .. })).count(), 2);
}

fn no_filters() {
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let outer = Program::native(refused).calls(&[libc::SYS_seccomp], refused);
    let outer = outer.call(libc::SYS_prctl, &[confine::Test::is(0, libc::PR_SET_SECCOMP as u32)], refused);
    confine::install(&outer.otherwise(confine::ALLOWED)).unwrap();
    let error = confine::apply(&needs(Policy::Require, Policy::Off)).unwrap_err().to_string();
    assert!(error.contains("profile") && error.contains("set confine.system_calls to try"), "{error}");
    let measures = confine::apply(&needs(Policy::Try, Policy::Off)).unwrap();
    assert!(measures.iter().any(|it| it.name == "system calls" && matches!(it.state, State::Missing { .. })));
}

fn off() {
    let measures = confine::apply(&needs(Policy::Off, Policy::Off)).unwrap();
    assert!(measures.iter().all(|it| it.attempts.is_empty()));
    let case = BY_FILTER.iter().find(|it| it.name == "memfd_create").unwrap();
    assert_eq!((case.run)(&Place(Path::new("."))), Ok(()));
}

const FOREIGN: &str = "int-80";

/// An error, not the end; a kernel without that interface ends it, confined or not.
fn foreign() {
    if start(FOREIGN, "not").code() == Some(WELL) {
        assert_eq!(tried(FOREIGN, "filter"), Err(Errno::EPERM));
    }
}

/// Fields of /proc/PID/status, or of a thread's.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

fn daemon() {
    let mut daemon =
        Daemon::start_with(&["--set", "arena.huge_pages=collapse", "--set", "confine.system_calls=require"]);
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let statuses: Vec<_> = tasks.filter_map(|it| fs::read_to_string(it.ok()?.path().join("status")).ok()).collect();
    assert!(statuses.len() > 4, "{statuses:?}");
    for status in &statuses {
        assert_eq!(
            (field(status, "NoNewPrivs"), field(status, "Seccomp")),
            ("1".to_owned(), "2".to_owned()),
            "{status}"
        );
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    let log = daemon.log();
    assert!(log.contains("no new privileges, no core dumps, not dumpable") && log.contains("system calls"), "{log}");
    // What it needs at its end it still may.
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0));
    assert!(!daemon.socket().exists());
}

fn unconfined() {
    let off = ["--set", "confine.system_calls=off", "--set", "confine.landlock=off", "--set", "tools.gdb=true"];
    let daemon = Daemon::start_with(&off);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1".to_owned(), "0".to_owned()));
    let log = daemon.log();
    assert_eq!(log.matches("not confined").count(), 3, "{log}");
}

fn check() {
    let run = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codecached"));
        let output = command.args(["check", "--confinement"]).args(flags).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, told) = run(&[]);
    assert_eq!(code, Some(0), "{told}");
    for line in [
        "no new privileges: in force",
        "no core dumps: in force",
        "not dumpable: in force",
        "landlock: ",
        "system calls: in force: a filter (seccomp)",
        "running another program: refused (EPERM)",
        "mapping executable memory: refused (EPERM)",
        "making a memory file: refused (EPERM)",
        "opening a file for writing: refused (EPERM)",
    ] {
        assert!(told.contains(line), "{line} is not in:\n{told}");
    }
    let (code, told) = run(&["--set", "confine.system_calls=off", "--set", "confine.landlock=off"]);
    assert!(code == Some(0) && told.contains("system calls: not in force, as the configuration says"), "{told}");
    assert!(!told.contains("running another program"), "{told}");
}

/// As the kernel tells; 0 without.
fn landlock_version() -> usize {
    let version = Command::new(env!("CARGO_BIN_EXE_codecached")).args(["check", "--confinement"]).output().unwrap();
    let told = String::from_utf8(version.stdout).unwrap();
    let version = told.lines().find_map(|line| line.strip_prefix("landlock: in force: version "));
    version.and_then(|it| it.split(';').next()?.trim().parse().ok()).unwrap_or(0)
}
