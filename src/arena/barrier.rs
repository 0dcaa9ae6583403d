//! The barrier between writing code and running it.
//!
//! A core may have fetched the bytes that an address held before. After [`Barrier::serialise`] every thread of this
//! process has executed a serialising instruction since the caller's writes, so it fetches the new bytes. Matters where
//! an address is reused. (Intel SDM 3A, 9.1.3 "Handling Self- and Cross-Modifying Code".)
#![allow(unsafe_code)] // Writes one page of its own, and changes its protection.

use std::{
    ptr,
    sync::{Mutex, PoisonError},
};

use nix::{errno::Errno, sys::mman::ProtFlags};

use super::{
    MapError,
    geometry::PAGE_BYTES,
    system::{self, membarrier},
};

/// From linux/membarrier.h; Linux 4.16.
const CMD_PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 5;
const CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 6;
/// How often a barrier that the system refuses is tried again: lack of memory or a signal passes.
const ATTEMPTS_MAX: u32 = 1000;

/// Serialises all threads of the process.
pub(super) struct Barrier {
    /// Registered with the kernel. Else, as under a sandbox that refuses the call, the page does its work.
    membarrier: bool,
    /// Address of an inaccessible page. The lock keeps one thread's change from hiding that of another.
    page: Mutex<usize>,
}

impl Barrier {
    pub(super) fn register() -> Result<Self, MapError> {
        let membarrier = membarrier(CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE).is_ok();
        let page = system::reserve(PAGE_BYTES as usize).map_err(|errno| MapError::Barrier { errno })?;
        let barrier = Self { membarrier, page: Mutex::new(page) };
        // Tried once here, so that a system where it cannot work is refused at start.
        barrier.shoot_down().map_err(|errno| MapError::Barrier { errno })?;
        Ok(barrier)
    }

    /// Returns once every other thread is serialised.
    ///
    /// # Aborts
    /// If the system refuses again and again what it granted at start. To go on would be to run stale bytes.
    pub(super) fn serialise(&self) {
        for _ in 0..ATTEMPTS_MAX {
            let done = self.membarrier && membarrier(CMD_PRIVATE_EXPEDITED_SYNC_CORE).is_ok();
            if done || self.shoot_down().is_ok() {
                return;
            }
            std::thread::yield_now();
        }
        std::process::abort();
    }

    /// Whether the kernel does it, or the page.
    pub(super) fn has_membarrier(&self) -> bool {
        self.membarrier
    }

    /// What it is, for people.
    pub(super) fn describe(&self) -> &'static str {
        if self.membarrier { "membarrier" } else { "TLB shootdown instead of membarrier" }
    }

    /// Takes a page away that this thread has just written: the kernel interrupts each core that may hold its
    /// translation, which is each that runs a thread of ours, and returning from an interrupt serialises. The same
    /// substitute as in the .NET runtime. Cores that broadcast invalidations without interrupts are newer than membarrier.
    fn shoot_down(&self) -> Result<(), Errno> {
        // The page has no contents that a panic could have left half done.
        let page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: The page is ours, and nothing but this function uses it.
        unsafe { system::mprotect(*page, PAGE_BYTES as usize, writable) }?;
        let pointer = ptr::with_exposed_provenance_mut::<u8>(*page);
        // SAFETY: Writable since the line before, and locked.
        unsafe { pointer.write_volatile(1) };
        // SAFETY: As above.
        unsafe { system::mprotect(*page, PAGE_BYTES as usize, ProtFlags::PROT_NONE) }
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        let page = *self.page.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: The page is ours, and with `&mut self` nobody uses it.
        let _ = unsafe { system::munmap(page, PAGE_BYTES as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_serialise_work_while_other_threads_run() {
        let mut barrier = Barrier::register().unwrap();
        let registered = barrier.membarrier;
        for membarrier in [registered, false] {
            barrier.membarrier = membarrier;
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..200).for_each(|_| barrier.serialise()));
                }
            });
        }
        assert_eq!(barrier.shoot_down(), Ok(()));
    }
}
