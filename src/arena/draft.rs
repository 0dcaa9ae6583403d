//! Memory that is being written.

use super::{Addresses, Layout, PartKind, PublishError, Published, ReserveError, StepError, canary, holding::Holding};

/// Spans for one layout, not yet to be run. Dropped instead of published, it gives them back.
#[derive(Debug)]
pub struct Draft {
    holding: Holding,
}

impl Draft {
    pub(super) fn new(holding: Holding) -> Self {
        Self { holding }
    }

    /// What was asked for.
    pub fn layout(&self) -> Layout {
        self.holding.layout()
    }

    /// Where the parts will be when they are run: what the image is linked for.
    pub fn addresses(&self) -> Addresses {
        self.holding.addresses()
    }

    /// Copies `code` to the start of the code, traps behind it: cheaper than [`Self::code_mut`] where nearly all of it is
    /// written.
    ///
    /// # Panics
    /// If `code` is longer than was asked for.
    pub fn write_code(&mut self, code: &[u8]) {
        let size_bytes = self.holding.size_bytes(PartKind::Code);
        assert!(code.len() as u64 <= size_bytes, "{} bytes of code where {size_bytes} were asked for", code.len());
        self.holding.write_code(code);
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
        self.holding.code_and_rodata_mut()
    }

    /// Copies `initial` to the start of the data and makes the rest zero. Without this call the data holds anything.
    ///
    /// # Panics
    /// If `initial` is longer than the data, rounded up to whole granules.
    pub fn write_data(&mut self, initial: &[u8]) {
        self.holding.memory().views.write_data(&self.holding.grant, initial);
    }

    /// Gives up what lies behind the first `size_bytes` of a part: for code whose length is known only once it is
    /// made. Whole granules come back at once.
    ///
    /// # Panics
    /// If the part is shorter than that. A part cannot shrink to nothing: `size_bytes` is at least 1.
    pub fn shrink(&mut self, kind: PartKind, size_bytes: u64) {
        let old_bytes = self.holding.size_bytes(kind);
        assert!((1..=old_bytes).contains(&size_bytes), "{kind} of {old_bytes} bytes cannot shrink to {size_bytes}");
        let geometry = self.holding.memory().geometry();
        let granules = geometry.granules(size_bytes, old_bytes).expect("invariant: shorter than what fits");
        let old = self.holding.grant.granules(kind);
        if granules < old.len() as u32 {
            self.holding.wipe_tail(kind, &(old.start + granules..old.end));
            self.holding.shrink(kind, granules);
        }
        self.holding.set_size(kind, size_bytes);
    }

    /// Makes a part longer where it is, if what lies behind it is free. What is new holds what
    /// [`Arenas::reserve`](super::Arenas::reserve) would give. `false`: there is no room, and nothing has changed.
    ///
    /// # Errors
    /// As of a reservation: memory cannot be committed, or the part would be larger than an area. Nothing has changed.
    ///
    /// # Panics
    /// If the part is longer than `size_bytes`, or was asked for with size zero.
    pub fn grow(&mut self, kind: PartKind, size_bytes: u64) -> Result<bool, ReserveError> {
        let old_bytes = self.holding.size_bytes(kind);
        assert!(old_bytes > 0 && size_bytes >= old_bytes, "{kind} of {old_bytes} bytes cannot grow to {size_bytes}");
        let geometry = self.holding.memory().geometry();
        let arena = self.holding.grant.arena;
        let (low, max_bytes) = (geometry.is_low(arena), geometry.area_bytes_of(arena));
        let too_large = ReserveError::TooLarge { low, needed_bytes: size_bytes, max_bytes };
        let granules = geometry.granules(size_bytes, max_bytes).ok_or(too_large)?;
        let grown =
            granules as usize == self.holding.grant.granules(kind).len() || self.holding.grow(kind, granules)?;
        if grown {
            self.holding.set_size(kind, size_bytes);
        }
        Ok(grown)
    }

    /// Makes the code visible to all cores: on return no thread can run what its addresses held before. The caller
    /// tells other threads the address only after this, by a release store or a lock.
    ///
    /// Memory that has run before costs a barrier over all threads of the process; the same barrier serves all that
    /// was freed before it, so that of many reuses one pays. Memory that never ran costs none.
    ///
    /// # Errors
    /// The system refused to change the memory's protection: only where the window is opened on demand, or where
    /// protection is changed instead of memory mapped twice. The memory is given back.
    pub fn publish(mut self) -> Result<Published, PublishError> {
        self.holding.trap_stale();
        let memory = &**self.holding.memory();
        if memory.views.changes_protection() {
            self.holding.make_runnable()?;
        }
        let stamp = self.holding.grant.stamp;
        if !memory.epochs.is_fresh(stamp) {
            memory.epochs.serialise(|| memory.barrier.serialise());
        }
        memory.views.close_writer(self.holding.grant.arena);
        self.holding.publishes();
        Ok(Published::new(self.holding))
    }

    /// Writes, runs, rewrites and runs code in a draft of one whole page of code.
    pub(super) fn prove(mut self) -> Result<(), StepError> {
        self.holding.writes();
        let (memory, grant) = (self.holding.memory(), &self.holding.grant);
        let page = memory.geometry().pages_within(&grant.granules(PartKind::Code)).start;
        let proved = canary::run_at(&memory.views, &memory.barrier, grant.area(PartKind::Code), page);
        self.holding.ran();
        proved
    }
}
