use object::elf;
use object::read::elf::{SectionHeader as _, Sym as _};

use super::elf::{Base, LE, Object, Sym};
use super::image::{Function, PartKind, Symbol};
use super::layout::Layout;
use super::sections::Home;
use super::{CodeError, ImportTable, Location};

/// Bytes of names that an image keeps for each byte of its blob. An honest object holds each name once and an image
/// keeps it at most twice; names that share their end in the string table could make it keep far more.
const NAME_BYTES_PER_BLOB_BYTE_MAX: u64 = 4;

/// What a symbol stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Bytes from the start of a part.
    In(PartKind, u64),
    /// A number.
    Absolute(u64),
    /// Address of a host function: far away.
    Import(u64),
    /// A weak symbol that nothing defines: address 0.
    Nothing,
    /// An undefined symbol that nothing offers.
    Unresolved,
    /// In a section that is not loaded.
    NotLoaded,
    /// In thread-local storage.
    ThreadLocal,
}

/// The symbols of an object.
pub(super) struct Symbols {
    /// By symbol index.
    pub(super) places: Vec<Place>,
    /// Sorted by name, unique.
    pub(super) exports: Vec<Symbol>,
    /// Sorted by offset.
    pub(super) functions: Vec<Function>,
}

/// Places every symbol; common symbols go behind the other zeros of the data part.
pub(super) fn resolve(
    object: &Object<'_>,
    homes: &[Home],
    imports: &ImportTable,
    layout: &mut Layout,
) -> Result<Symbols, CodeError> {
    // The null symbol, also there where the object has no table at all, is the number 0.
    let mut places = vec![Place::Absolute(0)];
    places.reserve_exact(object.symbols.len().saturating_sub(1));
    for (index, symbol) in object.symbols.iter().enumerate().skip(1) {
        places.push(place(object, index, symbol, homes, imports, layout)?);
    }
    let (exports, functions) = names(object, &places)?;
    Ok(Symbols { places, exports, functions })
}

fn place(
    object: &Object<'_>,
    index: usize,
    symbol: &Sym,
    homes: &[Home],
    imports: &ImportTable,
    layout: &mut Layout,
) -> Result<Place, CodeError> {
    let base = object.symbol_base(index, symbol)?;
    check_kind(symbol, base).map_err(|(is_malformed, what)| {
        let at = object.symbol_location(symbol);
        if is_malformed { CodeError::Malformed { what, at } } else { CodeError::Unsupported { what, at } }
    })?;
    if symbol.st_type() == elf::STT_TLS {
        return Ok(Place::ThreadLocal);
    }
    match base {
        Base::Absolute => Ok(Place::Absolute(symbol.st_value(LE))),
        Base::Common => {
            let offset_bytes = layout
                .take(PartKind::Data, symbol.st_size(LE), symbol.st_value(LE))
                .map_err(|error| error.at(|| object.symbol_location(symbol)))?;
            Ok(Place::In(PartKind::Data, offset_bytes))
        }
        Base::Undefined => undefined(object, symbol, imports),
        Base::Section(section) => match homes[section] {
            Home::Nowhere => Ok(Place::NotLoaded),
            Home::Placed { part, offset_bytes, .. } => {
                check_extent(object, symbol, section)?;
                Ok(Place::In(part, offset_bytes + symbol.st_value(LE)))
            }
        },
    }
}

/// Refuses what would change the meaning of a symbol and is not done here: what, and whether it breaks a rule.
fn check_kind(symbol: &Sym, base: Base) -> Result<(), (bool, &'static str)> {
    let is_known = matches!(symbol.st_bind(), elf::STB_LOCAL | elf::STB_GLOBAL | elf::STB_WEAK | elf::STB_GNU_UNIQUE);
    if !is_known {
        return Err((true, "the symbol has an unknown binding"));
    }
    if symbol.st_type() == elf::STT_GNU_IFUNC && base != Base::Undefined {
        return Err((false, "functions that choose their own implementation (ifunc) are not supported"));
    }
    Ok(())
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

fn undefined(object: &Object<'_>, symbol: &Sym, imports: &ImportTable) -> Result<Place, CodeError> {
    let name = object.symbol_name(symbol)?;
    // A local symbol cannot be defined elsewhere.
    let is_local = symbol.st_bind() == elf::STB_LOCAL;
    let import = str::from_utf8(name).ok().filter(|_| !is_local).and_then(|name| imports.get(name));
    Ok(match import {
        Some(address) => Place::Import(address),
        None if symbol.st_bind() == elf::STB_WEAK => Place::Nothing,
        None => Place::Unresolved,
    })
}

/// The exported symbols by name, and the functions by offset.
fn names(object: &Object<'_>, places: &[Place]) -> Result<(Vec<Symbol>, Vec<Function>), CodeError> {
    let (mut exports, mut functions) = (Vec::new(), Vec::new());
    let mut room_bytes = (object.blob.len() as u64).saturating_mul(NAME_BYTES_PER_BLOB_BYTE_MAX);
    for (index, (symbol, place)) in object.symbols.iter().zip(places).enumerate() {
        let &Place::In(part, offset_bytes) = place else { continue };
        let (is_exported, is_function) = (is_exported(symbol), is_function(object, index, symbol, part)?);
        let name = match text_name(object, symbol) {
            Ok(name) if is_exported || is_function => name,
            Err(error) if is_exported => return Err(error),
            _ => continue,
        };
        let kept_bytes = name.len() as u64 * (u64::from(is_exported) + u64::from(is_function));
        room_bytes = room_bytes.checked_sub(kept_bytes).ok_or(CodeError::malformed("symbols share their names"))?;
        let size_bytes = symbol.st_size(LE);
        if is_function {
            functions.push(Function { name: name.into(), offset_bytes, size_bytes });
        }
        if is_exported {
            exports.push(Symbol { name: name.into(), part, is_function, offset_bytes, size_bytes });
        }
    }
    functions.sort_by_key(|function: &Function| function.offset_bytes);
    exports.sort_unstable_by(|a: &Symbol, b| a.name.cmp(&b.name));
    if let Some(pair) = exports.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let at = Location::symbol(pair[0].name.as_bytes());
        return Err(CodeError::Malformed { what: "the symbol is defined twice", at });
    }
    Ok((exports, functions))
}

fn is_exported(symbol: &Sym) -> bool {
    let is_visible = matches!(symbol.st_visibility(), elf::STV_DEFAULT | elf::STV_PROTECTED);
    symbol.st_bind() != elf::STB_LOCAL && is_visible && symbol.st_type() != elf::STT_SECTION
}

/// Assembly often leaves the type of its functions away, but then makes them global: a local label without a type is
/// a place inside of one. A label at the very end of a section is none either.
fn is_function(object: &Object<'_>, index: usize, symbol: &Sym, part: PartKind) -> Result<bool, CodeError> {
    let is_typed = symbol.st_type() == elf::STT_FUNC;
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
