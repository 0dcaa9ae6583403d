use std::fmt;

use super::SegmentUse;

/// Bytes of a name of the blob that an error shows; what is longer is cut. Errors travel in response trailers, which
/// clients bound to few KiB.
const SHOWN_NAME_MAX_BYTES: usize = 96;

/// Why a blob cannot become code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodeError {
    /// The bytes break the rules of their format.
    #[error("malformed object: {what}{at}")]
    Malformed {
        /// The rule that is broken.
        what: &'static str,
        /// Where.
        at: Location,
    },
    /// A well-formed object of a kind that cannot run here.
    #[error("object for another target: its ELF {what} is {found}, needed is {needed}")]
    TargetMismatch {
        /// Field of the ELF header.
        what: &'static str,
        /// What it holds.
        found: u64,
        /// What it must hold, as a number and in words.
        needed: &'static str,
    },
    /// A relocation of a type that is not taken.
    #[error("unsupported relocation {relocation}{at}: {hint}")]
    UnsupportedRelocation {
        /// Its type.
        relocation: RelocationName,
        /// What to do about it.
        hint: &'static str,
        /// Where.
        at: Location,
    },
    /// A well-formed section or symbol that asks for what this linker does not do.
    #[error("unsupported object: {what}{at}")]
    Unsupported {
        /// What it asks for.
        what: &'static str,
        /// Where.
        at: Location,
    },
    /// The value of a relocation does not fit its field.
    #[error("relocation {relocation} overflows: {value} does not fit{at}")]
    RelocationOverflow {
        /// Its type.
        relocation: RelocationName,
        /// What should have been written.
        value: i128,
        /// Where.
        at: Location,
    },
    /// Symbols that the object uses, but neither defines nor finds among the imports.
    #[error("unresolved symbols: {}{} ({total} in all)", names.join(", "), rest(names, *total))]
    UnresolvedSymbols {
        /// The first [`UNRESOLVED_SHOWN_MAX`](Self::UNRESOLVED_SHOWN_MAX) of them, in the order of their first use, each with the
        /// import that is nearest to it, if one is near.
        names: Vec<String>,
        /// How many there are.
        total: u64,
    },
    /// One of these, where problems are told one by one.
    #[error("unresolved symbol {}", first_use(nearest.as_deref(), at))]
    Unresolved {
        /// The import that is nearest to it, if one is near.
        nearest: Option<Box<str>>,
        /// Its name, and where it is used first.
        at: Location,
    },
    /// A count or size above its limit.
    #[error("too large: {value} {what}, the limit is {max}")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// The count, or as much of it as was seen.
        value: u64,
        /// Its limit.
        max: u64,
    },
    /// An instruction that would read or write what is the host's.
    #[error("forbidden instruction {instruction}{at}: {}", by.as_str())]
    ForbiddenInstruction {
        /// As text.
        instruction: Box<str>,
        /// What it does.
        by: SegmentUse,
        /// Where.
        at: Location,
    },
    /// Code with a thread pointer of its own, where there can be none.
    #[error(
        "the code uses thread-local storage or %fs, and this processor or its kernel lacks FSGSBASE, by which each call \
         gets its own: compile without _Thread_local variables, and for another C library than musl"
    )]
    NoThreads,
    /// A flat blob without an entry point, or with too many.
    #[error("a flat blob has 1 to {max} entries, not {count}")]
    EntryCount {
        /// Entries of the request.
        count: usize,
        /// Entries at most.
        max: usize,
    },
    /// An entry point of a flat blob that cannot be one.
    #[error("invalid entry {index} {name} at offset {offset_bytes}: {what}")]
    InvalidEntry {
        /// Its place in the request.
        index: usize,
        /// Its name.
        name: String,
        /// Its offset in the blob.
        offset_bytes: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// Place in an object, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// Name of the object, where there are several.
    pub object: Option<String>,
    /// Name of the section.
    pub section: Option<String>,
    /// Name of the symbol.
    pub symbol: Option<String>,
    /// Bytes from the start of the section.
    pub offset_bytes: Option<u64>,
}

/// Class of a [`CodeError`], for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Malformed, or beyond what this linker does.
    MalformedObject,
    /// A relocation that is not taken, or does not reach.
    UnsupportedRelocation,
    /// Symbols without a definition.
    UnresolvedSymbol,
    /// An instruction that must not be.
    ForbiddenInstruction,
    /// An object for another machine or of another kind, or a host that cannot run it.
    TargetMismatch,
    /// Above a limit.
    BlobTooLarge,
    /// Entry points of a flat blob that are wrong.
    InvalidField,
}

/// Type of an x86-64 relocation. Shown as the ABI names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelocationName(pub u32);

impl CodeError {
    /// Names that [`CodeError::UnresolvedSymbols`] holds at most.
    pub const UNRESOLVED_SHOWN_MAX: usize = 32;

    /// The class of this error.
    pub fn reason(&self) -> Reason {
        match self {
            CodeError::Malformed { .. } | CodeError::Unsupported { .. } => Reason::MalformedObject,
            CodeError::UnsupportedRelocation { .. } | CodeError::RelocationOverflow { .. } => {
                Reason::UnsupportedRelocation
            }
            CodeError::UnresolvedSymbols { .. } | CodeError::Unresolved { .. } => Reason::UnresolvedSymbol,
            CodeError::ForbiddenInstruction { .. } => Reason::ForbiddenInstruction,
            CodeError::TargetMismatch { .. } | CodeError::NoThreads => Reason::TargetMismatch,
            CodeError::TooLarge { .. } => Reason::BlobTooLarge,
            CodeError::EntryCount { .. } | CodeError::InvalidEntry { .. } => Reason::InvalidField,
        }
    }

    /// The section, symbol and offset that this error is about, where it is about one.
    pub fn location(&self) -> Option<&Location> {
        match self {
            CodeError::Malformed { at, .. }
            | CodeError::UnsupportedRelocation { at, .. }
            | CodeError::Unsupported { at, .. }
            | CodeError::Unresolved { at, .. }
            | CodeError::ForbiddenInstruction { at, .. }
            | CodeError::RelocationOverflow { at, .. } => Some(at),
            CodeError::TargetMismatch { .. }
            | CodeError::UnresolvedSymbols { .. }
            | CodeError::TooLarge { .. }
            | CodeError::NoThreads
            | CodeError::EntryCount { .. }
            | CodeError::InvalidEntry { .. } => None,
        }
    }

    pub(super) fn malformed(what: &'static str) -> Self {
        CodeError::Malformed { what, at: Location::default() }
    }

    /// The same error, at `place` if it is malformed at a place not known yet.
    pub(super) fn at(self, place: impl FnOnce() -> Location) -> Self {
        match self {
            CodeError::Malformed { what, at } if at == Location::default() => {
                CodeError::Malformed { what, at: place() }
            }
            other => other,
        }
    }
}

impl Location {
    pub(super) fn section(name: &[u8]) -> Self {
        Location { section: Some(shown(name)), ..Location::default() }
    }

    pub(super) fn symbol(name: &[u8]) -> Self {
        Location { symbol: Some(shown(name)), ..Location::default() }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(section) = &self.section {
            write!(f, " in section {section}")?;
        }
        if let Some(object) = &self.object {
            write!(f, " of {object}")?;
        }
        if let Some(offset_bytes) = self.offset_bytes {
            write!(f, " at offset {offset_bytes:#x}")?;
        }
        if let Some(symbol) = &self.symbol {
            write!(f, " for symbol {symbol}")?;
        }
        Ok(())
    }
}

impl Reason {
    /// The reason in the words of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::MalformedObject => "MALFORMED_OBJECT",
            Reason::UnsupportedRelocation => "UNSUPPORTED_RELOCATION",
            Reason::UnresolvedSymbol => "UNRESOLVED_SYMBOL",
            Reason::ForbiddenInstruction => "FORBIDDEN_INSTRUCTION",
            Reason::TargetMismatch => "TARGET_MISMATCH",
            Reason::BlobTooLarge => "BLOB_TOO_LARGE",
            Reason::InvalidField => "INVALID_FIELD",
        }
    }
}

impl fmt::Display for RelocationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match super::relocation::name(self.0) {
            Some(name) => write!(f, "R_X86_64_{name}"),
            None => write!(f, "type {}", self.0),
        }
    }
}

/// What stands for the names that are not shown.
fn rest(names: &[String], total: u64) -> &'static str {
    if (names.len() as u64) < total { ", ..." } else { "" }
}

/// A symbol that nothing defines, and where it is used.
fn first_use(nearest: Option<&str>, at: &Location) -> String {
    let name = at.symbol.as_deref().unwrap_or_default();
    let nearest = nearest.map(|it| format!(" (nearest offered: {it})")).unwrap_or_default();
    format!("{name}{nearest}, first used{}", Location { symbol: None, ..at.clone() })
}

/// A name from a blob as text that fits a line of a log: escaped, and cut with "..." where it is long.
pub(super) fn shown(name: &[u8]) -> String {
    if name.is_empty() {
        return "(unnamed)".to_owned();
    }
    let cut = &name[..name.len().min(SHOWN_NAME_MAX_BYTES)];
    let rest = if cut.len() < name.len() { "..." } else { "" };
    format!("{}{rest}", cut.escape_ascii())
}
