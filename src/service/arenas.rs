//! The map of the arenas, as an answer.

use super::{
    Service,
    failure::Failure,
    occupancy::{Cell, Map},
};
use crate::{
    arena::{AreaStats, ArenaStats, PartKind, RunState, WriteWindow},
    proto,
};

/// Runs of an answer that does not say how many: about 300 KiB.
const RUNS_DEFAULT: usize = 16_384;
/// Runs of an answer at most: about 2 MiB, half of what clients commonly take.
const RUNS_MAX: usize = 65_536;

/// Which areas to show, and how finely.
#[derive(Debug)]
pub(super) struct Asked {
    kind: Option<PartKind>,
    arena: Option<u32>,
    runs_max: usize,
}

impl Asked {
    /// # Errors
    /// INVALID_FIELD.
    pub(super) fn new(request: &proto::GetArenasRequest) -> Result<Self, Failure> {
        let kind = match proto::MemoryKind::try_from(request.kind) {
            Ok(proto::MemoryKind::Unspecified) => None,
            Ok(proto::MemoryKind::Code) => Some(PartKind::Code),
            Ok(proto::MemoryKind::Rodata) => Some(PartKind::Rodata),
            Ok(proto::MemoryKind::Data) => Some(PartKind::Data),
            Err(_) => return Err(Failure::field("kind", "no kind that this version knows")),
        };
        let runs_max = match request.runs_max as usize {
            0 => RUNS_DEFAULT,
            runs if runs <= RUNS_MAX => runs,
            _ => return Err(Failure::field("runs_max", format!("must be at most {RUNS_MAX}"))),
        };
        Ok(Self { kind, arena: request.arena, runs_max })
    }

    fn is_for(&self, area: &AreaStats) -> bool {
        self.kind.is_none_or(|kind| kind == area.kind) && self.arena.is_none_or(|arena| arena == area.arena)
    }
}

/// Looks at each area in turn. Blocks for as long as that takes: milliseconds for each that is full of small spans.
///
/// # Errors
/// INVALID_FIELD for an arena that is not there.
pub(super) fn answer(service: &Service, asked: &Asked) -> Result<proto::GetArenasResponse, Failure> {
    let arenas = &service.arenas;
    let mut areas = arenas.areas();
    let arenas_count = areas.iter().map(|area| area.arena + 1).max().unwrap_or(0);
    if asked.arena.is_some_and(|arena| arena >= arenas_count) {
        return Err(Failure::field("arena", format!("there are {arenas_count}, counted from 0")));
    }
    areas.retain(|area| asked.is_for(area));
    let cells_max = asked.runs_max / areas.len().max(1);
    let stats = arenas.stats();
    let shown = |stats: &AreaStats| {
        // One area's runs are dropped before those of the next are taken.
        let runs = arenas.occupancy(stats.kind, stats.arena).expect("invariant: arenas neither come nor go");
        area(stats, &Map::bounded(&runs, cells_max))
    };
    Ok(proto::GetArenasResponse {
        areas: areas.iter().map(shown).collect(),
        write_window: write_window(arenas.write_window()).into(),
        granule_bytes: arenas.granule_bytes(),
        totals: Some(totals(&stats, arenas.huge_bytes())),
        strategy: stats.strategy.to_owned(),
        strategy_reason: stats.reason,
        strategy_attempts: stats.attempts,
        low_refused: stats.low_refused.map(|refused| refused.to_string()).unwrap_or_default(),
    })
}

fn totals(stats: &ArenaStats, huge_page_bytes: u64) -> proto::ArenaTotals {
    let memory = stats.total();
    proto::ArenaTotals {
        reserved_bytes: memory.reserved_bytes,
        committed_bytes: memory.committed_bytes,
        commit_limit_bytes: stats.commit_limit_bytes,
        used_bytes: memory.used_bytes,
        lingering_bytes: memory.lingering_bytes,
        free_bytes: memory.free_bytes,
        spans: memory.spans,
        metadata_bytes: stats.metadata_bytes,
        barriers: stats.barriers,
        huge_page_bytes,
        fragmentation_ratio: memory.fragmentation_ratio(),
    }
}

/// Leaves the address out.
fn area(stats: &AreaStats, map: &Map) -> proto::ArenaArea {
    let memory = &stats.memory;
    proto::ArenaArea {
        arena: stats.arena,
        low: stats.low,
        kind: kind(stats.kind).into(),
        bytes: memory.reserved_bytes,
        committed_bytes: memory.committed_bytes,
        used_bytes: memory.used_bytes,
        lingering_bytes: memory.lingering_bytes,
        free_bytes: memory.free_bytes,
        largest_free_bytes: memory.largest_free_bytes,
        spans: memory.spans,
        operations: stats.operations,
        contended: stats.contended,
        cell_bytes: map.cell_bytes,
        runs: map.cells.iter().map(run).collect(),
    }
}

fn run(cell: &Cell) -> proto::ArenaRun {
    let (offset_bytes, bytes) = (cell.offset_bytes, cell.bytes());
    let of_one = |state: proto::RunState| proto::ArenaRun {
        offset_bytes,
        bytes,
        state: state.into(),
        ..proto::ArenaRun::default()
    };
    match cell.state() {
        Some(RunState::Used) => of_one(proto::RunState::Used),
        Some(RunState::Lingering) => of_one(proto::RunState::Lingering),
        Some(RunState::Free) => of_one(proto::RunState::Free),
        Some(RunState::Uncommitted) => of_one(proto::RunState::Uncommitted),
        None => proto::ArenaRun {
            used_bytes: cell.bytes_of(RunState::Used),
            lingering_bytes: cell.bytes_of(RunState::Lingering),
            free_bytes: cell.bytes_of(RunState::Free),
            ..of_one(proto::RunState::Mixed)
        },
    }
}

fn kind(kind: PartKind) -> proto::MemoryKind {
    match kind {
        PartKind::Code => proto::MemoryKind::Code,
        PartKind::Rodata => proto::MemoryKind::Rodata,
        PartKind::Data => proto::MemoryKind::Data,
    }
}

fn write_window(window: WriteWindow) -> proto::WriteWindow {
    match window {
        WriteWindow::Always => proto::WriteWindow::Always,
        WriteWindow::OnDemand => proto::WriteWindow::OnDemand,
    }
}
