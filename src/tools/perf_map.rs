//! The map that perf looks for: `/tmp/perf-PID.map`, a line for each function.
//!
//! `START SIZE NAME`, both numbers in hexadecimal (linux/tools/perf/Documentation/jit-interface.txt). Nothing ever leaves
//! the map: perf takes the later line where an address has had two names.

use std::{fmt::Write, path::Path};

use super::{
    file::{BoundedFile, FileError, Written},
    names::{self, Named},
};
use crate::cache::Placed;

/// Lines are written in pieces of about so many bytes.
const PIECE_BYTES: usize = 64 << 10;

pub(super) struct PerfMap(BoundedFile);

impl PerfMap {
    pub(super) fn create(directory: &Path, max_bytes: u64) -> Result<Self, FileError> {
        let name = format!("perf-{}.map", std::process::id());
        Ok(Self(BoundedFile::create(directory, &name, max_bytes)?))
    }

    /// Adds the lines of an entry.
    pub(super) fn note(&self, placed: &Placed<'_>) {
        let code = placed.code_range();
        let suffix = names::suffix(placed.name);
        let mut lines = String::new();
        for piece in names::named(placed.functions, code.end - code.start) {
            write_line(&mut lines, code.start, &piece, &suffix);
            if lines.len() >= PIECE_BYTES {
                self.0.append(lines.as_bytes());
                lines.clear();
            }
        }
        self.0.append(lines.as_bytes());
    }

    pub(super) fn finish(&self) -> Written {
        self.0.finish(b"", 0)
    }
}

fn write_line(lines: &mut String, start: u64, piece: &Named<'_>, suffix: &str) {
    // Writing to a text cannot fail.
    let _ = write!(lines, "{:x} {:x} ", start + piece.offset_bytes, piece.size_bytes);
    lines.extend(names::plain(piece.name));
    lines.push_str(suffix);
    lines.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_start_and_size_in_hexadecimal_and_the_names_of_function_and_entry() {
        let mut lines = String::new();
        for (name, offset_bytes) in [("f", 0), ("g\n", 0x20)] {
            write_line(&mut lines, 0x7f00_1000, &Named { name, offset_bytes, size_bytes: 0x1a }, " [default/k]");
        }
        assert_eq!(lines, "7f001000 1a f [default/k]\n7f001020 1a g? [default/k]\n");
    }
}
