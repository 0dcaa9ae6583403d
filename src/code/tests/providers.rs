//! Symbols of other entries, near and far.

use object::elf::*;

use super::super::{Provider, Reason, Symbol};
use super::builder::Builder;
use super::*;

/// Within reach of what runs at `AT`, and out of it.
const NEAR: Addresses = Addresses { code: 0x7f00_4000_0000, rodata: 0x7f00_5000_0000, data: 0x7f00_6000_0000 };
const FAR: Addresses = Addresses { code: 0x7e00_0000_0000, rodata: 0x7e00_1000_0000, data: 0x7e00_2000_0000 };

fn symbol(name: &str, part: PartKind, offset_bytes: u64) -> Symbol {
    Symbol {
        name: name.into(),
        part,
        is_function: part == PartKind::Code,
        offset_bytes,
        size_bytes: 24,
        signature: None,
    }
}

fn exports() -> Vec<Symbol> {
    vec![
        symbol("constant", PartKind::Rodata, 0x30),
        symbol("host", PartKind::Code, 0x20),
        symbol("square", PartKind::Code, 0x10),
        symbol("variable", PartKind::Data, 0x40),
    ]
}

/// An object whose `.text` of 32 bytes has one relocation at offset 8 for an undefined symbol.
fn object(kind: RelocationType, name: &str, addend: i64) -> Vec<u8> {
    let mut object = Builder::with_text(&[0x90; 32]);
    let symbol = object.undefined(name);
    object.relocation(1, 8, kind, symbol, addend);
    object.build()
}

fn parse_against(blob: &[u8], at: &[Addresses]) -> Result<Image, CodeError> {
    let symbols = exports();
    let providers: Vec<_> = at.iter().map(|&at| Provider { symbols: &symbols, at, has_thread: false }).collect();
    Image::parse_elf_against(blob, &all_sections(), &providers, &imports(), &Limits::default())
}

fn linked(blob: &[u8], at: Addresses) -> Result<Linked, CodeError> {
    write_at(&parse_against(blob, &[at])?, AT)
}

/// Where the stub at `address` of the code jumps to.
fn through_stub(linked: &Linked, address: u64) -> u64 {
    let at = (address - AT.code) as usize;
    assert_eq!(linked.code[at..at + 2], [0xff, 0x25]);
    u64_at(&linked.rodata, destination(&linked.code, at as u64 + 2) - AT.rodata)
}

#[test]
fn a_call_goes_straight_to_a_function_that_is_near_and_by_a_stub_to_one_that_is_far() {
    for kind in [R_X86_64_PLT32, R_X86_64_PC32] {
        let blob = object(kind, "square", -4);
        assert_eq!(destination(&linked(&blob, NEAR).unwrap().code, 8), NEAR.code + 0x10);
        let far = linked(&blob, FAR).unwrap();
        assert_eq!(through_stub(&far, destination(&far.code, 8)), FAR.code + 0x10);
    }
}

#[test]
fn data_is_addressed_directly_where_it_is_near_and_refused_with_what_to_do_where_it_is_far() {
    for (name, near, far) in [("variable", NEAR.data + 0x40, "variable"), ("constant", NEAR.rodata + 0x30, "constant")]
    {
        let blob = object(R_X86_64_PC32, name, -4);
        assert_eq!(destination(&linked(&blob, NEAR).unwrap().code, 8), near);
        let error = linked(&blob, FAR).unwrap_err();
        assert_eq!(error.reason(), Reason::UnsupportedRelocation);
        let text = error.to_string();
        assert!(text.contains(far) && text.contains("compile with -fPIC") && text.contains(".text"), "{text}");
    }
}

#[test]
fn slots_and_full_addresses_reach_data_and_functions_however_far() {
    for (name, address) in [("variable", FAR.data + 0x40), ("square", FAR.code + 0x10)] {
        let by_slot = linked(&object(R_X86_64_GOTPCREL, name, -4), FAR).unwrap();
        assert_eq!(u64_at(&by_slot.rodata, destination(&by_slot.code, 8) - AT.rodata), address);
        let direct = linked(&object(R_X86_64_64, name, 3), FAR).unwrap();
        assert_eq!(u64_at(&direct.code, 8), address + 3);
    }
}

#[test]
fn a_moved_call_still_leads_where_it_led_straight_or_by_its_stub() {
    let to = Addresses { code: AT.code + 0x10_0000, rodata: AT.rodata - 0x4000, data: AT.data };
    for (at, is_straight) in [(NEAR, true), (FAR, false)] {
        let image = parse_against(&object(R_X86_64_PLT32, "square", -4), &[at]).unwrap();
        let Linked { mut code, mut rodata, mut data } = write_at(&image, AT).unwrap();
        image.link_state().relink(AT, to, &mut code, &mut rodata, &mut data).unwrap();
        let there = write_at(&image, to).unwrap();
        assert_eq!(Linked { code, rodata, data }, there);
        let leads_to = to.code.wrapping_add_signed(12 + i32_at(&there.code, 8));
        assert_eq!(leads_to == at.code + 0x10, is_straight);
    }
    // Beyond its reach there is no way but to link it anew.
    let image = parse_against(&object(R_X86_64_PLT32, "square", -4), &[NEAR]).unwrap();
    let Linked { mut code, mut rodata, mut data } = write_at(&image, AT).unwrap();
    let moved = image.link_state().relink(AT, FAR, &mut code, &mut rodata, &mut data);
    assert_eq!(moved, Err(MoveError::OutOfReach { part: PartKind::Code, offset_bytes: 8 }));
}

#[test]
fn a_load_from_a_slot_stays_one_for_what_is_elsewhere() {
    let mut object = Builder::with_text(&[0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xc3]);
    let symbol = object.undefined("variable");
    object.relocation(1, 3, R_X86_64_REX_GOTPCRELX, symbol, -4);
    let linked = linked(&object.build(), NEAR).unwrap();
    assert_eq!(linked.code[1], 0x8b, "still a mov");
    assert_eq!(u64_at(&linked.rodata, destination(&linked.code, 3) - AT.rodata), NEAR.data + 0x40);
}

#[test]
fn own_symbols_come_first_then_providers_in_their_order_and_the_host_last() {
    let address = |blob: &[u8], at: &[Addresses]| {
        let linked = write_at(&parse_against(blob, at).unwrap(), AT).unwrap();
        u64_at(&linked.code, 8)
    };
    assert_eq!(address(&object(R_X86_64_64, "host", 0), &[FAR, NEAR]), FAR.code + 0x20);
    assert_eq!(address(&object(R_X86_64_64, "host", 0), &[NEAR, FAR]), NEAR.code + 0x20);
    assert_eq!(address(&object(R_X86_64_64, "host", 0), &[]), HOST);
    assert_eq!(address(&object(R_X86_64_64, "memcpy", 0), &[NEAR]), HOST + 0x1000);
    let mut own = Builder::with_text(&[0x90; 32]);
    let symbol = own.symbol("host", STB_WEAK, STT_FUNC, SymbolSection(1), 4, 4);
    own.relocation(1, 8, R_X86_64_64, symbol, 0);
    assert_eq!(address(&own.build(), &[NEAR]), AT.code + 4, "even a weak one");
}

#[test]
fn a_weak_symbol_is_what_a_provider_has_and_nothing_without_one() {
    let blob = |name: &str| {
        let mut object = Builder::with_text(&[0x90; 32]);
        let symbol = object.symbol(name, STB_WEAK, STT_NOTYPE, SHN_UNDEF, 0, 0);
        object.relocation(1, 8, R_X86_64_64, symbol, 0);
        object.build()
    };
    assert_eq!(u64_at(&linked(&blob("variable"), FAR).unwrap().code, 8), FAR.data + 0x40);
    assert_eq!(u64_at(&linked(&blob("nowhere"), FAR).unwrap().code, 8), 0);
}

#[test]
fn the_size_of_a_symbol_is_that_of_its_definition() {
    let linked = linked(&object(R_X86_64_SIZE64, "variable", 1), FAR).unwrap();
    assert_eq!(u64_at(&linked.code, 8), 25);
}

#[test]
fn what_no_provider_has_is_unresolved_and_local_symbols_are_not_looked_for() {
    let error = parse_against(&object(R_X86_64_PLT32, "cube", -4), &[NEAR]).unwrap_err();
    assert_eq!(error.reason(), Reason::UnresolvedSymbol);
    assert!(error.to_string().contains("cube"), "{error}");
    let mut object = Builder::with_text(&[0x90; 32]);
    let symbol = object.symbol("square", STB_LOCAL, STT_NOTYPE, SHN_UNDEF, 0, 0);
    object.relocation(1, 8, R_X86_64_64, symbol, 0);
    assert_eq!(parse_against(&object.build(), &[NEAR]).unwrap_err().reason(), Reason::UnresolvedSymbol);
}

#[test]
fn a_variable_of_the_thread_is_not_one_of_another_entry() {
    let error = linked(&object(R_X86_64_TPOFF32, "variable", 0), NEAR).unwrap_err();
    assert_eq!(error.reason(), Reason::MalformedObject);
}

#[test]
fn code_with_a_thread_pointer_of_its_own_is_not_linked_against_others_nor_they_against_it() {
    let symbols = exports();
    let parse = |blob: &[u8], has_thread: bool| {
        let provider = Provider { symbols: &symbols, at: NEAR, has_thread };
        Image::parse_elf_against(blob, &all_sections(), &[provider], &switched(), &Limits::default())
    };
    // mov %fs:0x34, %eax
    let touching = Builder::with_text(&[0x64, 0x8b, 0x04, 0x25, 0x34, 0, 0, 0, 0xc3]).build();
    let plain = object(R_X86_64_PLT32, "square", -4);
    assert!(parse(&plain, false).is_ok());
    let alone = Image::parse_elf(&touching, &all_sections(), &switched(), &Limits::default()).unwrap();
    assert!(alone.thread().is_some());
    for (blob, has_thread) in [(&touching, false), (&touching, true), (&plain, true)] {
        let error = parse(blob, has_thread).unwrap_err();
        assert_eq!(error.reason(), Reason::MalformedObject, "{error}");
        assert!(error.to_string().contains("entr"), "{error}");
    }
}
