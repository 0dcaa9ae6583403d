//! A range of addresses of our own: what is mapped where within it, and what may be done there.
#![allow(unsafe_code)] // Maps, protects, advises, seals and unmaps what lies in the range.

use std::{
    ops::Range,
    os::fd::{AsFd, OwnedFd},
};

use nix::{errno::Errno, sys::mman::ProtFlags};

use super::{
    LowRefusal, MapError,
    geometry::{GUARD_BYTES, HUGE_BYTES, LOW_END, LOW_START},
    system::{self, Advice},
};

/// Addresses, inaccessible until something is mapped over a part of them.
pub(super) struct Reservation {
    /// What was reserved, in whole.
    start: usize,
    bytes: usize,
    /// Where what we use begins: aligned to [`HUGE_BYTES`], at a random place, with a guard before and after.
    base: usize,
}

impl Reservation {
    /// Places, [`HUGE_BYTES`] apart, among which the start is drawn: its distance to other addresses says nothing.
    pub(super) const PLACES: u64 = 512;

    pub(super) fn new(used_bytes: u64, places: u64) -> Result<Self, MapError> {
        let bytes = used_bytes + 2 * GUARD_BYTES + (places + 1) * HUGE_BYTES;
        let place = system::random().map_err(|errno| MapError::Random { errno })? % places;
        let start = system::reserve(bytes as usize).map_err(|errno| MapError::Reserve { bytes, errno })?;
        let base = (start as u64 + GUARD_BYTES).next_multiple_of(HUGE_BYTES) + place * HUGE_BYTES;
        Ok(Self { start, bytes: bytes as usize, base: base as usize })
    }

    /// Addresses below 2 GiB, `used_bytes` of them with the guards at both ends. The place is drawn among those that are
    /// [`HUGE_BYTES`] apart, at most a thousand; where something lies, the next one is taken, and each is tried once.
    pub(super) fn low(used_bytes: u64) -> Result<Self, LowRefusal> {
        let refused = |tries, errno| LowRefusal { bytes: used_bytes, tries, errno };
        let spare_bytes = (LOW_END - LOW_START).checked_sub(used_bytes);
        let places = spare_bytes.ok_or_else(|| refused(0, Errno::ENOMEM))? / HUGE_BYTES + 1;
        let first = system::random().map_err(|errno| refused(0, errno))? % places;
        let mut last = refused(0, Errno::ENOMEM);
        for place in (first..places).chain(0..first) {
            let start = (LOW_START + place * HUGE_BYTES) as usize;
            match system::reserve_at(start, used_bytes as usize) {
                Ok(()) => return Ok(Self { start, bytes: used_bytes as usize, base: start }),
                Err(errno) => last = refused(last.tries + 1, errno),
            }
            // Something lies there, or the system lets nobody have addresses so low. Else it would not be better elsewhere.
            if !matches!(last.errno, Errno::EEXIST | Errno::EPERM) {
                break;
            }
        }
        Err(last)
    }

    /// The address of an offset.
    pub(super) fn address(&self, offset: u64) -> usize {
        self.base + offset as usize
    }

    /// Maps a part of the file over a part of this range.
    pub(super) fn map(&self, part: Range<u64>, prot: ProtFlags, file: &OwnedFd, offset: u64) -> Result<(), Errno> {
        let (address, bytes) = self.check(&part);
        // SAFETY: The range is ours, and nothing refers to it: `Views` hands out no address before all parts are
        // mapped, and maps each once.
        unsafe { system::mmap(address, bytes, prot, Some((file.as_fd(), offset))) }
    }

    /// Maps private memory over a part of this range.
    pub(super) fn map_private(&self, part: Range<u64>, prot: ProtFlags) -> Result<(), Errno> {
        let (address, bytes) = self.check(&part);
        // SAFETY: As above.
        unsafe { system::mmap(address, bytes, prot, None) }
    }

    /// The caller sees to it that nobody uses the part in a way that is then forbidden.
    pub(super) fn protect(&self, part: Range<u64>, prot: ProtFlags) -> Result<(), Errno> {
        let (address, bytes) = self.check(&part);
        // SAFETY: The part is ours. Whoever asks owns the bytes, or counts those who write there.
        unsafe { system::mprotect(address, bytes, prot) }
    }

    /// Whoever gives memory back owns it, or has a lock and found that nobody does.
    pub(super) fn advise(&self, part: Range<u64>, advice: Advice) -> Result<(), Errno> {
        let (address, bytes) = self.check(&part);
        // SAFETY: The part is ours, and of what is given back nothing is needed, see above.
        unsafe { system::madvise(address, bytes, advice) }
    }

    /// Advice on the range in whole, with its guards.
    pub(super) fn advise_all(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: The range is ours, and no advice that is given on all of it changes contents.
        unsafe { system::madvise(self.start, self.bytes, advice) }
    }

    /// Makes the mappings permanent, but not those of `parts`, which are in order.
    pub(super) fn seal_but(&self, parts: impl Iterator<Item = Range<u64>>) -> Result<(), Errno> {
        let mut from = self.start;
        for part in parts {
            let (address, bytes) = self.check(&part);
            // SAFETY: The range is ours; all that is done to it later is to its `parts`.
            unsafe { system::mseal(from, address - from) }?;
            from = address + bytes;
        }
        // SAFETY: As above.
        unsafe { system::mseal(from, self.start + self.bytes - from) }
    }

    /// Whether the kernel could make mappings permanent; makes none so.
    pub(super) fn can_seal() -> Result<(), Errno> {
        // SAFETY: No bytes, nobody's.
        unsafe { system::mseal(0, 0) }
    }

    fn check(&self, part: &Range<u64>) -> (usize, usize) {
        let (address, bytes) = (self.address(part.start), (part.end - part.start) as usize);
        assert!(address + bytes <= self.start + self.bytes, "invariant: the geometry stays in its range");
        (address, bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // What is sealed stays. Its memory has been given back by then, only addresses are spent.
        // SAFETY: The range is ours, and whoever used an address of it kept the `Views` alive.
        let _ = unsafe { system::munmap(self.start, self.bytes) };
    }
}
