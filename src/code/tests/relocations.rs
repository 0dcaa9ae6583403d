use object::elf::*;

use super::super::{RELOCATIONS, Reason};
use super::builder::{Builder, DATA, TEXT, patch_section};
use super::*;

/// An object whose `.text` of 32 bytes has one relocation at offset 8 for the symbol that `symbol` adds.
fn object(kind: RelocationType, addend: i64, symbol: impl FnOnce(&mut Builder) -> u32) -> Vec<u8> {
    let mut object = Builder::with_text(&[0x90; 32]);
    let data = object.section(".data", SHT_PROGBITS, DATA, 8, &[0; 16]);
    assert_eq!(data, 2);
    let symbol = symbol(&mut object);
    object.relocation(1, 8, kind, symbol, addend);
    object.build()
}

fn variable(object: &mut Builder) -> u32 {
    object.symbol("variable", STB_GLOBAL, STT_OBJECT, SymbolSection(2), 8, 8)
}

fn host(object: &mut Builder) -> u32 {
    object.undefined("host")
}

fn absent(object: &mut Builder) -> u32 {
    object.symbol("absent", STB_WEAK, STT_NOTYPE, SHN_UNDEF, 0, 0)
}

fn absolute(value: u64) -> impl FnOnce(&mut Builder) -> u32 {
    move |object| object.symbol("absolute", STB_GLOBAL, STT_NOTYPE, SHN_ABS, value, 0)
}

fn linked(blob: &[u8]) -> Result<Linked, CodeError> {
    link_at(&parse(blob)?, AT)
}

/// Bytes from the field of `object` to `variable` of the data part.
const TO_VARIABLE: i64 = (AT.data + 8) as i64 - (AT.code + 8) as i64;

#[test]
fn direct_relocations_hold_the_address_of_a_symbol() {
    for (addend, expected) in [(0, AT.data + 8), (5, AT.data + 13), (-9, AT.data - 1)] {
        let code = linked(&object(R_X86_64_64, addend, variable)).unwrap().code;
        assert_eq!(u64_at(&code, 8), expected, "addend {addend}");
    }
    let code = linked(&object(R_X86_64_64, 3, host)).unwrap().code;
    assert_eq!(u64_at(&code, 8), HOST + 3, "imports directly, without a stub");
    assert_eq!(code.len(), 32);
}

#[test]
fn relative_relocations_hold_the_distance_to_a_symbol() {
    for kind in [R_X86_64_PC32, R_X86_64_PLT32] {
        for addend in [0, -4, 100] {
            let code = linked(&object(kind, addend, variable)).unwrap().code;
            assert_eq!(i32_at(&code, 8), TO_VARIABLE + addend, "{kind:?} addend {addend}");
            assert_eq!(code.len(), 32, "no stub for what is near");
        }
    }
    let code = linked(&object(R_X86_64_PC64, -4, variable)).unwrap().code;
    assert_eq!(u64_at(&code, 8) as i64, TO_VARIABLE - 4);
    let code = linked(&object(R_X86_64_PC64, 0, host)).unwrap().code;
    assert_eq!((AT.code + 8).wrapping_add(u64_at(&code, 8)), HOST, "64 bits reach imports without a stub");
}

#[test]
fn slot_relocations_lead_to_a_slot_that_holds_the_address() {
    for kind in [R_X86_64_GOTPCREL, R_X86_64_GOTPCRELX, R_X86_64_REX_GOTPCRELX] {
        type Symbol = fn(&mut Builder) -> u32;
        for (symbol, address) in [(variable as Symbol, AT.data + 8), (host, HOST), (absent, 0)] {
            let linked = linked(&object(kind, -4, symbol)).unwrap();
            assert_eq!(destination(&linked.code, 8), AT.rodata, "{kind:?}");
            assert_eq!(linked.rodata, address.to_le_bytes());
        }
    }
    let linked = linked(&object(R_X86_64_GOTPCREL, -4, absolute(0x1234))).unwrap();
    assert_eq!(u64_at(&linked.rodata, 0), 0x1234);
}

#[test]
fn calls_of_what_is_far_go_through_a_stub() {
    type Symbol = fn(&mut Builder) -> u32;
    for (kind, symbol, address) in
        [(R_X86_64_PLT32, host as Symbol, HOST), (R_X86_64_PC32, host, HOST), (R_X86_64_PLT32, absent, 0)]
    {
        let linked = linked(&object(kind, -4, symbol)).unwrap();
        assert_eq!(destination(&linked.code, 8), AT.code + 32);
        assert_eq!(linked.code[32..34], [0xff, 0x25]);
        assert_eq!(destination(&linked.code, 34), AT.rodata);
        assert_eq!(linked.rodata, address.to_le_bytes());
    }
}

#[test]
fn a_symbol_gets_one_slot_and_one_stub_however_often_it_is_used() {
    let mut object = Builder::with_text(&[0x90; 80]);
    let (host, memcpy) = (object.undefined("host"), object.undefined("memcpy"));
    for (index, kind) in [R_X86_64_PLT32, R_X86_64_GOTPCREL, R_X86_64_PC32, R_X86_64_GOTPCRELX].iter().enumerate() {
        object.relocation(1, 16 * index as u64, *kind, host, -4);
        object.relocation(1, 16 * index as u64 + 8, *kind, memcpy, -4);
    }
    let image = parse(&object.build()).unwrap();
    assert_eq!((image.sizes().rodata.size_bytes, image.sizes().code.size_bytes), (2 * 8, 80 + 2 * 8));
}

#[test]
fn relocations_of_type_none_are_passed_over() {
    let code = linked(&object(R_X86_64_NONE, 77, variable)).unwrap().code;
    assert_eq!(code, [0x90; 32]);
}

#[test]
fn the_null_symbol_is_the_number_0() {
    let code = linked(&object(R_X86_64_64, 42, |_| 0)).unwrap().code;
    assert_eq!(u64_at(&code, 8), 42);
}

#[test]
fn relocations_of_data_and_constants_are_applied_there() {
    let mut object = Builder::with_text(&[0xc3]);
    let data = object.section(".data", SHT_PROGBITS, DATA, 8, &[0; 8]);
    let rodata = object.section(".rodata", SHT_PROGBITS, SHF_ALLOC.0, 8, &[0; 8]);
    let function = object.function("f", 0, 1);
    object.relocation(data, 0, R_X86_64_64, function, 0);
    object.relocation(rodata, 4, R_X86_64_PC32, function, 0);
    let linked = linked(&object.build()).unwrap();
    assert_eq!(u64_at(&linked.data, 0), AT.code);
    assert_eq!(i32_at(&linked.rodata, 4), AT.code as i64 - (AT.rodata + 4) as i64);
}

#[test]
fn a_32_bit_field_takes_its_extremes_and_not_one_more() {
    for kind in [R_X86_64_PC32, R_X86_64_PLT32] {
        for extreme in [i64::from(i32::MAX), i64::from(i32::MIN)] {
            let code = linked(&object(kind, extreme - TO_VARIABLE, variable)).unwrap().code;
            assert_eq!(i32_at(&code, 8), extreme);
            let beyond = extreme + extreme.signum();
            let error = linked(&object(kind, beyond - TO_VARIABLE, variable)).unwrap_err();
            let CodeError::RelocationOverflow { value, at, .. } = &error else { panic!("{error}") };
            assert_eq!((*value, error.reason()), (i128::from(beyond), Reason::UnsupportedRelocation));
            assert_eq!((at.section.as_deref(), at.symbol.as_deref()), (Some(".text"), Some("variable")));
            assert_eq!(at.offset_bytes, Some(8));
        }
    }
}

#[test]
fn slots_and_stubs_overflow_with_an_error_that_names_their_symbol() {
    for kind in [R_X86_64_GOTPCREL, R_X86_64_GOTPCRELX, R_X86_64_REX_GOTPCRELX, R_X86_64_PLT32, R_X86_64_PC32] {
        for addend in [i64::MAX, i64::MIN, 1 << 31, -(1 << 32)] {
            let error = linked(&object(kind, addend, host)).unwrap_err();
            let CodeError::RelocationOverflow { at, .. } = &error else { panic!("{error}") };
            assert_eq!(at.symbol.as_deref(), Some("host"), "{kind:?} {addend}");
        }
    }
}

#[test]
fn a_64_bit_field_never_wraps() {
    let max = u64::MAX;
    assert_eq!(u64_at(&linked(&object(R_X86_64_64, -1, absolute(max))).unwrap().code, 8), max - 1);
    assert_eq!(u64_at(&linked(&object(R_X86_64_64, -1, absent)).unwrap().code, 8), max, "-1 is a 64-bit number");
    for (kind, addend, value) in [
        (R_X86_64_64, 1, max),
        (R_X86_64_64, i64::MAX, max),
        (R_X86_64_PC64, i64::MIN, 0),
        (R_X86_64_PC64, i64::MAX, max),
    ] {
        let error = linked(&object(kind, addend, absolute(value))).unwrap_err();
        assert!(matches!(error, CodeError::RelocationOverflow { .. }), "{error}");
    }
}

#[test]
fn a_near_reference_to_an_absent_weak_symbol_is_an_error_and_not_a_wrong_address() {
    let error = linked(&object(R_X86_64_PC32, -4, absent)).unwrap_err();
    let place = "in section .text at offset 0x8 for symbol absent";
    let text = format!("relocation R_X86_64_PC32 overflows: {} does not fit {place}", -4 - (AT.code + 8) as i64);
    assert_eq!(error.to_string(), text);
}

#[test]
fn parts_too_far_apart_are_an_error() {
    let image = parse(&object(R_X86_64_PLT32, -4, host)).unwrap();
    let error = link_at(&image, Addresses { rodata: AT.code + (1 << 40), ..AT }).unwrap_err();
    assert!(
        matches!(&error, CodeError::RelocationOverflow { at, .. } if at.symbol.as_deref() == Some("host")),
        "{error}"
    );
    link_at(&image, Addresses { rodata: AT.code + (1 << 30), ..AT }).unwrap();
}

#[test]
fn other_relocations_are_refused_by_name_with_a_hint() {
    let cases = [
        (10, "R_X86_64_32", "-fPIC"),
        (11, "R_X86_64_32S", "-fPIC"),
        (14, "R_X86_64_8", "below 2 GiB"),
        (37, "R_X86_64_IRELATIVE", "relocatable"),
        (51, "type 51", "relocatable"),
        (u32::MAX, "type 4294967295", "relocatable"),
    ];
    for (kind, name, hint) in cases {
        let error = linked(&object(RelocationType(kind), 0, variable)).unwrap_err();
        assert_eq!(error.reason(), Reason::UnsupportedRelocation);
        let text = error.to_string();
        let start = format!("unsupported relocation {name} in section .text at offset 0x8 for symbol variable: ");
        assert!(text.starts_with(&start) && text.contains(hint), "{text}");
    }
}

#[test]
fn the_types_that_are_offered_are_those_that_are_taken() {
    for kind in 1..64 {
        let name = super::super::RelocationName(kind).to_string();
        let result = linked(&object(RelocationType(kind), 0, absolute(1)));
        let is_refused = matches!(result, Err(CodeError::UnsupportedRelocation { .. }));
        assert_eq!(RELOCATIONS.contains(&name.as_str()), !is_refused, "{name}");
    }
}

#[test]
fn a_field_outside_of_its_section_is_malformed() {
    for (kind, offset) in [(R_X86_64_PC32, 29), (R_X86_64_64, 25), (R_X86_64_PC32, u64::MAX), (R_X86_64_64, 1 << 40)] {
        let mut object = Builder::with_text(&[0x90; 32]);
        let function = object.function("f", 0, 0);
        object.relocation(1, offset, kind, function, 0);
        let error = parse(&object.build()).unwrap_err();
        assert!(
            error.to_string().starts_with("malformed object: the relocation lies outside of its section"),
            "{error}"
        );
    }
    for (kind, offset) in [(R_X86_64_PC32, 28), (R_X86_64_64, 24)] {
        let mut object = Builder::with_text(&[0x90; 32]);
        let function = object.function("f", 0, 0);
        object.relocation(1, offset, kind, function, 0);
        linked(&object.build()).unwrap();
    }
}

#[test]
fn relocations_that_belong_to_nothing_are_malformed() {
    let malformed = |blob: &[u8], what: &str| {
        let error = parse(blob).unwrap_err();
        assert_eq!(error.reason(), Reason::MalformedObject);
        assert!(error.to_string().contains(what), "{error}");
    };
    malformed(&object(R_X86_64_PC32, 0, |_| 99), "for a symbol that does not exist");
    let good = object(R_X86_64_PC32, 0, variable);
    let patched = |field: usize, bytes: &[u8]| {
        let mut blob = good.clone();
        patch_section(&mut blob, 3, field, bytes); // 1 .text, 2 .data, 3 .rela, 4 .symtab
        blob
    };
    malformed(&patched(0x2c, &[99, 0, 0, 0]), "of a section that does not exist");
    malformed(&patched(0x28, &[1, 0, 0, 0]), "not of the symbol table");
    malformed(&patched(0x20, &[23, 0]), "not a whole number of entries");
    malformed(&patched(0x20, &[0xff, 0xff, 0xff]), "outside of the blob");
    let unsupported = parse(&patched(0x04, &[9, 0, 0, 0])).unwrap_err();
    assert!(unsupported.to_string().contains("only RELA"), "{unsupported}");
}

#[test]
fn relocations_of_zeros_are_malformed_and_of_unloaded_sections_ignored() {
    for (name, flags, kind) in [(".bss", DATA, SHT_NOBITS), (".debug", 0, SHT_PROGBITS), (".eh_frame", 2, SHT_PROGBITS)]
    {
        let mut object = Builder::with_text(&[0xc3]);
        let section = object.section(name, kind, flags, 8, &[0; 8]);
        let nothing = object.undefined("nothing offers this");
        object.relocation(section, 0, R_X86_64_64, nothing, 0);
        let result = parse(&object.build());
        assert_eq!(result.is_err(), name == ".bss", "{name} {result:?}");
    }
}

#[test]
fn relocations_are_counted_before_they_are_read() {
    let mut object = Builder::with_text(&[0x90; TEXT as usize * 8]);
    let function = object.function("f", 0, 0);
    (0..10).for_each(|_| object.relocation(1, 0, R_X86_64_PC32, function, 0));
    let blob = object.build();
    let parse = |relocations_max| {
        Image::parse_elf(&blob, &all_sections(), &imports(), &Limits { relocations_max, ..Limits::default() })
            .map(|_| ())
    };
    assert_eq!(parse(10), Ok(()));
    assert_eq!(parse(9), Err(CodeError::TooLarge { what: "relocations", value: 10, max: 9 }));
}
