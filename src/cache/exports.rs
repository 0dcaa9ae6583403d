//! The symbols of a resident entry.

use crate::code::{self, Function, Signature, Symbol};

/// What can be called and named in an entry.
#[derive(Debug, Default)]
pub struct Exports {
    symbols: Box<[Symbol]>,
    functions: Box<[Function]>,
}

impl Exports {
    /// `symbols` sorted by name, `functions`, local ones too, by offset.
    pub(super) fn new((symbols, functions): (Box<[Symbol]>, Box<[Function]>)) -> Self {
        Self { symbols, functions }
    }

    /// Bytes of heap that symbols and functions will take: what is charged for them.
    pub(super) fn heap_bytes(symbols: &[Symbol], functions: &[Function]) -> u64 {
        /// What an allocator adds to a short name.
        const ROUNDING_BYTES: usize = 16;
        let signatures = symbols.iter().filter(|it| it.signature.is_some()).count();
        let symbols = symbols.iter().map(|it| size_of::<Symbol>() + it.name.len() + ROUNDING_BYTES);
        let functions = functions.iter().map(|it| size_of::<Function>() + it.name.len() + ROUNDING_BYTES);
        let own: usize = symbols.chain(functions).sum();
        (own + signatures * (size_of::<Signature>() + ROUNDING_BYTES)) as u64
    }

    /// Exported symbols in name order.
    pub fn symbols(&self) -> &[Symbol] {
        &self.symbols
    }

    /// Functions, exported or not, by offset.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// An exported function.
    pub fn function(&self, name: &str) -> Option<&Symbol> {
        let at = self.symbols.binary_search_by(|symbol| (*symbol.name).cmp(name)).ok()?;
        Some(&self.symbols[at]).filter(|symbol| symbol.is_function)
    }

    /// The function, exported or not, that holds the code at this offset. One without a size reaches to the next.
    pub fn function_at(&self, offset_bytes: u64) -> Option<&Function> {
        code::function_at(&self.functions, offset_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_named_by_the_function_that_holds_it() {
        let function = |name: &str, offset_bytes, size_bytes| Function { name: name.into(), offset_bytes, size_bytes };
        let functions = [function("a", 16, 8), function("b", 32, 0), function("c", 64, 4)];
        let exports = Exports::new((Box::default(), Box::new(functions)));
        let name = |offset| exports.function_at(offset).map(|it| &*it.name);
        assert_eq!([name(0), name(16), name(23), name(24)], [None, Some("a"), Some("a"), None]);
        assert_eq!([name(32), name(63), name(64), name(68)], [Some("b"), Some("b"), Some("c"), None]);
    }
}
