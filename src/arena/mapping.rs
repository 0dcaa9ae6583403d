//! The mappings: one range that code runs in, one window that it is written through, the same memory behind both. If
//! asked for, part of it runs in a second range, below 2 GiB.

use std::ops::Range;

use nix::{errno::Errno, sys::mman::ProtFlags};

use super::{
    ArenaConfig, Attempt, LowRefusal, MapError, StepError, StrategyKind, WriteWindow,
    barrier::Barrier,
    canary,
    geometry::{AreaId, Geometry, HUGE_BYTES, PAGE_BYTES, PartKind},
    memory_file,
    reservation::Reservation,
    strategy::Step,
    system::Advice,
    window::Gates,
};

const WRITABLE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);
const EXECUTABLE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_EXEC);

/// All arenas as the process sees them: in both views, or where memory cannot be mapped twice, in the one there is.
pub(super) struct Views {
    geometry: Geometry,
    strategy: StrategyKind,
    /// What was tried before.
    attempts: Vec<Attempt>,
    run: Reservation,
    /// Where the arena below 2 GiB runs, if one was asked for.
    low: Option<Result<Reservation, LowRefusal>>,
    /// `None` where code is written at the addresses that it runs at.
    window: Option<Reservation>,
    /// `None` if the window is always open.
    gates: Option<Gates>,
    /// How sealing the mappings went; `ENODATA` before it was tried.
    sealed: Result<(), Errno>,
}

/// Why one way does not lead to mappings.
pub(super) enum Refusal {
    /// Another way may.
    Step(StepError),
    /// None will.
    Final(MapError),
}

impl From<StepError> for Refusal {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

impl From<MapError> for Refusal {
    fn from(error: MapError) -> Self {
        Self::Final(error)
    }
}

impl Views {
    /// Maps everything in the first way that works, each tried on a small region first. No page is ever writable and
    /// executable at one address; where memory is mapped twice, nor can be made so: what is executable comes from a
    /// descriptor that cannot write. No descriptor is left open.
    pub(super) fn map(geometry: Geometry, config: &ArenaConfig) -> Result<Self, MapError> {
        let barrier = Barrier::register()?;
        let mut attempts = Vec::new();
        for kind in StrategyKind::ladder(config) {
            let mapped = Self::prove(kind, geometry, config, &barrier)
                .and_then(|()| Self::map_by(kind, geometry, config, Reservation::PLACES));
            match mapped {
                Ok(views) => return Ok(views.after(attempts)),
                Err(Refusal::Step(error)) => attempts.push(Attempt::new(kind, error)),
                Err(Refusal::Final(error)) => return Err(error),
            }
        }
        Err(MapError::NoStrategy { attempts })
    }

    /// Maps one small arena this way, runs code in it, and unmaps it.
    pub(super) fn prove(
        kind: StrategyKind,
        geometry: Geometry,
        config: &ArenaConfig,
        barrier: &Barrier,
    ) -> Result<(), Refusal> {
        Ok(canary::run(&Self::small(kind, geometry, config)?, barrier)?)
    }

    /// One small arena, mapped this way.
    pub(super) fn small(kind: StrategyKind, mut geometry: Geometry, config: &ArenaConfig) -> Result<Self, Refusal> {
        geometry.arenas = 1;
        geometry.area_bytes = HUGE_BYTES;
        geometry.low_area_bytes = 0;
        Self::map_by(kind, geometry, config, 1)
    }

    /// Maps everything in one way, or not at all.
    #[cfg(test)]
    pub(super) fn only(kind: StrategyKind, geometry: Geometry, config: &ArenaConfig) -> Option<Self> {
        Self::map_by(kind, geometry, config, 1).ok()
    }

    /// Maps everything in this one way.
    fn map_by(kind: StrategyKind, geometry: Geometry, config: &ArenaConfig, places: u64) -> Result<Self, Refusal> {
        let window = kind.is_dual_mapping().then(|| Reservation::new(geometry.window_bytes(), places));
        let on_demand = kind.is_dual_mapping() && config.write_window == WriteWindow::OnDemand;
        let mut geometry = geometry_for(kind, geometry);
        let low = geometry.low_arena().map(|_| Reservation::low(geometry.low_run_bytes()));
        // What all others need must not fail for what few need.
        if matches!(low, Some(Err(_))) {
            geometry.low_area_bytes = 0;
        }
        let views = Self {
            geometry,
            strategy: kind,
            attempts: Vec::new(),
            run: Reservation::new(geometry.run_bytes(), places)?,
            low,
            window: window.transpose()?,
            gates: on_demand.then(|| Gates::new(geometry.all_arenas())),
            sealed: Err(Errno::ENODATA),
        };
        match &views.window {
            Some(window) => views.map_file(window, config)?,
            None => views.map_private()?,
        }
        views.advise(config.inherited).map_err(Step::Advise.failed())?;
        Ok(views)
    }

    /// As was asked for, but in units and granules that memory had this way allows.
    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(super) fn strategy(&self) -> StrategyKind {
        self.strategy
    }

    /// The ways that failed before this one.
    pub(super) fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Makes all mappings permanent whose protection is never changed. Best effort: where it is refused, the
    /// descriptors' rights alone keep what is executable from becoming writable.
    pub(super) fn seal(&mut self) {
        let run = self.ranges().try_for_each(|(range, is_low)| {
            let areas = self.geometry.areas().filter(|area| self.geometry.is_low(area.arena) == is_low);
            // Where memory is mapped once, guards alone: all else changes.
            let changing = areas.filter(|_| self.window.is_none());
            range.seal_but(changing.map(|area| self.part(area)))
        });
        self.sealed = run.and_then(|()| match &self.window {
            Some(window) if self.gates.is_none() => window.seal_but([].into_iter()),
            _ => Ok(()),
        });
    }

    /// The addresses of all arenas, but of the one below 2 GiB.
    pub(super) fn run_range(&self) -> Range<u64> {
        let start = self.run.address(0) as u64;
        start..start + self.geometry.run_bytes()
    }

    /// The addresses of the arena below 2 GiB, if one was asked for.
    pub(super) fn low_range(&self) -> Option<Result<Range<u64>, LowRefusal>> {
        let low = self.low.as_ref().map(|it| it.as_ref().map_err(|&refused| refused));
        low.map(|it| it.map(|range| range.address(0) as u64..range.address(self.geometry.low_run_bytes()) as u64))
    }

    /// The area that an address where code runs lies in, and where in it; `None` for guards, and for what is not ours.
    pub(super) fn locate(&self, address: u64) -> Option<(AreaId, u64)> {
        match self.low_range() {
            Some(Ok(range)) if range.contains(&address) => self.geometry.locate_low(address - range.start),
            _ => self.geometry.locate(address.checked_sub(self.run_range().start)?),
        }
    }

    /// Where an area's bytes run, are read, or are used as variables.
    pub(super) fn run_address(&self, area: AreaId) -> usize {
        self.range_of(area).address(self.geometry.run_offset(area))
    }

    /// Where an area's bytes are written.
    pub(super) fn write_address(&self, area: AreaId) -> usize {
        match &self.window {
            Some(window) if area.kind != PartKind::Data => window.address(self.geometry.file_offset(area)),
            _ => self.run_address(area),
        }
    }

    /// What the platform gave, for people. What was tried before is in [`Self::attempts`].
    pub(super) fn describe(&self) -> String {
        let mut text = self.strategy.describe().to_owned();
        if self.gates.is_some() {
            text += ", write windows open on demand";
        }
        text += &match self.sealed {
            Ok(()) if self.window.is_none() => ", sealed guards".to_owned(),
            Ok(()) => ", sealed mappings".to_owned(),
            Err(errno) => format!(", mappings not sealed ({errno})"),
        };
        text += &match &self.low {
            None => String::new(),
            Some(Ok(_)) => ", with an arena below 2 GiB".to_owned(),
            Some(Err(refused)) => format!(", {refused}"),
        };
        if let Some((windows, errno)) = self.gates.as_ref().and_then(Gates::stuck) {
            text += &format!(", {windows} write windows could not be closed ({errno})");
        }
        text
    }

    /// Counts one more writer of an arena's code and read-only data, before anything there is written, committed or
    /// given back. Each success is followed by one [`Self::close_writer`].
    pub(super) fn open_writer(&self, arena: u32) -> Result<(), Errno> {
        self.gates.as_ref().map_or(Ok(()), |gates| gates.enter(arena, |arena, open| self.set_window(arena, open)))
    }

    /// Counts one writer less.
    pub(super) fn close_writer(&self, arena: u32) {
        if let Some(gates) = &self.gates {
            gates.leave(arena, |arena, open| self.set_window(arena, open));
        }
    }

    /// Whether memory is made writable and runnable in turn at one address.
    pub(super) fn changes_protection(&self) -> bool {
        self.strategy == StrategyKind::Protect
    }

    /// Whether windows are closed while nobody writes.
    pub(super) fn opens_on_demand(&self) -> bool {
        self.gates.is_some()
    }

    /// Whether these bytes are mapped writable now, where that is not for the owner of the bytes to know.
    pub(super) fn is_open(&self, area: AreaId) -> bool {
        area.kind == PartKind::Data || self.gates.as_ref().is_none_or(|gates| gates.is_open(area.arena))
    }

    /// Nothing, but where protection changes: the owner of these whole pages has written them, and can no more until
    /// [`Self::make_writable`].
    pub(super) fn make_runnable(&self, area: AreaId, bytes: Range<u64>) -> Result<(), Errno> {
        let prot = match area.kind {
            PartKind::Code => EXECUTABLE,
            PartKind::Rodata => ProtFlags::PROT_READ,
            PartKind::Data => return Ok(()),
        };
        self.protect(area, bytes, prot)
    }

    /// Nothing, but where protection changes: the owner of these whole pages will write them or give them up. Nobody
    /// runs them any more.
    pub(super) fn make_writable(&self, area: AreaId, bytes: Range<u64>) -> Result<(), Errno> {
        self.protect(area, bytes, WRITABLE)
    }

    /// Opens all windows for the last time.
    pub(super) fn open_all(&self) {
        if let (Some(window), Some(_)) = (&self.window, &self.gates) {
            // What then cannot be given back at once goes with the mapping, if it is not permanent.
            let _ = window.protect(0..self.geometry.window_bytes(), WRITABLE);
        }
    }

    /// Advice on bytes where they are written.
    pub(super) fn advise_written(&self, area: AreaId, bytes: Range<u64>, advice: Advice) -> Result<(), Errno> {
        match &self.window {
            Some(window) if area.kind != PartKind::Data => {
                let start = self.geometry.file_offset(area);
                window.advise(start + bytes.start..start + bytes.end, advice)
            }
            _ => self.advise_run(area, bytes, advice),
        }
    }

    /// Advice on bytes where they are run.
    pub(super) fn advise_run(&self, area: AreaId, bytes: Range<u64>, advice: Advice) -> Result<(), Errno> {
        let start = self.geometry.run_offset(area);
        self.range_of(area).advise(start + bytes.start..start + bytes.end, advice)
    }

    fn after(mut self, attempts: Vec<Attempt>) -> Self {
        self.attempts = attempts;
        self
    }

    fn map_file(&self, window: &Reservation, config: &ArenaConfig) -> Result<(), StepError> {
        let file = memory_file::create(self.strategy, self.geometry.file_bytes(), config)?;
        let writable = if self.gates.is_some() { ProtFlags::PROT_NONE } else { WRITABLE };
        window.map(0..self.geometry.window_bytes(), writable, &file, 0).map_err(Step::MapWindow.failed())?;
        for area in self.areas(PartKind::Data) {
            self.range_of(area)
                .map(self.part(area), WRITABLE, &file, self.geometry.file_offset(area))
                .map_err(Step::MapWindow.failed())?;
        }
        let file = memory_file::reopen(&file)?;
        for (kind, prot) in [(PartKind::Code, EXECUTABLE), (PartKind::Rodata, ProtFlags::PROT_READ)] {
            for area in self.areas(kind) {
                self.range_of(area)
                    .map(self.part(area), prot, &file, self.geometry.file_offset(area))
                    .map_err(Step::MapCode.failed())?;
            }
        }
        Ok(())
    }

    fn map_private(&self) -> Result<(), StepError> {
        let mut areas = self.geometry.areas();
        areas.try_for_each(|area| {
            self.range_of(area).map_private(self.part(area), WRITABLE).map_err(Step::MapWindow.failed())
        })
    }

    /// The ranges that code runs in, and whether it is the one below 2 GiB.
    fn ranges(&self) -> impl Iterator<Item = (&Reservation, bool)> {
        let low = self.low.as_ref().and_then(|it| it.as_ref().ok());
        [(&self.run, false)].into_iter().chain(low.map(|it| (it, true)))
    }

    /// Where an area's arena runs.
    fn range_of(&self, area: AreaId) -> &Reservation {
        match &self.low {
            Some(Ok(low)) if self.geometry.is_low(area.arena) => low,
            _ => &self.run,
        }
    }

    fn areas(&self, kind: PartKind) -> impl Iterator<Item = AreaId> {
        self.geometry.areas().filter(move |area| area.kind == kind)
    }

    /// An area within the range that its arena runs in.
    fn part(&self, area: AreaId) -> Range<u64> {
        let start = self.geometry.run_offset(area);
        start..start + self.geometry.area_bytes_of(area.arena)
    }

    fn advise(&self, inherited: bool) -> Result<(), Errno> {
        for range in self.ranges().map(|(range, _)| range).chain(&self.window) {
            range.advise_all(Advice::DontFork)?;
            range.advise_all(Advice::DontDump)?;
            // So that committing a page commits that page alone. A kernel without huge pages refuses, and need not know.
            let _ = range.advise_all(Advice::HugePages(false));
        }
        // What comes from a descriptor that cannot write cannot be made writable in a child either.
        let kinds: &[PartKind] = match inherited && self.window.is_some() {
            true => &[PartKind::Code, PartKind::Rodata],
            false => &[],
        };
        let mut areas = kinds.iter().flat_map(|kind| self.areas(*kind));
        areas.try_for_each(|area| self.range_of(area).advise(self.part(area), Advice::DoFork))
    }

    fn set_window(&self, arena: u32, open: bool) -> Result<(), Errno> {
        let Some(window) = &self.window else { return Ok(()) };
        // Code and read-only data of an arena lie side by side.
        let start = self.geometry.file_offset(AreaId { arena, kind: PartKind::Code });
        let prot = if open { WRITABLE } else { ProtFlags::PROT_NONE };
        window.protect(start..start + 2 * self.geometry.area_bytes_of(arena), prot)
    }

    fn protect(&self, area: AreaId, bytes: Range<u64>, prot: ProtFlags) -> Result<(), Errno> {
        if !self.changes_protection() || bytes.is_empty() {
            return Ok(());
        }
        let whole = bytes.start.is_multiple_of(PAGE_BYTES) && bytes.end.is_multiple_of(PAGE_BYTES);
        assert!(whole, "invariant: where protection changes, spans are whole pages");
        let start = self.geometry.run_offset(area);
        self.range_of(area).protect(start + bytes.start..start + bytes.end, prot)
    }
}

/// What memory had this way can be divided into.
fn geometry_for(kind: StrategyKind, mut geometry: Geometry) -> Geometry {
    match kind {
        StrategyKind::MemfdHuge => geometry.unit_pages = (HUGE_BYTES / PAGE_BYTES) as u32,
        // No page may have two owners.
        StrategyKind::Protect => geometry.granule_bytes = PAGE_BYTES,
        StrategyKind::Memfd | StrategyKind::MemfdPlain | StrategyKind::File => (),
    }
    geometry
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
