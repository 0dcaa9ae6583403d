//! The room as its users see it, on real memory.
#![allow(unsafe_code)] // Calls what was published, and tries what must be impossible.

use std::{ffi::c_void, ptr};

use crate::arena::{
    geometry::{AreaId, HUGE_BYTES, PAGE_BYTES},
    memory::TRAP,
    testing::{Random, smaps},
    *,
};

use super::*;

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn arenas(reserve_max_bytes: u64, commit_limit_bytes: u64) -> Arc<Arenas> {
    Arenas::map(&ArenaConfig::new(reserve_max_bytes, commit_limit_bytes)).unwrap()
}

pub(super) fn layout(code: u64, rodata: u64, data: u64) -> Layout {
    let part = |size_bytes| Part { size_bytes, align_bytes: 16 };
    Layout { code: part(code), rodata: part(rodata), data: part(data), low: false }
}

/// `mov eax, imm32; ret`.
pub(super) fn constant(value: u32) -> Vec<u8> {
    [&[0xB8][..], &value.to_le_bytes(), &[0xC3]].concat()
}

/// `mov rax, imm64; mov eax, [rax]; ret`: reads a word at an address.
pub(super) fn load(address: u64) -> Vec<u8> {
    [&[0x48, 0xB8][..], &address.to_le_bytes(), &[0x8B, 0x00, 0xC3]].concat()
}

pub(super) fn publish(arenas: &Arc<Arenas>, code: &[u8]) -> Published {
    let mut draft = arenas.reserve(&layout(code.len() as u64, 0, 0)).unwrap();
    draft.code_mut().copy_from_slice(code);
    draft.publish().unwrap()
}

pub(super) fn call(published: &Published) -> u32 {
    let address = ptr::with_exposed_provenance::<c_void>(published.addresses().code as usize);
    // SAFETY: Every test here publishes whole functions of this signature, and the borrow keeps the code.
    let function = unsafe { std::mem::transmute::<*const c_void, extern "C" fn() -> u32>(address) };
    function()
}

pub(super) fn runs_in(arenas: &Arenas, address: u64) -> bool {
    arenas.executable_ranges().any(|range| range.contains(&address))
}

/// A byte where code runs, whoever owns it.
pub(super) fn byte_at(arenas: &Arenas, address: u64) -> u8 {
    assert!(runs_in(arenas, address));
    // SAFETY: In an area, and those are mapped readable as long as the arenas live.
    unsafe { ptr::with_exposed_provenance::<u8>(address as usize).read_volatile() }
}

/// What the system says that these arenas take: both views of all areas.
pub(super) fn pss_bytes(arenas: &Arenas) -> u64 {
    let window = arenas.memory.views.write_address(AreaId { arena: 0, kind: PartKind::Code }) as u64;
    let window = window..window + arenas.memory.views.geometry().window_bytes();
    let ours = |start| runs_in(arenas, start) || window.contains(&start);
    let entries = smaps().into_iter().filter(|it| it.name.contains("codecached") && ours(it.range.start));
    entries.map(|it| it.pss_bytes).sum()
}

#[test]
fn published_code_returns_what_it_was_written_to_and_data_and_rodata_are_read() {
    let arenas = arenas(2 * MIB, MIB);
    assert_eq!(call(&publish(&arenas, &constant(42))), 42);

    let mut draft = arenas.reserve(&layout(13, 4, 100)).unwrap();
    let at = draft.addresses();
    let (code, rodata) = draft.code_and_rodata_mut();
    code.copy_from_slice(&load(at.rodata));
    rodata.copy_from_slice(&7_u32.to_le_bytes());
    draft.write_data(&[]);
    let published = draft.publish().unwrap();
    assert_eq!((call(&published), published.addresses()), (7, at));
    assert_eq!(published.read_code(), load(at.rodata));
    assert_eq!((published.code_range(), published.data_range()), (at.code..at.code + 13, at.data..at.data + 100));

    let mut draft = arenas.reserve(&layout(13, 0, 8)).unwrap();
    let at = draft.addresses();
    draft.code_mut().copy_from_slice(&load(at.data + 4));
    draft.write_data(&[1, 2, 3, 4, 9]);
    let published = draft.publish().unwrap();
    assert_eq!(call(&published), 9);
    published.restore_data(&[0, 0, 0, 0, 5, 1]);
    assert_eq!(call(&published), 0x105);
    published.restore_data(&[1]);
    assert_eq!(call(&published), 0, "what follows the initial bytes is zero");
}

#[test]
fn other_code_at_a_reused_address_is_what_runs() {
    let arenas = arenas(2 * MIB, MIB);
    let mut address = None;
    for value in 0..300 {
        let published = publish(&arenas, &constant(value));
        assert_eq!(*address.get_or_insert(published.addresses().code), published.addresses().code);
        assert_eq!(call(&published), value);
    }
}

#[test]
fn code_without_an_owner_is_traps_before_the_first_owner_and_after_each() {
    let arenas = arenas(8 * MIB, 8 * MIB);
    let mut draft = arenas.reserve(&layout(100, 0, 0)).unwrap();
    let at = draft.addresses().code;
    assert!(draft.code_mut().iter().all(|&byte| byte == TRAP));
    assert!((at..at + PAGE_BYTES).all(|address| byte_at(&arenas, address) == TRAP), "all of a fresh page");
    draft.code_mut().fill(0x90);
    assert_eq!(byte_at(&arenas, at + 99), 0x90);
    drop(draft);
    let _ = arenas.stats();
    assert!((at..at + PAGE_BYTES).all(|address| byte_at(&arenas, address) == TRAP), "a draft was dropped");
    drop(publish(&arenas, &constant(1)));
    let _ = arenas.stats();
    assert!((at..at + PAGE_BYTES).all(|address| byte_at(&arenas, address) == TRAP), "published code was dropped");

    // A large span gives its whole pages back and fills only its edges, here in the middle of two pages.
    let arenas = Arenas::map(&ArenaConfig { keep_free_bytes: 0, ..ArenaConfig::new(8 * MIB, 8 * MIB) }).unwrap();
    let holder = arenas.reserve(&layout(64, 0, 0)).unwrap();
    let mut large = arenas.reserve(&layout(2 * HUGE_BYTES, 0, 0)).unwrap();
    let at = large.addresses().code;
    assert_ne!(at % PAGE_BYTES, 0);
    large.code_mut().fill(0x90);
    drop(large);
    let edges = (at..at.next_multiple_of(PAGE_BYTES)).chain(at + 2 * HUGE_BYTES - at % PAGE_BYTES..at + 2 * HUGE_BYTES);
    assert!(edges.into_iter().all(|address| byte_at(&arenas, address) == TRAP));
    assert_eq!(arenas.stats().code.committed_bytes, (1 + 16) * PAGE_BYTES, "what is committed ahead included");
    drop(holder);
}

#[test]
fn rodata_shows_nothing_of_an_earlier_owner_behind_what_was_asked_for() {
    let arenas = arenas(2 * MIB, MIB);
    let mut draft = arenas.reserve(&layout(0, 64, 0)).unwrap();
    draft.rodata_mut().fill(0xEE);
    let at = draft.addresses().rodata;
    drop(draft);
    let draft = arenas.reserve(&layout(0, 10, 0)).unwrap();
    assert_eq!(draft.addresses().rodata, at);
    assert!((at + 10..at + 64).all(|address| byte_at(&arenas, address) == 0));
}

#[test]
fn parts_are_aligned_as_asked_and_within_reach_of_each_other_even_when_empty() {
    let arenas = arenas(600 * MIB, MIB);
    for align_bytes in [1, 64, 256, 4096] {
        let part = Part { size_bytes: 65, align_bytes };
        let drafts: Vec<_> = (0..3)
            .map(|_| arenas.reserve(&Layout { code: part, rodata: part, data: part, low: false }).unwrap())
            .collect();
        for at in drafts.iter().map(Draft::addresses) {
            assert!([at.code, at.rodata, at.data].iter().all(|it| it % align_bytes == 0), "{at:x?}");
        }
    }
    let at = arenas.reserve(&layout(0, 0, 0)).unwrap().addresses();
    let all = [at.code, at.rodata, at.data];
    assert!(all.iter().all(|&it| runs_in(&arenas, it)));
    assert!(all.iter().max().unwrap() - all.iter().min().unwrap() < 1 << 30);
}

#[test]
fn dropping_a_draft_or_published_code_gives_every_byte_back() {
    let arenas = arenas(2 * MIB, MIB);
    let layout = layout(1000, 100, 5000);
    let draft = arenas.reserve(&layout).unwrap();
    let other = arenas.reserve(&layout).unwrap().publish().unwrap();
    let stats = arenas.stats();
    assert_eq!(
        stats.code.used_bytes + stats.rodata.used_bytes + stats.data.used_bytes,
        2 * arenas.charge_bytes(&layout)
    );
    assert_eq!((stats.code.spans, stats.data.spans), (2, 2));
    drop((draft, other));
    for stats in [arenas.stats().code, arenas.stats().rodata, arenas.stats().data] {
        assert_eq!((stats.used_bytes, stats.spans, stats.largest_free_bytes), (0, 0, 2 * MIB));
        assert_eq!(stats.free_bytes, stats.committed_bytes);
    }
}

#[test]
fn exhaustion_is_an_error_and_passes_when_memory_is_given_up() {
    let arenas = arenas(4 * MIB, 64 * MIB);
    let layout = layout(MIB, 0, 0);
    let mut drafts: Vec<_> = (0..4).map(|_| arenas.reserve(&layout).unwrap()).collect();
    let refused = arenas.reserve(&layout).unwrap_err();
    assert!(matches!(refused, ReserveError::Fragmented { part: PartKind::Code, needed_bytes: MIB, .. }), "{refused}");
    drafts.pop();
    drafts.push(arenas.reserve(&layout).unwrap());
    drafts.clear();
    drop(arenas.reserve(&self::layout(4 * MIB, 4 * MIB, 4 * MIB)).unwrap());
}

#[test]
fn what_can_never_be_had_is_refused_as_such() {
    let arenas = arenas(2 * MIB, MIB);
    for impossible in [layout(2 * MIB + 1, 0, 0), layout(0, MIB, 1), layout(u64::MAX, 0, 0)] {
        let refused = arenas.reserve(&impossible).unwrap_err();
        assert!(matches!(refused, ReserveError::TooLarge { .. }), "{refused}");
    }
    let odd = Layout { data: Part { size_bytes: 1, align_bytes: 48 }, ..layout(1, 1, 1) };
    let refused = arenas.reserve(&odd).unwrap_err().to_string();
    assert_eq!(refused, "alignment of data is 48: a power of two up to 4096 is possible");
    assert_eq!(arenas.stats().committed_bytes(), 0);
}

#[test]
fn the_system_counts_the_committed_bytes_that_the_arenas_report_under_random_load() {
    let limit_bytes = 4 * MIB;
    let arenas = arenas(16 * MIB, limit_bytes);
    assert_eq!(pss_bytes(&arenas), 0, "the canary left something");
    for seed in 0..3 {
        let mut random = Random::new(seed);
        let (mut held, mut refused) = (Vec::new(), 0);
        for step in 0..600 {
            let mut size = || u64::from(random.small(1 << 15));
            let layout = layout(size().max(6), size(), size());
            match arenas.reserve(&layout) {
                Ok(mut draft) => {
                    draft.code_mut()[..6].copy_from_slice(&constant(step));
                    draft.write_data(&[]);
                    held.push((draft.publish().unwrap(), step));
                }
                Err(ReserveError::Fragmented { .. }) => {
                    refused += 1;
                    held.swap_remove(random.below(held.len() as u32) as usize);
                }
                Err(error) => panic!("seed {seed} step {step}: {error}"),
            }
            let (published, value) = &held[random.below(held.len() as u32) as usize];
            assert_eq!(call(published), *value, "seed {seed} step {step}");
            let committed_bytes = arenas.stats().committed_bytes();
            assert!(committed_bytes <= limit_bytes, "seed {seed} step {step}: {committed_bytes}");
            if step % 40 == 0 {
                assert_eq!(pss_bytes(&arenas), committed_bytes, "seed {seed} step {step}");
            }
        }
        assert!(refused > 0, "seed {seed}: the limit was never met");
    }
    arenas.set_commit_limit(0);
    assert_eq!((arenas.stats().committed_bytes(), pss_bytes(&arenas)), (0, 0));
}

#[test]
fn threads_that_install_and_drop_at_once_each_run_their_own_code() {
    let arenas = arenas(2 * MIB, 64 * PAGE_BYTES);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let arenas = &arenas;
            scope.spawn(move || {
                // Each outlives the next one's install, so that addresses are reused in turn.
                let mut previous = None;
                for round in 0..300 {
                    let value = thread << 16 | round;
                    let published = publish(arenas, &constant(value));
                    assert_eq!(call(&published), value);
                    if let Some((published, value)) = previous.replace((published, value)) {
                        assert_eq!(call(&published), value);
                    }
                }
            });
        }
    });
    assert_eq!(arenas.stats().code.used_bytes, 0);
}

#[test]
fn every_area_lies_between_guards_and_no_page_is_writable_and_executable() {
    let arenas = arenas(300 * MIB, MIB);
    let held = publish(&arenas, &constant(3));
    let entries = smaps();
    let permissions = |address: u64| {
        let entry = entries.iter().find(|it| it.range.contains(&address));
        entry.map_or("none", |it| it.permissions.as_str())
    };
    let geometry = arenas.memory.views.geometry();
    assert_eq!(geometry.arenas, 2);
    for area in geometry.areas() {
        let start = arenas.memory.views.run_address(area) as u64;
        let end = start + geometry.area_bytes;
        let expected = ["r-xs", "r--s", "rw-s"][area.kind as usize];
        let found = [start - HUGE_BYTES, start - 1, start, end - 1, end, end + HUGE_BYTES - 1].map(permissions);
        assert_eq!(found, ["---p", "---p", expected, expected, "---p", "---p"], "{area:?}");
    }
    let window = arenas.memory.views.write_address(AreaId { arena: 0, kind: PartKind::Code }) as u64;
    let found = [window - 1, window, window + geometry.window_bytes()].map(permissions);
    assert_eq!(found, ["---p", "rw-s", "---p"]);
    let both = entries.iter().filter(|it| it.permissions.contains('w') && it.permissions.contains('x')).count();
    assert_eq!(both, 0);
    drop(held);
}

#[test]
fn code_cannot_be_made_writable_nor_its_mapping_removed_once_sealed() {
    let arenas = arenas(2 * MIB, MIB);
    let published = publish(&arenas, &constant(3));
    let start = arenas.memory.views.run_address(AreaId { arena: 0, kind: PartKind::Code });
    let page = ptr::with_exposed_provenance_mut::<c_void>(start);
    for prot in [libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC] {
        // SAFETY: Fails, which is the point; if it did not, the bytes would stay as they are.
        assert_eq!(unsafe { libc::mprotect(page, PAGE_BYTES as usize, prot) }, -1);
    }
    if arenas.stats().reason.contains("sealed mappings") {
        let window = arenas.memory.views.write_address(AreaId { arena: 0, kind: PartKind::Code });
        let window = ptr::with_exposed_provenance_mut::<c_void>(window);
        // SAFETY: Fails, see above.
        assert_eq!(unsafe { libc::mprotect(window, PAGE_BYTES as usize, libc::PROT_READ | libc::PROT_EXEC) }, -1);
        // SAFETY: Fails, see above.
        assert_eq!(unsafe { libc::munmap(page, PAGE_BYTES as usize) }, -1);
    }
    assert_eq!(call(&published), 3);
}

#[test]
fn no_descriptor_of_the_memory_is_left_open() {
    let _arenas = arenas(2 * MIB, MIB);
    // Other tests map arenas at the same time, and hold a descriptor while they do: what stays is what counts.
    let open = || {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let ours = entries
            .filter(|it| std::fs::read_link(it.path()).is_ok_and(|it| it.to_string_lossy().contains("codecached (")));
        ours.map(|it| it.file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let mut always = open();
    for _ in 0..1000 {
        if always.is_empty() {
            return;
        }
        std::thread::yield_now();
        let now = open();
        always.retain(|it| now.contains(it));
    }
    panic!("descriptors {always:?} stayed open");
}

#[test]
fn dropped_arenas_keep_no_memory() {
    let arenas = arenas(4 * MIB, 8 * MIB);
    drop(arenas.reserve(&layout(MIB, MIB, MIB)).unwrap());
    assert_eq!(pss_bytes(&arenas), 3 * MIB);
    let range = arenas.executable_ranges().next().unwrap();
    drop(arenas);
    let left: u64 = smaps()
        .iter()
        .filter(|it| it.name.contains("codecached") && range.contains(&it.range.start))
        .map(|it| it.pss_bytes)
        .sum();
    assert_eq!(left, 0);
}

#[test]
fn the_arenas_say_how_they_came_about() {
    let stats = arenas(2 * MIB, MIB).stats();
    assert_eq!((stats.strategy, stats.commit_limit_bytes), ("memfd-noexec", MIB));
    assert!(stats.reason.contains("memfd") && stats.reason.contains("mapp"), "{}", stats.reason);
    assert_eq!(stats.code.reserved_bytes, 2 * MIB);
    assert!(matches!(Arenas::map(&ArenaConfig::new(0, 0)), Err(MapError::Size { .. })));
}

/// Bytes that the system has committed for an area's code, and its spans, are those of the map.
fn assert_map_agrees(arenas: &Arenas, kind: PartKind) {
    let stats = arenas.areas().into_iter().find(|it| it.kind == kind).unwrap();
    let runs = arenas.occupancy(kind, stats.arena).unwrap();
    let sum = |state| runs.iter().filter(|run| run.state == state).map(|run| run.bytes).sum::<u64>();
    let memory = stats.memory;
    assert_eq!(sum(RunState::Used), memory.used_bytes);
    assert_eq!(sum(RunState::Lingering), memory.lingering_bytes);
    assert_eq!(sum(RunState::Free), memory.free_bytes);
    assert_eq!(sum(RunState::Uncommitted), memory.reserved_bytes - memory.committed_bytes);
    let mut end = 0;
    for pair in runs.windows(2) {
        assert_ne!(pair[0].state, pair[1].state);
    }
    for run in &runs {
        assert_eq!(run.offset_bytes, end);
        end += run.bytes;
    }
    assert_eq!(end, memory.reserved_bytes);
}

#[test]
fn a_map_covers_an_area_and_agrees_with_the_counts() {
    let arenas = arenas(8 * MIB, 8 * MIB);
    assert_map_agrees(&arenas, PartKind::Code);
    let mut random = Random::new(5);
    let mut held: Vec<_> = (0..60)
        .map(|_| arenas.reserve(&layout(u64::from(random.below(60_000)), 0, 9)).unwrap().publish().unwrap())
        .collect();
    for _ in 0..30 {
        held.swap_remove(random.below(held.len() as u32) as usize);
    }
    held.iter().step_by(3).for_each(Published::linger);
    arenas.set_commit_limit(0);
    assert_map_agrees(&arenas, PartKind::Code);
    assert_map_agrees(&arenas, PartKind::Data);
    assert!(arenas.stats().code.lingering_bytes > 0);
    held.clear();
    assert_eq!(arenas.stats().code.lingering_bytes, 0);
    assert_map_agrees(&arenas, PartKind::Code);
    assert_eq!(arenas.occupancy(PartKind::Code, 1), None);
}

#[test]
fn a_draft_that_shrinks_gives_up_its_end_filled_with_traps_and_grows_only_into_free_memory() {
    let arenas = arenas(2 * MIB, MIB);
    let mut draft = arenas.reserve(&layout(8000, 100, 0)).unwrap();
    draft.code_mut().fill(0x90);
    let at = draft.addresses();
    draft.shrink(PartKind::Code, 100);
    assert_eq!((draft.code_mut().len(), draft.layout().code.size_bytes, draft.addresses()), (100, 100, at));
    assert!((at.code + 128..at.code + 8000).all(|address| byte_at(&arenas, address) == TRAP));
    assert_eq!(arenas.stats().code.used_bytes, 128);
    assert_eq!(draft.grow(PartKind::Code, 5000), Ok(true));
    assert_eq!(draft.code_mut()[..100], [0x90; 100]);
    assert_eq!(draft.code_mut()[128..], [TRAP; 5000 - 128]);
    let behind = arenas.reserve(&layout(1, 0, 0)).unwrap();
    assert_eq!((draft.grow(PartKind::Code, 6000), draft.code_mut().len()), (Ok(false), 5000));
    assert_eq!(draft.grow(PartKind::Code, 5056), Ok(true), "within its granules");
    drop(behind);
    assert!(matches!(draft.grow(PartKind::Code, MIB), Err(ReserveError::Fragmented { .. })), "not to be committed");
    assert!(matches!(draft.grow(PartKind::Code, 3 * MIB), Err(ReserveError::TooLarge { .. })));
    draft.rodata_mut().fill(7);
    draft.shrink(PartKind::Rodata, 10);
    assert!((at.rodata + 10..at.rodata + 64).all(|address| byte_at(&arenas, address) == 0), "shows what was written");
    assert_eq!(draft.layout(), layout(5056, 10, 0));
    drop(draft);
    assert_eq!(arenas.stats().total().used_bytes, 0);
}

#[test]
fn a_span_is_found_by_any_address_in_it_and_by_no_other() {
    let arenas = arenas(300 * MIB, MIB);
    let held: Vec<_> = (1..40).map(|it| arenas.reserve(&layout(it * 50, it * 9, it * 3)).unwrap()).collect();
    for (draft, it) in held.iter().zip(1..) {
        let at = draft.addresses();
        for (kind, start, bytes) in [
            (PartKind::Code, at.code, it * 50),
            (PartKind::Rodata, at.rodata, it * 9),
            (PartKind::Data, at.data, it * 3),
        ] {
            let range = start..start + u64::next_multiple_of(bytes, 64);
            for address in [start, start + bytes / 2, range.end - 1] {
                assert_eq!(arenas.find(address), Some(Found { kind, range: range.clone() }));
            }
        }
    }
    let range = arenas.executable_ranges().next().unwrap();
    for address in [0, range.start, range.start - 1, range.end, u64::MAX, held[0].addresses().code - 1] {
        assert_eq!(arenas.find(address), None, "{address:#x}");
    }
    let at = held[3].addresses().code;
    drop(held);
    assert_eq!(arenas.find(at), None);
}

#[test]
fn fresh_memory_needs_no_barrier_and_one_serves_all_that_was_freed_before_it() {
    let arenas = arenas(2 * MIB, MIB);
    let held: Vec<_> = (0..100).map(|value| publish(&arenas, &constant(value))).collect();
    assert_eq!(arenas.stats().barriers, 0);
    drop(arenas.reserve(&layout(MIB / 2, 0, 0)).unwrap());
    drop(held);
    let held: Vec<_> = (0..100).map(|value| publish(&arenas, &constant(value))).collect();
    assert_eq!(arenas.stats().barriers, 1);
    assert!(held.iter().zip(0..).all(|(it, value)| call(it) == value));
    drop(held);
    drop(arenas.reserve(&layout(100, 0, 0)).unwrap());
    publish(&arenas, &constant(1));
    assert_eq!(arenas.stats().barriers, 2);
    publish(&arenas, &constant(1));
    assert_eq!(arenas.stats().barriers, 3, "what ran since must be serialised again");
}
