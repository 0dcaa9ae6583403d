//! Exchanges thread pointers: the host's for that of a call, and back for host functions.
//!
//! Only for calls that have one of their own; others never come here. By the FSGSBASE instructions alone: a system
//! call would cost far more than most host functions.
//!
//! Contract of `switch`: code comes here with a host function in r11, its arguments in registers and on the stack as
//! for that, and r10 as another register that a call may lose. The return address is taken off the stack and kept, so
//! that the function finds its arguments where they are. Nothing here is entered twice: functions that call code back
//! do not come this way.
#![allow(unsafe_code)] // Assembly.

use std::arch::naked_asm;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use super::arch::{Context, has_fsgsbase, other_thread, resume, whose, whose_not};
use super::stack::{FRAME_BYTES, SLOT_BYTES};
use super::{errno, host};

/// What the assembly here reads and writes, beside the rest of the context.
#[repr(C)]
#[derive(Debug)]
pub(super) struct LentThread {
    /// The thread pointer of the code.
    pointer: AtomicU64,
    /// Where the code begins.
    entry: AtomicU64,
    /// Addresses of the host's error number, and of the code's.
    host_errno: AtomicU64,
    errno: AtomicU64,
    /// Of the host function that runs: the function, where it returns to, and where that goes on.
    function: AtomicU64,
    function_return: AtomicU64,
    code_return: AtomicU64,
    /// The code's, which the host function keeps.
    rbx: AtomicU64,
}

impl LentThread {
    /// Stores what stays the same for all calls of the calling thread.
    pub(super) fn init(&self) {
        self.host_errno.store(errno::location(), Ordering::Relaxed);
    }

    /// The error number's address of the thread that runs calls.
    pub(super) fn host_errno(&self) -> u64 {
        self.host_errno.load(Ordering::Relaxed)
    }

    /// Stores it again, and forgets what an earlier call left.
    pub(super) fn restore(&self, host_errno: u64) {
        self.host_errno.store(host_errno, Ordering::Relaxed);
        self.function_return.store(0, Ordering::Relaxed);
    }

    /// Overwrites what calls have left here.
    pub(super) fn forget(&self) {
        for word in [&self.pointer, &self.entry, &self.errno, &self.function, &self.code_return, &self.rbx] {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Where the code goes on, if `address` is where a host function returns to; else `address`.
    pub(super) fn code_address(&self, address: u64) -> u64 {
        let is_switch = self.function_return.load(Ordering::Relaxed) == address;
        if is_switch { self.code_return.load(Ordering::Relaxed) } else { address }
    }
}

impl Context {
    /// Makes the prepared call run with a thread pointer of its own, and an error number at `errno`.
    pub(super) fn lend_thread(&self, pointer: u64, errno: u64) {
        self.lent.pointer.store(pointer, Ordering::Relaxed);
        self.lent.errno.store(errno, Ordering::Relaxed);
        self.lent.entry.store(self.entry.load(Ordering::Relaxed), Ordering::Relaxed);
        self.entry.store(enter_thread as *const () as u64, Ordering::Relaxed);
    }
}

/// How code that has a thread pointer of its own calls host functions: the address of `switch`, and those of the
/// functions that do not depend on the thread pointer and are called as they are. `None` where code cannot have one.
pub fn thread_switch() -> Option<(u64, Vec<u64>)> {
    has_fsgsbase().then(|| (switch as *const () as u64, host::direct()))
}

/// Between `enter` and the code: r10 and r11 are free, everything else is for the code.
#[unsafe(naked)]
unsafe extern "C" fn enter_thread() {
    naked_asm!(
        "mov r11, rsp", // where `enter` has set it
        "or r11, {slot_mask}",
        "sub r11, {frame_last}",
        "mov r10, [r11 + {pointer}]",
        "wrfsbase r10",
        "mov [r11 + {code_fs_base}], r10",
        "add rsp, 8", // our return address takes the place of `enter`'s
        "mov r10, [r11 + {entry}]",
        "xor r11d, r11d",
        "call r10",
        whose!("rcx"), // from here on as `enter` does
        "mov r10, [rcx + {fs_base}]",
        "wrfsbase r10",
        "mov [rcx + {int_result}], rax",
        "movsd [rcx + {vector_result}], xmm0",
        "jmp {resume}",
        whose_not!("rcx"),
        pointer = const LENT + offset_of!(LentThread, pointer),
        entry = const LENT + offset_of!(LentThread, entry),
        slot_mask = const SLOT_BYTES - 1,
        frame_last = const FRAME_BYTES - 1,
        this = const offset_of!(Context, this),
        fs_base = const offset_of!(Context, fs_base),
        code_fs_base = const offset_of!(Context, code_fs_base),
        has_fsgsbase = const offset_of!(Context, has_fsgsbase),
        other_thread = sym other_thread,
        int_result = const offset_of!(Context, int_result),
        vector_result = const offset_of!(Context, vector_result),
        resume = sym resume,
    )
}

/// Calls the host function in r11. See the module documentation.
#[unsafe(naked)]
unsafe extern "C" fn switch() {
    naked_asm!(
        "rdfsbase r10", // the code's block is in the slot, its stack need not be
        "or r10, {slot_mask}",
        "sub r10, {frame_last}",
        "cmp [r10 + {this}], r10", // faults, or differs, when the thread pointer is elsewhere
        "jne 2f",
        "pop qword ptr [r10 + {code_return}]",
        "mov [r10 + {rbx}], rbx",
        "mov rbx, r10",
        "mov [rbx + {function}], r11",
        "lea r11, [rip + 3f]",
        "mov [rbx + {function_return}], r11", // tells an abort in the function that its caller is not the code
        "mov r11, [rbx + {errno}]",
        "mov r11d, [r11]",
        "mov r10, [rbx + {fs_base}]",
        "wrfsbase r10",
        "mov r10, [rbx + {host_errno}]",
        "mov [r10], r11d",
        "call [rbx + {function}]",
        "3:",
        "mov r10, [rbx + {host_errno}]", // not rax, rdx, xmm0, xmm1 or the x87 stack: results
        "mov r10d, [r10]",
        "mov r11, [rbx + {pointer}]",
        "wrfsbase r11",
        "mov r11, [rbx + {errno}]",
        "mov [r11], r10d",
        "push qword ptr [rbx + {code_return}]",
        "mov rbx, [rbx + {rbx}]",
        "ret",
        "2:",
        "ud2",
        slot_mask = const SLOT_BYTES - 1,
        frame_last = const FRAME_BYTES - 1,
        this = const offset_of!(Context, this),
        fs_base = const offset_of!(Context, fs_base),
        code_return = const LENT + offset_of!(LentThread, code_return),
        rbx = const LENT + offset_of!(LentThread, rbx),
        function = const LENT + offset_of!(LentThread, function),
        function_return = const LENT + offset_of!(LentThread, function_return),
        errno = const LENT + offset_of!(LentThread, errno),
        host_errno = const LENT + offset_of!(LentThread, host_errno),
        pointer = const LENT + offset_of!(LentThread, pointer),
    )
}

const LENT: usize = offset_of!(Context, lent);
