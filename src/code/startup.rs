//! What must run before anything else of an image: resolvers, then initialisers.
//!
//! The order is that of GNU ld's default script: `.preinit_array`; `.init_array.N` and `.ctors.N` by rising priority,
//! where `.ctors` count backwards from 65535; then those without one in the order of the objects. Each list of `.ctors`
//! is run from its end. Nothing is run at the end of an image: an entry has none, it is only forgotten.

use object::elf;
use object::read::elf::SectionHeader as _;

use super::elf::{LE, Object, Rela};
use super::entities::Entities;
use super::image::PartKind;
use super::reach::Patches;
use super::relocation::{self, Relocation};
use super::sections::Class;
use super::symbols::Place;
use super::{CodeError, Location};

/// Bytes of an address in a list.
const WORD_BYTES: u64 = 8;
/// What a priority counts up to; `.ctors.N` count down from it.
const PRIORITY_MAX: u32 = 65535;
/// Code that only the C runtime's own objects make whole: each holds a piece of one function.
const FRAGMENT: &str = ".init is a piece of a function that only a linker of programs completes: use a constructor";
const NO_FUNCTION: &str = "an initialiser is no function of the objects";

/// What must run before the first call of an image, each once: first the resolvers, then the initialisers, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Startup {
    /// Functions without arguments whose results go into slots.
    pub resolvers: Box<[Resolver]>,
    /// Functions without result, by bytes from the start of the code part.
    pub initialisers: Box<[u64]>,
}

/// What chooses the implementation of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolver {
    /// Where it is, in bytes from the start of the code part.
    pub function_offset_bytes: u64,
    /// Where the 8 bytes are that take the address it returns, in bytes from the start of the read-only part.
    pub slot_offset_bytes: u64,
}

impl Startup {
    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many functions are to be run.
    pub fn len(&self) -> usize {
        self.resolvers.len() + self.initialisers.len()
    }

    /// Bytes of heap that it takes.
    pub fn heap_bytes(&self) -> u64 {
        (size_of_val(&*self.resolvers) + size_of_val(&*self.initialisers)) as u64
    }
}

/// When a list is run, among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    stage: Stage,
    priority: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Before,
    ByPriority,
    Plain,
}

/// What a section is to a C runtime; `None` if nothing.
pub(super) fn class(kind: elf::SectionType, name: &[u8]) -> Option<Class> {
    let is = |base: &[u8]| name.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest[0] == b'.');
    match kind {
        elf::SHT_INIT_ARRAY | elf::SHT_PREINIT_ARRAY => Some(Class::Initialisers),
        elf::SHT_FINI_ARRAY => Some(Class::NotLoaded),
        // Whatever type their assembler gave them.
        _ if is(b".init_array") || is(b".preinit_array") || is(b".ctors") => Some(Class::Initialisers),
        _ if is(b".fini_array") || is(b".dtors") || name == b".fini" => Some(Class::NotLoaded),
        _ if name == b".init" => Some(Class::Refused(FRAGMENT)),
        _ => None,
    }
}

fn turn(kind: elf::SectionType, name: &[u8]) -> Turn {
    if kind == elf::SHT_PREINIT_ARRAY || name.starts_with(b".preinit_array") {
        return Turn { stage: Stage::Before, priority: 0 };
    }
    let number = |base| str::from_utf8(name.strip_prefix(base)?).ok()?.parse().ok();
    let counted = number(&b".init_array."[..]);
    let priority = counted.or_else(|| number(b".ctors.").map(|it: u32| PRIORITY_MAX.saturating_sub(it)));
    match priority {
        Some(priority) => Turn { stage: Stage::ByPriority, priority },
        None => Turn { stage: Stage::Plain, priority: 0 },
    }
}

/// What is known of objects whose sections are placed.
pub(super) struct Lists<'a> {
    pub(super) objects: &'a [Object<'a>],
    pub(super) classes: &'a [Vec<Class>],
    pub(super) patches: &'a [Patches],
    pub(super) entities: &'a Entities,
    pub(super) places: &'a [Place],
    pub(super) code_bytes: u64,
}

impl Lists<'_> {
    /// The functions of all lists, in their order, by bytes from the start of the code part.
    pub(super) fn initialisers(&self) -> Result<Box<[u64]>, CodeError> {
        let mut lists = Vec::new();
        for (at, (object, classes)) in self.objects.iter().zip(self.classes).enumerate() {
            for (section, _) in classes.iter().enumerate().filter(|(_, class)| **class == Class::Initialisers) {
                let (kind, name) = (object.sections[section].sh_type(LE), object.section_name(section)?);
                lists.push((turn(kind, name), at, section, name.starts_with(b".ctors")));
            }
        }
        lists.sort_unstable();
        let mut functions = Vec::new();
        for (_, at, section, is_backwards) in lists {
            let first = functions.len();
            self.list(at, section, &mut functions)?;
            if is_backwards {
                functions[first..].reverse();
            }
        }
        Ok(functions.into())
    }

    /// The functions of one list. Zeros and what is all ones mark the ends of `.ctors`.
    fn list(&self, at: usize, section: usize, functions: &mut Vec<u64>) -> Result<(), CodeError> {
        let object = &self.objects[at];
        let contents = object.contents(section)?;
        if !(contents.len() as u64).is_multiple_of(WORD_BYTES) {
            return Err(object.malformed_section("a list of initialisers is not a whole number of addresses", section));
        }
        let mut words = vec![None; contents.len() / WORD_BYTES as usize];
        for table in self.patches[at].of(section) {
            let entries: &[Rela] = object.entries(table)?;
            for entry in entries.iter().filter(|it| it.r_type(LE, false).0 != relocation::NONE) {
                let offset = entry.r_offset.get(LE);
                let word = words.get_mut((offset / WORD_BYTES) as usize).filter(|_| offset.is_multiple_of(WORD_BYTES));
                let Some(word) = word else {
                    let what = "an initialiser is not at a place of its list";
                    return Err(CodeError::Malformed { what, at: self.location(at, section, offset, None) });
                };
                *word = Some(self.function(at, section, entry)?);
            }
        }
        for ((word, bytes), offset) in words.iter().zip(contents.chunks_exact(WORD_BYTES as usize)).zip(0_u64..) {
            let is_mark = bytes.iter().all(|&byte| byte == 0) || bytes.iter().all(|&byte| byte == u8::MAX);
            match word {
                Some(function) => functions.push(*function),
                None if is_mark => (),
                None => {
                    let at = self.location(at, section, offset * WORD_BYTES, None);
                    return Err(CodeError::Unsupported { what: NO_FUNCTION, at });
                }
            }
        }
        Ok(())
    }

    fn function(&self, at: usize, section: usize, entry: &Rela) -> Result<u64, CodeError> {
        let (offset, symbol) = (entry.r_offset.get(LE), entry.r_sym(LE, false) as usize);
        let location = || self.location(at, section, offset, Some(symbol));
        let number = entry.r_type(LE, false).0;
        if Relocation::from_number(number) != Some(Relocation::Abs64) {
            return Err(relocation::unsupported(number, location()));
        }
        let Some(entity) = self.entities.of(at, symbol) else {
            let what = "the relocation is for a symbol that does not exist";
            return Err(CodeError::Malformed { what, at: location() });
        };
        let target = match self.places[entity as usize] {
            Place::In(PartKind::Code, start) => start.checked_add_signed(entry.r_addend.get(LE)),
            Place::Unresolved => {
                let names = location().symbol.into_iter().collect();
                return Err(CodeError::UnresolvedSymbols { names, total: 1 });
            }
            _ => None,
        };
        let target = target.filter(|&target| target < self.code_bytes);
        target.ok_or_else(|| CodeError::Unsupported { what: NO_FUNCTION, at: location() })
    }

    fn location(&self, at: usize, section: usize, offset: u64, symbol: Option<usize>) -> Location {
        let object = &self.objects[at];
        let symbol = symbol.and_then(|it| object.symbols.get(it)).and_then(|it| object.symbol_location(it).symbol);
        Location { offset_bytes: Some(offset), symbol, ..object.section_location(section) }
    }
}
