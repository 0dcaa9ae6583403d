//! Memory whose code can be called.

use std::ops::Range;

use super::{Addresses, Layout, PartKind, PublishError, holding::Holding, shard::Grant};

/// Code that is ready to run, with its read-only data and its data.
///
/// Drop fills the code with trap instructions and gives the memory back. Whoever calls the code keeps this alive until
/// the call is over.
#[derive(Debug)]
pub struct Published {
    holding: Holding,
}

impl Published {
    pub(super) fn new(holding: Holding) -> Self {
        Self { holding }
    }

    pub(super) fn grant(&self) -> &Grant {
        &self.holding.grant
    }

    /// Where the parts are.
    pub fn addresses(&self) -> Addresses {
        self.holding.addresses()
    }

    /// What was asked for.
    pub fn layout(&self) -> Layout {
        self.holding.layout()
    }

    /// The addresses of the code, exactly as many as were asked for.
    pub fn code_range(&self) -> Range<u64> {
        self.holding.range(PartKind::Code)
    }

    /// The addresses of the data, exactly as many as were asked for.
    pub fn data_range(&self) -> Range<u64> {
        self.holding.range(PartKind::Data)
    }

    /// How many barriers there have been. Code that is published where other code has run sees another number than that
    /// code did, as long as it is asked for when either is about to be called.
    pub fn barriers(&self) -> u64 {
        self.holding.memory().epochs.barriers()
    }

    /// Copies `initial` to the start of the data and makes the rest zero. The caller sees to it that no call runs and
    /// that no other thread does the same: what the data holds afterwards is else undetermined.
    ///
    /// # Panics
    /// If `initial` is longer than the data, rounded up to whole granules.
    pub fn restore_data(&self, initial: &[u8]) {
        self.holding.memory().views.write_data(&self.holding.grant, initial);
    }

    /// Copies the start of the data. The caller sees to it that no call runs: what is copied is else undetermined.
    ///
    /// # Panics
    /// If `into` is longer than the data, rounded up to whole granules.
    pub fn read_data(&self, into: &mut [u8]) {
        self.holding.memory().views.read_data(&self.holding.grant, into);
    }

    /// Writes 8 bytes of the read-only data, at an offset from its start. The caller sees to it that no call runs which
    /// reads them, and that no other thread does the same.
    ///
    /// # Errors
    /// The system refused to change the memory's protection: only where the window is opened on demand, or where
    /// protection is changed instead of memory mapped twice. What the bytes are then is undetermined.
    ///
    /// # Panics
    /// If the bytes are not within what was asked for.
    pub fn write_rodata_word(&self, offset_bytes: u64, word: u64) -> Result<(), PublishError> {
        let size_bytes = self.holding.size_bytes(PartKind::Rodata);
        let inside = offset_bytes.checked_add(8).is_some_and(|end| end <= size_bytes);
        assert!(inside, "a word at {offset_bytes} of {size_bytes} bytes of read-only data");
        self.holding.rewrite_rodata(|views, grant| views.write_rodata_word(grant, offset_bytes, word))
    }

    /// A copy of the code.
    pub fn read_code(&self) -> Vec<u8> {
        self.read_code_at(0, u64::MAX)
    }

    /// A copy of the code from this offset on, `max_bytes` or as many as there are.
    pub fn read_code_at(&self, offset_bytes: u64, max_bytes: u64) -> Vec<u8> {
        let size_bytes = self.holding.size_bytes(PartKind::Code);
        let start = offset_bytes.min(size_bytes);
        let end = start.saturating_add(max_bytes).min(size_bytes);
        self.holding.memory().views.read_code(&self.holding.grant, start..end)
    }

    /// A copy of bytes of the read-only data, counted from its start.
    ///
    /// # Panics
    /// If it has fewer.
    pub fn read_rodata_at(&self, wanted: Range<u64>) -> Vec<u8> {
        let size_bytes = self.holding.size_bytes(PartKind::Rodata);
        assert!(wanted.end <= size_bytes, "{} of {size_bytes} bytes of read-only data", wanted.end);
        let area = self.holding.grant.area(PartKind::Rodata);
        let start = self.holding.bytes(PartKind::Rodata).start;
        self.holding.memory().views.read_run(area, start + wanted.start..start + wanted.end)
    }

    /// Counts this memory as lingering instead of used from now on: nobody can ask for it any more, and it comes back
    /// when those who have it let go.
    pub fn linger(&self) {
        self.holding.lingers();
    }
}
