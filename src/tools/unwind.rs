//! Unwind tables told to the C compiler's runtime library, whose unwinder Rust's backtraces use.
//!
//! Before GCC 13 that library keeps what it is told in a list, which is searched to take something out. So entries are told
//! in batches there: all that start in one window of addresses. There are as many batches as windows in use, however
//! many entries. While a batch changes, for some microseconds, backtraces end at its code. From GCC 13 on the library has a
//! tree of address ranges, and reads it without a lock: there each entry is told by itself, as it stays while anybody runs
//! it, and batches, which it would take for a single table when they are taken back, are not used.
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

type RegisterOne = unsafe extern "C" fn(*const c_void, *mut c_void);

/// The functions of the library.
#[derive(Clone, Copy)]
struct Library {
    register: Register,
    register_one: RegisterOne,
    deregister: Deregister,
    /// It keeps a tree.
    has_tree: bool,
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
pub(super) enum Registered {
    /// With others of its window.
    InBatch { window: u64, table: u64 },
    /// By itself.
    #[expect(dead_code, reason = "held for its drop")]
    Alone(Alone),
}

impl Registered {
    /// Tells of the table at `table`, of code at `code`. The caller keeps both where they are, and as they are.
    pub(super) fn new(code: u64, table: u64) -> Option<Self> {
        let library = library()?;
        if library.has_tree {
            return Some(Self::Alone(Alone::new(library, table)));
        }
        let window = code >> WINDOW_LOG2;
        let mut batches = batches();
        batches.entry(window).or_default().change(library, |tables| tables.push(table));
        Some(Self::InBatch { window, table })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let (Some(library), &mut Self::InBatch { window, table: own }) = (library(), self) else { return };
        let mut batches = batches();
        let Some(batch) = batches.get_mut(&window) else { return };
        batch.change(library, |tables| tables.retain(|&table| table != own));
        if batch.tables.is_empty() {
            batches.remove(&window);
        }
        let windows = batches.len();
        if batches.capacity() > 4 * windows {
            batches.shrink_to(2 * windows);
        }
    }
}

/// What the library writes.
type Record = [usize; RECORD_WORDS];

/// A table that the library is told of by itself.
pub(super) struct Alone {
    library: Library,
    table: u64,
    /// The library's, until it is told otherwise.
    _record: Box<Record>,
}

impl Alone {
    fn new(library: Library, table: u64) -> Self {
        let mut record = Box::new([0; RECORD_WORDS]);
        // SAFETY: a table with a zero at its end, which lies in an entry that lives until it is taken back in `drop`; the
        // record stays as long.
        unsafe { (library.register_one)(begin(table), record.as_mut_ptr().cast()) };
        Self { library, table, _record: record }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // SAFETY: the library was told of this table in `new`, and not otherwise since.
        unsafe { (self.library.deregister)(begin(self.table)) };
    }
}

fn begin(table: u64) -> *const c_void {
    std::ptr::with_exposed_provenance(table as usize)
}

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
        let register_one = find(c"__register_frame_info")?;
        let deregister = find(c"__deregister_frame_info")?;
        // Came with the tree, in version 13 of the library.
        let has_tree = find(c"__truncsfbf2").is_some();
        // SAFETY: the function of this name has this signature, in all versions (gcc/unwind-dw2-fde.h).
        let register = unsafe { std::mem::transmute::<*mut c_void, Register>(register) };
        // SAFETY: as above.
        let register_one = unsafe { std::mem::transmute::<*mut c_void, RegisterOne>(register_one) };
        // SAFETY: as above.
        let deregister = unsafe { std::mem::transmute::<*mut c_void, Deregister>(deregister) };
        Some(Library { register, register_one, deregister, has_tree })
    })
}

/// Found when it is needed: other runtime libraries have none of these.
fn find(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name ends with a zero.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a function of 16 bytes at this address: a common record, one of the function, and the end.
    fn table(code: u64) -> Vec<u64> {
        let mut bytes =
            vec![20, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x00, 0x0c, 7, 8, 0x90, 1, 0, 0];
        bytes.extend([28, 0, 0, 0, 28, 0, 0, 0]);
        bytes.extend(code.to_le_bytes());
        bytes.extend(16_u64.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend([0; 8]);
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn a_table_is_taken_back_by_itself_and_out_of_a_batch_in_any_order() {
        let Some(library) = library() else { return };
        let code = 0x10_0000_0000;
        let tables: Vec<_> = (0..40).map(|at| table(code + 64 * at)).collect();
        let address = |table: &[u64]| table.as_ptr().expose_provenance() as u64;
        let mut alone: Vec<_> = tables.iter().map(|table| Alone::new(library, address(table))).collect();
        while !alone.is_empty() {
            alone.swap_remove(alone.len() / 2);
        }
        if library.has_tree {
            return;
        }
        let mut told: Vec<_> = tables.iter().map(|table| Registered::new(code, address(table)).unwrap()).collect();
        while !told.is_empty() {
            told.swap_remove(told.len() / 2);
        }
        assert!(!batches().contains_key(&(code >> WINDOW_LOG2)));
    }
}
