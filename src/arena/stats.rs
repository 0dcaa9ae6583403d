//! Counts of the arenas, for people and for metrics.

use super::{LowRefusal, PartKind};

/// The memory of one kind, over several arenas or in one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindStats {
    /// Bytes of spans that have an owner and do not linger.
    pub used_bytes: u64,
    /// Bytes of spans whose owner has marked them by [`Published::linger`](super::Published::linger).
    pub lingering_bytes: u64,
    /// Committed bytes without an owner: gaps between spans, and pages not yet given back.
    pub free_bytes: u64,
    /// Bytes of addresses: what could be used if all were committed.
    pub reserved_bytes: u64,
    /// Bytes of pages that the system has given: used, lingering and free.
    pub committed_bytes: u64,
    /// Spans that have an owner.
    pub spans: u64,
    /// The longest run of addresses without an owner.
    pub largest_free_bytes: u64,
}

impl KindStats {
    pub(super) fn add(self, other: Self) -> Self {
        Self {
            used_bytes: self.used_bytes + other.used_bytes,
            lingering_bytes: self.lingering_bytes + other.lingering_bytes,
            free_bytes: self.free_bytes + other.free_bytes,
            reserved_bytes: self.reserved_bytes + other.reserved_bytes,
            committed_bytes: self.committed_bytes + other.committed_bytes,
            spans: self.spans + other.spans,
            largest_free_bytes: self.largest_free_bytes.max(other.largest_free_bytes),
        }
    }

    /// The share of committed memory that nobody owns: what is lost to gaps between spans, and what is kept for
    /// those to come. From 0 to 1; 0 when nothing is committed.
    pub fn fragmentation_ratio(&self) -> f64 {
        if self.committed_bytes == 0 { 0.0 } else { self.free_bytes as f64 / self.committed_bytes as f64 }
    }
}

/// One area: the memory of one kind in one arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaStats {
    /// Which arena, from 0.
    pub arena: u32,
    /// It lies below 2 GiB, and holds nothing but what must lie there.
    pub low: bool,
    /// Which kind.
    pub kind: PartKind,
    /// The address of its first byte.
    pub start: u64,
    /// Its counts.
    pub memory: KindStats,
    /// Spans taken, given back, cut and grown since the start, but for those that a thread freed and used again by
    /// itself.
    pub operations: u64,
    /// How often a thread that wanted memory found the arena's lock held. The same number for all kinds.
    pub contended: u64,
}

/// What [`Arenas::stats`](super::Arenas::stats) tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaStats {
    /// Executable memory, without that below 2 GiB.
    pub code: KindStats,
    /// Read-only memory, likewise.
    pub rodata: KindStats,
    /// Writable memory, likewise.
    pub data: KindStats,
    /// The same below 2 GiB: code, read-only data and data.
    pub low: [KindStats; 3],
    /// Why there is none below 2 GiB although it was asked for.
    pub low_refused: Option<LowRefusal>,
    /// What the committed bytes of all kinds together never exceed, but for what was used when it was lowered.
    pub commit_limit_bytes: u64,
    /// Heap that the allocator's own tables take, of which what was never needed is not resident.
    pub metadata_bytes: u64,
    /// Barriers over all threads that were needed since memory was reused.
    pub barriers: u64,
    /// How memory comes to be written and executed though no page is both.
    pub strategy: &'static str,
    /// What the platform gave for it, and what it refused.
    pub reason: String,
    /// What was tried before and failed, a line each.
    pub attempts: Vec<String>,
}

impl ArenaStats {
    /// All kinds together, below 2 GiB too.
    pub fn total(&self) -> KindStats {
        self.code.add(self.rodata).add(self.data).add(self.low_total())
    }

    /// All kinds together, below 2 GiB alone.
    pub fn low_total(&self) -> KindStats {
        self.low.into_iter().fold(KindStats::default(), KindStats::add)
    }

    /// The longest part that could still be placed in every kind of memory below 2 GiB.
    pub fn low_largest_free_bytes(&self) -> u64 {
        self.low.into_iter().map(|kind| kind.largest_free_bytes).min().unwrap_or_default()
    }

    /// The memory of a kind, wherever it lies. Its longest free run is that of the arenas that take anything.
    pub fn all(&self, kind: PartKind) -> KindStats {
        let common = match kind {
            PartKind::Code => self.code,
            PartKind::Rodata => self.rodata,
            PartKind::Data => self.data,
        };
        KindStats { largest_free_bytes: common.largest_free_bytes, ..common.add(self.low[kind as usize]) }
    }

    /// Bytes of pages that the system has given, all kinds together.
    pub fn committed_bytes(&self) -> u64 {
        self.total().committed_bytes
    }
}
