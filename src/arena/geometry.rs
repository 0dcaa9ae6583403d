//! Where areas lie: in the address range that code runs in, in the window it is written through, in the file behind both.
//!
//! ```text
//! run range   guard | code 0 | guard | rodata 0 | guard | data 0 | guard | code 1 | guard | ...
//! low range   guard | code n | guard | rodata n | guard | data n | guard
//! window      code 0 | rodata 0 | code 1 | rodata 1 | ...
//! file        the window's bytes, then data 0 | data 1 | ...
//! ```
//!
//! The arena below 2 GiB, if there is one, comes after all others: it has a run range of its own, areas of its own size, and
//! the last places in window and file.

use std::{
    fmt,
    ops::{Range, RangeInclusive},
    thread,
};

use super::{ArenaConfig, MapError, blocks::AREA_GRANULES_MAX};

/// What spans are measured in unless the configuration says otherwise. One cache line: two spans never share one.
pub const GRANULE_DEFAULT_BYTES: u64 = 64;
/// The smallest and the largest granule. Each is a power of two.
pub(super) const GRANULE_RANGE_BYTES: RangeInclusive<u64> = 16..=PAGE_BYTES;
/// The largest alignment a part may ask for.
pub const ALIGN_MAX_BYTES: u64 = PAGE_BYTES;
/// The largest [`ArenaConfig::reserve_max_bytes`](super::ArenaConfig::reserve_max_bytes): it bounds the number of
/// mappings (six per arena) far below the kernel's default of 65530.
pub const RESERVE_LIMIT_BYTES: u64 = 64 << 30;

/// The page of x86-64: what is committed and given back.
pub(super) const PAGE_BYTES: u64 = 4096;
/// A huge page. Areas are aligned to it so that the kernel can map them with huge pages.
pub(super) const HUGE_BYTES: u64 = 2 << 20;
/// Inaccessible bytes on both sides of every area: more than any overrun of a small loop, and it keeps areas aligned.
pub(super) const GUARD_BYTES: u64 = HUGE_BYTES;
/// Three areas and the guards between them span less than 1 GiB, so 32-bit displacements reach with room to spare.
const AREA_MAX_BYTES: u64 = 256 << 20;
/// Where the arena below 2 GiB may begin: addresses below are what code gets that reads fields of a null pointer.
pub(super) const LOW_START: u64 = 16 << 20;
/// Where it ends at the latest: addresses below fit into 32 bits, whether those are sign-extended or not, and so do those
/// 16 MiB behind them, as compilers take for granted in the small code model.
pub(super) const LOW_END: u64 = (2 << 30) - (16 << 20);
/// The smallest area that is split for the sake of threads: what lies in one must go into one area as a whole.
const SHARD_MIN_BYTES: u64 = 32 << 20;

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
    /// But for the one below 2 GiB, whose number this is.
    pub(super) arenas: u32,
    /// Of each of an arena's three areas; a multiple of [`HUGE_BYTES`].
    pub(super) area_bytes: u64,
    /// The same of the arena below 2 GiB; 0 if there is none.
    pub(super) low_area_bytes: u64,
    /// A power of two in [`GRANULE_RANGE_BYTES`].
    pub(super) granule_bytes: u64,
    /// Pages that are committed and given back together: 1, or those of a huge page.
    pub(super) unit_pages: u32,
}

impl Geometry {
    /// What a configuration asks for.
    pub(super) fn for_config(config: &ArenaConfig) -> Result<Self, MapError> {
        let shards = match config.shards {
            0 => thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX)),
            shards => shards,
        };
        Self::new(config.reserve_max_bytes, config.granule_bytes, shards)?.with_low(config.low_bytes)
    }

    /// Equal arenas that hold `reserve_bytes` of each kind: as few as possible, but where they stay large enough one
    /// for each of `shards` threads.
    pub(super) fn new(reserve_bytes: u64, granule_bytes: u64, shards: u32) -> Result<Self, MapError> {
        if !(1..=RESERVE_LIMIT_BYTES).contains(&reserve_bytes) {
            return Err(MapError::Size { reserve_bytes, max_bytes: RESERVE_LIMIT_BYTES });
        }
        if !GRANULE_RANGE_BYTES.contains(&granule_bytes) || !granule_bytes.is_power_of_two() {
            return Err(MapError::Granule { granule_bytes });
        }
        let fewest = reserve_bytes.div_ceil(area_max_bytes(granule_bytes));
        let arenas = fewest.max(u64::from(shards).min(reserve_bytes / SHARD_MIN_BYTES));
        let area_bytes = reserve_bytes.div_ceil(arenas).next_multiple_of(HUGE_BYTES);
        Ok(Self { arenas: arenas as u32, area_bytes, low_area_bytes: 0, granule_bytes, unit_pages: 1 })
    }

    /// The same with one more arena, which lies below 2 GiB and holds `low_bytes` of each kind; 0: without.
    pub(super) fn with_low(self, low_bytes: u64) -> Result<Self, MapError> {
        let max_bytes = area_max_bytes(self.granule_bytes);
        if low_bytes > max_bytes {
            return Err(MapError::LowSize { low_bytes, max_bytes, granule_bytes: self.granule_bytes });
        }
        Ok(Self { low_area_bytes: low_bytes.next_multiple_of(HUGE_BYTES), ..self })
    }

    /// With the one below 2 GiB.
    pub(super) fn all_arenas(self) -> u32 {
        self.arenas + u32::from(self.low_area_bytes > 0)
    }

    /// The number of the arena below 2 GiB.
    pub(super) fn low_arena(self) -> Option<u32> {
        (self.low_area_bytes > 0).then_some(self.arenas)
    }

    pub(super) fn is_low(self, arena: u32) -> bool {
        self.low_arena() == Some(arena)
    }

    /// Of each of this arena's areas.
    pub(super) fn area_bytes_of(self, arena: u32) -> u64 {
        if self.is_low(arena) { self.low_area_bytes } else { self.area_bytes }
    }

    pub(super) fn areas(self) -> impl Iterator<Item = AreaId> {
        (0..self.all_arenas()).flat_map(|arena| PartKind::ALL.map(|kind| AreaId { arena, kind }))
    }

    /// How many granules hold this many bytes; `None` if those are more than `max_bytes`, which is an area's size.
    pub(super) fn granules(self, bytes: u64, max_bytes: u64) -> Option<u32> {
        let rounded = bytes.checked_add(self.granule_bytes - 1)?;
        (bytes <= max_bytes).then_some((rounded >> self.granule_shift()) as u32)
    }

    /// The bytes of an area that these granules are.
    pub(super) fn bytes_of(self, granules: &Range<u32>) -> Range<u64> {
        let shift = self.granule_shift();
        u64::from(granules.start) << shift..u64::from(granules.end) << shift
    }

    /// The granules that these pages hold.
    pub(super) fn granules_of(self, pages: &Range<u32>) -> Range<u32> {
        let shift = self.page_shift();
        pages.start << shift..pages.end << shift
    }

    /// The pages that these granules of an area lie on, wholly or in part.
    pub(super) fn pages_touched(self, granules: &Range<u32>) -> Range<u32> {
        let shift = self.page_shift();
        granules.start >> shift..(granules.end + (1 << shift) - 1) >> shift
    }

    /// The pages that lie wholly within these granules; empty if there are none.
    pub(super) fn pages_within(self, granules: &Range<u32>) -> Range<u32> {
        let shift = self.page_shift();
        let start = (granules.start + (1 << shift) - 1) >> shift;
        start..(granules.end >> shift).max(start)
    }

    /// Pages, rounded outwards to what is committed together.
    pub(super) fn units_touched(self, pages: &Range<u32>) -> Range<u32> {
        let mask = self.unit_pages - 1;
        pages.start & !mask..(pages.end + mask) & !mask
    }

    /// The pages that lie wholly within these granules, as they can be given back: in whole units.
    pub(super) fn whole_units(self, granules: &Range<u32>) -> Range<u32> {
        let (mask, pages) = (self.unit_pages - 1, self.pages_within(granules));
        let start = (pages.start + mask) & !mask;
        start..(pages.end & !mask).max(start)
    }

    // Shifts, as the divisors are powers of two that the compiler does not know.

    fn granule_shift(self) -> u32 {
        self.granule_bytes.trailing_zeros()
    }

    fn page_shift(self) -> u32 {
        PAGE_BYTES.trailing_zeros() - self.granule_shift()
    }

    /// Bytes of the run range, guards at both ends included.
    pub(super) fn run_bytes(self) -> u64 {
        GUARD_BYTES + u64::from(self.arenas) * 3 * (self.area_bytes + GUARD_BYTES)
    }

    /// Bytes of the run range below 2 GiB, guards at both ends included; 0 if there is none.
    pub(super) fn low_run_bytes(self) -> u64 {
        if self.low_area_bytes == 0 { 0 } else { GUARD_BYTES + 3 * (self.low_area_bytes + GUARD_BYTES) }
    }

    /// Within the run range that the arena lies in.
    pub(super) fn run_offset(self, area: AreaId) -> u64 {
        let before = if self.is_low(area.arena) { area.kind as usize } else { area.index() };
        GUARD_BYTES + before as u64 * (self.area_bytes_of(area.arena) + GUARD_BYTES)
    }

    /// The area that an offset into the run range lies in, and where in it; `None` for guards.
    pub(super) fn locate(self, run_offset: u64) -> Option<(AreaId, u64)> {
        self.locate_in(0..self.arenas, run_offset)
    }

    /// The same for an offset into the run range below 2 GiB.
    pub(super) fn locate_low(self, run_offset: u64) -> Option<(AreaId, u64)> {
        self.locate_in(self.arenas..self.all_arenas(), run_offset)
    }

    /// Of a run range that these arenas lie in.
    fn locate_in(self, arenas: Range<u32>, run_offset: u64) -> Option<(AreaId, u64)> {
        let area_bytes = self.area_bytes_of(arenas.start);
        let from_first = run_offset.checked_sub(GUARD_BYTES)?;
        let (at, offset_bytes) = (from_first / (area_bytes + GUARD_BYTES), from_first % (area_bytes + GUARD_BYTES));
        let kind = PartKind::ALL[(at % 3) as usize];
        let arena = u32::try_from(at / 3).ok()?.checked_add(arenas.start).filter(|arena| arenas.contains(arena))?;
        (offset_bytes < area_bytes).then_some((AreaId { arena, kind }, offset_bytes))
    }

    pub(super) fn window_bytes(self) -> u64 {
        2 * (u64::from(self.arenas) * self.area_bytes + self.low_area_bytes)
    }

    pub(super) fn file_bytes(self) -> u64 {
        3 * (u64::from(self.arenas) * self.area_bytes + self.low_area_bytes)
    }

    /// Within the file; for code and read-only data also within the window.
    pub(super) fn file_offset(self, area: AreaId) -> u64 {
        // All arenas before this one are of one size.
        let before_bytes = u64::from(area.arena) * self.area_bytes;
        match area.kind {
            PartKind::Code => 2 * before_bytes,
            PartKind::Rodata => 2 * before_bytes + self.area_bytes_of(area.arena),
            PartKind::Data => self.window_bytes() + before_bytes,
        }
    }
}

/// The largest area that can be had in granules of this size.
fn area_max_bytes(granule_bytes: u64) -> u64 {
    AREA_MAX_BYTES.min(u64::from(AREA_GRANULES_MAX) * granule_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_an_arena_is_within_reach_of_every_other_and_no_areas_overlap() {
        let reserved = [1, HUGE_BYTES, 100 << 20, 256 << 20, (256 << 20) + 1, 1 << 30, RESERVE_LIMIT_BYTES];
        for (reserve_bytes, low_bytes) in reserved.into_iter().flat_map(|it| [0, 1, 7 << 20].map(|low| (it, low))) {
            let geometry =
                Geometry::new(reserve_bytes, GRANULE_DEFAULT_BYTES, 1).and_then(|it| it.with_low(low_bytes)).unwrap();
            assert!(u64::from(geometry.arenas) * geometry.area_bytes >= reserve_bytes, "{reserve_bytes}");
            assert!(geometry.low_area_bytes >= low_bytes && geometry.low_area_bytes.is_multiple_of(HUGE_BYTES));
            let mut ends = [0; 2];
            let mut in_file = Vec::new();
            for area in geometry.areas() {
                let is_low = geometry.is_low(area.arena);
                let (start, area_bytes) = (geometry.run_offset(area), geometry.area_bytes_of(area.arena));
                let end = &mut ends[usize::from(is_low)];
                assert!(start >= *end + GUARD_BYTES, "{area:?} of {reserve_bytes}");
                assert_eq!(start % HUGE_BYTES, 0);
                *end = start + area_bytes;
                let first = geometry.run_offset(AreaId { arena: area.arena, kind: PartKind::Code });
                assert!(*end - first < 1 << 30, "{area:?} of {reserve_bytes}");
                let locate = |at| if is_low { geometry.locate_low(at) } else { geometry.locate(at) };
                assert_eq!(locate(start), Some((area, 0)));
                assert_eq!(locate(*end - 1), Some((area, area_bytes - 1)));
                assert_eq!((locate(start - 1), locate(*end)), (None, None));
                let at = geometry.file_offset(area);
                assert!(area.kind == PartKind::Data || at + area_bytes <= geometry.window_bytes());
                in_file.push((at, at + area_bytes));
            }
            let low_end = if low_bytes > 0 { ends[1] + GUARD_BYTES } else { 0 };
            assert_eq!((ends[0] + GUARD_BYTES, low_end), (geometry.run_bytes(), geometry.low_run_bytes()));
            in_file.sort_unstable();
            assert!(in_file.windows(2).all(|pair| pair[0].1 == pair[1].0), "neither gaps nor overlaps");
            assert_eq!((in_file[0].0, in_file.last().unwrap().1), (0, geometry.file_bytes()));
        }
    }

    #[test]
    fn code_and_read_only_data_of_an_arena_lie_side_by_side_in_the_window() {
        let geometry = Geometry::new(1 << 30, GRANULE_DEFAULT_BYTES, 1).and_then(|it| it.with_low(5 << 20)).unwrap();
        for arena in 0..geometry.all_arenas() {
            let at = |kind| geometry.file_offset(AreaId { arena, kind });
            assert_eq!(at(PartKind::Rodata) - at(PartKind::Code), geometry.area_bytes_of(arena), "{arena}");
        }
    }

    #[test]
    fn an_arena_below_2_gib_fits_there_at_its_largest_and_more_is_refused() {
        for granule_bytes in [16, 64, 4096] {
            let geometry = Geometry::new(1 << 30, granule_bytes, 1).unwrap();
            let max_bytes = area_max_bytes(granule_bytes);
            let largest = geometry.with_low(max_bytes).unwrap();
            assert!(LOW_START + largest.low_run_bytes() < LOW_END / 2, "half of the places are left to choose from");
            let refused = geometry.with_low(max_bytes + 1);
            assert!(matches!(refused, Err(MapError::LowSize { max_bytes: told, .. }) if told == max_bytes));
        }
    }

    #[test]
    fn a_reservation_of_nothing_or_of_too_much_is_refused() {
        for reserve_bytes in [0, RESERVE_LIMIT_BYTES + 1, u64::MAX] {
            assert!(
                matches!(Geometry::new(reserve_bytes, GRANULE_DEFAULT_BYTES, 1), Err(MapError::Size { .. })),
                "{reserve_bytes}"
            );
        }
    }

    #[test]
    fn arenas_are_as_many_as_the_threads_unless_they_would_get_small_or_too_large() {
        let arenas = |mib: u64, granule, shards| Geometry::new(mib << 20, granule, shards).unwrap().arenas;
        assert_eq!([arenas(1, 64, 8), arenas(63, 64, 8), arenas(64, 64, 8), arenas(128, 64, 2)], [1, 1, 2, 2]);
        assert_eq!([arenas(1024, 64, 2), arenas(1024, 64, 8), arenas(257, 64, 1)], [4, 8, 2]);
        assert_eq!([arenas(256, 16, 1), arenas(256, 4096, 1)], [4, 1]);
    }

    #[test]
    fn a_granule_that_is_no_power_of_two_or_out_of_range_is_refused() {
        for granule_bytes in [0, 8, 48, 8192, u64::MAX] {
            let refused = Geometry::new(1 << 20, granule_bytes, 1);
            assert!(matches!(refused, Err(MapError::Granule { .. })), "{granule_bytes}");
        }
    }

    #[test]
    fn pages_touched_round_outwards_and_pages_within_round_inwards() {
        let geometry = Geometry::new(1 << 20, 64, 1).unwrap();
        assert_eq!(geometry.pages_touched(&(63..65)), 0..2);
        assert!(geometry.pages_within(&(63..65)).is_empty());
        assert_eq!(geometry.pages_touched(&(64..128)), 1..2);
        assert_eq!(geometry.pages_within(&(63..129)), 1..2);
        assert_eq!(geometry.granules_of(&(1..3)), 64..192);
        let geometry = Geometry::new(1 << 20, 4096, 1).unwrap();
        assert_eq!((geometry.pages_touched(&(3..4)), geometry.pages_within(&(3..4))), (3..4, 3..4));
    }
}
