use super::*;

fn sample() -> (Image, Linked) {
    let image = parse(SAMPLE).unwrap();
    let linked = link(&image);
    (image, linked)
}

#[test]
fn compiler_output_exports_its_visible_symbols_in_name_order() {
    let (image, _) = sample();
    let names: Vec<&str> = image.symbols().iter().map(|symbol| &*symbol.name).collect();
    let expected = [
        "apply",
        "bump",
        "copy",
        "counter",
        "half",
        "has_absent",
        "name_length",
        "select_case",
        "table",
        "tentative",
        "zeros",
    ];
    assert_eq!(names, expected);
    let data: Vec<&str> = image.symbols().iter().filter(|s| !s.is_function).map(|s| &*s.name).collect();
    assert_eq!(data, ["counter", "table", "tentative", "zeros"]);
}

#[test]
fn functions_name_local_ones_too_in_order_of_their_offsets() {
    let (image, _) = sample();
    let names: Vec<&str> = image.functions().iter().map(|function| &*function.name).collect();
    let expected =
        ["local", "twice", "thrice", "bump", "apply", "name_length", "copy", "has_absent", "select_case", "half"];
    assert_eq!(names, expected);
    assert_eq!((image.functions()[1].offset_bytes, image.functions()[1].size_bytes), (0x11, 4));
}

#[test]
fn a_table_of_function_pointers_is_read_only_and_holds_their_addresses() {
    let (image, linked) = sample();
    let (part, table) = export(&image, "table");
    assert_eq!(part, PartKind::Rodata);
    let pointers: Vec<u64> = (0..3).map(|index| u64_at(&linked.rodata, table + 8 * index)).collect();
    assert_eq!(pointers, [AT.code + 0x11, AT.code + 0x15, AT.code]);
}

#[test]
fn variables_are_initialised_and_common_symbols_are_zeros_behind_them() {
    let (image, linked) = sample();
    let (part, counter) = export(&image, "counter");
    assert_eq!((part, i32_at(&linked.data, counter)), (PartKind::Data, 7));
    let (part, zeros) = export(&image, "zeros");
    assert_eq!(part, PartKind::Data);
    assert!(zeros >= image.data_init_bytes() && zeros % 32 == 0, "zeros at {zeros}");
    assert!(linked.data[zeros as usize..][..400].iter().all(|&byte| byte == 0));
}

#[test]
fn a_call_of_an_import_reaches_it_through_stub_and_slot() {
    let (_, linked) = sample();
    let stub = destination(&linked.code, 0x84) - AT.code; // `call memcpy` in `copy`
    assert_eq!(linked.code[stub as usize..][..2], [0xff, 0x25]);
    let slot = destination(&linked.code, stub + 2) - AT.rodata;
    assert_eq!(u64_at(&linked.rodata, slot), HOST + 0x1000);
}

#[test]
fn an_absent_weak_function_has_the_address_0() {
    let (_, linked) = sample();
    // `cmpq $0, absent@GOTPCREL(%rip)`: an immediate of one byte follows the displacement.
    let slot = destination(&linked.code, 0x90) + 1 - AT.rodata;
    assert_eq!(u64_at(&linked.rodata, slot), 0);
}

#[test]
fn a_switch_table_leads_into_its_function() {
    let (image, linked) = sample();
    let table = destination(&linked.code, 0xb9) - AT.rodata; // `lea table(%rip)` in `select_case`
    let function = image.functions().iter().find(|function| &*function.name == "select_case").unwrap();
    for index in 0..6 {
        let case = (AT.rodata + table).wrapping_add_signed(i32_at(&linked.rodata, table + 4 * index)) - AT.code;
        assert!((function.offset_bytes..function.offset_bytes + function.size_bytes).contains(&case), "case {index}");
    }
}

#[test]
fn all_missing_imports_are_named_in_one_error() {
    let error = Image::parse_elf(SAMPLE, &all_sections(), &ImportTable::default(), &Limits::default()).unwrap_err();
    let names = vec!["strlen".to_owned(), "memcpy".to_owned()];
    assert_eq!(error, CodeError::UnresolvedSymbols { names, total: 2 });
    assert_eq!(error.to_string(), "unresolved symbols: strlen, memcpy (2 in all)");
    assert_eq!(error.reason().as_str(), "UNRESOLVED_SYMBOL");
}

#[test]
fn a_blob_at_an_odd_address_is_read_the_same() {
    let shifted = [&[0], SAMPLE].concat();
    assert_eq!(link(&parse(&shifted[1..]).unwrap()), sample().1);
}

#[test]
fn what_stays_after_linking_are_the_exports_and_functions() {
    let (image, _) = sample();
    let (symbols, functions) = (image.symbols().to_vec(), image.functions().to_vec());
    assert_eq!(*parse(SAMPLE).unwrap().into_exports(), *symbols);
    let (kept_symbols, kept_functions) = image.into_exports_and_functions();
    assert_eq!((&*kept_symbols, &*kept_functions), (&*symbols, &*functions));
}

#[test]
#[should_panic(expected = "buffers are as long as their parts")]
fn buffers_of_another_length_are_a_bug_of_the_caller() {
    let (image, _) = sample();
    drop(image.link(AT, &mut [], &mut [], &mut []));
}
