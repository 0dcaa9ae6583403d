use super::image::{Addresses, PartKind};
use super::relocation::{self, Field, Relocation};
use super::relocations::{Fixup, Links, SLOT_BYTES, Target, To};
use super::stubs::{JUMP_BYTES, STUB_BYTES};
use super::symbols::Place;
use super::{CodeError, Location};

/// Writes `links` into the parts of an image that runs at `at`. `data` may lack its zeros: nothing is written there.
pub(super) fn apply(
    links: &Links,
    at: Addresses,
    code: &mut [u8],
    rodata: &mut [u8],
    data: &mut [u8],
) -> Result<(), CodeError> {
    let linker = Linker { links, at };
    for fixup in &links.fixups {
        let buffer = match links.sources[fixup.source as usize].part {
            PartKind::Code => &mut *code,
            PartKind::Rodata => &mut *rodata,
            PartKind::Data => &mut *data,
        };
        linker.fix(fixup, buffer)?;
    }
    let slots = rodata[links.slots_offset_bytes as usize..].chunks_exact_mut(SLOT_BYTES as usize);
    for (&target, field) in links.slots.iter().zip(slots) {
        field.copy_from_slice(&linker.slot_contents(target)?);
    }
    let stubs = code[links.stubs_offset_bytes as usize..].chunks_exact_mut(STUB_BYTES as usize);
    for (index, field) in (0..links.stubs.len() as u32).zip(stubs) {
        field[2..6].copy_from_slice(&linker.stub_displacement(index)?);
    }
    links.chosen.apply(at, code, rodata)
}

/// Tells every problem that linking to run at `at` would end with.
pub(super) fn check(links: &Links, at: Addresses, mut problem: impl FnMut(CodeError)) {
    let linker = Linker { links, at };
    links.fixups.iter().filter_map(|fixup| linker.value(fixup).err()).for_each(&mut problem);
    links.slots.iter().filter_map(|&target| linker.slot_contents(target).err()).for_each(&mut problem);
    (0..links.stubs.len() as u32).filter_map(|stub| linker.stub_displacement(stub).err()).for_each(&mut problem);
}

/// The error for an image that holds addresses of its own in 32 bits, if it cannot lie below 2 GiB.
pub(super) fn low_problem(links: &Links) -> Option<CodeError> {
    let fixup = &links.fixups[links.first_low? as usize];
    Some(relocation::low_address(fixup.relocation, links.location(fixup)))
}

struct Linker<'a> {
    links: &'a Links,
    at: Addresses,
}

/// Addresses are computed in 128 bits, where no sum of what an object can say wraps.
impl Linker<'_> {
    fn fix(&self, fixup: &Fixup, buffer: &mut [u8]) -> Result<(), CodeError> {
        let value = self.value(fixup)?;
        let width_bytes = fixup.relocation.width_bytes() as usize;
        let field = &mut buffer[fixup.offset_bytes as usize..][..width_bytes];
        field.copy_from_slice(&value.to_le_bytes()[..width_bytes]);
        Ok(())
    }

    /// What belongs into the field, which can hold it.
    fn value(&self, fixup: &Fixup) -> Result<i128, CodeError> {
        let source = &self.links.sources[fixup.source as usize];
        let mut value = self.destination(self.shortest(fixup)) + i128::from(fixup.addend);
        if fixup.relocation.is_relative() {
            value -= self.address(source.part, fixup.offset_bytes);
        }
        if fixup.relocation.is_relative_to_slots() {
            value -= self.slots_start();
        }
        if !fits(fixup.relocation.field(), value) {
            return Err(self.overflow(fixup, value));
        }
        Ok(value)
    }

    /// A call of another entry's function needs no stub where the function itself is near enough.
    fn shortest(&self, fixup: &Fixup) -> To {
        let To::Stub(stub) = fixup.to else { return fixup.to };
        let target = self.links.slots[self.links.stubs[stub as usize] as usize];
        let Place::Provided(provided) = self.links.targets[target as usize].place else { return fixup.to };
        let source = &self.links.sources[fixup.source as usize];
        let distance = i128::from(provided.address) - self.address(source.part, fixup.offset_bytes);
        let is_near = fits(fixup.relocation.field(), distance + i128::from(fixup.addend));
        if fixup.relocation.is_relative() && is_near { To::Target(target) } else { fixup.to }
    }

    fn destination(&self, to: To) -> i128 {
        match to {
            To::Target(target) => self.symbol(target),
            To::Slot(slot) => self.slot(slot),
            To::Stub(stub) => self.stub(stub),
            To::SlotsStart => self.slots_start(),
        }
    }

    fn slots_start(&self) -> i128 {
        self.address(PartKind::Rodata, self.links.slots_offset_bytes)
    }

    fn symbol(&self, target: u32) -> i128 {
        match self.links.targets[target as usize].place {
            Place::In(part, offset_bytes) => self.address(part, offset_bytes),
            Place::Absolute(address) | Place::Import(address) => i128::from(address),
            Place::Provided(provided) => i128::from(provided.address),
            Place::SlotsStart => self.slots_start(),
            Place::OfThread(distance_bytes) => i128::from(distance_bytes),
            // No target is made of the others but a weak symbol without definition.
            Place::Nothing | Place::Unresolved | Place::NotLoaded | Place::OfLoader => 0,
        }
    }

    fn slot(&self, index: u32) -> i128 {
        self.address(PartKind::Rodata, self.links.slots_offset_bytes + u64::from(index) * SLOT_BYTES)
    }

    fn stub(&self, index: u32) -> i128 {
        self.address(PartKind::Code, self.links.stubs_offset_bytes + u64::from(index) * STUB_BYTES)
    }

    fn address(&self, part: PartKind, offset_bytes: u64) -> i128 {
        i128::from(self.at.of(part)) + i128::from(offset_bytes)
    }

    fn slot_contents(&self, target: u32) -> Result<[u8; 8], CodeError> {
        let value = self.symbol(target);
        bits64(value).ok_or_else(|| self.overflow_of(Relocation::Abs64, value, target))
    }

    fn stub_displacement(&self, index: u32) -> Result<[u8; 4], CodeError> {
        let slot = self.links.stubs[index as usize];
        let value = self.slot(slot) - (self.stub(index) + i128::from(JUMP_BYTES));
        let target = self.links.slots[slot as usize];
        i32::try_from(value).map(i32::to_le_bytes).map_err(|_| self.overflow_of(Relocation::Plt32, value, target))
    }

    fn overflow(&self, fixup: &Fixup, value: i128) -> CodeError {
        let (relocation, at) = (fixup.relocation, self.links.location(fixup));
        let place = self.links.target_of(fixup.to).map(|it| self.links.targets[it as usize].place);
        let is_own = !matches!(fixup.to, To::Target(_)) || matches!(place, Some(Place::In(..) | Place::SlotsStart));
        let is_address = is_own || matches!(place, Some(Place::Import(_) | Place::Provided(_)));
        match place {
            _ if relocation.is_tiny_address() && is_address => relocation::tiny_address(relocation, at),
            // Where the address itself would do, it is the addend that is too much.
            _ if relocation.is_low_address() && is_own => match fits(relocation.field(), self.destination(fixup.to)) {
                false => relocation::low_address(relocation, at),
                true => CodeError::RelocationOverflow { relocation: relocation.name(), value, at },
            },
            Some(Place::Import(_)) if relocation.is_low_address() => relocation::far_host(relocation, at),
            Some(Place::Provided(_)) => relocation::far_entry(relocation, at),
            _ => CodeError::RelocationOverflow { relocation: relocation.name(), value, at },
        }
    }

    /// Of what linking adds by itself.
    fn overflow_of(&self, relocation: Relocation, value: i128, target: u32) -> CodeError {
        let Target { place, name, .. } = &self.links.targets[target as usize];
        let symbol = Some(name.to_string()).filter(|name| !name.is_empty());
        let at = Location { symbol, ..Location::default() };
        match place {
            Place::Provided(_) => relocation::far_entry(relocation, at),
            _ => CodeError::RelocationOverflow { relocation: relocation.name(), value, at },
        }
    }
}

impl Links {
    /// The symbol that a field depends on; `None` for the start of the global offset table.
    fn target_of(&self, to: To) -> Option<u32> {
        match to {
            To::Target(target) => Some(target),
            To::Slot(slot) => Some(self.slots[slot as usize]),
            To::Stub(stub) => Some(self.slots[self.stubs[stub as usize] as usize]),
            To::SlotsStart => None,
        }
    }

    /// Where a field lies, as errors tell it.
    fn location(&self, fixup: &Fixup) -> Location {
        let source = &self.sources[fixup.source as usize];
        let name = self.target_of(fixup.to).map(|target| self.targets[target as usize].name.to_string());
        Location {
            section: Some(source.name.to_string()),
            symbol: name.filter(|name| !name.is_empty()),
            offset_bytes: Some(fixup.offset_bytes - source.offset_bytes),
            ..Location::default()
        }
    }
}

/// Whether a field can hold a value.
pub(super) fn fits(field: Field, value: i128) -> bool {
    let (signed, unsigned, bytes) = match field {
        Field::Signed(bytes) => (true, false, bytes),
        Field::Unsigned(bytes) => (false, true, bytes),
        Field::Either(bytes) => (true, true, bytes),
    };
    let bits = 8 * bytes as u32;
    let as_signed = || (-(1_i128 << (bits - 1))..1_i128 << (bits - 1)).contains(&value);
    let as_unsigned = || (0..1_i128 << bits).contains(&value);
    signed && as_signed() || unsigned && as_unsigned()
}

/// The bytes of a 64-bit field that is read as signed or as unsigned.
fn bits64(value: i128) -> Option<[u8; 8]> {
    let signed = i64::try_from(value).map(i64::to_le_bytes);
    signed.or_else(|_| u64::try_from(value).map(u64::to_le_bytes)).ok()
}
