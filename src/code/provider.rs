//! Symbols of what is linked already.

use super::image::{Addresses, PartKind, Symbol};
use super::imports::ImportTable;
use super::{CodeError, Location};

/// Something that runs already, with what it exports.
#[derive(Debug, Clone, Copy)]
pub struct Provider<'a> {
    /// Sorted by name, unique, as [`super::Image::symbols`] gives them.
    pub symbols: &'a [Symbol],
    /// Where its parts lie for as long as what is linked against it.
    pub at: Addresses,
    /// It has a thread pointer of its own, which is not that of who calls it.
    pub has_thread: bool,
}

/// A symbol of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Provided {
    pub(super) address: u64,
    pub(super) is_function: bool,
    /// 0 where its object does not say.
    pub(super) size_bytes: u64,
}

/// What an object may use beside its own: the providers' symbols in their order, and then the host's.
#[derive(Clone, Copy)]
pub(super) struct Imports<'a> {
    pub(super) host: &'a ImportTable,
    pub(super) providers: &'a [Provider<'a>],
}

impl Imports<'_> {
    /// A call has one thread pointer: that of its entry, or the host's. Code that needs the one cannot call code that needs
    /// the other.
    pub(super) fn hold_threads(&self, has_thread: bool) -> Result<(), CodeError> {
        let what = match self.providers.iter().any(|it| it.has_thread) {
            true => "an entry with thread-local variables of its own cannot be used by others",
            false if has_thread && !self.providers.is_empty() => {
                "code with thread-local variables of its own, errno among them, cannot use other entries"
            }
            false => return Ok(()),
        };
        Err(CodeError::Unsupported { what, at: Location::default() })
    }

    /// The symbol of the first provider that has one of this name, as a linker takes it from the first library.
    pub(super) fn provided(&self, name: &str) -> Option<Provided> {
        self.providers.iter().find_map(|provider| provider.symbol(name))
    }
}

impl Provider<'_> {
    fn symbol(&self, name: &str) -> Option<Provided> {
        let at = self.symbols.binary_search_by(|symbol| (*symbol.name).cmp(name)).ok()?;
        let &Symbol { part, is_function, offset_bytes, size_bytes, .. } = &self.symbols[at];
        let start = match part {
            PartKind::Code => self.at.code,
            PartKind::Rodata => self.at.rodata,
            PartKind::Data => self.at.data,
        };
        Some(Provided { address: start + offset_bytes, is_function, size_bytes })
    }
}
