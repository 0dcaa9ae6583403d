//! The public face of the room: all arenas of a process.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use super::{
    Addresses, AreaStats, ArenaConfig, ArenaStats, Draft, Gaps, HugePages, Layout, LowRefusal, MapError, OccupancyRun,
    PartKind, ReserveError, WriteWindow,
    barrier::Barrier,
    canary, collapse,
    epochs::Epochs,
    geometry::{AreaId, Geometry, PAGE_BYTES},
    holding::Holding,
    mapping::Views,
    occupancy,
    pool::Pool,
    reuse,
    shard::{Grant, Wants},
    shelves::Shelves,
};

/// What lies at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which kind of memory.
    pub kind: PartKind,
    /// The addresses of the span, rounded up to whole granules.
    pub range: Range<u64>,
}

/// What all who hold a part of the memory share; on other cache lines than the count of who they are.
#[repr(align(128))]
pub(super) struct Memory {
    pub(super) views: Views,
    pub(super) barrier: Barrier,
    pub(super) epochs: Epochs,
    pub(super) pool: Pool,
    /// What was freed a moment ago; `None` where memory cannot be used again as it is.
    pub(super) shelves: Option<Shelves>,
    /// Held by who empties the shelves.
    pub(super) emptying: Mutex<()>,
    /// How often something was on them then.
    pub(super) emptied: AtomicU64,
    huge_pages: HugePages,
}

impl Memory {
    pub(super) fn geometry(&self) -> Geometry {
        self.pool.geometry()
    }
}

/// Executable memory. Shared as `Arc<Arenas>` with whoever takes of it; each part that is taken keeps it, too.
///
/// Meant to live as long as the process: where the kernel can, it makes the mappings permanent, so that what is left of
/// dropped arenas is their addresses (but no memory).
pub struct Arenas {
    pub(super) memory: Arc<Memory>,
}

impl Arenas {
    /// Maps everything, and proves that code can be written, run, rewritten and run again. No executable mapping is
    /// made later. No privilege is needed, but `/proc` must be mounted.
    ///
    /// # Errors
    /// [`MapError`] names the step that failed.
    pub fn map(config: &ArenaConfig) -> Result<Arc<Self>, MapError> {
        let geometry = Geometry::for_config(config)?;
        let barrier = Barrier::register()?;
        let mut views = Views::map(geometry, config)?;
        canary::run(&views, &barrier)?;
        views.seal();
        Ok(Self::over(views, barrier, config))
    }

    /// Starts the thread that puts memory on huge pages, if that is configured. Apart from the mapping, so that the thread
    /// comes under what a process restricts itself to in between; once is enough.
    ///
    /// # Errors
    /// [`MapError::Thread`].
    pub fn start_upkeep(&self) -> Result<(), MapError> {
        match self.memory.huge_pages {
            HugePages::Collapse => collapse::start(&self.memory).map_err(|error| MapError::Thread { error }),
            HugePages::Never | HugePages::Hugetlb => Ok(()),
        }
    }

    fn over(views: Views, barrier: Barrier, config: &ArenaConfig) -> Arc<Self> {
        let memory = Memory {
            pool: Pool::new(views.geometry(), config.commit_limit_bytes, config.keep_free_bytes),
            shelves: reuse::shelves_for(&views, config.keep_free_bytes),
            emptying: Mutex::new(()),
            emptied: AtomicU64::new(0),
            views,
            barrier,
            epochs: Epochs::new(),
            huge_pages: config.huge_pages,
        };
        Arc::new(Self { memory: Arc::new(memory) })
    }

    /// Takes committed memory for a layout. Its code is traps for whoever reads or publishes it, but for what the draft
    /// is given.
    ///
    /// # Errors
    /// [`ReserveError::Fragmented`] if giving up memory would help, others if not. Nothing is taken then.
    pub fn reserve(&self, layout: &Layout) -> Result<Draft, ReserveError> {
        if let Some(want) = layout.only_code(self.memory.geometry())
            && let Some((memory, grant)) = self.memory.reuse(want)
        {
            return Ok(Draft::new(Holding::of_shelf(memory, layout, grant)));
        }
        let wants = self.wants(layout)?;
        let (pool, backing) = (&self.memory.pool, self.memory.views.opening());
        let reserve = || if layout.low { pool.reserve_low(&wants, &backing) } else { pool.reserve(&wants, &backing) };
        self.own(layout, self.memory.with_all_free(reserve)?)
    }

    /// Whether empty arenas would have memory for a layout, so that giving up memory can help if there is none now.
    ///
    /// # Errors
    /// All of [`ReserveError`] but [`Fragmented`](ReserveError::Fragmented) and [`Commit`](ReserveError::Commit).
    pub fn hold(&self, layout: &Layout) -> Result<(), ReserveError> {
        self.wants(layout).map(drop)
    }

    /// Whether the arena below 2 GiB has room for a layout as it is.
    pub fn has_low_room(&self, layout: &Layout) -> bool {
        self.wants(layout).is_ok_and(|wants| self.memory.pool.has_low_room(&wants))
    }

    /// What is free in the arena below 2 GiB for a layout that must lie there.
    ///
    /// # Errors
    /// Those of [`Self::hold`].
    pub fn low_gaps(&self, layout: &Layout) -> Result<Gaps, ReserveError> {
        self.memory.pool.low_gaps(&self.wants(layout)?)
    }

    fn wants(&self, layout: &Layout) -> Result<Wants, ReserveError> {
        let wants = layout.wants(self.memory.geometry(), self.memory.pool.limit_bytes());
        wants.map_err(|error| match (error, self.low_refused()) {
            (ReserveError::NoLow, Some(refused)) => ReserveError::LowRefused(refused),
            (error, _) => error,
        })
    }

    /// Memory for all of several layouts, or for none.
    ///
    /// # Errors
    /// That of the first layout that found no memory.
    ///
    /// # Panics
    /// If one of them must lie below 2 GiB: those are [reserved](Self::reserve) one by one.
    pub fn reserve_many(&self, layouts: &[Layout]) -> Result<Vec<Draft>, ReserveError> {
        assert!(!layouts.iter().any(|it| it.low), "what must lie below 2 GiB is reserved one by one");
        let wants = layouts.iter().map(|it| self.wants(it)).collect::<Result<Vec<_>, _>>()?;
        let reserve = || self.memory.pool.reserve_many(&wants, &self.memory.views.opening());
        let grants = self.memory.with_all_free(reserve)?;
        // All get an owner, who gives back what is not to be used, before the first that fails is looked at.
        let drafts: Vec<_> = layouts.iter().zip(grants).map(|(layout, grant)| self.own(layout, grant)).collect();
        drafts.into_iter().collect()
    }

    /// What a span's owner is to be charged for a layout: its parts, rounded up to whole granules. Alignment costs
    /// nothing. Saturates at `u64::MAX`, which no arena can hold.
    pub fn charge_bytes(&self, layout: &Layout) -> u64 {
        layout.charge_bytes(self.memory.geometry().granule_bytes)
    }

    /// What spans are rounded up to.
    pub fn granule_bytes(&self) -> u64 {
        self.memory.geometry().granule_bytes
    }

    /// The span that an address lies in, wherever in it. Takes time by the span's length: a word of metadata for each
    /// 64 granules.
    pub fn find(&self, address: u64) -> Option<Found> {
        let geometry = self.memory.geometry();
        let (id, offset_bytes) = self.memory.views.locate(address)?;
        let granule = (offset_bytes / geometry.granule_bytes) as u32;
        let span = self.memory.pool.shard(id.arena).area(id.kind).find(granule)?;
        let is_shelved = |shelves: &Shelves| shelves.contains(id.arena, span.start, span.granules);
        if id.kind == PartKind::Code && self.memory.shelves.as_ref().is_some_and(is_shelved) {
            return None;
        }
        let (start, bytes) = (self.memory.views.run_address(id) as u64, geometry.bytes_of(&span.range()));
        Some(Found { kind: id.kind, range: start + bytes.start..start + bytes.end })
    }

    /// Counts of this moment. What threads keep for themselves of what they have freed is given back for it.
    pub fn stats(&self) -> ArenaStats {
        self.memory.empty_shelves();
        ArenaStats {
            code: self.memory.pool.stats(PartKind::Code),
            rodata: self.memory.pool.stats(PartKind::Rodata),
            data: self.memory.pool.stats(PartKind::Data),
            low: PartKind::ALL.map(|kind| self.memory.pool.low_stats(kind)),
            low_refused: self.low_refused(),
            commit_limit_bytes: self.memory.pool.limit_bytes(),
            metadata_bytes: self.memory.pool.metadata_bytes()
                + self.memory.shelves.as_ref().map_or(0, Shelves::heap_bytes),
            barriers: self.memory.epochs.barriers(),
            strategy: self.memory.views.strategy().name(),
            reason: format!("{}, {}", self.memory.views.describe(), self.memory.barrier.describe()),
            attempts: self.memory.views.attempts().iter().map(ToString::to_string).collect(),
        }
    }

    /// Counts of each area. What threads keep for themselves of what they have freed is given back for it.
    pub fn areas(&self) -> Vec<AreaStats> {
        self.memory.empty_shelves();
        let geometry = self.memory.geometry();
        let of = |id: AreaId| {
            let shard = self.memory.pool.shard(id.arena);
            AreaStats {
                arena: id.arena,
                low: geometry.is_low(id.arena),
                kind: id.kind,
                start: self.memory.views.run_address(id) as u64,
                memory: shard.stats(id.kind, geometry),
                operations: shard.area(id.kind).operations(),
                contended: self.memory.pool.shards().contended(id.arena),
            }
        };
        geometry.areas().map(of).collect()
    }

    /// What each byte of an area is, in order. `None` if there is no such arena. Takes the arena's lock for as long as
    /// it takes to look at each span. What threads keep for themselves of what they have freed is given back for it.
    pub fn occupancy(&self, kind: PartKind, arena: u32) -> Option<Vec<OccupancyRun>> {
        self.memory.empty_shelves();
        let geometry = self.memory.geometry();
        (arena < geometry.all_arenas()).then(|| occupancy::of(&self.memory.pool.shard(arena), kind, geometry))
    }

    /// The addresses of all arenas, their guards included: published code runs in these ranges and nowhere else. Two if
    /// there is an arena below 2 GiB, which comes last.
    pub fn executable_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let low = self.memory.views.low_range().and_then(Result::ok);
        [self.memory.views.run_range()].into_iter().chain(low)
    }

    /// Where the parts of an image could come to lie: at the start of the areas of an arena, of that below 2 GiB if
    /// `low`, and there is one.
    pub fn possible_addresses(&self, low: bool) -> Option<Addresses> {
        let arena = if low { self.memory.geometry().low_arena()? } else { 0 };
        let [code, rodata, data] =
            PartKind::ALL.map(|kind| self.memory.views.run_address(AreaId { arena, kind }) as u64);
        Some(Addresses { code, rodata, data })
    }

    /// Bytes of addresses of each kind that there are below 2 GiB: 0 if none were asked for, or none could be had.
    pub fn low_bytes(&self) -> u64 {
        self.memory.geometry().low_area_bytes
    }

    /// Why there is no arena below 2 GiB although one was asked for.
    pub fn low_refused(&self) -> Option<LowRefusal> {
        self.memory.views.low_range().and_then(Result::err)
    }

    /// The addresses of all writable data that published code may have.
    pub fn data_ranges(&self) -> Vec<Range<u64>> {
        let (geometry, views) = (self.memory.geometry(), &self.memory.views);
        let data = geometry.areas().filter(|area| area.kind == PartKind::Data);
        let range = |area: AreaId| (views.run_address(area) as u64, geometry.area_bytes_of(area.arena));
        data.map(range).map(|(start, bytes)| start..start + bytes).collect()
    }

    /// Whether code memory is made writable and executable by turns, for want of a second view.
    pub fn flips_protection(&self) -> bool {
        !self.memory.views.strategy().is_dual_mapping()
    }

    /// Changes the limit on committed memory. Lowered, it gives back what is free at once; what is in use stays, and
    /// until enough of it is given up, reservations that need new pages fail.
    pub fn set_commit_limit(&self, bytes: u64) {
        self.memory.empty_shelves();
        self.memory.pool.set_limit(bytes, &self.memory.views.opening());
    }

    /// When code memory is writable. Where one mapping serves for both, always what the configuration calls so.
    pub fn write_window(&self) -> WriteWindow {
        if self.memory.views.opens_on_demand() { WriteWindow::OnDemand } else { WriteWindow::Always }
    }

    /// Bytes that lie on huge pages where they run. 0 without asking if none are to be used; else it reads
    /// `/proc/self/smaps`, for which the kernel walks all memory of the process.
    pub fn huge_bytes(&self) -> u64 {
        match self.memory.huge_pages {
            HugePages::Never => 0,
            HugePages::Collapse | HugePages::Hugetlb => self.memory.views.huge_bytes().unwrap_or(0),
        }
    }

    /// Proves again that code can be written, run, rewritten and run, in a page that is taken for as long. If there is
    /// no room for it, nothing is proved.
    ///
    /// # Errors
    /// [`MapError::Canary`] with the step that failed.
    pub fn canary(&self) -> Result<(), MapError> {
        let Ok(draft) = self.reserve(&Layout::code(PAGE_BYTES, PAGE_BYTES)) else { return Ok(()) };
        draft.prove().map_err(MapError::Canary)
    }

    fn own(&self, layout: &Layout, grant: Grant) -> Result<Draft, ReserveError> {
        Ok(Draft::new(Holding::new(Arc::clone(&self.memory), layout, grant)?))
    }
}

impl Drop for Arenas {
    fn drop(&mut self) {
        self.memory.close_shelves();
    }
}

impl fmt::Debug for Arenas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arenas").field("ranges", &self.executable_ranges().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "arenas_low_tests.rs"]
mod low_tests;
#[cfg(test)]
#[path = "arenas_options_tests.rs"]
mod options_tests;
#[cfg(test)]
#[path = "arenas_reuse_tests.rs"]
mod reuse_tests;
#[cfg(test)]
#[path = "arenas_tests.rs"]
mod tests;
