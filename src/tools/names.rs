//! Which addresses of an entry have which name.

use crate::{cache::Name, code::Function};

/// Bytes of an entry's name that are shown with each of its functions: a namespace and a hash in hexadecimal.
const ENTRY_NAME_MAX_BYTES: usize = 128;
/// The name of code that no function claims.
const UNNAMED: &str = "code";

/// A piece of code.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
    /// Bytes from the start of the code.
    pub(super) offset_bytes: u64,
    /// Not zero.
    pub(super) size_bytes: u64,
}

/// The functions that have bytes, each up to the next at most: one without a size reaches to it. All of the code where
/// there is none.
pub(super) fn named(functions: &[Function], code_bytes: u64) -> impl Iterator<Item = Named<'_>> {
    let whole = functions.is_empty().then_some(Named { name: UNNAMED, offset_bytes: 0, size_bytes: code_bytes });
    let pieces = functions.iter().map(move |function| {
        let later = functions.partition_point(|it| it.offset_bytes <= function.offset_bytes);
        let end = functions.get(later).map_or(code_bytes, |it| it.offset_bytes);
        let room = end.min(code_bytes).saturating_sub(function.offset_bytes);
        let size_bytes = if function.size_bytes == 0 { room } else { function.size_bytes.min(room) };
        Named { name: &function.name, offset_bytes: function.offset_bytes, size_bytes }
    });
    whole.into_iter().chain(pieces).filter(|it| it.size_bytes > 0)
}

/// A name without what would end it, or its line.
pub(super) fn plain(name: &str) -> impl Iterator<Item = char> {
    name.chars().map(|c| if c.is_control() { '?' } else { c })
}

/// The name of an entry behind those of its functions: many entries have a function of one name.
pub(super) fn suffix(name: &Name) -> String {
    let mut shown = format!("{name:?}");
    if shown.len() > ENTRY_NAME_MAX_BYTES {
        // Escaped: each byte is a character.
        shown.truncate(ENTRY_NAME_MAX_BYTES);
        shown.push_str("...");
    }
    format!(" [{shown}]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Namespace;

    fn function(name: &str, offset_bytes: u64, size_bytes: u64) -> Function {
        Function { name: name.into(), offset_bytes, size_bytes }
    }

    fn pieces(functions: &[Function], code_bytes: u64) -> Vec<(&str, u64, u64)> {
        named(functions, code_bytes).map(|it| (it.name, it.offset_bytes, it.size_bytes)).collect()
    }

    #[test]
    fn a_function_ends_where_it_says_but_at_the_next_or_the_end_of_the_code_at_latest() {
        let functions = [function("a", 0, 8), function("b", 16, 0), function("c", 32, 99), function("d", 48, 99)];
        assert_eq!(pieces(&functions, 64), [("a", 0, 8), ("b", 16, 16), ("c", 32, 16), ("d", 48, 16)]);
    }

    #[test]
    fn names_of_one_address_all_count_and_code_without_names_is_one_piece() {
        assert_eq!(pieces(&[function("a", 0, 4), function("b", 0, 0)], 8), [("a", 0, 4), ("b", 0, 8)]);
        assert_eq!(pieces(&[], 8), [("code", 0, 8)]);
        assert_eq!(pieces(&[function("past", 8, 4)], 8), []);
    }

    #[test]
    fn the_name_of_an_entry_is_one_line_and_bounded() {
        let name = |key: &[u8]| Name::new(Namespace::new("").unwrap(), key).unwrap();
        assert_eq!(suffix(&name(b"a\nb")), " [default/a\\nb]");
        assert_eq!(suffix(&name(&[0xff; 256])).len(), 128 + "... []".len());
        assert_eq!(plain("a\nb c").collect::<String>(), "a?b c");
    }
}
