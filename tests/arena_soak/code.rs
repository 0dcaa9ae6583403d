//! Published code that returns its own number.
#![allow(unsafe_code)] // Calls it.

use std::ptr;

use codecached::arena::{Draft, Published};

use crate::random::Random;

/// `mov eax, imm32; ret`.
const CONSTANT_BYTES: usize = 6;
/// `mov rax, imm64; mov eax, [rax]; ret`.
const LOAD_BYTES: usize = 13;
/// One function at the start, one behind it.
pub(crate) const LEAST_BYTES: u64 = (CONSTANT_BYTES + LOAD_BYTES) as u64;
/// `int3`: reached only if a function does not return where it should.
const FILLER: u8 = 0xCC;
/// The last function lies at most this far from the end.
const END_BYTES: u32 = 64;

/// A span with functions that return its number: one at the start and one near the end, which reads the number from
/// the span's read-only data or data if it has any.
pub(crate) struct Numbered {
    published: Published,
    number: u32,
    /// Offset of the second function.
    last: u64,
}

impl Numbered {
    pub(crate) fn publish(mut draft: Draft, number: u32, random: &mut Random) -> Self {
        let (at, layout) = (draft.addresses(), draft.layout());
        let bytes = number.to_le_bytes();
        if layout.data.size_bytes > 0 {
            draft.write_data(&bytes);
        }
        let (code, rodata) = draft.code_and_rodata_mut();
        rodata.fill(FILLER);
        let last = match (rodata.is_empty(), layout.data.size_bytes) {
            (true, 0) => constant(number).to_vec(),
            (true, _) => load(at.data).to_vec(),
            (false, _) => {
                rodata[..bytes.len()].copy_from_slice(&bytes);
                load(at.rodata).to_vec()
            }
        };
        let room = code.len() - CONSTANT_BYTES - last.len();
        let back = random.below(END_BYTES.min(room as u32 + 1)) as usize;
        let last_at = CONSTANT_BYTES + room - back;
        code.fill(FILLER);
        code[..CONSTANT_BYTES].copy_from_slice(&constant(number));
        code[last_at..last_at + last.len()].copy_from_slice(&last);
        let published = draft.publish().unwrap();
        Self { published, number, last: last_at as u64 }
    }

    /// Calls both functions.
    pub(crate) fn check(&self) -> Result<(), String> {
        for offset in [0, self.last] {
            let answer = self.call(offset);
            if answer != self.number {
                let (number, range) = (self.number, self.published.code_range());
                return Err(format!("span {number} at {range:x?} answered {answer} from offset {offset}"));
            }
        }
        Ok(())
    }

    /// Marks the span as one that nobody can find any more.
    pub(crate) fn linger(&self) {
        self.published.linger();
    }

    fn call(&self, offset: u64) -> u32 {
        let address = ptr::with_exposed_provenance::<()>((self.published.addresses().code + offset) as usize);
        // SAFETY: `publish` put whole functions of this signature at both offsets, and the borrow keeps the code.
        let function = unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u32>(address) };
        function()
    }
}

fn constant(value: u32) -> [u8; CONSTANT_BYTES] {
    let [a, b, c, d] = value.to_le_bytes();
    [0xB8, a, b, c, d, 0xC3]
}

fn load(address: u64) -> [u8; LOAD_BYTES] {
    let mut code = [0x48, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0x8B, 0x00, 0xC3];
    code[2..10].copy_from_slice(&address.to_le_bytes());
    code
}
