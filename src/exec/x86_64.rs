//! The trampoline of x86-64: into code, and out of it whatever it did.
//!
//! Contract of [`call`]: the caller has filled the [`Context`]; the code at `entry` gets the six integer and eight
//! vector registers and a stack of its own, on which the caller may have put further arguments. When [`call`] comes back, by return or by recovery, all registers and modes
//! that Rust relies on are as before: the callee-saved ones, the stack pointer, DF, AC, NT, the x87 unit (empty, control
//! word), MXCSR, the FS base and PKRU. They are restored by constants or from the context, never saved and compared.
//!
//! ```text
//!  host stack                        call stack (of the slot)
//!  ...caller of `call`...            slot end    | Context | <- found by (stack pointer | slot mask)
//!  return address                    ...         call memory, alternate stack
//!  rbp rbx r12 r13 r14 r15           stack end   | 16 spare bytes
//!  ^ host_sp, also after recovery                | arguments beyond the registers, the last one first
//!                                    code_sp ->  | return address into `enter`
//!                                                v grows down to the guard
//! ```
//!
//! `seq` is odd from before the code's first instruction until everything is restored. All that recovery needs is
//! stored before it turns odd. The signal handler recovers by resuming at `resume` with rcx = context: nothing of
//! the code's registers or stack is needed for that, and it may happen again at any instruction of `resume`.
//!
//! Debuggers and backtraces pass from the call stack to the host's by the directives among the instructions.
#![allow(unsafe_code)] // The trampoline and single instructions that Rust has no function for.

mod away;
mod signal_context;
mod trial;
mod whose;

use std::arch::{asm, naked_asm};
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use super::row_loop::RowState;
use super::stack::{FRAME_BYTES, SLOT_BYTES};
use super::thread_switch::LentThread;
pub(super) use trial::{trial_call, trial_call_range};

pub(super) use away::{Constants, nothing_address, refetch};
pub(super) use signal_context::SignalContext;
pub(super) use whose::{has_fsgsbase, other_thread, whose, whose_not};

/// Integer and pointer arguments that go in registers.
pub(super) const INT_REGISTERS: usize = 6;
/// Floating-point arguments that go in registers.
pub(super) const VECTOR_REGISTERS: usize = 8;
/// What the stack pointer is a multiple of where code is called.
pub(super) const STACK_ALIGN_BYTES: usize = 16;
/// Interrupts on, and the bit that is always one: what a C function may expect.
const RFLAGS_CLEAN: u64 = 0x202;
/// AC: alignment checks. NT: nested task, which makes a later `iret` fault.
const RFLAGS_AC_NT: u64 = 0x4_4000;
/// And DF: the direction of string instructions.
const RFLAGS_AC_NT_DF: u64 = RFLAGS_AC_NT | 0x400;
/// Every exception masked, round to nearest.
static MXCSR_CLEAN: u32 = 0x1f80;
/// Every exception masked, 64-bit mantissa, round to nearest.
static X87_CONTROL_CLEAN: u16 = 0x37f;
/// From the host's stack pointer, where the code runs, to where it was before the call of `enter`: six registers and the
/// return address. As unwinders are told, too.
pub(super) const SAVED_BYTES: u64 = 7 * 8;
pub(super) const ARCH_SET_FS: u64 = 0x1002;
pub(super) const ARCH_GET_FS: u64 = 0x1003;
const SYS_ARCH_PRCTL: u64 = libc::SYS_arch_prctl as u64;

/// What the assembly reads and writes. Must stand at the start of the last [`FRAME_BYTES`] of a slot.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Context {
    /// Its own address, which tells whether a context found by a stack pointer is one.
    pub(super) this: AtomicU64,
    /// Odd while code runs; two more with each call.
    pub(super) seq: AtomicU64,
    /// The host's stack pointer, below its saved registers.
    pub(super) host_sp: AtomicU64,
    /// Where a call's stack begins, below its arguments on the stack.
    code_sp: AtomicU64,
    pub(super) entry: AtomicU64,
    ints: [AtomicU64; INT_REGISTERS],
    vectors: [AtomicU64; VECTOR_REGISTERS],
    /// How many vector registers hold arguments. None: what `vectors` holds is not looked at.
    vectors_used: AtomicU64,
    pub(super) int_result: AtomicU64,
    pub(super) vector_result: AtomicU64,
    pub(super) fs_base: AtomicU64,
    /// The one that the code runs with, and has to return with.
    pub(super) code_fs_base: AtomicU64,
    /// Not zero: code can set the FS base, and it can be asked for.
    pub(super) has_fsgsbase: AtomicU64,
    /// Code and stack segment selectors of this process.
    cs: AtomicU64,
    ss: AtomicU64,
    /// Not zero: the processor has AVX.
    has_avx: AtomicU64,
    /// Not zero: the processor has protection keys and the system uses them.
    has_pkeys: AtomicU64,
    pkru: AtomicU64,
    /// What calls with a thread pointer of their own need; see `thread_switch`.
    pub(super) lent: LentThread,
    /// What a batch needs; see `row_loop`.
    pub(super) rows: RowState,
}

/// Register contents for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    /// rdi, rsi, rdx, rcx, r8, r9.
    pub(super) ints: [u64; INT_REGISTERS],
    /// Low halves of xmm0 to xmm7.
    pub(super) vectors: [u64; VECTOR_REGISTERS],
    /// How many of these hold arguments; the others are zero.
    pub(super) vectors_used: usize,
    /// The stack pointer, a multiple of [`STACK_ALIGN_BYTES`]: below the arguments that stand on the stack already.
    pub(super) sp: u64,
}

impl Registers {
    /// Of a call without arguments on a stack that ends at `stack_end`.
    pub(super) fn none(stack_end: usize) -> Registers {
        let sp = stack_start(stack_end) as u64;
        Registers { ints: [0; INT_REGISTERS], vectors: [0; VECTOR_REGISTERS], vectors_used: 0, sp }
    }
}

/// Where a stack for code that ends at `end` begins for a call without arguments on it.
fn stack_start(end: usize) -> usize {
    end - STACK_ALIGN_BYTES
}

impl Context {
    /// Stores what stays the same for all calls of the calling thread.
    pub(super) fn init(&self) {
        self.this.store(self as *const Context as u64, Ordering::Relaxed);
        self.fs_base.store(fs_base(), Ordering::Relaxed);
        self.has_fsgsbase.store(has_fsgsbase().into(), Ordering::Relaxed);
        self.lent.init();
        let (cs, ss) = selectors();
        self.cs.store(cs, Ordering::Relaxed);
        self.ss.store(ss, Ordering::Relaxed);
        self.has_avx.store(std::is_x86_feature_detected!("avx").into(), Ordering::Relaxed);
        if has_pkeys() {
            self.pkru.store(rdpkru(), Ordering::Relaxed);
            self.has_pkeys.store(1, Ordering::Relaxed);
        }
    }

    /// Stores what the next call needs.
    pub(super) fn prepare(&self, entry: u64, registers: &Registers) {
        self.entry.store(entry, Ordering::Relaxed);
        self.code_sp.store(registers.sp, Ordering::Relaxed);
        for (to, from) in self.ints.iter().zip(registers.ints) {
            to.store(from, Ordering::Relaxed);
        }
        self.vectors_used.store(registers.vectors_used as u64, Ordering::Relaxed);
        if registers.vectors_used > 0 {
            for (to, from) in self.vectors.iter().zip(registers.vectors) {
                to.store(from, Ordering::Relaxed);
            }
        }
    }

    /// Overwrites what calls have left here: arguments and results.
    pub(super) fn forget(&self) {
        let words = self.ints.iter().chain(&self.vectors).chain([&self.int_result, &self.vector_result]);
        words.for_each(|word| word.store(0, Ordering::Relaxed));
        self.lent.forget();
        self.rows.forget();
    }

    /// Runs the prepared call on the calling thread, which is the one that called [`Context::init`], and comes back
    /// when the code returned or was ended by the signal handler.
    pub(super) fn run(&self) {
        // SAFETY: `init` and `prepare` filled the context; the executor's signal set-up makes faults come back here.
        // What the code itself does is the caller's risk, as the module documentation of the room says.
        unsafe { enter(self) }
    }

    /// The integer and the vector result register of the last call that returned.
    pub(super) fn results(&self) -> (u64, u64) {
        (self.int_result.load(Ordering::Relaxed), self.vector_result.load(Ordering::Relaxed))
    }
}

/// Address of the instruction at which an abort traps; then rax has the return address of who called it.
pub(super) fn abort_address() -> u64 {
    abort_trap as *const () as u64
}

/// Gives the thread back its FS base, which code may have changed. For the signal handler: nothing that touches
/// thread-local storage may run before, not even the C library's `syscall`, which writes errno.
pub(super) fn restore_thread_pointer(context: &Context) {
    set_thread_pointer(context.fs_base.load(Ordering::Relaxed));
}

/// For the signal handler too.
pub(super) fn set_thread_pointer(base: u64) {
    arch_prctl(ARCH_SET_FS, base);
}

/// The FS base, whatever it is. For the signal handler too.
pub(super) fn thread_pointer() -> u64 {
    let base = AtomicU64::new(0);
    arch_prctl(ARCH_GET_FS, base.as_ptr() as u64);
    base.load(Ordering::Relaxed)
}

fn arch_prctl(code: u64, value: u64) {
    // SAFETY: the callers pass a base that this thread had, or the address of a word of their own to write.
    unsafe {
        asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => _, in("rdi") code, in("rsi") value,
             lateout("rcx") _, lateout("r11") _, options(nostack))
    }
}

/// Calls `context.entry`. See the module documentation.
#[unsafe(naked)]
unsafe extern "C" fn enter(context: *const Context) {
    naked_asm!(
        ".cfi_startproc",
        // Debuggers take stacks that go the wrong way for broken, but for a signal's: ours lie where the system likes.
        ".cfi_signal_frame",
        "push rbp; .cfi_def_cfa_offset 16; .cfi_offset 6, -16", // what the C ABI lets the caller expect unchanged
        "push rbx; .cfi_def_cfa_offset 24; .cfi_offset 3, -24",
        "push r12; .cfi_def_cfa_offset 32; .cfi_offset 12, -32",
        "push r13; .cfi_def_cfa_offset 40; .cfi_offset 13, -40",
        "push r14; .cfi_def_cfa_offset 48; .cfi_offset 14, -48",
        "push r15; .cfi_def_cfa_offset {saved}; .cfi_offset 15, -56",
        "mov [rdi + {host_sp}], rsp", // the one thing that recovery needs from here
        "mov r11, rdi",               // the context, out of the way of the arguments
        "mov rsp, [r11 + {code_sp}]", // 16-byte aligned at the call, as the ABI asks
        // From here on the frame is found as below: the host's stack pointer by the context, that by the slot's mask.
        // DW_CFA_def_cfa_expression of 15 bytes: breg7 0; const4u mask; or; const2u back; minus; deref; plus_uconst saved
        ".cfi_escape 0x0f, 15, 0x77, 0, 0x0c, {slot_mask} & 255, ({slot_mask} >> 8) & 255",
        ".cfi_escape ({slot_mask} >> 16) & 255, ({slot_mask} >> 24) & 255, 0x21",
        ".cfi_escape 0x0a, {host_sp_back} & 255, {host_sp_back} >> 8, 0x1c, 0x06, 0x23, {saved}",
        "cmp qword ptr [r11 + {vectors_used}], 0",
        "jne 4f",
        ".irp n, 0, 1, 2, 3, 4, 5, 6, 7\n xorps xmm\\n, xmm\\n\n .endr",
        "3:",
        "mov rdi, [r11 + {ints} + 0]; mov rsi, [r11 + {ints} + 8]",
        "mov rdx, [r11 + {ints} + 16]; mov rcx, [r11 + {ints} + 24]",
        "mov r8, [r11 + {fs_base}]; mov [r11 + {code_fs_base}], r8",
        "mov r8, [r11 + {ints} + 32]; mov r9, [r11 + {ints} + 40]",
        "xor ebp, ebp",                      // ends a chain of frame pointers
        "xor ebx, ebx",                      // whatever the host has in its registers is not for the code
        "xor r12d, r12d; xor r13d, r13d; xor r14d, r14d; xor r15d, r15d",
        "mov eax, [r11 + {vectors_used}]",   // as variadic functions want to know
        "mov r10, [r11 + {entry}]",
        "inc qword ptr [r11 + {seq}]",       // odd: from here on a fault is the code's
        "xor r11d, r11d",                    // the context least of all
        "call r10",
        whose!("rcx"),                       // rsp perhaps not what it was (`ret 64`), but in the slot
        "mov [rcx + {int_result}], rax",
        "movsd [rcx + {vector_result}], xmm0",
        "jmp {resume}",
        "4:",
        ".irp n, 0, 1, 2, 3, 4, 5, 6, 7\n movsd xmm\\n, qword ptr [r11 + {vectors} + 8 * \\n]\n .endr",
        "jmp 3b",
        whose_not!("rcx"),
        ".cfi_endproc",
        saved = const SAVED_BYTES,
        host_sp_back = const FRAME_BYTES - 1 - offset_of!(Context, host_sp),
        host_sp = const offset_of!(Context, host_sp),
        code_sp = const offset_of!(Context, code_sp),
        vectors = const offset_of!(Context, vectors),
        vectors_used = const offset_of!(Context, vectors_used),
        ints = const offset_of!(Context, ints),
        seq = const offset_of!(Context, seq),
        entry = const offset_of!(Context, entry),
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

/// The way back of [`enter`]; rcx = context, the FS base is the host's, everything else unknown. Each step can be done twice.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn resume() {
    naked_asm!(
        ".cfi_startproc; .cfi_signal_frame",
        // DW_CFA_def_cfa_expression of 5 bytes: breg2 host_sp; deref; plus_uconst saved. rcx has the number 2.
        ".cfi_escape 0x0f, 5, 0x72, {host_sp}, 0x06, 0x23, {saved}",
        ".cfi_offset 6, -16; .cfi_offset 3, -24; .cfi_offset 12, -32; .cfi_offset 13, -40",
        ".cfi_offset 14, -48; .cfi_offset 15, -56",
        "mov rsp, [rcx + {host_sp}]; .cfi_def_cfa 7, {saved}",
        "pushfq; .cfi_adjust_cfa_offset 8", // into the unused part of the host's stack
        "pop rdx; .cfi_adjust_cfa_offset -8",
        "test edx, {ac_nt_df}", // one look at all is faster than to clear DF each time
        "jne 4f",
        "3:",
        "emms", // empties the x87 stack; an unmasked pending exception faults here and is recovered
        "ldmxcsr [rip + {mxcsr}]",
        "fldcw [rip + {x87_control}]",
        "cmp qword ptr [rcx + {has_avx}], 0",
        "je 5f",
        "vzeroupper", // dirty upper halves would slow the host's SSE instructions
        "5:",
        "cmp qword ptr [rcx + {has_pkeys}], 0",
        "jne 8f",
        "9:",
        "inc qword ptr [rcx + {seq}]", // even: the code is over, a fault is ours
        ".cfi_remember_state",
        "pop r15; .cfi_def_cfa_offset 48; .cfi_restore 15; pop r14; .cfi_def_cfa_offset 40; .cfi_restore 14",
        "pop r13; .cfi_def_cfa_offset 32; .cfi_restore 13; pop r12; .cfi_def_cfa_offset 24; .cfi_restore 12",
        "pop rbx; .cfi_def_cfa_offset 16; .cfi_restore 3; pop rbp; .cfi_def_cfa_offset 8; .cfi_restore 6",
        "ret; .cfi_restore_state",
        "4:",
        "push {clean}; .cfi_adjust_cfa_offset 8; popfq; .cfi_adjust_cfa_offset -8",
        "jmp 3b",
        "8:",
        "mov r8, rcx",
        "xor ecx, ecx", // rdpkru wants ecx = 0 and gives edx = 0
        "rdpkru",
        "mov rcx, r8",
        "cmp eax, [rcx + {pkru}]",
        "je 9b",
        "mov eax, [rcx + {pkru}]",
        "xor ecx, ecx", // wrpkru wants ecx = edx = 0
        "wrpkru",
        "mov rcx, r8",
        "jmp 9b",
        ".cfi_endproc",
        saved = const SAVED_BYTES, host_sp = const offset_of!(Context, host_sp),
        ac_nt_df = const RFLAGS_AC_NT_DF,
        mxcsr = sym MXCSR_CLEAN, x87_control = sym X87_CONTROL_CLEAN,
        has_avx = const offset_of!(Context, has_avx),
        has_pkeys = const offset_of!(Context, has_pkeys), seq = const offset_of!(Context, seq),
        clean = const RFLAGS_CLEAN,
        pkru = const offset_of!(Context, pkru),
    )
}

/// [`resume`] where code may have taken memory away by PKRU: eax = the host's PKRU, ecx = edx = 0, r8 = context.
#[unsafe(naked)]
unsafe extern "C" fn resume_after_wrpkru() {
    naked_asm!("wrpkru", "mov rcx, r8", "jmp {resume}", resume = sym resume)
}

/// What the kernel calls for a signal: it has cleared DF and TF, but not AC.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn signal_entry() {
    naked_asm!(
        "pushfq",
        "and qword ptr [rsp], {no_ac_nt}", // the handler's own accesses need not be aligned
        "popfq",
        "jmp {handler}", // with the kernel's arguments and return address
        no_ac_nt = const !(RFLAGS_AC_NT as i64),
        handler = sym super::signals::on_signal,
    )
}

/// Ends the call as an abort; rax = the address that the caller of the aborting function would return to.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn abort_trap() -> ! {
    naked_asm!("ud2")
}

/// Base of the thread's control block, from its own first word.
fn fs_base() -> u64 {
    let base: u64;
    // SAFETY: the x86-64 ABI puts the block's own address at %fs:0 of every thread of a C library.
    unsafe { asm!("mov {}, fs:[0]", out(reg) base, options(nostack, readonly, preserves_flags)) };
    base
}

fn selectors() -> (u64, u64) {
    let (cs, ss): (u64, u64);
    // SAFETY: reads two registers.
    unsafe { asm!("mov {0:e}, cs", "mov {1:e}, ss", out(reg) cs, out(reg) ss, options(nomem, nostack)) };
    (cs & 0xffff, ss & 0xffff)
}

/// CPUID leaf 7: OSPKE, bit 4 of ecx.
fn has_pkeys() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ecx & (1 << 4) != 0
}

fn rdpkru() -> u64 {
    let pkru: u32;
    // SAFETY: only called where `has_pkeys`; it reads a register.
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") pkru, out("edx") _, options(nomem, nostack)) };
    pkru.into()
}
