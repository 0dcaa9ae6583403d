//! The slots of a trace, each with the block that lives there.

use std::slice;

use crate::{
    api::{Draft, Memory},
    trace::Step,
};

pub(crate) type Slots = Vec<Option<Draft>>;

/// Copies the start of `code` over the whole block, which has this size.
pub(crate) fn write(draft: &mut Draft, size: u32, code: &[u8]) {
    draft.write_code(&code[..size as usize]);
}

/// Puts a new block into an empty slot.
pub(crate) fn put(memory: &Memory, slot: &mut Option<Draft>, size: u32, code: &[u8]) {
    write(slot.insert(memory.reserve(size)), size, code);
}

/// One written block for each size.
pub(crate) fn fill(memory: &Memory, sizes: &[u32], code: &[u8]) -> Slots {
    let mut slots: Slots = sizes.iter().map(|_| None).collect();
    for (slot, &size) in slots.iter_mut().zip(sizes) {
        put(memory, slot, size, code);
    }
    slots
}

/// Releases, allocates and writes as the steps say.
pub(crate) fn replay(memory: &Memory, slots: &mut [Option<Draft>], steps: slice::Iter<'_, Step>, code: &[u8]) {
    for step in steps {
        let slot = &mut slots[step.slot as usize];
        *slot = None;
        put(memory, slot, step.size, code);
    }
}
