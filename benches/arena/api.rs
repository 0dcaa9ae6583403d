//! The arenas as the scenarios see them: the only file here that knows how they are called.

use std::{fs, sync::Arc};

use codecached::arena::{ArenaConfig, Arenas, Layout, ReserveError};
pub(crate) use codecached::arena::{Draft, Published};

/// What is asked for beside the size. The granule rounds up to more.
const ALIGN_BYTES: u64 = 16;

/// Arenas that only code is put into.
pub(crate) struct Memory {
    arenas: Arc<Arenas>,
}

/// Bytes of code memory, but for `metadata`.
pub(crate) struct Space {
    pub(crate) used: u64,
    pub(crate) reserved: u64,
    pub(crate) committed: u64,
    /// The allocator's tables.
    pub(crate) metadata: u64,
    /// Addresses of all kinds, which the tables are for.
    pub(crate) reserved_all: u64,
}

impl Memory {
    /// As the daemon has it: as many shards as cores.
    pub(crate) fn map(reserve_bytes: u64) -> Self {
        Self::map_as(ArenaConfig::new(reserve_bytes, reserve_bytes))
    }

    /// All of it in one arena, where that is possible.
    pub(crate) fn map_whole(reserve_bytes: u64) -> Self {
        Self::map_as(ArenaConfig { shards: 1, ..ArenaConfig::new(reserve_bytes, reserve_bytes) })
    }

    /// In one arena, which keeps what was committed once.
    pub(crate) fn map_keeping_all(reserve_bytes: u64) -> Self {
        let config = ArenaConfig::new(reserve_bytes, reserve_bytes);
        Self::map_as(ArenaConfig { shards: 1, keep_free_bytes: reserve_bytes, ..config })
    }

    fn map_as(config: ArenaConfig) -> Self {
        let bytes = config.reserve_max_bytes;
        let arenas = Arenas::map(&config).unwrap_or_else(|error| panic!("cannot map {bytes} bytes: {error}"));
        Self { arenas }
    }

    pub(crate) fn reserve(&self, size_bytes: u32) -> Draft {
        self.try_reserve(size_bytes).expect("invariant: the reservation is larger than what a scenario holds")
    }

    /// `None` where no room is left.
    pub(crate) fn try_reserve(&self, size_bytes: u32) -> Option<Draft> {
        match self.arenas.reserve(&Layout::code(size_bytes.into(), ALIGN_BYTES)) {
            Ok(draft) => Some(draft),
            Err(ReserveError::Fragmented { .. }) => None,
            Err(error) => panic!("cannot reserve {size_bytes} bytes: {error}"),
        }
    }

    pub(crate) fn reserve_many(&self, size_bytes: u32, count: usize) -> Vec<Draft> {
        let layouts = vec![Layout::code(size_bytes.into(), ALIGN_BYTES); count];
        self.arenas.reserve_many(&layouts).unwrap_or_else(|error| panic!("cannot reserve a batch: {error}"))
    }

    pub(crate) fn space(&self) -> Space {
        let stats = self.arenas.stats();
        Space {
            used: stats.code.used_bytes,
            reserved: stats.code.reserved_bytes,
            committed: stats.code.committed_bytes,
            metadata: stats.metadata_bytes,
            reserved_all: stats.total().reserved_bytes,
        }
    }

    /// Barriers over all threads so far.
    pub(crate) fn barriers(&self) -> u64 {
        self.arenas.stats().barriers
    }
}

pub(crate) fn publish(draft: Draft) -> Published {
    draft.publish().unwrap_or_else(|error| panic!("cannot publish: {error}"))
}

/// The first of these pays the barrier for all.
pub(crate) fn publish_many(drafts: Vec<Draft>) -> Vec<Published> {
    drafts.into_iter().map(publish).collect()
}

/// The requested size.
pub(crate) fn size_bytes(draft: &Draft) -> u32 {
    draft.layout().code.size_bytes as u32
}

/// What the kernel counts for all views of all arenas of this process, a page that several views share once.
pub(crate) fn resident_bytes() -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_else(|error| panic!("cannot read smaps: {error}"));
    let (mut sum_kib, mut ours) = (0, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Pss:") if ours => sum_kib += words.next().and_then(|it| it.parse::<u64>().ok()).unwrap_or(0),
            // A mapping's first line ends with the name of its file; this program's own has another.
            Some(range) if !range.ends_with(':') => ours = line.contains("memfd:codecached"),
            _ => {}
        }
    }
    sum_kib << 10
}
