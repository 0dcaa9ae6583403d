use object::elf::*;

/// A relocatable x86-64 object, written by hand. Nothing is checked: tests break it as they need.
#[derive(Default)]
pub(super) struct Builder {
    sections: Vec<Section>,
    symbols: Vec<[u8; 24]>,
    /// (patched section, entries)
    relocations: Vec<(usize, Vec<u8>)>,
    strings: Vec<u8>,
}

struct Section {
    name: Vec<u8>,
    kind: SectionType,
    flags: u64,
    align: u64,
    bytes: Vec<u8>,
    size: u64,
    link: u32,
    info: u32,
}

pub(super) const TEXT: u64 = SHF_ALLOC.0 | SHF_EXECINSTR.0;
pub(super) const DATA: u64 = SHF_ALLOC.0 | SHF_WRITE.0;
pub(super) const RODATA: u64 = SHF_ALLOC.0;

impl Builder {
    /// An object with a section `.text` of `code`, which gets the index 1.
    pub(super) fn with_text(code: &[u8]) -> Self {
        let mut builder = Builder { strings: vec![0], ..Builder::default() };
        builder.section(".text", SHT_PROGBITS, TEXT, 16, code);
        builder
    }

    /// Adds a section and returns its index.
    pub(super) fn section(&mut self, name: &str, kind: SectionType, flags: u64, align: u64, bytes: &[u8]) -> u16 {
        let (name, size) = (name.as_bytes().to_vec(), bytes.len() as u64);
        self.sections.push(Section { name, kind, flags, align, bytes: bytes.to_vec(), size, link: 0, info: 0 });
        self.sections.len() as u16
    }

    /// Adds a section of `size` bytes without contents and returns its index.
    pub(super) fn zeros(&mut self, name: &str, flags: u64, align: u64, size: u64) -> u16 {
        let index = self.section(name, SHT_NOBITS, flags, align, &[]);
        self.sections[usize::from(index) - 1].size = size;
        index
    }

    /// Adds a global function at `value` of `.text` and returns its index.
    pub(super) fn function(&mut self, name: &str, value: u64, size: u64) -> u32 {
        self.symbol(name, STB_GLOBAL, STT_FUNC, SymbolSection(1), value, size)
    }

    /// Adds a global function at `value` of `.text` that only objects of the same image may use.
    pub(super) fn hidden_function(&mut self, name: &str, value: u64, size: u64) {
        let index = self.function(name, value, size);
        self.visibility(index, STV_HIDDEN);
    }

    /// Adds a group of sections, of which one of the same signature is kept.
    pub(super) fn group(&mut self, signature: u32, members: &[u16]) {
        let words = std::iter::once(1).chain(members.iter().map(|&it| u32::from(it)));
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let index = usize::from(self.section(".group", SHT_GROUP, 0, 4, &bytes));
        self.sections[index - 1].info = signature;
    }

    /// Adds an undefined global symbol and returns its index.
    pub(super) fn undefined(&mut self, name: &str) -> u32 {
        self.symbol(name, STB_GLOBAL, STT_NOTYPE, SHN_UNDEF, 0, 0)
    }

    /// Adds the symbol of section `index` itself and returns its index.
    pub(super) fn section_symbol(&mut self, index: u16) -> u32 {
        self.symbol("", STB_LOCAL, STT_SECTION, SymbolSection(index), 0, 0)
    }

    /// Adds a symbol and returns its index.
    pub(super) fn symbol(
        &mut self,
        name: &str,
        bind: SymbolBind,
        kind: SymbolType,
        section: SymbolSection,
        value: u64,
        size: u64,
    ) -> u32 {
        let mut entry = [0; 24];
        entry[..4].copy_from_slice(&self.string(name.as_bytes()).to_le_bytes());
        entry[4] = bind.0 << 4 | kind.0;
        entry[6..8].copy_from_slice(&section.0.to_le_bytes());
        entry[8..16].copy_from_slice(&value.to_le_bytes());
        entry[16..].copy_from_slice(&size.to_le_bytes());
        self.symbols.push(entry);
        self.symbols.len() as u32
    }

    /// Changes the visibility of the symbol `index`.
    pub(super) fn visibility(&mut self, index: u32, visibility: SymbolVisibility) {
        self.symbols[index as usize - 1][5] = visibility.0;
    }

    /// Adds a relocation of section `section`.
    pub(super) fn relocation(&mut self, section: u16, offset: u64, kind: RelocationType, symbol: u32, addend: i64) {
        let info = u64::from(symbol) << 32 | u64::from(kind.0);
        let entry = [offset.to_le_bytes(), info.to_le_bytes(), addend.to_le_bytes()].concat();
        match self.relocations.iter_mut().find(|(patched, _)| *patched == usize::from(section)) {
            Some((_, entries)) => entries.extend(entry),
            None => self.relocations.push((usize::from(section), entry)),
        }
    }

    /// The bytes of the object: header, contents, section table.
    pub(super) fn build(mut self) -> Vec<u8> {
        self.push_tables();
        let names: Vec<Vec<u8>> = self.sections.iter().map(|section| section.name.clone()).collect();
        let names: Vec<u32> = names.iter().map(|name| self.string(name)).collect();
        let strings = std::mem::take(&mut self.strings);
        let last = self.sections.len() - 1;
        (self.sections[last].size, self.sections[last].bytes) = (strings.len() as u64, strings);
        let (mut blob, mut table) = (vec![0; 64], vec![0; 64]);
        for (section, name) in self.sections.iter().zip(names) {
            blob.resize(blob.len().next_multiple_of(8), 0);
            table.extend([name, section.kind.0].map(u32::to_le_bytes).concat());
            table.extend([section.flags, 0, blob.len() as u64, section.size].map(u64::to_le_bytes).concat());
            table.extend([section.link, section.info].map(u32::to_le_bytes).concat());
            table.extend([section.align, entry_size(section.kind)].map(u64::to_le_bytes).concat());
            blob.extend(&section.bytes);
        }
        blob.resize(blob.len().next_multiple_of(8), 0);
        let header = header(blob.len() as u64, self.sections.len() as u16 + 1);
        blob[..64].copy_from_slice(&header);
        blob.extend(table);
        blob
    }

    /// Adds the sections of relocations and symbols, and last the one string table, still without contents.
    fn push_tables(&mut self) {
        let relocations = std::mem::take(&mut self.relocations);
        let symtab = (self.sections.len() + relocations.len() + 1) as u32;
        for (patched, entries) in relocations {
            let index = usize::from(self.section(".rela", SHT_RELA, 0, 8, &entries));
            (self.sections[index - 1].link, self.sections[index - 1].info) = (symtab, patched as u32);
        }
        self.sections.iter_mut().filter(|it| it.kind == SHT_GROUP).for_each(|group| group.link = symtab);
        let symbols = [vec![0; 24], self.symbols.concat()].concat();
        let index = usize::from(self.section(".symtab", SHT_SYMTAB, 0, 8, &symbols));
        self.sections[index - 1].link = symtab + 1;
        self.section(".strtab", SHT_STRTAB, 0, 1, &[]);
    }

    fn string(&mut self, text: &[u8]) -> u32 {
        let offset = self.strings.len() as u32;
        self.strings.extend(text);
        self.strings.push(0);
        offset
    }
}

/// An archive in the GNU form; names have up to 15 bytes.
pub(super) fn archive(members: &[(String, &[u8])]) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        let (name, size) = (format!("{name}/"), bytes.len());
        archive.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 644).as_bytes());
        archive.extend_from_slice(bytes);
        archive.extend(if size % 2 == 1 { &b"\n"[..] } else { b"" });
    }
    archive
}

/// Overwrites bytes of the header of section `index`: 0x08 flags, 0x18 offset, 0x20 size, 0x28 link, 0x30 alignment.
pub(super) fn patch_section(blob: &mut [u8], index: u16, field: usize, bytes: &[u8]) {
    let table = u64::from_le_bytes(blob[40..48].try_into().unwrap()) as usize;
    blob[table + usize::from(index) * 64 + field..][..bytes.len()].copy_from_slice(bytes);
}

fn entry_size(kind: SectionType) -> u64 {
    if matches!(kind, SHT_SYMTAB | SHT_RELA) { 24 } else { 0 }
}

fn header(section_table: u64, sections: u16) -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header.extend([ET_REL.0, EM_X86_64.0].map(u16::to_le_bytes).concat());
    header.extend(1u32.to_le_bytes());
    header.extend([0, 0, section_table].map(u64::to_le_bytes).concat());
    header.extend(0u32.to_le_bytes());
    header.extend([64, 0, 0, 64, sections, sections - 1].map(u16::to_le_bytes).concat());
    header
}
