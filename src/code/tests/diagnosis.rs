use object::elf::*;

use super::super::Diagnosis;
use super::builder::{Builder, TEXT};
use super::*;

fn diagnose(blob: &[u8]) -> Result<Image, Diagnosis> {
    Image::diagnose_elf(blob, &all_sections(), &[], &imports(), &Limits::default())
}

/// Calls two symbols that nobody has, twice, holds a relocation of no object, and wants what is writable and executable.
fn wrong() -> Builder {
    let mut object = Builder::with_text(&[0x90; 64]);
    object.function("f", 0, 64);
    let (first, second) = (object.undefined("absent"), object.undefined("memcpi"));
    object.relocation(1, 4, R_X86_64_PLT32, first, -4);
    object.relocation(1, 12, R_X86_64_COPY, first, 0);
    object.relocation(1, 20, R_X86_64_PLT32, second, -4);
    object.relocation(1, 28, R_X86_64_PLT32, first, -4);
    object.relocation(1, 100, R_X86_64_PC32, first, -4);
    object.section(".both", SHT_PROGBITS, TEXT | SHF_WRITE.0, 8, &[0; 8]);
    object
}

#[test]
fn all_problems_are_told_with_their_places_and_each_symbol_once() {
    let found = diagnose(&wrong().build()).unwrap_err();
    let told: Vec<String> = found.problems.iter().map(CodeError::to_string).collect();
    assert_eq!(
        told,
        [
            "unsupported object: a section cannot be both writable and executable in section .both",
            "unresolved symbol absent, first used in section .text at offset 0x4",
            "unsupported relocation R_X86_64_COPY in section .text at offset 0xc for symbol absent: relocatable objects of this linker hold none",
            "unresolved symbol memcpi (nearest offered: memcpy), first used in section .text at offset 0x14",
            "malformed object: the relocation lies outside of its section in section .text at offset 0x64 for symbol absent",
        ]
    );
    assert_eq!(found.total, 5);
    let at = found.problems[3].location().unwrap();
    assert_eq!((at.symbol.as_deref(), at.offset_bytes), (Some("memcpi"), Some(20)));
}

#[test]
fn an_object_without_problems_becomes_the_same_image() {
    let (image, same) = (parse(SAMPLE).unwrap(), diagnose(SAMPLE).unwrap());
    assert_eq!(link(&image), link(&same));
    assert_eq!(image.symbols(), same.symbols());
    assert!(same.diagnose_link(AT).is_empty());
}

#[test]
fn what_cannot_be_read_ends_the_search_and_is_told() {
    let found = diagnose(b"\x7fELF").unwrap_err();
    assert_eq!((found.total, found.problems.len()), (1, 1));
    let mut blob = wrong();
    blob.symbol("twice", STB_GLOBAL, STT_FUNC, SymbolSection(1), 0, 1);
    blob.symbol("twice", STB_GLOBAL, STT_FUNC, SymbolSection(1), 0, 1);
    assert_eq!(diagnose(&blob.build()).unwrap_err().total, 1);
}

#[test]
fn problems_beyond_the_bound_are_counted() {
    let mut object = Builder::with_text(&[0x90; 64]);
    for number in 0..300 {
        let symbol = object.undefined(&format!("absent_{number}"));
        object.relocation(1, 0, R_X86_64_PLT32, symbol, -4);
    }
    let found = diagnose(&object.build()).unwrap_err();
    assert_eq!((found.total, found.problems.len()), (300, Diagnosis::PROBLEMS_MAX));
}

#[test]
fn addresses_in_too_few_bits_are_found_without_linking() {
    let mut object = Builder::with_text(&[0x90; 64]);
    let f = object.function("f", 0, 64);
    object.relocation(1, 4, R_X86_64_32, f, 0);
    object.relocation(1, 12, R_X86_64_32S, f, 0);
    object.relocation(1, 20, R_X86_64_PC32, f, -4);
    let second = object.section(".text.second", SHT_PROGBITS, TEXT, 16, &[0; 8]);
    object.relocation(second, 0, R_X86_64_16, f, 0);
    let image = diagnose(&object.build()).unwrap();
    let found = image.diagnose_link(AT);
    assert_eq!(found.total, 3);
    assert!(found.problems.iter().all(|it| it.to_string().contains("compile with -fPIC")), "{found:?}");
    assert!(link_at(&image, AT).is_err());
}
