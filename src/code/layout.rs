use super::image::{Part, PartKind, Sizes};
use super::{CodeError, Limits};

/// Hands out room in the three parts of an image, within the limits of an image.
pub(super) struct Layout {
    sizes: Sizes,
    /// Bytes of the data part when the first zeros were placed.
    data_init_bytes: Option<u64>,
    image_max_bytes: u64,
    align_max_bytes: u64,
}

impl Layout {
    pub(super) fn new(limits: &Limits) -> Self {
        Layout {
            sizes: Sizes::default(),
            data_init_bytes: None,
            image_max_bytes: limits.image_max_bytes,
            align_max_bytes: limits.align_max_bytes,
        }
    }

    /// Places `size_bytes` at the end of `part` and returns their offset in it. 0 is the same alignment as 1.
    pub(super) fn take(&mut self, part: PartKind, size_bytes: u64, align_bytes: u64) -> Result<u64, CodeError> {
        let align_bytes = self.alignment(align_bytes)?;
        let taken = self.part(part).size_bytes;
        let offset = taken.checked_next_multiple_of(align_bytes);
        let end = offset.and_then(|offset| offset.checked_add(size_bytes)).unwrap_or(u64::MAX);
        // All parts together are within the limit before this, so that the sum cannot wrap unless `end` is huge.
        let total = (self.total_bytes() - taken).saturating_add(end);
        Limits::hold("bytes of the image", total, self.image_max_bytes)?;
        let slot = self.part(part);
        slot.align_bytes = slot.align_bytes.max(align_bytes);
        slot.size_bytes = end;
        Ok(offset.unwrap_or(end))
    }

    /// An alignment as an object says it, if it can be had. 0 is the same as 1.
    pub(super) fn alignment(&self, align_bytes: u64) -> Result<u64, CodeError> {
        let align_bytes = align_bytes.max(1);
        if !align_bytes.is_power_of_two() {
            return Err(CodeError::malformed("an alignment is not a power of two"));
        }
        Limits::hold("bytes of alignment", align_bytes, self.align_max_bytes)?;
        Ok(align_bytes)
    }

    /// From here on the data part takes what starts as zero.
    pub(super) fn begin_zeros(&mut self) {
        self.data_init_bytes = Some(self.sizes.data.size_bytes);
    }

    /// Bytes of the data part that do not all start as zero.
    pub(super) fn data_init_bytes(&self) -> u64 {
        self.data_init_bytes.unwrap_or(self.sizes.data.size_bytes)
    }

    pub(super) fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn total_bytes(&self) -> u64 {
        self.sizes.code.size_bytes + self.sizes.rodata.size_bytes + self.sizes.data.size_bytes
    }

    fn part(&mut self, part: PartKind) -> &mut Part {
        match part {
            PartKind::Code => &mut self.sizes.code,
            PartKind::Rodata => &mut self.sizes.rodata,
            PartKind::Data => &mut self.sizes.data,
        }
    }
}
