//! What a blob is that is no ELF object, so that whoever sent it is told what to do instead.

use object::elf;
use object::read::elf::Sym as _;

use super::CodeError;
use super::elf::{LE, Object};

/// What GCC defines in an object that has no code but its own intermediate form.
const SLIM: &[u8] = b"__gnu_lto_slim";

/// How much of a blob is looked at to tell that it is text.
const TEXT_BYTES: usize = 256;

/// How files of other kinds start, and what to say of them.
const KINDS: [(&[u8], &str); 12] = [
    (b"BC\xc0\xde", "it is LLVM bitcode, not an ELF object: compile it with -fno-lto"),
    (b"\xde\xc0\x17\x0b", "it is LLVM bitcode, not an ELF object: compile it with -fno-lto"),
    (b"\xcf\xfa\xed\xfe", "it is a Mach-O file, not an ELF object: compile it for x86_64-unknown-linux"),
    (b"\xca\xfe\xba\xbe", "it is a universal Mach-O file, not an ELF object: compile it for x86_64-unknown-linux"),
    (b"\x64\x86", "it is a COFF object, not an ELF one: compile it for x86_64-unknown-linux"),
    (b"\x00\x00\xff\xff", "it is a COFF object, not an ELF one: compile it for x86_64-unknown-linux"),
    (b"MZ", "it is a Windows program, not an ELF object: compile it for x86_64-unknown-linux"),
    (b"\x00asm", "it is WebAssembly, not an ELF object: compile it to one first"),
    (b"!<arch>\n", "it is an archive within an archive: give the objects in one"),
    (b"!<thin>\n", "it is an archive within an archive: give the objects in one"),
    (b"\x1f\x8b", "it is compressed, not an ELF object: unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed, not an ELF object: unpack it"),
];

/// What is wrong with a blob that does not start as an ELF file does.
pub(super) fn what(blob: &[u8]) -> &'static str {
    let known = KINDS.iter().find(|(start, _)| blob.starts_with(start));
    let text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~');
    match known {
        Some((_, what)) => what,
        None if blob.iter().take(TEXT_BYTES).all(text) => {
            "it is text, not an ELF object: compile it first, as cc -c does"
        }
        None => {
            "it does not start as an ELF file does: code without a header is installed as flat code, with its entries"
        }
    }
}

/// Fails for an object that only GCC's linker plugin can make code of.
pub(super) fn refuse_intermediate(object: &Object<'_>) -> Result<(), CodeError> {
    for symbol in object.symbols.iter().filter(|symbol| symbol.st_shndx(LE) == elf::SHN_COMMON) {
        if object.symbol_name(symbol)? == SLIM {
            return Err(object.malformed("it holds GCC's intermediate code only: compile it with -fno-lto"));
        }
    }
    Ok(())
}
