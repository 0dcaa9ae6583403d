//! What the platform gives, tried and told to a person.

use nix::errno::Errno;

use super::{
    DaemonError, Ground, Parts, arena_config, confinement,
    execution::{exec_config, executors, filter_policy},
};
use crate::{
    arena::{self, ArenaStats, Finding, FindingLevel},
    config::{Config, Isolation},
    exec::{self, FilterError, FilterPolicy, FilterState},
};

/// Columns of a level with the blanks behind it.
const LEVEL_COLUMNS: usize = 10;

/// What was found out about executable memory, and about containing what runs there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Findings, each with its remedy on a line of its own if there is one.
    pub lines: Vec<String>,
    /// Findings that would keep the daemon from starting, or from using its budget.
    pub failed: usize,
}

/// Tries every way to executable memory, and a filter of system calls, and says what is wrong with those that do not work and what to do about it.
/// Never fails: it is for when [`check`] does.
pub fn explain(config: &Config) -> Explained {
    let mut findings = arena::explain(&arena_config(config));
    let policy = filter_policy(config);
    // Where trying would be death, a configuration can say not to.
    let tried = if policy == FilterPolicy::Off { Ok(()) } else { exec::try_filter() };
    findings.push(filter(policy, tried));
    told(&findings)
}

/// What helps where the filter is required and cannot be had.
pub(super) fn required_remedy(error: &FilterError) -> String {
    format!("{}, or set exec.system_call_filter to try", error.remedy())
}

/// Whether system calls of code can be contained.
fn filter(policy: FilterPolicy, tried: Result<(), FilterError>) -> Finding {
    let (level, what, remedy) = match (policy, tried) {
        (FilterPolicy::Off, _) => (
            FindingLevel::Degraded,
            "system calls of code are not contained: exec.system_call_filter is off".to_owned(),
            Some(
                "set exec.system_call_filter to require, or let only those install who may act as this user".to_owned(),
            ),
        ),
        (_, Ok(())) => (FindingLevel::Ok, "a filter keeps code from system calls (seccomp)".to_owned(), None),
        (FilterPolicy::Require, Err(error)) => (FindingLevel::Failed, error.to_string(), Some(required_remedy(&error))),
        (FilterPolicy::Try, Err(error)) => (FindingLevel::Degraded, error.to_string(), Some(error.remedy().to_owned())),
    };
    Finding { level, what, errno: None, remedy }
}

/// Tries what [`serve`](super::serve) needs of the platform, and says what it found: name and finding. The process is
/// confined then, as the daemon would be: to be called before there are threads, and last.
///
/// # Errors
/// [`DaemonError`]: what would stop the daemon from starting.
pub fn check(config: &Config) -> Result<Vec<(String, String)>, DaemonError> {
    // Ends its threads before there may be none.
    let workers = worker_processes(config);
    let ground = Ground::open(config)?;
    let measures = confinement::confine(config, &ground.arenas)?;
    let Parts { service, tools, .. } = ground.build(config)?;
    if let Some(tools) = tools {
        tools.finish();
    }
    let arena = service.arena_stats();
    let parts = [
        ("architecture", std::env::consts::ARCH.to_owned()),
        ("memory strategy", format!("{}: {}", arena.strategy, arena.reason)),
        (
            "arena reservation",
            format!("{} bytes for each of code, read-only data and data", config.arena.reserve_max_bytes),
        ),
        ("low arena", low_arena(config.arena.low_bytes, &arena)),
        ("executors", executors_found(config)),
        ("system calls from code", contained(service.filter_state())),
        ("worker processes", workers),
    ]
    .map(|(name, finding)| (name.to_owned(), finding));
    Ok(parts.into_iter().chain(confinement::told(&measures)).collect())
}

fn executors_found(config: &Config) -> String {
    let (executors, spare) = (executors(config), config.exec.spare_executors);
    match config.exec.isolation {
        Isolation::Thread => format!("{executors} threads and {spare} spare ones, a fault in one was recovered"),
        Isolation::Process => {
            format!("{executors} threads and {spare} spare ones, a worker process of each ran something")
        }
    }
}

/// Whether they can be had. If they are to be used, a failure is found again, and told as such.
fn worker_processes(config: &Config) -> String {
    let exec = exec_config(config, None);
    let state = match config.exec.isolation {
        Isolation::Thread => "not used, as exec.isolation is thread",
        Isolation::Process => "used",
    };
    match exec::try_workers(&exec, &confinement::needs(config, None)) {
        Ok(()) => format!("{state}; one ran something"),
        Err(error) => format!("{state}; cannot be had: {error}"),
    }
}

fn low_arena(asked_bytes: u64, arena: &ArenaStats) -> String {
    match (asked_bytes, arena.low_refused) {
        (0, _) => "off: objects with absolute addresses in 32 bits are refused (arena.low_bytes)".to_owned(),
        (_, Some(refused)) => format!("degraded: {refused}; objects that need it are refused"),
        (_, None) => {
            let bytes = arena.low[0].reserved_bytes;
            format!("{bytes} bytes for each of code, read-only data and data, below 2 GiB")
        }
    }
}

fn contained(state: FilterState) -> String {
    match state {
        FilterState::InForce => "contained, by a filter on each of these threads".to_owned(),
        FilterState::Unavailable(error) => format!("not contained: {error}"),
        FilterState::Off => "not contained, as exec.system_call_filter is off".to_owned(),
    }
}

fn told(findings: &[Finding]) -> Explained {
    Explained {
        lines: findings.iter().flat_map(lines).collect(),
        failed: findings.iter().filter(|it| it.level == FindingLevel::Failed).count(),
    }
}

fn lines(finding: &Finding) -> impl Iterator<Item = String> {
    let level = match finding.level {
        FindingLevel::Ok => "ok",
        FindingLevel::Degraded => "degraded",
        FindingLevel::Failed => "failed",
    };
    // Most texts have the error in them.
    let errno = finding.errno.map(errno_name).filter(|name| !finding.what.contains(name));
    let errno = errno.map(|name| format!(" ({name})")).unwrap_or_default();
    let what = format!("{level:LEVEL_COLUMNS$}{}{errno}", finding.what);
    let remedy = finding.remedy.as_ref().map(|remedy| format!("{:LEVEL_COLUMNS$}remedy: {remedy}", ""));
    [Some(what), remedy].into_iter().flatten()
}

/// Such as "ENOSYS"; the number of one that has no name here.
fn errno_name(number: i32) -> String {
    match Errno::from_raw(number) {
        Errno::UnknownErrno => format!("errno {number}"),
        errno => format!("{errno:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confine::InstallError;

    fn finding(level: FindingLevel, what: &str, errno: Option<i32>, remedy: Option<&str>) -> Finding {
        Finding { level, what: what.to_owned(), errno, remedy: remedy.map(str::to_owned) }
    }

    #[test]
    fn findings_line_up_with_the_name_of_the_error_and_the_remedy_below() {
        let explained = told(&[
            finding(FindingLevel::Ok, "memfd", None, None),
            finding(FindingLevel::Degraded, "sealing: EPERM: not permitted", Some(1), None),
            finding(FindingLevel::Degraded, "mseal", Some(38), None),
            finding(FindingLevel::Failed, "file: map code", Some(1), Some("remount without noexec")),
            finding(FindingLevel::Failed, "mprotect", Some(9999), None),
        ]);
        let wanted = [
            "ok        memfd",
            "degraded  sealing: EPERM: not permitted",
            "degraded  mseal (ENOSYS)",
            "failed    file: map code (EPERM)",
            "          remedy: remount without noexec",
            "failed    mprotect (errno 9999)",
        ];
        assert_eq!((explained.lines, explained.failed), (wanted.map(str::to_owned).into(), 2));
    }

    #[test]
    fn the_largest_image_fits_into_an_arena_unless_somebody_says_how_many_there_are() {
        let mut config = Config::default();
        config.arena.reserve_max_bytes = 1 << 30;
        config.code.image_max_bytes = 512 << 20;
        assert!((1..=2).contains(&arena_config(&config).shards));
        config.code.image_max_bytes = 1 << 20;
        assert_eq!(arena_config(&config).shards as usize, super::super::cores().min(1024));
        config.arena.reserve_max_bytes = 2 << 20;
        config.code.image_max_bytes = 512 << 20;
        assert_eq!(arena_config(&config).shards, 1);
        config.arena.shards = 7;
        assert_eq!(arena_config(&config).shards, 7);
    }

    #[test]
    fn a_filter_that_cannot_be_had_fails_only_if_it_is_required() {
        let error = FilterError::Install(InstallError::Install(Errno::EPERM));
        let refused = Err(error);
        let required = filter(FilterPolicy::Require, refused);
        assert!(required.level == FindingLevel::Failed && required.what.contains("EPERM"), "{required:?}");
        assert!(required.remedy.is_some_and(|it| it.contains("profile")));
        let told = DaemonError::from(exec::StartError::Filter { error }).to_string();
        assert!(told.contains("profile") && told.contains("exec.system_call_filter"), "{told}");
        assert_eq!(filter(FilterPolicy::Try, refused).level, FindingLevel::Degraded);
        assert_eq!(filter(FilterPolicy::Off, Ok(())).level, FindingLevel::Degraded);
        assert_eq!(filter(FilterPolicy::Require, Ok(())).level, FindingLevel::Ok);
    }

    #[test]
    fn the_keys_of_the_arena_reach_the_arenas() {
        let mut config = Config::default();
        assert_eq!(arena_config(&config).directory, None);
        config.arena.directory = "/dev/shm".into();
        config.arena.granule_bytes = 16;
        config.arena.shards = 3;
        config.arena.keep_free_bytes = 5;
        config.arena.low_bytes = 6;
        config.arena.allow_mprotect = true;
        config.arena.write_window = crate::config::WriteWindow::OnDemand;
        config.arena.huge_pages = crate::config::HugePages::Collapse;
        let given = arena_config(&config);
        assert_eq!(given.directory, Some("/dev/shm".into()));
        assert_eq!((given.granule_bytes, given.shards, given.keep_free_bytes, given.allow_mprotect), (16, 3, 5, true));
        assert_eq!(given.low_bytes, 6);
        assert_eq!((given.write_window, given.huge_pages), (arena::WriteWindow::OnDemand, arena::HugePages::Collapse));
    }
}
