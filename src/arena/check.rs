//! A look at the platform before anything depends on it: what works, what is missing, what to do about it.

use nix::errno::Errno;

use super::{
    ArenaConfig, Attempt, HugePages, MapError, StrategyKind, WriteWindow,
    barrier::Barrier,
    facts::Facts,
    geometry::{AreaId, Geometry, HUGE_BYTES, PAGE_BYTES, PartKind},
    mapping::{Refusal, Views},
    pool::Backing,
    remedy,
    reservation::Reservation,
    strategy::Step,
};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingLevel {
    /// As it should be.
    Ok,
    /// It goes without.
    Degraded,
    /// It does not go.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub level: FindingLevel,
    /// What was found.
    pub what: String,
    /// What the system said, if it refused something.
    pub errno: Option<i32>,
    /// The likely cause and what to do, if there is anything to do.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self { level: FindingLevel::Ok, what: what.into(), errno: None, remedy: None }
    }

    fn degraded(what: impl Into<String>, errno: Option<Errno>, remedy: impl Into<String>) -> Self {
        let errno = errno.map(|it| it as i32);
        Self { level: FindingLevel::Degraded, what: what.into(), errno, remedy: Some(remedy.into()) }
    }

    fn failed(error: &MapError, errno: Option<Errno>, remedy: Option<String>) -> Self {
        Self { level: FindingLevel::Failed, what: error.to_string(), errno: errno.map(|it| it as i32), remedy }
    }
}

/// Tries, in small and without keeping anything mapped, all that arenas of this configuration need. In the order in
/// which it would be needed; ends where nothing further can be tried.
pub fn explain(config: &ArenaConfig) -> Vec<Finding> {
    explain_with(config, &Facts::read(config.directory.as_deref()))
}

fn explain_with(config: &ArenaConfig, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(last) = look(config, facts, &mut findings) {
        findings.push(last);
    }
    findings
}

/// What it finds; the error is a finding after which there is nothing to try.
fn look(config: &ArenaConfig, facts: &Facts, findings: &mut Vec<Finding>) -> Result<(), Finding> {
    let fatal = |error: MapError| final_finding(&error, facts);
    let geometry = Geometry::for_config(config).map_err(fatal)?;
    addresses(geometry).map_err(fatal)?;
    findings.push(Finding::ok(format!("{} bytes of addresses", geometry.run_bytes() + geometry.window_bytes())));
    if geometry.low_arena().is_some() {
        findings.push(low_addresses(geometry, facts));
    }
    let barrier = Barrier::register().map_err(fatal)?;
    findings.push(barrier_finding(&barrier));
    let kind = ladder(config, facts, geometry, &barrier, findings)?;
    findings.push(sealing());
    if kind == StrategyKind::Protect {
        findings.push(mappings(config, facts));
    }
    if config.huge_pages == HugePages::Collapse {
        findings.push(collapsing(kind, geometry, config));
    }
    if config.write_window == WriteWindow::OnDemand && kind.is_dual_mapping() {
        findings.push(Finding::ok("the write window opens and closes"));
    }
    findings.push(memory(config, facts));
    Ok(())
}

fn final_finding(error: &MapError, facts: &Facts) -> Finding {
    match error {
        MapError::Reserve { errno, .. } => Finding::failed(error, Some(*errno), Some(remedy::addresses(facts))),
        MapError::Random { errno } | MapError::Barrier { errno } => Finding::failed(error, Some(*errno), None),
        MapError::Size { .. } => Finding::failed(error, None, Some("change arena.reserve_max_bytes".into())),
        MapError::LowSize { .. } => Finding::failed(error, None, Some("lower arena.low_bytes".into())),
        MapError::Granule { .. } => Finding::failed(error, None, Some("change arena.granule_bytes".into())),
        MapError::NoStrategy { .. } | MapError::Canary(_) | MapError::Thread { .. } => {
            Finding::failed(error, None, None)
        }
    }
}

/// The addresses of everything can be had at once.
fn addresses(geometry: Geometry) -> Result<(), MapError> {
    let _run = Reservation::new(geometry.run_bytes(), Reservation::PLACES)?;
    Reservation::new(geometry.window_bytes(), Reservation::PLACES).map(drop)
}

/// Those below 2 GiB: the arenas go without.
fn low_addresses(geometry: Geometry, facts: &Facts) -> Finding {
    match Reservation::low(geometry.low_run_bytes()) {
        Ok(_) => Finding::ok(format!("{} bytes of addresses below 2 GiB", geometry.low_run_bytes())),
        Err(refused) => {
            let errno = refused.errno;
            Finding::degraded(refused.to_string(), Some(errno), remedy::low_addresses(errno, facts))
        }
    }
}

fn barrier_finding(barrier: &Barrier) -> Finding {
    if barrier.has_membarrier() {
        Finding::ok("membarrier")
    } else {
        let remedy = "fine, but slower where memory is reused; membarrier needs Linux 4.16, and a seccomp profile that \
                      allows it";
        Finding::degraded("no membarrier: page protection stands in for it", None, remedy)
    }
}

/// The first way that works; a finding for each that does not.
fn ladder(
    config: &ArenaConfig,
    facts: &Facts,
    geometry: Geometry,
    barrier: &Barrier,
    findings: &mut Vec<Finding>,
) -> Result<StrategyKind, Finding> {
    let mut attempts = Vec::new();
    for kind in StrategyKind::ladder(config) {
        match prove(kind, config, facts, geometry, barrier) {
            Ok(()) => {
                findings.push(working(kind));
                return Ok(kind);
            }
            Err(Refusal::Final(error)) => return Err(final_finding(&error, facts)),
            Err(Refusal::Step(error)) => attempts.push(Attempt::new(kind, error)),
        }
        findings.extend(attempts.last().map(|attempt| refused(attempt, facts, geometry)));
    }
    let remedy = (!config.allow_mprotect || config.directory.is_none())
        .then(|| "if none of the above can be changed: arena.directory, then arena.allow_mprotect".into());
    Err(Finding::failed(&MapError::NoStrategy { attempts }, None, remedy))
}

/// In small, but for the file's size, which is limited only in large.
fn prove(
    kind: StrategyKind,
    config: &ArenaConfig,
    facts: &Facts,
    geometry: Geometry,
    barrier: &Barrier,
) -> Result<(), Refusal> {
    if kind.is_dual_mapping() && facts.file_size_bytes.is_some_and(|limit_bytes| limit_bytes < geometry.file_bytes()) {
        return Err(Step::Grow.failed()(Errno::EFBIG).into());
    }
    Views::prove(kind, geometry, config, barrier)
}

fn working(kind: StrategyKind) -> Finding {
    let what = format!("{kind}: new code runs, and rewritten code does");
    if kind == StrategyKind::Protect {
        let remedy = "code pages are writable for a time, spans take whole pages, and each install and eviction costs \
                      system calls: better let one of the other ways work";
        return Finding::degraded(what, None, remedy);
    }
    Finding::ok(what)
}

fn refused(attempt: &Attempt, facts: &Facts, geometry: Geometry) -> Finding {
    let remedy = remedy::for_attempt(attempt, facts, geometry);
    Finding {
        level: FindingLevel::Degraded,
        what: attempt.to_string(),
        errno: attempt.errno.map(|it| it as i32),
        remedy,
    }
}

fn sealing() -> Finding {
    match Reservation::can_seal() {
        Ok(()) => Finding::ok("mappings can be made permanent (mseal)"),
        Err(errno) => Finding::degraded(
            format!("mappings cannot be made permanent (mseal): {errno}"),
            Some(errno),
            "fine; needs Linux 6.10, and a container runtime whose seccomp profile knows the call",
        ),
    }
}

/// Whether there can be as many mappings as pages may change protection.
fn mappings(config: &ArenaConfig, facts: &Facts) -> Finding {
    let most = config.commit_limit_bytes / PAGE_BYTES;
    match facts.mappings_max {
        Some(max) if max < most => {
            let what = format!("{max} mappings are possible, {most} may be needed when every other page is in use");
            Finding::degraded(what, None, remedy::mappings(facts))
        }
        _ => Finding::ok("enough mappings are possible"),
    }
}

/// Tries it on one chunk of a small arena.
fn collapsing(kind: StrategyKind, geometry: Geometry, config: &ArenaConfig) -> Finding {
    let area = AreaId { arena: 0, kind: PartKind::Code };
    let pages = 0..(HUGE_BYTES / PAGE_BYTES) as u32;
    let tried = Views::small(kind, geometry, config).ok().map(|views| {
        views.open_writer(area.arena)?;
        let collapsed = views.commit(area, pages).and_then(|()| views.collapse(area, 0));
        views.close_writer(area.arena);
        collapsed
    });
    match tried {
        Some(Ok(())) => Finding::ok("memory can be put on huge pages (MADV_COLLAPSE)"),
        Some(Err(errno)) => Finding::degraded(
            format!("memory cannot be put on huge pages (MADV_COLLAPSE): {errno}"),
            Some(errno),
            "fine, calls over much code take a little longer; needs Linux 6.1 and free huge pages",
        ),
        None => Finding::degraded("huge pages were not tried", None, "look again"),
    }
}

fn memory(config: &ArenaConfig, facts: &Facts) -> Finding {
    match facts.cgroup_memory_bytes {
        Some(limit_bytes) if limit_bytes < config.commit_limit_bytes => {
            let what = format!(
                "up to {} bytes may be committed, and the memory cgroup allows {limit_bytes}",
                config.commit_limit_bytes
            );
            Finding::degraded(what, None, remedy::cgroup(limit_bytes))
        }
        Some(limit_bytes) => Finding::ok(format!("the memory cgroup allows {limit_bytes} bytes")),
        None => Finding::ok("no memory cgroup limits the memory"),
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
