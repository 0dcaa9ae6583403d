use object::elf;
use object::read::elf::SectionHeader as _;

use super::CodeError;
use super::diagnosis::Problems;
use super::elf::{Header, LE, Object};
use super::image::{Initial, PartKind, Unused};
use super::layout::Layout;
use super::startup;
use super::thread::{self, Variables};

/// Fills the code between sections: `int3`.
pub(super) const TRAP: u8 = 0xcc;

/// What a section is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// It is not loaded by anybody, or speaks of unwinding alone.
    NotLoaded,
    /// Another object's stands for it.
    Discarded,
    /// It belongs to a part, if it is needed.
    Part(PartKind),
    /// A list of functions to run before all else. It is read, and not loaded.
    Initialisers,
    /// It belongs to the variables of each thread, if it is needed.
    Thread,
    /// It asks for what is not done here.
    Refused(&'static str),
}

/// Where a section goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// It is not loaded.
    Nowhere,
    /// From `offset_bytes` of `part` on.
    Placed { part: PartKind, offset_bytes: u64, is_zeros: bool },
    /// From `offset_bytes` of the thread's variables on, as zeros.
    Thread { offset_bytes: u64 },
}

/// Sections that are loaded elsewhere, but only speak of unwinding, which nothing does here.
const UNWIND_PREFIXES: [&[u8]; 2] = [b".eh_frame", b".gcc_except_table"];

/// What each section of an object is.
pub(super) fn classify(object: &Object<'_>, discarded: &[bool]) -> Result<Vec<Class>, CodeError> {
    let mut from_file_bytes: u64 = 0;
    let mut classes = vec![Class::NotLoaded];
    for (index, header) in object.sections.iter().enumerate().skip(1) {
        let class = if discarded[index] { Class::Discarded } else { class(object, index, header)? };
        let is_read = matches!(class, Class::Part(_) | Class::Initialisers | Class::Thread);
        if is_read && header.sh_type(LE) != elf::SHT_NOBITS {
            from_file_bytes += object.contents(index)?.len() as u64;
        }
        classes.push(class);
    }
    // Else a small blob could be the contents of many sections, and cost more work than it has bytes.
    if from_file_bytes > object.blob.len() as u64 {
        return Err(object.malformed("sections share their contents"));
    }
    Ok(classes)
}

/// Places every section that is needed, in file order, what starts as zero last. By object and section.
pub(super) fn place(
    objects: &[Object<'_>],
    classes: &[Vec<Class>],
    needed: &[Vec<bool>],
    layout: &mut Layout,
    problems: &mut Problems<'_>,
) -> Result<(Vec<Vec<Home>>, Variables), CodeError> {
    let mut homes: Vec<_> = objects.iter().map(|object| vec![Home::Nowhere; object.sections.len()]).collect();
    let (mut zeros, mut of_thread) = (Vec::new(), Vec::new());
    for (at, object) in objects.iter().enumerate() {
        for (index, header) in object.sections.iter().enumerate().filter(|&(index, _)| needed[at][index]) {
            let part = match classes[at][index] {
                Class::NotLoaded | Class::Discarded | Class::Initialisers => continue,
                Class::Refused(what) => {
                    problems.take(CodeError::Unsupported { what, at: object.section_location(index) })?;
                    continue;
                }
                Class::Thread => {
                    of_thread.push((at, index));
                    continue;
                }
                Class::Part(part) => part,
            };
            let is_zeros = header.sh_type(LE) == elf::SHT_NOBITS;
            if is_zeros && part == PartKind::Data {
                zeros.push((at, index));
            } else {
                homes[at][index] = put(object, index, part, is_zeros, layout)?;
            }
        }
    }
    layout.begin_zeros();
    for (at, index) in zeros {
        homes[at][index] = put(&objects[at], index, PartKind::Data, true, layout)?;
    }
    let variables = thread::place(objects, &of_thread, &mut homes, layout)?;
    if layout.sizes().code.size_bytes == 0 {
        objects.iter().try_for_each(refuse_bytecode)?;
    }
    Ok((homes, variables))
}

fn refuse_bytecode(object: &Object<'_>) -> Result<(), CodeError> {
    for index in 1..object.sections.len() {
        if object.section_name(index)?.starts_with(b".gnu.lto_") {
            let what = "it holds compiler bytecode instead of code, compile with -fno-lto";
            return Err(CodeError::Unsupported { what, at: Default::default() });
        }
    }
    Ok(())
}

/// The initial bytes of code, read-only data, and data up to its zeros.
pub(super) fn contents(objects: &[Object<'_>], homes: &[Vec<Home>], layout: &Layout) -> Result<Initial, CodeError> {
    let sizes = layout.sizes();
    // Within `image_max_bytes` since the layout holds it, so that these fit memory.
    let mut initial = Initial {
        code: vec![TRAP; sizes.code.size_bytes as usize],
        rodata: vec![0; sizes.rodata.size_bytes as usize],
        data: vec![0; layout.data_init_bytes() as usize],
    };
    for (object, homes) in objects.iter().zip(homes) {
        for (index, home) in homes.iter().enumerate() {
            let &Home::Placed { part, offset_bytes, is_zeros: false } = home else { continue };
            let bytes = object.contents(index)?;
            initial.part_mut(part)[offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }
    Ok(initial)
}

/// How many sections are not needed though they could be loaded, and their bytes.
pub(super) fn unused(objects: &[Object<'_>], classes: &[Vec<Class>], needed: &[Vec<bool>]) -> Unused {
    let mut unused = Unused::default();
    for ((object, classes), needed) in objects.iter().zip(classes).zip(needed) {
        for (index, header) in object.sections.iter().enumerate() {
            if matches!(classes[index], Class::Part(_) | Class::Thread) && !needed[index] && header.sh_size(LE) > 0 {
                unused.sections += 1;
                unused.bytes = unused.bytes.saturating_add(header.sh_size(LE));
            }
        }
    }
    unused
}

fn put(
    object: &Object<'_>,
    index: usize,
    part: PartKind,
    is_zeros: bool,
    layout: &mut Layout,
) -> Result<Home, CodeError> {
    let header = &object.sections[index];
    let offset_bytes = layout
        .take(part, header.sh_size(LE), header.sh_addralign(LE))
        .map_err(|error| error.at(|| object.section_location(index)))?;
    Ok(Home::Placed { part, offset_bytes, is_zeros })
}

fn class(object: &Object<'_>, index: usize, header: &Header) -> Result<Class, CodeError> {
    let (kind, flags) = (header.sh_type(LE), header.sh_flags(LE));
    let name = object.section_name(index)?;
    let is_ignored = matches!(kind, elf::SHT_NULL | elf::SHT_NOTE | elf::SHT_X86_64_UNWIND)
        || kind == elf::SHT_GNU_SFRAME
        || UNWIND_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    if is_ignored || !flags.contains(elf::SHF_ALLOC) || flags.contains(elf::SHF_EXCLUDE) {
        return Ok(Class::NotLoaded);
    }
    let is_odd = flags.contains(elf::SHF_TLS) || flags.contains(elf::SHF_COMPRESSED);
    if let Some(class) = startup::class(kind, name).filter(|_| !is_odd && header.sh_size(LE) > 0) {
        return Ok(class);
    }
    if let Some(what) = refusal(header) {
        return Ok(Class::Refused(what));
    }
    let is_code = flags.contains(elf::SHF_EXECINSTR);
    // Constants with addresses in them are writable for the dynamic linker's sake only.
    let is_constant = name.starts_with(b".data.rel.ro") && kind == elf::SHT_PROGBITS;
    Ok(match kind {
        elf::SHT_PROGBITS | elf::SHT_NOBITS if flags.contains(elf::SHF_TLS) => Class::Thread,
        elf::SHT_PROGBITS | elf::SHT_NOBITS if is_code => Class::Part(PartKind::Code),
        elf::SHT_PROGBITS | elf::SHT_NOBITS if flags.contains(elf::SHF_WRITE) && !is_constant => {
            Class::Part(PartKind::Data)
        }
        elf::SHT_PROGBITS | elf::SHT_NOBITS => Class::Part(PartKind::Rodata),
        _ => Class::NotLoaded, // empty, or it would have been refused
    })
}

/// Why a section that asks to be loaded cannot be. One without bytes asks for nothing.
fn refusal(header: &Header) -> Option<&'static str> {
    if header.sh_size(LE) == 0 {
        return None;
    }
    let (kind, flags) = (header.sh_type(LE), header.sh_flags(LE));
    if flags.contains(elf::SHF_TLS) && flags.contains(elf::SHF_EXECINSTR) {
        Some("code cannot be thread-local")
    } else if flags.contains(elf::SHF_COMPRESSED) {
        Some("loaded sections cannot be compressed")
    } else if flags.contains(elf::SHF_WRITE) && flags.contains(elf::SHF_EXECINSTR) {
        Some("a section cannot be both writable and executable")
    } else if !matches!(kind, elf::SHT_PROGBITS | elf::SHT_NOBITS) {
        Some("a loaded section is of an unknown type")
    } else if kind == elf::SHT_NOBITS && flags.contains(elf::SHF_EXECINSTR) {
        Some("code cannot start as zeros")
    } else {
        None
    }
}
