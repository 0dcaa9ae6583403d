//! What a worker keeps that it can write, when it begins to run code.
//!
//! The program's variables, the C library's and all that was allocated before are only read from then on: a call that
//! writes over them faults, instead of leaving to a later call of the same worker what that one would trip over. What stays
//! is the stack, the thread's own block, and what is shared with the daemon. Of the block, what functions of the C library
//! look at is put back after each call.
#![allow(unsafe_code)] // Copies of the thread's own block.

use std::fs;
use std::ops::Range;
use std::ptr;

use nix::errno::Errno;

use super::system;
use crate::exec::stack::PAGE_BYTES;
use crate::exec::{arch, errno};

/// Above the thread pointer is what the C library has of a thread.
const THREAD_BYTES: usize = PAGE_BYTES;
/// Mappings of a process at most, as kernels are set up. With more of them there is no worker.
const MAPPINGS_MAX: usize = 1 << 16;

/// Around the error number: the C library's own thread-local variables, such as its locale.
const AROUND_BYTES: usize = 256;
/// At the thread pointer: its own address, the canary, the pointer guard.
const HEAD_BYTES: usize = 64;

/// Copies of what functions of the C library look at in the thread's own block.
#[derive(Debug)]
pub(super) struct Block {
    around: [u8; 2 * AROUND_BYTES],
    head: [u8; HEAD_BYTES],
    around_at: usize,
    head_at: usize,
}

impl Block {
    /// Of the calling thread.
    pub(super) fn copy() -> Block {
        let head_at = arch::thread_pointer() as usize;
        let around_at = (errno::location() as usize - AROUND_BYTES).min(head_at - 2 * AROUND_BYTES);
        let mut block = Block { around: [0; 2 * AROUND_BYTES], head: [0; HEAD_BYTES], around_at, head_at };
        // SAFETY: the block lies on both sides of the thread pointer, and reaches from the error number, which is among its
        // variables, to there. The page of either is there as a whole.
        unsafe { ptr::copy_nonoverlapping(around_at as *const u8, block.around.as_mut_ptr(), block.around.len()) };
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(head_at as *const u8, block.head.as_mut_ptr(), block.head.len()) };
        block
    }

    /// Whole pages that a thread writes of its block: what is put back, and above the thread pointer what the C library has.
    fn pages(&self) -> Range<usize> {
        let page = |address: usize| address & !(PAGE_BYTES - 1);
        page(self.around_at)..page(self.head_at) + PAGE_BYTES + THREAD_BYTES
    }

    /// Puts it back, on the same thread.
    pub(super) fn restore(&self) {
        // SAFETY: as in `copy`; of these variables nothing has changed since that is still needed.
        unsafe { ptr::copy_nonoverlapping(self.around.as_ptr(), self.around_at as *mut u8, self.around.len()) };
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(self.head.as_ptr(), self.head_at as *mut u8, self.head.len()) };
    }
}

/// Makes everything read-only but the stack and `block`. Nothing may be allocated or freed afterwards. `shared` are the
/// addresses of what is written by other processes too.
///
/// # Errors
/// Of the system; `E2BIG` if there are too many mappings to look at, `EPERM` if somebody has mapped other memory that is
/// shared and written, or some that is written and run.
pub(super) fn keep_little(block: &Block, shared: &[Range<usize>]) -> Result<(), Errno> {
    let marker = 0_u8;
    let stack = &raw const marker as usize;
    // Thread-local variables lie below the thread pointer, and of them all that is written is around the error number.
    let thread = block.pages();
    let maps = fs::read_to_string("/proc/self/maps").map_err(|_| Errno::EIO)?;
    let mut parts = Vec::new();
    for range in private_writable(&maps, shared)?.into_iter().filter(|range| !range.contains(&stack)) {
        parts.push(range.start..range.end.min(thread.start.max(range.start)));
        parts.push(range.start.max(thread.end.min(range.end))..range.end);
    }
    let result = parts.iter().filter(|part| !part.is_empty()).try_for_each(|part| system::make_read_only(part.clone()));
    // To free them would be to write.
    std::mem::forget((maps, parts));
    result
}

/// What is written by this process alone, of the lines of `/proc/self/maps`.
fn private_writable(maps: &str, shared: &[Range<usize>]) -> Result<Vec<Range<usize>>, Errno> {
    let mut private = Vec::new();
    for (number, line) in maps.lines().enumerate() {
        if number == MAPPINGS_MAX {
            return Err(Errno::E2BIG);
        }
        let (range, rights) = mapping(line).ok_or(Errno::EIO)?;
        match rights {
            "rw-p" => private.push(range),
            "rw-s" if is_covered(&range, shared) => {}
            _ if rights.contains('w') => return Err(Errno::EPERM),
            _ => {}
        }
    }
    Ok(private)
}

/// Addresses and rights.
fn mapping(line: &str) -> Option<(Range<usize>, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?..address(end)?, rest.get(..4)?))
}

/// Whether each address is in one of `parts`, which may lie side by side: the kernel tells such as one mapping.
fn is_covered(range: &Range<usize>, parts: &[Range<usize>]) -> bool {
    let mut at = range.start;
    while at < range.end {
        let Some(part) = parts.iter().find(|part| part.contains(&at)) else { return false };
        at = part.end;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_put_back_lies_in_pages_that_stay_writable() {
        // The error number is close to the start of a page, and what is around it in the page before; or the thread pointer,
        // which is aligned to 64 B, is close to the end of one.
        for (around_at, head_at) in [(0x4ff0, 0x5740), (0x5000, 0x5200), (0x3e00, 0x6fc0)] {
            let (around, head) = ([0; 2 * AROUND_BYTES], [0; HEAD_BYTES]);
            let block = Block { around, head, around_at, head_at };
            let pages = block.pages();
            assert!(pages.start.is_multiple_of(PAGE_BYTES) && pages.end.is_multiple_of(PAGE_BYTES));
            assert!(pages.start <= around_at && around_at + around.len() <= pages.end);
            assert!(pages.start <= head_at && head_at + head.len() + THREAD_BYTES <= pages.end);
        }
        let block = Block::copy();
        assert!(block.pages().contains(&(errno::location() as usize)));
    }

    #[test]
    fn what_is_private_and_writable_is_told_from_the_rest_and_what_should_not_be_there_is_an_error() {
        let shared = [0x3000..0x4000, 0x4000..0x6000, 0x8000..0x9000];
        let of = |maps: &str| private_writable(maps, &shared);
        let heap = "7f00-8000 rw-p 00000000 00:00 0   [heap]\n9000-a000 rw-p 0 0:0 0\n";
        let private = vec![0x7f00..0x8000, 0x9000..0xa000];
        assert_eq!(of(heap), Ok(private.clone()));
        for fine in ["7f00-8000 r--p 0 0:0 0", "3000-4000 rw-s 0 0:0 0", "3000-6000 rw-s 0 0:0 0", "1-2 r-xs 0 0:0 0"] {
            assert_eq!(of(&[heap, fine].concat()), Ok(private.clone()), "{fine}");
        }
        for foreign in
            ["7f00-8000 rw-s 0 0:0 0", "5000-8800 rw-s 0 0:0 0", "1-2 rwxp 0 0:0 0", "3000-4000 rwxs 0 0:0 0"]
        {
            assert_eq!(of(&[heap, foreign].concat()), Err(Errno::EPERM), "{foreign}");
        }
        for broken in ["\n", "x-y rw-p", "1-2 rw", "12 rw-p"] {
            assert_eq!(of(broken), Err(Errno::EIO), "{broken}");
        }
        assert_eq!(of(&heap.repeat(MAPPINGS_MAX / 2)).map(|all| all.len()), Ok(MAPPINGS_MAX));
        assert_eq!(of(&heap.repeat(MAPPINGS_MAX / 2 + 1)), Err(Errno::E2BIG));
    }
}
