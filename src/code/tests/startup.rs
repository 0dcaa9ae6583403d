use object::elf::*;

use super::super::{Reason, Resolver, Startup};
use super::builder::{Builder, DATA, TEXT};
use super::*;

/// An object with sixteen functions of 16 bytes, `f0` and so on.
fn functions() -> (Builder, Vec<u32>) {
    let mut object = Builder::with_text(&[0xc3; 256]);
    let symbols = (0..16).map(|at| object.function(&format!("f{at}"), at * 16, 16)).collect();
    (object, symbols)
}

/// Adds a list of addresses of functions.
fn list(object: &mut Builder, name: &str, kind: SectionType, functions: &[u32]) -> u16 {
    let section = object.section(name, kind, DATA, 8, &vec![0; functions.len() * 8]);
    for (at, &function) in (0..).zip(functions) {
        object.relocation(section, at * 8, R_X86_64_64, function, 0);
    }
    section
}

/// Numbers of the functions that run before all else, in their order.
fn order(image: &Image) -> Vec<u64> {
    image.startup().initialisers.iter().map(|offset_bytes| offset_bytes / 16).collect()
}

#[test]
fn initialisers_run_by_rising_priority_then_in_file_order_and_ctors_from_their_ends() {
    let (mut object, f) = functions();
    list(&mut object, ".init_array", SHT_INIT_ARRAY, &[f[8], f[9]]);
    list(&mut object, ".ctors", SHT_PROGBITS, &[f[11], f[10]]);
    list(&mut object, ".ctors.65035", SHT_PROGBITS, &[f[6], f[5]]); // priority 500
    list(&mut object, ".init_array.01000", SHT_INIT_ARRAY, &[f[7]]);
    list(&mut object, ".init_array.00101", SHT_INIT_ARRAY, &[f[2], f[3]]);
    list(&mut object, ".init_array.00200", SHT_PROGBITS, &[f[4]]);
    list(&mut object, ".preinit_array", SHT_PREINIT_ARRAY, &[f[1]]);
    list(&mut object, ".init_array.named", SHT_INIT_ARRAY, &[f[12]]);
    let image = parse(&object.build()).unwrap();
    assert_eq!(order(&image), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(image.sizes().data.size_bytes, 0, "the lists themselves are not loaded");
    assert_eq!(image.startup().len(), 12);
}

#[test]
fn what_runs_at_the_end_is_left_out_with_all_that_it_needs() {
    let (mut object, f) = functions();
    list(&mut object, ".fini_array", SHT_FINI_ARRAY, &f[..1]);
    list(&mut object, ".dtors.00001", SHT_PROGBITS, &f[..1]);
    let missing = object.undefined("nowhere");
    list(&mut object, ".fini_array.5", SHT_FINI_ARRAY, &[missing]);
    object.section(".fini", SHT_PROGBITS, TEXT, 1, &[0x90]);
    let image = parse(&object.build()).unwrap();
    assert_eq!((image.startup(), image.sizes().code.size_bytes), (&Startup::default(), 256));
}

#[test]
fn marks_at_the_ends_of_lists_are_no_functions_and_other_numbers_are_refused() {
    let (mut object, f) = functions();
    let words = [u64::MAX, 0, 0].map(u64::to_le_bytes).concat();
    let section = object.section(".ctors", SHT_PROGBITS, DATA, 8, &words);
    object.relocation(section, 8, R_X86_64_64, f[3], 4);
    let image = parse(&object.build()).unwrap();
    assert_eq!(&*image.startup().initialisers, [3 * 16 + 4], "addends count");
    let (mut object, _) = functions();
    object.section(".init_array", SHT_INIT_ARRAY, DATA, 8, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let error = parse(&object.build()).unwrap_err();
    let expected =
        "unsupported object: an initialiser is no function of the objects in section .init_array at offset 0x8";
    assert_eq!(error.to_string(), expected);
}

/// Adds a relocation of a list that is wrong.
type Break = fn(&mut Builder, u16);

#[test]
fn lists_that_are_no_lists_of_functions_are_refused() {
    let cases: [(Break, &str); 6] = [
        (|object, list| object.relocation(list, 0, R_X86_64_PC32, 1, 0), "R_X86_64_PC32"),
        (|object, list| object.relocation(list, 4, R_X86_64_64, 1, 0), "not at a place of its list"),
        (|object, list| object.relocation(list, 8, R_X86_64_64, 1, 0), "not at a place of its list"),
        (|object, list| object.relocation(list, 0, R_X86_64_64, 1, 256), "no function of the objects"),
        (|object, list| object.relocation(list, 0, R_X86_64_64, 1, -1), "no function of the objects"),
        (|object, list| object.relocation(list, 0, R_X86_64_64, 99, 0), "a symbol that does not exist"),
    ];
    for (break_it, what) in cases {
        let (mut object, _) = functions();
        let section = object.section(".init_array", SHT_INIT_ARRAY, DATA, 8, &[0; 8]);
        break_it(&mut object, section);
        let error = parse(&object.build()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert!(error.contains("in section .init_array"), "{error}");
    }
    let (mut object, _) = functions();
    object.section(".init_array", SHT_INIT_ARRAY, DATA, 8, &[0; 9]);
    assert!(parse(&object.build()).unwrap_err().to_string().contains("not a whole number of addresses"));
    let (mut object, _) = functions();
    let (missing, host) = (object.undefined("nowhere"), object.undefined("host"));
    list(&mut object, ".init_array", SHT_INIT_ARRAY, &[missing]);
    assert_eq!(parse(&object.build()).unwrap_err().reason(), Reason::UnresolvedSymbol);
    let (mut object, _) = functions();
    assert_eq!(object.undefined("host"), host - 1);
    list(&mut object, ".init_array", SHT_INIT_ARRAY, &[host - 1]);
    assert!(parse(&object.build()).unwrap_err().to_string().contains("for symbol host"));
}

#[test]
fn a_list_keeps_what_it_needs_though_nothing_exported_does_unless_its_group_is_discarded() {
    let with_list = |is_twice: bool| {
        let mut object = Builder::with_text(&[0xc3]);
        object.function(if is_twice { "g" } else { "f" }, 0, 1);
        let code = object.section(".text.start", SHT_PROGBITS, TEXT, 16, &[0x90; 32]);
        let start = object.section_symbol(code);
        let key = object.symbol("key", STB_WEAK, STT_FUNC, SymbolSection(code), 0, 0);
        let section = list(&mut object, ".init_array", SHT_INIT_ARRAY, &[start]);
        object.group(key, &[section, code]);
        object.build()
    };
    let members = [("a.o".to_owned(), with_list(false)), ("b.o".to_owned(), with_list(true))];
    let archive = super::builder::archive(&members.each_ref().map(|(name, bytes)| (name.clone(), &bytes[..])));
    let parse = |roots: &[&str]| {
        let selection = Selection { roots: roots.iter().map(|&it| it.to_owned()).collect(), ..Selection::default() };
        Image::parse_elf(&archive, &selection, &imports(), &Limits::default()).unwrap()
    };
    assert_eq!(parse(&["f"]).startup().len(), 1, "b.o is not taken");
    let both = parse(&["f", "g"]);
    assert_eq!((both.objects(), both.startup().len()), (2, 1), "one group of a name is kept");
}

/// An object with a function that chooses, its resolver at 16 of `.text`, and its symbol.
fn chosen(bind: SymbolBind) -> (Builder, u32) {
    let mut object = Builder::with_text(&[0x90; 64]);
    object.function("f", 0, 16);
    let symbol = object.symbol("chosen", bind, STT_GNU_IFUNC, SymbolSection(1), 16, 16);
    (object, symbol)
}

#[test]
fn all_who_mean_a_function_that_chooses_get_the_address_of_its_one_stub() {
    for bind in [STB_GLOBAL, STB_LOCAL] {
        let (mut object, symbol) = chosen(bind);
        let data = object.section(".data", SHT_PROGBITS, DATA, 8, &[0; 16]);
        object.relocation(data, 8, R_X86_64_64, symbol, 0);
        object.relocation(1, 32, R_X86_64_PLT32, symbol, -4);
        object.relocation(1, 40, R_X86_64_GOTPCREL, symbol, -4);
        object.relocation(1, 48, R_X86_64_PC32, symbol, -4);
        let image = parse(&object.build()).unwrap();
        let &[Resolver { function_offset_bytes: 16, slot_offset_bytes }] = &*image.startup().resolvers else {
            panic!("{:?}", image.startup());
        };
        let linked = link(&image);
        let stub = u64_at(&linked.data, 8);
        assert_eq!([destination(&linked.code, 32), destination(&linked.code, 48)], [stub; 2]);
        assert_eq!(u64_at(&linked.rodata, destination(&linked.code, 40) - AT.rodata), stub, "the GOT's slot");
        let at = stub - AT.code;
        assert_eq!(linked.code[at as usize..][..2], [0xff, 0x25]);
        assert_eq!(destination(&linked.code, at + 2), AT.rodata + slot_offset_bytes);
        assert_eq!(u64_at(&linked.rodata, slot_offset_bytes), stub + 6, "leads to a trap until it is filled");
        assert_eq!(linked.code[at as usize + 6], 0xcc);
        assert_eq!(image.sizes().data.size_bytes, 16, "slots are no writable data");
        let named = image.functions().iter().find(|it| it.offset_bytes == at).unwrap();
        assert_eq!((&*named.name, named.size_bytes), ("chosen", 8));
        if bind == STB_GLOBAL {
            assert_eq!(export(&image, "chosen"), (PartKind::Code, at));
        }
    }
}

#[test]
fn names_of_one_resolver_are_one_function_and_what_nobody_needs_is_not_resolved() {
    let (mut object, _) = chosen(STB_GLOBAL);
    object.symbol("alias", STB_GLOBAL, STT_GNU_IFUNC, SymbolSection(1), 16, 16);
    let blob = object.build();
    let image = parse(&blob).unwrap();
    assert_eq!(image.startup().resolvers.len(), 1);
    assert_eq!(export(&image, "alias"), export(&image, "chosen"));
    let selection = Selection { roots: vec!["f".to_owned()], ..Selection::default() };
    let image = Image::parse_elf(&blob, &selection, &imports(), &Limits::default()).unwrap();
    assert!(image.startup().is_empty());
}

#[test]
fn a_choice_by_private_state_of_the_loader_is_refused_with_that_reason() {
    for name in ["_dl_x86_cpu_features", "_dl_x86_get_cpu_features", "_rtld_global_ro", "__x86_get_cpu_features"] {
        let (mut object, _) = chosen(STB_GLOBAL);
        let state = object.undefined(name);
        object.relocation(1, 20, R_X86_64_GOTPCREL, state, -4);
        let error = parse(&object.build()).unwrap_err();
        assert_eq!(error.location().unwrap().symbol.as_deref(), Some(name));
        assert!(error.to_string().contains("private state of glibc's loader"), "{error}");
    }
}

#[test]
fn a_function_that_chooses_needs_a_resolver_in_code() {
    let mut object = Builder::with_text(&[0xc3]);
    object.symbol("number", STB_GLOBAL, STT_GNU_IFUNC, SHN_ABS, 16, 16);
    assert!(parse(&object.build()).unwrap_err().to_string().contains("has no resolver for symbol number"));
    let mut object = Builder::with_text(&[0xc3]);
    object.symbol("beyond", STB_GLOBAL, STT_GNU_IFUNC, SymbolSection(1), 1, 0);
    assert!(parse(&object.build()).unwrap_err().to_string().contains("not in code for symbol beyond"));
    let mut object = Builder::with_text(&[0xc3]);
    let data = object.section(".data", SHT_PROGBITS, DATA, 8, &[0; 8]);
    object.symbol("data", STB_GLOBAL, STT_GNU_IFUNC, SymbolSection(data), 0, 0);
    assert!(parse(&object.build()).unwrap_err().to_string().contains("not in code for symbol data"));
}

#[test]
fn constants_of_the_host_are_copied_near_and_only_where_they_are_needed() {
    let mut object = Builder::with_text(&[0x90; 16]);
    object.function("f", 0, 1);
    let model = object.undefined("model");
    object.undefined("more");
    object.relocation(1, 4, R_X86_64_PC32, model, 8 - 4);
    let imports = imports().with_constants([("model", vec![7; 12].into()), ("more", vec![8; 500].into())]);
    let image = Image::parse_elf(&object.build(), &Selection::default(), &imports, &Limits::default()).unwrap();
    assert_eq!(image.sizes().rodata.size_bytes, 12);
    let linked = link(&image);
    assert_eq!((destination(&linked.code, 4), &linked.rodata[..]), (AT.rodata + 8, &[7; 12][..]));
}

#[test]
fn the_handle_of_the_program_is_a_near_address() {
    let mut object = Builder::with_text(&[0x90; 16]);
    let handle = object.symbol("__dso_handle", STB_GLOBAL, STT_NOTYPE, SHN_UNDEF, 0, 0);
    object.visibility(handle, STV_HIDDEN);
    object.relocation(1, 4, R_X86_64_PC32, handle, -4);
    let linked = link(&parse(&object.build()).unwrap());
    assert_eq!(destination(&linked.code, 4), AT.rodata);
}
