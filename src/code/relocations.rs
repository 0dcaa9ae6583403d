use object::read::elf::SectionHeader as _;

use super::chosen::Chosen;
use super::diagnosis::Problems;
use super::elf::{LE, Object, Rela};
use super::entities::{Definition, Entities, SymbolId};
use super::error::shown;
use super::image::PartKind;
use super::layout::Layout;
use super::reach::Patches;
use super::relax::Form;
use super::relocation::{self, Relocation};
use super::sections::Home;
use super::stubs::{self, STUB_BYTES};
use super::symbols::{self, Place};
use super::tls::{self, Access, Rewrite};
use super::{CodeError, ImportTable, Location};

/// Bytes of a slot of the global offset table.
pub(super) const SLOT_BYTES: u64 = 8;
/// The addend of a field that ends its instruction, as displacements count from there.
pub(super) const END_OF_FIELD: i64 = -4;
/// Bytes of names for errors that are kept for each byte of the blobs; what is beyond stays unnamed.
const NAME_BYTES_PER_BLOB_BYTE_MAX: u64 = 4;
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
    /// Functions that choose their implementation, whose stubs and slots are others.
    pub(super) chosen: Chosen,
    /// Bytes from the start of the read-only part to the first slot.
    pub(super) slots_offset_bytes: u64,
    /// Bytes from the start of the code part to the first stub.
    pub(super) stubs_offset_bytes: u64,
    /// Sections that hold fixups.
    pub(super) sources: Vec<Source>,
    /// Index of the first fixup for whose sake the image must lie below 2 GiB.
    pub(super) first_low: Option<u32>,
    /// Instructions that load an address from a slot, and compute it instead.
    relaxed: Vec<Relaxed>,
    /// Other rewritten instructions: bytes from the start of the code part, and what stands there.
    rewritten: Vec<(u64, Rewrite)>,
}

/// An instruction to rewrite.
struct Relaxed {
    /// Where the field was, from the start of the code part.
    offset_bytes: u64,
    form: Form,
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
    /// The start of the global offset table.
    SlotsStart,
}

/// A symbol that fixups refer to.
pub(super) struct Target {
    pub(super) place: Place,
    /// As errors show it.
    pub(super) name: Box<str>,
    slot: Option<u32>,
    pub(super) stub: Option<u32>,
    /// The stub's address is taken for that of the function.
    pub(super) is_by_stub_alone: bool,
}

/// A section that holds fixups.
pub(super) struct Source {
    pub(super) part: PartKind,
    /// Bytes from the start of the part.
    pub(super) offset_bytes: u64,
    /// As errors show it.
    pub(super) name: Box<str>,
}

/// Reads the relocations of all sections that are placed, and makes room for the slots and stubs they need.
#[allow(clippy::too_many_arguments, reason = "all that was read before, and what to do about problems")]
pub(super) fn collect(
    objects: &[Object<'_>],
    patches: &[Patches],
    homes: &[Vec<Home>],
    entities: &Entities,
    places: &[Place],
    imports: &ImportTable,
    layout: &mut Layout,
    problems: &mut Problems<'_>,
) -> Result<Links, CodeError> {
    let mut collector = Collector {
        objects,
        entities,
        places,
        imports,
        links: Links::default(),
        target_of_entity: vec![None; places.len()],
        unresolved: Vec::new(),
        unresolved_total: 0,
        problems,
        room_bytes: objects.iter().map(|it| it.blob.len() as u64).sum::<u64>() * NAME_BYTES_PER_BLOB_BYTE_MAX,
    };
    for (at, homes) in homes.iter().enumerate() {
        for (section, &home) in homes.iter().enumerate() {
            if let Home::Placed { part, offset_bytes, .. } = home {
                for table in patches[at].of(section) {
                    collector.table(Section { object: at, section, part, offset_bytes }, table)?;
                }
            }
        }
    }
    let mut links = collector.finish()?;
    links.lead_to_stubs();
    // Where there is none, its start is still a place that others are measured from.
    let slots_bytes = links.slots.len() as u64 * SLOT_BYTES;
    links.slots_offset_bytes =
        layout.take(PartKind::Rodata, slots_bytes, if slots_bytes > 0 { SLOT_BYTES } else { 1 })?;
    if !links.stubs.is_empty() {
        links.stubs_offset_bytes = layout.take(PartKind::Code, links.stubs.len() as u64 * STUB_BYTES, STUB_BYTES)?;
    }
    Ok(links)
}

impl Links {
    /// Rewrites the instructions that need no slot.
    pub(super) fn write_relaxed(&self, code: &mut [u8]) {
        for relaxed in &self.relaxed {
            relaxed.form.write(&mut code[relaxed.offset_bytes as usize - Form::BEFORE_BYTES as usize..]);
        }
        for (offset_bytes, rewrite) in &self.rewritten {
            code[*offset_bytes as usize..][..rewrite.bytes().len()].copy_from_slice(rewrite.bytes());
        }
    }
}

/// A section whose relocations are read.
#[derive(Clone, Copy)]
struct Section {
    object: usize,
    section: usize,
    part: PartKind,
    /// Bytes from the start of the part.
    offset_bytes: u64,
}

struct Collector<'a, 'p> {
    objects: &'a [Object<'a>],
    entities: &'a Entities,
    places: &'a [Place],
    imports: &'a ImportTable,
    links: Links,
    /// By entity: its index in `links.targets`.
    target_of_entity: Vec<Option<u32>>,
    /// Unresolved symbols in the order of their first use, up to the number that an error shows.
    unresolved: Vec<String>,
    unresolved_total: u64,
    problems: &'a mut Problems<'p>,
    /// Bytes of names that may still be kept.
    room_bytes: u64,
}

impl Collector<'_, '_> {
    fn finish(self) -> Result<Links, CodeError> {
        if self.unresolved_total > 0 && matches!(self.problems, Problems::Fatal) {
            return Err(CodeError::UnresolvedSymbols { names: self.unresolved, total: self.unresolved_total });
        }
        Ok(self.links)
    }

    /// Reads a table of relocations of a section. The table was checked when it was counted.
    fn table(&mut self, of: Section, table: usize) -> Result<(), CodeError> {
        let object = &self.objects[of.object];
        let entries: &[Rela] = object.entries(table)?;
        let name = self.kept(shown(object.section_name(of.section)?));
        self.links.sources.push(Source { part: of.part, offset_bytes: of.offset_bytes, name });
        let mut entries = entries.iter();
        while let Some(entry) = entries.next() {
            match Access::of(entry.r_type(LE, false).0) {
                Some(access) => {
                    let next = entries.as_slice().first();
                    match self.access(access, entry, next, of) {
                        Ok(true) => drop(entries.next()),
                        Ok(false) => {}
                        Err(problem) => self.problems.take(problem)?,
                    }
                }
                None => self.entry(entry, of).or_else(|problem| self.problems.take(problem))?,
            }
        }
        Ok(())
    }

    /// Instructions that ask for the address of a thread's variable; whether `next` is of their call.
    fn access(&mut self, access: Access, entry: &Rela, next: Option<&Rela>, of: Section) -> Result<bool, CodeError> {
        let (symbol, offset) = (entry.r_sym(LE, false) as usize, entry.r_offset.get(LE));
        let Some(entity) = self.entities.of(of.object, symbol) else {
            let what = "the relocation is for a symbol that does not exist";
            return Err(CodeError::Malformed { what, at: self.location(of, offset, symbol) });
        };
        match self.places[entity as usize] {
            Place::OfThread(_) => {}
            // Any variable stands for the module where only that is asked for.
            _ if access == Access::Local && self.is_thread_local(entity) => {}
            Place::Unresolved => self.miss(entity, of, offset),
            _ => {
                let what = "the symbol is no variable of the thread";
                return Err(CodeError::Malformed { what, at: self.location(of, offset, symbol) });
            }
        }
        let contents = if of.part == PartKind::Code { self.objects[of.object].contents(of.section)? } else { &[] };
        let call = next.filter(|next| self.is_of_address_getter(next, of.object));
        let call = call.map(|next| (next.r_offset.get(LE), next.r_type(LE, false).0));
        let Some(found) = tls::rewrite(access, contents, offset, call) else {
            return Err(tls::unknown(self.location(of, offset, symbol)));
        };
        self.links.rewritten.push((of.offset_bytes + found.start, found.rewrite));
        if let Some(field) = found.field {
            let addend = entry.r_addend.get(LE).saturating_sub(END_OF_FIELD);
            self.push(Relocation::TpOff32, entity, of, field, addend)?;
        }
        Ok(found.has_call)
    }

    fn is_thread_local(&self, entity: u32) -> bool {
        matches!(self.entities.all[entity as usize].definition, Definition::ThreadLocal { .. })
    }

    fn is_of_address_getter(&self, entry: &Rela, object: usize) -> bool {
        let entity = self.entities.of(object, entry.r_sym(LE, false) as usize);
        entity.is_some_and(|entity| self.raw_name(entity) == Some(tls::ADDRESS_GETTER))
    }

    fn raw_name(&self, entity: u32) -> Option<&[u8]> {
        let SymbolId { object, symbol } = self.entities.all[entity as usize].symbol;
        let object = &self.objects[object];
        object.symbols.get(symbol).filter(|_| symbol > 0).and_then(|it| object.symbol_name(it).ok())
    }

    fn entry(&mut self, entry: &Rela, of: Section) -> Result<(), CodeError> {
        let number = entry.r_type(LE, false).0;
        if number == relocation::NONE {
            return Ok(());
        }
        let symbol = entry.r_sym(LE, false) as usize;
        let offset = entry.r_offset.get(LE);
        let at = || self.location(of, offset, symbol);
        let malformed = |what| Err(CodeError::Malformed { what, at: at() });
        let unsupported = |what| Err(CodeError::Unsupported { what, at: at() });
        let Some(relocation) = Relocation::from_number(number) else {
            return Err(relocation::unsupported(number, at()));
        };
        let header = &self.objects[of.object].sections[of.section];
        let end = offset.checked_add(relocation.width_bytes());
        if end.is_none_or(|end| end > header.sh_size(LE)) {
            return malformed("the relocation lies outside of its section");
        }
        let Some(entity) = self.entities.of(of.object, symbol) else {
            return malformed("the relocation is for a symbol that does not exist");
        };
        match self.places[entity as usize] {
            Place::NotLoaded => unsupported("the symbol is in a section that is not loaded"),
            Place::OfLoader => unsupported(symbols::OF_LOADER),
            Place::OfThread(_) if !relocation.is_thread_local() => {
                malformed("a variable of the thread is used as if it had one address")
            }
            Place::In(..) | Place::Import(_) | Place::Provided(_) | Place::Nothing | Place::SlotsStart
                if relocation.is_thread_local() =>
            {
                malformed("the symbol is no variable of the thread")
            }
            Place::Unresolved if self.raw_name(entity) == Some(tls::ADDRESS_GETTER) => {
                unsupported(tls::GETTER_ELSEWHERE)
            }
            Place::Unresolved => {
                self.miss(entity, of, offset);
                Ok(())
            }
            _ => self.push(relocation, entity, of, offset, entry.r_addend.get(LE)),
        }
    }

    fn push(
        &mut self,
        relocation: Relocation,
        entity: u32,
        of: Section,
        offset: u64,
        addend: i64,
    ) -> Result<(), CodeError> {
        let place = self.places[entity as usize];
        let source = self.links.sources.len() as u32 - 1;
        let mut fixup =
            Fixup { offset_bytes: of.offset_bytes + offset, addend, to: To::SlotsStart, source, relocation };
        if relocation.is_size() {
            let size_bytes = match place {
                Place::Provided(provided) => provided.size_bytes,
                _ => self.entities.size_bytes(self.objects, entity),
            };
            fixup.addend = i64::try_from(size_bytes).ok().and_then(|it| it.checked_add(addend)).unwrap_or(i64::MAX);
            fixup.to = To::Target(self.target(0));
            self.links.fixups.push(fixup);
            return Ok(());
        }
        if relocation.may_relax()
            && addend == END_OF_FIELD
            && matches!(place, Place::In(..))
            && let Some(form) = self.form(of, offset, relocation)?
        {
            self.links.relaxed.push(Relaxed { offset_bytes: fixup.offset_bytes, form });
            fixup.offset_bytes -= form.earlier_bytes();
            fixup.relocation = Relocation::Pc32;
            fixup.to = To::Target(self.target(entity));
            self.links.fixups.push(fixup);
            return Ok(());
        }
        fixup.to = if relocation.is_by_slot() {
            let target = self.target(entity);
            To::Slot(self.slot(target))
        } else if relocation.is_of_slots_start() {
            To::SlotsStart
        } else if stubs::leads_there(relocation, place, addend) {
            let target = self.target(entity);
            self.links.targets[target as usize].is_by_stub_alone |= relocation.is_low_address();
            To::Stub(self.stub(target))
        } else {
            To::Target(self.target(entity))
        };
        if stubs::needs_low(relocation, fixup.to, place) {
            self.links.first_low.get_or_insert(self.links.fixups.len() as u32);
        }
        self.links.fixups.push(fixup);
        Ok(())
    }

    /// A name for errors, as long as there is room for it.
    fn kept(&mut self, name: String) -> Box<str> {
        match self.room_bytes.checked_sub(name.len() as u64) {
            Some(left) => {
                self.room_bytes = left;
                name.into()
            }
            None => Box::default(),
        }
    }

    /// How the instruction around a field can do without a slot.
    fn form(&self, of: Section, offset: u64, relocation: Relocation) -> Result<Option<Form>, CodeError> {
        if of.part != PartKind::Code {
            return Ok(None);
        }
        let contents = self.objects[of.object].contents(of.section)?;
        let before =
            offset.checked_sub(Form::BEFORE_BYTES).and_then(|start| contents.get(start as usize..offset as usize));
        Ok(before.and_then(|before| Form::of([before[0], before[1]], relocation)))
    }

    /// The target of an entity, one for each.
    fn target(&mut self, entity: u32) -> u32 {
        if let Some(target) = self.target_of_entity[entity as usize] {
            return target;
        }
        let target = self.links.targets.len() as u32;
        let name = self.name_of(entity).unwrap_or_default();
        let name = self.kept(name);
        self.links.targets.push(Target {
            place: self.places[entity as usize],
            name,
            slot: None,
            stub: None,
            is_by_stub_alone: false,
        });
        self.target_of_entity[entity as usize] = Some(target);
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
    fn miss(&mut self, entity: u32, of: Section, offset: u64) {
        if self.target_of_entity[entity as usize].replace(u32::MAX).is_none() {
            self.unresolved_total += 1;
            let is_told = match self.problems {
                Problems::Fatal => self.unresolved.len() < CodeError::UNRESOLVED_SHOWN_MAX,
                Problems::Noted(diagnosis) => !diagnosis.is_full(),
            };
            // The search for the nearest name takes longer than all else.
            let name = if is_told { self.name_of(entity).unwrap_or_default() } else { String::new() };
            let nearest = self.imports.nearest(&name);
            match self.problems {
                Problems::Fatal if is_told => self.unresolved.push(match nearest {
                    Some(offered) => format!("{name} (nearest offered: {offered})"),
                    None => name,
                }),
                Problems::Fatal => (),
                Problems::Noted(diagnosis) => {
                    let section = self.objects[of.object].section_location(of.section);
                    let at = Location { symbol: Some(name), offset_bytes: Some(offset), ..section };
                    diagnosis.note(CodeError::Unresolved { nearest: nearest.map(Into::into), at });
                }
            }
        }
    }

    fn location(&self, of: Section, offset: u64, symbol: usize) -> Location {
        let object = &self.objects[of.object];
        let symbol = object.symbols.get(symbol).filter(|_| symbol > 0).and_then(|it| object.symbol_location(it).symbol);
        Location { offset_bytes: Some(offset), symbol, ..object.section_location(of.section) }
    }

    fn name_of(&self, entity: u32) -> Option<String> {
        let SymbolId { object, symbol } = self.entities.all[entity as usize].symbol;
        let object = &self.objects[object];
        object.symbols.get(symbol).filter(|_| symbol > 0).and_then(|it| object.symbol_location(it).symbol)
    }
}
