//! Addresses in 32 bits, which only what lies below 2 GiB has.

use object::elf::*;
use proptest::prelude::*;

use super::super::{Provider, Reason, Symbol};
use super::builder::{Builder, DATA, RODATA, TEXT};
use super::*;

/// Run addresses as the arena below 2 GiB gives them.
const LOW: Addresses = Addresses { code: 0x1000_0000, rodata: 0x1800_0000, data: 0x2000_0000 };
const KINDS: [RelocationType; 2] = [R_X86_64_32, R_X86_64_32S];

/// An object whose `.text` of 32 bytes has one relocation at offset 8 for the symbol that `symbol` adds.
fn object(kind: RelocationType, addend: i64, symbol: impl FnOnce(&mut Builder) -> u32) -> Vec<u8> {
    let mut object = Builder::with_text(&[0x90; 32]);
    object.section(".data", SHT_PROGBITS, DATA, 8, &[0; 16]);
    let symbol = symbol(&mut object);
    object.relocation(1, 8, kind, symbol, addend);
    object.build()
}

fn variable(object: &mut Builder) -> u32 {
    object.symbol("variable", STB_GLOBAL, STT_OBJECT, SymbolSection(2), 8, 8)
}

fn function(object: &mut Builder) -> u32 {
    object.function("function", 16, 8)
}

fn u32_at(bytes: &[u8], offset: u64) -> u64 {
    u32::from_le_bytes(bytes[offset as usize..][..4].try_into().unwrap()).into()
}

/// Linked below 2 GiB, where it must be.
fn linked(image: &Image) -> Result<Linked, CodeError> {
    assert!(image.needs_low());
    write_at(image, LOW)
}

#[test]
fn a_field_of_32_bits_holds_the_address_of_what_lies_below_2_gib() {
    type Adds = fn(&mut Builder) -> u32;
    for kind in KINDS {
        for (symbol, address) in [(variable as Adds, LOW.data + 8), (function, LOW.code + 16)] {
            for addend in [0, 5, -9] {
                let code = linked(&parse(&object(kind, addend, symbol)).unwrap()).unwrap().code;
                assert_eq!(u32_at(&code, 8), address.checked_add_signed(addend).unwrap(), "{kind:?} {addend}");
                assert_eq!(code.len(), 32, "no stub");
            }
        }
    }
}

#[test]
fn of_its_own_only_addresses_in_32_bits_make_an_image_need_low_ones() {
    let absolute = |object: &mut Builder| object.symbol("absolute", STB_GLOBAL, STT_NOTYPE, SHN_ABS, 7, 0);
    let absent = |object: &mut Builder| object.symbol("absent", STB_WEAK, STT_NOTYPE, SHN_UNDEF, 0, 0);
    let needs = |blob: &[u8]| parse(blob).unwrap().needs_low();
    for kind in KINDS {
        assert!(needs(&object(kind, 0, variable)));
        assert!(needs(&object(kind, 0, |object| object.undefined("_GLOBAL_OFFSET_TABLE_"))));
        assert!(needs(&object(kind, 0, |object| object.undefined("host"))), "its stub lies in the image");
        assert!(
            !needs(&object(kind, 0, absolute)) && !needs(&object(kind, 0, absent)) && !needs(&object(kind, 3, |_| 0))
        );
    }
    for kind in [R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_GOTPCREL, R_X86_64_16, R_X86_64_SIZE32] {
        assert!(!needs(&object(kind, -4, variable)), "{kind:?}");
    }
    assert!(!needs(SAMPLE) && parse(SAMPLE).unwrap().low_problem().is_none());
    let flat = Image::parse_flat(
        &[0xc3],
        vec![super::super::FlatEntry { name: "f".into(), offset_bytes: 0 }],
        &Limits::default(),
    );
    assert!(!flat.unwrap().needs_low());
}

#[test]
fn elsewhere_it_is_refused_with_the_place_and_both_ways_out() {
    for (kind, name) in KINDS.into_iter().zip(["R_X86_64_32", "R_X86_64_32S"]) {
        for (blob, symbol) in
            [(object(kind, 0, variable), "variable"), (object(kind, 0, |object| object.undefined("host")), "host")]
        {
            let image = parse(&blob).unwrap();
            let text = image.low_problem().unwrap().to_string();
            let start = format!("unsupported relocation {name} in section .text at offset 0x8 for symbol {symbol}: ");
            assert!(text.starts_with(&start) && text.contains("-fPIC") && text.contains("arena.low_bytes"), "{text}");
            let error = write_at(&image, AT).unwrap_err();
            assert_eq!((error.to_string(), error.reason()), (text, Reason::UnsupportedRelocation));
        }
    }
}

#[test]
fn each_of_the_two_takes_its_range_and_not_one_more() {
    // Where the field is 8 bytes into the code, `variable` is LOW.data + 8.
    let at = (LOW.data + 8) as i64;
    for (kind, least, most) in
        [(R_X86_64_32, 0, i64::from(u32::MAX)), (R_X86_64_32S, i64::from(i32::MIN), i64::from(i32::MAX))]
    {
        for value in [least, most] {
            let code = linked(&parse(&object(kind, value - at, variable)).unwrap()).unwrap().code;
            assert_eq!(u32_at(&code, 8), u64::from(value as u32), "{kind:?} {value}");
        }
        for beyond in [least - 1, most + 1] {
            let error = linked(&parse(&object(kind, beyond - at, variable)).unwrap()).unwrap_err();
            let CodeError::RelocationOverflow { value, at, .. } = &error else { panic!("{error}") };
            assert_eq!((*value, at.symbol.as_deref()), (i128::from(beyond), Some("variable")), "{kind:?}");
        }
    }
    for (kind, addend) in [(R_X86_64_32, i64::MIN), (R_X86_64_32S, i64::MAX)] {
        let image = parse(&object(kind, addend, variable)).unwrap();
        assert!(matches!(linked(&image), Err(CodeError::RelocationOverflow { .. })));
    }
}

#[test]
fn an_address_in_16_or_8_bits_is_refused_wherever_it_lies() {
    for kind in [R_X86_64_16, R_X86_64_8] {
        for at in [LOW, AT] {
            let text = write_at(&parse(&object(kind, 0, variable)).unwrap(), at).unwrap_err().to_string();
            assert!(text.starts_with("unsupported relocation") && text.contains("no code lies so low"), "{text}");
        }
    }
}

#[test]
fn the_address_of_a_host_function_is_that_of_its_stub_in_code_and_in_tables() {
    let mut object = Builder::with_text(&[0x90; 32]);
    let data = object.section(".data", SHT_PROGBITS, DATA, 8, &[0; 24]);
    let (host, memcpy) = (object.undefined("host"), object.undefined("memcpy"));
    object.relocation(1, 0, R_X86_64_32, host, 0);
    object.relocation(1, 8, R_X86_64_32S, host, 0);
    object.relocation(1, 16, R_X86_64_PLT32, host, -4);
    object.relocation(data, 0, R_X86_64_64, host, 0);
    object.relocation(data, 8, R_X86_64_64, memcpy, 0);
    object.relocation(data, 16, R_X86_64_64, host, 1);
    let image = parse(&object.build()).unwrap();
    let linked = linked(&image).unwrap();
    let stub = u32_at(&linked.code, 0);
    assert_eq!((stub, u32_at(&linked.code, 8)), (LOW.code + 32, stub));
    let called = (LOW.code + 16 + 4).checked_add_signed(i32_at(&linked.code, 16)).unwrap();
    assert_eq!((called, linked.code[32..34].to_vec()), (stub, vec![0xff, 0x25]));
    let slot = (stub + 6).checked_add_signed(i32_at(&linked.code, 34)).unwrap();
    assert_eq!(u64_at(&linked.rodata, slot - LOW.rodata), HOST, "the stub leads to the function");
    assert_eq!(u64_at(&linked.data, 0), stub, "one address for one function");
    assert_eq!(u64_at(&linked.data, 8), HOST + 0x1000, "whose address is not taken in 32 bits");
    assert_eq!(u64_at(&linked.data, 16), HOST + 1, "within it there is no stub");

    let within = parse(&self::object(R_X86_64_32, 1, |object| object.undefined("host"))).unwrap();
    let text = write_at(&within, LOW).unwrap_err().to_string();
    assert!(text.contains("of the host, which does not lie below 2 GiB"), "{text}");
}

fn provided(name: &str, part: PartKind) -> Symbol {
    let is_function = part == PartKind::Code;
    Symbol { name: name.into(), part, is_function, offset_bytes: 0x10, size_bytes: 24, signature: None }
}

fn parse_against(kind: RelocationType, name: &str, addend: i64, at: Addresses) -> Image {
    let symbols = [provided("square", PartKind::Code), provided("table", PartKind::Data)];
    let provider = Provider { symbols: &symbols, at, has_thread: false };
    let blob = object(kind, addend, |object| object.undefined(name));
    Image::parse_elf_against(&blob, &all_sections(), &[provider], &imports(), &Limits::default()).unwrap()
}

#[test]
fn what_another_entry_has_below_2_gib_is_addressed_directly_and_its_functions_elsewhere_by_a_stub() {
    let other = Addresses { code: 0x4000_0000, rodata: 0x4800_0000, data: 0x5000_0000 };
    for kind in KINDS {
        for (name, address) in [("square", other.code + 0x10), ("table", other.data + 0x10)] {
            let image = parse_against(kind, name, 0, other);
            assert!(!image.needs_low(), "the field is the same wherever the code lies");
            for at in [LOW, AT] {
                assert_eq!(u32_at(&write_at(&image, at).unwrap().code, 8), address, "{name}");
            }
        }
        let linked = linked(&parse_against(kind, "square", 0, AT)).unwrap();
        assert_eq!((u32_at(&linked.code, 8), u64_at(&linked.rodata, 0)), (LOW.code + 32, AT.code + 0x10));
        for (name, addend) in [("table", 0), ("square", 4)] {
            let text = write_at(&parse_against(kind, name, addend, AT), LOW).unwrap_err().to_string();
            assert!(text.contains("of another entry, which does not lie below 2 GiB") && text.contains(name), "{text}");
        }
    }
}

#[test]
fn who_is_near_what_another_entry_has_below_2_gib_must_lie_there_too() {
    for kind in [R_X86_64_PC32, R_X86_64_PLT32] {
        // To data no stub leads, nor into the middle of a function.
        for (name, addend, address) in [("table", 0, LOW.data + 0x10), ("square", 4, LOW.code + 0x10)] {
            let there = Addresses { code: 0x4000_0000, rodata: 0x4800_0000, data: 0x5000_0000 };
            let image = parse_against(kind, name, addend, LOW);
            assert!(image.needs_low(), "{kind:?} {name}");
            let field = i32_at(&write_at(&image, there).unwrap().code, 8);
            assert_eq!((there.code + 8).checked_add_signed(field - addend), Some(address), "{kind:?} {name}");
            assert!(!parse_against(kind, name, addend, AT).needs_low(), "{kind:?} {name}");
        }
        assert!(!parse_against(kind, "square", -4, LOW).needs_low(), "a call has a stub");
    }
    for kind in [R_X86_64_GOTPCREL, R_X86_64_PC64] {
        assert!(!parse_against(kind, "table", -4, LOW).needs_low(), "{kind:?} reaches it from anywhere");
    }
}

/// Fields of 32 and 64 bits with addresses of all parts, of the host's function, and of nothing that moves.
fn all_kinds() -> Vec<u8> {
    let mut object = Builder::with_text(&[0x90; 128]);
    let data = object.section(".data", SHT_PROGBITS, DATA, 8, &[7; 64]);
    let rodata = object.section(".rodata", SHT_PROGBITS, RODATA, 8, &[9; 64]);
    let second = object.section(".text.second", SHT_PROGBITS, TEXT, 16, &[0x90; 64]);
    let symbols = [
        object.symbol("function", STB_GLOBAL, STT_FUNC, SymbolSection(second), 3, 1),
        object.symbol("variable", STB_GLOBAL, STT_OBJECT, SymbolSection(data), 8, 8),
        object.symbol("constant", STB_GLOBAL, STT_OBJECT, SymbolSection(rodata), 8, 8),
        object.undefined("host"),
    ];
    let absolute = object.symbol("absolute", STB_GLOBAL, STT_NOTYPE, SHN_ABS, 5, 0);
    for (at, &symbol) in symbols.iter().enumerate() {
        let at = 16 * at as u64;
        for section in [1, data, rodata] {
            object.relocation(section, at, R_X86_64_32, symbol, 0);
            object.relocation(section, at + 4, R_X86_64_32S, symbol, 0);
            object.relocation(section, at + 8, R_X86_64_64, symbol, 0);
        }
        object.relocation(1, 64 + at, R_X86_64_PLT32, symbol, -4);
        object.relocation(1, 64 + at + 4, R_X86_64_32S, absolute, -9);
        object.relocation(1, 64 + at + 8, R_X86_64_PC32, symbol, -4);
    }
    object.build()
}

/// Addresses of parts below 2 GiB.
fn low_addresses() -> impl Strategy<Value = Addresses> {
    let part = || (0x100_u64..0x7fff).prop_map(|it| it << 16);
    (part(), part(), part()).prop_map(|(code, rodata, data)| Addresses { code, rodata, data })
}

proptest! {
    #[test]
    fn a_moved_image_is_what_linking_makes_there(from in low_addresses(), to in low_addresses()) {
        let image = parse(&all_kinds()).unwrap();
        let Linked { mut code, mut rodata, mut data } = write_at(&image, from).unwrap();
        image.link_state().relink(from, to, &mut code, &mut rodata, &mut data).unwrap();
        prop_assert_eq!(Linked { code, rodata, data }, write_at(&image, to).unwrap());
    }
}

#[test]
fn what_is_moved_out_of_the_range_of_a_field_is_told_where() {
    for (kind, last) in [(R_X86_64_32, u64::from(u32::MAX)), (R_X86_64_32S, i32::MAX as u64)] {
        let image = parse(&object(kind, 0, variable)).unwrap();
        let moved = |data: u64| {
            let Linked { mut code, mut rodata, data: mut bytes } = linked(&image).unwrap();
            let to = Addresses { data, ..LOW };
            image.link_state().relink(LOW, to, &mut code, &mut rodata, &mut bytes).map(|()| u32_at(&code, 8))
        };
        assert_eq!(moved(last - 8), Ok(last), "{kind:?}");
        let beyond = MoveError::OutOfReach { part: PartKind::Code, offset_bytes: 8 };
        assert_eq!((moved(last - 7), moved(AT.data)), (Err(beyond), Err(beyond)), "{kind:?}");
    }
}

#[test]
fn a_function_that_chooses_its_implementation_has_its_stubs_address_in_32_bits_too() {
    let mut object = Builder::with_text(&[0xc3; 32]);
    let chosen = object.symbol("chosen", STB_GLOBAL, STT_GNU_IFUNC, SymbolSection(1), 0, 1);
    object.relocation(1, 8, R_X86_64_32, chosen, 0);
    let linked = linked(&parse(&object.build()).unwrap()).unwrap();
    let stub = u32_at(&linked.code, 8) - LOW.code;
    assert_eq!(linked.code[stub as usize..][..2], [0xff, 0x25]);
}
