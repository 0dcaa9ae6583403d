//! A slot: the memory of one executor.
//!
//! All slots lie in one reservation of inaccessible addresses and have one size, a power of two to which they are
//! aligned. So the frame of a thread is found from its stack pointer by arithmetic alone, in the trampoline, in the
//! signal handler and in a host function, without thread-local storage that code could have moved.
//!
//! ```text
//! low   guard (inaccessible)  | stack | gap | call memory | gap ... gap | thread | gap | alternate stack | frame   high
//! ```
//! Nothing in a slot is executable. Where calls run in worker processes, a slot is memory that the process shares with
//! one worker at a time, which has it at the same addresses.
#![allow(unsafe_code)] // Mapping memory, and references to frames at computed addresses.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect};

use super::frame::Frame;
use super::thread;

/// Nobody can execute the file, as `vm.memfd_noexec` may demand; Linux 6.3.
const MFD_NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(0x8);

/// Most executors of one process. Bounds the reservation to 64 GiB of addresses, which cost nothing.
pub const EXECUTORS_MAX: usize = 256;

/// Addresses of one slot: room for a 64 MiB guard, and far more stack and call memory than a call should have.
pub(super) const SLOT_BYTES: usize = 256 << 20;
/// The frame's page, the last of a slot.
pub(super) const FRAME_BYTES: usize = PAGE_BYTES;
/// The handler's frames and the saved vector state (11 KiB with AMX), with room for an earlier handler to be called.
const ALT_STACK_BYTES: usize = 64 << 10;
pub(super) const PAGE_BYTES: usize = 4096;

/// First slot's address; zero while nothing is reserved. Written once.
static RESERVATION: AtomicUsize = AtomicUsize::new(0);
/// Which slots are taken. Also serialises the reservation.
static TAKEN: Mutex<[bool; EXECUTORS_MAX]> = Mutex::new([false; EXECUTORS_MAX]);

const _: () = assert!(size_of::<Frame>() <= FRAME_BYTES, "a frame fits its page");

/// Why an executor's memory could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Guard, stack and call memory are larger than a slot.
    #[error("guard, stack and call memory of an executor need {needed_bytes} bytes, at most {max_bytes} are possible")]
    TooLarge {
        /// What they need.
        needed_bytes: usize,
        /// What they may need.
        max_bytes: usize,
    },
    /// All slots are taken.
    #[error("all {EXECUTORS_MAX} executors that a process can have are in use")]
    TooMany,
    /// The addresses could not be reserved.
    #[error("reserving {bytes} bytes of addresses: {errno}")]
    Reserve {
        /// How many.
        bytes: usize,
        /// Why.
        errno: Errno,
    },
    /// Memory for worker processes could not be had.
    #[error("making memory that is shared with worker processes: {errno}")]
    Share {
        /// Why.
        errno: Errno,
    },
    /// Memory could not be made accessible.
    #[error("mapping {bytes} bytes of {what}: {errno}")]
    Commit {
        /// What for.
        what: &'static str,
        /// How many.
        bytes: usize,
        /// Why.
        errno: Errno,
    },
}

/// Sizes of a slot's parts in bytes; rounded up to pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotSizes {
    /// The inaccessible area below the stack.
    pub(super) guard_bytes: usize,
    /// The stack that code runs on.
    pub(super) stack_bytes: usize,
    /// The call memory.
    pub(super) memory_bytes: usize,
}

/// Whose the memory of a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// This process's.
    Private,
    /// Its and that of child processes.
    Shared,
}

/// The memory of one executor; given back when dropped, by when its thread has ended.
#[derive(Debug)]
pub(super) struct Slot {
    index: usize,
    backing: Backing,
    base: usize,
    guard_bytes: usize,
    stack_bytes: usize,
    memory_bytes: usize,
}

impl Slot {
    /// Takes a free slot and makes its parts accessible. All of it reads as zeros.
    pub(super) fn claim(sizes: SlotSizes) -> Result<Slot, SlotError> {
        let slot = Self::reserved(sizes, Backing::Private)?;
        slot.parts().into_iter().try_for_each(|(what, part)| commit(what, part))?;
        Ok(slot)
    }

    /// The same; memory that is shared, is so with processes that are forked from now on.
    pub(super) fn claim_backed(sizes: SlotSizes, backing: Backing) -> Result<Slot, SlotError> {
        if backing == Backing::Private {
            return Self::claim(sizes);
        }
        let slot = Self::reserved(sizes, backing)?;
        let file = shared_file(SLOT_BYTES).map_err(|errno| SlotError::Share { errno })?;
        for (what, part) in slot.parts() {
            let (bytes, offset) = (part.len(), part.start - slot.base);
            map_shared(&file, part, offset).map_err(|errno| SlotError::Commit { what, bytes, errno })?;
        }
        Ok(slot)
    }

    fn reserved(sizes: SlotSizes, backing: Backing) -> Result<Slot, SlotError> {
        let guard_bytes = page_up(sizes.guard_bytes.max(PAGE_BYTES));
        let stack_bytes = page_up(sizes.stack_bytes.max(PAGE_BYTES));
        let memory_bytes = page_up(sizes.memory_bytes.max(PAGE_BYTES));
        let gaps_bytes = 3 * PAGE_BYTES;
        let max_bytes = SLOT_BYTES - FRAME_BYTES - ALT_STACK_BYTES - thread::AREA_BYTES - gaps_bytes;
        let needed_bytes = guard_bytes.saturating_add(stack_bytes).saturating_add(memory_bytes);
        if needed_bytes > max_bytes {
            return Err(SlotError::TooLarge { needed_bytes, max_bytes });
        }
        let (index, base) = take_index()?;
        Ok(Slot { index, backing, base, guard_bytes, stack_bytes, memory_bytes })
    }

    fn parts(&self) -> [(&'static str, Range<usize>); 5] {
        [
            ("stack", self.stack()),
            ("call memory", self.memory()),
            ("thread", self.thread()),
            ("alternate stack", self.alt_stack()),
            ("frame", self.alt_stack().end..self.base + SLOT_BYTES),
        ]
    }

    /// Whose the memory is.
    pub(super) fn backing(&self) -> Backing {
        self.backing
    }

    /// Gives the pages of a part back; they read as zeros afterwards. No code runs in the slot.
    pub(super) fn give_back(&self, part: Range<usize>) {
        give_back(part, self.backing);
    }

    /// The same for call memory from `start` on, and for the memory of the call's thread.
    pub(super) fn give_back_above(&self, start: usize) {
        match self.backing {
            // One stretch; nothing else that is accessible lies between.
            Backing::Private => self.give_back(start..self.thread().end),
            // Of which what lies between is no part.
            Backing::Shared => {
                self.give_back(start..self.memory().end);
                self.give_back(self.thread());
            }
        }
    }

    /// All addresses of the slot.
    pub(super) fn whole(&self) -> Range<usize> {
        self.base..self.base + SLOT_BYTES
    }

    /// The inaccessible area below the stack.
    pub(super) fn guard(&self) -> Range<usize> {
        self.base..self.base + self.guard_bytes
    }

    /// The stack that code runs on.
    pub(super) fn stack(&self) -> Range<usize> {
        let start = self.guard().end;
        start..start + self.stack_bytes
    }

    /// The memory of a call's buffers and heap.
    pub(super) fn memory(&self) -> Range<usize> {
        let start = self.stack().end + PAGE_BYTES;
        start..start + self.memory_bytes
    }

    /// The memory of a call's thread; below it is a gap.
    pub(super) fn thread(&self) -> Range<usize> {
        let end = self.alt_stack().start - PAGE_BYTES;
        end - thread::AREA_BYTES..end
    }

    /// The stack of signal handlers; below it is a gap.
    pub(super) fn alt_stack(&self) -> Range<usize> {
        let end = self.base + SLOT_BYTES - FRAME_BYTES;
        end - ALT_STACK_BYTES..end
    }

    /// The frame.
    pub(super) fn frame(&self) -> &Frame {
        let address = (self.base + SLOT_BYTES - FRAME_BYTES) as *const Frame;
        // SAFETY: `claim` made the page accessible, zeroed, which is a valid frame of atomics; it stays until the slot
        // is dropped.
        unsafe { &*address }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
        let (Some(base), Some(length)) = (NonZeroUsize::new(self.base), NonZeroUsize::new(SLOT_BYTES)) else { return };
        // SAFETY: replaces exactly this slot, which its thread has left; the pages go back and nobody else has a
        // pointer into it.
        if unsafe { mmap_anonymous(Some(base), length, ProtFlags::PROT_NONE, flags) }.is_ok() {
            taken(|slots| slots[self.index] = false);
        }
    }
}

/// Gives the pages of `range` back; they read as zeros afterwards.
pub(super) fn give_back(range: Range<usize>, backing: Backing) {
    if range.is_empty() {
        return;
    }
    let Some(start) = NonNull::new(range.start as *mut libc::c_void) else { return };
    let advice = match backing {
        Backing::Private => MmapAdvise::MADV_DONTNEED,
        Backing::Shared => MmapAdvise::MADV_REMOVE,
    };
    // SAFETY: the callers in this room pass page-aligned parts of their own slot, while no code runs in it. An error
    // leaves the contents, which are overwritten or scrubbed before use.
    let _ = unsafe { madvise(start, range.len(), advice) };
}

/// A file of memory, without a name, whose size nobody can change.
pub(super) fn shared_file(bytes: usize) -> Result<OwnedFd, Errno> {
    let (name, flags) = ("codecached-worker", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING);
    let file = match memfd_create(name, flags | MFD_NOEXEC_SEAL) {
        // Of kernels that do not know it.
        Err(Errno::EINVAL) => memfd_create(name, flags),
        created => created,
    }?;
    nix::unistd::ftruncate(&file, libc::off_t::try_from(bytes).map_err(|_| Errno::EFBIG)?)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// Puts a part of such a file in the place of `range`, which is reserved and nobody uses, for this process and those
/// forked later.
pub(super) fn map_shared(file: &OwnedFd, range: Range<usize>, offset: usize) -> Result<(), Errno> {
    let (start, bytes) = (NonZeroUsize::new(range.start), NonZeroUsize::new(range.len()).ok_or(Errno::EINVAL)?);
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
    // SAFETY: the callers pass addresses that they reserved, and that nobody refers to yet.
    unsafe { mmap(start, bytes, prot, flags, file, offset as libc::off_t) }.map(drop)
}

/// Memory there comes in small pages, wherever it is mapped later. A kernel that has no others refuses.
pub(super) fn prefer_small_pages(range: Range<usize>) {
    let Some(start) = NonNull::new(range.start as *mut libc::c_void) else { return };
    // SAFETY: changes no contents; the callers pass mappings of their own.
    let _ = unsafe { madvise(start, range.len(), MmapAdvise::MADV_NOHUGEPAGE) };
}

/// Inaccessible addresses, which stay reserved.
pub(super) fn reserve_addresses(bytes: usize) -> Result<usize, Errno> {
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    let length = NonZeroUsize::new(bytes).ok_or(Errno::EINVAL)?;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let mapped = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) }?;
    Ok(mapped.as_ptr() as usize)
}

/// The addresses of all slots.
pub(super) fn all_slots() -> Range<usize> {
    let first = RESERVATION.load(Ordering::Relaxed);
    first..first + SLOT_BYTES * EXECUTORS_MAX
}

/// The frame of the slot in which `address` lies; `None` outside of all slots. The slot of an address on a stack that
/// somebody runs on is taken; for other addresses the frame may be inaccessible.
pub(super) fn frame_at(address: usize) -> Option<NonNull<Frame>> {
    let first = RESERVATION.load(Ordering::Relaxed);
    let offset = address.wrapping_sub(first);
    if first == 0 || offset >= SLOT_BYTES * EXECUTORS_MAX {
        return None;
    }
    NonNull::new(((address | (SLOT_BYTES - 1)) - (FRAME_BYTES - 1)) as *mut Frame)
}

fn page_up(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(PAGE_BYTES).unwrap_or(usize::MAX)
}

fn taken<T>(with: impl FnOnce(&mut [bool; EXECUTORS_MAX]) -> T) -> T {
    with(&mut TAKEN.lock().unwrap_or_else(PoisonError::into_inner))
}

fn take_index() -> Result<(usize, usize), SlotError> {
    taken(|slots| {
        let first = match RESERVATION.load(Ordering::Relaxed) {
            0 => reserve()?,
            first => first,
        };
        let index = slots.iter().position(|taken| !taken).ok_or(SlotError::TooMany)?;
        slots[index] = true;
        Ok((index, first + index * SLOT_BYTES))
    })
}

/// One slot more than needed, so that the first can be aligned.
fn reserve() -> Result<usize, SlotError> {
    let bytes = (EXECUTORS_MAX + 1) * SLOT_BYTES;
    let start = reserve_addresses(bytes).map_err(|errno| SlotError::Reserve { bytes, errno })?;
    let first = start.next_multiple_of(SLOT_BYTES);
    RESERVATION.store(first, Ordering::Relaxed);
    Ok(first)
}

fn commit(what: &'static str, range: Range<usize>) -> Result<(), SlotError> {
    let bytes = range.len();
    let Some(start) = NonNull::new(range.start as *mut libc::c_void) else { return Ok(()) };
    // SAFETY: the range is a part of a slot that only the caller has, and inaccessible until now.
    let changed = unsafe { mprotect(start, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE) };
    changed.map_err(|errno| SlotError::Commit { what, bytes, errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: SlotSizes = SlotSizes { guard_bytes: 1 << 20, stack_bytes: 64 << 10, memory_bytes: 1 };

    #[test]
    fn an_address_of_any_part_of_a_slot_finds_its_frame() {
        let slot = Slot::claim(SIZES).unwrap();
        let frame = NonNull::from(slot.frame());
        for address in [slot.guard().start, slot.stack().end, slot.memory().start, slot.alt_stack().start] {
            assert_eq!(frame_at(address), Some(frame), "address {address:#x}");
        }
        assert_eq!(frame_at(&raw const slot as usize), None);
    }

    #[test]
    fn sizes_beyond_a_slot_are_refused_with_numbers() {
        let error = Slot::claim(SlotSizes { memory_bytes: usize::MAX, ..SIZES }).unwrap_err();
        assert!(matches!(error, SlotError::TooLarge { needed_bytes: usize::MAX, .. }), "{error}");
    }
}
