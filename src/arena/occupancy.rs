//! A map of an area: which of its bytes are used, lingering, free, or not committed.

use super::{
    PartKind,
    geometry::{Geometry, PAGE_BYTES},
    shard::Shard,
};

/// What a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Has an owner.
    Used,
    /// Has an owner, and nobody can ask for it any more.
    Lingering,
    /// Committed and without an owner.
    Free,
    /// Addresses without memory.
    Uncommitted,
}

/// Bytes of one state, as many as there are in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OccupancyRun {
    /// From the area's start.
    pub offset_bytes: u64,
    /// At least a granule.
    pub bytes: u64,
    /// What they are.
    pub state: RunState,
}

/// The area of one kind in an arena, from its first byte to its last.
pub(super) fn of(shard: &Shard, kind: PartKind, geometry: Geometry) -> Vec<OccupancyRun> {
    let mut map = Map::default();
    let area = shard.area(kind);
    for run in area.runs() {
        let bytes = geometry.bytes_of(&run.granules);
        if run.used {
            let lingering = shard.is_lingering(kind, run.granules.start);
            map.extend_to(bytes.end, if lingering { RunState::Lingering } else { RunState::Used });
            continue;
        }
        let whole = geometry.pages_within(&run.granules);
        // Pages at the edges lie under a neighbour, too, and so are committed.
        if !whole.is_empty() {
            map.extend_to(u64::from(whole.start) * PAGE_BYTES, RunState::Free);
            for pages in area.committed_within(&run.granules) {
                map.extend_to(u64::from(pages.start) * PAGE_BYTES, RunState::Uncommitted);
                map.extend_to(u64::from(pages.end) * PAGE_BYTES, RunState::Free);
            }
            map.extend_to(u64::from(whole.end) * PAGE_BYTES, RunState::Uncommitted);
        }
        map.extend_to(bytes.end, RunState::Free);
    }
    map.runs
}

#[derive(Default)]
struct Map {
    runs: Vec<OccupancyRun>,
    end_bytes: u64,
}

impl Map {
    /// Appends what lies between the map's end and `end_bytes`, if anything does.
    fn extend_to(&mut self, end_bytes: u64, state: RunState) {
        let Some(bytes) = end_bytes.checked_sub(self.end_bytes).filter(|&bytes| bytes > 0) else { return };
        match self.runs.last_mut() {
            Some(last) if last.state == state => last.bytes += bytes,
            _ => self.runs.push(OccupancyRun { offset_bytes: self.end_bytes, bytes, state }),
        }
        self.end_bytes = end_bytes;
    }
}
