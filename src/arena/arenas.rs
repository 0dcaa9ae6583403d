//! The public face of the room: all arenas of a process.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    ArenaStats, Draft, Layout, MapError, PartKind, ReserveError, barrier::Barrier, canary, geometry::Geometry,
    holding::Holding, mapping::Views, pool::Pool,
};

/// Pages given back under one hold of the lock when the limit is lowered: about a millisecond.
const SHRINK_PAGES: u64 = 512;

/// How much executable memory there is.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// Bytes of addresses for each of code, read-only data and data, all arenas together; rounded up to 2 MiB per arena.
    /// From 1 to [`RESERVE_LIMIT_BYTES`](super::RESERVE_LIMIT_BYTES). Costs no memory.
    pub reserve_max_bytes: u64,
    /// Bytes of memory that is committed at most, all kinds together.
    pub commit_limit_bytes: u64,
}

/// Executable memory. Shared as `Arc<Arenas>` with whoever holds a part of it.
///
/// Meant to live as long as the process: where the kernel can, it makes the mappings permanent, so that what is left of
/// dropped arenas is their addresses (but no memory).
pub struct Arenas {
    pub(super) views: Views,
    pub(super) barrier: Barrier,
    /// Held for finding or freeing spans, and for the system calls that commit and give back the pages of one layout;
    /// never for filling what is freed, logging or waiting.
    pool: Mutex<Pool>,
    reason: String,
}

impl Arenas {
    /// Maps everything, and proves that code can be written, run, rewritten and run again. No executable mapping is
    /// made later. No privilege is needed, but `/proc` must be mounted.
    ///
    /// # Errors
    /// [`MapError`] names the step that failed.
    pub fn map(config: &ArenaConfig) -> Result<Arc<Self>, MapError> {
        let geometry = Geometry::for_reserve(config.reserve_max_bytes)?;
        let barrier = Barrier::register()?;
        let mut views = Views::map(geometry)?;
        canary::run(&mut views, &barrier)?;
        views.seal();
        let pool = Mutex::new(Pool::new(geometry, config.commit_limit_bytes));
        let reason = format!("{}, {}", views.describe(), barrier.describe());
        Ok(Arc::new(Self { views, barrier, pool, reason }))
    }

    /// Takes committed memory for a layout: nothing is executable in it before [`Draft::publish`], free code memory is
    /// filled with trap instructions.
    ///
    /// # Errors
    /// [`ReserveError::Fragmented`] if giving up memory would help, others if not. Nothing is taken then.
    pub fn reserve(self: &Arc<Self>, layout: &Layout) -> Result<Draft, ReserveError> {
        let area_bytes = self.views.geometry().area_bytes;
        let grant = {
            let mut pool = self.pool();
            let wants = layout.wants(area_bytes, pool.limit_bytes())?;
            pool.reserve(&wants, &self.views)?
        };
        Ok(Draft::new(Holding::new(Arc::clone(self), *layout, grant)))
    }

    /// Counts of this moment.
    pub fn stats(&self) -> ArenaStats {
        let reason = self.reason.clone();
        let pool = self.pool();
        ArenaStats {
            code: pool.stats(PartKind::Code),
            rodata: pool.stats(PartKind::Rodata),
            data: pool.stats(PartKind::Data),
            commit_limit_bytes: pool.limit_bytes(),
            strategy: "dual-mapping",
            reason,
        }
    }

    /// The addresses of all arenas, their guards included: published code runs in this range and nowhere else.
    pub fn executable_range(&self) -> Range<u64> {
        self.views.run_range()
    }

    /// Changes the limit on committed memory. Lowered, it gives back what is free at once; what is in use stays, and
    /// until enough of it is given up, reservations that need new pages fail.
    pub fn set_commit_limit(&self, bytes: u64) {
        self.pool().set_limit(bytes);
        // A refusal of the system shows in the counts, and the next reservation meets it again and reports it.
        while let Ok(true) = self.shrink() {}
    }

    pub(super) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().expect("invariant: nothing panics under the arena lock")
    }

    fn shrink(&self) -> Result<bool, ReserveError> {
        self.pool().shrink(SHRINK_PAGES, &self.views)
    }
}

impl fmt::Debug for Arenas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arenas").field("range", &self.executable_range()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "arenas_tests.rs"]
mod tests;
