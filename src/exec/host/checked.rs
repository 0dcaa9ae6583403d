//! Ways to end a call on purpose, and the copies that compilers put in for `_FORTIFY_SOURCE`.
//!
//! A copy that does not fit ends the call before a byte of it is written. Lengths are found with the C library's own
//! functions, from frames that own nothing.
#![allow(unsafe_code)] // Functions with the C ABI, in part assembly.

use std::arch::naked_asm;

use libc::{c_char, c_void, memcpy, memmove, mempcpy, memset, stpncpy, strncpy};

use super::{Entry, abort, abort_from};

/// Those that only end the call.
pub(super) const ENDS: &[(&str, Entry)] =
    &[("abort", abort), ("__assert_fail", abort), ("__chk_fail", abort), ("__stack_chk_fail", abort)];

pub(super) const OWN: &[(&str, Entry)] = &[
    ("__memcpy_chk", memcpy_chk),
    ("__memmove_chk", memmove_chk),
    ("__mempcpy_chk", mempcpy_chk),
    ("__memset_chk", memset_chk),
    ("__stpcpy_chk", stpcpy_chk),
    ("__stpncpy_chk", stpncpy_chk),
    ("__strcat_chk", strcat_chk),
    ("__strcpy_chk", strcpy_chk),
    ("__strncat_chk", strncat_chk),
    ("__strncpy_chk", strncpy_chk),
];

/// `(to, from, len, to_len)`, as for all with a length: an abort if `len` is more than `to_len`.
macro_rules! bounded {
    ($($name:ident => $target:ident),* $(,)?) => {
        $(
            #[unsafe(naked)]
            unsafe extern "C" fn $name() {
                naked_asm!("cmp rcx, rdx", "jb {abort}", "cld", "jmp {to}@PLT", abort = sym abort, to = sym $target)
            }
        )*
    };
}

bounded! {
    memcpy_chk => memcpy, memmove_chk => memmove, mempcpy_chk => mempcpy, memset_chk => memset,
    stpncpy_chk => stpncpy, strncpy_chk => strncpy,
}

/// `(to, from, to_len)`. Like the three after it, it hands on its stack pointer, which tells who called.
#[unsafe(naked)]
unsafe extern "C" fn stpcpy_chk() {
    naked_asm!("cld", "mov rcx, rsp", "jmp {on}", on = sym on_stpcpy)
}

#[unsafe(naked)]
unsafe extern "C" fn strcpy_chk() {
    naked_asm!("cld", "mov rcx, rsp", "jmp {on}", on = sym on_strcpy)
}

#[unsafe(naked)]
unsafe extern "C" fn strcat_chk() {
    naked_asm!("cld", "mov rcx, rsp", "jmp {on}", on = sym on_strcat)
}

/// `(to, from, len, to_len)`
#[unsafe(naked)]
unsafe extern "C" fn strncat_chk() {
    naked_asm!("cld", "mov r8, rsp", "jmp {on}", on = sym on_strncat)
}

extern "C" fn on_stpcpy(to: usize, from: usize, to_len: usize, sp: usize) -> usize {
    copy_text(to, from, length(from, usize::MAX), to_len, sp)
}

extern "C" fn on_strcpy(to: usize, from: usize, to_len: usize, sp: usize) -> usize {
    on_stpcpy(to, from, to_len, sp);
    to
}

extern "C" fn on_strcat(to: usize, from: usize, to_len: usize, sp: usize) -> usize {
    on_strncat(to, from, usize::MAX, to_len, sp)
}

extern "C" fn on_strncat(to: usize, from: usize, len: usize, to_len: usize, sp: usize) -> usize {
    let held = length(to, to_len);
    // Never less than zero; without room for the end of what is there, there is none for anything.
    copy_text(to.wrapping_add(held), from, length(from, len), to_len.wrapping_sub(held), sp);
    to
}

/// Copies `len` bytes and ends them with a zero, or ends the call if that is more than `room` bytes; the address of
/// the zero. Nothing here is checked arithmetic, which would panic, or a Rust access, which debug builds check.
pub(super) fn copy_text(to: usize, from: usize, len: usize, room: usize, sp: usize) -> usize {
    if len >= room {
        // SAFETY: does not come back: it faults, and the handler ends the call. No frame here owns anything.
        unsafe { abort_from(sp) }
    }
    let end = to.wrapping_add(len);
    // SAFETY: the pointers are the code's: if they are bad this faults, and the handler ends the call.
    unsafe { memcpy(to as *mut c_void, from as *const c_void, len) };
    // SAFETY: as above.
    unsafe { memset(end as *mut c_void, 0, 1) };
    end
}

/// Bytes of the string at `text` before its end, at most `max`.
pub(super) fn length(text: usize, max: usize) -> usize {
    // SAFETY: the pointer is the code's: if it is bad this faults, and the handler ends the call.
    unsafe { libc::strnlen(text as *const c_char, max) }
}
