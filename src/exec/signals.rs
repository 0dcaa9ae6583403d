//! The handler of faults, of refused system calls and of the watchdog's signal.
//!
//! It runs on the executor's alternate stack and finds the executor's frame by the address of that stack. What is not
//! the fault of code goes on to the action that was there before. Nothing here locks, allocates, panics or touches
//! thread-local storage before the thread pointer is known to be right.
#![allow(unsafe_code)] // Signal actions, and what the kernel hands to a handler.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{c_int, c_void, sigaction, siginfo_t};
use nix::errno::Errno;

use super::arch::{self, SignalContext};
use super::filter::MARK;
use super::frame::Frame;
use super::rseq;
use super::stack::frame_at;
use super::trap::RawTrap;

/// By which the watchdog stops a call. Its default action is to be ignored, so one that comes late does no harm.
pub(super) const STOP_SIGNAL: c_int = libc::SIGURG;
/// What code can raise by an instruction.
const FAULT_SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
const SIGNALS: [c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS, STOP_SIGNAL];
/// `si_code` of a SIGSYS that a filter of system calls sent. The libc crate has no name for it (asm-generic/siginfo.h).
const SYS_SECCOMP: c_int = 1;
/// The kernel disarms the alternate stack while a handler runs, so a stack pointer into it is as good as any other.
/// The libc crate has no name for it (linux/signal.h).
const SS_AUTODISARM: c_int = 1 << 31;
/// Recoveries of one call after which the way back itself must be broken: then the process ends instead of looping.
const RECOVERIES_MAX: u32 = 8;

/// The kernel's action of a signal (asm/signal.h).
#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// SIG_DFL. The only action that threads under the filter of system calls may set, by its address.
static DEFAULT_ACTION: KernelAction = KernelAction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };

/// Where [`DEFAULT_ACTION`] is.
pub(super) fn default_action() -> u64 {
    &raw const DEFAULT_ACTION as u64
}

/// The actions that were there before, in the order of [`SIGNALS`].
static PREVIOUS: OnceLock<[sigaction; SIGNALS.len()]> = OnceLock::new();

/// The kernel's siginfo of a SIGSYS (asm-generic/siginfo.h).
#[repr(C)]
struct SystemCallInfo {
    signal: c_int,
    error: c_int,
    code: c_int,
    padding: c_int,
    address: u64,
    number: c_int,
    arch: u32,
}

/// Installs the handler for the process, once. It stays.
pub(super) fn install() -> Result<(), Errno> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // All earlier actions are known before the first of ours can run.
    let mut previous = [empty_action(); SIGNALS.len()];
    for (signal, action) in SIGNALS.iter().zip(&mut previous) {
        exchange_action(*signal, None, Some(action))?;
    }
    PREVIOUS.get_or_init(|| previous);
    for signal in SIGNALS {
        exchange_action(signal, Some(&our_action()), None)?;
    }
    *installed = true;
    Ok(())
}

/// The signal set-up of a thread that runs code. Dropped on that thread, which then has no alternate stack.
#[derive(Debug)]
pub(super) struct ThreadSignals {
    /// Signals that the thread blocks now, as the kernel has sets of them.
    pub(super) blocked: u64,
}

impl ThreadSignals {
    /// Replaces the calling thread's alternate stack, and blocks all signals that are not for executors: a handler
    /// of somebody else must not run on a stack, or with a thread pointer, that code has made.
    pub(super) fn enter(alt_stack: Range<usize>) -> Result<ThreadSignals, Errno> {
        rseq::leave();
        let ours =
            libc::stack_t { ss_sp: alt_stack.start as *mut c_void, ss_flags: SS_AUTODISARM, ss_size: alt_stack.len() };
        // SAFETY: it is valid; the stack belongs to the slot, which outlives this value.
        Errno::result(unsafe { libc::sigaltstack(&raw const ours, ptr::null_mut()) })?;
        let mut entered = ThreadSignals { blocked: 0 };
        let mut mask = nix::sys::signal::SigSet::all();
        for signal in SIGNALS {
            mask.remove(nix::sys::signal::Signal::try_from(signal)?);
        }
        mask.thread_set_mask()?;
        entered.blocked = blocked()?;
        Ok(entered)
    }
}

impl Drop for ThreadSignals {
    fn drop(&mut self) {
        // Not the one before: Rust's library unmaps its own at the thread's end, before what is local to the thread is
        // dropped, as this is for a lent one. Addresses there may be somebody else's by now.
        let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: it is valid, and names no memory.
        unsafe { libc::sigaltstack(&raw const none, ptr::null_mut()) };
    }
}

/// Asked of the kernel: the C library's sets leave out signals of its own, and have another size.
fn blocked() -> Result<u64, Errno> {
    let (how, mut mask) = (libc::SIG_BLOCK, 0_u64);
    let (none, bytes) = (ptr::null::<u64>(), size_of::<u64>());
    // SAFETY: changes nothing, and writes as many bytes as it is told to a local.
    let asked = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, none, &raw mut mask, bytes) };
    Errno::result(asked).map(|_| mask)
}

/// What [`arch::signal_entry`] goes on to.
pub(super) extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let marker = 0_u8;
    let mut filtered = false;
    if let Some(frame) = frame_at(&raw const marker as usize) {
        // SAFETY: this runs on the alternate stack of that frame's slot, so the slot is in use and mapped.
        let frame = unsafe { frame.as_ref() };
        frame.count_signal();
        if ends_call(frame, signal, info, context) {
            return;
        }
        if is_code_running(frame) {
            return chain_for_host(frame, signal, info, context);
        }
        if refuses_call(signal, info, context) {
            frame.count_refused();
            return;
        }
        filtered = frame.filtered.load(Ordering::Relaxed);
    } else if refuses_call(signal, info, context) {
        return;
    }
    chain(filtered, signal, info, context);
}

/// Whether this was the code's, whose call is over then.
fn ends_call(frame: &Frame, signal: c_int, info: *mut siginfo_t, context: *mut c_void) -> bool {
    // SAFETY: the kernel's siginfo, valid while the handler runs.
    let info = unsafe { &*info };
    // SAFETY: the kernel's context on this stack; nobody else has a reference.
    let context = unsafe { &mut *context.cast::<SignalContext>() };
    is_ours(frame, signal, info) && end_call(frame, signal, info, context)
}

/// Whether our filter kept the daemon itself, not code, from a system call, which is answered as if there were none such.
fn refuses_call(signal: c_int, info: *mut siginfo_t, context: *mut c_void) -> bool {
    // SAFETY: the kernel's siginfo, valid while the handler runs.
    let info = unsafe { &*info };
    if (signal, info.si_code, info.si_errno) != (libc::SIGSYS, SYS_SECCOMP, c_int::from(MARK)) {
        return false;
    }
    // SAFETY: the kernel's context on this stack; nobody else has a reference.
    let context = unsafe { &mut *context.cast::<SignalContext>() };
    context.answer_call(libc::ENOSYS);
    true
}

fn is_code_running(frame: &Frame) -> bool {
    !frame.context.seq.load(Ordering::Relaxed).is_multiple_of(2)
}

/// [`chain`] while code may have a thread pointer of its own, which an earlier handler must not see.
fn chain_for_host(frame: &Frame, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let of_code = arch::thread_pointer();
    arch::restore_thread_pointer(&frame.context);
    chain(frame.filtered.load(Ordering::Relaxed), signal, info, context);
    arch::set_thread_pointer(of_code);
}

/// Code runs, and either the kernel says that it faulted or the watchdog wants this very call to end.
fn is_ours(frame: &Frame, signal: c_int, info: &siginfo_t) -> bool {
    let seq = frame.context.seq.load(Ordering::Relaxed);
    if !is_code_running(frame) {
        return false;
    }
    if signal == STOP_SIGNAL { frame.kill.load(Ordering::Acquire) == seq } else { info.si_code > 0 }
}

fn end_call(frame: &Frame, signal: c_int, info: &siginfo_t, context: &mut SignalContext) -> bool {
    arch::restore_thread_pointer(&frame.context);
    if signal == libc::SIGILL && context.goes_on(&frame.context) {
        arch::set_thread_pointer(frame.context.code_fs_base.load(Ordering::Relaxed));
        return true;
    }
    let address = if FAULT_SIGNALS.contains(&signal) {
        // SAFETY: the kernel fills the address for the signals of faults.
        unsafe { info.si_addr() as u64 }
    } else {
        0
    };
    let (pc, abort_return) = (context.pc(), frame.context.lent.code_address(context.abort_return()));
    let mut raw = RawTrap { signal, code: info.si_code, pc, address, abort_return, number: 0, arch: 0 };
    if signal == libc::SIGSYS {
        // SAFETY: what the kernel fills for this signal is laid out so; it is valid while the handler runs.
        let call = unsafe { &*ptr::from_ref(info).cast::<SystemCallInfo>() };
        (raw.address, raw.number, raw.arch) = (call.address, call.number, call.arch);
    }
    let recoveries = frame.record_trap(&raw);
    if recoveries > RECOVERIES_MAX {
        return false;
    }
    // Code may have changed the mask too, by the C library's instructions.
    context.recover(&frame.context, frame.blocked_signals.load(Ordering::Relaxed));
    true
}

/// Does what would have happened without us. But for handlers on a filtered thread: what they do there, such as to set a
/// signal's action or to open a file, would be refused, and the process end by that instead of by this signal.
fn chain(filtered: bool, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let position = SIGNALS.iter().position(|ours| *ours == signal);
    let Some(previous) = position.and_then(|at| PREVIOUS.get().map(|actions| &actions[at])) else { return };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN if signal == STOP_SIGNAL => {}
        // Sent by somebody, and ignored before. A fault cannot be ignored.
        libc::SIG_IGN if sent(info) => {}
        libc::SIG_DFL | libc::SIG_IGN => end_process(signal, info),
        _ if filtered => end_process(signal, info),
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: SA_SIGINFO says that the address is a handler with three arguments.
            let handler =
                unsafe { std::mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO the address is a handler with one argument.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
            handler(signal);
        }
    }
}

/// Lets the default action happen: at the instruction that faulted again, or else by sending the signal again.
fn end_process(signal: c_int, info: *mut siginfo_t) {
    let (none, mask_bytes) = (ptr::null_mut::<KernelAction>(), size_of::<u64>());
    // SAFETY: the kernel reads an action that is valid for ever. Errors cannot be answered here.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const DEFAULT_ACTION, none, mask_bytes) };
    if sent(info) || matches!(signal, libc::SIGTRAP | libc::SIGSYS) {
        // SAFETY: `raise` may be called from a handler; the signal is blocked until this handler returns.
        unsafe { libc::raise(signal) };
    }
}

fn sent(info: *mut siginfo_t) -> bool {
    // SAFETY: the kernel's siginfo, valid while the handler runs.
    unsafe { (*info).si_code <= 0 }
}

/// The default action.
fn empty_action() -> sigaction {
    // SAFETY: a plain C struct in which zero is SIG_DFL, no flags and an empty mask.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn our_action() -> sigaction {
    let mut action = empty_action();
    action.sa_sigaction = arch::signal_entry as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: fills a set that this function owns.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    action
}

fn exchange_action(signal: c_int, new: Option<&sigaction>, old: Option<&mut sigaction>) -> Result<(), Errno> {
    let new = new.map_or(ptr::null(), ptr::from_ref);
    let old = old.map_or(ptr::null_mut(), ptr::from_mut);
    // SAFETY: each pointer is null or from a reference; a new action is ours or the default.
    Errno::result(unsafe { libc::sigaction(signal, new, old) }).map(drop)
}
