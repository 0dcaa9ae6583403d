//! The memory that a call may use: its buffers, and behind them its heap.
//!
//! Code writes here while it runs, and leaves pointers of its own choice here. So there are only raw pointers and
//! copies, each checked to lie inside, and never a Rust reference to the contents.
#![allow(unsafe_code)] // Copies between Rust's memory and memory that code writes.

use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::arch::{INT_REGISTERS, Registers, STACK_ALIGN_BYTES, VECTOR_REGISTERS};
use super::call::Arg;
use super::frame::Frame;
use super::stack::{Backing, Slot, give_back};

/// Alignment of buffers and of what `malloc` gives: the largest of a C type.
pub(super) const ALIGN_BYTES: usize = 16;
/// Up to this much is scrubbed by writing zeros; more goes back to the system, which is then as fast.
pub(super) const SCRUB_MAX_BYTES: usize = 256 << 10;

/// A range of accessible memory of a slot.
#[derive(Clone, Debug)]
pub(super) struct Region {
    range: Range<usize>,
    backing: Backing,
}

impl Region {
    /// The call memory of a slot.
    pub(super) fn of_slot(slot: &Slot) -> Region {
        Region { range: slot.memory(), backing: slot.backing() }
    }

    /// The stack that code runs on.
    pub(super) fn of_stack(slot: &Slot) -> Region {
        Region { range: slot.stack(), backing: slot.backing() }
    }

    /// The memory of a call's thread.
    pub(super) fn of_thread(slot: &Slot) -> Region {
        Region { range: slot.thread(), backing: slot.backing() }
    }

    /// What of the call memory is the heap, by the frame of the call that runs; not to be given back.
    pub(super) fn of_heap(frame: &Frame) -> Region {
        let range = frame.heap.start.load(Ordering::Relaxed)..frame.heap.end.load(Ordering::Relaxed);
        Region { range, backing: Backing::Private }
    }

    /// First and end address.
    pub(super) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Copies `bytes` to `address`; false, and nothing done, if that is not inside.
    #[must_use]
    pub(super) fn write(&self, address: usize, bytes: &[u8]) -> bool {
        if !self.holds(address, bytes.len()) {
            return false;
        }
        // SAFETY: the target is inside accessible memory of the slot, which Rust has no reference to; the source is a
        // reference, so it is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        true
    }

    /// Writes `len` zeros; false, and nothing done, if that is not inside.
    #[must_use]
    pub(super) fn zero(&self, address: usize, len: usize) -> bool {
        if !self.holds(address, len) {
            return false;
        }
        // SAFETY: inside accessible memory of the slot, which Rust has no reference to.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, len) };
        true
    }

    /// Copies `len` bytes out; `None` if they are not inside.
    pub(super) fn read(&self, address: usize, len: usize) -> Option<Vec<u8>> {
        if !self.holds(address, len) {
            return None;
        }
        let mut copy = Vec::with_capacity(len);
        // SAFETY: the source is inside accessible memory of the slot, the target is the new vector's capacity.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, copy.as_mut_ptr(), len) };
        // SAFETY: the copy above filled `len` bytes.
        unsafe { copy.set_len(len) };
        Some(copy)
    }

    /// Copies inside the region, also where the ranges overlap; false, and nothing done, if one is not inside.
    #[must_use]
    pub(super) fn copy_within(&self, from: usize, to: usize, len: usize) -> bool {
        if !self.holds(from, len) || !self.holds(to, len) {
            return false;
        }
        // SAFETY: both are inside accessible memory of the slot, which Rust has no reference to.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len) };
        true
    }

    /// The word at `address`; `None` if it is not inside or not aligned.
    pub(super) fn read_word(&self, address: usize) -> Option<u64> {
        if !self.holds_word(address) {
            return None;
        }
        // SAFETY: inside accessible memory of the slot and aligned; volatile, as code may have written it.
        Some(unsafe { std::ptr::read_volatile(address as *const u64) })
    }

    /// Stores a word; false, and nothing done, if the address is not inside or not aligned.
    #[must_use]
    pub(super) fn write_word(&self, address: usize, word: u64) -> bool {
        if !self.holds_word(address) {
            return false;
        }
        // SAFETY: inside accessible memory of the slot and aligned, which Rust has no reference to.
        unsafe { std::ptr::write_volatile(address as *mut u64, word) };
        true
    }

    /// Scrubs everything from the start up to `end`, which is clamped, so that the next call finds zeros.
    pub(super) fn scrub(&self, end: usize) {
        let end = end.clamp(self.range.start, self.range.end);
        if end - self.range.start > SCRUB_MAX_BYTES {
            self.give_back();
        } else {
            let scrubbed = self.zero(self.range.start, end - self.range.start);
            debug_assert!(scrubbed, "a clamped range is inside");
        }
    }

    /// Gives all pages back; they read as zeros afterwards.
    pub(super) fn give_back(&self) {
        give_back(self.range(), self.backing);
    }

    /// Writes zeros from `start`, which is clamped, to the end.
    pub(super) fn scrub_from(&self, start: usize) {
        let start = start.clamp(self.range.start, self.range.end);
        let scrubbed = self.zero(start, self.range.end - start);
        debug_assert!(scrubbed, "a clamped range is inside");
    }

    fn holds(&self, address: usize, len: usize) -> bool {
        let Some(end) = address.checked_add(len) else { return false };
        self.range.start <= address && end <= self.range.end
    }

    fn holds_word(&self, address: usize) -> bool {
        address.is_multiple_of(align_of::<u64>()) && self.holds(address, size_of::<u64>())
    }
}

/// Arguments in place.
#[derive(Debug)]
pub(super) struct Placed {
    /// What to load into the registers.
    pub(super) registers: Registers,
    /// Address and length of each buffer that is returned.
    returned: Vec<(usize, usize)>,
    /// End of the buffers: the heap may begin here.
    pub(super) end: usize,
}

impl Placed {
    /// Copies the buffers of `args`, which `check_args` accepted for this region, to its start, and the arguments beyond
    /// the registers to the call's `stack`.
    pub(super) fn new(region: &Region, stack: &Region, args: &[Arg]) -> Placed {
        let registers = Registers::none(stack.range.end);
        let mut placed = Placed { registers, returned: Vec::new(), end: region.range.start };
        placed.registers.sp -= stack_bytes(args) as u64;
        let mut next = placed.registers.sp as usize;
        let (mut ints, mut vectors) = (0, 0);
        for arg in args {
            let (word, register) = match float_bits(arg) {
                Some(bits) => {
                    vectors += 1;
                    (bits, placed.registers.vectors.get_mut(vectors - 1))
                }
                None => {
                    let word = placed.int(region, arg);
                    ints += 1;
                    (word, placed.registers.ints.get_mut(ints - 1))
                }
            };
            if let Some(register) = register {
                *register = word;
            } else {
                assert!(stack.write_word(next, word), "checked arguments fit the stack");
                next += size_of::<u64>();
            }
        }
        placed.registers.vectors_used = vectors.min(VECTOR_REGISTERS);
        placed
    }

    /// Copies out what the code left in the returned buffers.
    pub(super) fn collect(&self, region: &Region) -> Vec<Bytes> {
        let copy = |&(address, len): &(usize, usize)| region.read(address, len).expect("a placed buffer is inside");
        self.returned.iter().map(copy).map(Bytes::from).collect()
    }

    fn int(&mut self, region: &Region, arg: &Arg) -> u64 {
        match arg {
            Arg::I32(value) => i64::from(*value) as u64,
            Arg::U32(value) => u64::from(*value),
            Arg::I64(value) => *value as u64,
            Arg::U64(value) => *value,
            Arg::F32(_) | Arg::F64(_) => 0,
            Arg::Bytes(bytes) => self.copy_in(region, bytes) as u64,
            Arg::InOut(bytes) => {
                let address = self.copy_in(region, bytes);
                self.returned.push((address, bytes.len()));
                address as u64
            }
            Arg::Out(len) => {
                let (address, len) = self.room(*len as usize);
                // Zeroed here again: an earlier call may have written beyond what was scrubbed.
                assert!(region.zero(address, len), "checked arguments fit the call memory");
                self.returned.push((address, len));
                address as u64
            }
        }
    }

    fn copy_in(&mut self, region: &Region, bytes: &Bytes) -> usize {
        let (address, _) = self.room(bytes.len());
        assert!(region.write(address, bytes), "checked arguments fit the call memory");
        address
    }

    fn room(&mut self, len: usize) -> (usize, usize) {
        let address = self.end;
        self.end += len.next_multiple_of(ALIGN_BYTES);
        (address, len)
    }
}

/// Bytes that the buffers of `args` take; `None` beyond the address space.
pub(super) fn layout_bytes(args: &[Arg]) -> Option<usize> {
    args.iter().try_fold(0_usize, |total, arg| {
        let len = match arg {
            Arg::Bytes(bytes) | Arg::InOut(bytes) => bytes.len(),
            Arg::Out(len) => usize::try_from(*len).ok()?,
            _ => 0,
        };
        total.checked_add(len.checked_next_multiple_of(ALIGN_BYTES)?)
    })
}

/// Bytes of stack for those of `args` that no register is left for.
fn stack_bytes(args: &[Arg]) -> usize {
    if args.len() <= INT_REGISTERS {
        return 0;
    }
    let vectors = args.iter().filter(|arg| arg.is_float()).count();
    let words = vectors.saturating_sub(VECTOR_REGISTERS) + (args.len() - vectors).saturating_sub(INT_REGISTERS);
    (words * size_of::<u64>()).next_multiple_of(STACK_ALIGN_BYTES)
}

fn float_bits(arg: &Arg) -> Option<u64> {
    match arg {
        Arg::F32(value) => Some(value.to_bits().into()),
        Arg::F64(value) => Some(value.to_bits()),
        _ => None,
    }
}
