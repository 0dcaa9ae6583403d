//! What the AsmJit harness printed.

use std::{collections::HashMap, error::Error, fs, path::Path};

use crate::report::short;

/// The rows to compare with: both views, as we have them.
const PREFIX: &str = "asmjit.dual.";

/// Values by the names of the rows, without the prefix. Empty if no output was given.
#[derive(Default)]
pub(crate) struct Peer {
    rows: HashMap<String, f64>,
}

impl Peer {
    pub(crate) fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let rows: HashMap<_, _> = text.lines().filter_map(row).collect();
        if rows.is_empty() {
            return Err(format!("{} has no row that begins with {PREFIX}", path.display()).into());
        }
        Ok(Self { rows })
    }

    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.rows.get(name).copied()
    }

    /// Of the blocks of this many KiB that the free bytes would hold, the share that fit.
    pub(crate) fn fit_share(&self, kib: u32) -> Option<f64> {
        let of = |end| self.value(&format!("c.fit_{kib}K_{end}"));
        Some(of("before_growth")? / of("ideal")?)
    }

    /// Prints those shares, which the harness leaves to its reader.
    pub(crate) fn print_shares(&self) {
        for kib in crate::space::FIT_KIB {
            if let Some(share) = self.fit_share(kib) {
                println!("{PREFIX}c.fit_{kib}K_share {} ratio", short(share));
            }
        }
    }
}

fn row(line: &str) -> Option<(String, f64)> {
    let mut words = line.strip_prefix(PREFIX)?.split_ascii_whitespace();
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}
