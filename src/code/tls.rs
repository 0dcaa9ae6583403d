//! Instructions that ask for the address of a thread's variable, rewritten to compute it from the thread pointer.
//!
//! Compilers that do not know where a variable will be make such sequences; a static linker, which does, rewrites
//! them. Their forms are those of the System V x86-64 ABI and of "ELF Handling For Thread-Local Storage", sections
//! "Linker optimizations"; other forms are refused, as no one can tell what they do.

use super::{CodeError, Location};

/// What sequences call to get an address.
pub(super) const ADDRESS_GETTER: &[u8] = b"__tls_get_addr";
/// Why another use of that is refused.
pub(super) const GETTER_ELSEWHERE: &str =
    "it is used in another way than compilers do, so that no address can stand for it";

/// Bytes of the longest sequence.
const SEQUENCE_MAX_BYTES: usize = 22;

const PC32: u32 = 2;
const PLT32: u32 = 4;
const GOTPCREL: u32 = 9;
const PLTOFF64: u32 = 31;
const GOTPCRELX: u32 = 41;
const REX_GOTPCRELX: u32 = 42;

/// `mov %fs:0, %rax`
const LOAD: [u8; 9] = [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0];

/// What a sequence asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The address of a variable, of whatever module.
    General,
    /// The address of the variables of its own module.
    Local,
    /// As `General`, by a descriptor.
    Descriptor,
    /// The call of that descriptor.
    DescriptorCall,
}

/// Bytes that take the place of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rewrite {
    bytes: [u8; SEQUENCE_MAX_BYTES],
    len: usize,
}

/// A sequence that was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes from the start of the section.
    pub(super) start: u64,
    pub(super) rewrite: Rewrite,
    /// Where in the section the distance from the thread pointer belongs, in 32 bits.
    pub(super) field: Option<u64>,
    /// The relocation of a call is done with.
    pub(super) has_call: bool,
}

/// A sequence with a call, and what takes its place.
struct Shape {
    access: Access,
    /// Before the first field.
    head: &'static [u8],
    /// Between the first field and that of the call.
    middle: &'static [u8],
    calls: &'static [u32],
    call_bytes: usize,
    /// After the field of the call.
    tail: &'static [u8],
    to: &'static [&'static [u8]],
}

const DIRECT: &[u32] = &[PLT32, PC32];
const BY_SLOT: &[u32] = &[GOTPCREL, GOTPCRELX, REX_GOTPCRELX];
/// `lea distance(%rax), %rax`, whose last four bytes are the field.
const ADD: &[u8] = &[0x48, 0x8d, 0x80, 0, 0, 0, 0];
const NOP_6: &[u8] = &[0x66, 0x0f, 0x1f, 0x44, 0, 0];
const NOP_13: &[u8] = &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0x0f, 0x1f, 0x40, 0];
const LEA: &[u8] = &[0x48, 0x8d, 0x3d];
const PADDED_LEA: &[u8] = &[0x66, 0x48, 0x8d, 0x3d];
const MOVABS: &[u8] = &[0x48, 0xb8];
/// `add %r15, %rax; call *%rax`, or with `%rbx`.
const LARGE_TAILS: [&[u8]; 2] = [&[0x4c, 0x01, 0xf8, 0xff, 0xd0], &[0x48, 0x01, 0xd8, 0xff, 0xd0]];

const fn shape(access: Access, head: &'static [u8], middle: &'static [u8], calls: &'static [u32]) -> Shape {
    let to: &[&[u8]] = match (access, middle.len()) {
        (Access::General, _) => &[&LOAD, ADD],
        (_, 1) => &[&[0x66, 0x66, 0x66], &LOAD],
        (_, _) => &[&[0x66, 0x66, 0x66, 0x66], &LOAD],
    };
    Shape { access, head, middle, calls, call_bytes: 4, tail: &[], to }
}

const fn large(access: Access, tail: &'static [u8]) -> Shape {
    let to: &[&[u8]] = match access {
        Access::General => &[&LOAD, ADD, NOP_6],
        _ => &[&LOAD, NOP_13],
    };
    Shape { access, head: LEA, middle: MOVABS, calls: &[PLTOFF64], call_bytes: 8, tail, to }
}

const SHAPES: [Shape; 10] = [
    shape(Access::General, PADDED_LEA, &[0x66, 0x66, 0x48, 0xe8], DIRECT),
    shape(Access::General, PADDED_LEA, &[0x66, 0x48, 0x67, 0xe8], DIRECT),
    shape(Access::General, PADDED_LEA, &[0x66, 0x48, 0xff, 0x15], BY_SLOT),
    shape(Access::Local, LEA, &[0xe8], DIRECT),
    shape(Access::Local, LEA, &[0x67, 0xe8], DIRECT),
    shape(Access::Local, LEA, &[0xff, 0x15], BY_SLOT),
    large(Access::General, LARGE_TAILS[0]),
    large(Access::General, LARGE_TAILS[1]),
    large(Access::Local, LARGE_TAILS[0]),
    large(Access::Local, LARGE_TAILS[1]),
];

impl Access {
    /// What the relocation type `number` asks for, if it is one of these.
    pub(super) fn of(number: u32) -> Option<Self> {
        Some(match number {
            19 => Access::General,
            20 => Access::Local,
            34 => Access::Descriptor,
            35 => Access::DescriptorCall,
            _ => return None,
        })
    }
}

impl Rewrite {
    fn of(parts: &[&[u8]]) -> Self {
        let mut rewrite = Rewrite { bytes: [0; SEQUENCE_MAX_BYTES], len: 0 };
        for part in parts {
            rewrite.bytes[rewrite.len..][..part.len()].copy_from_slice(part);
            rewrite.len += part.len();
        }
        rewrite
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The sequence around the field at `offset` of a section's `contents`, as far as the form of one is known. `call`:
/// offset and type of the next relocation, if that is for [`ADDRESS_GETTER`].
pub(super) fn rewrite(access: Access, contents: &[u8], offset: u64, call: Option<(u64, u32)>) -> Option<Found> {
    let at = usize::try_from(offset).ok()?;
    match access {
        Access::General | Access::Local => {
            let (call_at, call_type) = call?;
            SHAPES.iter().filter(|it| it.access == access).find_map(|it| it.find(contents, at, call_at, call_type))
        }
        Access::Descriptor => descriptor(contents, at),
        Access::DescriptorCall => {
            // `call *(%rax)`, which gives the distance that is in the register already.
            let is_call = contents.get(at..)?.starts_with(&[0xff, 0x10]);
            let rewrite = Rewrite::of(&[&[0x66, 0x90]]);
            is_call.then_some(Found { start: offset, rewrite, field: None, has_call: false })
        }
    }
}

/// `lea x@tlsdesc(%rip), reg` to `mov $distance, reg`.
fn descriptor(contents: &[u8], at: usize) -> Option<Found> {
    contents.get(at..at.checked_add(4)?)?;
    let &[rex @ (0x48 | 0x4c), 0x8d, modrm] = contents.get(at.checked_sub(3)?..at)? else { return None };
    if modrm & 0b1100_0111 != 0b101 {
        return None;
    }
    // The register moves from one field of the instruction to another, and so does its highest bit.
    let rewrite = Rewrite::of(&[&[0x48 | rex >> 2 & 1, 0xc7, 0xc0 | modrm >> 3 & 7]]);
    Some(Found { start: at as u64 - 3, rewrite, field: Some(at as u64), has_call: false })
}

impl Shape {
    fn find(&self, contents: &[u8], at: usize, call_at: u64, call_type: u32) -> Option<Found> {
        let start = contents.get(..at)?.len().checked_sub(self.head.len())?;
        let call = at + 4 + self.middle.len();
        let rest = contents.get(call..)?.get(self.call_bytes..)?;
        let fits = self.calls.contains(&call_type)
            && call_at == call as u64
            && contents[start..].starts_with(self.head)
            && contents[at + 4..].starts_with(self.middle)
            && rest.starts_with(self.tail);
        let field = (self.access == Access::General).then_some((start + LOAD.len() + 3) as u64);
        fits.then(|| Found { start: start as u64, rewrite: Rewrite::of(self.to), field, has_call: true })
    }
}

/// The error for a sequence of no known form.
pub(super) fn unknown(at: Location) -> CodeError {
    let what = "the instructions there are none by which compilers ask for a thread's variable";
    CodeError::Unsupported { what, at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_the_place_of_a_sequence_is_as_long() {
        for shape in &SHAPES {
            let from = shape.head.len() + 4 + shape.middle.len() + shape.call_bytes + shape.tail.len();
            let to: usize = shape.to.iter().map(|it| it.len()).sum();
            assert_eq!(from, to, "{:x?} {:x?} {:x?}", shape.head, shape.middle, shape.tail);
        }
    }

    #[test]
    fn the_register_of_a_descriptor_is_kept() {
        // lea 0(%rip), %rax and %r11; mov $0, %rax and %r11.
        for (from, to) in [([0x48, 0x8d, 0x05], [0x48, 0xc7, 0xc0]), ([0x4c, 0x8d, 0x1d], [0x49, 0xc7, 0xc3])] {
            let contents = [&from[..], &[0; 4]].concat();
            let found = rewrite(Access::Descriptor, &contents, 3, None).unwrap();
            assert_eq!((found.start, found.rewrite.bytes(), found.field), (0, &to[..], Some(3)));
        }
    }

    #[test]
    fn other_instructions_and_cut_sequences_are_not_taken_for_one() {
        let general = [0x66, 0x48, 0x8d, 0x3d, 0, 0, 0, 0, 0x66, 0x66, 0x48, 0xe8, 0, 0, 0, 0];
        assert!(rewrite(Access::General, &general, 4, Some((12, PLT32))).is_some());
        for end in 0..general.len() {
            assert_eq!(rewrite(Access::General, &general[..end], 4, Some((12, PLT32))), None, "{end} bytes");
        }
        for at in (0..4).chain(8..12) {
            let mut other = general;
            other[at] ^= 1;
            assert_eq!(rewrite(Access::General, &other, 4, Some((12, PLT32))), None, "byte {at}");
        }
        for call in [None, Some((11, PLT32)), Some((12, GOTPCREL))] {
            assert_eq!(rewrite(Access::General, &general, 4, call), None, "{call:?}");
        }
        for offset in [0, 3, 5, 16, u64::MAX] {
            for access in [Access::General, Access::Local, Access::Descriptor, Access::DescriptorCall] {
                assert_eq!(rewrite(access, &general, offset, Some((12, PLT32))), None, "{access:?} at {offset}");
            }
        }
    }
}
