use object::elf::*;

use super::builder::{Builder, RODATA, TEXT};
use super::*;

/// A common record as C++ compilers write it: personality in 4 bytes, language-specific data, relative addresses.
const COMMON: &[u8] = b"\x01zPLR\0\x01\x78\x10\x07\x9b\0\0\0\0\x1b\x1b\x0c\x07\x08\x90\x01";

fn keeping() -> Selection {
    Selection { keep_unwind: true, ..Selection::default() }
}

fn parse_keeping(blob: &[u8], selection: &Selection) -> Image {
    Image::parse_elf(blob, selection, &imports(), &Limits::default()).unwrap()
}

/// A record with its length before it, `kind` being what leads to its common record.
fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = 4 + body.len() as u32;
    [&length.to_le_bytes()[..], &kind.to_le_bytes(), body].concat()
}

/// Start and size of each function of a linked table, with its instructions up to the padding.
fn functions(image: &Image, linked: &Linked) -> Vec<(u64, u64, Vec<u8>)> {
    let range = image.unwind().unwrap();
    let table = &linked.rodata[range.start as usize..range.end as usize];
    assert_eq!(range.start % 8, 0);
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        let length = i32_at(table, at) as u64;
        if length == 0 {
            assert_eq!(at + 4, table.len() as u64, "the table ends with a zero");
            return found;
        }
        let back = i32_at(table, at + 4);
        if back == 0 {
            assert_eq!(&table[at as usize + 8..][..4], b"\x01zR\0");
        } else {
            let field = at + 8;
            let common = (at + 4) as i64 - back;
            assert_eq!(i32_at(table, common as u64 + 4), 0, "it leads to a common record");
            let start = (AT.rodata + range.start + field).checked_add_signed(i32_at(table, field)).unwrap();
            assert_eq!(table[at as usize + 16], 0, "no language-specific data");
            let body = table[at as usize + 17..(at + 4 + length) as usize].to_vec();
            found.push((start, i32_at(table, at + 12) as u64, body));
        }
        at += 4 + length;
    }
}

/// Two functions, `f` in `.text` and `g` in `.text.g`, each with a record.
fn two_functions() -> Builder {
    let mut object = Builder::with_text(&[0x90, 0x90, 0xc3]);
    let other = object.section(".text.g", SHT_PROGBITS, TEXT, 1, &[0x90, 0xc3]);
    let data = object.section(".gcc_except_table", SHT_PROGBITS, RODATA, 1, &[1, 2, 3]);
    object.function("f", 0, 3);
    object.symbol("g", STB_GLOBAL, STT_FUNC, SymbolSection(other), 0, 2);
    let personality = object.undefined("__gxx_personality_v0");
    let (text, other, data) = (object.section_symbol(1), object.section_symbol(other), object.section_symbol(data));
    let mut frames = record(0, COMMON);
    let mut fields = Vec::new();
    for (symbol, size) in [(text, 3_u32), (other, 2)] {
        let at = frames.len() as u32;
        fields.push((u64::from(at) + 8, symbol));
        let body = [&[0; 4][..], &size.to_le_bytes(), &[4, 0, 0, 0, 0, 0x41, 0x0e, 0x10]].concat();
        frames.extend(record(at + 4, &body));
    }
    frames.extend([0; 4]);
    let section = object.section(".eh_frame", SHT_X86_64_UNWIND, RODATA, 8, &frames);
    object.relocation(section, 8 + 11, R_X86_64_PC32, personality, 0);
    for (field, symbol) in fields {
        object.relocation(section, field, R_X86_64_PC32, symbol, 0);
        object.relocation(section, field + 9, R_X86_64_PC32, data, 0);
    }
    object
}

#[test]
fn each_function_is_in_the_table_where_it_runs_without_what_handlers_need() {
    let image = parse_keeping(&two_functions().build(), &keeping());
    assert_eq!(image.unwind_functions(), 2);
    let linked = link(&image);
    let found = functions(&image, &linked);
    let code = |name| AT.code + export(&image, name).1;
    let (f, g) = (&found[0], &found[1]);
    assert_eq!(((f.0, f.1), (g.0, g.1)), ((code("f"), 3), (code("g"), 2)));
    assert_eq!(f.2[..3], [0x41, 0x0e, 0x10]);
    assert!(f.2[3..].iter().all(|&byte| byte == 0), "padded with nothing to do");
}

#[test]
fn a_function_that_is_not_needed_is_not_in_the_table() {
    let selection = Selection { roots: vec!["g".to_owned()], ..keeping() };
    let image = parse_keeping(&two_functions().build(), &selection);
    assert_eq!(functions(&image, &link(&image)).len(), 1);
    assert_eq!(export(&image, "g").1, 0);
}

#[test]
fn a_table_is_there_only_if_it_is_asked_for() {
    let blob = two_functions().build();
    let image = parse_keeping(&blob, &Selection::default());
    assert_eq!((image.unwind(), image.unwind_functions()), (None, 0));
    assert!(parse_keeping(&blob, &keeping()).sizes().rodata.size_bytes > image.sizes().rodata.size_bytes);
    let mut none = Builder::with_text(&[0xc3]);
    none.function("f", 0, 1);
    assert_eq!(parse_keeping(&none.build(), &keeping()).unwind(), None);
}

#[test]
fn records_that_are_not_understood_are_left_out_and_the_code_stays() {
    let good = two_functions().build();
    let start = good.windows(COMMON.len()).position(|it| it == COMMON).unwrap() - 8;
    let whole = parse_keeping(&good, &keeping());
    for at in start..start + 82 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut blob = good.clone();
            blob[at] = value;
            let image = parse_keeping(&blob, &keeping());
            assert!(image.unwind_functions() <= 2 && image.sizes().code == whole.sizes().code);
            if image.unwind().is_some() {
                functions(&image, &link(&image));
            }
        }
    }
    // A personality of no known form.
    let mut blob = good;
    blob[start + 8 + 10] = 0x9d;
    assert_eq!(parse_keeping(&blob, &keeping()).unwind(), None);
}
