mod parse;

use std::fmt;
use std::ops::Range;

use super::diagnosis::{Diagnosis, Problems};
use super::provider::{Imports, Provider};
use super::relocations::Links;
use super::signature::Signature;
use super::startup::Startup;
use super::unwind::Unwind;
use super::{CodeError, FlatEntry, ImportTable, Limits, LinkState, Selection, Thread};
use super::{flat, inputs, link, sections, segments};

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

impl Addresses {
    /// Of one part.
    pub fn of(self, part: PartKind) -> u64 {
        match part {
            PartKind::Code => self.code,
            PartKind::Rodata => self.rodata,
            PartKind::Data => self.data,
        }
    }
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
    /// What it takes and returns, if that was declared.
    pub signature: Option<Box<Signature>>,
}

/// Why a symbol cannot be declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undeclarable {
    /// There is no such symbol.
    Absent,
    /// It cannot be called.
    NoFunction,
    /// It was declared before.
    Twice,
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
    unwind: Unwind,
    exports: Vec<Symbol>,
    functions: Vec<Function>,
    startup: Startup,
    objects: u64,
    unused: Unused,
    levels_needed: u32,
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
        Self::parse_elf_against(blob, selection, &[], imports, limits)
    }

    /// The same, where what the objects do not define is looked for in `providers` before it must be in `imports`; of
    /// two providers that have a name the first is taken. They must stay where they are for as long as the image runs.
    ///
    /// # Errors
    /// The same.
    pub fn parse_elf_against(
        blob: &[u8],
        selection: &Selection,
        providers: &[Provider<'_>],
        imports: &ImportTable,
        limits: &Limits,
    ) -> Result<Image, CodeError> {
        let imports = Imports { host: imports, providers };
        parse::parse(blob, selection, imports, limits, &mut Problems::Fatal)
    }

    /// The same, which does not end with the first problem where others can be found behind it: sections that cannot be
    /// placed, relocations, symbols that nothing defines. An image comes of it only if there is none.
    pub fn diagnose_elf(
        blob: &[u8],
        selection: &Selection,
        providers: &[Provider<'_>],
        imports: &ImportTable,
        limits: &Limits,
    ) -> Result<Image, Diagnosis> {
        let imports = Imports { host: imports, providers };
        let mut diagnosis = Diagnosis::default();
        let parsed = parse::parse(blob, selection, imports, limits, &mut Problems::Noted(&mut diagnosis));
        match parsed {
            Ok(image) if diagnosis.is_empty() => return Ok(image),
            Ok(_) => (),
            Err(error) => diagnosis.note(error),
        }
        Err(diagnosis)
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
        Ok(Image {
            sizes,
            initial,
            links: Links::default(),
            unwind: Unwind::default(),
            exports,
            functions,
            startup: Startup::default(),
            objects: 1,
            unused: Unused::default(),
            levels_needed: 0,
            thread,
        })
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

    /// Levels of x86-64 that it says it needs: bits of `GNU_PROPERTY_X86_ISA_1_NEEDED`; see
    /// [`CpuFeatures::missing_levels`](super::CpuFeatures::missing_levels).
    pub fn levels_needed(&self) -> u32 {
        self.levels_needed
    }

    /// Says what an exported function takes and returns.
    ///
    /// # Errors
    /// [`Undeclarable`].
    pub fn declare(&mut self, symbol: &str, signature: Signature) -> Result<(), Undeclarable> {
        let at = self.exports.binary_search_by(|it| (*it.name).cmp(symbol)).map_err(|_| Undeclarable::Absent)?;
        let symbol = &mut self.exports[at];
        match symbol.signature {
            _ if !symbol.is_function => Err(Undeclarable::NoFunction),
            Some(_) => Err(Undeclarable::Twice),
            None => {
                symbol.signature = Some(Box::new(signature));
                Ok(())
            }
        }
    }

    /// It holds addresses of its own in 32 bits, or distances to what others have below 2 GiB: it can run there and nowhere
    /// else.
    pub fn needs_low(&self) -> bool {
        self.links.first_low.is_some()
    }

    /// What is wrong with it if it cannot lie below 2 GiB, where [`Self::needs_low`]; else nothing.
    pub fn low_problem(&self) -> Option<CodeError> {
        link::low_problem(&self.links)
    }

    /// What would go wrong if this were linked to run at `at`. Nothing is written.
    pub fn diagnose_link(&self, at: Addresses) -> Diagnosis {
        let mut diagnosis = Diagnosis::default();
        link::check(&self.links, at, |problem| diagnosis.note(problem));
        diagnosis
    }

    /// Bytes and alignment of each part, call stubs and global offset table included.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Bytes of the data part before its tail of zeros.
    pub fn data_init_bytes(&self) -> u64 {
        self.initial.data.len() as u64
    }

    /// What must run before the first call.
    pub fn startup(&self) -> &Startup {
        &self.startup
    }

    /// Bytes from the start of the data part that its initial state has, once what must run before the first call has
    /// run: the rest is zero.
    pub fn data_kept_bytes(&self) -> u64 {
        if self.startup.is_empty() { self.data_init_bytes() } else { self.sizes.data.size_bytes }
    }

    /// What the blob exports: global and weak definitions of default or protected visibility. Sorted by name, unique.
    pub fn symbols(&self) -> &[Symbol] {
        &self.exports
    }

    /// Every function of the code part, local ones too, sorted by offset: names for the addresses of a trap.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Where in the read-only part the unwind table lies, in the form of `.eh_frame` with a zero at its end.
    pub fn unwind(&self) -> Option<Range<u64>> {
        self.unwind.range()
    }

    /// How many functions the unwind table has.
    pub fn unwind_functions(&self) -> u64 {
        self.unwind.functions()
    }

    /// The code before linking, and what linking writes.
    pub(super) fn code_and_links(&self) -> (&[u8], &Links) {
        (&self.initial.code, &self.links)
    }

    /// Which fields of the linked image depend on its addresses.
    pub fn link_state(&self) -> LinkState {
        LinkState::of(&self.links, &self.unwind)
    }

    /// What stays of the image after linking.
    pub fn into_exports(self) -> Box<[Symbol]> {
        self.exports.into()
    }

    /// What must run before the first call, out of the image.
    pub fn take_startup(&mut self) -> Startup {
        std::mem::take(&mut self.startup)
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
        link::apply(&self.links, at, code, rodata, initial)?;
        self.unwind.link(at, rodata)
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
