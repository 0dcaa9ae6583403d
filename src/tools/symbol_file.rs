//! A symbol file in memory, as debuggers read it: an ELF object whose code lies elsewhere.
//!
//! ```text
//! file header | unwind table | symbols | names of symbols | names of sections | section headers
//! ```
//! The section of the code has no contents, only its address and size. Symbols are relative to it. The unwind table is a
//! copy that says where it really lies, as it is relative to that.

use std::ops::Range;

use super::names::{Named, named};
use crate::code::Function;

const FILE_HEADER_BYTES: usize = 64;
const SECTION_HEADER_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
/// What they start and end with is the empty name.
const SECTION_NAMES: &[u8] = b"\0.text\0.eh_frame\0.symtab\0.strtab\0.shstrtab\0";
const SECTIONS: usize = 6;

const TYPE_RELOCATABLE: u16 = 1;
const MACHINE_X86_64: u16 = 62;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_NOBITS: u32 = 8;
const SHT_PROGBITS: u32 = 1;
const SHF_ALLOC: u64 = 2;
const SHF_EXECINSTR: u64 = 4;
/// Index of the section of the code.
const TEXT: u16 = 1;
const GLOBAL_FUNCTION: u8 = 1 << 4 | 2;

/// Bytes of [`write`]'s result.
pub(super) fn size_bytes(functions: &[Function], code_bytes: u64, unwind_bytes: u64) -> usize {
    let (mut symbols, mut names) = (1, 1);
    for piece in named(functions, code_bytes) {
        symbols += 1;
        names += piece.name.len() + 1;
    }
    place(unwind_bytes as usize, symbols, names).end
}

/// A symbol file of `code`. `unwind`: address and bytes of its unwind table.
pub(super) fn write(functions: &[Function], code: Range<u64>, unwind: Option<(u64, &[u8])>) -> Vec<u8> {
    let code_bytes = code.end - code.start;
    let (unwind_address, unwind) = unwind.unwrap_or_default();
    let (mut names, mut symbols) = (vec![0], vec![0; SYMBOL_BYTES]);
    for piece in named(functions, code_bytes) {
        write_symbol(&mut symbols, names.len(), &piece);
        names.extend(piece.name.bytes());
        names.push(0);
    }
    let at = place(unwind.len(), symbols.len() / SYMBOL_BYTES, names.len());
    let mut file = Vec::with_capacity(at.end);
    write_file_header(&mut file, at.headers);
    file.extend(unwind);
    file.resize(at.symbols, 0);
    file.extend(&symbols);
    file.extend(&names);
    file.extend(SECTION_NAMES);
    file.resize(at.headers, 0);
    let text = Section {
        kind: SHT_NOBITS,
        flags: SHF_ALLOC | SHF_EXECINSTR,
        address: code.start,
        size: code_bytes,
        align: 1,
        ..NONE
    };
    let frames = Section {
        kind: SHT_PROGBITS,
        flags: SHF_ALLOC,
        address: unwind_address,
        offset: FILE_HEADER_BYTES,
        size: unwind.len() as u64,
        align: 8,
        ..NONE
    };
    // Without a table there is none, but an empty entry in its place.
    let frames = if unwind.is_empty() { (NONE, "") } else { (frames, ".eh_frame") };
    let symtab = Section {
        kind: SHT_SYMTAB,
        offset: at.symbols,
        size: symbols.len() as u64,
        link: 4, // the names
        info: 1, // the first that is not local
        entry_bytes: SYMBOL_BYTES as u64,
        align: 8,
        ..NONE
    };
    let strtab = Section { kind: SHT_STRTAB, offset: at.names, size: names.len() as u64, ..NONE };
    let section_names =
        Section { kind: SHT_STRTAB, offset: at.section_names, size: SECTION_NAMES.len() as u64, ..NONE };
    let others = [(symtab, ".symtab"), (strtab, ".strtab"), (section_names, ".shstrtab")];
    for (section, name) in [(NONE, ""), (text, ".text"), frames].into_iter().chain(others) {
        section.write(&mut file, name);
    }
    file
}

/// Where things lie in the file.
struct Offsets {
    symbols: usize,
    names: usize,
    section_names: usize,
    headers: usize,
    end: usize,
}

fn place(unwind_bytes: usize, symbols: usize, names_bytes: usize) -> Offsets {
    let symbols_at = (FILE_HEADER_BYTES + unwind_bytes).next_multiple_of(8);
    let names = symbols_at + symbols * SYMBOL_BYTES;
    let section_names = names + names_bytes;
    let headers = (section_names + SECTION_NAMES.len()).next_multiple_of(8);
    Offsets { symbols: symbols_at, names, section_names, headers, end: headers + SECTIONS * SECTION_HEADER_BYTES }
}

fn write_file_header(file: &mut Vec<u8>, headers_offset: usize) {
    file.extend(b"\x7fELF\x02\x01\x01"); // 64 bits, little endian, version 1
    file.resize(16, 0);
    file.extend(TYPE_RELOCATABLE.to_le_bytes());
    file.extend(MACHINE_X86_64.to_le_bytes());
    file.extend(1_u32.to_le_bytes()); // version
    file.extend([0; 16]); // no entry point, no program headers
    file.extend((headers_offset as u64).to_le_bytes());
    file.extend(0_u32.to_le_bytes()); // no flags
    for number in [FILE_HEADER_BYTES, 0, 0, SECTION_HEADER_BYTES, SECTIONS, SECTIONS - 1] {
        file.extend((number as u16).to_le_bytes());
    }
}

fn write_symbol(symbols: &mut Vec<u8>, name_offset: usize, piece: &Named<'_>) {
    symbols.extend((name_offset as u32).to_le_bytes());
    symbols.extend([GLOBAL_FUNCTION, 0]);
    symbols.extend(TEXT.to_le_bytes());
    symbols.extend(piece.offset_bytes.to_le_bytes());
    symbols.extend(piece.size_bytes.to_le_bytes());
}

struct Section {
    kind: u32,
    flags: u64,
    address: u64,
    offset: usize,
    size: u64,
    link: u32,
    info: u32,
    align: u64,
    entry_bytes: u64,
}

const NONE: Section =
    Section { kind: 0, flags: 0, address: 0, offset: 0, size: 0, link: 0, info: 0, align: 0, entry_bytes: 0 };

impl Section {
    fn write(&self, file: &mut Vec<u8>, name: &str) {
        let terminated = [b"\0", name.as_bytes(), b"\0"].concat();
        let found = SECTION_NAMES.windows(terminated.len()).position(|it| it == terminated);
        file.extend((found.map_or(0, |before| before as u32 + 1)).to_le_bytes());
        file.extend(self.kind.to_le_bytes());
        for number in [self.flags, self.address, self.offset as u64, self.size] {
            file.extend(number.to_le_bytes());
        }
        file.extend(self.link.to_le_bytes());
        file.extend(self.info.to_le_bytes());
        file.extend(self.align.to_le_bytes());
        file.extend(self.entry_bytes.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

    use super::*;

    fn function(name: &str, offset_bytes: u64, size_bytes: u64) -> Function {
        Function { name: name.into(), offset_bytes, size_bytes }
    }

    #[test]
    fn a_reader_of_elf_finds_each_function_at_its_address() {
        let functions = [function("first", 0, 8), function("second", 16, 0)];
        let file = write(&functions, 0x7f00_0000_1000..0x7f00_0000_1040, Some((0x7f00_0000_2000, &[7; 12])));
        let read = object::File::parse(&*file).unwrap();
        let text = read.section_by_name(".text").unwrap();
        assert_eq!((text.address(), text.size()), (0x7f00_0000_1000, 0x40));
        let symbols: Vec<_> = read.symbols().map(|it| (it.name().unwrap(), it.address(), it.size())).collect();
        assert_eq!(symbols, [("first", 0, 8), ("second", 16, 0x30)]);
        assert!(read.symbols().all(|it| it.kind() == SymbolKind::Text && it.is_global()));
        let frames = read.section_by_name(".eh_frame").unwrap();
        assert_eq!((frames.address(), frames.data().unwrap()), (0x7f00_0000_2000, &[7; 12][..]));
        assert_eq!(read.section_by_name(".shstrtab").unwrap().data().unwrap(), SECTION_NAMES);
    }

    #[test]
    fn the_size_is_known_before() {
        for functions in [vec![], vec![function("f", 0, 1)], vec![function("long_name", 0, 1), function("g", 4, 0)]] {
            for unwind in [None, Some((1, &[0; 13][..]))] {
                let bytes = unwind.map_or(0, |it| it.1.len() as u64);
                assert_eq!(write(&functions, 0..64, unwind).len(), size_bytes(&functions, 64, bytes), "{functions:?}");
            }
        }
    }
}
