//! Counts of the arenas, for people and for metrics.

/// The memory of one kind, over all arenas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindStats {
    /// Bytes of spans that have an owner.
    pub used_bytes: u64,
    /// Committed bytes without an owner: gaps between spans, and pages not yet given back.
    pub free_bytes: u64,
    /// Bytes of addresses: what could be used if all were committed.
    pub reserved_bytes: u64,
    /// Bytes of pages that the system has given: used and free.
    pub committed_bytes: u64,
    /// Spans that have an owner.
    pub spans: u64,
    /// The longest run of addresses without an owner. May be too low by a sixteenth when there are many.
    pub largest_free_bytes: u64,
}

impl KindStats {
    pub(super) fn add(self, other: Self) -> Self {
        Self {
            used_bytes: self.used_bytes + other.used_bytes,
            free_bytes: self.free_bytes + other.free_bytes,
            reserved_bytes: self.reserved_bytes + other.reserved_bytes,
            committed_bytes: self.committed_bytes + other.committed_bytes,
            spans: self.spans + other.spans,
            largest_free_bytes: self.largest_free_bytes.max(other.largest_free_bytes),
        }
    }
}

/// What [`Arenas::stats`](super::Arenas::stats) tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaStats {
    /// Executable memory.
    pub code: KindStats,
    /// Read-only memory.
    pub rodata: KindStats,
    /// Writable memory.
    pub data: KindStats,
    /// What the committed bytes of all kinds together never exceed, but for what was used when it was lowered.
    pub commit_limit_bytes: u64,
    /// How memory comes to be written and executed though no page is both: always `dual-mapping`.
    pub strategy: &'static str,
    /// What the platform gave for it, and what it refused.
    pub reason: String,
}

impl ArenaStats {
    /// All kinds together.
    pub fn total(&self) -> KindStats {
        self.code.add(self.rodata).add(self.data)
    }

    /// Bytes of pages that the system has given, all kinds together.
    pub fn committed_bytes(&self) -> u64 {
        self.total().committed_bytes
    }
}
