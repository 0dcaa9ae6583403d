//! The error number of the C library in an executor's thread.
//!
//! Host functions set it. Code that has a thread pointer of its own has an `errno` of its own, too: it is lent to the host
//! function and read back, and when the call is over the host's is what it was, however the call ended.
#![allow(unsafe_code)] // A variable of the C library.

unsafe extern "C" {
    safe fn __errno_location() -> *mut i32;
}

/// Where it is in the calling thread, as long as that lives.
pub(super) fn location() -> u64 {
    __errno_location() as u64
}

pub(super) fn get() -> i32 {
    // SAFETY: the C library's pointer to a variable of this thread.
    unsafe { __errno_location().read() }
}

pub(super) fn set(errno: i32) {
    // SAFETY: as above.
    unsafe { __errno_location().write(errno) };
}
