//! The unwind table of an image, made anew of the `.eh_frame` sections of its objects.
//!
//! Records of functions that are placed are kept, in one form: addresses relative to their field in 32 bits. What
//! handlers of exceptions need (personality, language-specific data) is left out of them: this is for backtraces. A
//! record that is not understood is left out as well, since code runs without. The form is that of the Linux Standard
//! Base, "Exception Frames", and of DWARF 5, section 6.4.

use std::collections::HashMap;
use std::ops::Range;

use object::elf;
use object::read::elf::SectionHeader as _;

use super::elf::{Header, LE, Object, Rela};
use super::entities::Entities;
use super::image::{Addresses, PartKind};
use super::layout::Layout;
use super::relocation::Relocation;
use super::symbols::Place;
use super::{CodeError, Location};

/// A pointer relative to its own place, in four bytes with a sign.
const ENCODING: u8 = 0x1b;
const NOP: u8 = 0;
/// Of records, as debuggers and unwinders read them word by word.
const ALIGN_BYTES: usize = 8;
/// Ends the table.
const END: [u8; 4] = [0; 4];

/// The table before it is linked. Without functions it has no bytes.
#[derive(Default)]
pub(super) struct Unwind {
    /// Its records, without the addresses of functions.
    pub(super) bytes: Vec<u8>,
    /// Bytes from the start of the read-only part.
    pub(super) offset_bytes: u64,
    /// For each function: where in the table its address is, and its offset in the code.
    begins: Vec<(usize, u64)>,
}

/// Makes the table and takes room for it.
pub(super) fn collect(
    objects: &[Object<'_>],
    entities: &Entities,
    places: &[Place],
    layout: &mut Layout,
) -> Result<Unwind, CodeError> {
    let code_bytes = layout.sizes().code.size_bytes;
    let mut table = Table { unwind: Unwind::default(), common: HashMap::new(), code_bytes };
    for (at, object) in objects.iter().enumerate() {
        if let Some(Frames { bytes, relocations }) = frames(object)? {
            let place = |symbol| entities.of(at, symbol).map(|entity| places[entity as usize]);
            table.add(bytes, &Relocations::new(relocations, place));
        }
    }
    let mut unwind = table.unwind;
    if unwind.begins.is_empty() {
        return Ok(Unwind::default());
    }
    unwind.bytes.extend(END);
    unwind.offset_bytes = layout.take(PartKind::Rodata, unwind.bytes.len() as u64, ALIGN_BYTES as u64)?;
    Ok(unwind)
}

impl Unwind {
    /// How many functions it speaks of.
    pub(super) fn functions(&self) -> u64 {
        self.begins.len() as u64
    }

    /// Where it lies in the read-only part.
    pub(super) fn range(&self) -> Option<Range<u64>> {
        let end = self.offset_bytes + self.bytes.len() as u64;
        (!self.bytes.is_empty()).then_some(self.offset_bytes..end)
    }

    /// Where in the read-only part the address of each function is.
    pub(super) fn fields(&self) -> impl Iterator<Item = u64> {
        self.begins.iter().map(|&(field, _)| self.offset_bytes + field as u64)
    }

    /// Writes the addresses of functions.
    pub(super) fn link(&self, at: Addresses, rodata: &mut [u8]) -> Result<(), CodeError> {
        let start = self.offset_bytes as usize;
        for &(field, code_offset) in &self.begins {
            let own = i128::from(at.rodata) + (start + field) as i128;
            let value = i128::from(at.code) + i128::from(code_offset) - own;
            let Ok(distance) = i32::try_from(value) else {
                let at = Location { section: Some(".eh_frame".to_owned()), ..Location::default() };
                return Err(CodeError::RelocationOverflow { relocation: Relocation::Pc32.name(), value, at });
            };
            rodata[start + field..][..4].copy_from_slice(&distance.to_le_bytes());
        }
        Ok(())
    }
}

/// A section of unwind records.
struct Frames<'a> {
    bytes: &'a [u8],
    relocations: &'a [Rela],
}

/// The first section of that name with the first table of its relocations: compilers make one of each.
fn frames<'a>(object: &Object<'a>) -> Result<Option<Frames<'a>>, CodeError> {
    for (index, header) in object.sections.iter().enumerate().skip(1) {
        let is_kept = matches!(header.sh_type(LE), elf::SHT_PROGBITS | elf::SHT_X86_64_UNWIND);
        if !is_kept || object.section_name(index)? != b".eh_frame" {
            continue;
        }
        let is_of_it = |it: &Header| {
            it.sh_type(LE) == elf::SHT_RELA && it.sh_info(LE) as usize == index && it.link(LE).0 == object.symtab_index
        };
        let table = object.sections.iter().position(is_of_it).filter(|_| object.symtab_index != 0);
        let relocations: &[Rela] = match table {
            Some(table) => object.entries(table)?,
            None => &[],
        };
        return Ok(Some(Frames { bytes: object.contents(index)?, relocations }));
    }
    Ok(None)
}

/// What relocations write into a section.
struct Relocations {
    /// By the offset of the field, in order: where in the code it leads, if it is an address of code that is placed.
    fields: Vec<(u64, Option<u64>)>,
}

impl Relocations {
    fn new(entries: &[Rela], place: impl Fn(usize) -> Option<Place>) -> Self {
        let leads_to = |entry: &Rela| {
            let is_address =
                matches!(entry.r_type(LE, false), elf::R_X86_64_PC32 | elf::R_X86_64_PC64 | elf::R_X86_64_64);
            match place(entry.r_sym(LE, false) as usize) {
                Some(Place::In(PartKind::Code, offset)) if is_address => {
                    offset.checked_add_signed(entry.r_addend.get(LE))
                }
                _ => None,
            }
        };
        let mut fields: Vec<_> = entries.iter().map(|it| (it.r_offset.get(LE), leads_to(it))).collect();
        fields.sort_unstable();
        Self { fields }
    }

    /// Where in the code the field at `offset` leads.
    fn code_at(&self, offset: usize) -> Option<u64> {
        let at = self.fields.binary_search_by_key(&(offset as u64), |&(field, _)| field).ok()?;
        self.fields[at].1
    }

    fn any_in(&self, range: Range<usize>) -> bool {
        let first = self.fields.partition_point(|&(field, _)| field < range.start as u64);
        self.fields.get(first).is_some_and(|&(field, _)| field < range.end as u64)
    }
}

/// A common record (CIE) as it was read.
#[derive(Clone, Copy)]
struct Common {
    /// Its own place in the new table.
    offset: usize,
    /// Bytes of the address and of the size of a function.
    pointer_bytes: usize,
    /// Functions have further data, with its length before it.
    is_augmented: bool,
}

struct Table {
    unwind: Unwind,
    /// Common records that are there already, by what they say.
    common: HashMap<Vec<u8>, usize>,
    code_bytes: u64,
}

impl Table {
    fn add(&mut self, frames: &[u8], relocations: &Relocations) {
        let mut seen: HashMap<usize, Option<Common>> = HashMap::new();
        let mut at = 0;
        while let Some(record) = Record::read(frames, at) {
            match record.common_at {
                None => {
                    let common = self.add_common(frames, &record, relocations);
                    seen.insert(at, common);
                }
                Some(of) => {
                    if let Some(&Some(common)) = seen.get(&of) {
                        // What is not understood is left out.
                        let _ = self.add_function(frames, &record, common, relocations);
                    }
                }
            }
            at = record.body.end;
        }
    }

    fn add_common(&mut self, frames: &[u8], record: &Record, relocations: &Relocations) -> Option<Common> {
        let mut reader = Reader { bytes: frames, at: record.body.start, end: record.body.end };
        let version = reader.byte()?;
        let augmentation = reader.text()?;
        let factors_start = reader.at;
        reader.skip_leb128()?; // the code alignment factor
        reader.skip_leb128()?; // the data alignment factor
        let factors = &frames[factors_start..reader.at];
        let return_register = reader.byte()?;
        if !matches!(version, 1 | 3) || return_register & 0x80 != 0 {
            return None;
        }
        let (mut encoding, mut is_signal) = (0, false);
        let is_augmented = match augmentation.split_first() {
            None => false,
            Some((b'z', letters)) => {
                let length = reader.leb128()?;
                let mut data = reader.part(length)?;
                for letter in letters {
                    match letter {
                        b'R' => encoding = data.byte()?,
                        b'P' => {
                            let of = data.byte()?;
                            data.part(pointer_bytes(of)? as u64)?;
                        }
                        b'L' => {
                            data.byte()?;
                        }
                        b'S' => is_signal = true,
                        _ => return None,
                    }
                }
                true
            }
            Some(_) => return None,
        };
        let instructions = reader.at..reader.end;
        if relocations.any_in(instructions.clone()) {
            return None;
        }
        let mut body = vec![0, 0, 0, 0, 1]; // no common record of its own; version 1
        body.extend(if is_signal { &b"zRS\0"[..] } else { &b"zR\0"[..] });
        body.extend(factors);
        body.extend([return_register, 1, ENCODING]);
        body.extend(&frames[instructions]);
        let pointer_bytes = pointer_bytes(encoding)?;
        let offset = match self.common.get(&body) {
            Some(&offset) => offset,
            None => {
                let offset = self.push(&body);
                self.common.insert(body, offset);
                offset
            }
        };
        Some(Common { offset, pointer_bytes, is_augmented })
    }

    fn add_function(
        &mut self,
        frames: &[u8],
        record: &Record,
        common: Common,
        relocations: &Relocations,
    ) -> Option<()> {
        let mut reader = Reader { bytes: frames, at: record.body.start, end: record.body.end };
        let begin = relocations.code_at(reader.at)?;
        reader.part(common.pointer_bytes as u64)?;
        let size = reader.number(common.pointer_bytes)?;
        if common.is_augmented {
            let length = reader.leb128()?;
            reader.part(length)?;
        }
        let instructions = reader.at..reader.end;
        let is_within = size > 0 && begin.checked_add(size).is_some_and(|end| end <= self.code_bytes);
        if !is_within || relocations.any_in(instructions.clone()) {
            return None;
        }
        let size = u32::try_from(size).ok()?;
        let own = self.unwind.bytes.len() + 4; // of the field that leads back to the common record
        let mut body = u32::try_from(own - common.offset).ok()?.to_le_bytes().to_vec();
        body.extend([0; 4]);
        body.extend(size.to_le_bytes());
        body.push(0); // no further data
        body.extend(&frames[instructions]);
        self.push(&body);
        self.unwind.begins.push((own + 4, begin));
        Some(())
    }

    /// Appends a record with its length before it; answers where it starts.
    fn push(&mut self, body: &[u8]) -> usize {
        let bytes = &mut self.unwind.bytes;
        let offset = bytes.len();
        let padded = (4 + body.len()).next_multiple_of(ALIGN_BYTES);
        // No record is longer than its blob, whose length fits.
        bytes.extend((padded as u32 - 4).to_le_bytes());
        bytes.extend(body);
        bytes.resize(offset + padded, NOP);
        offset
    }
}

/// Where a record lies in its section.
struct Record {
    /// What follows length and kind.
    body: Range<usize>,
    /// Where its common record is; `None` for one that is such.
    common_at: Option<usize>,
}

impl Record {
    /// `None` at the end, and where records have lengths of 64 bits or none that can be.
    fn read(frames: &[u8], at: usize) -> Option<Self> {
        let mut reader = Reader { bytes: frames, at, end: frames.len() };
        let length = reader.number(4)?;
        let start = reader.at;
        if !(4..0xffff_fff0).contains(&length) || length > (frames.len() - start) as u64 {
            return None;
        }
        let back = reader.number(4)? as usize;
        let common_at = match back {
            0 => None,
            back => Some(start.checked_sub(back)?),
        };
        Some(Self { body: reader.at..start + length as usize, common_at })
    }
}

/// Reads on from `at`, not beyond `end`.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at).filter(|_| self.at < self.end)?;
        self.at += 1;
        Some(byte)
    }

    /// A whole number of so many bytes, the lowest first.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        (0..bytes).try_fold(0, |number, at| Some(number | u64::from(self.byte()?) << (8 * at)))
    }

    /// Up to the zero that ends it.
    fn text(&mut self) -> Option<&'a [u8]> {
        let rest = &self.bytes[self.at..self.end];
        let length = rest.iter().position(|&byte| byte == 0)?;
        self.at += length + 1;
        Some(&rest[..length])
    }

    fn leb128(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn skip_leb128(&mut self) -> Option<()> {
        self.leb128().map(|_| ())
    }

    /// The next bytes by themselves.
    fn part(&mut self, bytes: u64) -> Option<Reader<'a>> {
        let end = self.at.checked_add(usize::try_from(bytes).ok()?).filter(|&end| end <= self.end)?;
        let part = Reader { bytes: self.bytes, at: self.at, end };
        self.at = end;
        Some(part)
    }
}

/// Bytes of a pointer of this encoding; `None` for those that have no fixed length.
fn pointer_bytes(encoding: u8) -> Option<usize> {
    match encoding & 0x0f {
        0x03 | 0x0b => Some(4),
        0x00 | 0x04 | 0x0c => Some(8),
        _ => None,
    }
}
