//! Each check takes sources and answers what it found, one line each.

use std::collections::BTreeSet;

use crate::source::{Source, bracketed, words};

/// Which rooms a room may import; ARCHITECTURE.md has the reasons.
const ROOMS: &[(&str, &[&str])] = &[
    ("arena", &[]),
    ("code", &[]),
    ("cache", &["arena", "code"]),
    ("confine", &[]),
    ("exec", &["cache", "confine"]),
    // Of `cache` only what a watcher is told.
    ("tools", &["cache", "code"]),
    ("config", &[]),
    ("metrics", &[]),
    ("proto", &[]),
    // Of `arena` only its errors, counts, maps and health: memory itself is behind `cache`.
    ("service", &["arena", "cache", "code", "config", "exec", "metrics", "proto"]),
    ("client", &["proto"]),
    ("demo", &["client", "proto"]),
    ("daemon", &["arena", "cache", "code", "config", "confine", "exec", "metrics", "proto", "service", "tools"]),
    ("main", &["config", "daemon", "demo"]),
    ("codecachectl", &["client", "proto"]),
];

/// Crates that stand for knowledge, and the rooms that may have it.
const CRATES: &[(&str, &[&str])] = &[
    ("clap", &["main", "codecachectl"]),
    ("landlock", &["confine"]),
    ("libc", &["arena", "confine", "exec", "service", "tools", "daemon"]),
    ("metrics_exporter_prometheus", &["metrics"]),
    ("metrics_process", &["metrics"]),
    ("nix", &["arena", "confine", "exec", "service", "tools", "daemon", "demo", "codecachectl"]),
    ("object", &["code"]),
    ("prost", &["service", "client", "proto"]),
    ("serde", &["config"]),
    ("syscalls", &["exec"]),
    ("tokio", &["exec", "service", "client", "daemon", "demo", "codecachectl"]),
    ("toml", &["config"]),
    ("tonic", &["service", "client", "proto", "codecachectl"]),
];

/// Files that may hold `unsafe`. Each is here because it does.
pub(crate) const UNSAFE_FILES: &[&str] = &[
    "src/arena/barrier.rs",
    "src/arena/memory.rs",
    "src/arena/reservation.rs",
    "src/arena/reuse.rs",
    "src/arena/system.rs",
    "src/confine/attempts.rs",
    "src/confine/seccomp.rs",
    "src/daemon/passed.rs",
    "src/exec/confine.rs",
    "src/exec/errno.rs",
    "src/exec/host/allocate.rs",
    "src/exec/host/characters.rs",
    "src/exec/host/checked.rs",
    "src/exec/host/jumps.rs",
    "src/exec/host/mod.rs",
    "src/exec/host/runtime.rs",
    "src/exec/host/search.rs",
    "src/exec/host/startup.rs",
    "src/exec/memory.rs",
    "src/exec/registers.rs",
    "src/exec/row_loop.rs",
    "src/exec/rseq.rs",
    "src/exec/signals.rs",
    "src/exec/stack.rs",
    "src/exec/thread.rs",
    "src/exec/thread_switch.rs",
    "src/exec/watchdog.rs",
    "src/exec/worker/life.rs",
    "src/exec/worker/seclude.rs",
    "src/exec/worker/site.rs",
    "src/exec/worker/system.rs",
    "src/exec/worker/window.rs",
    "src/exec/x86_64.rs",
    "src/exec/x86_64/away.rs",
    "src/exec/x86_64/signal_context.rs",
    "src/exec/x86_64/trial.rs",
    "src/exec/x86_64/whose.rs",
    "src/tools/gdb.rs",
    "src/tools/jitdump.rs",
    "src/tools/unwind.rs",
    "benches/arena/clock.rs",
    // Tests that run what they wrote.
    "tests/arena_soak/code.rs",
    // A test that tries what is refused.
    "tests/confinement/cases.rs",
    // Compiled by a test, to be called by the daemon.
    "tests/objects/compilers/exports.rs",
    "src/arena/arenas_tests.rs",
    "src/exec/chain_tests.rs",
    "src/exec/confined_tests.rs",
    "src/exec/host_tests/math.rs",
    "src/exec/host_tests/mod.rs",
    "src/exec/hostile_tests.rs",
    "src/exec/test_code.rs",
    "src/exec/inline_tests.rs",
    "src/exec/thread_tests.rs",
    "src/exec/traces_tests.rs",
];

pub(crate) const FILE_LINES_MAX: usize = 500;
pub(crate) const FUNCTION_LINES_MAX: usize = 70;

/// Imports that go against the direction of the rooms, and crates in rooms that must not know them.
pub(crate) fn imports(sources: &[Source]) -> Vec<String> {
    let tests = test_files(sources);
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| !tests.contains(&source.path)) {
        let Some(room) = room(&source.path) else { continue };
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            findings.push(format!("{}: the room {room} is not in the table", source.path));
            continue;
        };
        for (at, target) in targets(&source.shipped, roots(&source.path)) {
            if target != room && !allowed.contains(&target.as_str()) {
                findings.push(format!("{}: {room} must not import {target}", source.place(at)));
            }
        }
        for (name, rooms) in CRATES.iter().filter(|(_, rooms)| !rooms.contains(&room)) {
            let path = format!("{name}::");
            for at in crate_uses(&source.shipped, &path) {
                findings.push(format!("{}: {room} must not know {name}; {} may", source.place(at), rooms.join(", ")));
            }
        }
        for at in words(&source.shipped, "super::super").filter(|_| !source.path.contains("/bin/")) {
            findings.push(format!("{}: write crate::{room}, so that the direction can be read", source.place(at)));
        }
    }
    findings
}

/// `unsafe` outside of the list, and names in the list that do not need it.
pub(crate) fn unsafe_files(sources: &[Source], listed: &[&str]) -> Vec<String> {
    let holds = |source: &Source| words(&source.code, "unsafe").next();
    let mut findings: Vec<String> = sources
        .iter()
        .filter(|source| !listed.contains(&source.path.as_str()))
        .filter_map(|source| Some(format!("{}: unsafe in a file that is not listed", source.place(holds(source)?))))
        .collect();
    for name in listed {
        if !sources.iter().any(|source| source.path == *name && holds(source).is_some()) {
            findings.push(format!("{name}: listed, but it does not exist or holds no unsafe"));
        }
    }
    findings
}

/// Files that are too long to have one noun.
pub(crate) fn file_lengths(sources: &[Source]) -> Vec<String> {
    let lines = |source: &Source| source.text.lines().count();
    let long = sources.iter().filter(|source| lines(source) > FILE_LINES_MAX);
    long.map(|source| format!("{}: {} lines, more than {FILE_LINES_MAX}", source.path, lines(source))).collect()
}

/// Functions that are too long to be read at once.
pub(crate) fn function_lengths(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources {
        for start in words(&source.code, "fn") {
            let Some(body) = body(&source.code, start) else { continue };
            let lines = 1 + source.code[start..body].matches('\n').count();
            if lines > FUNCTION_LINES_MAX {
                findings.push(format!("{}: {lines} lines, more than {FUNCTION_LINES_MAX}", source.place(start)));
            }
        }
    }
    findings
}

/// Marks of work that was put off.
pub(crate) fn marks(sources: &[Source]) -> Vec<String> {
    // In halves, so that this file does not hold them.
    let marks = [["FIX", "ME"].concat(), ["TO", "DO"].concat(), ["XX", "X"].concat()];
    let mut findings = Vec::new();
    for source in sources {
        for mark in &marks {
            findings.extend(words(&source.text, mark).map(|at| format!("{}: {mark}", source.place(at))));
        }
    }
    findings
}

/// `unwrap()` where the daemon would die of it.
pub(crate) fn unwraps(sources: &[Source]) -> Vec<String> {
    let tests = test_files(sources);
    let shipped = sources.iter().filter(|source| source.path.starts_with("src/") && !tests.contains(&source.path));
    shipped
        .flat_map(|source| {
            let found = source.shipped.match_indices(".unwrap()");
            found.map(|(at, _)| format!("{}: unwrap() outside of tests", source.place(at)))
        })
        .collect()
}

/// A changelog without a place for what comes next.
pub(crate) fn changelog(text: &str) -> Vec<String> {
    match text.lines().find(|line| line.starts_with("## ")) {
        Some("## [Unreleased]") => vec![],
        other => vec![format!("CHANGELOG.md: the first section is {other:?}, not \"## [Unreleased]\"")],
    }
}

/// Keys of the shipped configuration without a comment right above them.
pub(crate) fn config_comments(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let undocumented = |(above, line): (&str, &str)| {
        let (key, _) = line.split_once('=').filter(|_| !line.starts_with('#'))?;
        (!above.starts_with("# ")).then(|| format!("config.toml: {} has no comment above it", key.trim()))
    };
    let above = std::iter::once("").chain(lines.iter().copied());
    above.zip(lines.iter().copied()).filter_map(undocumented).collect()
}

fn test_files(sources: &[Source]) -> BTreeSet<String> {
    let roots: BTreeSet<String> = sources.iter().flat_map(Source::test_modules).collect();
    let folders: Vec<String> = roots.iter().map(|root| format!("{}/", root.trim_end_matches(".rs"))).collect();
    let below = |path: &String| folders.iter().any(|folder| path.starts_with(folder));
    sources.iter().map(|source| source.path.clone()).filter(|path| roots.contains(path) || below(path)).collect()
}

/// The room of a file; `None` for the root of the library, which only lists them, and for what is not the product.
fn room(path: &str) -> Option<&str> {
    let path = path.strip_prefix("src/").filter(|path| *path != "lib.rs")?;
    let path = path.strip_prefix("bin/").unwrap_or(path);
    Some(path.split('/').next()?.trim_end_matches(".rs"))
}

/// How a file names the library. In a binary `crate` is the binary, which is one room.
fn roots(path: &str) -> &'static [&'static str] {
    if path == "src/main.rs" || path.starts_with("src/bin/") { &["codecached::"] } else { &["crate::", "codecached::"] }
}

/// Rooms that are named as `crate::room` or in `use crate::{room, ...}`, with their places.
fn targets(code: &str, roots: &[&str]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for root in roots {
        for (at, _) in code.match_indices(root).filter(|(at, _)| starts_path(code, *at)) {
            let start = at + root.len();
            if code[start..].starts_with('{') {
                let group = bracketed(code, start);
                found.extend(members(&code[group.start + 1..group.end - 1]).map(|name| (at, name)));
            } else {
                found.push((at, leading_name(&code[start..])));
            }
        }
    }
    found
}

/// Leading names of the members of a `use` group.
fn members(group: &str) -> impl Iterator<Item = String> {
    let mut depth = 0;
    let separated = group.split(move |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    separated.map(|member| leading_name(member.trim_start())).filter(|name| !name.is_empty() && name != "self")
}

fn leading_name(code: &str) -> String {
    code.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn crate_uses<'a>(code: &'a str, path: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(path).map(|(at, _)| at).filter(|at| starts_path(code, *at))
}

/// Not in the middle of a name or of a longer path.
fn starts_path(code: &str, at: usize) -> bool {
    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
}

/// The end of the body of the function whose `fn` is at `start`; `None` for a type, and for a declaration without body.
fn body(code: &str, start: usize) -> Option<usize> {
    if leading_name(code[start + "fn".len()..].trim_start()).is_empty() {
        return None;
    }
    let mut at = start;
    while at < code.len() {
        match code.as_bytes()[at] {
            b'{' => return Some(bracketed(code, at).end),
            b'(' | b'[' => at = bracketed(code, at).end,
            b';' => return None,
            _ => at += 1,
        }
    }
    None
}
