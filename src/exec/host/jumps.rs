//! `setjmp` and `longjmp`.
//!
//! Not the C library's: that one keeps a mask of signals in memory of the caller, and sets it from there, which would
//! let code block the signal that ends it. This one keeps the registers of the ABI and no mask, in the first 64 bytes
//! of a `jmp_buf`. A jump to nowhere is a jump that code could make itself.
#![allow(unsafe_code)] // Assembly.

use std::arch::naked_asm;

use super::Entry;

pub(super) const OWN: &[(&str, Entry)] = &[
    ("setjmp", setjmp),
    ("_setjmp", setjmp),
    ("__sigsetjmp", setjmp),
    ("longjmp", longjmp),
    ("_longjmp", longjmp),
    ("siglongjmp", longjmp),
    ("__longjmp_chk", longjmp),
];

/// `(buffer)`: zero, and later what [`longjmp`] says.
#[unsafe(naked)]
unsafe extern "C" fn setjmp() {
    naked_asm!(
        "mov [rdi], rbx",
        "mov [rdi + 8], rbp",
        "mov [rdi + 16], r12",
        "mov [rdi + 24], r13",
        "mov [rdi + 32], r14",
        "mov [rdi + 40], r15",
        "lea rdx, [rsp + 8]", // the stack as it is after the return
        "mov [rdi + 48], rdx",
        "mov rdx, [rsp]",
        "mov [rdi + 56], rdx",
        "xor eax, eax",
        "ret",
    )
}

/// `(buffer, value)`: returns `value` once more from the [`setjmp`], or 1 if it is zero.
#[unsafe(naked)]
unsafe extern "C" fn longjmp() {
    naked_asm!(
        "xor eax, eax",
        "cmp esi, 1", // carry only for zero
        "adc eax, esi",
        "mov rbx, [rdi]",
        "mov rbp, [rdi + 8]",
        "mov r12, [rdi + 16]",
        "mov r13, [rdi + 24]",
        "mov r14, [rdi + 32]",
        "mov r15, [rdi + 40]",
        "mov rsp, [rdi + 48]",
        "jmp [rdi + 56]",
    )
}
