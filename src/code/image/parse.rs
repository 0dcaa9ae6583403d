//! The way from objects to an image.

use super::{Image, Initial, Thread};
use crate::code::diagnosis::Problems;
use crate::code::elf::Object;
use crate::code::entities::Entities;
use crate::code::layout::Layout;
use crate::code::provider::Imports;
use crate::code::reach::{self, Needed, Patches};
use crate::code::sections::{Class, Home};
use crate::code::startup::{Lists, Startup};
use crate::code::symbols::{Names, Place, Placed};
use crate::code::thread::{Thunks, Variables};
use crate::code::unwind::{self, Unwind};
use crate::code::{CodeError, Limits, Selection};
use crate::code::{inputs, properties, relocations, sections, segments, symbols, thread};

/// What was read, and what of it is needed.
struct Read<'a> {
    objects: Vec<Object<'a>>,
    entities: Entities,
    classes: Vec<Vec<Class>>,
    patches: Vec<Patches>,
    exported: Vec<u32>,
    needed: Needed,
}

impl<'a> Read<'a> {
    fn new(blob: &'a [u8], selection: &'a Selection, limits: &'a Limits) -> Result<Self, CodeError> {
        let objects = inputs::read(blob, selection, limits)?;
        let entities = Entities::read(&objects)?;
        let mut relocations_total = 0;
        let (mut classes, mut patches) = (Vec::new(), Vec::new());
        for (object, discarded) in objects.iter().zip(&entities.discarded) {
            let of_object = sections::classify(object, discarded)?;
            patches.push(Patches::read(object, &of_object, &mut relocations_total)?);
            classes.push(of_object);
        }
        let exported = symbols::exported(&objects, &entities, &selection.roots)?;
        let needed = if selection.keep_unused {
            Needed::all(&classes, &entities)
        } else {
            reach::needed(&objects, &classes, &patches, &entities, exported.iter().copied())?
        };
        Ok(Self { objects, entities, classes, patches, exported, needed })
    }

    fn lists<'b>(&'b self, places: &'b [Place], layout: &Layout) -> Lists<'b> {
        Lists {
            objects: &self.objects,
            classes: &self.classes,
            patches: &self.patches,
            entities: &self.entities,
            places,
            code_bytes: layout.sizes().code.size_bytes,
        }
    }

    /// Leads host functions through thunks, if the code needs a thread pointer of its own.
    fn thread(
        &self,
        code: &segments::Code<'_>,
        variables: &Variables,
        places: &mut [Place],
        imports: Imports<'_>,
        layout: &mut Layout,
    ) -> Result<(Thunks, Option<Thread>), CodeError> {
        let Self { objects, entities, needed, .. } = self;
        let is_asked_for = thread::is_asked_for(objects, entities, needed, places, imports.host);
        let is_used = segments::uses_thread(code).map_err(|it| it.at(objects, code.sections, code.functions))?;
        imports.hold_threads(is_asked_for || is_used)?;
        if !is_asked_for && !is_used {
            return Ok((Thunks::default(), None));
        }
        let (thunks, errno_offset) = thread::redirect(objects, entities, needed, places, imports.host, layout)?;
        Ok((thunks, Some(variables.thread(errno_offset))))
    }

    fn contents(
        &self,
        homes: &[Vec<Home>],
        constants: &[(u64, Box<[u8]>)],
        layout: &Layout,
    ) -> Result<Initial, CodeError> {
        let mut initial = sections::contents(&self.objects, homes, layout)?;
        for (offset_bytes, bytes) in constants {
            initial.rodata[*offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        Ok(initial)
    }
}

/// Makes an image of a blob.
pub(super) fn parse(
    blob: &[u8],
    selection: &Selection,
    imports: Imports<'_>,
    limits: &Limits,
    problems: &mut Problems<'_>,
) -> Result<Image, CodeError> {
    let read = Read::new(blob, selection, limits)?;
    let Read { objects, entities, classes, patches, exported, needed } = &read;
    let levels_needed = properties::levels_needed(objects)?;
    let mut layout = Layout::new(limits);
    let (homes, variables) = sections::place(objects, classes, &needed.sections, &mut layout, problems)?;
    let Placed { mut places, chosen, constants } =
        symbols::place(objects, entities, needed, (&homes, &variables), imports, &mut layout)?;
    let Names { exports, functions } =
        symbols::names(objects, entities, &places, exported, !selection.roots.is_empty())?;
    let initialisers = read.lists(&places, &layout).initialisers()?;
    let mut initial = read.contents(&homes, &constants, &layout)?;
    let (bytes, variables_bytes) = (&*initial.code, variables.size_bytes());
    let code = segments::Code { bytes, functions: &functions, sections: &homes, variables_bytes };
    let (thunks, thread) = read.thread(&code, &variables, &mut places, imports, &mut layout)?;
    let host = imports.host;
    let mut links = relocations::collect(objects, patches, &homes, entities, &places, host, &mut layout, problems)?;
    let startup = Startup { resolvers: chosen.resolvers().collect(), initialisers };
    links.chosen = chosen;
    let unwind = match selection.keep_unwind {
        true => unwind::collect(objects, entities, &places, &mut layout)?,
        false => Unwind::default(),
    };
    initial.grow(&layout.sizes());
    thunks.write(&mut initial.code);
    links.write_stubs(&mut initial.code);
    links.write_relaxed(&mut initial.code);
    initial.rodata[unwind.offset_bytes as usize..][..unwind.bytes.len()].copy_from_slice(&unwind.bytes);
    let (sizes, unused) = (layout.sizes(), sections::unused(objects, classes, &needed.sections));
    let objects = objects.len() as u64;
    Ok(Image { sizes, initial, links, unwind, exports, functions, startup, objects, unused, levels_needed, thread })
}
