//! What objects say that they need of a processor: `.note.gnu.property`.

use object::elf;
use object::read::elf::SectionHeader as _;

use super::CodeError;
use super::elf::{LE, Object};

const SECTION: &[u8] = b".note.gnu.property";

/// The levels that any of the objects needs: bits of `GNU_PROPERTY_X86_ISA_1_NEEDED`, joined as linkers join them. What is
/// only used (`ISA_1_USED`) may stand behind a test of the processor, and counts for nothing.
///
/// # Errors
/// [`CodeError::Malformed`] for a note that cannot be read: code that says wrongly what it needs is not run.
pub(super) fn levels_needed(objects: &[Object<'_>]) -> Result<u32, CodeError> {
    objects.iter().try_fold(0, |bits, object| Ok(bits | of_object(object)?))
}

fn of_object(object: &Object<'_>) -> Result<u32, CodeError> {
    let (mut bits, mut notes_bytes) = (0, 0);
    for (index, header) in object.sections.iter().enumerate() {
        if header.sh_type(LE) != elf::SHT_NOTE || object.section_name(index)? != SECTION {
            continue;
        }
        // Else a small blob could be the contents of many sections, and cost more work than it has bytes.
        notes_bytes += object.contents(index)?.len();
        if notes_bytes > object.blob.len() {
            return Err(object.malformed_section("sections share their contents", index));
        }
        bits |= of_section(object, index)?;
    }
    Ok(bits)
}

fn of_section(object: &Object<'_>, index: usize) -> Result<u32, CodeError> {
    let malformed = || object.malformed_section("a property note cannot be read", index);
    let notes = object.sections[index].notes(LE, object.blob).map_err(|_| malformed())?;
    let mut bits = 0;
    for note in notes.into_iter().flatten() {
        let properties = note.map_err(|_| malformed())?.gnu_properties(LE);
        for property in properties.into_iter().flatten() {
            let property = property.map_err(|_| malformed())?;
            if property.pr_type() == elf::GNU_PROPERTY_X86_ISA_1_NEEDED {
                let needed: [u8; 4] = property.pr_data().try_into().map_err(|_| malformed())?;
                bits |= u32::from_le_bytes(needed);
            }
        }
    }
    Ok(bits)
}
