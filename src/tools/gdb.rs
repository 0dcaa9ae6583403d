//! GDB's interface for JIT compilers, which LLDB has too: a list of symbol files in memory.
//!
//! A debugger sets a breakpoint on `__jit_debug_register_code` and reads `__jit_debug_descriptor` there; when it attaches
//! later it walks the list ("JIT Compilation Interface" of its manual). There is one list in a process, whoever uses it.
#![allow(unsafe_code)] // A list that a debugger reads, under names that it knows.

use std::{
    cell::UnsafeCell,
    ptr::{self, NonNull},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::symbol_file;
use crate::{cache::Placed, code::Image};

const NO_ACTION: u32 = 0;
const REGISTER: u32 = 1;
const UNREGISTER: u32 = 2;

/// `struct jit_code_entry`.
#[repr(C)]
struct CodeEntry {
    next: *mut CodeEntry,
    previous: *mut CodeEntry,
    file: *const u8,
    file_bytes: u64,
}

/// `struct jit_descriptor`.
#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut CodeEntry,
    first: *mut CodeEntry,
}

/// The descriptor is written under [`LIST`] only.
#[repr(transparent)]
struct Shared(UnsafeCell<Descriptor>);

// SAFETY: every access is under the lock `LIST`, but for a debugger's, which stops the process for it.
unsafe impl Sync for Shared {}

#[used]
#[unsafe(export_name = "__jit_debug_descriptor")]
static DESCRIPTOR: Shared = Shared(UnsafeCell::new(Descriptor {
    version: 1,
    action: NO_ACTION,
    relevant: ptr::null_mut(),
    first: ptr::null_mut(),
}));

/// A leaf: nothing but the debugger is called under it.
static LIST: Mutex<()> = Mutex::new(());

/// Where a debugger has its breakpoint.
#[inline(never)]
#[unsafe(export_name = "__jit_debug_register_code")]
extern "C" fn register_code() {
    // Keeps calls from being taken for calls of nothing, and what was written before from coming after.
    // SAFETY: no instruction at all; the compiler takes it for one that may read all memory.
    unsafe { std::arch::asm!("", options(nostack)) };
}

/// Bytes of heap that [`Registered::new`] will take for an image.
pub(super) fn heap_bytes(image: &Image) -> u64 {
    /// What an allocator adds to three blocks.
    const ROUNDING_BYTES: usize = 3 * 16;
    let unwind_bytes = image.unwind().map_or(0, |it| it.end - it.start);
    let file = symbol_file::size_bytes(image.functions(), image.sizes().code.size_bytes, unwind_bytes);
    (file + size_of::<CodeEntry>() + size_of::<Registered>() + ROUNDING_BYTES) as u64
}

/// A symbol file that debuggers know of for as long as this lives.
pub(super) struct Registered {
    entry: NonNull<CodeEntry>,
    /// What `entry` points to.
    _file: Box<[u8]>,
}

// SAFETY: the entry is touched under `LIST` only, whatever thread does it.
unsafe impl Send for Registered {}
// SAFETY: nothing can be done with a shared reference.
unsafe impl Sync for Registered {}

impl Registered {
    pub(super) fn new(placed: &Placed<'_>) -> Self {
        let unwind = placed.unwind_range().map(|it| (it.start, placed.read_unwind()));
        let unwind = unwind.as_ref().map(|(address, bytes)| (*address, &**bytes));
        let file = symbol_file::write(placed.functions, placed.code_range(), unwind).into_boxed_slice();
        let entry = Box::new(CodeEntry {
            next: ptr::null_mut(),
            previous: ptr::null_mut(),
            file: file.as_ptr(),
            file_bytes: file.len() as u64,
        });
        let entry = NonNull::from(Box::leak(entry));
        let mut locked = lock();
        link(&mut locked, entry);
        tell(&mut locked, REGISTER, entry.as_ptr());
        Self { entry, _file: file }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut locked = lock();
        unlink(&mut locked, self.entry);
        tell(&mut locked, UNREGISTER, self.entry.as_ptr());
        drop(locked);
        // SAFETY: `new` made it of a box and nobody else has it: it is out of the list, and the debugger was told.
        drop(unsafe { Box::from_raw(self.entry.as_ptr()) });
    }
}

fn lock() -> MutexGuard<'static, ()> {
    // A panic under it is none: only words are written.
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts an entry before all others.
fn link(locked: &mut MutexGuard<'static, ()>, mut entry: NonNull<CodeEntry>) {
    let first = first(locked);
    // SAFETY: it is the caller's own, and `locked` says that nobody else looks at it.
    unsafe { entry.as_mut() }.next = *first;
    if let Some(mut second) = NonNull::new(*first) {
        // SAFETY: what is in the list lives until `unlink`, under the same lock.
        unsafe { second.as_mut() }.previous = entry.as_ptr();
    }
    *first = entry.as_ptr();
}

/// Takes an entry out, wherever it is.
fn unlink(locked: &mut MutexGuard<'static, ()>, entry: NonNull<CodeEntry>) {
    // SAFETY: it is in the list, and `locked` says that nobody changes it.
    let &CodeEntry { next, previous, .. } = unsafe { entry.as_ref() };
    match NonNull::new(previous) {
        Some(mut previous) => {
            // SAFETY: what is in the list lives until its own `unlink`, under the same lock.
            unsafe { previous.as_mut() }.next = next;
        }
        None => *first(locked) = next,
    }
    if let Some(mut next) = NonNull::new(next) {
        // SAFETY: as above.
        unsafe { next.as_mut() }.previous = previous;
    }
}

fn first<'a>(_locked: &'a mut MutexGuard<'static, ()>) -> &'a mut *mut CodeEntry {
    // SAFETY: the lock is held for as long as the reference lives, and its callers have one at a time.
    unsafe { &mut (*DESCRIPTOR.0.get()).first }
}

fn tell(_locked: &mut MutexGuard<'static, ()>, action: u32, entry: *mut CodeEntry) {
    // SAFETY: the lock is held, and no reference to the descriptor lives.
    let descriptor = unsafe { &mut *DESCRIPTOR.0.get() };
    (descriptor.action, descriptor.relevant) = (action, entry);
    register_code();
    (descriptor.action, descriptor.relevant) = (NO_ACTION, ptr::null_mut());
}
