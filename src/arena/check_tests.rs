//! What the look at the platform finds.

use super::*;
use crate::arena::{
    faults::{self, Plan},
    system::Call,
};

fn config() -> ArenaConfig {
    ArenaConfig::new(64 << 20, 16 << 20)
}

/// The findings of this level, as a line each.
fn lines(findings: &[Finding], level: FindingLevel) -> Vec<String> {
    let of_level = findings.iter().filter(|it| it.level == level);
    of_level.map(|it| format!("{}: {}", it.what, it.remedy.as_deref().unwrap_or(""))).collect()
}

fn with(plans: &[Plan], config: &ArenaConfig, facts: &Facts) -> Vec<Finding> {
    faults::with(plans, || explain_with(config, facts)).0
}

#[test]
fn on_this_machine_the_default_works() {
    let findings = explain(&config());
    assert_eq!(lines(&findings, FindingLevel::Failed), [""; 0]);
    assert!(lines(&findings, FindingLevel::Ok).iter().any(|it| it.contains("rewritten code does")));
    assert!(findings.iter().all(|it| it.level == FindingLevel::Ok || it.remedy.is_some()));
}

#[test]
fn a_way_that_is_refused_is_degraded_with_errno_and_remedy_if_another_works() {
    let plan = Plan { call: Call::CreateMemory, first: 0, all: false, errno: Errno::EINVAL };
    let findings = with(&[plan], &config(), &Facts::default());
    let refused = findings.iter().find(|it| it.errno == Some(libc::EINVAL)).unwrap();
    assert_eq!(refused.level, FindingLevel::Degraded);
    assert!(refused.what.starts_with("memfd-noexec: cannot create"), "{refused:?}");
    assert!(refused.remedy.as_deref().unwrap().contains("Linux 6.3"), "{refused:?}");
    assert_eq!(lines(&findings, FindingLevel::Failed), [""; 0]);
}

#[test]
fn if_no_way_works_the_last_finding_is_the_failure() {
    let facts = Facts { memfd_noexec: Some(2), ..Facts::default() };
    let findings = with(&[Plan::always(Call::CreateMemory, Errno::EACCES)], &config(), &facts);
    let last = findings.last().unwrap();
    assert_eq!(last.level, FindingLevel::Failed);
    assert!(last.what.contains("memfd: cannot create the file: EACCES"), "{last:?}");
    assert!(last.remedy.as_deref().unwrap().contains("arena.directory"), "{last:?}");
    let remedies = lines(&findings, FindingLevel::Degraded);
    assert_eq!(remedies.iter().filter(|it| it.contains("vm.memfd_noexec=1")).count(), 2, "{remedies:?}");
}

#[test]
fn addresses_that_cannot_be_had_are_a_failure_that_names_the_limit() {
    let facts = Facts { address_space_bytes: Some(1 << 30), ..Facts::default() };
    let findings = with(&[Plan::always(Call::Reserve, Errno::ENOMEM)], &config(), &facts);
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].level, findings[0].errno), (FindingLevel::Failed, Some(libc::ENOMEM)));
    assert!(findings[0].remedy.as_deref().unwrap().contains("RLIMIT_AS) is 1073741824"), "{findings:?}");
}

#[test]
fn a_limit_on_file_sizes_fails_before_the_arenas_would_reach_it() {
    let facts = Facts { file_size_bytes: Some(100 << 20), ..Facts::default() };
    let findings = with(&[], &config(), &facts);
    assert_eq!(findings.last().unwrap().level, FindingLevel::Failed);
    let refused = lines(&findings, FindingLevel::Degraded);
    assert!(refused.iter().all(|it| it.contains("EFBIG") && it.contains("RLIMIT_FSIZE")), "{refused:?}");
    let findings = with(&[], &ArenaConfig { allow_mprotect: true, ..config() }, &facts);
    assert!(lines(&findings, FindingLevel::Failed).is_empty(), "{findings:?}");
}

#[test]
fn a_memory_cgroup_below_the_limit_on_commits_is_told_of() {
    let facts = |bytes| Facts { cgroup_memory_bytes: Some(bytes), ..Facts::default() };
    let told = lines(&with(&[], &config(), &facts((16 << 20) - 1)), FindingLevel::Degraded);
    assert!(told.iter().any(|it| it.contains("MemoryMax=")), "{told:?}");
    let told = lines(&with(&[], &config(), &facts(16 << 20)), FindingLevel::Degraded);
    assert!(!told.iter().any(|it| it.contains("MemoryMax=")), "{told:?}");
}

#[test]
fn mprotect_is_never_fine_and_needs_mappings() {
    let facts = Facts { mappings_max: Some(100), ..Facts::default() };
    let config = ArenaConfig { allow_mprotect: true, ..config() };
    let told =
        lines(&with(&[Plan::always(Call::CreateMemory, Errno::ENOSYS)], &config, &facts), FindingLevel::Degraded);
    assert!(told.iter().any(|it| it.contains("spans take whole pages")), "{told:?}");
    assert!(told.iter().any(|it| it.contains("raise vm.max_map_count")), "{told:?}");
}

#[test]
fn what_is_missing_but_not_needed_is_degraded() {
    let plans = [Call::Membarrier, Call::SealMapping, Call::Collapse].map(|call| Plan::always(call, Errno::ENOSYS));
    let config = ArenaConfig { huge_pages: HugePages::Collapse, ..config() };
    let findings = with(&plans, &config, &Facts::default());
    let told = lines(&findings, FindingLevel::Degraded);
    for expected in ["membarrier", "mseal", "MADV_COLLAPSE"] {
        assert!(told.iter().any(|it| it.contains(expected)), "{expected}: {told:?}");
    }
    assert_eq!(lines(&findings, FindingLevel::Failed), [""; 0]);
}

#[test]
fn a_configuration_that_asks_for_nothing_fails() {
    let findings = explain(&ArenaConfig::new(0, 0));
    assert_eq!((findings.len(), findings[0].level), (1, FindingLevel::Failed));
}
