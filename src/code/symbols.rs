use std::collections::BTreeMap;

use object::elf;
use object::read::elf::{SectionHeader as _, Sym as _};

use super::chosen::Chosen;
use super::elf::{Base, LE, Object, Sym};
use super::entities::{Definition, Entities, Entity, SymbolId};
use super::error::shown;
use super::image::{Function, PartKind, Symbol};
use super::layout::Layout;
use super::provider::{Imports, Provided};
use super::reach::Needed;
use super::sections::Home;
use super::thread::{self, Variables};
use super::{CodeError, Location};

/// Bytes of names that an image keeps for each byte of its blob. An honest object holds each name once and an image
/// keeps it at most twice; names that share their end in the string table could make it keep far more.
const NAME_BYTES_PER_BLOB_BYTE_MAX: u64 = 4;

/// The name by which objects mean the global offset table.
const GLOBAL_OFFSET_TABLE: &[u8] = b"_GLOBAL_OFFSET_TABLE_";

/// The name by which C++ means the program or library that an object is part of. Only its address counts.
const DSO_HANDLE: &[u8] = b"__dso_handle";

/// Alignment of constants that the host offers: a vector register's.
const CONSTANT_ALIGN_BYTES: u64 = 16;

/// Private variables of glibc's loader: functions of its libraries choose their implementation by them.
const LOADER_NAMES: [&[u8]; 4] =
    [b"__x86_get_cpu_features", b"__x86_get_cpuid_feature_leaf", b"__get_cpu_features", b"__x86_cpu_features"];
const LOADER_PREFIXES: [&[u8]; 2] = [b"_dl_x86_", b"_rtld_global"];
/// Why these are refused.
pub(super) const OF_LOADER: &str =
    "the choice of an implementation (ifunc) reads private state of glibc's loader, which there is none of here";

/// What a symbol stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Bytes from the start of a part.
    In(PartKind, u64),
    /// The start of the global offset table.
    SlotsStart,
    /// A number.
    Absolute(u64),
    /// Address of a host function: far away.
    Import(u64),
    /// A symbol of something linked before, near or far.
    Provided(Provided),
    /// A weak symbol that nothing defines: address 0.
    Nothing,
    /// An undefined symbol that nothing offers.
    Unresolved,
    /// In a section that is not loaded.
    NotLoaded,
    /// Private to glibc's loader.
    OfLoader,
    /// A variable of the thread that runs the code: bytes from the thread pointer.
    OfThread(i64),
}

/// What can be asked for by name in an image, and what traps are named by.
pub(super) struct Names {
    /// Sorted by name, unique.
    pub(super) exports: Vec<Symbol>,
    /// Sorted by offset.
    pub(super) functions: Vec<Function>,
}

/// What is to be exported: what `roots` name, or everything that is visible from outside.
pub(super) fn exported(objects: &[Object<'_>], entities: &Entities, roots: &[String]) -> Result<Vec<u32>, CodeError> {
    if roots.is_empty() {
        let all = entities.all.iter().enumerate();
        return Ok(all.filter(|(_, it)| is_exported(objects, it)).map(|(number, _)| number as u32).collect());
    }
    let mut wanted: BTreeMap<&[u8], Option<u32>> = roots.iter().map(|root| (root.as_bytes(), None)).collect();
    for (number, entity) in entities.all.iter().enumerate().filter(|(_, it)| it.is_global) {
        let SymbolId { object, symbol } = entity.symbol;
        if is_defined(entity)
            && let Some(found) = wanted.get_mut(objects[object].symbol_name(&objects[object].symbols[symbol])?)
        {
            *found = Some(number as u32);
        }
    }
    let missing: Vec<_> = wanted.iter().filter(|(_, found)| found.is_none()).map(|(name, _)| shown(name)).collect();
    if !missing.is_empty() {
        let total = missing.len() as u64;
        let names = missing.into_iter().take(CodeError::UNRESOLVED_SHOWN_MAX).collect();
        return Err(CodeError::UnresolvedSymbols { names, total });
    }
    Ok(wanted.into_values().flatten().collect())
}

/// Where everything is.
pub(super) struct Placed {
    /// By entity.
    pub(super) places: Vec<Place>,
    pub(super) chosen: Chosen,
    /// Copies of what the host offers: bytes from the start of the read-only part, and contents.
    pub(super) constants: Vec<(u64, Box<[u8]>)>,
}

/// Places every entity; common symbols that are needed go behind the other zeros of the data part.
pub(super) fn place(
    objects: &[Object<'_>],
    entities: &Entities,
    needed: &Needed,
    (homes, variables): (&[Vec<Home>], &Variables),
    imports: Imports<'_>,
    layout: &mut Layout,
) -> Result<Placed, CodeError> {
    let places = Vec::with_capacity(entities.all.len());
    let mut placed = Placed { places, chosen: Chosen::default(), constants: Vec::new() };
    for (entity, &is_needed) in entities.all.iter().zip(&needed.entities) {
        let is_idle = matches!(entity.definition, Definition::Common { .. } | Definition::Chosen(_)) && !is_needed;
        let constant = constant(objects, entity, imports)?.filter(|_| is_needed);
        let place = match entity.definition {
            _ if is_idle => Place::NotLoaded,
            Definition::Chosen(section) => place_chosen(objects, entity, section, homes, &mut placed.chosen, layout)?,
            _ if constant.is_some() => {
                let bytes = constant.unwrap_or_default();
                let offset_bytes = layout.take(PartKind::Rodata, bytes.len() as u64, CONSTANT_ALIGN_BYTES)?;
                placed.constants.push((offset_bytes, bytes.into()));
                Place::In(PartKind::Rodata, offset_bytes)
            }
            _ => place_one(objects, entity, (homes, variables), imports, layout)?,
        };
        placed.places.push(place);
    }
    Ok(placed)
}

/// What the host offers for an entity that nothing defines, if it is a constant.
fn constant<'a>(objects: &[Object<'_>], entity: &Entity, imports: Imports<'a>) -> Result<Option<&'a [u8]>, CodeError> {
    let SymbolId { object, symbol } = entity.symbol;
    match entity.definition {
        Definition::Undefined { .. } if entity.is_global => {
            let name = objects[object].symbol_name(&objects[object].symbols[symbol])?;
            let is_provided = str::from_utf8(name).is_ok_and(|name| imports.provided(name).is_some());
            Ok(imports.host.constant(name).filter(|_| !is_provided))
        }
        _ => Ok(None),
    }
}

/// A function that chooses its implementation is where its stub is.
fn place_chosen(
    objects: &[Object<'_>],
    entity: &Entity,
    section: usize,
    homes: &[Vec<Home>],
    chosen: &mut Chosen,
    layout: &mut Layout,
) -> Result<Place, CodeError> {
    let SymbolId { object: at, symbol: index } = entity.symbol;
    let (object, symbol) = (&objects[at], &objects[at].symbols[index]);
    match homes[at][section] {
        Home::Nowhere | Home::Thread { .. } => Ok(Place::NotLoaded),
        Home::Placed { part: PartKind::Code, offset_bytes, .. }
            if symbol.st_value(LE) < object.sections[section].sh_size(LE) =>
        {
            Ok(Place::In(PartKind::Code, chosen.stub(offset_bytes + symbol.st_value(LE), layout)?))
        }
        Home::Placed { .. } => {
            let at = object.symbol_location(symbol);
            Err(CodeError::Malformed { what: "the resolver of the function is not in code", at })
        }
    }
}

fn place_one(
    objects: &[Object<'_>],
    entity: &Entity,
    (homes, variables): (&[Vec<Home>], &Variables),
    imports: Imports<'_>,
    layout: &mut Layout,
) -> Result<Place, CodeError> {
    let SymbolId { object: at, symbol: index } = entity.symbol;
    let object = &objects[at];
    Ok(match entity.definition {
        Definition::Absolute(value) => Place::Absolute(value),
        Definition::ThreadLocal { section: None } => {
            let distance_bytes = thread::offered(object.symbol_name(&object.symbols[index])?, imports.host);
            distance_bytes.map_or(Place::Unresolved, Place::OfThread)
        }
        Definition::ThreadLocal { section: Some(section) } => {
            let symbol = &object.symbols[index];
            check_extent(object, symbol, section)?;
            let distance_bytes = variables.distance_bytes(homes[at][section], symbol.st_value(LE));
            distance_bytes.map_or(Place::NotLoaded, Place::OfThread)
        }
        Definition::Discarded => Place::NotLoaded,
        Definition::Common { size_bytes, align_bytes } => {
            let offset_bytes = layout
                .take(PartKind::Data, size_bytes, align_bytes)
                .map_err(|error| error.at(|| object.symbol_location(&object.symbols[index])))?;
            Place::In(PartKind::Data, offset_bytes)
        }
        Definition::Undefined { is_weak } => {
            undefined(object.symbol_name(&object.symbols[index])?, is_weak, entity.is_global, imports)
        }
        Definition::Section(section) | Definition::Chosen(section) => match homes[at][section] {
            // A section of zeros for each thread is in no part.
            Home::Nowhere | Home::Thread { .. } => Place::NotLoaded,
            Home::Placed { part, offset_bytes, .. } => {
                let symbol = &object.symbols[index];
                check_extent(object, symbol, section)?;
                Place::In(part, offset_bytes + symbol.st_value(LE))
            }
        },
    })
}

/// The extent of a symbol must be within its section, whose own was checked.
fn check_extent(object: &Object<'_>, symbol: &Sym, section: usize) -> Result<(), CodeError> {
    let end = symbol.st_value(LE).checked_add(symbol.st_size(LE));
    if end.is_some_and(|end| end <= object.sections[section].sh_size(LE)) {
        return Ok(());
    }
    let section = object.section_location(section).section;
    let at = Location { section, offset_bytes: Some(symbol.st_value(LE)), ..object.symbol_location(symbol) };
    Err(CodeError::Malformed { what: "the symbol lies outside of its section", at })
}

fn undefined(name: &[u8], is_weak: bool, is_global: bool, imports: Imports<'_>) -> Place {
    if is_global && is_of_loader(name) {
        return Place::OfLoader;
    }
    if name == GLOBAL_OFFSET_TABLE || name == DSO_HANDLE {
        return Place::SlotsStart;
    }
    // A local symbol cannot be defined elsewhere.
    let name = str::from_utf8(name).ok().filter(|_| is_global);
    if let Some(provided) = name.and_then(|name| imports.provided(name)) {
        return Place::Provided(provided);
    }
    match name.and_then(|name| imports.host.get(name)) {
        Some(address) => Place::Import(address),
        None if is_weak => Place::Nothing,
        None => Place::Unresolved,
    }
}

fn is_of_loader(name: &[u8]) -> bool {
    LOADER_NAMES.contains(&name) || LOADER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The exported symbols by name, and all functions by offset.
pub(super) fn names(
    objects: &[Object<'_>],
    entities: &Entities,
    places: &[Place],
    exported: &[u32],
    is_asked_for: bool,
) -> Result<Names, CodeError> {
    let mut is_exported = vec![false; places.len()];
    exported.iter().for_each(|&entity| is_exported[entity as usize] = true);
    let (mut exports, mut functions) = (Vec::new(), Vec::new());
    let blob_bytes: u64 = objects.iter().map(|object| object.blob.len() as u64).sum();
    let mut room_bytes = blob_bytes.saturating_mul(NAME_BYTES_PER_BLOB_BYTE_MAX);
    for (id, number) in entities.symbols() {
        // Only by the symbol that says what the entity is, and not by others that mean it.
        if entities.all[number as usize].symbol != id {
            continue;
        }
        if is_asked_for && is_exported[number as usize] && places[number as usize] == Place::NotLoaded {
            let at = objects[id.object].symbol_location(&objects[id.object].symbols[id.symbol]);
            return Err(CodeError::Unsupported { what: "the symbol is in a section that is not loaded", at });
        }
        let &Place::In(part, offset_bytes) = &places[number as usize] else { continue };
        let (object, symbol) = (&objects[id.object], &objects[id.object].symbols[id.symbol]);
        let is_exported = is_exported[number as usize];
        let is_function = is_function(object, id.symbol, symbol, part)?;
        let name = match text_name(object, symbol) {
            Ok(name) if is_exported || is_function => name,
            Err(error) if is_exported => return Err(error),
            _ => continue,
        };
        let kept_bytes = name.len() as u64 * (u64::from(is_exported) + u64::from(is_function));
        room_bytes = room_bytes.checked_sub(kept_bytes).ok_or(CodeError::malformed("symbols share their names"))?;
        let size_bytes = entities.size_bytes(objects, number);
        if is_function {
            functions.push(Function { name: name.into(), offset_bytes, size_bytes });
        }
        if is_exported {
            exports.push(Symbol { name: name.into(), part, is_function, offset_bytes, size_bytes, signature: None });
        }
    }
    functions.sort_by_key(|function: &Function| function.offset_bytes);
    exports.sort_unstable_by(|a: &Symbol, b| a.name.cmp(&b.name));
    Ok(Names { exports, functions })
}

fn is_defined(entity: &Entity) -> bool {
    matches!(entity.definition, Definition::Section(_) | Definition::Common { .. } | Definition::Chosen(_))
}

fn is_exported(objects: &[Object<'_>], entity: &Entity) -> bool {
    let SymbolId { object, symbol } = entity.symbol;
    let is_section = |symbol: &Sym| symbol.st_type() == elf::STT_SECTION;
    entity.is_global
        && entity.is_visible
        && is_defined(entity)
        && !objects[object].symbols.get(symbol).is_some_and(is_section)
}

/// Assembly often leaves the type of its functions away, but then makes them global: a local label without a type is
/// a place inside of one. A label at the very end of a section is none either.
fn is_function(object: &Object<'_>, index: usize, symbol: &Sym, part: PartKind) -> Result<bool, CodeError> {
    let is_typed = matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC);
    let is_bare_global = symbol.st_type() == elf::STT_NOTYPE && symbol.st_bind() != elf::STB_LOCAL;
    if part != PartKind::Code || !(is_typed || is_bare_global) {
        return Ok(false);
    }
    let Base::Section(section) = object.symbol_base(index, symbol)? else { return Ok(false) };
    Ok(symbol.st_value(LE) < object.sections[section].sh_size(LE))
}

/// The name of a symbol that can be asked for.
fn text_name<'a>(object: &Object<'a>, symbol: &Sym) -> Result<&'a str, CodeError> {
    let name = object.symbol_name(symbol)?;
    let what = match str::from_utf8(name) {
        Ok("") => "an exported symbol has no name",
        Ok(text) => return Ok(text),
        Err(_) => "the name of the symbol is not UTF-8",
    };
    Err(CodeError::Malformed { what, at: Location::symbol(name) })
}
