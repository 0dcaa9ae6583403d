//! What an image has of its own in each thread: its thread-local variables, and a thread pointer.
//!
//! Code that touches what is at the thread pointer would touch the host's: there its C library keeps secrets and
//! variables that another C library has other names for. So such code gets a block of its own for each call:
//!
//! ```text
//!  | variables: initial bytes, zeros | self pointer, canary at 0x28, errno at 0x34, room ... |
//!                                    ^ thread pointer                                        ^ + CONTROL_BYTES
//! ```
//! What is above the pointer is laid out as musl's `struct pthread` begins (1.2 on x86-64), so that its code finds
//! itself at home. Host functions expect the host's thread pointer, so calls of them go by a thunk that lends it.

use object::elf;
use object::read::elf::SectionHeader as _;

use super::elf::{LE, Object};
use super::entities::{Definition, Entities, SymbolId};
use super::image::PartKind;
use super::layout::Layout;
use super::reach::Needed;
use super::sections::Home;
use super::symbols::Place;
use super::{CodeError, ImportTable, Limits};

/// Bytes of an image's thread-local variables at most: they are written anew before each call, and compilers' and
/// libraries' own are a few hundred.
pub const THREAD_MAX_BYTES: u64 = 64 << 10;
/// Bytes at and above the thread pointer that belong to the code. musl's `struct pthread` has 200.
pub const CONTROL_BYTES: i64 = 512;

/// Where `errno` is from the thread pointer, unless the image has a variable of that name: where musl has it.
const ERRNO_OFFSET: i64 = 0x34;
/// By this name compilers mean the start of an object's own variables; where it is does not matter, as the distances
/// from it are made to count from the thread pointer.
const MODULE_BASE: &[u8] = b"_TLS_MODULE_BASE_";
const ERRNO: &[u8] = b"errno";
/// How C libraries' headers get at `errno`.
const ERRNO_LOCATION: &[u8] = b"__errno_location";

/// `movabs function, %r11; movabs switch, %r10; jmp *%r10`, and a trap byte.
const THUNK: [u8; 24] =
    [0x49, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x49, 0xba, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0xff, 0xe2, 0xcc];
/// `mov %fs:0, %rax; add $distance, %rax; ret`, and a trap byte.
const LOCATION: [u8; 17] = [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x05, 0, 0, 0, 0, 0xc3, 0xcc];
const THUNK_ALIGN_BYTES: u64 = 8;

/// What is made anew in the thread that runs an image, for each call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread {
    /// Bytes from the start of the read-only part to the initial bytes of the variables.
    pub template_offset_bytes: u64,
    /// How many initial bytes there are.
    pub template_bytes: u64,
    /// Bytes of all variables, which end at the thread pointer; what has no initial bytes starts as zero. A multiple
    /// of `align_bytes`, at most [`THREAD_MAX_BYTES`].
    pub size_bytes: u64,
    /// Of the thread pointer: a power of two, at most that of sections.
    pub align_bytes: u64,
    /// Bytes from the thread pointer to `errno`.
    pub errno_offset: i64,
}

impl Thread {
    /// That of an image which has no variables.
    pub(super) fn without_variables() -> Self {
        Variables::default().thread(ERRNO_OFFSET)
    }
}

/// The variables of an image, placed.
#[derive(Debug, Default)]
pub(super) struct Variables {
    template_offset_bytes: u64,
    template_bytes: u64,
    size_bytes: u64,
    align_bytes: u64,
}

impl Variables {
    /// How far what is at `value` of a section is from the thread pointer; `None` if the section is not needed.
    pub(super) fn distance_bytes(&self, home: Home, value: u64) -> Option<i64> {
        let offset_bytes = match home {
            Home::Nowhere => return None,
            Home::Placed { offset_bytes, .. } => offset_bytes - self.template_offset_bytes,
            Home::Thread { offset_bytes } => offset_bytes,
        };
        // Both are below THREAD_MAX_BYTES, as the extent of the symbol was checked.
        Some((offset_bytes + value) as i64 - self.size_bytes as i64)
    }

    /// What a thread that runs the image needs.
    pub(super) fn thread(&self, errno_offset: i64) -> Thread {
        Thread {
            template_offset_bytes: self.template_offset_bytes,
            template_bytes: self.template_bytes,
            size_bytes: self.size_bytes,
            align_bytes: self.align_bytes.max(1),
            errno_offset,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// Code that stands between the image and what is the host's.
#[derive(Default)]
pub(super) struct Thunks(Vec<(u64, Vec<u8>)>);

impl Thunks {
    pub(super) fn write(&self, code: &mut [u8]) {
        for (offset_bytes, bytes) in &self.0 {
            code[*offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }
}

/// Places the sections of the thread's variables: one block, what starts as zero last. The initial bytes are in the
/// read-only part, where they are linked like everything else.
pub(super) fn place(
    objects: &[Object<'_>],
    sections: &[(usize, usize)],
    homes: &mut [Vec<Home>],
    layout: &mut Layout,
) -> Result<Variables, CodeError> {
    let mut variables = Variables::default();
    let mut end = 0_u64;
    for wants_zeros in [false, true] {
        for &(at, index) in sections {
            let header = &objects[at].sections[index];
            if (header.sh_type(LE) == elf::SHT_NOBITS) != wants_zeros {
                continue;
            }
            let place = || objects[at].section_location(index);
            let align_bytes = layout.alignment(header.sh_addralign(LE)).map_err(|error| error.at(place))?;
            // The end is below the limit, and an alignment too.
            let offset_bytes = end.next_multiple_of(align_bytes);
            end = offset_bytes.saturating_add(header.sh_size(LE));
            Limits::hold("bytes of thread-local variables", end, THREAD_MAX_BYTES)?;
            variables.align_bytes = variables.align_bytes.max(align_bytes);
            homes[at][index] = Home::Thread { offset_bytes };
        }
        if !wants_zeros {
            variables.template_bytes = end;
        }
    }
    variables.size_bytes = end.next_multiple_of(variables.align_bytes.max(1));
    Limits::hold("bytes of thread-local variables", variables.size_bytes, THREAD_MAX_BYTES)?;
    if variables.template_bytes > 0 {
        let (size_bytes, align_bytes) = (variables.template_bytes, variables.align_bytes);
        variables.template_offset_bytes = layout.take(PartKind::Rodata, size_bytes, align_bytes)?;
    }
    for &(at, index) in sections {
        if let Home::Thread { offset_bytes } = homes[at][index]
            && objects[at].sections[index].sh_type(LE) != elf::SHT_NOBITS
        {
            let offset_bytes = variables.template_offset_bytes + offset_bytes;
            homes[at][index] = Home::Placed { part: PartKind::Rodata, offset_bytes, is_zeros: false };
        }
    }
    Ok(variables)
}

/// The distance from the thread pointer of a variable that no object defines.
pub(super) fn offered(name: &[u8], imports: &ImportTable) -> Option<i64> {
    match name {
        MODULE_BASE => Some(0),
        ERRNO => imports.thread_switch().map(|_| ERRNO_OFFSET),
        _ => None,
    }
}

/// Whether names alone say that the image needs a thread pointer of its own.
pub(super) fn is_asked_for(
    objects: &[Object<'_>],
    entities: &Entities,
    needed: &Needed,
    places: &[Place],
    imports: &ImportTable,
) -> bool {
    let all = entities.all.iter().zip(&needed.entities).zip(places);
    all.filter(|((_, is_needed), _)| **is_needed).any(|((entity, _), place)| match entity.definition {
        Definition::ThreadLocal { .. } => true,
        _ => {
            *place == Place::Unresolved
                && imports.thread_switch().is_some()
                && name(objects, entity.symbol) == ERRNO_LOCATION
        }
    })
}

/// Puts a thunk before each host function that is needed and expects the host's thread pointer. Answers where `errno`
/// is, too.
pub(super) fn redirect(
    objects: &[Object<'_>],
    entities: &Entities,
    needed: &Needed,
    places: &mut [Place],
    imports: &ImportTable,
    layout: &mut Layout,
) -> Result<(Thunks, i64), CodeError> {
    let Some(switch) = imports.thread_switch() else { return Err(CodeError::NoThreads) };
    let errno_offset = errno_offset(objects, entities, places);
    let mut thunks = Thunks::default();
    for ((entity, place), _) in entities.all.iter().zip(places).zip(&needed.entities).filter(|(_, needed)| **needed) {
        let bytes = match *place {
            Place::Import(function) if !switch.is_direct(function) => thunk(function, switch.address).to_vec(),
            Place::Unresolved if name(objects, entity.symbol) == ERRNO_LOCATION => location(errno_offset).to_vec(),
            _ => continue,
        };
        let offset_bytes = layout.take(PartKind::Code, bytes.len() as u64, THUNK_ALIGN_BYTES)?;
        *place = Place::In(PartKind::Code, offset_bytes);
        thunks.0.push((offset_bytes, bytes));
    }
    Ok((thunks, errno_offset))
}

fn errno_offset(objects: &[Object<'_>], entities: &Entities, places: &[Place]) -> i64 {
    let own = entities.all.iter().zip(places).find_map(|(entity, place)| match (entity.definition, place) {
        (Definition::ThreadLocal { section: Some(_) }, Place::OfThread(distance))
            if entity.is_global && name(objects, entity.symbol) == ERRNO =>
        {
            Some(*distance)
        }
        _ => None,
    });
    own.unwrap_or(ERRNO_OFFSET)
}

fn name<'a>(objects: &[Object<'a>], SymbolId { object, symbol }: SymbolId) -> &'a [u8] {
    let object = &objects[object];
    object.symbols.get(symbol).and_then(|it| object.symbol_name(it).ok()).unwrap_or_default()
}

fn thunk(function: u64, switch: u64) -> [u8; THUNK.len()] {
    let mut bytes = THUNK;
    bytes[2..10].copy_from_slice(&function.to_le_bytes());
    bytes[12..20].copy_from_slice(&switch.to_le_bytes());
    bytes
}

/// The distance fits: it is within a block.
fn location(errno_offset: i64) -> [u8; LOCATION.len()] {
    let mut bytes = LOCATION;
    bytes[11..15].copy_from_slice(&(errno_offset as i32).to_le_bytes());
    bytes
}
