//! Contiguous room for an image: who goes where bytes suffice and only that lacks.

use std::sync::Arc;

use super::{
    Cache, InstallError, Victim,
    dependencies::Share,
    entry::{Entry, Resident},
    kept::Wanted,
};
use crate::arena::{Draft, Layout, PartKind, ReserveError};

/// Times that entries may be evicted for the sake of contiguous room in one install. Each time they free at least as
/// many bytes as are missing, so that a second time is rare and this many mean that pinned entries stand in the way.
const CONTIGUITY_ROUNDS_MAX: usize = 64;

/// The room that there is not.
struct Lack {
    part: PartKind,
    needed_bytes: u64,
    /// Addresses below 2 GiB.
    low: bool,
    /// For what does not lie below 2 GiB.
    common: bool,
}

impl Lack {
    /// Whether the going of an entry could be of use at all. Where pages lack instead of addresses, that of any could.
    fn helps(&self, entry: &Entry) -> bool {
        if self.low { entry.is_low() } else { !self.common || !entry.is_low() }
    }

    /// Bytes that come free where they are needed if an idle entry goes: its own, and those of what has no other owner.
    fn freed_bytes(&self, entry: &Entry) -> u64 {
        let with_it = entry.shares.iter().map(Share::entry).filter(|it| Arc::strong_count(it) == 1);
        let all = [entry].into_iter().chain(with_it.map(|it| &**it));
        all.filter(|it| self.helps(it)).map(|it| part_bytes(it, self.part)).sum()
    }
}

impl Cache {
    /// Reserves spans, evicting further entries where only contiguity lacks.
    pub(super) fn reserve(&self, layout: &Layout, victims: &mut Vec<Victim>) -> Result<Draft, InstallError> {
        for _ in 0..CONTIGUITY_ROUNDS_MAX {
            let lack = match self.reserve_over_kept(layout) {
                Ok(draft) => return Ok(draft),
                Err(ReserveError::Fragmented { part, needed_bytes, low, .. }) => {
                    Lack { part, needed_bytes, low, common: !layout.low }
                }
                Err(error) => return Err(InstallError::Reserve(error)),
            };
            let mut freed_bytes = 0;
            while freed_bytes < lack.needed_bytes {
                let Some(victim) = self.evict_for(&lack) else {
                    return self.arenas.reserve(layout).map_err(InstallError::Fragmented);
                };
                freed_bytes += lack.freed_bytes(&victim.entry).max(self.arenas.granule_bytes());
                victims.push(self.victim(&victim));
            }
        }
        self.arenas.reserve(layout).map_err(InstallError::Fragmented)
    }

    /// Who goes for want of contiguous room. Below 2 GiB only the going of those helps who hold memory there; elsewhere
    /// these are passed over as far as the window reaches.
    fn evict_for(&self, lack: &Lack) -> Option<Resident> {
        let window = self.eviction_window;
        let fits = |entry: &Entry| lack.freed_bytes(entry) >= lack.needed_bytes;
        let mut residents = self.residents();
        match lack.low {
            true => residents.evict_for_low_room(window, fits),
            false => residents.evict_for_room(window, |entry| lack.helps(entry), fits),
        }
    }

    /// The same without evicting: what is kept for its address alone goes before anything that is resident.
    fn reserve_over_kept(&self, layout: &Layout) -> Result<Draft, ReserveError> {
        loop {
            let refused = match self.arenas.reserve(layout) {
                Err(refused @ ReserveError::Fragmented { .. }) => refused,
                reserved => return reserved,
            };
            let wanted = match refused {
                ReserveError::Fragmented { low: true, .. } => Wanted::Low,
                // It is pages that lack.
                _ if layout.low => Wanted::Bytes,
                _ => Wanted::Common,
            };
            if !self.free_oldest_kept(wanted) {
                return Err(refused);
            }
        }
    }
}

fn part_bytes(entry: &Entry, part: PartKind) -> u64 {
    entry.published.layout().part(part).size_bytes
}
