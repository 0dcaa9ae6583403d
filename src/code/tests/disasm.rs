use proptest::collection::vec;
use proptest::prelude::*;

use super::super::{Function, Listing, Symbol, call_text, instruction_text};
use super::*;

fn function(name: &str, offset_bytes: u64, size_bytes: u64) -> Function {
    Function { name: name.into(), offset_bytes, size_bytes }
}

/// call g; lea rdi, [rip + x] (`table` + 4); je f; mov [rip + x], eax (`count`); ret, all of `f`; then `g`: ret.
fn code() -> Vec<u8> {
    let relative = |from: u64, to: u64| (to.wrapping_sub(AT.code + from) as i32).to_le_bytes();
    [
        &[0xe8][..],
        &relative(5, AT.code + 21),
        &[0x48, 0x8d, 0x3d],
        &relative(12, AT.rodata + 0x44),
        &[0x74, 0xf2, 0x89, 0x05],
        &relative(20, AT.data + 8),
        &[0xc3, 0xc3],
    ]
    .concat()
}

fn symbols() -> Vec<Symbol> {
    let symbol = |name: &str, part, offset_bytes, size_bytes| Symbol {
        name: name.into(),
        part,
        is_function: false,
        offset_bytes,
        size_bytes,
        signature: None,
    };
    vec![symbol("count", PartKind::Data, 8, 4), symbol("table", PartKind::Rodata, 0x40, 16)]
}

#[test]
fn addresses_of_functions_and_symbols_are_named() {
    let (code, functions, symbols) = (code(), [function("f", 0, 21), function("g", 21, 0)], symbols());
    let listing = Listing::new(AT, code.len() as u64, &functions, &symbols);
    let lines = listing.lines(&code, 0, 100);
    let texts: Vec<&str> = lines.iter().map(|line| &*line.text).collect();
    let expected = ["call g", "lea rdi, [table+4]", "je f", "mov dword ptr [count], eax", "ret", "ret"];
    assert_eq!(texts, expected);
    let places: Vec<_> = lines.iter().map(|line| (line.offset_bytes, line.size_bytes)).collect();
    assert_eq!(places, [(0, 5), (5, 7), (12, 2), (14, 6), (20, 1), (21, 1)]);
    assert_eq!((listing.starts(0), listing.starts(20), listing.starts(21)), (Some("f"), None, Some("g")));
    assert_eq!(listing.extent("f"), Some(0..21));
    assert_eq!(listing.extent("g"), Some(21..22), "to the end of the code");
    assert_eq!(listing.extent("h"), None);
    assert_eq!(listing.lines(&code[21..], 21, 100)[0], lines[5]);
    assert_eq!(listing.lines(&code, 0, 2), lines[..2]);
}

#[test]
fn what_is_not_known_is_an_address() {
    let code = code();
    let listing = Listing::new(AT, code.len() as u64, &[], &[]);
    let texts: Vec<String> = listing.lines(&code, 0, 4).into_iter().map(|line| line.text).collect();
    let expected = [
        "call 0x7f0000000015",
        "lea rdi, [0x7f0010000044]",
        "je 0x7f0000000000",
        "mov dword ptr [0x7f0020000008], eax",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn a_number_that_is_equal_to_an_address_is_not_named() {
    // movabs rax, address of f; the address is no target of the instruction.
    let code = [&[0x48, 0xb8][..], &AT.code.to_le_bytes()].concat();
    let functions = [function("f", 0, 0)];
    let lines = Listing::new(AT, code.len() as u64, &functions, &[]).lines(&code, 0, 1);
    assert_eq!(lines[0].text, "mov rax, 0x7f0000000000");
}

#[test]
fn long_and_strange_names_are_cut_and_escaped() {
    let functions = [function(&format!("\x1b[2J{}", "n".repeat(500)), 0, 0)];
    let text = &Listing::new(AT, 2, &functions, &[]).lines(&[0xeb, 0xfe], 0, 1)[0].text;
    assert!(text.starts_with("jmp \\x1b[2Jn") && text.len() < 120, "{text}");
}

#[test]
fn one_instruction_is_read_as_it_stands() {
    assert_eq!(instruction_text(&[0x48, 0x8b, 0x07, 0xff, 0xff], 0x1000), "mov rax, qword ptr [rdi]");
    assert_eq!(instruction_text(&[0x0f, 0x0b], 0), "ud2");
    assert_eq!(instruction_text(&[0xeb, 0xfe], 0x1000), "jmp 0x1000");
    assert_eq!(instruction_text(&[0x06], 0), "(bad)");
    assert_eq!(instruction_text(&[0x48], 0), "(bad)", "the rest is missing");
    assert_eq!(instruction_text(&[], 0), "");
}

#[test]
fn a_call_is_found_backwards_from_where_it_returns_to() {
    let cases: &[(&[u8], &str)] = &[
        (&[0x90, 0xe8, 0x10, 0, 0, 0], "call 0x1010"),
        (&[0x90, 0xff, 0x15, 0x10, 0, 0, 0], "call qword ptr [0x1010]"),
        (&[0x90, 0x90, 0x90, 0x41, 0xff, 0xd3], ""), // or is it the end of something, and `call rbx`
        (&[0x90, 0x90], ""),
        (&[], ""),
    ];
    for (bytes, text) in cases {
        assert_eq!(call_text(bytes, 0x1000), *text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_is_in_one_line(code in vec(any::<u8>(), 1..300), places in vec(0..300u64, 0..6)) {
        let mut functions: Vec<_> = places.iter().map(|&place| function("f", place, 0)).collect();
        functions.sort_by_key(|function| function.offset_bytes);
        let lines = Listing::new(AT, code.len() as u64, &functions, &[]).lines(&code, 0, usize::MAX);
        let mut end = 0;
        for line in &lines {
            prop_assert_eq!(line.offset_bytes, end);
            prop_assert!((1..=15).contains(&line.size_bytes));
            end += line.size_bytes;
        }
        prop_assert_eq!(end, code.len() as u64);
        let _ = (instruction_text(&code, AT.code), call_text(&code, AT.code));
    }
}
