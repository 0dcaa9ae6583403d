use super::CodeError;

/// Bounds that a blob is held to. Whatever a blob says, parsing takes no more memory than these allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a blob.
    pub blob_max_bytes: u64,
    /// Bytes of code, read-only data and data together after layout: with padding, .bss, GOT and call stubs.
    pub image_max_bytes: u64,
    /// Sections of an object, the null section included.
    pub sections_max: u32,
    /// Symbols of an object, the null symbol included.
    pub symbols_max: u32,
    /// Relocations of the loaded sections of an object.
    pub relocations_max: u32,
    /// Bytes of the name of a symbol, a section or a flat entry.
    pub symbol_name_max_bytes: u32,
    /// Alignment in bytes that a section or a common symbol may ask for.
    pub align_max_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // An optimised translation unit is far below a MiB; 16 MiB is the largest unary message the edge takes.
            blob_max_bytes: 16 << 20,
            image_max_bytes: 16 << 20,
            // `-ffunction-sections` makes two sections a function: room for 30,000 functions.
            sections_max: 1 << 16,
            // A symbol takes 24 bytes of the blob: 6 MiB of symbols at most.
            symbols_max: 1 << 18,
            // A relocation takes 24 bytes of the blob: 12 MiB of relocations at most.
            relocations_max: 1 << 19,
            // Names of generic C++ and Rust functions reach hundreds of bytes.
            symbol_name_max_bytes: 1024,
            // Arenas place parts at page granularity at best.
            align_max_bytes: 4096,
        }
    }
}

impl Limits {
    /// Fails if `value` of `what` is above `max`.
    pub(super) fn hold(what: &'static str, value: u64, max: u64) -> Result<(), CodeError> {
        if value > max { Err(CodeError::TooLarge { what, value, max }) } else { Ok(()) }
    }

    /// Fails if `blob` is empty or larger than a blob may be.
    pub(super) fn hold_blob(&self, blob: &[u8]) -> Result<(), CodeError> {
        if blob.is_empty() {
            return Err(CodeError::malformed("the blob is empty"));
        }
        Self::hold("bytes of the blob", blob.len() as u64, self.blob_max_bytes)
    }
}
