//! The objects that one image is made of: one, several, or those of an archive that are needed.

use std::collections::{HashMap, HashSet};

use object::elf;
use object::read::archive::ArchiveFile;

use super::elf::{Base, Object};
use super::{CodeError, Limits};

/// How an archive starts, in all forms but the thin one.
const ARCHIVE_MAGIC: &[u8] = b"!<arch>\n";
/// How an archive starts that holds the names of its members, but not their bytes.
const THIN_MAGIC: &[u8] = b"!<thin>\n";

/// Bytes of the header of a member.
const HEADER_BYTES: usize = 60;
/// Indices and the table of names.
const TABLES_MAX: usize = 4;
/// The name of a member: longer than those of files.
const NAME_MAX_BYTES: usize = 4096;

/// What an image is to be made of, and what of it is to stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Names of the symbols to export; of an archive those members are taken that they need. None: all that is visible
    /// is exported, and all members are taken.
    pub roots: Vec<String>,
    /// Sections that no exported symbol needs stay, too.
    pub keep_unused: bool,
    /// The read-only data has the unwind table of what stays.
    pub keep_unwind: bool,
}

/// The objects in a blob: itself, or the members of an archive that `selection` needs, in their order there.
pub(super) fn read<'a>(
    blob: &'a [u8],
    selection: &'a Selection,
    limits: &'a Limits,
) -> Result<Vec<Object<'a>>, CodeError> {
    limits.hold_blob(blob)?;
    if !is_archive(blob) {
        return Ok(vec![Object::read(blob, None, limits)?]);
    }
    if blob.starts_with(THIN_MAGIC) {
        return Err(CodeError::malformed("a thin archive holds no objects, only their names: make it without T"));
    }
    let members = members(blob, selection, limits)?;
    let objects = if selection.roots.is_empty() { members } else { needed(members, &selection.roots)? };
    if objects.is_empty() {
        return Err(CodeError::malformed("the archive has no member that is needed"));
    }
    Ok(objects)
}

pub(super) fn is_archive(blob: &[u8]) -> bool {
    blob.starts_with(ARCHIVE_MAGIC) || blob.starts_with(THIN_MAGIC)
}

/// Where long names are a table, the reader looks in it for the end of each: so no name is so long that many members
/// which share it cost more than they have bytes.
fn check_long_names(blob: &[u8]) -> Result<(), CodeError> {
    let mut at = ARCHIVE_MAGIC.len();
    // The table stands before all objects, behind up to two indices.
    for _ in 0..TABLES_MAX {
        let Some(header) = blob.get(at..).and_then(|rest| rest.get(..HEADER_BYTES)) else { return Ok(()) };
        let size = str::from_utf8(&header[48..58]).ok().and_then(|it| it.trim_end().parse::<usize>().ok());
        let start = at + HEADER_BYTES;
        let Some(table) = size.and_then(|size| blob.get(start..start.checked_add(size)?)) else { return Ok(()) };
        if header.starts_with(b"// ")
            && table.split(|byte| matches!(byte, b'\n' | 0)).any(|it| it.len() > NAME_MAX_BYTES)
        {
            return Err(CodeError::malformed("the archive has a name without an end"));
        }
        at = (start + table.len()).next_multiple_of(2);
    }
    Ok(())
}

/// All members that are objects, whole. Their counts are held together as those of one object.
fn members<'a>(blob: &'a [u8], selection: &Selection, limits: &'a Limits) -> Result<Vec<Object<'a>>, CodeError> {
    check_long_names(blob)?;
    let broken = |_| CodeError::malformed("the archive is cut short, or a member of it is");
    let archive = ArchiveFile::parse(blob).map_err(broken)?;
    let mut objects = Vec::new();
    let (mut bytes, mut sections, mut symbols) = (0, 0, 0);
    for member in archive.members() {
        let member = member.map_err(broken)?;
        let data = member.data(blob).map_err(broken)?;
        bytes += data.len() as u64;
        // Members of a well-formed archive lie side by side.
        if bytes > blob.len() as u64 {
            return Err(CodeError::malformed("members of the archive share their bytes"));
        }
        // Nobody can need what defines nothing.
        if !selection.roots.is_empty() && !data.starts_with(&elf::ELFMAG) {
            continue;
        }
        let object = Object::read(data, Some(member.name()), limits)?;
        (sections, symbols) = (sections + object.sections.len() as u64, symbols + object.symbols.len() as u64);
        Limits::hold("sections", sections, u64::from(limits.sections_max))?;
        Limits::hold("symbols", symbols, u64::from(limits.symbols_max))?;
        objects.push(object);
    }
    Ok(objects)
}

/// The members that define what is asked for, and what those need in turn: the first that defines a name is taken for
/// it. The archive's own index is not looked at: it may be missing, old or false.
fn needed<'a>(members: Vec<Object<'a>>, roots: &'a [String]) -> Result<Vec<Object<'a>>, CodeError> {
    let mut definers: HashMap<&[u8], usize> = HashMap::new();
    for (at, object) in members.iter().enumerate() {
        each_global(object, |name, base, _| {
            if base != Base::Undefined {
                definers.entry(name).or_insert(at);
            }
        })?;
    }
    let mut taken = vec![false; members.len()];
    let mut defined: HashSet<&[u8]> = HashSet::new();
    let mut wanted: Vec<&[u8]> = roots.iter().map(|root| root.as_bytes()).collect();
    while let Some(name) = wanted.pop() {
        // What a member has that was taken for another name is not looked for again.
        let Some(&at) = definers.get(name).filter(|_| !defined.contains(name)) else { continue };
        if !std::mem::replace(&mut taken[at], true) {
            // A weak reference takes no member.
            each_global(&members[at], |name, base, is_weak| {
                if base != Base::Undefined {
                    defined.insert(name);
                } else if !is_weak {
                    wanted.push(name);
                }
            })?;
        }
    }
    Ok(members.into_iter().zip(taken).filter_map(|(object, taken)| taken.then_some(object)).collect())
}

fn each_global<'a>(object: &Object<'a>, mut each: impl FnMut(&'a [u8], Base, bool)) -> Result<(), CodeError> {
    for (index, symbol) in object.symbols.iter().enumerate().skip(1) {
        if symbol.st_bind() != elf::STB_LOCAL {
            let base = object.symbol_base(index, symbol)?;
            each(object.symbol_name(symbol)?, base, symbol.st_bind() == elf::STB_WEAK);
        }
    }
    Ok(())
}
