//! Proof that new code runs here, and that rewritten code does, too.

use std::sync::{Mutex, PoisonError};

use super::{
    StepError,
    barrier::Barrier,
    geometry::{AreaId, PAGE_BYTES, PartKind},
    mapping::Views,
    memory::TRAP,
    pool::Backing,
    strategy::Step,
};

/// What the function returns each time it is written anew, at the same address.
const VALUES: [(Step, u32); 3] = [(Step::Run, 0x600D_C0DE), (Step::Rerun, 0x0DDB_A115), (Step::Rerun, 0x600D_C0DE)];

/// Two at once on one page would prove nothing.
static ALONE: Mutex<()> = Mutex::new(());

/// Writes, runs, rewrites and runs again, wherever code is to run, before anybody else uses the memory; leaves none
/// committed.
pub(super) fn run(views: &Views, barrier: &Barrier) -> Result<(), StepError> {
    [Some(0), views.geometry().low_arena()].into_iter().flatten().try_for_each(|arena| run_in(views, barrier, arena))
}

fn run_in(views: &Views, barrier: &Barrier, arena: u32) -> Result<(), StepError> {
    let area = AreaId { arena, kind: PartKind::Code };
    let pages = 0..views.geometry().unit_pages;
    views.open_writer(area.arena).map_err(Step::OpenWindow.failed())?;
    let outcome = views.commit(area, pages.clone()).map_err(Step::Commit.failed()).and_then(|()| {
        let outcome = run_at(views, barrier, area, 0);
        outcome.and(views.decommit(area, pages).map_err(Step::GiveBack.failed()))
    });
    views.close_writer(area.arena);
    outcome
}

/// Writes, runs, rewrites and runs again in a committed page of code that the caller owns, and in which nothing else
/// lies. Leaves it writable, where that changes, and full of traps. What runs beside it in other pages is not touched.
pub(super) fn run_at(views: &Views, barrier: &Barrier, area: AreaId, page: u32) -> Result<(), StepError> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let start = u64::from(page) * PAGE_BYTES;
    let bytes = start..start + PAGE_BYTES;
    views.open_writer(area.arena).map_err(Step::OpenWindow.failed())?;
    let outcome = VALUES.into_iter().try_for_each(|(step, value)| {
        views.make_writable(area, bytes.clone()).map_err(Step::OpenWindow.failed())?;
        views.write_canary(area, start, value);
        views.make_runnable(area, bytes.clone()).map_err(Step::MapCode.failed())?;
        barrier.serialise();
        if views.call_canary(area, start) == value { Ok(()) } else { Err(StepError { step, errno: None }) }
    });
    let outcome = outcome.and(views.make_writable(area, bytes.clone()).map_err(Step::OpenWindow.failed()));
    if outcome.is_ok() {
        views.fill(area, bytes, TRAP);
    }
    views.close_writer(area.arena);
    outcome
}
