//! Memory that is being written.

use super::{Addresses, Published, holding::Holding};

/// Spans for one layout, not yet to be run. Dropped instead of published, it gives them back.
#[derive(Debug)]
pub struct Draft {
    holding: Holding,
}

impl Draft {
    pub(super) fn new(holding: Holding) -> Self {
        Self { holding }
    }

    /// Where the parts will be when they are run: what the image is linked for.
    pub fn addresses(&self) -> Addresses {
        self.holding.addresses()
    }

    /// The code, exactly as long as was asked for; holds trap instructions at first.
    pub fn code_mut(&mut self) -> &mut [u8] {
        self.code_and_rodata_mut().0
    }

    /// The read-only data, exactly as long as was asked for; holds anything at first, so all of it must be written.
    pub fn rodata_mut(&mut self) -> &mut [u8] {
        self.code_and_rodata_mut().1
    }

    /// [`Self::code_mut`] and [`Self::rodata_mut`] at once.
    pub fn code_and_rodata_mut(&mut self) -> (&mut [u8], &mut [u8]) {
        let Holding { arenas, layout, grant } = &mut self.holding;
        arenas.views.code_and_rodata_mut(grant, [layout.code.size_bytes, layout.rodata.size_bytes])
    }

    /// Copies `initial` to the start of the data and makes the rest zero. Without this call the data holds anything.
    ///
    /// # Panics
    /// If `initial` is longer than the data, rounded up to whole granules.
    pub fn write_data(&mut self, initial: &[u8]) {
        self.holding.arenas.views.write_data(&self.holding.grant, initial);
    }

    /// Makes the code visible to all cores: on return no thread can run what its addresses held before. The caller
    /// tells other threads the address only after this, by a release store or a lock.
    pub fn publish(self) -> Published {
        self.holding.arenas.barrier.serialise();
        Published::new(self.holding)
    }
}
