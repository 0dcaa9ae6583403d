//! Resident code told to profilers, debuggers and unwinders, which know of an executable and its libraries only.
//!
//! [`Tools::start`] opens what is asked for; [`Tools::watcher`] is for the cache, which calls it for each entry. What is
//! asked for last of all is an install: nothing here fails one. Absent here: where the code comes from and who calls it.

mod file;
mod gdb;
mod jitdump;
mod names;
mod perf_map;
mod symbol_file;
mod unwind;

use std::{path::PathBuf, sync::Arc};

pub use file::{FileError, Written};

use crate::{
    cache::{Placed, Watched, Watcher},
    code::Image,
};
use jitdump::JitDump;
use perf_map::PerfMap;

/// What is written for perf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Perf {
    /// Addresses and names.
    Map,
    /// Those with times and the code itself.
    JitDump,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct ToolsConfig {
    /// For perf.
    pub perf: Option<Perf>,
    /// Where it is written.
    pub directory: PathBuf,
    /// Bytes of that file at most.
    pub file_max_bytes: u64,
    /// Register code for GDB.
    pub gdb: bool,
    /// Register unwind tables.
    pub unwind: bool,
}

/// What is told, and how.
pub struct Tools {
    perf: Option<PerfFile>,
    gdb: bool,
    unwind: bool,
}

/// What others know of an entry, until this is dropped.
struct Held {
    _gdb: Option<gdb::Registered>,
    _unwind: Option<unwind::Registered>,
}

enum PerfFile {
    Map(PerfMap),
    Dump(JitDump),
}

impl Tools {
    /// Opens what is asked for; `None` if nothing is. To be called before the process gives up its right to.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn start(config: &ToolsConfig) -> Result<Option<Arc<Self>>, FileError> {
        let (directory, max_bytes) = (&config.directory, config.file_max_bytes);
        let perf = match config.perf {
            Some(Perf::Map) => Some(PerfFile::Map(PerfMap::create(directory, max_bytes)?)),
            Some(Perf::JitDump) => Some(PerfFile::Dump(JitDump::create(directory, max_bytes)?)),
            None => None,
        };
        let unwind = config.unwind && unwind::is_available();
        if config.unwind && !unwind {
            tracing::warn!("the runtime library cannot be told of unwind tables: backtraces end at resident code");
        }
        let is_any = perf.is_some() || config.gdb || unwind;
        Ok(is_any.then(|| Arc::new(Self { perf, gdb: config.gdb, unwind })))
    }

    /// What the cache is to call.
    pub fn watcher(self: &Arc<Self>) -> Watcher {
        let (charging, watching) = (Arc::clone(self), Arc::clone(self));
        Watcher {
            heap_bytes: Box::new(move |image| charging.heap_bytes(image)),
            watch: Box::new(move |placed| watching.watch(placed)),
        }
    }

    /// Ends what is written. What comes after it is left out.
    pub fn finish(&self) -> Written {
        match &self.perf {
            Some(PerfFile::Map(map)) => map.finish(),
            Some(PerfFile::Dump(dump)) => dump.finish(),
            None => Written::default(),
        }
    }

    fn heap_bytes(&self, image: &Image) -> u64 {
        let gdb = if self.gdb { gdb::heap_bytes(image) } else { 0 };
        let unwind = if self.unwind { unwind::heap_bytes(image) } else { 0 };
        let held = if self.gdb || self.unwind { size_of::<Held>() as u64 } else { 0 };
        gdb + unwind + held
    }

    fn watch(&self, placed: &Placed<'_>) -> Option<Watched> {
        match &self.perf {
            Some(PerfFile::Map(map)) => map.note(placed),
            Some(PerfFile::Dump(dump)) => dump.note(placed),
            None => (),
        }
        let unwind = placed.unwind_range().filter(|_| self.unwind);
        let unwind = unwind.and_then(|table| unwind::Registered::new(placed.code_range().start, table.start));
        let gdb = self.gdb.then(|| gdb::Registered::new(placed));
        (gdb.is_some() || unwind.is_some()).then(|| Box::new(Held { _gdb: gdb, _unwind: unwind }) as Watched)
    }
}
