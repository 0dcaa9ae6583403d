//! Scenario c: the space that the trace leaves behind.

use crate::{
    Bench,
    api::{Draft, Memory, resident_bytes},
    churn::reserve_bytes,
    report::MIB,
    slots::{Slots, fill, replay},
};

/// Sizes of blocks that are tried for room.
pub(crate) const FIT_KIB: [u32; 3] = [8, 64, 256];
/// What AsmJit ended at with the default trace; its own figure is taken where there is one.
const PEER_RESERVED_MIB: f64 = 95.875;

pub(crate) fn run(bench: &mut Bench) {
    counts(bench);
    fits(bench);
}

fn replayed(bench: &Bench, memory: &Memory) -> Slots {
    let mut slots = fill(memory, &bench.trace.fill, &bench.code);
    replay(memory, &mut slots, bench.trace.churn.iter(), &bench.code);
    slots
}

fn counts(bench: &mut Bench) {
    let memory = Memory::map(reserve_bytes(&bench.trace));
    let mut slots = replayed(bench, &memory);
    for (draft, size) in slots.iter_mut().flatten().zip(bench.trace.final_sizes()) {
        assert!(draft.code_mut() == &bench.code[..size as usize], "a block does not hold what was written");
    }
    let live = bench.trace.final_sizes().iter().map(|&size| f64::from(size)).sum::<f64>();
    let space = memory.space();
    let [used, reserved, committed, metadata, reserved_all] =
        [space.used, space.reserved, space.committed, space.metadata, space.reserved_all].map(|bytes| bytes as f64);
    // The tables, and what each owner holds: the peer's figure for its tables leaves that out, too.
    let handles = (slots.len() * size_of::<Draft>()) as f64;
    let rows = [
        ("c.live_requested", live / MIB, "MiB"),
        ("c.used", used / MIB, "MiB"),
        ("c.reserved", reserved / MIB, "MiB"),
        ("c.resident", committed / MIB, "MiB"),
        ("c.resident_smaps", resident_bytes() as f64 / MIB, "MiB"),
        ("c.overhead", metadata / 1024.0, "KiB"),
        ("c.metadata", (metadata + handles) / 1024.0, "KiB"),
        ("c.metadata_share", 100.0 * metadata / reserved_all, "%"),
        ("c.used_over_reserved", used / reserved, "ratio"),
        ("c.live_over_resident", live / committed, "ratio"),
    ];
    for (name, value, unit) in rows {
        bench.report.add(name, value, unit);
    }
}

/// Blocks that fit beside what the trace leaves, in the reservation that the peer ended at.
fn fits(bench: &mut Bench) {
    let reserved_mib = bench.peer.value("c.reserved").unwrap_or(PEER_RESERVED_MIB);
    let memory = Memory::map_whole((reserved_mib * MIB) as u64);
    let slots = replayed(bench, &memory);
    let space = memory.space();
    bench.report.add("c.fit_reserved", space.reserved as f64 / MIB, "MiB");
    for kib in FIT_KIB {
        let fit = std::iter::from_fn(|| memory.try_reserve(kib << 10)).collect::<Vec<_>>().len() as f64;
        let ideal = ((space.reserved - space.used) / u64::from(kib << 10)) as f64;
        bench.report.add(format!("c.fit_{kib}K_before_growth"), fit, "blocks");
        bench.report.add(format!("c.fit_{kib}K_ideal"), ideal, "blocks");
        bench.report.add(format!("c.fit_{kib}K_share"), fit / ideal, "ratio");
    }
    drop(slots);
}
