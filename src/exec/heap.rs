//! The heap of one call: `malloc` and its kin over the call memory behind the buffers.
//!
//! Blocks are cut off the free end and come back into a list of their size class, four classes per doubling. A block
//! begins with a header of its class and a mark; one of a larger alignment lies inside of a block, behind a header that
//! tells how far. Code can overwrite headers and links, so each value read from the
//! heap is checked before it is used; a wrong one is [`Corrupt`] and ends the call as an abort, as does a double free.
//! When the call ends everything is gone at once.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::memory::{ALIGN_BYTES, Region};

/// Class and mark, before each block.
const HEADER_BYTES: usize = 16;
const BLOCK_MIN_BYTES: usize = 32;
/// Power of two just below the smallest class.
const FIRST_EXPONENT: u32 = 4;
/// Classes up to the size of a slot, 2^28.
const CLASSES: usize = 4 * (28 - FIRST_EXPONENT as usize);
const MARK_USED: u64 = 0x7573_6564_5f62_6c6b;
const MARK_FREE: u64 = 0x6672_6565_5f62_6c6b;
/// Before an aligned address inside of a block; instead of the class stands the distance to the block's header.
const MARK_INSIDE: u64 = 0x696e_7369_6465_5f62;

/// Bounds and free lists. All zero is an empty heap of no bytes.
#[repr(C)]
#[derive(Debug)]
pub(super) struct HeapState {
    /// First address of the heap.
    pub(super) start: AtomicUsize,
    /// Its end.
    pub(super) end: AtomicUsize,
    /// Never-used memory begins here; no block lies beyond.
    next: AtomicUsize,
    /// Blocks in use.
    live: AtomicUsize,
    free: [AtomicU64; CLASSES],
}

/// A pointer or a header that this heap did not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Corrupt;

impl HeapState {
    /// Makes the heap empty, with the bounds for the next call; `start` is aligned to 16 bytes.
    pub(super) fn reset(&self, start: usize, end: usize) {
        let unused = self.next.load(Ordering::Relaxed) == self.start.load(Ordering::Relaxed);
        if !unused {
            self.free.iter().for_each(|head| head.store(0, Ordering::Relaxed));
        }
        self.live.store(0, Ordering::Relaxed);
        self.start.store(start, Ordering::Relaxed);
        self.next.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
    }

    /// What is here may be anything: the next [`Self::reset`] spares nothing.
    pub(super) fn mistrust(&self) {
        self.start.store(0, Ordering::Relaxed);
        self.next.store(1, Ordering::Relaxed);
    }

    /// Blocks that were allocated and not given back.
    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    fn count(&self, change: isize) {
        // Only the thread whose call runs changes it.
        self.live.store(self.live().wrapping_add_signed(change), Ordering::Relaxed);
    }

    /// Where what blocks were cut from ends.
    pub(super) fn used_end(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }
}

/// The heap at work, for the thread whose call runs.
#[derive(Debug)]
pub(super) struct Heap<'a> {
    state: &'a HeapState,
    region: Region,
}

impl<'a> Heap<'a> {
    /// The heap of `state` over `region`, which has its bounds.
    pub(super) fn new(state: &'a HeapState, region: Region) -> Heap<'a> {
        Heap { state, region }
    }

    /// Address of `size` bytes, aligned to 16; 0 if there is no room. Contents are whatever was there.
    pub(super) fn allocate(&self, size: usize) -> Result<usize, Corrupt> {
        let Some((class, block_bytes)) = class_of(size) else { return Ok(0) };
        let head = self.state.free[class].load(Ordering::Relaxed) as usize;
        let block = if head != 0 { self.unlink(class, head)? } else { self.cut(block_bytes) };
        if block == 0 {
            return Ok(0);
        }
        self.set_header(block, class, MARK_USED)?;
        self.state.count(1);
        Ok(block + HEADER_BYTES)
    }

    /// The same at a multiple of `alignment`; 0 also if that is not a power of two.
    pub(super) fn allocate_aligned(&self, alignment: usize, size: usize) -> Result<usize, Corrupt> {
        if !alignment.is_power_of_two() {
            return Ok(0);
        }
        if alignment <= ALIGN_BYTES {
            return self.allocate(size);
        }
        let Some(total) = size.checked_add(alignment) else { return Ok(0) };
        let address = self.allocate(total)?;
        // A multiple of 16 away, so there is room for a header.
        let distance = address.wrapping_neg() & (alignment - 1);
        if address == 0 || distance == 0 {
            return Ok(address);
        }
        let aligned = address + distance;
        self.store(aligned - HEADER_BYTES, distance as u64)?;
        self.store(aligned - HEADER_BYTES + 8, MARK_INSIDE)?;
        Ok(aligned)
    }

    /// The same as `allocate`, zeroed.
    pub(super) fn allocate_zeroed(&self, count: usize, size: usize) -> Result<usize, Corrupt> {
        let Some(total) = count.checked_mul(size) else { return Ok(0) };
        let address = self.allocate(total)?;
        if address != 0 && !self.region.zero(address, total) {
            return Err(Corrupt);
        }
        Ok(address)
    }

    /// Gives the block at `address` back; 0 is allowed.
    pub(super) fn release(&self, address: usize) -> Result<(), Corrupt> {
        if address == 0 {
            return Ok(());
        }
        let (block, class) = self.used_block(address)?;
        self.set_header(block, class, MARK_FREE)?;
        let head = &self.state.free[class];
        self.store(block + HEADER_BYTES, head.load(Ordering::Relaxed))?;
        head.store(block as u64, Ordering::Relaxed);
        self.state.count(-1);
        Ok(())
    }

    /// The block at `address`, perhaps elsewhere, with `size` bytes; 0 and the old one kept if there is no room.
    pub(super) fn resize(&self, address: usize, size: usize) -> Result<usize, Corrupt> {
        if address == 0 {
            return self.allocate(size);
        }
        let (block, class) = self.used_block(address)?;
        let held_bytes = block + block_bytes(class) - address;
        if size <= held_bytes {
            return Ok(address);
        }
        let moved = self.allocate(size)?;
        if moved == 0 {
            return Ok(0);
        }
        if !self.region.copy_within(address, moved, held_bytes) {
            return Err(Corrupt);
        }
        self.release(address)?;
        Ok(moved)
    }

    /// Takes the first block of a list out; its link was in memory that code can write.
    fn unlink(&self, class: usize, block: usize) -> Result<usize, Corrupt> {
        if self.header(block)? != (class, MARK_FREE) {
            return Err(Corrupt);
        }
        let link = self.region.read_word(block + HEADER_BYTES).ok_or(Corrupt)?;
        self.state.free[class].store(link, Ordering::Relaxed);
        Ok(block)
    }

    /// A new block off the free end; 0 if it does not fit.
    fn cut(&self, block_bytes: usize) -> usize {
        let block = self.state.next.load(Ordering::Relaxed);
        if block_bytes > self.region.range().end.saturating_sub(block) {
            return 0;
        }
        self.state.next.store(block + block_bytes, Ordering::Relaxed);
        block
    }

    /// The block that `address` was given out in.
    fn used_block(&self, address: usize) -> Result<(usize, usize), Corrupt> {
        let header = address.checked_sub(HEADER_BYTES).ok_or(Corrupt)?;
        let is_inside = self.region.read_word(header.wrapping_add(8)) == Some(MARK_INSIDE);
        let distance = if is_inside { self.region.read_word(header).ok_or(Corrupt)? as usize } else { 0 };
        let block = header.checked_sub(distance).ok_or(Corrupt)?;
        match self.header(block)? {
            (class, MARK_USED) if distance <= block_bytes(class) - HEADER_BYTES => Ok((block, class)),
            _ => Err(Corrupt),
        }
    }

    fn header(&self, block: usize) -> Result<(usize, u64), Corrupt> {
        let class = self.region.read_word(block).ok_or(Corrupt)?;
        let mark = self.region.read_word(block.wrapping_add(8)).ok_or(Corrupt)?;
        let aligned = block.is_multiple_of(ALIGN_BYTES);
        if !aligned || class >= CLASSES as u64 {
            return Err(Corrupt);
        }
        let class = class as usize;
        let fits = self.region.range().end.checked_sub(block).is_some_and(|left| block_bytes(class) <= left);
        if fits { Ok((class, mark)) } else { Err(Corrupt) }
    }

    fn set_header(&self, block: usize, class: usize, mark: u64) -> Result<(), Corrupt> {
        self.store(block, class as u64)?;
        self.store(block.wrapping_add(8), mark)
    }

    fn store(&self, address: usize, word: u64) -> Result<(), Corrupt> {
        if self.region.write_word(address, word) { Ok(()) } else { Err(Corrupt) }
    }
}

/// The smallest class for `size` bytes and its block size; `None` if no heap could hold it.
fn class_of(size: usize) -> Option<(usize, usize)> {
    let total = size.checked_add(HEADER_BYTES)?.max(BLOCK_MIN_BYTES).checked_next_multiple_of(ALIGN_BYTES)?;
    // total is in (2^e, 2^(e+1)]; that interval has four classes. Multiples of 16 stay multiples of 16.
    let exponent = (total - 1).ilog2();
    let quarters = (total - (1 << exponent)).div_ceil(1 << (exponent - 2));
    let class = (exponent - FIRST_EXPONENT) as usize * 4 + quarters - 1;
    (class < CLASSES).then(|| (class, block_bytes(class)))
}

fn block_bytes(class: usize) -> usize {
    let exponent = FIRST_EXPONENT as usize + class / 4;
    (1 << exponent) + (class % 4 + 1) * (1 << (exponent - 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::stack::{Slot, SlotSizes};

    fn with_heap(test: impl FnOnce(&Heap<'_>, &Region)) {
        let slot = Slot::claim(SlotSizes { guard_bytes: 1, stack_bytes: 1, memory_bytes: 1 << 20 }).unwrap();
        let memory = slot.memory();
        slot.frame().heap.reset(memory.start, memory.end);
        let region = Region::of_heap(slot.frame());
        test(&Heap::new(&slot.frame().heap, region.clone()), &region);
    }

    #[test]
    fn every_size_gets_a_block_that_holds_it_wastes_a_quarter_at_most_and_keeps_alignment() {
        for size in (0..5000).chain([65536, 65537, 1 << 20, (1 << 27) + 1]) {
            let (class, bytes) = class_of(size).unwrap();
            assert_eq!(bytes, block_bytes(class));
            assert!(bytes >= size + HEADER_BYTES, "size {size} in {bytes}");
            assert!(bytes <= (size + HEADER_BYTES + 15) * 5 / 4 + 32, "size {size} in {bytes}");
        }
        assert_eq!(class_of(usize::MAX), None);
        assert_eq!(class_of(1 << 28), None);
    }

    #[test]
    fn freed_blocks_are_used_again_so_a_loop_does_not_grow() {
        with_heap(|heap, region| {
            for round in 0..100_000 {
                let address = heap.allocate(1000 + round % 64).unwrap();
                assert!(address != 0 && address % 16 == 0, "round {round}");
                heap.release(address).unwrap();
            }
            assert!(heap.state.next.load(Ordering::Relaxed) < region.range().start + 8192);
        });
    }

    #[test]
    fn blocks_in_use_never_overlap() {
        with_heap(|heap, region| {
            let mut seed = 7_u64;
            let mut live: Vec<(usize, usize, u8)> = Vec::new();
            for round in 0..20_000_u32 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let size = (seed >> 33) as usize % 3000;
                if live.len() > 100 || (seed >> 20).is_multiple_of(3) && !live.is_empty() {
                    let (address, len, fill) = live.swap_remove(size % live.len());
                    assert_eq!(region.read(address, len), Some(vec![fill; len]), "seed 7 round {round}");
                    heap.release(address).unwrap();
                } else {
                    let address = heap.allocate(size).unwrap();
                    if address != 0 {
                        assert!(region.write(address, &vec![round as u8; size]));
                        live.push((address, size, round as u8));
                    }
                }
            }
        });
    }

    #[test]
    fn resize_keeps_contents_and_zeroed_memory_is_zero_even_when_used_before() {
        with_heap(|heap, region| {
            let address = heap.allocate(100).unwrap();
            assert!(region.write(address, &[7; 100]));
            let moved = heap.resize(address, 5000).unwrap();
            assert_eq!(region.read(moved, 100), Some(vec![7; 100]));
            let again = heap.allocate_zeroed(10, 10).unwrap();
            assert_eq!((again, region.read(again, 100)), (address, Some(vec![0; 100])));
            assert_eq!(heap.allocate_zeroed(usize::MAX, 2), Ok(0));
            assert_eq!(heap.allocate(2 << 20), Ok(0), "more than the heap has");
        });
    }

    #[test]
    fn double_and_wild_frees_and_broken_links_are_found() {
        with_heap(|heap, region| {
            let address = heap.allocate(40).unwrap();
            heap.release(address).unwrap();
            assert_eq!(heap.release(address), Err(Corrupt), "double free");
            for wild in [1, 15, 16, address + 8, address + 16, region.range().end, usize::MAX] {
                assert_eq!(heap.release(wild), Err(Corrupt), "free of {wild:#x}");
            }
            assert!(region.write_word(address, 0xdead_beef));
            assert_eq!(heap.allocate(40), Ok(address), "the link is followed only when it is the head");
            assert_eq!(heap.allocate(40), Err(Corrupt), "broken link");
        });
    }

    #[test]
    fn aligned_blocks_are_inside_of_their_block_and_given_back_with_it() {
        with_heap(|heap, region| {
            for alignment in [1, 16, 32, 64, 4096, 1 << 16] {
                let mut ends = Vec::new();
                for round in 0..100 {
                    let between = heap.allocate(40 * (round % 3)).unwrap();
                    let address = heap.allocate_aligned(alignment, 100).unwrap();
                    assert!(address != 0 && address.is_multiple_of(alignment), "{alignment}");
                    assert!(region.write(address, &[9; 100]));
                    let moved = heap.resize(address, 3000).unwrap();
                    assert_eq!(region.read(moved, 100), Some(vec![9; 100]), "{alignment}");
                    heap.release(moved).unwrap();
                    assert_eq!(heap.release(moved), Err(Corrupt), "double free, alignment {alignment}");
                    heap.release(between).unwrap();
                    ends.push(heap.state.used_end());
                }
                assert_eq!(ends[3], ends[99], "alignment {alignment} grows");
            }
            assert_eq!((heap.allocate_aligned(3, 1), heap.allocate_aligned(0, 1)), (Ok(0), Ok(0)));
            assert_eq!(heap.allocate_aligned(1 << 63, usize::MAX), Ok(0));
        });
    }

    #[test]
    fn a_forged_header_of_an_aligned_block_is_found() {
        with_heap(|heap, region| {
            let (block, other) = (heap.allocate(200).unwrap(), heap.allocate(200).unwrap());
            for distance in [0, 8, 16, other - block, 1 << 20, u64::MAX as usize, usize::MAX - 15] {
                assert!(region.write_word(other + 48, distance as u64) && region.write_word(other + 56, MARK_INSIDE));
                assert_eq!(heap.release(other + 64), Err(Corrupt), "distance {distance:#x}");
            }
        });
    }
}
