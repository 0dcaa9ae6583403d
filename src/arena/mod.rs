//! Executable memory: reserve, write, publish, free.
//!
//! [`Arenas`] are mapped once, at start. A [`Draft`] owns spans of one arena that are written through a window where
//! they cannot run; publishing makes of it a [`Published`], which runs where it cannot be written. No page is writable
//! and executable at one address, and no executable mapping is made after the start. What allocates and counts
//! (`pool` and below) knows no address and no system call.
//!
//! ```
//! use codecached::arena::{ArenaConfig, Arenas, Layout, Part};
//!
//! let arenas = Arenas::map(&ArenaConfig::new(2 << 20, 1 << 20))?;

//! let layout = Layout::code(6, 16);
//!
//! let mut draft = arenas.reserve(&layout)?;
//! draft.code_mut().copy_from_slice(&[0xB8, 42, 0, 0, 0, 0xC3]); // mov eax, 42; ret
//! let published = draft.publish()?;
//!
//! let address = std::ptr::with_exposed_provenance::<()>(published.addresses().code as usize);
//! // SAFETY: These bytes are a whole function of this signature, and `published` outlives the call.
//! let function = unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u32>(address) };
//! assert_eq!(function(), 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Limits of this version: what faulty code touches in pages that are not committed becomes memory that no count knows
//! until the page is used and given back, or the arenas are dropped.

mod area;
mod arenas;
mod barrier;
mod blocks;
mod canary;
mod cells;
mod check;
mod classes;
mod collapse;
mod commit;
mod config;
mod draft;
mod epochs;
mod error;
mod facts;
#[cfg(test)]
mod faults;
mod free_error;
mod gaps;
mod geometry;
mod holding;
mod huge;
mod layout;
mod mapping;
mod memory;
mod memory_file;
mod occupancy;
mod page_set;
mod pool;
mod published;
mod remedy;
mod reservation;
mod reuse;
mod shard;
mod shards;
mod shelves;
mod stats;
mod strategy;
mod sync;
mod system;
#[cfg(test)]
mod testing;
mod window;

pub use arenas::{Arenas, Found};
pub use check::{Finding, FindingLevel, explain};
pub use config::{ArenaConfig, HugePages, WriteWindow};
pub use draft::Draft;
pub use error::{Lacks, LowRefusal, MapError, PublishError, ReserveError};
pub use gaps::Gaps;
pub use geometry::{ALIGN_MAX_BYTES, GRANULE_DEFAULT_BYTES, PartKind, RESERVE_LIMIT_BYTES};
pub use layout::{Addresses, Layout, Part};
pub use occupancy::{OccupancyRun, RunState};
pub use published::Published;
pub use stats::{AreaStats, ArenaStats, KindStats};
pub use strategy::{Attempt, Step, StepError, StrategyKind};
pub use system::random;
