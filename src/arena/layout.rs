//! What a caller asks the arenas for, and where it got it.

use super::{
    ReserveError,
    geometry::{ALIGN_MAX_BYTES, GRANULE_BYTES, PAGE_BYTES, PartKind},
    pool::Want,
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
    fn charge_bytes(self) -> u64 {
        self.size_bytes.checked_next_multiple_of(GRANULE_BYTES).unwrap_or(u64::MAX)
    }

    fn want(self, part: PartKind, area_bytes: u64) -> Result<Option<Want>, ReserveError> {
        if self.size_bytes == 0 {
            return Ok(None);
        }
        if !self.align_bytes.is_power_of_two() || self.align_bytes > ALIGN_MAX_BYTES {
            return Err(ReserveError::Align { part, align_bytes: self.align_bytes, max_bytes: ALIGN_MAX_BYTES });
        }
        let needed_bytes = self.charge_bytes();
        if needed_bytes > area_bytes {
            return Err(ReserveError::TooLarge { needed_bytes, max_bytes: area_bytes });
        }
        // Both fit: an area has far fewer than 2^32 granules.
        let granules = (needed_bytes / GRANULE_BYTES) as u32;
        Ok(Some(Want { granules, align_granules: self.align_bytes.div_ceil(GRANULE_BYTES) as u32 }))
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
}

impl Layout {
    /// The bytes of the spans that this layout takes: each part rounded up to [`GRANULE_BYTES`]. Alignment costs
    /// nothing. Saturates at `u64::MAX`, which no arena can hold.
    pub fn charge_bytes(&self) -> u64 {
        let parts = PartKind::ALL.map(|kind| self.part(kind).charge_bytes());
        parts.into_iter().fold(0, u64::saturating_add)
    }

    pub(super) fn part(&self, kind: PartKind) -> Part {
        match kind {
            PartKind::Code => self.code,
            PartKind::Rodata => self.rodata,
            PartKind::Data => self.data,
        }
    }

    /// What the allocator is asked for, in the order of [`PartKind::ALL`].
    pub(super) fn wants(&self, area_bytes: u64, commit_limit_bytes: u64) -> Result<[Option<Want>; 3], ReserveError> {
        let mut wants = [None; 3];
        for kind in PartKind::ALL {
            wants[kind as usize] = self.part(kind).want(kind, area_bytes)?;
        }
        // Not even empty arenas could take it: said here, before anything is evicted in vain.
        let pages =
            wants.iter().flatten().map(|it| u64::from(it.granules) * GRANULE_BYTES).map(|it| it.div_ceil(PAGE_BYTES));
        let needed_bytes = pages.sum::<u64>() * PAGE_BYTES;
        if needed_bytes > commit_limit_bytes {
            return Err(ReserveError::TooLarge { needed_bytes, max_bytes: commit_limit_bytes });
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

    fn layout(code: u64, rodata: u64, data: u64) -> Layout {
        let part = |size_bytes| Part { size_bytes, align_bytes: 16 };
        Layout { code: part(code), rodata: part(rodata), data: part(data) }
    }

    #[test]
    fn a_charge_is_whole_granules_and_saturates() {
        assert_eq!(layout(0, 0, 0).charge_bytes(), 0);
        assert_eq!(layout(1, 64, 65).charge_bytes(), 64 + 64 + 128);
        assert_eq!(layout(u64::MAX, 1, 1).charge_bytes(), u64::MAX);
        assert_eq!(layout(u64::MAX - 63, 64, 0).charge_bytes(), u64::MAX);
    }

    #[test]
    fn an_impossible_layout_is_refused_with_the_limit_it_breaks() {
        let align = |align_bytes| Layout { code: Part { size_bytes: 1, align_bytes }, ..layout(0, 0, 0) };
        for bad in [0, 3, 8192, u64::MAX] {
            assert!(matches!(align(bad).wants(4096, 4096), Err(ReserveError::Align { .. })), "{bad}");
        }
        assert_eq!(align(4096).wants(4096, 4096).unwrap()[0], Some(Want { granules: 1, align_granules: 64 }));
        assert_eq!(align(1).wants(4096, 4096).unwrap()[0], Some(Want { granules: 1, align_granules: 1 }));
        for (bad, limit_bytes) in
            [(layout(0, 8193, 0), 1 << 20), (layout(u64::MAX, 0, 0), u64::MAX), (layout(1, 1, 1), 8192)]
        {
            let refused = bad.wants(8192, limit_bytes);
            assert!(
                matches!(refused, Err(ReserveError::TooLarge { needed_bytes, max_bytes }) if needed_bytes > max_bytes)
            );
        }
        assert!(layout(1, 1, 0).wants(8192, 8192).is_ok());
    }
}
