use object::elf;
use object::read::elf::SectionHeader as _;

use super::elf::{LE, Object, Rela};
use super::error::shown;
use super::image::PartKind;
use super::layout::Layout;
use super::relocation::{self, Relocation};
use super::sections::Home;
use super::symbols::Place;
use super::{CodeError, ImportTable, Limits, Location};

/// Bytes of a slot of the global offset table.
pub(super) const SLOT_BYTES: u64 = 8;
/// Bytes of a call stub: `jmp *slot(%rip)`, and trap bytes up to a multiple of 8.
pub(super) const STUB_BYTES: u64 = 8;
/// `jmp *0(%rip)`; the displacement follows once addresses are known.
const STUB: [u8; STUB_BYTES as usize] = [0xff, 0x25, 0, 0, 0, 0, 0xcc, 0xcc];

/// What is left to write into an image once its run addresses are known.
#[derive(Default)]
pub(super) struct Links {
    pub(super) fixups: Vec<Fixup>,
    /// Symbols that fixups refer to.
    pub(super) targets: Vec<Target>,
    /// By slot: the target whose address it holds.
    pub(super) slots: Vec<u32>,
    /// By stub: the slot that it jumps through.
    pub(super) stubs: Vec<u32>,
    /// Bytes from the start of the read-only part to the first slot.
    pub(super) slots_offset_bytes: u64,
    /// Bytes from the start of the code part to the first stub.
    pub(super) stubs_offset_bytes: u64,
    /// Sections that hold fixups.
    pub(super) sources: Vec<Source>,
}

/// A field to write. Its extent was checked against its section.
pub(super) struct Fixup {
    /// Bytes from the start of the part.
    pub(super) offset_bytes: u64,
    pub(super) addend: i64,
    pub(super) to: To,
    /// Index of its section in [`Links::sources`].
    pub(super) source: u32,
    pub(super) relocation: Relocation,
}

/// What a fixup refers to, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Target(u32),
    Slot(u32),
    Stub(u32),
}

/// A symbol that fixups refer to.
pub(super) struct Target {
    pub(super) place: Place,
    /// As errors show it.
    pub(super) name: Box<str>,
    slot: Option<u32>,
    stub: Option<u32>,
}

/// A section that holds fixups.
pub(super) struct Source {
    pub(super) part: PartKind,
    /// Bytes from the start of the part.
    pub(super) offset_bytes: u64,
    /// As errors show it.
    pub(super) name: Box<str>,
}

/// Reads the relocations of all loaded sections, and makes room for the slots and stubs they need.
pub(super) fn collect(
    object: &Object<'_>,
    homes: &[Home],
    places: &[Place],
    imports: &ImportTable,
    layout: &mut Layout,
) -> Result<Links, CodeError> {
    let mut collector = Collector::new(object, places, imports);
    for index in 1..object.sections.len() {
        collector.section(index, homes)?;
    }
    let mut links = collector.finish()?;
    if !links.slots.is_empty() {
        links.slots_offset_bytes = layout.take(PartKind::Rodata, links.slots.len() as u64 * SLOT_BYTES, SLOT_BYTES)?;
    }
    if !links.stubs.is_empty() {
        links.stubs_offset_bytes = layout.take(PartKind::Code, links.stubs.len() as u64 * STUB_BYTES, STUB_BYTES)?;
    }
    Ok(links)
}

impl Links {
    /// Writes the stubs, still without their displacements, behind the sections of `code`.
    pub(super) fn write_stubs(&self, code: &mut [u8]) {
        let room = &mut code[self.stubs_offset_bytes as usize..];
        for (stub, _) in room.chunks_exact_mut(STUB.len()).zip(&self.stubs) {
            stub.copy_from_slice(&STUB);
        }
    }
}

struct Collector<'a> {
    object: &'a Object<'a>,
    places: &'a [Place],
    imports: &'a ImportTable,
    links: Links,
    /// By symbol index: its index in `links.targets`.
    target_of_symbol: Vec<Option<u32>>,
    /// Unresolved symbols in the order of their first use, up to the number that an error shows.
    unresolved: Vec<String>,
    unresolved_total: u64,
    relocations_total: u64,
}

impl<'a> Collector<'a> {
    fn new(object: &'a Object<'a>, places: &'a [Place], imports: &'a ImportTable) -> Self {
        Collector {
            object,
            places,
            imports,
            links: Links::default(),
            target_of_symbol: vec![None; places.len()],
            unresolved: Vec::new(),
            unresolved_total: 0,
            relocations_total: 0,
        }
    }

    fn finish(self) -> Result<Links, CodeError> {
        if self.unresolved_total > 0 {
            return Err(CodeError::UnresolvedSymbols { names: self.unresolved, total: self.unresolved_total });
        }
        Ok(self.links)
    }

    /// Reads section `index`, if it holds relocations of a loaded section.
    fn section(&mut self, index: usize, homes: &[Home]) -> Result<(), CodeError> {
        let header = &self.object.sections[index];
        let kind = header.sh_type(LE);
        let is_other = matches!(kind, elf::SHT_REL | elf::SHT_RELR | elf::SHT_CREL);
        if (kind != elf::SHT_RELA && !is_other) || header.sh_size(LE) == 0 {
            return Ok(());
        }
        let patched = header.sh_info(LE) as usize;
        let malformed = |what| Err(self.object.malformed_section(what, index));
        let Some(&home) = homes.get(patched) else {
            return malformed("the relocations are of a section that does not exist");
        };
        let Home::Placed { part, offset_bytes, is_zeros } = home else { return Ok(()) };
        if is_other {
            let what = "relocations of this encoding are not taken, only RELA";
            return Err(CodeError::Unsupported { what, at: self.object.section_location(index) });
        }
        if is_zeros {
            return malformed("the relocations are of a section without contents");
        }
        if self.object.symtab_index == 0 || header.link(LE).0 != self.object.symtab_index {
            return malformed("the relocations are not of the symbol table");
        }
        let entries: &[Rela] = self.object.entries(index)?;
        self.count(entries.len() as u64)?;
        let name = shown(self.object.section_name(patched)?).into();
        self.links.sources.push(Source { part, offset_bytes, name });
        entries.iter().try_for_each(|entry| self.entry(entry, patched, offset_bytes))
    }

    /// Counts relocations before memory is taken for them.
    fn count(&mut self, more: u64) -> Result<(), CodeError> {
        self.relocations_total += more;
        let limits = self.object.limits;
        Limits::hold("relocations", self.relocations_total, u64::from(limits.relocations_max))?;
        if self.relocations_total > (self.object.blob.len() / size_of::<Rela>()) as u64 {
            return Err(CodeError::malformed("relocation sections share their contents"));
        }
        Ok(())
    }

    /// Reads one relocation of the section `patched`, which starts at `start_bytes` of its part.
    fn entry(&mut self, entry: &Rela, patched: usize, start_bytes: u64) -> Result<(), CodeError> {
        let number = entry.r_type(LE, false).0;
        if number == relocation::NONE {
            return Ok(());
        }
        let symbol = entry.r_sym(LE, false) as usize;
        let offset = entry.r_offset.get(LE);
        let at = || self.location(patched, offset, symbol);
        let malformed = |what| Err(CodeError::Malformed { what, at: at() });
        let unsupported = |what| Err(CodeError::Unsupported { what, at: at() });
        let Some(relocation) = Relocation::from_number(number) else {
            return Err(relocation::unsupported(number, at()));
        };
        let end = offset.checked_add(relocation.width_bytes());
        if end.is_none_or(|end| end > self.object.sections[patched].sh_size(LE)) {
            return malformed("the relocation lies outside of its section");
        }
        match self.places.get(symbol) {
            None => return malformed("the relocation is for a symbol that does not exist"),
            Some(Place::NotLoaded) => return unsupported("the symbol is in a section that is not loaded"),
            Some(Place::ThreadLocal) => return unsupported("thread-local storage is not supported"),
            Some(Place::Unresolved) => self.miss(symbol),
            Some(_) => self.push(relocation, symbol, start_bytes + offset, entry.r_addend.get(LE)),
        }
        Ok(())
    }

    fn push(&mut self, relocation: Relocation, symbol: usize, offset_bytes: u64, addend: i64) {
        let target = self.target(symbol);
        let place = self.places[symbol];
        let is_by_stub = match relocation {
            // Calls of a weak symbol that is nothing stand behind a test of its address, and still must reach.
            Relocation::Plt32 => !matches!(place, Place::In(..)),
            // Compilers and older assemblers write calls so, and a stub's address serves as the function's own.
            Relocation::Pc32 => matches!(place, Place::Import(_)),
            _ => false,
        };
        let to = if relocation.is_by_slot() {
            To::Slot(self.slot(target))
        } else if is_by_stub {
            To::Stub(self.stub(target))
        } else {
            To::Target(target)
        };
        let source = self.links.sources.len() as u32 - 1;
        self.links.fixups.push(Fixup { offset_bytes, addend, to, source, relocation });
    }

    /// The target of `symbol`, one for each symbol.
    fn target(&mut self, symbol: usize) -> u32 {
        if let Some(target) = self.target_of_symbol[symbol] {
            return target;
        }
        let target = self.links.targets.len() as u32;
        let name = self.location_of_symbol(symbol).symbol.unwrap_or_default().into();
        self.links.targets.push(Target { place: self.places[symbol], name, slot: None, stub: None });
        self.target_of_symbol[symbol] = Some(target);
        target
    }

    /// The slot that holds the address of `target`, one for each target.
    fn slot(&mut self, target: u32) -> u32 {
        let slots = &mut self.links.slots;
        *self.links.targets[target as usize].slot.get_or_insert_with(|| {
            slots.push(target);
            slots.len() as u32 - 1
        })
    }

    /// The stub that jumps to `target`, one for each target.
    fn stub(&mut self, target: u32) -> u32 {
        let slot = self.slot(target);
        let stubs = &mut self.links.stubs;
        *self.links.targets[target as usize].stub.get_or_insert_with(|| {
            stubs.push(slot);
            stubs.len() as u32 - 1
        })
    }

    /// Notes an unresolved symbol, once each. Its target only marks it: no image comes of this.
    fn miss(&mut self, symbol: usize) {
        if self.target_of_symbol[symbol].replace(u32::MAX).is_none() {
            self.unresolved_total += 1;
            if self.unresolved.len() < CodeError::UNRESOLVED_SHOWN_MAX {
                let name = self.location_of_symbol(symbol).symbol.unwrap_or_default();
                self.unresolved.push(match self.imports.nearest(&name) {
                    Some(offered) => format!("{name} (nearest offered: {offered})"),
                    None => name,
                });
            }
        }
    }

    fn location(&self, section: usize, offset: u64, symbol: usize) -> Location {
        let section = self.object.section_location(section).section;
        Location { section, offset_bytes: Some(offset), ..self.location_of_symbol(symbol) }
    }

    fn location_of_symbol(&self, symbol: usize) -> Location {
        match self.object.symbols.get(symbol) {
            Some(entry) if symbol > 0 => self.object.symbol_location(entry),
            _ => Location::default(),
        }
    }
}
