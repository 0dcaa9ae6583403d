//! The code that the demo installs.

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
};

use super::{DemoError, flat};
use crate::proto::{BlobFormat, FlatEntry};

const SOURCE: &str = include_str!("program.c");

/// What is installed, and what it was made of.
pub(super) struct Program {
    pub(super) format: BlobFormat,
    pub(super) blob: Vec<u8>,
    pub(super) entries: Vec<FlatEntry>,
    /// For people.
    pub(super) source: String,
    /// How `blob` was made, for people.
    pub(super) made_by: String,
}

impl Program {
    /// Compiles the C file; without a compiler, machine code comes from a table.
    pub(super) fn make(directory: &Path) -> Result<Self, DemoError> {
        Ok(compile(directory)?.unwrap_or_else(assemble))
    }

    /// True for a program with the functions that need data.
    pub(super) fn has_data(&self) -> bool {
        self.format == BlobFormat::ElfObject
    }
}

/// None without a compiler.
fn compile(directory: &Path) -> Result<Option<Program>, DemoError> {
    let (c_file, object) = (directory.join("program.c"), directory.join("program.o"));
    fs::write(&c_file, SOURCE).map_err(DemoError::system("write the C file"))?;
    let mut command = Command::new("cc");
    command.args(["-O2", "-fPIC", "-c", "-o"]).arg(&object).arg(&c_file).stdin(Stdio::null());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DemoError::system("run cc")(error)),
    };
    if !output.status.success() {
        return Err(DemoError::Compiler(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(Some(Program {
        format: BlobFormat::ElfObject,
        blob: fs::read(&object).map_err(DemoError::system("read the object"))?,
        entries: vec![],
        source: SOURCE.to_owned(),
        made_by: "cc -O2 -fPIC -c program.c, which is".to_owned(),
    }))
}

fn assemble() -> Program {
    let (blob, entries) = flat::assemble();
    let made_by = "no cc on this machine: machine code from a table, without the function that needs data".to_owned();
    Program { format: BlobFormat::Flat, blob, entries, source: flat::listing(), made_by }
}
