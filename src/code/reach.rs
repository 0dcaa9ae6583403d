//! Which sections the exported symbols need.

use object::elf;
use object::read::elf::SectionHeader as _;

use super::elf::{LE, Object, Rela};
use super::entities::{Definition, Entities};
use super::sections::Class;
use super::{CodeError, Limits};

/// Which sections of one object are patched by which tables of relocations: pairs in order.
pub(super) struct Patches(Vec<(usize, usize)>);

impl Patches {
    /// Checks the tables of what may be loaded, and counts what they hold before anybody reads it.
    pub(super) fn read(object: &Object<'_>, classes: &[Class], total: &mut u64) -> Result<Self, CodeError> {
        let mut patches = Vec::new();
        let mut own_total = 0;
        for (index, header) in object.sections.iter().enumerate().skip(1) {
            if let Some((patched, entries)) = table(object, classes, index, header)? {
                own_total += entries;
                *total += entries;
                Limits::hold("relocations", *total, u64::from(object.limits.relocations_max))?;
                if own_total > (object.blob.len() / size_of::<Rela>()) as u64 {
                    return Err(object.malformed("relocation sections share their contents"));
                }
                patches.push((patched, index));
            }
        }
        patches.sort_unstable();
        Ok(Self(patches))
    }

    /// The tables of one section, in file order.
    pub(super) fn of(&self, patched: usize) -> impl Iterator<Item = usize> {
        let first = self.0.partition_point(|&(section, _)| section < patched);
        self.0[first..].iter().take_while(move |&&(section, _)| section == patched).map(|&(_, table)| table)
    }
}

/// The section that a table patches and how many entries it has; `None` if it is no table or patches what is not loaded.
fn table(
    object: &Object<'_>,
    classes: &[Class],
    index: usize,
    header: &super::elf::Header,
) -> Result<Option<(usize, u64)>, CodeError> {
    let kind = header.sh_type(LE);
    let is_other = matches!(kind, elf::SHT_REL | elf::SHT_RELR | elf::SHT_CREL);
    if (kind != elf::SHT_RELA && !is_other) || header.sh_size(LE) == 0 {
        return Ok(None);
    }
    let patched = header.sh_info(LE) as usize;
    let malformed = |what| Err(object.malformed_section(what, index));
    let Some(&class) = classes.get(patched) else {
        return malformed("the relocations are of a section that does not exist");
    };
    if matches!(class, Class::NotLoaded | Class::Discarded) {
        return Ok(None);
    }
    if is_other {
        let what = "relocations of this encoding are not taken, only RELA";
        return Err(CodeError::Unsupported { what, at: object.section_location(index) });
    }
    if object.sections[patched].sh_type(LE) == elf::SHT_NOBITS {
        return malformed("the relocations are of a section without contents");
    }
    if object.symtab_index == 0 || header.link(LE).0 != object.symtab_index {
        return malformed("the relocations are not of the symbol table");
    }
    let entries: &[Rela] = object.entries(index)?;
    Ok(Some((patched, entries.len() as u64)))
}

/// What is to be in the image.
pub(super) struct Needed {
    /// By object and section.
    pub(super) sections: Vec<Vec<bool>>,
    /// By entity, true of those common symbols that are.
    pub(super) entities: Vec<bool>,
}

impl Needed {
    /// All of it.
    pub(super) fn all(classes: &[Vec<Class>], entities: &Entities) -> Self {
        let sections = classes.iter().map(|classes| vec![true; classes.len()]).collect();
        Self { sections, entities: vec![true; entities.all.len()] }
    }
}

/// What is needed by what `roots` (entities) mean, or says that it must stay.
pub(super) fn needed(
    objects: &[Object<'_>],
    classes: &[Vec<Class>],
    patches: &[Patches],
    entities: &Entities,
    roots: impl Iterator<Item = u32>,
) -> Result<Needed, CodeError> {
    let needed = Needed {
        sections: classes.iter().map(|classes| vec![false; classes.len()]).collect(),
        entities: vec![false; entities.all.len()],
    };
    let mut marks = Marks { needed, classes, open: Vec::new() };
    for (at, object) in objects.iter().enumerate() {
        for (section, header) in object.sections.iter().enumerate() {
            let stays = header.sh_flags(LE).contains(elf::SHF_GNU_RETAIN);
            // What is run before all else stays whether it is needed or not, as with all linkers.
            if stays || matches!(classes[at][section], Class::Refused(_) | Class::Initialisers) {
                marks.add(at, section);
            }
        }
    }
    roots.for_each(|entity| marks.add_entity(entities, entity));
    while let Some((at, section)) = marks.open.pop() {
        for table in patches[at].of(section) {
            let entries: &[Rela] = objects[at].entries(table)?;
            for entry in entries {
                // One for a symbol that does not exist is refused when it is read.
                if let Some(entity) = entities.of(at, entry.r_sym(LE, false) as usize) {
                    marks.add_entity(entities, entity);
                }
            }
        }
    }
    Ok(marks.needed)
}

struct Marks<'a> {
    needed: Needed,
    classes: &'a [Vec<Class>],
    /// Needed, but not looked at yet.
    open: Vec<(usize, usize)>,
}

impl Marks<'_> {
    fn add(&mut self, object: usize, section: usize) {
        let is_loaded = !matches!(self.classes[object][section], Class::NotLoaded | Class::Discarded);
        if is_loaded && !std::mem::replace(&mut self.needed.sections[object][section], true) {
            self.open.push((object, section));
        }
    }

    fn add_entity(&mut self, entities: &Entities, entity: u32) {
        self.needed.entities[entity as usize] = true;
        let entity = &entities.all[entity as usize];
        if let Definition::Section(section)
        | Definition::Chosen(section)
        | Definition::ThreadLocal { section: Some(section) } = entity.definition
        {
            self.add(entity.symbol.object, section);
        }
    }
}
