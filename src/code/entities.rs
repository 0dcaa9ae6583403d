//! What the symbols of several objects mean together: names that are the same are one thing, by ELF's rules.

use std::collections::{HashMap, HashSet};

use object::elf;
use object::read::elf::{SectionHeader as _, Sym as _};

use super::CodeError;
use super::elf::{Base, LE, Object, Sym};
use super::stubs::STUB_BYTES;

/// The flag of a group of which one among those of the same name is kept.
const GRP_COMDAT: u32 = 1;

/// A symbol of one of the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SymbolId {
    pub(super) object: usize,
    pub(super) symbol: usize,
}

/// Where something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Definition {
    /// Nowhere in these objects.
    Undefined { is_weak: bool },
    /// A number.
    Absolute(u64),
    /// So many zeros; the alignment as the objects say it.
    Common { size_bytes: u64, align_bytes: u64 },
    /// In a section of the object of [`Entity::symbol`].
    Section(usize),
    /// In a section that another object's stands for.
    Discarded,
    /// A function that chooses its own implementation; its resolver is in a section of the object of
    /// [`Entity::symbol`].
    Chosen(usize),
    /// In thread-local storage: in a section of the object of [`Entity::symbol`], or not in these objects.
    ThreadLocal { section: Option<usize> },
}

/// One thing, whatever symbols mean it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entity {
    pub(super) definition: Definition,
    /// The symbol that defines it, or the first that means it.
    pub(super) symbol: SymbolId,
    /// Other objects may mean it by its name.
    pub(super) is_global: bool,
    /// Its definition gives way to a strong one.
    is_weak: bool,
    /// It can be asked for from outside: no symbol that means it says otherwise.
    pub(super) is_visible: bool,
}

/// All entities.
pub(super) struct Entities {
    /// The first is the null symbol of all objects, the number 0.
    pub(super) all: Vec<Entity>,
    /// By object and symbol.
    of_symbols: Vec<Vec<u32>>,
    /// By object and section: it is of a group for which another object's stands.
    pub(super) discarded: Vec<Vec<bool>>,
}

impl Entities {
    /// The number of what a symbol means; `None` if there is no such symbol.
    pub(super) fn of(&self, object: usize, symbol: usize) -> Option<u32> {
        if symbol == 0 { Some(0) } else { self.of_symbols[object].get(symbol).copied() }
    }

    /// How large a thing is, by what says where it is; 0 where that does not say.
    pub(super) fn size_bytes(&self, objects: &[Object<'_>], entity: u32) -> u64 {
        let Entity { definition, symbol: SymbolId { object, symbol }, .. } = self.all[entity as usize];
        match definition {
            Definition::Common { size_bytes, .. } => size_bytes,
            // That of the resolver says nothing.
            Definition::Chosen(_) => STUB_BYTES,
            _ => objects[object].symbols.get(symbol).map_or(0, |it| it.st_size(LE)),
        }
    }

    /// Every symbol of all objects with what it means.
    pub(super) fn symbols(&self) -> impl Iterator<Item = (SymbolId, u32)> {
        self.of_symbols.iter().enumerate().flat_map(|(object, entities)| {
            let symbols = entities.iter().enumerate().skip(1);
            symbols.map(move |(symbol, &entity)| (SymbolId { object, symbol }, entity))
        })
    }

    /// Reads all symbols.
    pub(super) fn read(objects: &[Object<'_>]) -> Result<Self, CodeError> {
        let null = Entity {
            definition: Definition::Absolute(0),
            symbol: SymbolId { object: 0, symbol: 0 },
            is_global: false,
            is_weak: false,
            is_visible: false,
        };
        let discarded = discarded(objects)?;
        let mut entities = Self { all: vec![null], of_symbols: Vec::new(), discarded };
        let mut by_name: HashMap<&[u8], u32> = HashMap::new();
        for (at, object) in objects.iter().enumerate() {
            let mut of_symbols = vec![0; object.symbols.len()];
            for (index, symbol) in object.symbols.iter().enumerate().skip(1) {
                let id = SymbolId { object: at, symbol: index };
                let entity = read(object, id, symbol, &entities.discarded[at])?;
                of_symbols[index] = if entity.is_global {
                    entities.merge(objects, &mut by_name, object.symbol_name(symbol)?, entity)?
                } else {
                    entities.add(entity)
                };
            }
            entities.of_symbols.push(of_symbols);
        }
        Ok(entities)
    }

    fn add(&mut self, entity: Entity) -> u32 {
        self.all.push(entity);
        self.all.len() as u32 - 1
    }

    /// Joins a global symbol with what has its name already.
    fn merge<'a>(
        &mut self,
        objects: &[Object<'a>],
        by_name: &mut HashMap<&'a [u8], u32>,
        name: &'a [u8],
        new: Entity,
    ) -> Result<u32, CodeError> {
        let Some(&number) = by_name.get(name) else {
            let number = self.add(new);
            by_name.insert(name, number);
            return Ok(number);
        };
        let old = &mut self.all[number as usize];
        let is_visible = old.is_visible && new.is_visible;
        let Some(definition) = stronger(old, &new) else {
            let SymbolId { object, symbol } = new.symbol;
            let at = objects[object].symbol_location(&objects[object].symbols[symbol]);
            return Err(CodeError::Malformed { what: "the symbol is defined twice", at });
        };
        *old = Entity { is_visible, ..definition };
        Ok(number)
    }
}

/// Which of two symbols of one name says what it is; `None` if both insist.
fn stronger(old: &Entity, new: &Entity) -> Option<Entity> {
    use Definition::{Common, ThreadLocal, Undefined};
    Some(match (old.definition, new.definition) {
        // One that says what it is about says more than one that does not.
        (ThreadLocal { section: None }, Undefined { .. }) => *old,
        (Undefined { .. }, ThreadLocal { section: None }) => *new,
        (ThreadLocal { section: None }, _) => *new,
        (_, ThreadLocal { section: None }) => *old,
        // One that must be there makes a definition necessary.
        (Undefined { is_weak: true }, Undefined { is_weak: false }) => *new,
        (_, Undefined { .. }) => *old,
        (Undefined { .. }, _) => *new,
        (Common { size_bytes, align_bytes }, Common { size_bytes: size, align_bytes: align }) => {
            let larger = Common { size_bytes: size_bytes.max(size), align_bytes: align_bytes.max(align) };
            Entity { definition: larger, ..*old }
        }
        // Common symbols come before weak definitions, and after strong ones.
        (Common { .. }, _) if new.is_weak => *old,
        (Common { .. }, _) => *new,
        (_, Common { .. }) if old.is_weak => *new,
        (_, Common { .. }) => *old,
        _ if new.is_weak => *old,
        _ if old.is_weak => *new,
        _ => return None,
    })
}

fn read(object: &Object<'_>, id: SymbolId, symbol: &Sym, discarded: &[bool]) -> Result<Entity, CodeError> {
    let base = object.symbol_base(id.symbol, symbol)?;
    let is_known = matches!(symbol.st_bind(), elf::STB_LOCAL | elf::STB_GLOBAL | elf::STB_WEAK | elf::STB_GNU_UNIQUE);
    if !is_known {
        let at = object.symbol_location(symbol);
        return Err(CodeError::Malformed { what: "the symbol has an unknown binding", at });
    }
    let is_global = symbol.st_bind() != elf::STB_LOCAL;
    let is_weak = symbol.st_bind() == elf::STB_WEAK;
    let definition = match base {
        // What another object's stands for is that, to those who mean it by its name.
        Base::Section(section) if discarded[section] => {
            if is_global {
                Definition::Undefined { is_weak }
            } else {
                Definition::Discarded
            }
        }
        Base::Section(section) if object.sections[section].sh_flags(LE).contains(elf::SHF_TLS) => {
            Definition::ThreadLocal { section: Some(section) }
        }
        Base::Undefined if symbol.st_type() == elf::STT_TLS => Definition::ThreadLocal { section: None },
        _ if symbol.st_type() == elf::STT_TLS => {
            let what = "the thread-local variable is of a section that is not thread-local";
            return Err(CodeError::Malformed { what, at: object.symbol_location(symbol) });
        }
        Base::Undefined => Definition::Undefined { is_weak },
        Base::Section(section) if symbol.st_type() == elf::STT_GNU_IFUNC => Definition::Chosen(section),
        _ if symbol.st_type() == elf::STT_GNU_IFUNC => {
            let at = object.symbol_location(symbol);
            return Err(CodeError::Malformed { what: "the function has no resolver", at });
        }
        Base::Absolute => Definition::Absolute(symbol.st_value(LE)),
        Base::Common => Definition::Common { size_bytes: symbol.st_size(LE), align_bytes: symbol.st_value(LE) },
        Base::Section(section) => Definition::Section(section),
    };
    let is_visible = matches!(symbol.st_visibility(), elf::STV_DEFAULT | elf::STV_PROTECTED);
    Ok(Entity { definition, symbol: id, is_global, is_weak, is_visible })
}

/// The sections of groups of a name that an earlier object has a group for.
fn discarded(objects: &[Object<'_>]) -> Result<Vec<Vec<bool>>, CodeError> {
    let mut seen: HashSet<&[u8]> = HashSet::new();
    let mut all = Vec::with_capacity(objects.len());
    for object in objects {
        let mut discarded = vec![false; object.sections.len()];
        let mut words_total = 0;
        for (index, header) in object.sections.iter().enumerate() {
            if header.sh_type(LE) != elf::SHT_GROUP {
                continue;
            }
            let words: &[object::U32<object::LittleEndian>] = object.entries(index)?;
            // Else a small blob could be the contents of many groups, and cost more work than it has bytes.
            words_total += words.len();
            if words_total > object.blob.len() / size_of::<u32>() {
                return Err(object.malformed("groups share their contents"));
            }
            let Some((flags, members)) = words.split_first() else { continue };
            let signature = object.symbols.get(header.sh_info(LE) as usize);
            let Some(signature) = signature.filter(|_| header.link(LE).0 == object.symtab_index) else {
                return Err(object.malformed_section("the group has no symbol that names it", index));
            };
            let name = match object.symbol_base(header.sh_info(LE) as usize, signature)? {
                // Some compilers name a group by the section that is in it.
                Base::Section(section) if signature.st_type() == elf::STT_SECTION => object.section_name(section)?,
                _ => object.symbol_name(signature)?,
            };
            if flags.get(LE) & GRP_COMDAT != 0 && !seen.insert(name) {
                for member in members {
                    let Some(of_group) = discarded.get_mut(member.get(LE) as usize) else {
                        return Err(object.malformed_section("the group has a section that does not exist", index));
                    };
                    *of_group = true;
                }
            }
        }
        all.push(discarded);
    }
    Ok(all)
}
