//! Functions of this process that code may call.
//!
//! The C library's own `mem*` and `str*` functions that keep no state, and a heap of the call. All are entered through
//! a few instructions that make the direction flag what the ABI promises; code may have left it set. They hold no
//! lock, own nothing and cannot panic, so the signal handler may end a call in the middle of any of them. They get
//! pointers from hostile code: a fault inside them is the code's, and recovered like any other.
#![allow(unsafe_code)] // Functions with the C ABI, in part assembly.

use std::arch::naked_asm;

use super::arch::abort_trap;
use super::heap::{Corrupt, Heap};
use super::memory::Region;
use super::stack::frame_at;

/// Names and addresses of what is offered.
pub fn imports() -> Vec<(&'static str, u64)> {
    C_FUNCTIONS.iter().chain(&OWN_FUNCTIONS).map(|&(name, function)| (name, function as *const () as u64)).collect()
}

type Entry = unsafe extern "C" fn();

unsafe extern "C" {
    // Only their addresses are used, by jumps that pass all registers on.
    fn memcpy();
    fn memmove();
    fn mempcpy();
    fn memset();
    fn memcmp();
    fn memchr();
    fn memrchr();
    fn strlen();
    fn strnlen();
    fn strcmp();
    fn strncmp();
    fn strchr();
    fn strrchr();
    fn strcpy();
    fn strncpy();
    fn stpcpy();
    fn strcat();
    fn strncat();
    fn strspn();
    fn strcspn();
    fn strpbrk();
    fn strstr();
}

/// A table of functions that are passed on to the C library under their own names.
macro_rules! pass_on {
    ($($name:ident => $target:ident),* $(,)?) => {
        mod pass {
            $(
                #[unsafe(naked)]
                pub(super) unsafe extern "C" fn $name() {
                    std::arch::naked_asm!("cld", "jmp {target}@PLT", target = sym super::$target)
                }
            )*
        }
        const C_FUNCTIONS: [(&str, Entry); [$(stringify!($name)),*].len()] = [$((stringify!($name), pass::$name)),*];
    };
}

pass_on! {
    memcpy => memcpy, memmove => memmove, mempcpy => mempcpy, memset => memset, memcmp => memcmp, bcmp => memcmp,
    memchr => memchr, memrchr => memrchr, strlen => strlen, strnlen => strnlen, strcmp => strcmp, strncmp => strncmp,
    strchr => strchr, strrchr => strrchr, strcpy => strcpy, strncpy => strncpy, stpcpy => stpcpy, strcat => strcat,
    strncat => strncat, strspn => strspn, strcspn => strcspn, strpbrk => strpbrk, strstr => strstr,
}

const OWN_FUNCTIONS: [(&str, Entry); 9] = [
    ("__memcpy_chk", memcpy_chk),
    ("__memmove_chk", memmove_chk),
    ("__memset_chk", memset_chk),
    ("malloc", malloc),
    ("calloc", calloc),
    ("realloc", realloc),
    ("free", free),
    ("abort", abort),
    ("__stack_chk_fail", abort),
];

/// `(to, from, len, to_len)`: an abort if `len` is more than `to_len`.
#[unsafe(naked)]
unsafe extern "C" fn memcpy_chk() {
    naked_asm!("cmp rcx, rdx", "jb {abort}", "cld", "jmp {memcpy}@PLT", abort = sym abort, memcpy = sym memcpy)
}

#[unsafe(naked)]
unsafe extern "C" fn memmove_chk() {
    naked_asm!("cmp rcx, rdx", "jb {abort}", "cld", "jmp {memmove}@PLT", abort = sym abort, memmove = sym memmove)
}

#[unsafe(naked)]
unsafe extern "C" fn memset_chk() {
    naked_asm!("cmp rcx, rdx", "jb {abort}", "cld", "jmp {memset}@PLT", abort = sym abort, memset = sym memset)
}

/// `malloc(size)`. Like the three after it, it hands on its stack pointer, which finds the executor.
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
unsafe extern "C" fn free() {
    naked_asm!("cld", "mov rsi, rsp", "jmp {on}", on = sym on_free)
}

/// Traps with the caller's return address where the handler looks for it.
#[unsafe(naked)]
unsafe extern "C" fn abort() {
    naked_asm!("mov rax, [rsp]", "jmp {trap}", trap = sym abort_trap)
}

/// The same for a function that was entered with the stack pointer `sp`.
#[unsafe(naked)]
unsafe extern "C" fn abort_from(sp: usize) -> ! {
    naked_asm!("mov rax, [rdi]", "jmp {trap}", trap = sym abort_trap)
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

extern "C" fn on_free(address: usize, sp: usize) {
    on_heap(sp, |heap| heap.release(address).map(|()| 0));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_import_has_one_name_and_an_address() {
        let mut names: Vec<_> = imports().into_iter().map(|(name, address)| (name, address != 0)).collect();
        assert!(names.iter().all(|(_, present)| *present));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
