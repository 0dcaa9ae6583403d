//! Unwind tables told to the C compiler's runtime library, whose unwinder Rust's backtraces use.
//!
//! Before GCC 13 that library keeps what it is told in a list, which is searched to take something out, and from then on
//! in a tree of address ranges that must not overlap. So entries are told in batches: all that start in one window of
//! addresses. There are as many batches as windows in use, however many entries, and as entries do not overlap, neither
//! do batches. While a batch changes, for some microseconds, backtraces end at its code.
#![allow(unsafe_code)] // Functions of the runtime library.

use std::{
    collections::HashMap,
    ffi::{CStr, c_void},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use crate::code::Image;

/// Bytes of a window, as a power of two: some hundred entries of usual size, 4096 of the smallest.
const WINDOW_LOG2: u32 = 18;
/// Words of the library's own record of a batch: it has seven, whatever its version.
const RECORD_WORDS: usize = 16;

/// By window. A leaf among our locks; the library's own are taken under it.
static BATCHES: OnceLock<Mutex<HashMap<u64, Batch>>> = OnceLock::new();

type Register = unsafe extern "C" fn(*const *const u8, *mut c_void);
type Deregister = unsafe extern "C" fn(*const c_void) -> *mut c_void;

/// The functions of the library.
#[derive(Clone, Copy)]
struct Library {
    register: Register,
    deregister: Deregister,
}

/// Whether there is a library that can be told.
pub(super) fn is_available() -> bool {
    library().is_some()
}

/// Bytes of heap that [`Registered::new`] will make this process take for an image: for the list of its batch, and for
/// the library's two sorted lists of functions, which are made by the first backtrace.
pub(super) fn heap_bytes(image: &Image) -> u64 {
    /// A batch may be of one entry: its record, its place among all, its list; and what an allocator adds.
    const BATCH_BYTES: usize = size_of::<Batch>() + size_of::<Record>() + 2 * 8 + 2 * 2 * 8 + 6 * 16;
    match image.unwind() {
        Some(_) => (BATCH_BYTES + size_of::<Registered>()) as u64 + 2 * 8 * image.unwind_functions(),
        None => 0,
    }
}

/// A table that the library knows of for as long as this lives.
pub(super) struct Registered {
    window: u64,
    table: u64,
}

impl Registered {
    /// Tells of the table at `table`, of code at `code`. The caller keeps both where they are, and as they are.
    pub(super) fn new(code: u64, table: u64) -> Option<Self> {
        let library = library()?;
        let window = code >> WINDOW_LOG2;
        let mut batches = batches();
        batches.entry(window).or_default().change(library, |tables| tables.push(table));
        Some(Self { window, table })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Some(library) = library() else { return };
        let mut batches = batches();
        let Some(batch) = batches.get_mut(&self.window) else { return };
        batch.change(library, |tables| tables.retain(|&table| table != self.table));
        if batch.tables.is_empty() {
            batches.remove(&self.window);
        }
        let windows = batches.len();
        if batches.capacity() > 4 * windows {
            batches.shrink_to(2 * windows);
        }
    }
}

/// What the library writes.
type Record = [usize; RECORD_WORDS];

/// Tables that the library is told of together.
#[derive(Default)]
struct Batch {
    tables: Vec<u64>,
    /// The same with a zero at the end, as the library was told them. Stays where it is, as long as it is told.
    told: Box<[u64]>,
    record: Box<Record>,
}

impl Batch {
    fn change(&mut self, library: Library, change: impl FnOnce(&mut Vec<u64>)) {
        if !self.told.is_empty() {
            let begin = self.told.as_ptr().cast::<c_void>();
            // SAFETY: `begin` is what the library was told below, and not taken back since.
            unsafe { (library.deregister)(begin) };
        }
        change(&mut self.tables);
        self.tables.shrink_to(2 * self.tables.len());
        self.told =
            if self.tables.is_empty() { Box::default() } else { self.tables.iter().copied().chain([0]).collect() };
        if !self.told.is_empty() {
            *self.record = [0; RECORD_WORDS];
            let (begin, record) = (self.told.as_ptr().cast::<*const u8>(), self.record.as_mut_ptr().cast::<c_void>());
            // SAFETY: a list of addresses of tables with a zero at its end, which lie in entries that live until they
            // are taken out of it; list and record stay until the library is told otherwise, above.
            unsafe { (library.register)(begin, record) };
        }
    }
}

fn batches() -> MutexGuard<'static, HashMap<u64, Batch>> {
    // A panic between the two calls of `change` would leave a batch that nobody is told of: worse cannot come of it.
    BATCHES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn library() -> Option<Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    *LIBRARY.get_or_init(|| {
        let register = find(c"__register_frame_info_table")?;
        let deregister = find(c"__deregister_frame_info")?;
        // SAFETY: the function of this name has this signature, in all versions (gcc/unwind-dw2-fde.h).
        let register = unsafe { std::mem::transmute::<*mut c_void, Register>(register) };
        // SAFETY: as above.
        let deregister = unsafe { std::mem::transmute::<*mut c_void, Deregister>(deregister) };
        Some(Library { register, deregister })
    })
}

/// Found when it is needed: other runtime libraries have none of these.
fn find(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name ends with a zero.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}
