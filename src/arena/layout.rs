//! What a caller asks the arenas for, and where it got it.

use super::{
    ReserveError,
    geometry::{ALIGN_MAX_BYTES, Geometry, PAGE_BYTES, PartKind},
    shard::{Want, Wants},
};

/// Size and alignment of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Zero is allowed and takes no memory.
    pub size_bytes: u64,
    /// A power of two up to [`ALIGN_MAX_BYTES`]. Not looked at if the size is zero.
    pub align_bytes: u64,
}

impl Part {
    /// No bytes.
    pub const NONE: Self = Self { size_bytes: 0, align_bytes: 1 };

    fn want(self, part: PartKind, geometry: Geometry, low: bool) -> Result<Option<Want>, ReserveError> {
        if self.size_bytes == 0 {
            return Ok(None);
        }
        if !self.align_bytes.is_power_of_two() || self.align_bytes > ALIGN_MAX_BYTES {
            return Err(ReserveError::Align { part, align_bytes: self.align_bytes, max_bytes: ALIGN_MAX_BYTES });
        }
        let area_bytes = if low { geometry.low_area_bytes } else { geometry.area_bytes };
        let too_large = ReserveError::TooLarge { low, needed_bytes: self.size_bytes, max_bytes: area_bytes };
        let granules = geometry.granules(self.size_bytes, area_bytes).ok_or(too_large)?;
        let align_granules = geometry.granules(self.align_bytes, area_bytes).ok_or(too_large)?;
        Ok(Some(Want { granules, align_granules }))
    }
}

/// The parts of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Instructions.
    pub code: Part,
    /// Constants.
    pub rodata: Part,
    /// Variables.
    pub data: Part,
    /// All of it must lie below 2 GiB: in the arena that is there for this, and there alone. What need not lies elsewhere.
    pub low: bool,
}

impl Layout {
    /// Instructions alone.
    pub const fn code(size_bytes: u64, align_bytes: u64) -> Self {
        Self { code: Part { size_bytes, align_bytes }, rodata: Part::NONE, data: Part::NONE, low: false }
    }

    /// The part of a kind.
    pub fn part(&self, kind: PartKind) -> Part {
        match kind {
            PartKind::Code => self.code,
            PartKind::Rodata => self.rodata,
            PartKind::Data => self.data,
        }
    }

    /// The bytes of the spans that this layout takes: each part rounded up to whole granules. Alignment costs nothing.
    /// Saturates at `u64::MAX`, which no arena can hold.
    pub(super) fn charge_bytes(&self, granule_bytes: u64) -> u64 {
        let rounded = |bytes: u64| bytes.checked_next_multiple_of(granule_bytes).unwrap_or(u64::MAX);
        PartKind::ALL.into_iter().fold(0, |sum: u64, kind| sum.saturating_add(rounded(self.part(kind).size_bytes)))
    }

    /// What is asked for if it is code alone, wherever it lies, and can be had.
    pub(super) fn only_code(&self, geometry: Geometry) -> Option<Want> {
        let code_alone = self.rodata.size_bytes == 0 && self.data.size_bytes == 0 && !self.low;
        if code_alone { self.code.want(PartKind::Code, geometry, false).ok().flatten() } else { None }
    }

    /// What the allocator is asked for.
    pub(super) fn wants(&self, geometry: Geometry, commit_limit_bytes: u64) -> Result<Wants, ReserveError> {
        if self.low && geometry.low_arena().is_none() {
            return Err(ReserveError::NoLow);
        }
        let mut wants = [None; 3];
        for kind in PartKind::ALL {
            wants[kind as usize] = self.part(kind).want(kind, geometry, self.low)?;
        }
        // Not even empty arenas could take it: said here, before anything is evicted in vain.
        let unit_bytes = u64::from(geometry.unit_pages) * PAGE_BYTES;
        let rounded = |bytes: u64| (bytes + (unit_bytes - 1)) & !(unit_bytes - 1);
        let needed_bytes = PartKind::ALL.into_iter().map(|kind| rounded(self.part(kind).size_bytes)).sum();
        if needed_bytes > commit_limit_bytes {
            return Err(ReserveError::TooLarge { low: false, needed_bytes, max_bytes: commit_limit_bytes });
        }
        Ok(wants)
    }
}

/// Run addresses of the parts, all within one arena, any two less than 1 GiB apart. A part of size zero has an
/// address within reach, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Where the instructions run.
    pub code: u64,
    /// Where running code reads constants.
    pub rodata: u64,
    /// Where running code reads and writes variables.
    pub data: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::geometry::HUGE_BYTES;

    const GEOMETRY: Geometry =
        Geometry { arenas: 1, area_bytes: HUGE_BYTES, low_area_bytes: 0, granule_bytes: 64, unit_pages: 1 };

    fn layout(code: u64, rodata: u64, data: u64) -> Layout {
        let part = |size_bytes| Part { size_bytes, align_bytes: 16 };
        Layout { code: part(code), rodata: part(rodata), data: part(data), low: false }
    }

    #[test]
    fn a_charge_is_whole_granules_and_saturates() {
        assert_eq!(layout(0, 0, 0).charge_bytes(64), 0);
        assert_eq!(layout(1, 64, 65).charge_bytes(64), 64 + 64 + 128);
        assert_eq!(layout(u64::MAX, 1, 1).charge_bytes(64), u64::MAX);
        assert_eq!(layout(u64::MAX - 63, 64, 0).charge_bytes(64), u64::MAX);
    }

    #[test]
    fn an_impossible_layout_is_refused_with_the_limit_it_breaks() {
        let align = |align_bytes| Layout { code: Part { size_bytes: 1, align_bytes }, ..layout(0, 0, 0) };
        for bad in [0, 3, 8192, u64::MAX] {
            assert!(matches!(align(bad).wants(GEOMETRY, 4096), Err(ReserveError::Align { .. })), "{bad}");
        }
        assert_eq!(align(4096).wants(GEOMETRY, 4096).unwrap()[0], Some(Want { granules: 1, align_granules: 64 }));
        assert_eq!(align(1).wants(GEOMETRY, 4096).unwrap()[0], Some(Want { granules: 1, align_granules: 1 }));
        for (bad, limit_bytes) in
            [(layout(0, HUGE_BYTES + 1, 0), u64::MAX), (layout(u64::MAX, 0, 0), u64::MAX), (layout(1, 1, 1), 8192)]
        {
            let refused = bad.wants(GEOMETRY, limit_bytes);
            assert!(
                matches!(refused, Err(ReserveError::TooLarge { needed_bytes, max_bytes, .. }) if needed_bytes > max_bytes)
            );
        }
        assert!(layout(1, 1, 0).wants(GEOMETRY, 8192).is_ok());
    }

    #[test]
    fn what_must_lie_below_2_gib_is_held_to_the_arena_there() {
        let low = |bytes| Layout { low: true, ..layout(bytes, 1, 0) };
        assert_eq!(low(1).wants(GEOMETRY, u64::MAX), Err(ReserveError::NoLow));
        let geometry = Geometry { low_area_bytes: 2 * HUGE_BYTES, ..GEOMETRY };
        assert!(low(2 * HUGE_BYTES).wants(geometry, u64::MAX).is_ok());
        let refused = low(2 * HUGE_BYTES + 1).wants(geometry, u64::MAX);
        assert!(
            matches!(refused, Err(ReserveError::TooLarge { low: true, max_bytes, .. }) if max_bytes == 2 * HUGE_BYTES)
        );
        assert!(layout(2 * HUGE_BYTES, 1, 0).wants(geometry, u64::MAX).is_err(), "others do not lie there");
        assert_eq!((layout(1, 0, 0).only_code(geometry).is_some(), low(1).only_code(geometry)), (true, None));
    }
}
