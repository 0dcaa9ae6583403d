//! What the arenas are to be like.

use std::path::PathBuf;

use super::geometry::GRANULE_DEFAULT_BYTES;

/// Free committed memory that is kept unless the configuration says otherwise.
const KEEP_FREE_DEFAULT_BYTES: u64 = 8 << 20;

/// When the addresses through which code is written are writable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteWindow {
    /// Always.
    #[default]
    Always,
    /// Those of an arena while somebody writes there, or frees or commits memory.
    OnDemand,
}

/// Whether arenas lie on huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// No.
    #[default]
    Never,
    /// Memory that is in use throughout is put on huge pages in the background.
    Collapse,
    /// All memory comes from the system's pool of huge pages, if it has them.
    Hugetlb,
}

/// How much executable memory there is, and how it is had. `ArenaConfig::new` has the default of all but sizes.
#[derive(Clone, Debug)]
pub struct ArenaConfig {
    /// Bytes of addresses for each of code, read-only data and data, all arenas together; rounded up to 2 MiB per arena.
    /// From 1 to [`RESERVE_LIMIT_BYTES`](super::RESERVE_LIMIT_BYTES). Costs no memory.
    pub reserve_max_bytes: u64,
    /// The same for one arena more, whose addresses lie below 2 GiB, for layouts that ask for such; 0: none. At most
    /// 256 MiB, and 64 MiB with granules of 16 bytes. If the system has no room there, the arenas go without it, and
    /// say so.
    pub low_bytes: u64,
    /// Bytes of memory that is committed at most, all kinds together.
    pub commit_limit_bytes: u64,
    /// What spans are rounded up to: a power of two from 16 to 4096.
    pub granule_bytes: u64,
    /// Arenas that threads may use side by side; 0: as many as there are cores. There are fewer where each would have
    /// less than 32 MiB, and more where one would have more than 256 MiB.
    pub shards: u32,
    /// Free committed memory that each shard keeps, in bytes, before it gives back whole free 2 MiB chunks.
    pub keep_free_bytes: u64,
    /// When code memory is writable.
    pub write_window: WriteWindow,
    /// Where to put a nameless file if the system gives no memory file. Best on a tmpfs.
    pub directory: Option<PathBuf>,
    /// Change the protection of memory back and forth if it cannot be mapped twice.
    pub allow_mprotect: bool,
    /// Huge pages.
    pub huge_pages: HugePages,
    /// Child processes that are forked later have what is run and what is read, as this process has it, for good; not the
    /// data, and no window. Where memory can be mapped only once they have nothing.
    pub inherited: bool,
}

impl ArenaConfig {
    /// So many bytes of addresses for each kind, so many bytes of memory, all else at its default.
    pub fn new(reserve_max_bytes: u64, commit_limit_bytes: u64) -> Self {
        Self {
            reserve_max_bytes,
            low_bytes: 0,
            commit_limit_bytes,
            granule_bytes: GRANULE_DEFAULT_BYTES,
            shards: 0,
            keep_free_bytes: KEEP_FREE_DEFAULT_BYTES,
            write_window: WriteWindow::default(),
            directory: None,
            allow_mprotect: false,
            huge_pages: HugePages::default(),
            inherited: false,
        }
    }
}
