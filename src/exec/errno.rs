//! The one variable of the thread that code may import.
//!
//! Code of the host's C library, such as that of a static libm, reports errors by `errno`. It gets that of the executor
//! that runs it, which nobody else looks at: the daemon reads its own right after a system call of its own.
#![allow(unsafe_code)] // Reads the thread pointer.

use std::{arch::asm, thread};

unsafe extern "C" {
    safe fn __errno_location() -> *mut i32;
}

/// Names of thread-local variables, each with its distance from the thread pointer in bytes. None if the C library does
/// not keep `errno` at the same distance in each thread.
pub fn thread_locals() -> Vec<(&'static str, i64)> {
    let here = distance();
    // Two at once, so that they are different threads for sure.
    let there = thread::scope(|scope| [scope.spawn(distance), scope.spawn(distance)].map(|it| it.join().ok()));
    if there.iter().all(|it| *it == Some(here)) { vec![("errno", here)] } else { Vec::new() }
}

fn distance() -> i64 {
    let thread_pointer: usize;
    // SAFETY: The ABI of x86-64 has the thread pointer at its own address, where every thread may read it.
    unsafe { asm!("mov {}, fs:0", out(reg) thread_pointer, options(nostack, readonly, preserves_flags)) };
    __errno_location().addr() as i64 - thread_pointer as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_is_as_far_from_the_thread_pointer_in_each_thread() {
        assert_eq!(thread_locals(), [("errno", distance())]);
        assert_ne!(distance(), 0);
    }
}
