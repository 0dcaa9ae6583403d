//! Where areas lie: in the address range that code runs in, in the window it is written through, in the file behind both.
//!
//! ```text
//! run range   guard | code 0 | guard | rodata 0 | guard | data 0 | guard | code 1 | guard | ...
//! window      code 0 | rodata 0 | code 1 | rodata 1 | ...
//! file        the window's bytes, then data 0 | data 1 | ...
//! ```

use std::{fmt, ops::Range};

use super::MapError;

/// What spans are measured in; every span is a whole number of these. One cache line: two spans never share one.
pub const GRANULE_BYTES: u64 = 64;
/// The largest alignment a part may ask for.
pub const ALIGN_MAX_BYTES: u64 = PAGE_BYTES;
/// The largest [`ArenaConfig::reserve_max_bytes`](super::ArenaConfig::reserve_max_bytes): it bounds the number of
/// mappings (six per arena) far below the kernel's default of 65530.
pub const RESERVE_LIMIT_BYTES: u64 = 64 << 30;

/// The page of x86-64: what is committed and given back.
pub(super) const PAGE_BYTES: u64 = 4096;
pub(super) const GRANULES_PER_PAGE: u32 = (PAGE_BYTES / GRANULE_BYTES) as u32;
/// A huge page. Areas are aligned to it so that the kernel can map them with huge pages.
pub(super) const HUGE_BYTES: u64 = 2 << 20;
/// Inaccessible bytes on both sides of every area: more than any overrun of a small loop, and it keeps areas aligned.
pub(super) const GUARD_BYTES: u64 = HUGE_BYTES;
/// Three areas and the guards between them span less than 1 GiB, so 32-bit displacements reach with room to spare.
const AREA_MAX_BYTES: u64 = 256 << 20;

/// What a part of an image holds, which decides how it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartKind {
    /// Instructions: readable and executable.
    Code,
    /// Constants: readable.
    Rodata,
    /// Variables: readable and writable.
    Data,
}

impl PartKind {
    pub(super) const ALL: [Self; 3] = [Self::Code, Self::Rodata, Self::Data];
}

impl fmt::Display for PartKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Code => "code",
            Self::Rodata => "rodata",
            Self::Data => "data",
        })
    }
}

/// Names one area: the memory of one kind in one arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AreaId {
    pub(super) arena: u32,
    pub(super) kind: PartKind,
}

impl AreaId {
    pub(super) fn index(self) -> usize {
        self.arena as usize * PartKind::ALL.len() + self.kind as usize
    }
}

/// How many arenas there are, and how large their areas.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) arenas: u32,
    /// Of each of an arena's three areas; a multiple of [`HUGE_BYTES`].
    pub(super) area_bytes: u64,
}

impl Geometry {
    /// The fewest equal arenas that hold `reserve_bytes` of each kind.
    pub(super) fn for_reserve(reserve_bytes: u64) -> Result<Self, MapError> {
        if !(1..=RESERVE_LIMIT_BYTES).contains(&reserve_bytes) {
            return Err(MapError::Size { reserve_bytes, max_bytes: RESERVE_LIMIT_BYTES });
        }
        let arenas = reserve_bytes.div_ceil(AREA_MAX_BYTES);
        let area_bytes = reserve_bytes.div_ceil(arenas).next_multiple_of(HUGE_BYTES);
        Ok(Self { arenas: arenas as u32, area_bytes })
    }

    pub(super) fn areas(self) -> impl Iterator<Item = AreaId> {
        (0..self.arenas).flat_map(|arena| PartKind::ALL.map(|kind| AreaId { arena, kind }))
    }

    pub(super) fn area_granules(self) -> u32 {
        (self.area_bytes / GRANULE_BYTES) as u32
    }

    /// Bytes of the run range, guards at both ends included.
    pub(super) fn run_bytes(self) -> u64 {
        GUARD_BYTES + u64::from(self.arenas) * 3 * (self.area_bytes + GUARD_BYTES)
    }

    pub(super) fn run_offset(self, area: AreaId) -> u64 {
        GUARD_BYTES + area.index() as u64 * (self.area_bytes + GUARD_BYTES)
    }

    pub(super) fn window_bytes(self) -> u64 {
        2 * u64::from(self.arenas) * self.area_bytes
    }

    pub(super) fn file_bytes(self) -> u64 {
        3 * u64::from(self.arenas) * self.area_bytes
    }

    /// Within the file; for code and read-only data also within the window.
    pub(super) fn file_offset(self, area: AreaId) -> u64 {
        let arena = u64::from(area.arena);
        let position = match area.kind {
            PartKind::Code => 2 * arena,
            PartKind::Rodata => 2 * arena + 1,
            PartKind::Data => 2 * u64::from(self.arenas) + arena,
        };
        position * self.area_bytes
    }
}

/// The pages that these granules of an area lie on, wholly or in part.
pub(super) fn pages_touched(granules: &Range<u32>) -> Range<u32> {
    granules.start / GRANULES_PER_PAGE..granules.end.div_ceil(GRANULES_PER_PAGE)
}

/// The pages that lie wholly within these granules; empty, with any start, if there are none.
pub(super) fn pages_within(granules: &Range<u32>) -> Range<u32> {
    granules.start.div_ceil(GRANULES_PER_PAGE)..granules.end / GRANULES_PER_PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_an_arena_is_within_reach_of_every_other_and_no_areas_overlap() {
        for reserve_bytes in [1, HUGE_BYTES, 100 << 20, 256 << 20, (256 << 20) + 1, 1 << 30, RESERVE_LIMIT_BYTES] {
            let geometry = Geometry::for_reserve(reserve_bytes).unwrap();
            assert!(u64::from(geometry.arenas) * geometry.area_bytes >= reserve_bytes, "{reserve_bytes}");
            let mut end = 0;
            let mut in_file = Vec::new();
            for area in geometry.areas() {
                let start = geometry.run_offset(area);
                assert!(start >= end + GUARD_BYTES, "{area:?} of {reserve_bytes}");
                assert_eq!(start % HUGE_BYTES, 0);
                end = start + geometry.area_bytes;
                let first = geometry.run_offset(AreaId { arena: area.arena, kind: PartKind::Code });
                assert!(end - first < 1 << 30, "{area:?} of {reserve_bytes}");
                let at = geometry.file_offset(area);
                assert!(area.kind == PartKind::Data || at + geometry.area_bytes <= geometry.window_bytes());
                in_file.push(at);
            }
            assert_eq!(end + GUARD_BYTES, geometry.run_bytes());
            in_file.sort_unstable();
            assert!(in_file.iter().enumerate().all(|(i, &at)| at == i as u64 * geometry.area_bytes));
            assert_eq!(in_file.len() as u64 * geometry.area_bytes, geometry.file_bytes());
        }
    }

    #[test]
    fn a_reservation_of_nothing_or_of_too_much_is_refused() {
        for reserve_bytes in [0, RESERVE_LIMIT_BYTES + 1, u64::MAX] {
            assert!(matches!(Geometry::for_reserve(reserve_bytes), Err(MapError::Size { .. })), "{reserve_bytes}");
        }
    }

    #[test]
    fn pages_touched_round_outwards_and_pages_within_round_inwards() {
        assert_eq!(pages_touched(&(63..65)), 0..2);
        assert!(pages_within(&(63..65)).is_empty());
        assert_eq!(pages_touched(&(64..128)), 1..2);
        assert_eq!(pages_within(&(63..129)), 1..2);
    }
}
