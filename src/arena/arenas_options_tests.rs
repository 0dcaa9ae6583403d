//! The room under each option of its configuration, on real memory.

use super::{
    tests::{MIB, arenas, call, constant, layout, load, pss_bytes, publish},
    *,
};
use crate::arena::{
    StrategyKind,
    geometry::HUGE_BYTES,
    pool::Backing,
    testing::{Random, smaps},
};

#[test]
fn granules_of_every_size_hold_code_and_are_charged() {
    for granule_bytes in [16, 64, 256, 4096] {
        let arenas = Arenas::map(&ArenaConfig { granule_bytes, ..ArenaConfig::new(4 * MIB, MIB) }).unwrap();
        let held: Vec<_> = (0..20).map(|value| publish(&arenas, &constant(value))).collect();
        assert!(held.iter().zip(0..).all(|(it, value)| call(it) == value), "{granule_bytes}");
        assert_eq!(arenas.charge_bytes(&layout(6, 0, granule_bytes + 1)), 3 * granule_bytes);
        assert_eq!(arenas.stats().code.used_bytes, 20 * granule_bytes);
        assert_eq!(pss_bytes(&arenas), arenas.stats().committed_bytes(), "{granule_bytes}");
    }
}

#[test]
fn a_batch_of_drafts_is_had_as_a_whole_or_not_at_all() {
    let arenas = arenas(2 * MIB, MIB);
    let drafts = arenas.reserve_many(&[layout(100, 0, 0), layout(6, 7, 8)]).unwrap();
    assert_eq!(drafts.iter().map(Draft::layout).collect::<Vec<_>>(), [layout(100, 0, 0), layout(6, 7, 8)]);
    drop(drafts);
    let refused = arenas.reserve_many(&[layout(MIB / 2, 0, 0); 3]).unwrap_err();
    assert!(matches!(refused, ReserveError::Fragmented { .. }), "{refused}");
    assert_eq!(arenas.stats().total().used_bytes, 0);
}

#[test]
fn windows_that_open_on_demand_are_closed_while_nobody_writes() {
    let config = ArenaConfig { write_window: WriteWindow::OnDemand, ..ArenaConfig::new(2 * MIB, MIB) };
    let arenas = Arenas::map(&config).unwrap();
    let area = AreaId { arena: 0, kind: PartKind::Code };
    let draft = arenas.reserve(&layout(6, 6, 6)).unwrap();
    assert!(arenas.memory.views.is_open(area));
    drop(draft);
    assert!(!arenas.memory.views.is_open(area));
    let mut held = Vec::new();
    for value in 0..100 {
        held.push((publish(&arenas, &constant(value)), value));
        assert!(!arenas.memory.views.is_open(area));
        if value % 3 == 0 {
            held.swap_remove(value as usize / 2);
        }
        assert!(held.iter().all(|(it, value)| call(it) == *value));
    }
    assert_eq!(arenas.canary().map_err(|error| error.to_string()), Ok(()));
    held.clear();
    arenas.set_commit_limit(0);
    assert!(!arenas.memory.views.is_open(area));
    assert_eq!((arenas.stats().committed_bytes(), arenas.write_window()), (0, WriteWindow::OnDemand));
}

#[test]
fn memory_whose_protection_changes_runs_code_and_is_never_writable_meanwhile() {
    let geometry = Geometry::new(2 * MIB, 64, 1).unwrap();
    let config = ArenaConfig { keep_free_bytes: 0, ..ArenaConfig::new(2 * MIB, 2 * MIB) };
    let views = Views::only(StrategyKind::Protect, geometry, &config).unwrap();
    let arenas = Arenas::over(views, Barrier::register().unwrap(), &config);
    assert_eq!(arenas.granule_bytes(), PAGE_BYTES);
    let mut random = Random::new(1);
    let mut held = Vec::new();
    for value in 0..400 {
        let mut draft = arenas.reserve(&layout(6 + u64::from(random.below(9000)), 10, 4)).unwrap();
        draft.code_mut()[..6].copy_from_slice(&constant(value));
        draft.rodata_mut().fill(1);
        draft.write_data(&[]);
        held.push((draft.publish().unwrap(), value));
        if held.len() > 20 {
            held.swap_remove(random.below(20) as usize);
        }
        assert!(held.iter().all(|(it, value)| call(it) == *value));
    }
    let entries = smaps();
    let permissions =
        |address: u64| entries.iter().find(|it| it.range.contains(&address)).map(|it| it.permissions.clone()).unwrap();
    for (published, _) in &held {
        let at = published.addresses();
        assert_eq!([at.code, at.rodata, at.data].map(permissions), ["r-xp", "r--p", "rw-p"]);
    }
    assert_eq!(arenas.canary().map_err(|error| error.to_string()), Ok(()));
    held.clear();
    assert_eq!(arenas.stats().total().used_bytes, 0);
}

#[test]
fn published_read_only_data_is_rewritten_by_its_owner_alone_whatever_the_way_to_memory() {
    let config = |write_window| ArenaConfig { write_window, ..ArenaConfig::new(2 * MIB, 2 * MIB) };
    let geometry = Geometry::new(2 * MIB, 64, 1).unwrap();
    let protect = config(WriteWindow::Always);
    let views = Views::only(StrategyKind::Protect, geometry, &protect).unwrap();
    for arenas in [
        Arenas::map(&config(WriteWindow::Always)).unwrap(),
        Arenas::map(&config(WriteWindow::OnDemand)).unwrap(),
        Arenas::over(views, Barrier::register().unwrap(), &protect),
    ] {
        let mut draft = arenas.reserve(&layout(13, 16, 6)).unwrap();
        let at = draft.addresses();
        let (code, rodata) = draft.code_and_rodata_mut();
        code.copy_from_slice(&load(at.rodata + 8));
        rodata.fill(1);
        draft.write_data(&[5, 6, 7]);
        let published = draft.publish().unwrap();
        assert_eq!(call(&published), 0x0101_0101);
        for word in [77, 78] {
            published.write_rodata_word(8, word).unwrap();
            assert_eq!(u64::from(call(&published)), word);
        }
        let mut data = [9; 6];
        published.read_data(&mut data);
        assert_eq!(data, [5, 6, 7, 0, 0, 0]);
        let permissions = smaps().into_iter().find(|it| it.range.contains(&at.rodata)).unwrap().permissions;
        assert!(permissions.starts_with("r--"), "{permissions}");
        let is_open = arenas.memory.views.is_open(AreaId { arena: 0, kind: PartKind::Rodata });
        assert_eq!(is_open, !arenas.memory.views.opens_on_demand());
    }
}

#[test]
fn chunks_in_use_throughout_are_put_on_huge_pages_and_single_pages_still_go_back() {
    let config = ArenaConfig { huge_pages: HugePages::Collapse, ..ArenaConfig::new(8 * MIB, 8 * MIB) };
    let arenas = Arenas::map(&config).unwrap();
    arenas.start_upkeep().unwrap();
    assert_eq!(collapse::look(&arenas.memory), 0, "nothing is in use");
    let mut held: Vec<_> = (0..4 * MIB / 4096)
        .map(|value| {
            let mut draft = arenas.reserve(&layout(4096, 0, 0)).unwrap();
            draft.code_mut()[..6].copy_from_slice(&constant(value as u32));
            (draft.publish().unwrap(), value as u32)
        })
        .collect();
    collapse::look(&arenas.memory);
    // The thread may have been faster; a system without huge pages has none.
    assert!([0, HUGE_BYTES, 2 * HUGE_BYTES].contains(&arenas.huge_bytes()), "{}", arenas.huge_bytes());
    assert!(held.iter().all(|(it, value)| call(it) == *value));
    // The system may say at first that it cannot do it now.
    assert!((0..100).any(|_| collapse::look(&arenas.memory) == 0), "settled chunks are left alone");
    held.retain(|(_, value)| value % 2 == 0);
    assert!(held.iter().all(|(it, value)| call(it) == *value));
    arenas.set_commit_limit(0);
    assert_eq!(arenas.stats().committed_bytes(), 2 * MIB);
    held.clear();
    arenas.set_commit_limit(0);
    assert_eq!((arenas.stats().committed_bytes(), arenas.huge_bytes()), (0, 0));
}

#[test]
fn what_an_owner_gives_back_while_a_huge_page_is_made_of_it_stays_given_back() {
    let config = ArenaConfig { keep_free_bytes: 0, ..ArenaConfig::new(8 * MIB, 8 * MIB) };
    let arenas = Arenas::map(&config).unwrap();
    let area = AreaId { arena: 0, kind: PartKind::Code };
    let large = arenas.reserve(&layout(4 * MIB, 0, 0)).unwrap();
    let hold = || arenas.memory.pool.shard(0).area_mut(PartKind::Code).hold_full_chunk(0);
    let backing = arenas.memory.views.opening();
    for note_first in [true, false] {
        let pages = 0..512;
        assert_eq!(hold(), Some(0));
        arenas.memory.views.decommit(area, pages.clone()).unwrap();
        if note_first {
            arenas.memory.pool.note_decommitted(area, pages.clone(), &backing);
        }
        // As collapsing does to pages that are missing.
        arenas.memory.views.commit(area, pages.clone()).unwrap();
        arenas.memory.pool.release_chunk(area, true, &backing);
        if !note_first {
            arenas.memory.pool.note_decommitted(area, pages.clone(), &backing);
        }
        assert_eq!(pss_bytes(&arenas), 2 * MIB);
        assert_eq!(arenas.stats().committed_bytes(), 2 * MIB);
        // Back to where it was, charged as whoever commits does.
        arenas.memory.pool.commit_for_tests(area, pages, &backing);
    }
    drop(large);
    assert_eq!((arenas.stats().committed_bytes(), pss_bytes(&arenas)), (0, 0));
}

#[test]
fn the_canary_leaves_nothing_and_is_silent_where_there_is_no_room() {
    let arenas = arenas(2 * MIB, 2 * PAGE_BYTES);
    let published = publish(&arenas, &constant(7));
    for _ in 0..100 {
        arenas.canary().unwrap();
    }
    assert_eq!((call(&published), arenas.stats().code.used_bytes), (7, 64));
    let full = arenas.reserve(&layout(PAGE_BYTES, 0, 0)).unwrap();
    arenas.canary().unwrap();
    drop(full);
}
