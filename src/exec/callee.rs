//! What a call runs in: a pinned entry of the cache.

use std::ops::Range;

use super::{Callee, Step, Thread, Trap, TrapStage, Writable, Writables};
use crate::cache::Pinned;

impl Callee for Pinned {
    fn code_range(&self) -> Range<u64> {
        Pinned::code_range(self)
    }

    fn tenant(&self) -> u64 {
        self.meta().tenant
    }

    fn writable(&self) -> Writables {
        // What an entry is linked against holds its own data, which its code may change.
        Writables::new(self.shared_data().map(|(id, reentrant)| Writable { id, reentrant }))
    }

    fn thread(&self) -> Option<Thread> {
        let thread = self.meta().thread?;
        Some(Thread {
            template: self.rodata_start() + thread.template_offset_bytes,
            template_bytes: thread.template_bytes as usize,
            size_bytes: thread.size_bytes as usize,
            align_bytes: thread.align_bytes as usize,
            errno_offset: thread.errno_offset as isize,
        })
    }

    fn data(&self) -> Vec<Range<u64>> {
        self.data_ranges()
    }

    fn code_epoch(&self) -> u64 {
        self.barriers()
    }

    fn is_quarantined(&self) -> bool {
        self.meta().conduct.is_quarantined()
    }

    fn trapped(&self, trap: &Trap) {
        let conduct = &self.meta().conduct;
        match trap.stage {
            TrapStage::Waiting => {}
            TrapStage::Stuck => conduct.stuck(|| "a call could not be stopped and keeps its thread".to_owned()),
            TrapStage::Call | TrapStage::Initialiser | TrapStage::KeptMemory => {
                conduct.trapped(|| format!("{} {}", trap.kind.as_str(), place(self, trap.pc)));
            }
        }
    }

    fn restore(&self, id: u64) {
        self.restore_data(id);
    }

    fn is_pending(&self) -> bool {
        Pinned::is_pending(self)
    }

    fn step(&self, index: usize) -> Option<Step> {
        let (entry, slot) = Pinned::step(self, index)?;
        Some(Step { entry, slot })
    }

    fn resolve(&self, slot: u64, address: u64) -> bool {
        self.write_slot(slot, address)
    }

    fn initialised(&self) {
        self.keep_data();
    }
}

/// Where in the code of an entry, for a person.
fn place(pinned: &Pinned, pc: u64) -> String {
    let code = pinned.code_range();
    if !code.contains(&pc) {
        return "outside of its code".to_owned();
    }
    let offset_bytes = pc - code.start;
    match pinned.meta().exports.function_at(offset_bytes) {
        Some(function) => format!("at {}+{:#x}", function.name, offset_bytes - function.offset_bytes),
        None => format!("at code+{offset_bytes:#x}"),
    }
}
