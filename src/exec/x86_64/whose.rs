//! Whose context the stack pointer leads to when code has returned.
//!
//! Stacks lie side by side, so code that adds to its stack pointer and returns leads to the context of another executor. To
//! go on with that one's stack would be the end of both, so the thread pointer has to be this context's as well. Not by
//! what is stored at it, which code could have copied. Where it is not, only the signal handler can tell whose
//! thread it is, by its own stack: code may also have changed the thread pointer and returned properly.
#![allow(unsafe_code)] // Assembly.

use std::arch::naked_asm;

/// Bit of `AT_HWCAP2`: the kernel lets programs use the FSGSBASE instructions (asm/hwcap2.h).
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Whether code can set its thread pointer by an instruction.
pub(in crate::exec) fn has_fsgsbase() -> bool {
    // SAFETY: reads what the kernel told this process at its start.
    let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    capabilities & HWCAP2_FSGSBASE != 0
}

/// Assembly that finds the context by the stack pointer and puts its address in this register, behind which
/// [`whose_not`] stands. Uses rcx, rdx and r8. Labels: 2, 23 to 26.
macro_rules! whose {
    ($context:literal) => {
        concat!(
            "mov ",
            $context,
            ", rsp\n",
            "or ",
            $context,
            ", {slot_mask}\n", // last byte of the slot
            "sub ",
            $context,
            ", {frame_last}\n", // the context
            "cmp [",
            $context,
            " + {this}], ",
            $context,
            "\n", // faults, or differs, when the stack pointer is elsewhere
            "jne 2f\n",
            "cmp qword ptr [",
            $context,
            " + {has_fsgsbase}], 0\n",
            "je 23f\n",
            "rdfsbase rdx\n",
            "24: cmp rdx, [",
            $context,
            " + {code_fs_base}]\n",
            "jne 25f\n",
            "26:",
        )
    };
}

/// What [`whose`] with the same register goes to if the context is not this thread's.
macro_rules! whose_not {
    ($context:literal) => {
        concat!(
            "2: ud2\n",
            "23: mov rdx, fs:[0]; jmp 24b\n",
            "25: mov rcx, ",
            $context,
            "; lea r8, [rip + 26b]; jmp {other_thread}",
        )
    };
}
pub(in crate::exec) use {whose, whose_not};

/// Traps; rcx = a context, r8 = where to go on if that is this thread's after all. The thread pointer is then what the
/// context says.
#[unsafe(naked)]
pub(in crate::exec) unsafe extern "C" fn other_thread() {
    naked_asm!("ud2", "jmp r8")
}

/// Bytes of its first instruction.
pub(in crate::exec) const OTHER_THREAD_BYTES: u64 = 2;

/// Whether it is the trap of [`other_thread`].
pub(in crate::exec) fn is_other_thread(pc: u64) -> bool {
    pc == other_thread as *const () as u64
}
