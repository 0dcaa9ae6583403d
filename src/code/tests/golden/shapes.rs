//! rust.o: rustc 1.95 --edition=2021 --crate-type=lib --emit=obj -C panic=abort -C opt-level=2 -C codegen-units=1 -C debuginfo=0
//! then: strip --strip-debug -R .comment -R .note.GNU-stack -R .llvm_addrsig
#![no_std]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

static CALLS: AtomicU64 = AtomicU64::new(41);
static NAMES: [&str; 3] = ["one", "two", "three"];

#[no_mangle]
pub extern "C" fn next() -> u64 {
    CALLS.fetch_add(1, Relaxed) + 1
}

#[no_mangle]
pub extern "C" fn length(which: usize) -> usize {
    NAMES.get(which).map_or(0, |name| name.len())
}

#[no_mangle]
pub extern "C" fn wide(a: u64, b: u64, by: u64) -> u64 {
    ((a as u128 * b as u128) / (by as u128 | 1)) as u64
}
