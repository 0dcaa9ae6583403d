//! Every system call of the room fails in every way: there is another way or a clear error, and nothing is left.

use super::*;
use crate::arena::{
    barrier::Barrier,
    geometry::{AreaId, Geometry, HUGE_BYTES, PAGE_BYTES},
    mapping::Views,
    pool::Backing,
    strategy::Step,
    testing::{alone, descriptors, mapped_bytes},
    *,
};

const CALLS: [Call; 17] = [
    Call::CreateMemory,
    Call::OpenNameless,
    Call::CreateNamed,
    Call::Unlink,
    Call::Grow,
    Call::AddSeals,
    Call::Reopen,
    Call::Reserve,
    Call::ReserveLow,
    Call::Map,
    Call::Protect,
    Call::Commit,
    Call::GiveBack,
    Call::Advise,
    Call::Collapse,
    Call::SealMapping,
    Call::Membarrier,
];
const ERRNOS: [Errno; 5] = [Errno::ENOMEM, Errno::EMFILE, Errno::EACCES, Errno::ENOSYS, Errno::EPERM];

fn config(write_window: WriteWindow) -> ArenaConfig {
    ArenaConfig { write_window, ..ArenaConfig::new(2 * HUGE_BYTES, HUGE_BYTES) }
}

/// All ways are allowed.
fn generous(write_window: WriteWindow) -> ArenaConfig {
    ArenaConfig { directory: Some("/dev/shm".into()), allow_mprotect: true, ..config(write_window) }
}

fn views(config: &ArenaConfig) -> Result<Views, MapError> {
    Views::map(Geometry::for_config(config)?, config)
}

/// Maps, grows, runs, collapses, gives back and unmaps; all errors as people see them.
fn life(config: &ArenaConfig, huge: bool) -> Result<(), String> {
    let barrier = Barrier::register().map_err(|error| error.to_string())?;
    let views = views(config).map_err(|error| error.to_string())?;
    let code = AreaId { arena: 0, kind: PartKind::Code };
    let text = |step: Step| move |errno| step.failed()(errno).to_string();
    views.open_writer(0).map_err(text(Step::OpenWindow))?;
    let used = (|| {
        views.commit(code, 0..512).map_err(text(Step::Commit))?;
        views.commit(AreaId { kind: PartKind::Data, ..code }, 3..4).map_err(text(Step::Commit))?;
        if huge {
            views.collapse(code, 0).map_err(|errno| format!("cannot collapse: {errno}"))?;
        }
        canary::run_at(&views, &barrier, code, 2).map_err(|error| error.to_string())?;
        views.make_runnable(code, 0..PAGE_BYTES).map_err(text(Step::MapCode))?;
        views.decommit(code, 0..512).map_err(text(Step::GiveBack))
    })();
    views.close_writer(0);
    let Some(arena) = views.geometry().low_arena() else { return used };
    let code = AreaId { arena, ..code };
    views.open_writer(arena).map_err(text(Step::OpenWindow))?;
    let low = views.commit(code, 0..3).map_err(text(Step::Commit)).and_then(|()| {
        canary::run_at(&views, &barrier, code, 2).map_err(|error| error.to_string())?;
        views.decommit(code, 0..3).map_err(text(Step::GiveBack))
    });
    views.close_writer(arena);
    used.and(low)
}

#[test]
fn no_failing_call_leaves_anything_mapped_or_open_nor_an_error_without_its_step_and_errno() {
    if !alone(
        "arena::faults::tests::no_failing_call_leaves_anything_mapped_or_open_nor_an_error_without_its_step_and_errno",
    ) {
        return;
    }
    let low = ArenaConfig { low_bytes: HUGE_BYTES, ..generous(WriteWindow::OnDemand) };
    let configs = [config(WriteWindow::Always), config(WriteWindow::OnDemand), low];
    configs.iter().for_each(|config| life(config, true).unwrap());
    let before = (mapped_bytes(), descriptors());
    let mut failed = 0;
    for (config, call, errno) in configs
        .iter()
        .flat_map(|it| CALLS.map(|call| (it, call)))
        .flat_map(|(it, call)| ERRNOS.map(|errno| (it, call, errno)))
    {
        // Which waits for all cores.
        let huge = matches!(call, Call::Advise | Call::Collapse);
        for all in [false, true] {
            for first in 0.. {
                let plan = Plan { call, first, all, errno };
                let (outcome, failures) = with(&[plan], || life(config, huge));
                if failures == 0 {
                    break;
                }
                failed += failures;
                if let Err(text) = outcome {
                    assert!(text.contains(&format!("{errno:?}")) && text.contains("cannot "), "{plan:?}: {text}");
                }
                assert_eq!((mapped_bytes(), descriptors()), before, "{plan:?} {config:?}");
            }
        }
    }
    assert!(failed > 1000, "only {failed} calls were made to fail");
}

#[test]
fn each_way_that_fails_leads_to_the_next_and_is_remembered_with_its_step() {
    let no_memory_file = Plan::always(Call::CreateMemory, Errno::ENOSYS);
    let no_directory = Plan::always(Call::OpenNameless, Errno::EACCES);
    let once = |call, errno| Plan { call, first: 0, all: false, errno };
    let attempt = |strategy, step, errno| Attempt { strategy, step, errno: Some(errno) };
    use StrategyKind::*;
    let table: [(&[Plan], StrategyKind, &[Attempt]); 8] = [
        (&[], Memfd, &[]),
        (&[once(Call::CreateMemory, Errno::EINVAL)], MemfdPlain, &[attempt(Memfd, Step::Create, Errno::EINVAL)]),
        (&[once(Call::Reopen, Errno::EMFILE)], MemfdPlain, &[attempt(Memfd, Step::Reopen, Errno::EMFILE)]),
        (&[once(Call::Commit, Errno::EPERM)], MemfdPlain, &[attempt(Memfd, Step::Commit, Errno::EPERM)]),
        (&[once(Call::GiveBack, Errno::EPERM)], MemfdPlain, &[attempt(Memfd, Step::GiveBack, Errno::EPERM)]),
        (
            &[no_memory_file],
            File,
            &[attempt(Memfd, Step::Create, Errno::ENOSYS), attempt(MemfdPlain, Step::Create, Errno::ENOSYS)],
        ),
        (
            &[Plan::always(Call::AddSeals, Errno::EACCES)],
            File,
            &[attempt(Memfd, Step::Seal, Errno::EACCES), attempt(MemfdPlain, Step::Seal, Errno::EACCES)],
        ),
        (
            &[no_memory_file, no_directory],
            Protect,
            &[
                attempt(Memfd, Step::Create, Errno::ENOSYS),
                attempt(MemfdPlain, Step::Create, Errno::ENOSYS),
                attempt(File, Step::Create, Errno::EACCES),
            ],
        ),
    ];
    for (plans, strategy, attempts) in table {
        let views = with(plans, || views(&generous(WriteWindow::Always))).0.unwrap();
        assert_eq!((views.strategy(), views.attempts()), (strategy, attempts), "{plans:?}");
    }
}

#[test]
fn a_directory_without_nameless_files_has_a_file_whose_name_is_gone_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = ArenaConfig { directory: Some(directory.path().into()), ..config(WriteWindow::Always) };
    let plans = [Plan::always(Call::CreateMemory, Errno::ENOSYS), Plan::always(Call::OpenNameless, Errno::EOPNOTSUPP)];
    let views = with(&plans, || views(&config)).0.unwrap();
    assert_eq!(views.strategy(), StrategyKind::File);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn if_no_way_works_the_error_has_a_line_for_each() {
    let config =
        ArenaConfig { directory: Some("/nowhere".into()), allow_mprotect: true, ..config(WriteWindow::Always) };
    let refused = with(&[Plan::always(Call::Map, Errno::EPERM)], || views(&config)).0.err().unwrap();
    assert_eq!(
        refused.to_string(),
        "no memory can be written and then run here:\n  \
         memfd-noexec: cannot map writable memory: EPERM: Operation not permitted\n  \
         memfd: cannot map writable memory: EPERM: Operation not permitted\n  \
         file: cannot create the file: ENOENT: No such file or directory\n  \
         mprotect: cannot map writable memory: EPERM: Operation not permitted"
    );
}

#[test]
fn addresses_that_cannot_be_reserved_end_the_search() {
    for first in 0..3 {
        let plan = Plan { call: Call::Reserve, first, all: true, errno: Errno::ENOMEM };
        let refused = with(&[plan], || views(&generous(WriteWindow::Always))).0.err().unwrap();
        assert!(matches!(refused, MapError::Reserve { .. } | MapError::Barrier { .. }), "{refused}");
        assert!(refused.to_string().contains("ENOMEM"), "{refused}");
    }
}

#[test]
fn without_membarrier_and_mseal_the_arenas_work_and_say_so() {
    let plans = [Call::Membarrier, Call::SealMapping].map(|call| Plan::always(call, Errno::ENOSYS));
    let stats = with(&plans, || Arenas::map(&config(WriteWindow::Always)).unwrap().stats()).0;
    assert!(stats.reason.contains("not sealed (ENOSYS"), "{}", stats.reason);
    assert!(stats.reason.contains("instead of membarrier"), "{}", stats.reason);
}

#[test]
fn growth_that_the_system_refuses_is_an_error_and_changes_no_count() {
    let arenas = Arenas::map(&config(WriteWindow::Always)).unwrap();
    let part = |size_bytes| Part { size_bytes, align_bytes: 16 };
    let layout = Layout { code: part(5000), rodata: part(100), data: part(9000), low: false };
    let before = arenas.stats();
    for (errno, first) in ERRNOS.into_iter().flat_map(|errno| [0, 1, 2].map(|first| (errno, first))) {
        let plan = Plan { call: Call::Commit, first, all: true, errno };
        let refused = with(&[plan], || arenas.reserve(&layout)).0.err().unwrap();
        assert!(matches!(refused, ReserveError::Commit { errno: it, .. } if it == errno), "{refused}");
        arenas.set_commit_limit(0);
        arenas.set_commit_limit(HUGE_BYTES);
        assert_eq!(arenas.stats(), before, "{plan:?}");
    }
    assert!(arenas.reserve(&layout).is_ok());
}

#[test]
fn a_window_that_cannot_be_opened_is_an_error_and_one_that_cannot_be_closed_is_told_of() {
    let views = views(&config(WriteWindow::OnDemand)).unwrap();
    for errno in ERRNOS {
        let plan = Plan::always(Call::Protect, errno);
        assert_eq!(with(&[plan], || views.open_writer(0)).0, Err(errno));
        views.open_writer(0).unwrap();
        with(&[plan], || views.close_writer(0));
        let told = format!("1 write windows could not be closed ({errno})");
        assert!(views.describe().contains(&told), "{}", views.describe());
        views.open_writer(0).unwrap();
        views.close_writer(0);
        assert!(!views.describe().contains("could not"), "{}", views.describe());
    }
}

#[test]
fn a_change_of_protection_that_is_refused_is_an_error_and_leaves_the_page_as_it_was() {
    let plans = [Plan::always(Call::CreateMemory, Errno::ENOSYS)];
    let config = ArenaConfig { allow_mprotect: true, ..config(WriteWindow::Always) };
    let views = with(&plans, || views(&config)).0.unwrap();
    let code = AreaId { arena: 0, kind: PartKind::Code };
    views.commit(code, 0..1).unwrap();
    for errno in ERRNOS {
        let plan = Plan::always(Call::Protect, errno);
        assert_eq!(with(&[plan], || views.make_runnable(code, 0..PAGE_BYTES)).0, Err(errno));
        views.fill(code, 0..PAGE_BYTES, 0x90);
        views.make_runnable(code, 0..PAGE_BYTES).unwrap();
        assert_eq!(with(&[plan], || views.make_writable(code, 0..PAGE_BYTES)).0, Err(errno));
        views.make_writable(code, 0..PAGE_BYTES).unwrap();
    }
}
