//! One system call at a known place, for the trial of the filter.
#![allow(unsafe_code)] // An instruction that Rust has no function for.

use std::arch::naked_asm;
use std::ops::Range;

/// A system call that is allowed, made by an instruction of which it is known where it is; answers what the kernel does.
pub(in crate::exec) fn trial_call() -> i64 {
    // SAFETY: the function of this signature below, which has no preconditions and no effects.
    unsafe { trial_get_thread_id() }
}

/// Where that instruction is: the addresses of all of the function.
pub(in crate::exec) fn trial_call_range() -> Range<u64> {
    let start = trial_get_thread_id as *const () as u64;
    start..start + TRIAL_BYTES
}

/// Bytes of the three instructions below: 5, 2 and 1.
const TRIAL_BYTES: u64 = 8;

#[unsafe(naked)]
unsafe extern "C" fn trial_get_thread_id() -> i64 {
    naked_asm!("mov eax, {number}", "syscall", "ret", number = const libc::SYS_gettid)
}
