//! Object bytes -> [`Image`] -> linked bytes.
//!
//! A blob is parsed once into an owned [`Image`]: laid out in a code, a read-only and a writable part, with its own
//! global offset table and call stubs, every symbol resolved. [`Image::link`] then writes these parts for given run
//! addresses into buffers of the caller. All of it is a pure function of its input: no system call, no lock, no clock
//! and no unsafe code, so that it can be fuzzed and run under miri.
//!
//! Blobs are hostile. Every count, offset, size and alignment is checked before memory is taken for it, and both work
//! and memory are linear in the size of the blob and in [`Limits::image_max_bytes`].
//!
//! ```
//! use codecached::code::{Addresses, FlatEntry, Image, Limits};
//!
//! // lea eax, [rdi + rsi]; ret
//! let blob = [0x8d, 0x04, 0x37, 0xc3];
//! let entries = vec![FlatEntry { name: "add".to_owned(), offset_bytes: 0 }];
//! let image = Image::parse_flat(&blob, entries, &Limits::default())?;
//! let mut code = vec![0; image.sizes().code.size_bytes as usize];
//! image.link(Addresses { code: 0x7000_0000, rodata: 0, data: 0 }, &mut code, &mut [], &mut [])?;
//! assert_eq!(code, blob);
//! assert_eq!(&*image.symbols()[0].name, "add");
//! # Ok::<(), codecached::code::CodeError>(())
//! ```

mod chosen;
mod declaration;
mod diagnosis;
mod disasm;
mod elf;
mod entities;
mod error;
mod flat;
mod foreign;
mod image;
mod imports;
mod inputs;
mod layout;
mod limits;
mod link;
mod link_state;
mod properties;
mod provider;
mod reach;
mod relax;
mod relocation;
mod relocations;
mod screen;
mod sections;
mod segments;
mod signature;
mod startup;
mod stubs;
mod symbols;
mod target;
#[cfg(test)]
mod tests;
mod thread;
mod tls;
mod unwind;

pub use declaration::{DECLARATION_MAX_BYTES, DeclarationError, parse as parse_declaration};
pub use diagnosis::Diagnosis;
pub use disasm::{INSTRUCTION_MAX_BYTES, Line, Listing, call_text, function_at, instruction_text};
pub use error::{CodeError, Location, Reason, RelocationName};
pub use flat::FlatEntry;
pub use image::{Addresses, Function, Image, Part, PartKind, Sizes, Symbol, Undeclarable, Unused};
pub use imports::{ImportTable, ThreadSwitch};
pub use inputs::Selection;
pub use limits::Limits;
pub use link_state::{LinkState, MoveError};
pub use provider::Provider;
pub use relocation::RELOCATIONS;
pub use screen::{Finding, Rule, Screened};
pub use segments::SegmentUse;
pub use signature::{Number, PARAMETERS_MAX, Parameter, Signature, TooManyParameters};
pub use startup::{Resolver, Startup};
pub use target::{CpuFeatures, Level, Missing};
pub use thread::{CONTROL_BYTES, THREAD_MAX_BYTES, Thread};
