use object::elf;
use object::read::elf::SectionHeader as _;

use super::CodeError;
use super::elf::{Header, LE, Object};
use super::image::{Initial, PartKind};
use super::layout::Layout;

/// Fills the code between sections: `int3`.
const TRAP: u8 = 0xcc;

/// Where a section goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// It is not loaded.
    Nowhere,
    /// From `offset_bytes` of `part` on.
    Placed { part: PartKind, offset_bytes: u64, is_zeros: bool },
}

/// Sections that are loaded elsewhere, but only speak of unwinding, which nothing does here.
const UNWIND_PREFIXES: [&[u8]; 2] = [b".eh_frame", b".gcc_except_table"];
/// Sections that a C runtime runs before or after everything, whatever type their assembler gave them.
const STARTUP_PREFIXES: [&[u8]; 5] = [b".init_array", b".fini_array", b".preinit_array", b".ctors", b".dtors"];
/// As above, of code; exact names, since `.init` is the start of others too.
const STARTUP_NAMES: [&[u8]; 2] = [b".init", b".fini"];

/// Places every loaded section, in file order, what starts as zero last. One home for each section of the object.
pub(super) fn place(object: &Object<'_>, layout: &mut Layout) -> Result<Vec<Home>, CodeError> {
    let mut homes = vec![Home::Nowhere; object.sections.len()];
    let mut from_file_bytes: u64 = 0;
    let mut has_bytecode = false;
    let mut zeros = Vec::new();
    for (index, header) in object.sections.iter().enumerate().skip(1) {
        has_bytecode |= object.section_name(index)?.starts_with(b".gnu.lto_");
        let Some(part) = classify(object, index, header)? else { continue };
        let is_zeros = header.sh_type(LE) == elf::SHT_NOBITS;
        if is_zeros && part == PartKind::Data {
            zeros.push(index);
            continue;
        }
        if !is_zeros {
            from_file_bytes += object.contents(index)?.len() as u64;
        }
        homes[index] = put(object, index, part, is_zeros, layout)?;
    }
    // Else a small blob could be the contents of many sections, and cost more work than it has bytes.
    if from_file_bytes > object.blob.len() as u64 {
        return Err(CodeError::malformed("sections share their contents"));
    }
    layout.begin_zeros();
    for index in zeros {
        homes[index] = put(object, index, PartKind::Data, true, layout)?;
    }
    if has_bytecode && layout.sizes().code.size_bytes == 0 {
        let what = "it holds compiler bytecode instead of code, compile with -fno-lto";
        return Err(CodeError::Unsupported { what, at: Default::default() });
    }
    Ok(homes)
}

/// The initial bytes of code, read-only data, and data up to its zeros.
pub(super) fn contents(object: &Object<'_>, homes: &[Home], layout: &Layout) -> Result<Initial, CodeError> {
    let sizes = layout.sizes();
    // Within `image_max_bytes` since the layout holds it, so that these fit memory.
    let mut initial = Initial {
        code: vec![TRAP; sizes.code.size_bytes as usize],
        rodata: vec![0; sizes.rodata.size_bytes as usize],
        data: vec![0; layout.data_init_bytes() as usize],
    };
    for (index, home) in homes.iter().enumerate() {
        let &Home::Placed { part, offset_bytes, is_zeros: false } = home else { continue };
        let bytes = object.contents(index)?;
        let buffer = match part {
            PartKind::Code => &mut initial.code,
            PartKind::Rodata => &mut initial.rodata,
            PartKind::Data => &mut initial.data,
        };
        buffer[offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    Ok(initial)
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

/// The part that a section belongs to; none if it is not loaded.
fn classify(object: &Object<'_>, index: usize, header: &Header) -> Result<Option<PartKind>, CodeError> {
    let (kind, flags) = (header.sh_type(LE), header.sh_flags(LE));
    let name = object.section_name(index)?;
    let is_ignored = matches!(kind, elf::SHT_NULL | elf::SHT_NOTE | elf::SHT_X86_64_UNWIND)
        || kind == elf::SHT_GNU_SFRAME
        || UNWIND_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    if is_ignored || !flags.contains(elf::SHF_ALLOC) || flags.contains(elf::SHF_EXCLUDE) {
        return Ok(None);
    }
    if let Some(what) = refusal(header, name) {
        return Err(CodeError::Unsupported { what, at: object.section_location(index) });
    }
    let is_code = flags.contains(elf::SHF_EXECINSTR);
    // Constants with addresses in them are writable for the dynamic linker's sake only.
    let is_constant = name.starts_with(b".data.rel.ro") && kind == elf::SHT_PROGBITS;
    Ok(match kind {
        elf::SHT_PROGBITS | elf::SHT_NOBITS if is_code => Some(PartKind::Code),
        elf::SHT_PROGBITS | elf::SHT_NOBITS if flags.contains(elf::SHF_WRITE) && !is_constant => Some(PartKind::Data),
        elf::SHT_PROGBITS | elf::SHT_NOBITS => Some(PartKind::Rodata),
        _ => None, // empty, or it would have been refused
    })
}

/// Why a section that asks to be loaded cannot be. One without bytes asks for nothing.
fn refusal(header: &Header, name: &[u8]) -> Option<&'static str> {
    if header.sh_size(LE) == 0 {
        return None;
    }
    let (kind, flags) = (header.sh_type(LE), header.sh_flags(LE));
    let is_startup = matches!(kind, elf::SHT_INIT_ARRAY | elf::SHT_FINI_ARRAY | elf::SHT_PREINIT_ARRAY)
        || STARTUP_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || STARTUP_NAMES.contains(&name);
    if flags.contains(elf::SHF_TLS) {
        Some("thread-local storage is not supported")
    } else if flags.contains(elf::SHF_COMPRESSED) {
        Some("loaded sections cannot be compressed")
    } else if is_startup {
        Some("constructors and destructors are not run")
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
