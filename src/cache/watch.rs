//! Somebody who is told what code is where, for as long as it is there: profilers and debuggers.

use std::ops::Range;

use super::Name;
use crate::{
    arena::Published,
    code::{Function, Image},
};

/// What a watcher has of an entry. Dropped after the last call, before the memory goes back.
pub type Watched = Box<dyn Send + Sync>;

/// Told of an entry; answers with what is held for it, if anything is.
pub type Watch = Box<dyn Fn(&Placed<'_>) -> Option<Watched> + Send + Sync>;

/// Called outside of all locks, by any thread that installs.
pub struct Watcher {
    /// Bytes of heap that watching this image will take for as long as it is resident: they are charged as metadata.
    pub heap_bytes: Box<dyn Fn(&Image) -> u64 + Send + Sync>,
    /// Called once the code can run, before anybody can find it.
    pub watch: Watch,
}

/// Code where it runs.
pub struct Placed<'a> {
    /// Of the entry that it will be.
    pub name: &'a Name,
    /// Functions, exported or not, by offset.
    pub functions: &'a [Function],
    pub(super) published: &'a Published,
    /// Where in the read-only data its unwind table lies.
    pub(super) unwind: Option<Range<u64>>,
}

impl Placed<'_> {
    /// Run addresses of the code.
    pub fn code_range(&self) -> Range<u64> {
        self.published.code_range()
    }

    /// A copy of the code.
    pub fn read_code(&self) -> Vec<u8> {
        self.published.read_code()
    }

    /// Run addresses of its unwind table, in the form of `.eh_frame`; `None` if it has none.
    pub fn unwind_range(&self) -> Option<Range<u64>> {
        let start = self.published.addresses().rodata;
        self.unwind.as_ref().map(|it| start + it.start..start + it.end)
    }

    /// A copy of its unwind table; empty if it has none.
    pub fn read_unwind(&self) -> Vec<u8> {
        self.unwind.clone().map(|it| self.published.read_rodata_at(it)).unwrap_or_default()
    }
}
