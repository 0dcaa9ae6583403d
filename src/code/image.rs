use std::fmt;

use super::entities::Entities;
use super::layout::Layout;
use super::reach::{Needed, Patches};
use super::relocations::Links;
use super::{CodeError, FlatEntry, ImportTable, Limits, Selection};
use super::{Thread, flat, inputs, link, reach, relocations, sections, segments, symbols, thread};

/// Size and alignment of a part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Bytes; 0: the image has no such part.
    pub size_bytes: u64,
    /// A power of two.
    pub align_bytes: u64,
}

/// Sizes of the parts of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Instructions and call stubs.
    pub code: Part,
    /// Constants, what is constant once linked, and the global offset table.
    pub rodata: Part,
    /// Variables, those that start as zero last.
    pub data: Part,
}

/// Run addresses of the parts of an image. That of a part without bytes may be anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Of the code.
    pub code: u64,
    /// Of the read-only data.
    pub rodata: u64,
    /// Of the writable data.
    pub data: u64,
}

/// One of the three parts of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartKind {
    /// Executable, read-only.
    Code,
    /// Read-only.
    Rodata,
    /// Writable.
    Data,
}

/// An exported symbol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// As in the blob.
    pub name: Box<str>,
    /// The part it lies in.
    pub part: PartKind,
    /// It may be called: code that the blob declares a function, or does not declare to be something else.
    pub is_function: bool,
    /// Bytes from the start of the part.
    pub offset_bytes: u64,
    /// Bytes; 0 where the blob does not say.
    pub size_bytes: u64,
}

/// A function of the code part, exported or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// As in the blob.
    pub name: Box<str>,
    /// Bytes from the start of the code part.
    pub offset_bytes: u64,
    /// Bytes; 0 where the blob does not say.
    pub size_bytes: u64,
}

/// Bytes of the parts before linking.
#[derive(Default)]
pub(super) struct Initial {
    /// As long as its part, trap bytes between the sections.
    pub(super) code: Vec<u8>,
    /// As long as its part, zeros between the sections.
    pub(super) rodata: Vec<u8>,
    /// Shorter than its part by what starts as zero.
    pub(super) data: Vec<u8>,
}

impl Initial {
    /// Makes room for what was placed behind the sections.
    fn grow(&mut self, sizes: &Sizes) {
        self.code.resize(sizes.code.size_bytes as usize, sections::TRAP);
        self.rodata.resize(sizes.rodata.size_bytes as usize, 0);
    }

    pub(super) fn part_mut(&mut self, part: PartKind) -> &mut [u8] {
        match part {
            PartKind::Code => &mut self.code,
            PartKind::Rodata => &mut self.rodata,
            PartKind::Data => &mut self.data,
        }
    }
}

/// What of a blob is not in its image, as nothing that is exported needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unused {
    /// Sections with bytes.
    pub sections: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A parsed blob: initial bytes of its parts, symbols, and what is left to write once the run addresses are known.
pub struct Image {
    sizes: Sizes,
    initial: Initial,
    links: Links,
    exports: Vec<Symbol>,
    functions: Vec<Function>,
    objects: u64,
    unused: Unused,
    thread: Option<Thread>,
}

impl Image {
    /// Parses an x86-64 ELF64 relocatable object, or an archive of some, of which those are joined that `selection`
    /// needs. What they do not define must be in `imports`.
    ///
    /// # Errors
    /// Every [`CodeError`] but those of flat entries.
    pub fn parse_elf(
        blob: &[u8],
        selection: &Selection,
        imports: &ImportTable,
        limits: &Limits,
    ) -> Result<Image, CodeError> {
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
        let mut layout = Layout::new(limits);
        let (homes, variables) = sections::place(&objects, &classes, &needed.sections, &mut layout)?;
        let mut places = symbols::place(&objects, &entities, &needed, (&homes, &variables), imports, &mut layout)?;
        let names = symbols::names(&objects, &entities, &places, &exported, !selection.roots.is_empty())?;
        let mut initial = sections::contents(&objects, &homes, &layout)?;
        let code = segments::Code {
            bytes: &initial.code,
            functions: &names.functions,
            sections: &homes,
            variables_bytes: variables.size_bytes(),
        };
        let has_own_thread = thread::is_asked_for(&objects, &entities, &needed, &places, imports)
            | segments::uses_thread(&code).map_err(|it| it.at(&objects, &homes, &names.functions))?;
        let (thunks, thread) = if has_own_thread {
            let (thunks, errno_offset) =
                thread::redirect(&objects, &entities, &needed, &mut places, imports, &mut layout)?;
            (thunks, Some(variables.thread(errno_offset)))
        } else {
            Default::default()
        };
        let links = relocations::collect(&objects, &patches, &homes, &entities, &places, imports, &mut layout)?;
        initial.grow(&layout.sizes());
        thunks.write(&mut initial.code);
        links.write_stubs(&mut initial.code);
        links.write_relaxed(&mut initial.code);
        Ok(Image {
            sizes: layout.sizes(),
            initial,
            links,
            exports: names.exports,
            functions: names.functions,
            objects: objects.len() as u64,
            unused: sections::unused(&objects, &classes, &needed.sections),
            thread,
        })
    }

    /// Whether a blob is an archive, by its first bytes.
    pub fn is_archive(blob: &[u8]) -> bool {
        inputs::is_archive(blob)
    }

    /// Takes position-independent machine code as it is. It starts at a multiple of 64 bytes.
    ///
    /// # Errors
    /// [`CodeError::TooLarge`], [`CodeError::EntryCount`], [`CodeError::InvalidEntry`], and
    /// [`CodeError::Malformed`] for an empty blob.
    pub fn parse_flat(blob: &[u8], entries: Vec<FlatEntry>, limits: &Limits) -> Result<Image, CodeError> {
        flat::parse(blob, entries, limits)
    }

    /// An image of nothing but `code` with entry points `exports`, which are sorted by name.
    pub(super) fn without_links(sizes: Sizes, code: Vec<u8>, exports: Vec<Symbol>) -> Result<Image, CodeError> {
        let mut functions: Vec<Function> = exports.iter().map(Function::from).collect();
        functions.sort_by_key(|function| function.offset_bytes);
        let uses_thread = segments::uses_thread(&segments::Code {
            bytes: &code,
            functions: &functions,
            sections: &[],
            variables_bytes: 0,
        });
        let thread = uses_thread.map_err(|it| it.at(&[], &[], &functions))?.then(Thread::without_variables);
        let initial = Initial { code, ..Initial::default() };
        let (links, unused) = (Links::default(), Unused::default());
        Ok(Image { sizes, initial, links, exports, functions, objects: 1, unused, thread })
    }

    /// What is made anew in the thread that runs it, for each call; `None` if the host's thread pointer will do.
    pub fn thread(&self) -> Option<Thread> {
        self.thread
    }

    /// How many objects it was made of.
    pub fn objects(&self) -> u64 {
        self.objects
    }

    /// What was left out.
    pub fn unused(&self) -> Unused {
        self.unused
    }

    /// Bytes and alignment of each part, call stubs and global offset table included.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Bytes of the data part before its tail of zeros.
    pub fn data_init_bytes(&self) -> u64 {
        self.initial.data.len() as u64
    }

    /// What the blob exports: global and weak definitions of default or protected visibility. Sorted by name, unique.
    pub fn symbols(&self) -> &[Symbol] {
        &self.exports
    }

    /// Every function of the code part, local ones too, sorted by offset: names for the addresses of a trap.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The code before linking, and what linking writes.
    pub(super) fn code_and_links(&self) -> (&[u8], &Links) {
        (&self.initial.code, &self.links)
    }

    /// What stays of the image after linking.
    pub fn into_exports(self) -> Box<[Symbol]> {
        self.exports.into()
    }

    /// What stays of the image after linking, where traps are named too.
    pub fn into_exports_and_functions(self) -> (Box<[Symbol]>, Box<[Function]>) {
        (self.exports.into(), self.functions.into())
    }

    /// Writes every byte of the three parts as they must be to run at `at`.
    ///
    /// # Errors
    /// [`CodeError::RelocationOverflow`] if `at` is farther apart than the code reaches, or an addend is absurd. The
    /// buffers then hold nothing useful.
    ///
    /// # Panics
    /// If a buffer is not exactly as long as its part.
    pub fn link(&self, at: Addresses, code: &mut [u8], rodata: &mut [u8], data: &mut [u8]) -> Result<(), CodeError> {
        let given = [code.len(), rodata.len(), data.len()].map(|len| len as u64);
        let needed = [self.sizes.code, self.sizes.rodata, self.sizes.data].map(|part| part.size_bytes);
        assert_eq!(given, needed, "invariant: buffers are as long as their parts");
        code.copy_from_slice(&self.initial.code);
        rodata.copy_from_slice(&self.initial.rodata);
        let (initial, zeros) = data.split_at_mut(self.initial.data.len());
        initial.copy_from_slice(&self.initial.data);
        zeros.fill(0);
        link::apply(&self.links, at, code, rodata, initial)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("sizes", &self.sizes).field("exports", &self.exports).finish_non_exhaustive()
    }
}

impl Default for Part {
    fn default() -> Self {
        Part { size_bytes: 0, align_bytes: 1 }
    }
}

impl From<&Symbol> for Function {
    fn from(symbol: &Symbol) -> Self {
        Function { name: symbol.name.clone(), offset_bytes: symbol.offset_bytes, size_bytes: symbol.size_bytes }
    }
}
