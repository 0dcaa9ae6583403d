//! What the mappings are in each way to have them.

use std::{collections::BTreeSet, thread};

use super::*;
use crate::arena::{
    HugePages,
    faults::{self, Plan},
    memory::TRAP,
    pool::Backing,
    system::Call,
    testing::smaps,
};

const CODE: AreaId = AreaId { arena: 0, kind: PartKind::Code };
const RODATA: AreaId = AreaId { arena: 0, kind: PartKind::Rodata };
const DATA: AreaId = AreaId { arena: 0, kind: PartKind::Data };

fn config() -> ArenaConfig {
    ArenaConfig { allow_mprotect: true, ..ArenaConfig::new(1, 1) }
}

/// Two arenas, had in this way as those before it fail.
fn views(kind: StrategyKind, config: &ArenaConfig) -> Views {
    views_with(0, kind, config)
}

/// With areas of this size below 2 GiB.
fn views_with(low_area_bytes: u64, kind: StrategyKind, config: &ArenaConfig) -> Views {
    let no_file = Plan::always(Call::CreateMemory, Errno::ENOSYS);
    let once = Plan { all: false, ..no_file };
    let config = ArenaConfig {
        directory: (kind == StrategyKind::File).then(|| "/dev/shm".into()),
        allow_mprotect: true,
        ..config.clone()
    };
    let plans: &[Plan] = match kind {
        StrategyKind::MemfdHuge | StrategyKind::Memfd => &[],
        StrategyKind::MemfdPlain => &[once],
        StrategyKind::File | StrategyKind::Protect => &[no_file],
    };
    let geometry = Geometry { arenas: 2, area_bytes: 2 * HUGE_BYTES, low_area_bytes, granule_bytes: 64, unit_pages: 1 };
    let views = faults::with(plans, || Views::map(geometry, &config)).0.unwrap();
    assert_eq!(views.strategy(), kind);
    views
}

fn permissions(address: usize) -> String {
    let entry = smaps().into_iter().find(|it| it.range.contains(&(address as u64)));
    entry.map_or("none".into(), |it| it.permissions)
}

fn window(views: &Views, arena: u32) -> String {
    permissions(views.write_address(AreaId { arena, ..CODE }))
}

const KINDS: [StrategyKind; 4] =
    [StrategyKind::Memfd, StrategyKind::MemfdPlain, StrategyKind::File, StrategyKind::Protect];

#[test]
fn in_every_way_and_with_either_window_the_canary_runs_in_a_page_that_is_kept() {
    let barrier = Barrier::register().unwrap();
    for (kind, write_window) in
        KINDS.iter().flat_map(|&kind| [(kind, WriteWindow::Always), (kind, WriteWindow::OnDemand)])
    {
        let mut views = views(kind, &ArenaConfig { write_window, ..config() });
        views.seal();
        views.open_writer(1).unwrap();
        let area = AreaId { arena: 1, ..CODE };
        views.commit(area, 5..6).unwrap();
        views.close_writer(1);
        for _ in 0..3 {
            canary::run_at(&views, &barrier, area, 5).unwrap();
        }
        let ours = |start: u64| views.run_range().contains(&start);
        let both = |it: &str| it.contains('w') && it.contains('x');
        assert!(!smaps().iter().any(|it| ours(it.range.start) && both(&it.permissions)), "{kind}");
    }
}

#[test]
fn the_canary_leaves_traps_and_does_not_touch_what_runs_beside_it() {
    let (views, barrier) = (views(StrategyKind::Memfd, &config()), Barrier::register().unwrap());
    views.commit(CODE, 0..4).unwrap();
    thread::scope(|scope| {
        for page in [0, 1, 2, 2] {
            let (views, barrier) = (&views, &barrier);
            scope.spawn(move || {
                for value in 0..50 {
                    if page == 2 {
                        canary::run_at(views, barrier, CODE, 2).unwrap();
                    } else {
                        views.write_canary(CODE, page * PAGE_BYTES, value);
                        barrier.serialise();
                        assert_eq!(views.call_canary(CODE, page * PAGE_BYTES), value);
                    }
                }
            });
        }
    });
    assert!(views.read_run(CODE, 2 * PAGE_BYTES..3 * PAGE_BYTES).iter().all(|&byte| byte == TRAP));
}

#[test]
fn what_is_mapped_twice_can_be_run_or_written_at_an_address_and_never_be_made_both() {
    for kind in [StrategyKind::Memfd, StrategyKind::MemfdPlain, StrategyKind::File] {
        let views = views(kind, &config());
        for area in [CODE, RODATA] {
            let refused = views.run.protect(views.part(area), WRITABLE);
            assert_eq!(refused, Err(Errno::EACCES), "{kind} {area:?}");
        }
        let found = [CODE, RODATA, DATA].map(|area| permissions(views.run_address(area)));
        assert_eq!(found, ["r-xs", "r--s", "rw-s"], "{kind}");
        assert_eq!(window(&views, 0), "rw-s", "{kind}");
    }
}

#[test]
fn below_2_gib_no_right_to_make_code_writable_is_left_either() {
    for kind in KINDS {
        let mut views = views_with(HUGE_BYTES, kind, &config());
        let Some(Ok(low)) = &views.low else { panic!("{kind}: {:?}", views.low_range()) };
        let [code, rodata, data] = [CODE, RODATA, DATA].map(|area| AreaId { arena: 2, ..area });
        if kind.is_dual_mapping() {
            for area in [code, rodata] {
                assert_eq!(low.protect(views.part(area), WRITABLE), Err(Errno::EACCES), "{kind} {area:?}");
            }
            let found = [code, rodata, data].map(|area| permissions(views.run_address(area)));
            assert_eq!(found, ["r-xs", "r--s", "rw-s"], "{kind}");
        }
        views.seal();
        if views.sealed == Ok(()) {
            let Some(Ok(low)) = &views.low else { unreachable!() };
            // The guards at both ends and between.
            for area in [code, rodata, data] {
                let part = views.part(area);
                for guard in [part.start - PAGE_BYTES..part.start, part.end..part.end + PAGE_BYTES] {
                    assert_eq!(low.protect(guard, WRITABLE), Err(Errno::EPERM), "{kind} {area:?}");
                }
            }
        }
    }
}

#[test]
fn on_demand_a_window_is_open_while_it_has_writers_and_alone() {
    let mut views = views(StrategyKind::Memfd, &ArenaConfig { write_window: WriteWindow::OnDemand, ..config() });
    views.seal();
    assert_eq!([window(&views, 0), window(&views, 1)], ["---s", "---s"]);
    views.open_writer(1).unwrap();
    views.open_writer(1).unwrap();
    assert_eq!([window(&views, 0), window(&views, 1)], ["---s", "rw-s"]);
    assert_eq!(permissions(views.write_address(AreaId { arena: 1, ..RODATA })), "rw-s");
    views.close_writer(1);
    views.commit(AreaId { arena: 1, ..CODE }, 0..1).unwrap();
    views.close_writer(1);
    assert_eq!([window(&views, 0), window(&views, 1)], ["---s", "---s"]);
    assert_eq!(permissions(views.run_address(DATA)), "rw-s", "data is written by what runs");
    assert!(views.describe().contains("on demand"), "{}", views.describe());
}

#[test]
fn where_protection_changes_code_is_writable_or_executable_and_its_neighbours_stay_as_they_are() {
    let mut views = views(StrategyKind::Protect, &config());
    views.seal();
    let page = |at: usize| permissions(views.run_address(CODE) + at * PAGE_BYTES as usize);
    views.commit(CODE, 0..3).unwrap();
    views.commit(RODATA, 0..1).unwrap();
    views.write_canary(CODE, PAGE_BYTES, 77);
    views.make_runnable(CODE, PAGE_BYTES..2 * PAGE_BYTES).unwrap();
    views.make_runnable(RODATA, 0..PAGE_BYTES).unwrap();
    views.make_runnable(DATA, 0..PAGE_BYTES).unwrap();
    assert_eq!([page(0), page(1), page(2)], ["rw-p", "r-xp", "rw-p"]);
    assert_eq!([RODATA, DATA].map(|area| permissions(views.run_address(area))), ["r--p", "rw-p"]);
    assert_eq!(views.call_canary(CODE, PAGE_BYTES), 77);
    views.make_writable(CODE, PAGE_BYTES..2 * PAGE_BYTES).unwrap();
    assert_eq!(page(1), "rw-p");
    views.make_runnable(CODE, PAGE_BYTES..2 * PAGE_BYTES).unwrap();
    views.decommit(CODE, 1..2).unwrap();
    assert_eq!(page(1), "rw-p", "what has no memory is not executable");
    views.commit(CODE, 1..2).unwrap();
    assert_eq!((views.geometry().granule_bytes, views.write_address(CODE)), (PAGE_BYTES, views.run_address(CODE)));
    if views.sealed == Ok(()) {
        let guard = views.geometry.run_offset(RODATA) - PAGE_BYTES;
        assert_eq!(views.run.protect(guard..guard + PAGE_BYTES, WRITABLE), Err(Errno::EPERM));
    }
}

#[test]
fn committed_pages_are_what_the_system_counts_and_nothing_is_left_of_dropped_views() {
    for (kind, write_window) in
        KINDS.iter().flat_map(|&kind| [(kind, WriteWindow::Always), (kind, WriteWindow::OnDemand)])
    {
        let mut views = views(kind, &ArenaConfig { write_window, ..config() });
        views.seal();
        let run = views.run_range();
        let window = views.write_address(CODE) as u64;
        let window = window..window + views.geometry.window_bytes();
        // Parts of both views that no other test maps in the meantime: sealed, or still mapped.
        let pss_bytes = || -> u64 {
            let ours = |start| run.contains(&start) || window.contains(&start);
            smaps().into_iter().filter(|it| ours(it.range.start)).map(|it| it.pss_bytes).sum()
        };
        views.open_writer(0).unwrap();
        views.commit(CODE, 0..9).unwrap();
        views.commit(RODATA, 3..4).unwrap();
        views.commit(DATA, 0..2).unwrap();
        assert_eq!(pss_bytes(), 12 * PAGE_BYTES, "{kind} {write_window:?}");
        views.decommit(CODE, 2..4).unwrap();
        assert_eq!(pss_bytes(), 10 * PAGE_BYTES, "{kind} {write_window:?}");
        views.close_writer(0);
        let sealed = views.sealed == Ok(()) && kind.is_dual_mapping();
        drop(views);
        assert!(!sealed || pss_bytes() == 0, "{kind} {write_window:?}");
    }
}

#[test]
fn without_a_pool_of_huge_pages_the_next_way_is_taken_and_with_one_memory_comes_in_units() {
    let huge = ArenaConfig { huge_pages: HugePages::Hugetlb, ..config() };
    let views = Views::map(Geometry::new(1, 64, 1).unwrap(), &huge).unwrap();
    if views.strategy() == StrategyKind::MemfdHuge {
        let unit = views.geometry().unit_pages;
        views.commit(CODE, 0..unit).unwrap();
        assert_eq!(views.huge_bytes().unwrap(), HUGE_BYTES);
        views.decommit(CODE, 0..unit).unwrap();
        assert_eq!(views.huge_bytes().unwrap(), 0);
    } else {
        assert_eq!((views.strategy(), views.geometry().unit_pages), (StrategyKind::Memfd, 1));
        assert_eq!(views.attempts()[0].strategy, StrategyKind::MemfdHuge);
    }
}

#[test]
fn two_views_lie_at_other_distances_each_time() {
    let distances: BTreeSet<_> = (0..8)
        .map(|_| views(StrategyKind::Memfd, &config()))
        .map(|it| it.write_address(CODE).wrapping_sub(it.run_address(CODE)))
        .collect();
    assert!(distances.len() > 1);
}
