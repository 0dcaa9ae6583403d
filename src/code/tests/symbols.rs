use object::elf::*;

use super::super::Reason;
use super::builder::{Builder, DATA, TEXT};
use super::*;

/// Adds to an object what a test is about.
type Add<'a> = &'a dyn Fn(&mut Builder);

fn names(image: &Image) -> Vec<&str> {
    image.symbols().iter().map(|symbol| &*symbol.name).collect()
}

#[test]
fn global_and_weak_definitions_are_exported_unless_hidden() {
    let mut object = Builder::with_text(&[0x90; 16]);
    let text = SymbolSection(1);
    object.symbol("local", STB_LOCAL, STT_FUNC, text, 0, 4);
    for (name, bind, visibility) in [
        ("weak", STB_WEAK, STV_DEFAULT),
        ("hidden", STB_GLOBAL, STV_HIDDEN),
        ("internal", STB_GLOBAL, STV_INTERNAL),
        ("protected", STB_GLOBAL, STV_PROTECTED),
        ("unique", STB_GNU_UNIQUE, STV_DEFAULT),
    ] {
        let symbol = object.symbol(name, bind, STT_FUNC, text, 4, 4);
        object.visibility(symbol, visibility);
    }
    object.symbol("number", STB_GLOBAL, STT_NOTYPE, SHN_ABS, 5, 0);
    object.symbol("file.c", STB_LOCAL, STT_FILE, SHN_ABS, 0, 0);
    object.undefined("never used");
    let image = parse(&object.build()).unwrap();
    assert_eq!(names(&image), ["protected", "unique", "weak"]);
    assert_eq!(image.functions().len(), 6);
}

#[test]
fn only_code_that_is_not_declared_otherwise_is_a_function() {
    let mut object = Builder::with_text(&[0x90; 16]);
    object.section(".data", SHT_PROGBITS, DATA, 1, &[0; 16]);
    let (text, data) = (SymbolSection(1), SymbolSection(2));
    object.symbol("a function", STB_GLOBAL, STT_FUNC, text, 0, 0);
    object.symbol("bare label", STB_GLOBAL, STT_NOTYPE, text, 4, 0);
    object.symbol("constant in code", STB_GLOBAL, STT_OBJECT, text, 8, 8);
    object.symbol("data function", STB_GLOBAL, STT_FUNC, data, 0, 0);
    object.symbol("end of code", STB_GLOBAL, STT_NOTYPE, text, 16, 0);
    object.symbol("end of data", STB_GLOBAL, STT_NOTYPE, data, 16, 0);
    let image = parse(&object.build()).unwrap();
    let functions: Vec<&str> = image.symbols().iter().filter(|s| s.is_function).map(|s| &*s.name).collect();
    assert_eq!(names(&image).len(), 6);
    assert_eq!(functions, ["a function", "bare label"]);
}

#[test]
fn offsets_count_from_the_start_of_the_part() {
    let mut object = Builder::with_text(&[0x90; 5]);
    let second = object.section(".text.second", SHT_PROGBITS, TEXT, 16, &[0x90; 8]);
    object.symbol("second", STB_GLOBAL, STT_FUNC, SymbolSection(second), 3, 5);
    let image = parse(&object.build()).unwrap();
    let symbol = &image.symbols()[0];
    assert_eq!((symbol.part, symbol.offset_bytes, symbol.size_bytes), (PartKind::Code, 16 + 3, 5));
}

#[test]
fn common_symbols_are_aligned_zeros_behind_bss() {
    let mut object = Builder::with_text(&[0xc3]);
    object.zeros(".bss", DATA, 1, 3);
    object.symbol("first", STB_GLOBAL, STT_OBJECT, SHN_COMMON, 16, 10);
    object.symbol("second", STB_GLOBAL, STT_COMMON, SHN_COMMON, 4, 4);
    object.symbol("third", STB_GLOBAL, STT_OBJECT, SymbolSection(0xff02), 0, 1);
    let image = parse(&object.build()).unwrap();
    let at = |name| export(&image, name);
    assert_eq!(at("first"), (PartKind::Data, 16));
    assert_eq!(at("second"), (PartKind::Data, 28));
    assert_eq!(at("third"), (PartKind::Data, 32));
    assert_eq!((image.data_init_bytes(), image.sizes().data.size_bytes), (0, 33));
}

#[test]
fn a_common_symbol_with_a_crooked_alignment_is_malformed() {
    let mut object = Builder::with_text(&[0xc3]);
    object.symbol("crooked", STB_GLOBAL, STT_OBJECT, SHN_COMMON, 24, 8);
    let text = parse(&object.build()).unwrap_err().to_string();
    assert_eq!(text, "malformed object: an alignment is not a power of two for symbol crooked");
}

#[test]
fn a_definition_of_the_object_comes_before_an_import_of_that_name() {
    let mut object = Builder::with_text(&[0x90; 16]);
    let host = object.function("host", 8, 0);
    object.relocation(1, 0, R_X86_64_64, host, 0);
    let linked = link(&parse(&object.build()).unwrap());
    assert_eq!(u64_at(&linked.code, 0), AT.code + 8);
}

#[test]
fn a_weak_symbol_that_is_offered_is_imported() {
    let mut object = Builder::with_text(&[0x90; 16]);
    let host = object.symbol("host", STB_WEAK, STT_NOTYPE, SHN_UNDEF, 0, 0);
    object.relocation(1, 0, R_X86_64_64, host, 0);
    assert_eq!(u64_at(&link(&parse(&object.build()).unwrap()).code, 0), HOST);
}

#[test]
fn unresolved_symbols_are_counted_once_each_and_shown_up_to_a_bound() {
    let mut object = Builder::with_text(&[0x90; 16]);
    let host_alone = object.symbol("host", STB_LOCAL, STT_NOTYPE, SHN_UNDEF, 0, 0);
    object.relocation(1, 0, R_X86_64_64, host_alone, 0);
    for index in 0..40 {
        let symbol = object.undefined(&format!("missing\n{index:02}{}", "x".repeat(200)));
        (0..2).for_each(|_| object.relocation(1, 0, R_X86_64_64, symbol, 0));
    }
    let error = parse(&object.build()).unwrap_err();
    assert!(error.to_string().len() < 4096 && !error.to_string().contains('\n'), "{error}");
    let CodeError::UnresolvedSymbols { names, total } = error else { panic!("{error}") };
    assert_eq!((names.len(), total), (CodeError::UNRESOLVED_SHOWN_MAX, 41));
    assert_eq!(names[0], "host", "a local symbol cannot be imported");
    assert!(names[31].starts_with(r"missing\n30xxx") && names[31].ends_with("x..."), "{}", names[31]);
}

#[test]
fn an_unresolved_symbol_is_shown_with_the_import_that_is_nearest() {
    let mut object = Builder::with_text(&[0x90; 16]);
    for name in ["memcyp", "inflate"] {
        let symbol = object.undefined(name);
        object.relocation(1, 0, R_X86_64_PLT32, symbol, 0);
    }
    let imports = ImportTable::new([("memcpy", 1), ("memset", 2)]);
    let error = Image::parse_elf(&object.build(), &all_sections(), &imports, &Limits::default()).unwrap_err();
    let expected = "unresolved symbols: memcyp (nearest offered: memcpy), inflate (2 in all)";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn symbols_that_need_what_is_not_done_here_are_refused() {
    let unloaded = |object: &mut Builder| {
        let section = object.section(".eh_frame", SHT_PROGBITS, 2, 8, &[0; 8]);
        let symbol = object.symbol("frames", STB_LOCAL, STT_OBJECT, SymbolSection(section), 0, 0);
        object.relocation(1, 0, R_X86_64_PC32, symbol, 0);
    };
    let cases: [(Add, &str, &str); 1] = [(&unloaded, "frames", "a section that is not loaded")];
    for (add, name, what) in cases {
        let mut object = Builder::with_text(&[0x90; 16]);
        add(&mut object);
        let error = parse(&object.build()).unwrap_err();
        assert!(matches!(error, CodeError::Unsupported { .. }), "{error}");
        assert_eq!(error.location().unwrap().symbol.as_deref(), Some(name));
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn malformed_symbols_are_named() {
    let global = |name: &'static str, section: u16, value, size| {
        move |object: &mut Builder| {
            object.symbol(name, STB_GLOBAL, STT_FUNC, SymbolSection(section), value, size);
        }
    };
    let binding = |object: &mut Builder| {
        object.symbol("odd", SymbolBind(13), STT_FUNC, SymbolSection(1), 0, 0);
    };
    let twice = |object: &mut Builder| (0..2).for_each(|_| _ = object.function("twice", 0, 0));
    let cases: [(Add, &str); 9] = [
        (&global("far", 1, 17, 0), "outside of its section in section .text at offset 0x11 for symbol far"),
        (&global("long", 1, 8, 9), "outside of its section in section .text at offset 0x8 for symbol long"),
        (&global("wrap", 1, u64::MAX, 9), "outside of its section"),
        (&global("lost", 77, 0, 0), "of a section that does not exist for symbol lost"),
        (&global("reserved", 0xff20, 0, 0), "of a section that does not exist for symbol reserved"),
        (&global("extended", 0xffff, 0, 0), "of a section that does not exist for symbol extended"),
        (&global("", 1, 0, 0), "an exported symbol has no name"),
        (&binding, "unknown binding for symbol odd"),
        (&twice, "defined twice for symbol twice"),
    ];
    for (add, what) in cases {
        let mut object = Builder::with_text(&[0x90; 16]);
        add(&mut object);
        let error = parse(&object.build()).unwrap_err();
        assert_eq!(error.reason(), Reason::MalformedObject);
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn section_indices_too_large_for_a_symbol_are_read_from_their_table() {
    let mut object = Builder::with_text(&[0x90; 16]);
    let indices: Vec<u8> = [0u32, 1].map(u32::to_le_bytes).concat();
    let table = object.section(".symtab_shndx", SHT_SYMTAB_SHNDX, 0, 4, &indices);
    object.symbol("f", STB_GLOBAL, STT_FUNC, SHN_XINDEX, 4, 0);
    let mut blob = object.build();
    super::builder::patch_section(&mut blob, table, 0x28, &3u32.to_le_bytes()); // of .symtab
    let image = parse(&blob).unwrap();
    assert_eq!(export(&image, "f"), (PartKind::Code, 4));
    assert!(image.symbols()[0].is_function);
}

#[test]
fn names_that_share_their_end_cannot_make_an_image_keep_more_than_its_blob() {
    let mut object = Builder::with_text(&[0x90; 16]);
    object.function(&"n".repeat(1000), 0, 0);
    for _ in 0..900 {
        object.function("", 0, 0);
    }
    let mut blob = object.build();
    // Each symbol starts one byte later in the one long name; .symtab is section 2.
    let table = u64_at(&blob, 40) as usize;
    let symbols = u64_at(&blob, table as u64 + 2 * 64 + 0x18) as usize;
    for index in 0..900 {
        blob[symbols + (index + 2) * 24..][..4].copy_from_slice(&(index as u32 + 2).to_le_bytes());
    }
    assert_eq!(parse(&blob).unwrap_err().to_string(), "malformed object: symbols share their names");
}
