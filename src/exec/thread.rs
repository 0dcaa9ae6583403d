//! The thread of a call: a block of memory that its thread pointer points to.
//!
//! Code that has thread-local variables, or a C library of its own, finds there what it expects of a thread that has
//! just begun: initial values, its own address, a canary. The C "thread" is the call: the block is written anew before
//! each, and zeros are left behind, so nothing goes from one call to another.
//!
//! ```text
//!  area   | ... | variables | self, canary, errno, ... | rest of the area |
//!                           ^ pointer                  ^ + CONTROL_BYTES
//! ```
//! Above the pointer the layout is that of musl's `struct pthread` (1.2, x86-64): `self` at 0, the canary at 0x28, as
//! the ABI has it, `errno` at 0x34, and at 0xa8 the locale, which is one of zeros here: the "C" locale.
#![allow(unsafe_code)] // Copies from the callee's read-only data.

use super::call::Thread;
use super::memory::Region;
use super::stack::Slot;

/// Bytes of a callee's thread-local variables at most.
pub const THREAD_MAX_BYTES: usize = 64 << 10;
/// Bytes at and above the thread pointer that belong to the code.
pub const CONTROL_BYTES: usize = 512;
/// Alignment of the thread pointer at most.
const ALIGN_MAX_BYTES: usize = 4096;
/// Memory that holds any block.
pub(super) const AREA_BYTES: usize = THREAD_MAX_BYTES + ALIGN_MAX_BYTES + 4096;

const CANARY_OFFSET: usize = 0x28;
const ERRNO_OFFSET: usize = 0x34;
const LOCALE_OFFSET: usize = 0xa8;
/// Where the pointers of the locale are, all null: bytes that no field has.
const LOCALE_BODY_OFFSET: usize = 0x180;

const _: () = assert!(CONTROL_BYTES + ALIGN_MAX_BYTES + THREAD_MAX_BYTES <= AREA_BYTES, "any block fits the area");

/// A block that was made for a call.
#[derive(Debug)]
pub(super) struct Block {
    area: Region,
    variables_bytes: usize,
    /// The thread pointer.
    pub(super) pointer: usize,
    /// Address of the code's `errno`.
    pub(super) errno: usize,
}

impl Block {
    /// Writes a block in the slot, with this canary.
    ///
    /// # Panics
    /// If `thread` is none that a callee may have.
    pub(super) fn make(slot: &Slot, thread: &Thread, canary: u64) -> Block {
        let &Thread { template, template_bytes, size_bytes, align_bytes, errno_offset } = thread;
        assert!(size_bytes <= THREAD_MAX_BYTES && align_bytes <= ALIGN_MAX_BYTES && template_bytes <= size_bytes);
        let area = Region::of_thread(slot);
        let pointer = (area.range().end - CONTROL_BYTES) & !(align_bytes - 1);
        let errno = pointer.wrapping_add_signed(errno_offset);
        let is_inside = (pointer - size_bytes..pointer + CONTROL_BYTES - 4).contains(&errno);
        let errno = if is_inside { errno } else { pointer + ERRNO_OFFSET };
        let block = Block { area, variables_bytes: size_bytes, pointer, errno };
        block.scrub();
        let start = block.start();
        // SAFETY: the callee is held and promises these bytes to be there; the target is inside of the area, as the
        // assertions above say, which Rust has no reference to.
        unsafe { std::ptr::copy_nonoverlapping(template as *const u8, start as *mut u8, template_bytes) };
        block.write(0, pointer as u64);
        block.write(CANARY_OFFSET, canary);
        block.write(LOCALE_OFFSET, (pointer + LOCALE_BODY_OFFSET) as u64);
        block
    }

    /// Leaves zeros.
    pub(super) fn scrub(&self) {
        let scrubbed = self.area.zero(self.start(), self.variables_bytes + CONTROL_BYTES);
        debug_assert!(scrubbed, "a block is inside of its area");
    }

    fn start(&self) -> usize {
        self.pointer - self.variables_bytes
    }

    fn write(&self, offset: usize, word: u64) {
        let written = self.area.write_word(self.pointer + offset, word);
        debug_assert!(written, "a block is inside of its area");
    }
}
