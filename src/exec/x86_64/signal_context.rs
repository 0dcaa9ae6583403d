//! What the kernel hands to a signal handler of the interrupted thread, and how a call is ended there.
#![allow(unsafe_code)] // A pointer of the kernel's.

use std::sync::atomic::Ordering;

use libc::c_int;

use super::whose::{OTHER_THREAD_BYTES, is_other_thread};
use super::{Context, MXCSR_CLEAN, RFLAGS_CLEAN, X87_CONTROL_CLEAN, resume, resume_after_wrpkru};

/// The kernel's `struct ucontext` with its `struct sigcontext` (asm/ucontext.h, asm/sigcontext.h), to what is used.
#[repr(C)]
pub(in crate::exec) struct SignalContext {
    flags: u64,
    link: u64,
    stack: [u64; 3],
    r8_to_r11: [u64; 4],
    r12_to_r15: [u64; 4],
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    eflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    error: u64,
    trap_number: u64,
    old_mask: u64,
    cr2: u64,
    fp_state: *mut FpState,
    reserved: [u64; 8],
    /// Signals that are blocked when the handler has returned.
    mask: u64,
}

/// The start of the FXSAVE area that the kernel's `struct _fpstate` is.
#[repr(C)]
struct FpState {
    control: u16,
    status: u16,
    tags: u16,
    opcode: u16,
    instruction: u64,
    operand: u64,
    mxcsr: u32,
}

impl SignalContext {
    /// Address of the instruction that was interrupted.
    pub(in crate::exec) fn pc(&self) -> u64 {
        self.rip
    }

    /// The register in which [`abort_trap`] has the return address of its caller.
    pub(in crate::exec) fn abort_return(&self) -> u64 {
        self.rax
    }

    /// Makes the system call that was refused answer this error.
    pub(in crate::exec) fn answer_call(&mut self, errno: c_int) {
        self.rax = (-i64::from(errno)) as u64;
    }

    /// If this is the trap of [`other_thread`] and `context` the one that was found, makes the return from the signal handler
    /// go on behind it: the code returned properly.
    pub(in crate::exec) fn goes_on(&mut self, context: &Context) -> bool {
        let is_own = is_other_thread(self.rip) && self.rcx == context as *const Context as u64;
        self.rip += if is_own { OTHER_THREAD_BYTES } else { 0 };
        is_own
    }

    /// Makes the return from the signal handler go to [`resume`], with every mode as Rust expects it, and these signals
    /// blocked.
    pub(in crate::exec) fn recover(&mut self, context: &Context, mask: u64) {
        self.mask = mask;
        let this = context as *const Context as u64;
        self.rsp = context.host_sp.load(Ordering::Relaxed);
        self.eflags = RFLAGS_CLEAN;
        self.cs = context.cs.load(Ordering::Relaxed) as u16;
        self.ss = context.ss.load(Ordering::Relaxed) as u16;
        if context.has_pkeys.load(Ordering::Relaxed) == 0 {
            self.rcx = this;
            self.rip = resume as *const () as u64;
        } else {
            // Under the code's PKRU perhaps no memory can be read: registers carry all that `wrpkru` needs.
            self.rax = context.pkru.load(Ordering::Relaxed);
            self.rcx = 0;
            self.rdx = 0;
            self.r8_to_r11[0] = this;
            self.rip = resume_after_wrpkru as *const () as u64;
        }
        self.clean_fp_state();
    }

    /// A pending unmasked x87 exception would fault again at the first x87 instruction of `resume`.
    fn clean_fp_state(&mut self) {
        // SAFETY: the kernel stored the pointer, to the state that it keeps on the alternate stack, or null.
        let Some(state) = (unsafe { self.fp_state.as_mut() }) else { return };
        state.control = X87_CONTROL_CLEAN;
        state.status = 0;
        state.tags = 0;
        state.mxcsr = MXCSR_CLEAN;
    }
}
