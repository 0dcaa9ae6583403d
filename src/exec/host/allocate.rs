//! The allocator: `malloc` and its kin over the heap of the call.
//!
//! The heap is memory of the slot, its bounds and lists are words of the slot's frame: nothing of the process is
//! held when the handler ends a call in the middle, and the next call begins with an empty heap.
#![allow(unsafe_code)] // Functions with the C ABI, in part assembly.

use std::arch::{asm, naked_asm};

use super::checked::{copy_text, length};
use super::{Entry, abort_from};
use crate::exec::heap::{Corrupt, Heap};
use crate::exec::memory::Region;
use crate::exec::stack::frame_at;

pub(super) const OWN: &[(&str, Entry)] = &[
    ("malloc", malloc),
    ("calloc", calloc),
    ("realloc", realloc),
    ("reallocarray", reallocarray),
    ("free", free),
    ("aligned_alloc", aligned_alloc),
    ("memalign", aligned_alloc),
    ("posix_memalign", posix_memalign),
    ("strdup", strdup),
    ("__strdup", strdup),
    ("strndup", strndup),
];

/// `malloc(size)`. Like all here, it hands on its stack pointer, which finds the executor.
#[unsafe(naked)]
unsafe extern "C" fn malloc() {
    naked_asm!("cld", "mov rsi, rsp", "jmp {on}", on = sym on_malloc)
}

#[unsafe(naked)]
unsafe extern "C" fn calloc() {
    naked_asm!("cld", "mov rdx, rsp", "jmp {on}", on = sym on_calloc)
}

#[unsafe(naked)]
unsafe extern "C" fn realloc() {
    naked_asm!("cld", "mov rdx, rsp", "jmp {on}", on = sym on_realloc)
}

#[unsafe(naked)]
unsafe extern "C" fn reallocarray() {
    naked_asm!("cld", "mov rcx, rsp", "jmp {on}", on = sym on_reallocarray)
}

#[unsafe(naked)]
unsafe extern "C" fn free() {
    naked_asm!("cld", "mov rsi, rsp", "jmp {on}", on = sym on_free)
}

#[unsafe(naked)]
unsafe extern "C" fn aligned_alloc() {
    naked_asm!("cld", "mov rdx, rsp", "jmp {on}", on = sym on_aligned_alloc)
}

#[unsafe(naked)]
unsafe extern "C" fn posix_memalign() {
    naked_asm!("cld", "mov rcx, rsp", "jmp {on}", on = sym on_posix_memalign)
}

#[unsafe(naked)]
unsafe extern "C" fn strdup() {
    naked_asm!("cld", "mov rsi, rsp", "jmp {on}", on = sym on_strdup)
}

#[unsafe(naked)]
unsafe extern "C" fn strndup() {
    naked_asm!("cld", "mov rdx, rsp", "jmp {on}", on = sym on_strndup)
}

extern "C" fn on_malloc(size: usize, sp: usize) -> usize {
    on_heap(sp, |heap| heap.allocate(size))
}

extern "C" fn on_calloc(count: usize, size: usize, sp: usize) -> usize {
    on_heap(sp, |heap| heap.allocate_zeroed(count, size))
}

extern "C" fn on_realloc(address: usize, size: usize, sp: usize) -> usize {
    on_heap(sp, |heap| heap.resize(address, size))
}

extern "C" fn on_reallocarray(address: usize, count: usize, size: usize, sp: usize) -> usize {
    count.checked_mul(size).map_or(0, |total| on_realloc(address, total, sp))
}

extern "C" fn on_free(address: usize, sp: usize) {
    on_heap(sp, |heap| heap.release(address).map(|()| 0));
}

extern "C" fn on_aligned_alloc(alignment: usize, size: usize, sp: usize) -> usize {
    on_heap(sp, |heap| heap.allocate_aligned(alignment, size))
}

extern "C" fn on_posix_memalign(to: usize, alignment: usize, size: usize, sp: usize) -> i32 {
    if !alignment.is_power_of_two() || alignment < size_of::<usize>() {
        return libc::EINVAL;
    }
    let address = on_aligned_alloc(alignment, size, sp);
    if address == 0 {
        return libc::ENOMEM;
    }
    // SAFETY: the pointer is the code's: if it is bad this faults, and the handler ends the call. Not a Rust access,
    // which debug builds check.
    unsafe { asm!("mov [{to}], {address}", to = in(reg) to, address = in(reg) address, options(nostack)) };
    0
}

extern "C" fn on_strdup(text: usize, sp: usize) -> usize {
    on_strndup(text, usize::MAX, sp)
}

extern "C" fn on_strndup(text: usize, max: usize, sp: usize) -> usize {
    let len = length(text, max);
    let room = len.saturating_add(1);
    let copy = on_malloc(room, sp);
    if copy != 0 {
        copy_text(copy, text, len, room, sp);
    }
    copy
}

/// Runs `with` on the heap of the executor on whose slot the stack pointer lies, or ends the call.
fn on_heap(sp: usize, with: impl FnOnce(&Heap<'_>) -> Result<usize, Corrupt>) -> usize {
    let result = match frame_at(sp) {
        // A stack that code made elsewhere has no heap.
        None => Err(Corrupt),
        Some(frame) => {
            // SAFETY: code runs on a stack in this slot, so its executor lives and its frame is mapped.
            let frame = unsafe { frame.as_ref() };
            with(&Heap::new(&frame.heap, Region::of_heap(frame)))
        }
    };
    match result {
        Ok(address) => address,
        // SAFETY: does not come back: it faults, and the handler ends the call. No frame here owns anything.
        Err(Corrupt) => unsafe { abort_from(sp) },
    }
}
