use object::elf::*;

use super::super::Reason;
use super::builder::{Builder, DATA, RODATA, TEXT, patch_section};
use super::*;

/// An object with `.text` and one section more.
fn with_section(name: &str, kind: SectionType, flags: u64, bytes: &[u8]) -> Vec<u8> {
    let mut object = Builder::with_text(&[0xc3]);
    object.section(name, kind, flags, 1, bytes);
    object.function("f", 0, 1);
    object.build()
}

fn error_text(blob: &[u8]) -> String {
    parse(blob).unwrap_err().to_string()
}

#[test]
fn sections_go_to_a_part_by_their_flags() {
    let cases = [
        (".text.hot", TEXT, [1 + 8, 0, 0]),
        ("anything", TEXT, [1 + 8, 0, 0]),
        (".rodata.str1.1", RODATA | SHF_MERGE.0 | SHF_STRINGS.0, [1, 8, 0]),
        (".data.rel.ro.local", DATA, [1, 8, 0]),
        (".data.rel.local", DATA, [1, 0, 8]),
        (".ldata", DATA | 0x1000_0000, [1, 0, 8]),
        (".comment", 0, [1, 0, 0]),
        (".debug_info", SHF_COMPRESSED.0, [1, 0, 0]),
        (".eh_frame", RODATA, [1, 0, 0]),
        (".gcc_except_table.f", RODATA, [1, 0, 0]),
        (".discard", DATA | SHF_EXCLUDE.0, [1, 0, 0]),
    ];
    for (name, flags, expected) in cases {
        let sizes = parse(&with_section(name, SHT_PROGBITS, flags, &[7; 8])).unwrap().sizes();
        let bytes = [sizes.code, sizes.rodata, sizes.data].map(|part| part.size_bytes);
        assert_eq!(bytes, expected, "{name}");
    }
}

#[test]
fn what_starts_as_zero_lies_behind_all_data_wherever_it_stands_in_the_file() {
    let mut object = Builder::with_text(&[0xc3]);
    object.zeros(".bss", DATA, 32, 100);
    object.section(".data", SHT_PROGBITS, DATA, 4, &[1, 2, 3]);
    let image = parse(&object.build()).unwrap();
    assert_eq!((image.data_init_bytes(), image.sizes().data.size_bytes), (3, 32 + 100));
    assert_eq!(image.sizes().data.align_bytes, 32);
    assert_eq!(link(&image).data[..4], [1, 2, 3, 0]);
}

#[test]
fn sections_that_need_what_is_not_done_here_are_refused_by_name() {
    let cases = [
        (".text.tls", SHT_PROGBITS, TEXT | SHF_TLS.0, "code cannot be thread-local"),
        (".zdata", SHT_PROGBITS, DATA | SHF_COMPRESSED.0, "compressed"),
        (".init", SHT_PROGBITS, TEXT, "use a constructor"),
        (".init_array", SHT_INIT_ARRAY, DATA | SHF_COMPRESSED.0, "compressed"),
        (".both", SHT_PROGBITS, TEXT | DATA, "both writable and executable"),
        (".dynamic", SHT_DYNAMIC, DATA, "unknown type"),
        (".mine", SectionType(0x6abc_def0), RODATA, "unknown type"),
    ];
    for (name, kind, flags, what) in cases {
        let error = parse(&with_section(name, kind, flags, &[0; 8])).unwrap_err();
        assert!(matches!(error, CodeError::Unsupported { .. }), "{error}");
        assert_eq!(error.location().unwrap().section.as_deref(), Some(name));
        assert!(error.to_string().contains(what), "{error}");
        parse(&with_section(name, kind, flags, &[])).expect("empty, such a section asks for nothing");
    }
}

#[test]
fn zeros_cannot_be_code_and_bytecode_cannot_run() {
    let mut object = Builder::with_text(&[0xc3]);
    object.zeros(".text.zeros", TEXT, 1, 8);
    assert!(error_text(&object.build()).contains("code cannot start as zeros in section .text.zeros"));
    let mut object = Builder::with_text(&[]);
    object.section(".gnu.lto_.decls", SHT_PROGBITS, 0, 1, &[1]);
    assert!(error_text(&object.build()).contains("-fno-lto"));
}

#[test]
fn alignments_are_powers_of_two_up_to_a_page() {
    let parse = |align: u64| {
        let mut object = Builder::with_text(&[0xc3]);
        object.zeros(".bss", DATA, align, 1);
        super::parse(&object.build()).map(|image| image.sizes().data.align_bytes)
    };
    assert_eq!((parse(0), parse(1), parse(4096)), (Ok(1), Ok(1), Ok(4096)));
    let error = parse(3).unwrap_err();
    assert_eq!(error.to_string(), "malformed object: an alignment is not a power of two in section .bss");
    assert_eq!(parse(8192), Err(CodeError::TooLarge { what: "bytes of alignment", value: 8192, max: 4096 }));
    assert_eq!(parse(1 << 63).unwrap_err().reason(), Reason::BlobTooLarge);
}

#[test]
fn an_image_cannot_be_larger_than_its_limit_whatever_the_blob_asks_for() {
    let limits = Limits { image_max_bytes: 10_000, ..Limits::default() };
    let bss = |sizes: &[u64], common: u64| {
        let mut object = Builder::with_text(&[0xc3]);
        sizes.iter().for_each(|&size| _ = object.zeros(".bss", DATA, 4096, size));
        object.symbol("common", STB_GLOBAL, STT_OBJECT, SHN_COMMON, 1, common);
        Image::parse_elf(&object.build(), &all_sections(), &imports(), &limits)
            .map(|image| image.sizes().data.size_bytes)
    };
    assert_eq!(bss(&[9_998], 1), Ok(9_999));
    assert_eq!(bss(&[9_998], 2), Err(CodeError::TooLarge { what: "bytes of the image", value: 10_001, max: 10_000 }));
    assert_eq!(bss(&[1, 1, 1], 1), Ok(8194), "padding counts");
    for sizes in [&[1, 1, 1, 1][..], &[u64::MAX], &[1, u64::MAX - 1], &[u64::MAX, u64::MAX]] {
        assert_eq!(bss(sizes, 0).unwrap_err().reason(), Reason::BlobTooLarge, "{sizes:?}");
    }
    assert_eq!(bss(&[], u64::MAX).unwrap_err().reason(), Reason::BlobTooLarge);
}

#[test]
fn sections_cannot_share_their_bytes_to_multiply_them() {
    let mut object = Builder::with_text(&[0x90; 4096]);
    let second = object.section(".text.2", SHT_PROGBITS, TEXT, 1, &[0x90; 16]);
    let mut blob = object.build();
    patch_section(&mut blob, second, 0x18, &64u64.to_le_bytes());
    patch_section(&mut blob, second, 0x20, &4096u64.to_le_bytes());
    assert_eq!(error_text(&blob), "malformed object: sections share their contents");
}

#[test]
fn contents_outside_of_the_blob_are_malformed() {
    for (field, value) in [(0x18, 1 << 20), (0x20, 1 << 20), (0x18, u64::MAX), (0x20, u64::MAX)] {
        let mut blob = with_section(".rodata", SHT_PROGBITS, RODATA, &[1; 8]);
        patch_section(&mut blob, 2, field, &u64::to_le_bytes(value));
        assert_eq!(error_text(&blob), "malformed object: the section lies outside of the blob in section .rodata");
    }
}

#[test]
fn files_that_are_no_object_are_told_from_objects_for_another_target() {
    let good = with_section(".rodata", SHT_PROGBITS, RODATA, &[1; 8]);
    let patched = |offset: usize, byte: u8| {
        let mut blob = good.clone();
        blob[offset] = byte;
        parse(&blob).unwrap_err()
    };
    for (offset, byte, what) in
        [(4, 1, "class"), (5, 2, "data encoding"), (7, 9, "OS ABI"), (16, 3, "type"), (18, 183, "machine")]
    {
        let error = patched(offset, byte);
        assert_eq!(error.reason(), Reason::TargetMismatch, "{error}");
        assert!(error.to_string().contains(&format!("{what} is {byte}")), "{error}");
    }
    for (offset, byte) in [(0, 0), (6, 7), (41, 0xff), (58, 40), (62, 0xee)] {
        assert_eq!(patched(offset, byte).reason(), Reason::MalformedObject, "byte {offset}");
    }
    for blob in [&b"!<arch>\n"[..], b"\x7fELF", b"BC\xc0\xde1234", &good[..63], &good[..200], b""] {
        assert_eq!(parse(blob).unwrap_err().reason(), Reason::MalformedObject, "{} bytes", blob.len());
    }
}

#[test]
fn blob_and_section_counts_are_bounded() {
    let good = with_section(".rodata", SHT_PROGBITS, RODATA, &[1; 8]);
    let parse = |limits: Limits| Image::parse_elf(&good, &all_sections(), &imports(), &limits).map(|_| ());
    let (bytes, sections, symbols) = (good.len() as u64, 5, 2);
    let exact = Limits { blob_max_bytes: bytes, sections_max: sections, symbols_max: symbols, ..Limits::default() };
    assert_eq!(parse(exact), Ok(()));
    let too_large = |what, value: u64| Err(CodeError::TooLarge { what, value, max: value - 1 });
    assert_eq!(parse(Limits { blob_max_bytes: bytes - 1, ..exact }), too_large("bytes of the blob", bytes));
    assert_eq!(parse(Limits { sections_max: sections - 1, ..exact }), too_large("sections", u64::from(sections)));
    assert_eq!(parse(Limits { symbols_max: symbols - 1, ..exact }), too_large("symbols", u64::from(symbols)));
    let names = parse(Limits { symbol_name_max_bytes: 6, ..exact }).unwrap_err();
    assert_eq!(names.reason(), Reason::BlobTooLarge, ".rodata has 7 bytes");
}
