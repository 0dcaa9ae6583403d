use super::image::{Addresses, PartKind};
use super::link::fits;
use super::relocation::Field;
use super::relocations::{Links, SLOT_BYTES, To};
use super::stubs::STUB_BYTES;
use super::symbols::Place;
use super::unwind::Unwind;

/// Bytes of a stub before its displacement, and of that.
const STUB_FIELD: (u64, Field) = (2, Field::Signed(4));
/// The sign of what leads into the code, which moves, or elsewhere, which does not, as was chosen when it was written: a
/// slot that a resolver fills, and a displacement to a stub or past it to a function of another entry.
const CHOSEN: u8 = 3 << 2;
/// From a displacement to where it counts from.
const DISPLACEMENT_BYTES: i128 = 4;
/// What seven bits of a length in a varint are followed by where more follow.
const MORE: u8 = 0x80;

/// Which fields of a linked image depend on where its parts lie: enough to move it without its blob. A field is two bytes
/// here as a rule, as neither symbols nor addends are needed: what it holds only changes by as much as parts move.
///
/// In order of their places, part by part, each field is the distance from the one before as a varint, and a byte: two bits
/// each for the width, the sign, the part whose address was added and the part whose address was subtracted.
#[derive(Debug, Default)]
pub struct LinkState {
    records: Box<[u8]>,
    /// Where the records of the second and the third part begin.
    starts: [u32; 2],
    /// Fields lie over each other, which no compiler makes: what they hold does not add up.
    is_fixed: bool,
}

/// A field that depends on addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moving {
    part: u8,
    offset_bytes: u64,
    kind: u8,
}

/// Why a linked image cannot be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// A field has too few bits for where it would lie.
    #[error("the field at byte {offset_bytes} of the {part:?} part does not reach as far as parts would lie apart")]
    OutOfReach {
        /// Where the field lies.
        part: PartKind,
        /// Bytes from the start of the part.
        offset_bytes: u64,
    },
    /// Two relocations of the blob write to the same bytes.
    #[error("fields that depend on addresses lie over each other")]
    Overlapping,
}

impl LinkState {
    /// Of an image that is linked by these.
    pub(super) fn of(links: &Links, unwind: &Unwind) -> Self {
        let mut fields: Vec<Moving> = links
            .fixups
            .iter()
            .map(|fixup| {
                let relocation = fixup.relocation;
                let part = links.sources[fixup.source as usize].part;
                let minus = if relocation.is_relative() { Some(part) } else { None };
                // No relocation subtracts both.
                let minus = if relocation.is_relative_to_slots() { Some(PartKind::Rodata) } else { minus };
                let field = moving(part, fixup.offset_bytes, relocation.field(), part_of(links, fixup.to), minus);
                let is_chosen = relocation.is_relative() && links.may_pass_stub(fixup.to);
                if is_chosen { Moving { kind: field.kind | CHOSEN, ..field } } else { field }
            })
            .collect();
        for (offset_bytes, &target) in (links.slots_offset_bytes..).step_by(SLOT_BYTES as usize).zip(&links.slots) {
            let plus = part_of(links, To::Target(target));
            fields.push(moving(PartKind::Rodata, offset_bytes, Field::Either(SLOT_BYTES), plus, None));
        }
        for (offset_bytes, _) in (links.stubs_offset_bytes..).step_by(STUB_BYTES as usize).zip(&links.stubs) {
            let (at, field) = (offset_bytes + STUB_FIELD.0, STUB_FIELD.1);
            fields.push(moving(PartKind::Code, at, field, Some(PartKind::Rodata), Some(PartKind::Code)));
        }
        for (stub_field_bytes, slot_bytes) in links.chosen.fields() {
            let plus = Some(PartKind::Rodata);
            fields.push(moving(PartKind::Code, stub_field_bytes, STUB_FIELD.1, plus, Some(PartKind::Code)));
            let slot = moving(PartKind::Rodata, slot_bytes, Field::Either(SLOT_BYTES), Some(PartKind::Code), None);
            fields.push(Moving { kind: slot.kind | CHOSEN, ..slot });
        }
        let near = Field::Signed(4);
        let begin = |at| moving(PartKind::Rodata, at, near, Some(PartKind::Code), Some(PartKind::Rodata));
        fields.extend(unwind.fields().map(begin));
        Self::encode(fields)
    }

    /// Bytes of heap that this takes.
    pub fn heap_bytes(&self) -> u64 {
        self.records.len() as u64
    }

    /// Fields that depend on addresses.
    pub fn fields(&self) -> usize {
        self.moving().count()
    }

    /// Makes the parts of an image that was linked for `from` what linking makes them for `to`. What running code has
    /// put into the data is not known here: pointers that it keeps there stay what they were.
    ///
    /// # Errors
    /// [`MoveError`]; the buffers then hold nothing useful.
    ///
    /// # Panics
    /// If the buffers are shorter than the parts were.
    pub fn relink(
        &self,
        from: Addresses,
        to: Addresses,
        code: &mut [u8],
        rodata: &mut [u8],
        data: &mut [u8],
    ) -> Result<(), MoveError> {
        if self.is_fixed {
            return Err(MoveError::Overlapping);
        }
        let moved = PARTS.map(|part| i128::from(to.of(part)) - i128::from(from.of(part)));
        let code_bytes = code.len() as i128;
        let by = |part: u8| if part == 0 { 0 } else { moved[usize::from(part) - 1] };
        for Moving { part, offset_bytes, kind } in self.moving() {
            let buffer: &mut [u8] = [&mut *code, &mut *rodata, &mut *data][usize::from(part)];
            let (field, plus, minus) = decode_kind(kind);
            let bytes = &mut buffer[offset_bytes as usize..][..width_bytes(field)];
            let old = read(field, bytes);
            let of_code = i128::from(from.code)..i128::from(from.code) + code_bytes;
            let here = i128::from(from.of(PARTS[usize::from(part)])) + i128::from(offset_bytes) + DISPLACEMENT_BYTES;
            let leads_to = if minus == 0 { old } else { here + old };
            let plus = if kind & CHOSEN == CHOSEN && !of_code.contains(&leads_to) { 0 } else { plus };
            let value = old + by(plus) - by(minus);
            // A field that is read as either sign holds what it held by its bits.
            if width_bytes(field) < 8 && !fits(field, value) {
                return Err(MoveError::OutOfReach { part: PARTS[usize::from(part)], offset_bytes });
            }
            bytes.copy_from_slice(&value.to_le_bytes()[..width_bytes(field)]);
        }
        Ok(())
    }

    fn encode(mut fields: Vec<Moving>) -> Self {
        fields.sort_unstable();
        let overlap = |pair: &[Moving]| {
            let end_bytes = pair[0].offset_bytes + width_bytes(decode_kind(pair[0].kind).0) as u64;
            pair[0].part == pair[1].part && end_bytes > pair[1].offset_bytes
        };
        if fields.windows(2).any(overlap) {
            return Self { is_fixed: true, ..Self::default() };
        }
        fields.retain(|field| {
            let (_, plus, minus) = decode_kind(field.kind);
            plus != minus || field.kind & CHOSEN == CHOSEN
        });
        let mut records = Vec::with_capacity(2 * fields.len());
        let mut starts = [0; 2];
        let (mut part, mut end) = (0, 0);
        for field in fields {
            while part < field.part {
                starts[usize::from(part)] = records.len() as u32;
                (part, end) = (part + 1, 0);
            }
            put_varint(&mut records, field.offset_bytes - end);
            records.push(field.kind);
            end = field.offset_bytes;
        }
        starts[usize::from(part)..].fill(records.len() as u32);
        Self { records: records.into(), starts, is_fixed: false }
    }

    fn moving(&self) -> impl Iterator<Item = Moving> {
        let (starts, records) = (self.starts, &*self.records);
        let (mut at, mut part, mut end) = (0, 0, 0);
        std::iter::from_fn(move || {
            if at == records.len() {
                return None;
            }
            while usize::from(part) < starts.len() && starts[usize::from(part)] as usize <= at {
                (part, end) = (part + 1, 0);
            }
            end += take_varint(records, &mut at);
            at += 1;
            Some(Moving { part, offset_bytes: end, kind: records[at - 1] })
        })
    }
}

const PARTS: [PartKind; 3] = [PartKind::Code, PartKind::Rodata, PartKind::Data];

/// The record of a field. Where the same part is added and subtracted it holds the same wherever the image lies.
fn moving(part: PartKind, offset_bytes: u64, field: Field, plus: Option<PartKind>, minus: Option<PartKind>) -> Moving {
    let number = |part: Option<PartKind>| part.map_or(0, |part| part as u8 + 1);
    let (width, sign) = match field {
        Field::Signed(bytes) => (bytes, 0),
        Field::Unsigned(bytes) => (bytes, 1),
        Field::Either(bytes) => (bytes, 2),
    };
    let kind = width.trailing_zeros() as u8 | sign << 2 | number(plus) << 4 | number(minus) << 6;
    Moving { part: part as u8, offset_bytes, kind }
}

/// What the field holds, and the numbers of the parts that were added and subtracted, 0 for none.
fn decode_kind(kind: u8) -> (Field, u8, u8) {
    let bytes = 1 << (kind & 3);
    let field = match kind >> 2 & 3 {
        0 => Field::Signed(bytes),
        1 => Field::Unsigned(bytes),
        2 => Field::Either(bytes),
        // Displacements, and addresses.
        _ => {
            if kind >> 6 == 0 {
                Field::Either(bytes)
            } else {
                Field::Signed(bytes)
            }
        }
    };
    (field, kind >> 4 & 3, kind >> 6)
}

/// The part whose address is in what a fixup refers to.
fn part_of(links: &Links, to: To) -> Option<PartKind> {
    match to {
        To::Slot(_) | To::SlotsStart => Some(PartKind::Rodata),
        To::Stub(_) => Some(PartKind::Code),
        To::Target(target) => match links.targets[target as usize].place {
            Place::In(part, _) => Some(part),
            Place::SlotsStart => Some(PartKind::Rodata),
            _ => None,
        },
    }
}

fn width_bytes(field: Field) -> usize {
    match field {
        Field::Signed(bytes) | Field::Unsigned(bytes) | Field::Either(bytes) => bytes as usize,
    }
}

/// The number in a field; of one that is used as either sign, the signed one.
fn read(field: Field, bytes: &[u8]) -> i128 {
    let mut wide = [0; 16];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unused_bits = 8 * (wide.len() - bytes.len()) as u32;
    let unsigned = i128::from_le_bytes(wide);
    if matches!(field, Field::Unsigned(_)) { unsigned } else { unsigned << unused_bits >> unused_bits }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= u64::from(MORE) {
        bytes.push(value as u8 | MORE);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & !MORE) << shift;
        if byte < MORE {
            break;
        }
    }
    value
}
