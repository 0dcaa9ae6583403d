//! What calls that run in another process need of the trampoline.
#![allow(unsafe_code)] // Assembly.

use std::arch::{asm, naked_asm};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Context;

/// What of a context [`Context::init`] stores, kept where code cannot write it.
#[derive(Clone, Copy, Debug)]
pub(in crate::exec) struct Constants {
    fs_base: u64,
    host_errno: u64,
    cs: u64,
    ss: u64,
    has_avx: u64,
    has_fsgsbase: u64,
    has_pkeys: u64,
    pkru: u64,
}

impl Context {
    /// What [`Context::init`] stored.
    pub(in crate::exec) fn constants(&self) -> Constants {
        let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
        Constants {
            fs_base: word(&self.fs_base),
            host_errno: self.lent.host_errno(),
            cs: word(&self.cs),
            ss: word(&self.ss),
            has_avx: word(&self.has_avx),
            has_fsgsbase: word(&self.has_fsgsbase),
            has_pkeys: word(&self.has_pkeys),
            pkru: word(&self.pkru),
        }
    }

    /// Stores that again, in the process that has to run a call.
    pub(in crate::exec) fn restore(&self, constants: &Constants) {
        self.this.store(self as *const Context as u64, Ordering::Relaxed);
        self.fs_base.store(constants.fs_base, Ordering::Relaxed);
        self.lent.restore(constants.host_errno);
        self.cs.store(constants.cs, Ordering::Relaxed);
        self.ss.store(constants.ss, Ordering::Relaxed);
        self.has_avx.store(constants.has_avx, Ordering::Relaxed);
        self.has_fsgsbase.store(constants.has_fsgsbase, Ordering::Relaxed);
        self.has_pkeys.store(constants.has_pkeys, Ordering::Relaxed);
        self.pkru.store(constants.pkru, Ordering::Relaxed);
    }

    /// In the process that prepares calls which another one runs: the even `seq` before the next call.
    pub(in crate::exec) fn clean(&self, seq: u64) {
        self.seq.store(seq, Ordering::Relaxed);
    }
}

/// Drops every instruction that the calling thread's processor has fetched ahead: a return from an interrupt that was
/// none, to the next instruction. As good as CPUID, which hosts of virtual machines intercept.
pub(in crate::exec) fn refetch() {
    // SAFETY: comes back to the next instruction with all registers but the two as before; the stack may be used.
    unsafe {
        asm!(
            "mov {sp}, rsp",
            "mov {word:e}, ss",
            "push {word}",
            "push {sp}",
            "pushfq",
            "mov {word:e}, cs",
            "push {word}",
            "lea {word}, [rip + 2f]",
            "push {word}",
            "iretq",
            "2:",
            sp = out(reg) _,
            word = out(reg) _,
        );
    }
}

/// Address of a function that does nothing.
pub(in crate::exec) fn nothing_address() -> u64 {
    nothing as *const () as u64
}

#[unsafe(naked)]
unsafe extern "C" fn nothing() {
    naked_asm!("ret")
}
