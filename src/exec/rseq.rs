//! Restartable sequences, which threads that run code must not have.
//!
//! The C library registers some memory of each thread, where the kernel writes which processor it runs on, and reads whether
//! a sequence is to be restarted, whenever it was preempted or gets a signal. If it cannot, it ends the process. Code
//! that takes memory away by the protection keys would bring that about, and so would code that writes there.
#![allow(unsafe_code)] // Asks the C library and the kernel.

use libc::c_int;

use super::arch;

/// What the registration is signed with (sys/rseq.h).
const SIGNATURE: u32 = 0x5305_3053;
/// Sizes with which C libraries register: they grow with what kernels tell there.
const AREA_BYTES: [u32; 3] = [32, 64, 128];
const UNREGISTER: c_int = 1;

/// Tells the kernel to forget those of the calling thread, for good. Where there are none, or another C library, there is
/// nothing to do; that library asks the kernel for the processor's number from now on.
pub(super) fn leave() {
    // SAFETY: looks a name up.
    let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) };
    if offset.is_null() {
        return;
    }
    // SAFETY: the C library's constant of this name and type.
    let offset = unsafe { *offset.cast::<isize>() };
    let area = (arch::thread_pointer() as usize).wrapping_add_signed(offset);
    // SAFETY: takes what was given away. An error means that it is registered with another size, or not at all.
    let leaves = |bytes: &u32| unsafe { libc::syscall(libc::SYS_rseq, area, *bytes, UNREGISTER, SIGNATURE) } == 0;
    AREA_BYTES.iter().any(leaves);
}
