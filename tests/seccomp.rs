//! The seccomp profiles are made of rules.toml, let a daemon live in a container, refuse the rest, and hold no rule that
//! is not needed.
//!
//! What runs containers needs root and runc (Debian: runc), and is ignored without; CODECACHED_REQUIRE_RUNC=1 makes that
//! a failure. CODECACHED_WRITE_PROFILES=1 writes the profiles instead of comparing them.

#[path = "seccomp/container.rs"]
mod container;
#[path = "seccomp/rules.rs"]
mod rules;
#[path = "seccomp/scenario.rs"]
mod scenario;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use container::{Container, VOLUME};
use libtest_mimic::Arguments;
use rules::{Form, Rules, profile};
use serde_json::Value;
use support::{PATIENCE, sure, trial};

const SOURCE: &str = include_str!("../deploy/seccomp/rules.toml");
/// Of code in the daemon's process, and in worker processes.
const VARIANTS: [&str; 2] = ["thread", "process"];
/// A daemon that lacks something does not come back from it, however long it is waited for.
const IMPATIENCE: Duration = Duration::from_secs(8);
const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

fn main() {
    let arguments = Arguments::from_args();
    let unable = unable();
    let contained = |name: &str, run: fn()| trial("CODECACHED_REQUIRE_RUNC", name, unable.as_ref(), run);
    let mut tests = vec![
        sure("the_shipped_profiles_are_made_of_the_rules", shipped),
        sure("every_rule_says_why_once", reasons),
        trial(
            "CODECACHED_REQUIRE_RUNC",
            "the_kernel_of_each_architecture_knows_every_call",
            resolver().is_none().then_some("scmp_sys_resolver"),
            known,
        ),
        contained("worker_processes_under_the_profile_of_threads_say_what_they_lack", mistaken),
        contained("without_a_profile_the_probe_may_do_what_the_profile_refuses", probed_without),
    ];
    for variant in VARIANTS {
        let mut add = |name: String, run: fn(&str)| {
            tests.push(trial("CODECACHED_REQUIRE_RUNC", name, unable.as_ref(), move || run(variant)));
        };
        add(format!("what_a_daemon_of_{variant}_never_asks_for_is_refused"), probed);
        add(format!("the_audit_profile_of_{variant}_lets_everything_through"), probed_in_audit);
        add(format!("a_daemon_lives_under_the_docker_profile_of_{variant}"), |it| lives(it, Form::Docker));
        add(format!("a_daemon_lives_under_the_oci_profile_of_{variant}"), |it| lives(it, Form::Oci));
        for (index, rule) in rules().of(variant).into_iter().enumerate().filter(|(_, rule)| rule.is_missed(variant)) {
            let foreign = rule.arch.as_deref().filter(|arch| *arch != env::consts::ARCH).map(str::to_owned);
            let name = format!("a_daemon_of_{variant}_fails_without_{}", rule.name());
            let lacks = foreign.or_else(|| unable.as_ref().map(ToString::to_string));
            tests.push(trial("CODECACHED_REQUIRE_RUNC", name, lacks, move || needed(variant, index)));
        }
    }
    libtest_mimic::run(&arguments, tests).exit();
}

fn lives(variant: &str, form: Form) {
    scenario::run(variant, &kept(variant, form, false), PATIENCE).unwrap_or_else(|error| panic!("{error}"));
}

fn mistaken() {
    let said = scenario::run("process", &kept("thread", Form::Oci, false), PATIENCE).unwrap_err();
    assert!(said.contains("EPERM") && said.contains("deploy/seccomp/process"), "{said}");
}

fn rules() -> Rules {
    Rules::read(SOURCE)
}

fn path(variant: &str, form: Form, audit: bool) -> PathBuf {
    let audit = if audit { "-audit" } else { "" };
    let name = format!("deploy/seccomp/{variant}{audit}.{}.json", form.name());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A shipped profile.
fn kept(variant: &str, form: Form, audit: bool) -> Value {
    let mut profile: Value = serde_json::from_slice(&fs::read(path(variant, form, audit)).unwrap()).unwrap();
    if form == Form::Docker {
        as_runtime_reads(&mut profile);
    }
    profile
}

/// What Docker and podman make of their form: rules of this architecture, with its name.
fn as_runtime_reads(profile: &mut Value) {
    let profile = profile.as_object_mut().unwrap();
    let names = profile.remove("archMap").unwrap();
    let names: Value = names.as_array().unwrap().iter().map(|it| it["architecture"].clone()).collect();
    profile.insert("architectures".to_owned(), names);
    let ours = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let rules = profile["syscalls"].as_array_mut().unwrap();
    rules.retain(|rule| rule["includes"]["arches"].as_array().is_none_or(|them| them.iter().any(|it| it == ours)));
}

fn shipped() {
    let rules = rules();
    assert!(rules.variants.keys().all(|variant| VARIANTS.contains(&variant.as_str())));
    for variant in VARIANTS {
        for (form, audit) in Form::ALL.into_iter().flat_map(|form| [(form, false), (form, true)]) {
            let (path, text) = (path(variant, form, audit), rules::text(&profile(&rules.of(variant), form, audit)));
            let _: Value = serde_json::from_str(&text).unwrap();
            if env::var_os("CODECACHED_WRITE_PROFILES").is_some() {
                fs::write(&path, &text).unwrap();
            }
            let kept = fs::read_to_string(&path).unwrap_or_default();
            assert!(kept == text, "{} is not made of rules.toml: see there how to make it", path.display());
        }
    }
}

fn reasons() {
    let rules = rules();
    let mut names = BTreeSet::new();
    for rule in &rules.rule {
        assert!(names.insert(rule.name()), "{} is there twice", rule.name());
        assert!(rule.reason.len() > 4 && rule.stays.as_ref().is_none_or(|why| why.len() > 10), "{}", rule.name());
        for variant in rule.variants.iter().chain(&rule.stays_in).flatten() {
            assert!(rules.variants.contains_key(variant), "{}: no variant {variant}", rule.name());
        }
    }
    assert!(rules.variants.values().all(|variant| !variant.about.is_empty()));
    // A call that is let through whatever its arguments would make conditions elsewhere moot.
    for rule in rules.rule.iter().filter(|rule| rule.when.is_empty()) {
        let moot =
            |other: &&rules::Rule| !other.when.is_empty() && other.calls.iter().any(|it| rule.calls.contains(it));
        assert!(!rules.rule.iter().any(|other| moot(&other)), "{}", rule.name());
    }
}

/// libseccomp's own program (Debian: seccomp).
fn resolver() -> Option<&'static str> {
    const NAME: &str = "scmp_sys_resolver";
    Command::new(NAME).arg("read").stdout(Stdio::null()).status().ok().map(|_| NAME)
}

/// A misspelt name would be passed over without a word. Newer calls than libseccomp are known to it as -1 too.
fn known() {
    const NEWER: &[&str] = &["mseal"];
    let number = |arch: &str, name: &str| {
        let output = Command::new(resolver().unwrap()).args(["-a", arch, name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse::<i64>().unwrap()
    };
    for rule in rules().rule {
        for name in rule.calls.iter().filter(|name| !NEWER.contains(&name.as_str())) {
            // -1 is no call anywhere, other negative numbers are calls of other architectures.
            assert_ne!(number("x86_64", name), -1, "{name}");
            let foreign = rule.arch.as_deref() == Some("x86_64") || rule.calls.len() > 1;
            assert!(foreign || number("aarch64", name) >= 0, "{name} is no call of aarch64");
        }
        let somewhere = rule.arch.is_some() || rule.calls.iter().any(|name| number("aarch64", name) >= 0);
        assert!(somewhere || rule.calls.iter().any(|name| NEWER.contains(&name.as_str())), "{}", rule.name());
    }
}

/// Why no container can be run here, if so. Really runs one.
fn unable() -> Option<String> {
    let root = fs::metadata("/proc/self").map(|it| it.uid() == 0).unwrap_or(false);
    if !root {
        return Some("root".to_owned());
    }
    let version = Command::new("runc").arg("--version").stdout(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        return Some("runc".to_owned());
    }
    let mut container = Container::run(Path::new(env!("CARGO_BIN_EXE_codecachectl")), &["--version"], None);
    match container.ended_within(PATIENCE) {
        Some(0) => None,
        code => Some(format!("a runc that runs ({code:?}): {}", container.output().join("\n"))),
    }
}

fn needed(variant: &str, index: usize) {
    let rules = rules();
    let mut rules = rules.of(variant);
    let rule = rules.remove(index);
    let profile = profile(&rules, Form::Oci, false);
    let outcome = scenario::run(variant, &profile, IMPATIENCE);
    assert!(outcome.is_err(), "{} was not missed: it must go, or say why it stays", rule.name());
}

/// What the probe could do, by name: 0, or the errno.
fn probe(profile: Option<&Value>) -> BTreeMap<String, i32> {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("probe");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seccomp/probe.c");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let compiled = Command::new(compiler).args(["-O1", "-o"]).arg(&program).arg(source).status().unwrap();
    assert!(compiled.success());
    let mut container = Container::run(&program, &[&format!("{VOLUME}/file")], profile);
    let code = container.ended_within(PATIENCE);
    let lines = container.output();
    assert_eq!(code, Some(0), "{lines:?}");
    let parse = |line: &String| line.split_once(' ').map(|(name, errno)| (name.to_owned(), errno.parse().unwrap()));
    lines.iter().filter_map(parse).collect()
}

/// Allowed: what a daemon does, beside what it must not.
const ALLOWED: &[&str] = &[
    "mprotect-read",
    "memfd",
    "ftruncate",
    "mmap-second-write",
    "mmap-second-exec",
    "open-read",
    "socket-unix",
    "socket-tcp",
];

/// What a daemon with worker processes does beside.
const ALLOWED_TO_FORK: &[&str] = &["open-append", "pidfd_open", "prctl-pdeathsig"];

/// Refused by the profile alone: without it, this user may.
const REFUSED_HERE: &[&str] = &[
    "mmap-write-exec",
    "mprotect-adds-exec",
    "mprotect-write-exec",
    "open-read-write",
    "open-append",
    "open-truncate",
    "open-create",
    "open-read-create",
    "mkdir",
    "rename",
    "symlink",
    "socket-udp",
    "socket-udp6",
    "socket-netlink",
    "fork",
    "clone-process",
    "kill",
    "pidfd_open",
    "unshare",
    "personality",
    "prctl-pdeathsig",
    "ptrace",
];

fn probed(variant: &str) {
    for form in Form::ALL {
        let found = probe(Some(&kept(variant, form, false)));
        assert!(found.len() >= 40, "{found:?}");
        for (name, &errno) in &found {
            let wanted = match name.as_str() {
                name if ALLOWED.contains(&name) => 0,
                name if variant == "process" && ALLOWED_TO_FORK.contains(&name) => 0,
                "clone3" => ENOSYS,
                _ => EPERM,
            };
            assert_eq!(errno, wanted, "{name} under {form:?}");
        }
    }
}

fn probed_without() {
    let found = probe(None);
    for name in ALLOWED.iter().chain(REFUSED_HERE) {
        assert!(found.get(*name).is_none_or(|&errno| errno == 0), "{name}: {found:?}");
    }
}

fn probed_in_audit(variant: &str) {
    let found = probe(Some(&kept(variant, Form::Oci, true)));
    for name in ALLOWED.iter().chain(REFUSED_HERE) {
        assert!(found.get(*name).is_none_or(|&errno| errno == 0), "{name}: {found:?}");
    }
    scenario::run(variant, &kept(variant, Form::Docker, true), PATIENCE).unwrap_or_else(|error| panic!("{error}"));
}
