//! Call stubs: what stands in an image for functions that lie too far away.

use super::provider::Provided;
use super::relocation::Relocation;
use super::relocations::{END_OF_FIELD, Links, Target, To};
use super::symbols::Place;

/// Bytes of a call stub: `jmp *slot(%rip)`, and trap bytes up to a multiple of 8.
pub(super) const STUB_BYTES: u64 = 8;
/// Bytes of the instruction of a stub. Its displacement is the last four of them, relative to its end.
pub(super) const JUMP_BYTES: u64 = 6;
/// The highest address that a field of 32 bits holds, whether it is sign-extended or not.
const LOW_MAX: u64 = i32::MAX as u64;
/// `jmp *0(%rip)`; the displacement follows once addresses are known.
pub(super) const STUB: [u8; STUB_BYTES as usize] = [0xff, 0x25, 0, 0, 0, 0, 0xcc, 0xcc];

/// Whether a field leads to a stub for the symbol, and not to the symbol itself.
pub(super) fn leads_there(relocation: Relocation, place: Place, addend: i64) -> bool {
    match relocation {
        // Calls of a weak symbol that is nothing stand behind a test of its address, and still must reach.
        Relocation::Plt32 => {
            matches!(place, Place::Import(_) | Place::Provided(_) | Place::Nothing) && addend == END_OF_FIELD
        }
        Relocation::PltOff64 => matches!(place, Place::Import(_) | Place::Provided(_) | Place::Nothing) && addend == 0,
        // Compilers and older assemblers write calls so, and a stub's address serves as the function's own.
        // Data has no such stand-in: it must be near, or be addressed by a slot.
        Relocation::Pc32 => {
            matches!(place, Place::Import(_) | Place::Provided(Provided { is_function: true, .. }))
                && addend == END_OF_FIELD
        }
        // Likewise; what lies below 2 GiB needs no such stand-in.
        Relocation::Abs32 | Relocation::Abs32S => {
            let is_far = match place {
                Place::Import(address) => address > LOW_MAX,
                Place::Provided(Provided { is_function, address, .. }) => is_function && address > LOW_MAX,
                _ => false,
            };
            is_far && addend == 0
        }
        // Somewhere in the middle of a function that is far away nobody can be led to by a stub.
        _ => false,
    }
}

/// Whether a field only fits where the image lies below 2 GiB: with an address of the image itself in 32 bits, or the
/// distance to what another entry has there.
pub(super) fn needs_low(relocation: Relocation, to: To, place: Place) -> bool {
    match relocation {
        Relocation::Abs32 | Relocation::Abs32S => {
            matches!(to, To::Stub(_)) || matches!(place, Place::In(..) | Place::SlotsStart)
        }
        Relocation::Pc32 | Relocation::Plt32 => {
            matches!((to, place), (To::Target(_), Place::Provided(provided)) if provided.address <= LOW_MAX)
        }
        _ => false,
    }
}

impl Links {
    /// A function whose address is taken in 32 bits has its stub's address in all of the image, so that its code finds
    /// it equal to what its tables hold. But for what is loaded from a slot: code that may lie anywhere does that.
    pub(super) fn lead_to_stubs(&mut self) {
        if !self.targets.iter().any(|target| target.is_by_stub_alone) {
            return;
        }
        for fixup in self.fixups.iter_mut().filter(|it| it.relocation == Relocation::Abs64 && it.addend == 0) {
            if let To::Target(target) = fixup.to
                && let Target { is_by_stub_alone: true, stub: Some(stub), .. } = self.targets[target as usize]
            {
                fixup.to = To::Stub(stub);
            }
        }
    }

    /// Whether linking may lead past this stub, straight to a function of another entry.
    pub(super) fn may_pass_stub(&self, to: To) -> bool {
        let To::Stub(stub) = to else { return false };
        let target = self.slots[self.stubs[stub as usize] as usize];
        matches!(self.targets[target as usize].place, Place::Provided(_))
    }

    /// Writes the stubs, still without their displacements, behind the sections of `code`.
    pub(super) fn write_stubs(&self, code: &mut [u8]) {
        let room = &mut code[self.stubs_offset_bytes as usize..];
        for (stub, _) in room.chunks_exact_mut(STUB.len()).zip(&self.stubs) {
            stub.copy_from_slice(&STUB);
        }
        self.chosen.write_stubs(code);
    }
}
