//! Contiguous room for an image: who goes where bytes suffice and only that lacks.

use std::sync::Arc;

use super::{Cache, InstallError, Victim, dependencies::Share, entry::Entry};
use crate::arena::{Draft, Lacks, Layout, PartKind, ReserveError};

/// Times that entries may be evicted for the sake of contiguous room in one install. Each time they free at least as
/// many bytes as are missing, so that a second time is rare and this many mean that pinned entries stand in the way.
const CONTIGUITY_ROUNDS_MAX: usize = 64;

/// The room that there is not.
struct Lack {
    part: PartKind,
    needed_bytes: u64,
    lacks: Lacks,
}

impl Lack {
    /// Bytes that come free where they are needed if an idle entry goes: its own, and those of what has no other owner.
    fn freed_bytes(&self, entry: &Entry) -> u64 {
        let with_it = entry.shares.iter().map(Share::entry).filter(|it| Arc::strong_count(it) == 1);
        let all = [entry].into_iter().chain(with_it.map(|it| &**it));
        all.filter(|it| it.gives(self.lacks)).map(|it| part_bytes(it, self.part)).sum()
    }
}

impl Cache {
    /// Reserves spans, evicting further entries where only contiguity lacks.
    pub(super) fn reserve(&self, layout: &Layout, victims: &mut Vec<Victim>) -> Result<Draft, InstallError> {
        for _ in 0..CONTIGUITY_ROUNDS_MAX {
            let lack = match self.reserve_over_kept(layout) {
                Ok(draft) => return Ok(draft),
                Err(ReserveError::Fragmented { part, needed_bytes, lacks, .. }) => Lack { part, needed_bytes, lacks },
                Err(error) => return Err(InstallError::Reserve(error)),
            };
            let some_went = match lack.lacks {
                Lacks::Low => self.evict_for_low_room(layout, victims),
                Lacks::Pages | Lacks::Common => self.evict_for(&lack, victims),
            };
            if !some_went {
                break;
            }
        }
        self.arenas.reserve(layout).map_err(InstallError::Fragmented)
    }

    /// Evicts entries that have as much of what lacks as is missing; `false` if there are none left that may go.
    fn evict_for(&self, lack: &Lack, victims: &mut Vec<Victim>) -> bool {
        let fits = |entry: &Entry| lack.freed_bytes(entry) >= lack.needed_bytes;
        let mut freed_bytes = 0;
        while freed_bytes < lack.needed_bytes {
            let victim = self.residents().evict_for_room(self.eviction_window, lack.lacks, (self.clock)(), fits);
            let Some(victim) = victim else { return false };
            freed_bytes += lack.freed_bytes(&victim.entry).max(self.arenas.granule_bytes());
            victims.push(self.victim(&victim));
        }
        true
    }

    /// Evicts those who make room below 2 GiB; `false`, and nobody, if there would be none whoever went.
    fn evict_for_low_room(&self, layout: &Layout, victims: &mut Vec<Victim>) -> bool {
        let Ok(gaps) = self.arenas.low_gaps(layout) else { return false };
        let evicted = self.residents().evict_for_low_room(self.eviction_window, gaps, (self.clock)());
        let Some(evicted) = evicted else { return false };
        victims.extend(evicted.iter().map(|it| self.victim(it)));
        true
    }

    /// Whether there is room below 2 GiB for what must lie there, or would be if all went that may: to be asked before
    /// anybody goes for bytes.
    pub(super) fn hold_low_room(&self, layout: &Layout) -> Result<(), InstallError> {
        let refusal = || -> Result<Option<ReserveError>, InstallError> {
            let gaps = self.arenas.low_gaps(layout).map_err(InstallError::Reserve)?;
            let refusal = gaps.refusal();
            let victims = self.residents().victims_for_low_room(self.eviction_window, gaps);
            Ok(refusal.filter(|_| victims.is_none()))
        };
        if !layout.low || refusal()?.is_none() {
            return Ok(());
        }
        // What is kept for its address alone goes before anybody, and perhaps stands in the way.
        while !self.arenas.has_low_room(layout) && self.free_oldest_kept(Lacks::Low) {}
        refusal()?.map_or(Ok(()), |refusal| Err(InstallError::Fragmented(refusal)))
    }

    /// The same without evicting: what is kept for its address alone goes before anything that is resident.
    fn reserve_over_kept(&self, layout: &Layout) -> Result<Draft, ReserveError> {
        loop {
            match self.arenas.reserve(layout) {
                Err(ReserveError::Fragmented { lacks, .. }) if self.free_oldest_kept(lacks) => {}
                reserved => return reserved,
            }
        }
    }
}

fn part_bytes(entry: &Entry, part: PartKind) -> u64 {
    entry.published.layout().part(part).size_bytes
}
