//! The arena below 2 GiB: what lies there, how it is mapped, and what becomes of it if it cannot be had.

use std::{collections::BTreeSet, fs};

use nix::errno::Errno;

use super::{
    tests::{MIB, byte_at, call, constant, layout, pss_bytes, publish, runs_in},
    *,
};
use crate::arena::{
    FindingLevel, Lacks, Published, explain,
    faults::{self, Plan},
    geometry::{GUARD_BYTES, HUGE_BYTES, LOW_END, LOW_START},
    memory::TRAP,
    reservation::Reservation,
    system::{self, Call},
    testing::{alone, smaps},
};

fn config() -> ArenaConfig {
    ArenaConfig { low_bytes: 2 * MIB, ..ArenaConfig::new(4 * MIB, 4 * MIB) }
}

fn arenas() -> Arc<Arenas> {
    Arenas::map(&config()).unwrap()
}

fn low(code: u64, rodata: u64, data: u64) -> Layout {
    Layout { low: true, ..layout(code, rodata, data) }
}

fn publish_low(arenas: &Arenas, code: &[u8]) -> Published {
    let mut draft = arenas.reserve(&low(code.len() as u64, 0, 0)).unwrap();
    draft.write_code(code);
    draft.publish().unwrap()
}

fn low_range(arenas: &Arenas) -> Range<u64> {
    arenas.executable_ranges().nth(1).expect("an arena below 2 GiB")
}

/// All ways to have memory but huge pages, with either window.
fn ways() -> impl Iterator<Item = (&'static str, ArenaConfig, Vec<Plan>)> {
    let no_file = Plan::always(Call::CreateMemory, Errno::ENOSYS);
    let ways = [
        ("memfd-noexec", config(), vec![]),
        ("memfd", config(), vec![Plan { all: false, ..no_file }]),
        ("file", ArenaConfig { directory: Some("/dev/shm".into()), ..config() }, vec![no_file]),
        ("mprotect", ArenaConfig { allow_mprotect: true, ..config() }, vec![no_file]),
    ];
    ways.into_iter().flat_map(|(way, config, plans)| {
        [WriteWindow::Always, WriteWindow::OnDemand]
            .map(|write_window| (way, ArenaConfig { write_window, ..config.clone() }, plans.clone()))
    })
}

#[test]
fn in_every_way_what_must_lies_below_2_gib_is_written_run_and_given_back_there_and_the_rest_is_not() {
    for (way, config, plans) in ways() {
        let arenas = faults::with(&plans, || Arenas::map(&config)).0.unwrap();
        assert_eq!(arenas.stats().strategy, way);
        let mut draft = arenas.reserve(&low(7, 4, 4)).unwrap();
        let at = draft.addresses();
        assert!([at.code, at.rodata, at.data].iter().all(|it| (LOW_START..LOW_END).contains(it)), "{way} {at:x?}");
        // mov eax, [rodata]; add eax, [data]; ret: both addresses in 32 bits.
        let code = |field: u64| u32::try_from(field).unwrap().to_le_bytes();
        let code = [&[0x8b, 0x04, 0x25][..], &code(at.rodata), &[0x03, 0x04, 0x25], &code(at.data), &[0xc3]].concat();
        drop(draft);
        draft = arenas.reserve(&low(code.len() as u64, 4, 4)).unwrap();
        assert_eq!((draft.addresses().rodata, draft.addresses().data), (at.rodata, at.data), "{way}");
        draft.write_code(&code);
        draft.rodata_mut().copy_from_slice(&40_u32.to_le_bytes());
        draft.write_data(&2_u32.to_le_bytes());
        let published = draft.publish().unwrap();
        assert_eq!((call(&published), published.layout().low), (42, true), "{way}");
        assert_eq!(published.read_code(), code);
        published.restore_data(&3_u32.to_le_bytes());
        assert_eq!(call(&published), 43, "{way}");

        let other = publish(&arenas, &constant(1));
        assert!(other.addresses().code >= LOW_END && !other.layout().low, "{way}");
        let at = published.addresses().code;
        assert!(arenas.find(at).is_some_and(|it| it.kind == PartKind::Code && it.range.contains(&at)), "{way}");
        drop(published);
        assert_eq!((arenas.find(at), byte_at(&arenas, at)), (None, TRAP), "{way}");
        assert_eq!((arenas.stats().low_total().used_bytes, call(&other)), (0, 1), "{way}");
    }
}

/// The lines of smaps from a mapping's address to its flags.
fn flags_at(address: u64) -> String {
    let text = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut ours = false;
    for line in text.lines() {
        if let Some((start, end)) = line.split_whitespace().next().and_then(|range| range.split_once('-')) {
            let bounds = [start, end].map(|it| u64::from_str_radix(it, 16));
            ours = matches!(bounds, [Ok(start), Ok(end)] if (start..end).contains(&address));
        } else if ours && line.starts_with("VmFlags:") {
            return line.to_owned();
        }
    }
    String::new()
}

#[test]
fn below_2_gib_mappings_are_as_hard_as_elsewhere() {
    for (way, config, plans) in ways() {
        let arenas = faults::with(&plans, || Arenas::map(&config)).0.unwrap();
        let published = publish_low(&arenas, &constant(7));
        let (range, at) = (low_range(&arenas), published.addresses());
        let all = smaps();
        let mut ours = all.iter().filter(|it| range.contains(&it.range.start));
        assert!(!ours.any(|it| it.permissions.contains('w') && it.permissions.contains('x')), "{way}");
        let permissions = |address: u64| {
            // Guards may be one mapping with those of a neighbour.
            let found = all.iter().find(|it| it.range.contains(&address));
            found.map_or(String::new(), |it| it.permissions[..3].to_owned())
        };
        assert_eq!(permissions(at.code), "r-x", "{way}");
        assert_eq!(permissions(at.data), "rw-", "{way}");
        if way != "mprotect" {
            assert_eq!(permissions(at.rodata), "r--", "{way}");
        }
        let guards = [range.start, at.rodata - GUARD_BYTES, at.data - GUARD_BYTES, range.end - GUARD_BYTES];
        assert!(guards.iter().all(|&guard| permissions(guard) == "---"), "{way} {guards:x?}");
        // Not in children, not in core dumps.
        for address in [at.code, at.rodata, at.data, range.start] {
            let flags = flags_at(address);
            assert!(flags.contains(" dc") && flags.contains(" dd"), "{way} {address:x}: {flags}");
        }
    }
}

#[test]
fn on_demand_the_window_of_the_arena_below_2_gib_opens_alone() {
    let arenas = Arenas::map(&ArenaConfig { write_window: WriteWindow::OnDemand, ..config() }).unwrap();
    let arena = arenas.memory.geometry().low_arena().unwrap();
    let permissions = |arena, kind| {
        let address = arenas.memory.views.write_address(AreaId { arena, kind }) as u64;
        let entry = smaps().into_iter().find(|it| it.range.contains(&address)).unwrap();
        assert!(address >= LOW_END, "only where code runs must lie low");
        entry.permissions[..2].to_owned()
    };
    let open =
        || [(0, PartKind::Code), (arena, PartKind::Code), (arena, PartKind::Rodata)].map(|(a, k)| permissions(a, k));
    assert_eq!(open(), ["--", "--", "--"]);
    let draft = arenas.reserve(&low(1, 1, 0)).unwrap();
    assert_eq!(open(), ["--", "rw", "rw"]);
    drop(draft);
    assert_eq!(open(), ["--", "--", "--"]);
}

#[test]
fn a_full_arena_below_2_gib_is_told_apart_and_neither_lends_nor_borrows() {
    let arenas = Arenas::map(&ArenaConfig { low_bytes: 2 * MIB, ..ArenaConfig::new(2 * MIB, 64 * MIB) }).unwrap();
    let held = arenas.reserve(&low(MIB, 0, 0)).unwrap();
    let refused = arenas.reserve(&low(MIB + 1, 0, 0)).unwrap_err();
    let ReserveError::Fragmented { lacks: Lacks::Low, part, needed_bytes, largest_free_bytes, .. } = refused else {
        panic!("{refused}")
    };
    assert_eq!((part, needed_bytes, largest_free_bytes), (PartKind::Code, MIB + 64, MIB));
    assert!(refused.to_string().contains("below 2 GiB"), "{refused}");
    // There is room elsewhere, which is of no use; and what lies elsewhere cannot be put here.
    let other = arenas.reserve(&layout(2 * MIB, 0, 0)).unwrap();
    assert!(matches!(arenas.reserve(&layout(1, 0, 0)), Err(ReserveError::Fragmented { lacks: Lacks::Common, .. })));
    let refused = arenas.reserve(&low(2 * MIB + 1, 0, 0)).unwrap_err();
    assert!(
        matches!(refused, ReserveError::TooLarge { low: true, max_bytes, .. } if max_bytes == 2 * MIB),
        "{refused}"
    );
    assert_eq!(arenas.hold(&low(2 * MIB, 0, 0)), Ok(()));
    assert_eq!(arenas.hold(&low(2 * MIB + 1, 0, 0)), Err(refused));
    drop(held);
    arenas.reserve(&low(2 * MIB, 0, 0)).unwrap();
    drop(other);
}

#[test]
fn one_limit_bounds_what_is_committed_here_and_there_and_idle_pages_go_either_way() {
    let config = ArenaConfig { keep_free_bytes: 64 * MIB, ..config() };
    let arenas = Arenas::map(&ArenaConfig { commit_limit_bytes: MIB, ..config }).unwrap();
    for _ in 0..2 {
        drop(arenas.reserve(&low(MIB, 0, 0)).unwrap());
        assert_eq!((arenas.stats().low_total().free_bytes, pss_bytes(&arenas)), (MIB, MIB));
        drop(arenas.reserve(&layout(MIB, 0, 0)).unwrap());
        assert_eq!((arenas.stats().low_total().free_bytes, pss_bytes(&arenas)), (0, MIB));
    }
    let held = arenas.reserve(&layout(MIB / 2, 0, 0)).unwrap();
    let refused = arenas.reserve(&low(MIB, 0, 0)).unwrap_err();
    assert!(
        matches!(refused, ReserveError::Fragmented { lacks: Lacks::Pages, .. }),
        "pages lack, and any will do: {refused}"
    );
    drop(held);
    arenas.reserve(&low(MIB, 0, 0)).unwrap();
}

#[test]
fn what_was_freed_below_2_gib_is_not_given_to_those_who_need_not_lie_there() {
    let arenas = arenas();
    for value in 0..20 {
        drop(publish_low(&arenas, &constant(value)));
        let other = publish(&arenas, &constant(value));
        assert!(other.addresses().code >= LOW_END && call(&other) == value);
        drop(other);
        assert!(publish_low(&arenas, &constant(value)).addresses().code < LOW_END);
    }
    assert_eq!(arenas.stats().total().used_bytes, 0);
}

#[test]
#[should_panic(expected = "one by one")]
fn of_several_at_once_none_may_have_to_lie_below_2_gib() {
    drop(arenas().reserve_many(&[layout(6, 0, 0), low(6, 0, 0)]));
}

#[test]
fn what_threads_keep_for_themselves_stays_where_addresses_below_2_gib_lack() {
    let arenas = Arenas::map(&ArenaConfig { commit_limit_bytes: 16 * MIB, ..config() }).unwrap();
    let held = arenas.reserve(&low(2 * MIB, 0, 0)).unwrap();
    drop(publish(&arenas, &constant(1)));
    let kept = || arenas.memory.pool.stats(PartKind::Code).spans;
    assert_eq!(kept(), 1);
    arenas.reserve(&low(64, 0, 0)).unwrap_err();
    assert_eq!(kept(), 1, "it lies elsewhere");
    arenas.reserve(&layout(4 * MIB, 0, 0)).unwrap();
    drop(held);
}

#[test]
fn counts_and_maps_have_it_as_one_arena_more_and_sums_include_it() {
    let arenas = arenas();
    let held = (arenas.reserve(&low(6000, 0, 100)).unwrap(), arenas.reserve(&layout(100, 0, 0)).unwrap());
    let (stats, areas) = (arenas.stats(), arenas.areas());
    let (arena, used) = (arenas.memory.geometry().low_arena().unwrap(), 6016 + 128);
    assert_eq!((stats.low_total().used_bytes, stats.low_total().spans, stats.code.used_bytes), (used, 2, 128));
    assert_eq!((stats.total().used_bytes, stats.all(PartKind::Code).used_bytes), (used + 128, 6016 + 128));
    assert_eq!(stats.all(PartKind::Code).largest_free_bytes, stats.code.largest_free_bytes);
    assert_eq!((stats.committed_bytes(), stats.low_refused), (pss_bytes(&arenas), None));
    let ours: Vec<_> = areas.iter().filter(|it| it.low).collect();
    assert!(ours.len() == 3 && ours.iter().all(|it| it.arena == arena && it.start < LOW_END));
    assert_eq!(areas.len(), 3 * (arena as usize + 1));
    assert_eq!(ours[0].memory.used_bytes, 6016);
    let runs = arenas.occupancy(PartKind::Code, arena).unwrap();
    assert_eq!((runs[0].bytes, runs.iter().map(|run| run.bytes).sum::<u64>()), (6016, 2 * MIB));
    assert_eq!(arenas.occupancy(PartKind::Code, arena + 1), None);
    assert!(stats.reason.contains("below 2 GiB"), "{}", stats.reason);
    let at = arenas.possible_addresses(true).unwrap();
    assert!(runs_in(&arenas, at.code) && at.code < LOW_END && at.data < LOW_END);
    assert!(arenas.possible_addresses(false).unwrap().code >= LOW_END);
    drop(held);
}

#[test]
fn without_being_asked_for_there_is_none() {
    let arenas = super::tests::arenas(2 * MIB, MIB);
    assert_eq!((arenas.executable_ranges().count(), arenas.low_bytes(), arenas.low_refused()), (1, 0, None));
    assert_eq!(arenas.reserve(&low(1, 0, 0)).unwrap_err(), ReserveError::NoLow);
    assert_eq!((arenas.hold(&low(1, 0, 0)), arenas.possible_addresses(true)), (Err(ReserveError::NoLow), None));
    assert!(!arenas.stats().reason.contains("2 GiB"));
}

#[test]
fn its_place_is_another_one_each_time_and_lies_where_it_must() {
    let places: BTreeSet<_> = (0..16)
        .map(|_| {
            let reserved = Reservation::low(8 * HUGE_BYTES).unwrap();
            let start = reserved.address(0) as u64;
            assert!((LOW_START..=LOW_END - 8 * HUGE_BYTES).contains(&start) && start.is_multiple_of(HUGE_BYTES));
            start
        })
        .collect();
    assert!(places.len() > 4, "{places:x?}");
}

/// Takes all addresses below 2 GiB but those from `hole` on, as long as these bytes.
fn occupy(hole: u64, bytes: u64) {
    for start in (LOW_START..LOW_END).step_by(HUGE_BYTES as usize) {
        if !(hole..hole + bytes).contains(&start) {
            // What lies there already is as good.
            let _ = system::reserve_at(start as usize, HUGE_BYTES as usize);
        }
    }
}

#[test]
fn the_last_free_place_is_found_and_without_one_the_arenas_go_without() {
    if !alone("arena::arenas::low_tests::the_last_free_place_is_found_and_without_one_the_arenas_go_without") {
        return;
    }
    let bytes = Geometry::for_config(&config()).unwrap().low_run_bytes();
    let hole = LOW_START + 300 * HUGE_BYTES;
    occupy(hole, bytes);
    let last = Reservation::low(bytes).unwrap();
    assert_eq!(last.address(0) as u64, hole);
    // While that is taken there is none.
    let arenas = arenas();
    let refused = arenas.low_refused().unwrap();
    assert_eq!((refused.errno, refused.bytes), (Errno::EEXIST, bytes));
    assert_eq!(u64::from(refused.tries), (LOW_END - LOW_START - bytes) / HUGE_BYTES + 1);
    assert!(arenas.stats().reason.contains("below 2 GiB after"), "{}", arenas.stats().reason);
    assert_eq!((arenas.low_bytes(), arenas.stats().low_total().reserved_bytes), (0, 0));
    assert_eq!(arenas.reserve(&low(1, 0, 0)).unwrap_err(), ReserveError::LowRefused(refused));
    assert_eq!(call(&publish(&arenas, &constant(5))), 5, "what need not lie there runs");
    let findings = explain(&config());
    let told = findings.iter().find(|it| it.what.contains("below 2 GiB")).unwrap();
    assert_eq!((told.level, told.errno), (FindingLevel::Degraded, Some(libc::EEXIST)));
    assert!(told.remedy.as_deref().unwrap().contains("arena.low_bytes"), "{told:?}");
    assert!(findings.iter().all(|it| it.level != FindingLevel::Failed));
    drop(last);
    assert!(explain(&config()).iter().any(|it| it.level == FindingLevel::Ok && it.what.contains("below 2 GiB")));
}

#[test]
fn a_place_that_is_refused_leads_to_the_next_and_what_no_other_place_mends_ends_the_search() {
    let once = |errno, first| Plan { call: Call::ReserveLow, first, all: false, errno };
    for errno in [Errno::EEXIST, Errno::EPERM] {
        let (reserved, failures) = faults::with(&[once(errno, 0)], || Reservation::low(MIB));
        assert!(reserved.is_ok() && failures == 1, "{errno}");
        let plan = Plan::always(Call::ReserveLow, errno);
        let (refused, failures) = faults::with(&[plan], || Reservation::low(4 * HUGE_BYTES));
        let refused = refused.err().unwrap();
        assert_eq!((refused.errno, refused.tries), (errno, failures));
        // Up to where the small code model ends: 16 MiB below 2 GiB.
        assert_eq!(u64::from(failures), (0x7f00_0000 - LOW_START) / HUGE_BYTES - 4 + 1, "each place once");
    }
    let (refused, failures) = faults::with(&[], || Reservation::low(LOW_END - LOW_START + HUGE_BYTES));
    let refused = refused.err().map(|it| (it.tries, it.errno));
    assert_eq!((refused, failures), (Some((0, Errno::ENOMEM)), 0), "there is no place for so much");
    let (refused, _) = faults::with(&[Plan::always(Call::ReserveLow, Errno::ENOMEM)], || Reservation::low(MIB));
    assert_eq!(refused.err(), Some(LowRefusal { bytes: MIB, tries: 1, errno: Errno::ENOMEM }));
    let arenas = faults::with(&[Plan::always(Call::ReserveLow, Errno::EPERM)], || Arenas::map(&config())).0.unwrap();
    assert_eq!(arenas.low_refused().map(|it| it.errno), Some(Errno::EPERM));
}

#[test]
fn before_anybody_uses_it_code_has_run_there() {
    // The first page is that of the trial in small, the second lies where all others do.
    let third = Plan { call: Call::Commit, first: 2, all: false, errno: Errno::EPERM };
    let (refused, failures) = faults::with(&[third], || Arenas::map(&config()));
    assert!(matches!(refused, Err(MapError::Canary(_))) && failures == 1, "{refused:?}");
    let (mapped, failures) = faults::with(&[third], || Arenas::map(&ArenaConfig { low_bytes: 0, ..config() }));
    assert!(mapped.is_ok() && failures == 0);
}

#[test]
fn dropped_arenas_keep_no_memory_below_2_gib() {
    if !alone("arena::arenas::low_tests::dropped_arenas_keep_no_memory_below_2_gib") {
        return;
    }
    let arenas = arenas();
    drop(arenas.reserve(&low(MIB, MIB, MIB)).unwrap());
    assert_eq!(pss_bytes(&arenas), 3 * MIB);
    let range = low_range(&arenas);
    drop(arenas);
    let left: Vec<_> = smaps().into_iter().filter(|it| range.contains(&it.range.start)).collect();
    // What is sealed stays, without memory; else the addresses go, too.
    assert_eq!(left.is_empty(), Reservation::can_seal().is_err());
    assert_eq!(left.iter().map(|it| it.pss_bytes).sum::<u64>(), 0);
}
