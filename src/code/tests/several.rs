//! Several objects as one image: names across them, archives, and what nothing needs.

use object::elf::*;

use super::super::Unused;
use super::builder::{Builder, DATA, RODATA, TEXT, archive};
use super::*;

/// An object whose `.text` is `int3`s with one function of this name in it, eight bytes long.
fn defines(name: &str, bind: SymbolBind, first: u8) -> Builder {
    let mut object = Builder::with_text(&[first, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc]);
    object.symbol(name, bind, STT_FUNC, SymbolSection(1), 0, 8);
    object
}

/// An object that exports `caller`, whose bytes 1 to 4 are the distance to `callee`.
fn calls(caller: &str, callee: &str, bind: SymbolBind) -> Builder {
    let mut object = defines(caller, STB_GLOBAL, 0xe8);
    let callee = object.symbol(callee, bind, STT_NOTYPE, SHN_UNDEF, 0, 0);
    object.relocation(1, 1, R_X86_64_PLT32, callee, -4);
    object
}

fn joined(objects: impl IntoIterator<Item = Builder>) -> Vec<u8> {
    let blobs: Vec<_> = objects.into_iter().map(Builder::build).collect();
    let members: Vec<_> = blobs.iter().enumerate().map(|(at, blob)| (format!("{at}.o"), &**blob)).collect();
    archive(&members)
}

fn select(blob: &[u8], roots: &[&str]) -> Result<Image, CodeError> {
    let roots = roots.iter().map(|&root| root.to_owned()).collect();
    Image::parse_elf(blob, &Selection { roots, ..Selection::default() }, &imports(), &Limits::default())
}

fn exports(image: &Image) -> Vec<&str> {
    image.symbols().iter().map(|symbol| &*symbol.name).collect()
}

/// The first byte of what `caller` calls.
fn called(image: &Image, caller: &str) -> u8 {
    let code = link(image).code;
    let (_, offset) = export(image, caller);
    code[(destination(&code, offset + 1) - AT.code) as usize]
}

#[test]
fn a_strong_definition_wins_over_weak_ones_wherever_it_stands_and_of_weak_ones_the_first() {
    let weak = |first| defines("f", STB_WEAK, first);
    let caller = || calls("main", "f", STB_GLOBAL);
    let strong = || defines("f", STB_GLOBAL, 0x55);
    for (objects, first) in [
        (vec![caller(), weak(1), strong()], 0x55),
        (vec![strong(), weak(1), caller()], 0x55),
        (vec![caller(), weak(1), weak(2)], 1),
        (vec![weak(2), caller(), weak(1)], 2),
    ] {
        let image = select(&joined(objects), &[]).unwrap();
        assert_eq!((called(&image, "main"), exports(&image)), (first, vec!["f", "main"]));
    }
    let error = select(&joined([strong(), strong()]), &[]).unwrap_err();
    assert_eq!(error.to_string(), "malformed object: the symbol is defined twice of 1.o for symbol f");
}

#[test]
fn local_symbols_of_one_name_stay_apart() {
    let local = |first: u8, caller| {
        let mut object = defines("f", STB_LOCAL, first);
        let section = object.section(".text.main", SHT_PROGBITS, TEXT, 1, &[0xe8, 0, 0, 0, 0]);
        object.symbol(caller, STB_GLOBAL, STT_FUNC, SymbolSection(section), 0, 5);
        object.relocation(section, 1, R_X86_64_PC32, 1, -4);
        object
    };
    let image = select(&joined([local(1, "first"), local(2, "second")]), &[]).unwrap();
    assert_eq!([called(&image, "first"), called(&image, "second")], [1, 2]);
}

#[test]
fn common_symbols_of_one_name_are_one_of_the_largest_size_and_give_way_to_a_definition() {
    let common = |size, align| {
        let mut object = defines("f", STB_WEAK, 0xc3);
        object.symbol("shared", STB_GLOBAL, STT_OBJECT, SHN_COMMON, align, size);
        object
    };
    let image = select(&joined([common(8, 4), common(100, 32), common(3, 1)]), &[]).unwrap();
    assert_eq!((image.sizes().data.size_bytes, image.sizes().data.align_bytes), (100, 32));
    let mut definition = defines("g", STB_GLOBAL, 0xc3);
    let data = definition.section(".data", SHT_PROGBITS, DATA, 4, &[7; 4]);
    definition.symbol("shared", STB_GLOBAL, STT_OBJECT, SymbolSection(data), 0, 4);
    let image = select(&joined([common(8, 4), definition]), &[]).unwrap();
    assert_eq!(link(&image).data, [7; 4]);
}

#[test]
fn of_groups_of_one_name_the_first_stands_for_all() {
    let inlined = |caller, first: u8| {
        let mut object = calls(caller, "inlined", STB_GLOBAL);
        let body = object.section(".text.inlined", SHT_PROGBITS, TEXT, 1, &[first, 0xc3]);
        let signature = object.symbol("inlined_2", STB_WEAK, STT_FUNC, SymbolSection(body), 0, 2);
        object.group(signature, &[body]);
        // The call is of the weak symbol, as compilers make it.
        object.relocation(1, 1, R_X86_64_PLT32, signature, -4);
        object
    };
    let image = select(&joined([inlined("a", 1), inlined("b", 2)]), &["a", "b"]);
    assert!(matches!(image, Err(CodeError::UnresolvedSymbols { .. })), "`inlined` itself is nowhere");
    let without = |mut object: Builder| {
        object.symbol("inlined", STB_GLOBAL, STT_FUNC, SymbolSection(1), 0, 8);
        object
    };
    let image = select(&joined([without(inlined("a", 1)), inlined("b", 2)]), &["a", "b"]).unwrap();
    assert_eq!([called(&image, "a"), called(&image, "b")], [1, 1]);
    assert_eq!(image.functions().iter().filter(|it| &*it.name == "inlined_2").count(), 1);
}

#[test]
fn what_is_hidden_in_one_object_is_not_exported_though_others_may_use_it() {
    let mut hidden = Builder::with_text(&[9, 0xc3]);
    hidden.hidden_function("f", 0, 2);
    let image = select(&joined([calls("main", "f", STB_GLOBAL), hidden]), &[]).unwrap();
    assert_eq!((exports(&image), called(&image, "main")), (vec!["main"], 9));
}

#[test]
fn of_an_archive_those_members_are_taken_that_the_exports_need() {
    let all = [
        calls("main", "first", STB_GLOBAL),
        calls("first", "second", STB_GLOBAL),
        defines("second", STB_GLOBAL, 2),
        calls("other", "absent", STB_GLOBAL),
    ];
    let blob = joined(all);
    let image = select(&blob, &["main"]).unwrap();
    assert_eq!((image.objects(), exports(&image)), (3, vec!["main"]));
    assert_eq!(image.functions().len(), 3, "functions that are not exported still name traps");
    assert_eq!(select(&blob, &["second", "second"]).unwrap().objects(), 1);
    assert!(
        matches!(select(&blob, &[]), Err(CodeError::UnresolvedSymbols { .. })),
        "all members, and one lacks something"
    );
    let error = select(&blob, &["main", "nowhere", "absent"]).unwrap_err();
    assert_eq!(error.to_string(), "unresolved symbols: absent, nowhere (2 in all)");
}

#[test]
fn a_weak_reference_takes_no_member_and_is_nothing_then() {
    let blob = joined([calls("main", "maybe", STB_WEAK), defines("maybe", STB_GLOBAL, 1)]);
    assert_eq!(select(&blob, &["main"]).unwrap().objects(), 1);
    assert_eq!(select(&blob, &["main", "maybe"]).unwrap().objects(), 2);
}

#[test]
fn sections_that_nothing_exported_needs_are_left_out_and_counted() {
    let mut object = calls("main", "table", STB_GLOBAL);
    let table = object.section(".rodata.table", SHT_PROGBITS, RODATA, 8, &[0; 8]);
    let target = object.section(".text.target", SHT_PROGBITS, TEXT, 1, &[0xc3; 3]);
    let unused = object.section(".text.unused", SHT_PROGBITS, TEXT, 1, &[0xcc; 5]);
    let kept = object.section(".data.kept", SHT_PROGBITS, DATA | SHF_GNU_RETAIN.0, 1, &[7]);
    object.zeros(".bss.unused", DATA, 1, 1000);
    object.symbol("table", STB_GLOBAL, STT_OBJECT, SymbolSection(table), 0, 8);
    let target = object.section_symbol(target);
    object.relocation(table, 0, R_X86_64_64, target, 0);
    object.symbol("unused", STB_LOCAL, STT_FUNC, SymbolSection(unused), 0, 5);
    let blob = object.build();
    let image = select(&blob, &["main"]).unwrap();
    let sizes = image.sizes();
    assert_eq!([sizes.code, sizes.rodata, sizes.data].map(|it| it.size_bytes), [8 + 3, 8, 1]);
    assert_eq!(image.unused(), Unused { sections: 2, bytes: 1005 });
    assert_eq!(link(&image).data, [7], "section {kept} asks to stay");
    let everything = parse(&blob).unwrap();
    assert_eq!((everything.unused(), everything.sizes().code.size_bytes), (Unused::default(), 8 + 3 + 5));
}

#[test]
fn a_member_that_is_taken_already_serves_for_its_other_names() {
    let with = |names: &[&str], first| {
        let mut object = defines(names[0], STB_GLOBAL, first);
        names[1..].iter().for_each(|name| {
            object.symbol(name, STB_GLOBAL, STT_FUNC, SymbolSection(1), 0, 8);
        });
        object
    };
    let blob = joined([with(&["g", "h"], 1), with(&["f", "g"], 2), calls("c", "g", STB_GLOBAL)]);
    let image = select(&blob, &["c", "f"]).unwrap();
    assert_eq!((image.objects(), called(&image, "c")), (2, 2));
}

#[test]
fn groups_that_share_their_contents_or_name_no_section_are_malformed() {
    let with = |groups: usize, members: &[u16]| {
        let mut object = defines("f", STB_GLOBAL, 1);
        let signature = object.symbol("signature", STB_WEAK, STT_FUNC, SymbolSection(1), 0, 8);
        (0..groups).for_each(|_| object.group(signature, members));
        object.build()
    };
    let text = |blob: &[u8]| select(blob, &[]).unwrap_err().to_string();
    assert!(text(&with(2, &[999])).contains("does not exist"), "{}", text(&with(2, &[999])));
    // All at the contents of the first, which are long.
    let mut shared = with(40, &[1; 500]);
    let offset = |blob: &[u8], at: u16| {
        let table = u64::from_le_bytes(blob[40..48].try_into().unwrap()) as usize + usize::from(at) * 64;
        u64::from_le_bytes(blob[table + 0x18..][..8].try_into().unwrap())
    };
    let first = offset(&shared, 2);
    (2..42).for_each(|at| super::builder::patch_section(&mut shared, at, 0x18, &first.to_le_bytes()));
    (2..42).for_each(|at| super::builder::patch_section(&mut shared, at, 0x20, &30_000_u64.to_le_bytes()));
    assert!(text(&shared).contains("share their contents"), "{}", text(&shared));
}

#[test]
fn sizes_are_those_of_the_definition_and_of_a_common_symbol_the_largest() {
    let mut user = defines("f", STB_GLOBAL, 0xc3);
    let table = user.section(".rodata", SHT_PROGBITS, RODATA, 8, &[0; 16]);
    user.symbol("table", STB_GLOBAL, STT_OBJECT, SymbolSection(table), 0, 16);
    let defined = user.undefined("defined");
    let common = user.symbol("common", STB_GLOBAL, STT_OBJECT, SHN_COMMON, 4, 8);
    user.relocation(table, 0, R_X86_64_SIZE64, defined, 1);
    user.relocation(table, 8, R_X86_64_SIZE64, common, 0);
    let mut other = defines("defined", STB_GLOBAL, 0xc3);
    other.symbol("common", STB_GLOBAL, STT_OBJECT, SHN_COMMON, 4, 100);
    other.symbol("idle", STB_GLOBAL, STT_OBJECT, SHN_COMMON, 4, 5000);
    let blob = joined([user, other]);
    let image = select(&blob, &["table", "common", "f"]).unwrap();
    let rodata = link(&image).rodata;
    assert_eq!((u64_at(&rodata, 0), u64_at(&rodata, 8)), (8 + 1, 100));
    assert_eq!(image.symbols().iter().find(|it| &*it.name == "common").unwrap().size_bytes, 100);
    assert_eq!(image.sizes().data.size_bytes, 100, "what nobody needs takes no memory");
}

#[test]
fn a_call_into_the_middle_of_what_is_far_away_is_refused_and_led_nowhere_else() {
    let mut object = defines("f", STB_GLOBAL, 0xe8);
    let host = object.undefined("host");
    object.relocation(1, 1, R_X86_64_PLT32, host, 8);
    let error = link_at(&parse(&object.build()).unwrap(), AT).unwrap_err();
    assert!(matches!(error, CodeError::RelocationOverflow { .. }), "{error}");
}

#[test]
fn a_symbol_that_is_asked_for_and_not_loaded_is_refused_and_other_members_are_passed_over() {
    let mut object = defines("f", STB_GLOBAL, 1);
    let note = object.section(".comment", SHT_PROGBITS, 0, 1, &[1; 8]);
    object.symbol("words", STB_GLOBAL, STT_OBJECT, SymbolSection(note), 0, 8);
    let blob = object.build();
    let blob = archive(&[("readme.txt".to_owned(), &b"text"[..]), ("a.o".to_owned(), &blob)]);
    assert_eq!(exports(&select(&blob, &["f"]).unwrap()), ["f"]);
    assert!(select(&blob, &["words"]).unwrap_err().to_string().contains("not loaded"));
}

#[test]
fn an_archive_whose_names_do_not_end_is_malformed() {
    let names = vec![b'x'; 5000];
    let blob = archive(&[("/".to_owned(), &names), ("a.o".to_owned(), &defines("f", STB_GLOBAL, 1).build())]);
    assert!(select(&blob, &["f"]).unwrap_err().to_string().contains("without an end"));
}

#[test]
fn archives_that_are_cut_short_thin_or_hold_no_objects_are_malformed() {
    let good = joined([defines("f", STB_GLOBAL, 1)]);
    let text = |blob: &[u8]| select(blob, &[]).unwrap_err().to_string();
    assert!(text(b"!<thin>\n").contains("thin"), "{}", text(b"!<thin>\n"));
    assert!(text(b"!<arch>\n").contains("no member"));
    assert!(text(&good[..good.len() - 9]).contains("cut short"));
    assert!(text(&archive(&[("a.txt".to_owned(), &b"text"[..])])).contains("a.txt"));
    for at in 0..good.len().min(400) {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        // An error or an image, but no panic.
        let _ = select(&bad, &["f"]);
        let _ = select(&bad[..at], &[]);
    }
}

#[test]
fn the_bsd_form_of_an_archive_is_read_too() {
    let blob = defines("f", STB_GLOBAL, 1).build();
    let name = b"a long name of a member.o\0\0\0";
    let mut archive = b"!<arch>\n".to_vec();
    let size = name.len() + blob.len();
    archive.extend(format!("#1/{:<13}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", name.len(), 0, 0, 0, 644).as_bytes());
    archive.extend_from_slice(name);
    archive.extend_from_slice(&blob);
    assert_eq!(exports(&select(&archive, &["f"]).unwrap()), ["f"]);
}

#[test]
fn members_together_are_held_to_the_limits_of_one_object() {
    let blob = joined([defines("f", STB_GLOBAL, 1), defines("g", STB_GLOBAL, 1)]);
    let with =
        |limits| Image::parse_elf(&blob, &Selection::default(), &imports(), &limits).map(|image| image.objects());
    let single = defines("f", STB_GLOBAL, 1).build();
    let sections = u32::from(u16::from_le_bytes(single[60..62].try_into().unwrap()));
    let symbols = 2;
    for (limits, fits) in [
        (Limits { sections_max: 2 * sections, ..Limits::default() }, true),
        (Limits { sections_max: 2 * sections - 1, ..Limits::default() }, false),
        (Limits { symbols_max: 2 * symbols, ..Limits::default() }, true),
        (Limits { symbols_max: 2 * symbols - 1, ..Limits::default() }, false),
    ] {
        assert_eq!(with(limits).is_ok(), fits, "{limits:?}");
    }
}

#[test]
fn errno_is_reached_by_its_distance_where_code_can_have_a_thread_pointer_and_refused_else() {
    let mut object = defines("f", STB_GLOBAL, 0xc3);
    let data = object.section(".rodata", SHT_PROGBITS, RODATA, 8, &[0; 16]);
    object.symbol("table", STB_GLOBAL, STT_OBJECT, SymbolSection(data), 0, 16);
    let errno = object.symbol("errno", STB_GLOBAL, STT_TLS, SHN_UNDEF, 0, 0);
    object.relocation(data, 0, R_X86_64_TPOFF64, errno, 0);
    object.relocation(data, 8, R_X86_64_TPOFF32, errno, 4);
    object.relocation(1, 1, R_X86_64_GOTTPOFF, errno, -4);
    let blob = object.build();
    assert_eq!(parse(&blob).unwrap_err(), CodeError::NoThreads);
    let table = switched();
    let image = Image::parse_elf(&blob, &Selection::default(), &table, &Limits::default()).unwrap();
    let Linked { code, rodata, .. } = link(&image);
    assert_eq!((u64_at(&rodata, 0), i32_at(&rodata, 8)), (0x34, 0x38));
    let slot = destination(&code, 1) - AT.rodata;
    assert_eq!(u64_at(&rodata, slot), 0x34);
}

#[test]
fn a_load_of_what_is_near_needs_no_slot_in_each_form_of_the_instruction() {
    for (before, kind, after, field) in [
        (&[0x48, 0x8b, 0x0d][..], R_X86_64_REX_GOTPCRELX, &[0x48, 0x8d, 0x0d][..], 3),
        (&[0xff, 0x15], R_X86_64_GOTPCRELX, &[0x67, 0xe8], 2),
        (&[0xff, 0x25], R_X86_64_GOTPCRELX, &[0xe9], 1),
        // A comparison would need the address in 32 bits, and keeps its slot.
        (&[0x48, 0x3b, 0x0d], R_X86_64_REX_GOTPCRELX, &[0x48, 0x3b, 0x0d], 3),
    ] {
        let code = [before, &[0; 4], &[0xcc; 8]].concat();
        let mut object = Builder::with_text(&code);
        object.function("f", 0, 8);
        let data = object.section(".data", SHT_PROGBITS, DATA, 8, &[7; 8]);
        let variable = object.symbol("variable", STB_GLOBAL, STT_OBJECT, SymbolSection(data), 0, 8);
        object.relocation(1, before.len() as u64, kind, variable, -4);
        let image = parse(&object.build()).unwrap();
        let linked = link(&image);
        assert_eq!(linked.code[..after.len()], *after);
        let needs_slot = before == after;
        let expected = if needs_slot { AT.rodata } else { AT.data };
        assert_eq!(destination(&linked.code, field), expected, "{before:x?}");
        assert_eq!(image.sizes().rodata.size_bytes, if needs_slot { 8 } else { 0 });
        if after == [0xe9] {
            assert_eq!(linked.code[5], 0x90, "a byte is left over");
        }
    }
}
