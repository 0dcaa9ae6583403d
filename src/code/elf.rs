use object::elf::{self, FileHeader64, Rela64, SectionHeader64, Sym64, SymbolSection};
use object::read::ReadRef;
use object::read::elf::{FileHeader, SectionHeader as _, Sym as _};
use object::{LittleEndian, U32, pod};

use super::error::shown;
use super::{CodeError, Limits, Location, foreign};

pub(super) type Header = SectionHeader64<LittleEndian>;
pub(super) type Sym = Sym64<LittleEndian>;
pub(super) type Rela = Rela64<LittleEndian>;

/// Byte order of every field.
pub(super) const LE: LittleEndian = LittleEndian;

/// Common symbols of the larger code models: common symbols here, where all data is near.
const SHN_X86_64_LCOMMON: SymbolSection = SymbolSection(0xff02);

/// The tables of a relocatable object, in bounds. What they say is not checked yet.
pub(super) struct Object<'a> {
    pub(super) blob: &'a [u8],
    /// Its name among others; `None` for one alone.
    name: Option<&'a [u8]>,
    pub(super) limits: &'a Limits,
    /// Index 0 is the null section.
    pub(super) sections: &'a [Header],
    /// Index 0 is the null symbol. Empty where there is no symbol table.
    pub(super) symbols: &'a [Sym],
    /// Index of the section that is the symbol table; 0: there is none.
    pub(super) symtab_index: usize,
    /// Section indices of symbols that do not fit the symbol, by symbol index.
    long_indices: &'a [U32<LittleEndian>],
    section_names: &'a [u8],
    symbol_names: &'a [u8],
}

/// What a symbol is defined relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Undefined,
    Absolute,
    Common,
    Section(usize),
}

impl<'a> Object<'a> {
    /// Checks header and counts, and finds the tables.
    pub(super) fn read(blob: &'a [u8], name: Option<&'a [u8]>, limits: &'a Limits) -> Result<Self, CodeError> {
        let read = Self::read_unnamed(blob, name, limits);
        read.map_err(|error| error.at(|| Location { object: name.map(shown), ..Location::default() }))
    }

    fn read_unnamed(blob: &'a [u8], name: Option<&'a [u8]>, limits: &'a Limits) -> Result<Self, CodeError> {
        limits.hold_blob(blob)?;
        let header = header(blob)?;
        let count = header.shnum(LE, blob).map_err(|_| CodeError::malformed("the section count is invalid"))?;
        Limits::hold("sections", u64::from(count), u64::from(limits.sections_max))?;
        let sections = header
            .section_headers(LE, blob)
            .map_err(|_| CodeError::malformed("the section table lies outside of the blob"))?;
        if sections.is_empty() {
            return Err(CodeError::malformed("there are no sections"));
        }
        let names = header.shstrndx(LE, blob).map_err(|_| CodeError::malformed("section names are missing"))?;
        let section_names = strings(blob, sections, names as usize)?;
        let mut object = Object {
            blob,
            name,
            limits,
            sections,
            symbols: &[],
            symtab_index: 0,
            long_indices: &[],
            section_names,
            symbol_names: &[],
        };
        object.find_symbols()?;
        foreign::refuse_intermediate(&object)?;
        Ok(object)
    }

    fn find_symbols(&mut self) -> Result<(), CodeError> {
        let tables = || self.sections.iter().enumerate().filter(|(_, header)| header.sh_type(LE) == elf::SHT_SYMTAB);
        let Some((index, header)) = tables().next() else { return Ok(()) };
        if tables().count() > 1 {
            return Err(CodeError::malformed("there is more than one symbol table"));
        }
        let symbols: &[Sym] = self.entries(index)?;
        Limits::hold("symbols", symbols.len() as u64, u64::from(self.limits.symbols_max))?;
        self.symbol_names = strings(self.blob, self.sections, header.sh_link(LE) as usize)?;
        let is_long = |header: &Header| header.sh_type(LE) == elf::SHT_SYMTAB_SHNDX && header.link(LE).0 == index;
        if let Some(long) = self.sections.iter().position(is_long) {
            self.long_indices = self.entries(long)?;
        }
        (self.symbols, self.symtab_index) = (symbols, index);
        Ok(())
    }

    /// The contents of section `index`; none for one of type NOBITS.
    pub(super) fn contents(&self, index: usize) -> Result<&'a [u8], CodeError> {
        let outside = "the section lies outside of the blob";
        self.sections[index].data(LE, self.blob).map_err(|_| self.malformed_section(outside, index))
    }

    /// The contents of section `index` as a table.
    pub(super) fn entries<T: pod::Pod>(&self, index: usize) -> Result<&'a [T], CodeError> {
        let contents = self.contents(index)?;
        let ragged = "the section is not a whole number of entries";
        pod::slice_from_all_bytes(contents).map_err(|()| self.malformed_section(ragged, index))
    }

    /// The name of section `index`.
    pub(super) fn section_name(&self, index: usize) -> Result<&'a [u8], CodeError> {
        self.name(self.section_names, self.sections[index].sh_name(LE))
    }

    /// The name of `symbol`.
    pub(super) fn symbol_name(&self, symbol: &Sym) -> Result<&'a [u8], CodeError> {
        self.name(self.symbol_names, symbol.st_name(LE))
    }

    /// What `symbol`, which has the index `index`, is defined relative to.
    pub(super) fn symbol_base(&self, index: usize, symbol: &Sym) -> Result<Base, CodeError> {
        let short = symbol.st_shndx(LE);
        let section = match short {
            elf::SHN_UNDEF => return Ok(Base::Undefined),
            elf::SHN_ABS => return Ok(Base::Absolute),
            elf::SHN_COMMON | SHN_X86_64_LCOMMON => return Ok(Base::Common),
            elf::SHN_XINDEX => self.long_indices.get(index).map(|long| long.get(LE) as usize),
            _ => short.index().map(usize::from),
        };
        match section {
            Some(section) if section < self.sections.len() => Ok(Base::Section(section)),
            _ => Err(CodeError::Malformed {
                what: "the symbol is of a section that does not exist",
                at: self.symbol_location(symbol),
            }),
        }
    }

    /// `symbol` for an error: by its name, or by that of its section.
    pub(super) fn symbol_location(&self, symbol: &Sym) -> Location {
        let is_section = symbol.st_type() == elf::STT_SECTION;
        let section = symbol.st_shndx(LE).index().map(usize::from).filter(|&index| index < self.sections.len());
        let name = match section {
            Some(index) if is_section => self.section_name(index),
            _ => self.symbol_name(symbol),
        };
        Location { object: self.shown_name(), ..name.map(Location::symbol).unwrap_or_default() }
    }

    fn shown_name(&self) -> Option<String> {
        self.name.map(shown)
    }

    pub(super) fn malformed(&self, what: &'static str) -> CodeError {
        CodeError::Malformed { what, at: Location { object: self.shown_name(), ..Location::default() } }
    }

    pub(super) fn malformed_section(&self, what: &'static str, index: usize) -> CodeError {
        CodeError::Malformed { what, at: self.section_location(index) }
    }

    pub(super) fn section_location(&self, index: usize) -> Location {
        Location { object: self.shown_name(), ..self.section_name(index).map(Location::section).unwrap_or_default() }
    }

    /// The name at `offset` of a string table. Reads no more than a name may be long, so that many symbols of one
    /// endless name cost no more than as many short ones.
    fn name(&self, strings: &'a [u8], offset: u32) -> Result<&'a [u8], CodeError> {
        let max = self.limits.symbol_name_max_bytes as usize;
        let tail = match strings.get(offset as usize..) {
            Some(tail) => &tail[..tail.len().min(max.saturating_add(1))],
            None if offset == 0 => return Ok(&[]), // an empty table: everything is unnamed
            None => return Err(CodeError::malformed("a name lies outside of its string table")),
        };
        match tail.iter().position(|&byte| byte == 0) {
            Some(end) => Ok(&tail[..end]),
            None if tail.len() <= max => Err(CodeError::malformed("a name does not end")),
            None => Err(CodeError::TooLarge { what: "bytes of a name", value: tail.len() as u64, max: max as u64 }),
        }
    }
}

/// The file header, of the right target.
fn header(blob: &[u8]) -> Result<&FileHeader64<LittleEndian>, CodeError> {
    let Some(ident) = blob.get(..8).filter(|ident| ident.starts_with(&elf::ELFMAG)) else {
        return Err(CodeError::malformed(foreign::what(blob)));
    };
    expect("class", u64::from(ident[4]), u64::from(elf::ELFCLASS64.0), "2 (64 bits)")?;
    expect("data encoding", u64::from(ident[5]), u64::from(elf::ELFDATA2LSB.0), "1 (little endian)")?;
    if ident[7] != elf::ELFOSABI_GNU.0 {
        expect("OS ABI", u64::from(ident[7]), u64::from(elf::ELFOSABI_SYSV.0), "0 (System V) or 3 (GNU)")?;
    }
    let header = FileHeader64::<LittleEndian>::parse(blob)
        .map_err(|_| CodeError::malformed("the ELF header is cut short or of an unknown version"))?;
    expect("machine", u64::from(header.e_machine(LE).0), u64::from(elf::EM_X86_64.0), "62 (x86-64)")?;
    expect("type", u64::from(header.e_type(LE).0), u64::from(elf::ET_REL.0), "1 (relocatable object)")?;
    Ok(header)
}

fn expect(what: &'static str, found: u64, wanted: u64, needed: &'static str) -> Result<(), CodeError> {
    if found == wanted { Ok(()) } else { Err(CodeError::TargetMismatch { what, found, needed }) }
}

/// The bytes of the string table in section `index`.
fn strings<'a>(blob: &'a [u8], sections: &[Header], index: usize) -> Result<&'a [u8], CodeError> {
    let missing = || CodeError::malformed("a string table is missing or lies outside of the blob");
    let header = sections.get(index).filter(|header| header.sh_type(LE) == elf::SHT_STRTAB).ok_or_else(missing)?;
    blob.read_bytes_at(header.sh_offset(LE), header.sh_size(LE)).map_err(|()| missing())
}
