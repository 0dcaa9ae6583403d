//! Writes objects that Cranelift makes, one for each of its settings, into a directory.
//!
//! The functions are some of those of `tests/objects/compilers/functions.rs`, which says what each gives; they are built
//! as a front end would build them: through variables and blocks, with the instructions that Cranelift has for a thing.

mod build;
mod functions;

use std::{error::Error, fs, path::Path};

use cranelift_codegen::{
    isa,
    settings::{self, Configurable as _},
};
use cranelift_module::default_libcall_names;
use cranelift_object::{ObjectBuilder, ObjectModule};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).ok_or("usage: codecached-cranelift DIRECTORY")?;
    for level in ["none", "speed", "speed_and_size"] {
        for colocated in [true, false] {
            for sections in [true, false] {
                let name = format!("{level}{}{}.o", flag(colocated, "_colocated"), flag(sections, "_sections"));
                fs::write(Path::new(&directory).join(name), object(level, colocated, sections)?)?;
            }
        }
    }
    Ok(())
}

fn flag(is_set: bool, text: &str) -> &str {
    if is_set { text } else { "" }
}

/// An object with its own functions called directly or through the global offset table, all in one section or each in one.
fn object(level: &str, colocated: bool, sections: bool) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut flags = settings::builder();
    flags.set("opt_level", level)?;
    flags.set("is_pic", "true")?;
    flags.set("use_colocated_libcalls", "false")?;
    flags.set("enable_verifier", "true")?;
    let mut target = isa::lookup_by_name("x86_64-unknown-linux-gnu")?;
    // Without these, vectors and counts of bits are calls of a library that Cranelift brings to its own JIT only.
    for feature in ["has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt"] {
        target.enable(feature)?;
    }
    let target = target.finish(settings::Flags::new(flags))?;
    let mut object = ObjectBuilder::new(target, "functions", default_libcall_names())?;
    object.per_function_section(sections).per_data_object_section(sections);
    let mut maker = build::Maker::new(ObjectModule::new(object), colocated);
    functions::all(&mut maker)?;
    Ok(maker.finish()?)
}
