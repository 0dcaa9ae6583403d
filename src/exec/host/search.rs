//! `bsearch`.
//!
//! Not the C library's, as this one calls code back: while code with a thread pointer of its own is in it, that pointer
//! must be in force. This one does not depend on it. The frame that calls back owns nothing, so a fault in the callback
//! is like one in the code itself.
#![allow(unsafe_code)] // Functions with the C ABI, in part assembly.

use std::arch::naked_asm;

use super::Entry;

pub(super) const OWN: &[(&str, Entry)] = &[("bsearch", bsearch)];

type Compare = extern "C" fn(key: usize, element: usize) -> i32;

/// `(key, base, count, size, compare)`
#[unsafe(naked)]
unsafe extern "C" fn bsearch() {
    naked_asm!("cld", "jmp {on}", on = sym on_bsearch)
}

/// Looks at the same elements as the C library does. Nothing here is checked arithmetic, which would panic.
extern "C" fn on_bsearch(key: usize, base: usize, count: usize, size: usize, compare: Compare) -> usize {
    let (mut start, mut end) = (0_usize, count);
    while start < end {
        let middle = start.wrapping_add(end.wrapping_sub(start) >> 1);
        let element = base.wrapping_add(middle.wrapping_mul(size));
        match compare(key, element) {
            0 => return element,
            ..0 => end = middle,
            _ => start = middle.wrapping_add(1),
        }
    }
    0
}
