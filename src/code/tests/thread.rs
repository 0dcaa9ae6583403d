//! Variables of each thread, and code that touches its thread pointer.

use object::elf::*;

use super::super::{FlatEntry, Location, Reason, THREAD_MAX_BYTES, Thread};
use super::builder::{Builder, DATA, RODATA};
use super::*;

/// Of variables.
const TLS: u64 = DATA | SHF_TLS.0;

fn parse(blob: &[u8]) -> Result<Image, CodeError> {
    Image::parse_elf(blob, &all_sections(), &switched(), &Limits::default())
}

fn variable(object: &mut Builder, name: &str, section: u16, value: u64, size: u64) -> u32 {
    object.symbol(name, STB_GLOBAL, STT_TLS, SymbolSection(section), value, size)
}

#[test]
fn variables_are_one_block_below_the_thread_pointer_with_zeros_last_and_all_aligned() {
    let mut object = Builder::with_text(&[0xc3]);
    object.function("f", 0, 1);
    let zeros = object.zeros(".tbss", TLS, 64, 8);
    let small = object.section(".tdata.small", SHT_PROGBITS, TLS, 1, &[7]);
    let data = object.section(".tdata", SHT_PROGBITS, TLS, 8, &[1, 0, 0, 0, 0, 0, 0, 0]);
    let table = object.section(".rodata", SHT_PROGBITS, RODATA, 8, &[0; 32]);
    for (at, (section, kind)) in
        [(zeros, R_X86_64_TPOFF64), (small, R_X86_64_TPOFF64), (data, R_X86_64_DTPOFF64)].into_iter().enumerate()
    {
        let symbol = variable(&mut object, &format!("v{at}"), section, 0, 1);
        object.relocation(table, 8 * at as u64, kind, symbol, 0);
    }
    let by_section = object.section_symbol(data);
    object.relocation(table, 24, R_X86_64_TPOFF64, by_section, 4);
    let image = parse(&object.build()).unwrap();
    // 1 byte, 7 of padding, 8 bytes; zeros from 64 on, up to a multiple of the alignment.
    let thread = image.thread().unwrap();
    let expected = Thread { template_bytes: 16, size_bytes: 128, align_bytes: 64, errno_offset: 0x34, ..thread };
    assert_eq!(thread, expected);
    assert!(thread.template_offset_bytes.is_multiple_of(64));
    let linked = link(&image);
    let distances: Vec<_> = (0..4).map(|at| u64_at(&linked.rodata, 8 * at) as i64).collect();
    assert_eq!(distances, [64 - 128, -128, 8 - 128, 8 - 128 + 4]);
    let template = &linked.rodata[thread.template_offset_bytes as usize..][..16];
    assert_eq!(template, [7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(image.symbols().iter().all(|symbol| &*symbol.name == "f"), "a variable has no one address to export");
}

#[test]
fn initial_values_may_be_addresses() {
    let mut object = Builder::with_text(&[0xc3]);
    let function = object.function("f", 0, 1);
    let data = object.section(".tdata", SHT_PROGBITS, TLS, 8, &[0; 8]);
    variable(&mut object, "pointer", data, 0, 8);
    object.relocation(data, 0, R_X86_64_64, function, 0);
    let image = parse(&object.build()).unwrap();
    let at = image.thread().unwrap().template_offset_bytes;
    assert_eq!(u64_at(&link(&image).rodata, at), AT.code);
}

#[test]
fn only_variables_that_are_needed_are_made() {
    let mut object = Builder::with_text(&[0x64, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0xc3]);
    object.function("f", 0, 9);
    let used = object.section(".tdata.used", SHT_PROGBITS, TLS, 4, &[1, 2, 3, 4]);
    object.zeros(".tbss.unused", TLS, 4, 4000);
    let symbol = variable(&mut object, "used", used, 0, 4);
    object.relocation(1, 4, R_X86_64_TPOFF32, symbol, 0);
    let image = Image::parse_elf(&object.build(), &Selection::default(), &switched(), &Limits::default()).unwrap();
    assert_eq!(image.thread().unwrap().size_bytes, 4);
    assert_eq!((image.unused().sections, image.unused().bytes), (1, 4000));
    assert_eq!(i32_at(&link(&image).code, 4), -4);
}

#[test]
fn variables_beyond_the_limit_and_those_used_as_if_they_had_one_address_are_refused() {
    let mut object = Builder::with_text(&[0x90; 8]);
    object.zeros(".tbss", TLS, 8, THREAD_MAX_BYTES);
    parse(&object.build()).unwrap();
    let mut object = Builder::with_text(&[0x90; 8]);
    object.zeros(".tbss", TLS, 8, THREAD_MAX_BYTES);
    object.zeros(".tbss.more", TLS, 1, 1);
    let error = parse(&object.build()).unwrap_err();
    assert!(matches!(error, CodeError::TooLarge { max: THREAD_MAX_BYTES, .. }), "{error}");
    for (kind, is_variable) in [(R_X86_64_PC32, true), (R_X86_64_TPOFF32, false), (R_X86_64_TLSGD, false)] {
        let mut object = Builder::with_text(&[0x90; 8]);
        let section = object.zeros(".bss", if is_variable { TLS } else { DATA }, 8, 8);
        let symbol = object.symbol("v", STB_GLOBAL, STT_NOTYPE, SymbolSection(section), 0, 8);
        object.relocation(1, 4, kind, symbol, 0);
        let error = parse(&object.build()).unwrap_err();
        assert!(matches!(error, CodeError::Malformed { .. }), "{error}");
        assert!(error.to_string().contains("variable of the thread"), "{error}");
    }
    let mut object = Builder::with_text(&[0x90; 8]);
    variable(&mut object, "v", 1, 0, 4);
    assert!(parse(&object.build()).unwrap_err().to_string().contains("not thread-local"));
}

#[test]
fn the_function_that_gives_addresses_of_variables_is_refused_where_none_can_stand_for_it() {
    let mut object = Builder::with_text(&[0xe8, 0, 0, 0, 0, 0xc3]);
    object.function("f", 0, 6);
    let getter = object.undefined("__tls_get_addr");
    object.relocation(1, 1, R_X86_64_PLT32, getter, -4);
    let error = parse(&object.build()).unwrap_err();
    let expected = "unsupported object: it is used in another way than compilers do, so that no address can stand for \
                    it in section .text at offset 0x1 for symbol __tls_get_addr";
    assert_eq!(error.to_string(), expected);
}

/// Whether code of one function gets a thread pointer of its own.
fn has_own(code: &[u8]) -> Result<bool, CodeError> {
    let mut object = Builder::with_text(code);
    object.function("f", 0, code.len() as u64);
    Ok(parse(&object.build())?.thread().is_some())
}

#[test]
fn code_that_touches_more_at_its_thread_pointer_than_the_canary_gets_one_of_its_own() {
    for (code, own) in [
        (&[0xc3][..], false),
        // mov %fs:0x28, %rax; sub %fs:0x28, %rdx; xor %fs:0x28, %rcx; cmp %rax, %fs:0x28
        (&[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], false),
        (&[0x64, 0x48, 0x2b, 0x14, 0x25, 0x28, 0, 0, 0], false),
        (&[0x64, 0x48, 0x33, 0x0c, 0x25, 0x28, 0, 0, 0], false),
        (&[0x64, 0x48, 0x39, 0x04, 0x25, 0x28, 0, 0, 0], false),
        // mov %rax, %fs:0x28; mov %fs:0x28, %eax; incq %fs:0x28
        (&[0x64, 0x48, 0x89, 0x04, 0x25, 0x28, 0, 0, 0], true),
        (&[0x64, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], true),
        (&[0x64, 0x48, 0xff, 0x04, 0x25, 0x28, 0, 0, 0], true),
        // mov %fs:0, %rax; movl $34, %fs:0x34; mov %fs:(%rax), %eax; rep movsb %fs:(%rsi), (%rdi)
        (&[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0], true),
        (&[0x64, 0xc7, 0x04, 0x25, 0x34, 0, 0, 0, 34, 0, 0, 0], true),
        (&[0x64, 0x8b, 0x00], true),
        (&[0xf3, 0x64, 0xa4], true),
        // With another prefix before: movdqa %fs:0x40, %xmm0.
        (&[0x66, 0x64, 0x0f, 0x6f, 0x04, 0x25, 0x40, 0, 0, 0], true),
        // The last bytes that belong to it: mov %fs:0x1f8, %rax.
        (&[0x64, 0x48, 0x8b, 0x04, 0x25, 0xf8, 1, 0, 0], true),
        // The same bytes in other instructions: mov $0x64, %eax; add $0x64048b48, %eax; lea 0x65(%rax), %rax; jz +0x64.
        (&[0xb8, 0x64, 0, 0, 0, 0xc3], false),
        (&[0x05, 0x48, 0x8b, 0x04, 0x64, 0x8b, 0x00, 0xc3], false),
        (&[0x48, 0x8d, 0x40, 0x65, 0x8b, 0x00, 0xc3], false),
        // lea %fs:(%rax), %rax; nopl %fs:(%rax)
        (&[0x64, 0x48, 0x8d, 0x00], false),
        (&[0x64, 0x0f, 0x1f, 0x00], false),
        // wrfsbase %rax as a constant: movabs.
        (&[0x48, 0xba, 0xf3, 0x48, 0x0f, 0xae, 0xd0, 0x90, 0x90, 0x90, 0xc3], false),
    ] {
        assert_eq!(has_own(code), Ok(own), "{code:x?}");
    }
}

#[test]
fn code_that_goes_beyond_its_block_or_changes_the_thread_pointer_is_refused_with_the_instruction() {
    for (code, text, what) in [
        (
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0xf9, 1, 0, 0][..],
            "mov rax, qword ptr fs:[0x1f9]",
            "beyond the thread's block",
        ),
        (&[0x64, 0x8b, 0x04, 0x25, 0xfc, 0xff, 0xff, 0xff], "fs:[", "beyond the thread's block"),
        (&[0x64, 0x8b, 0x05, 0, 0, 0, 0], "fs:[", "beyond the thread's block"),
        (&[0x65, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], "mov rax, qword ptr gs:[0x28]", "nothing at %gs"),
        (&[0xf3, 0x48, 0x0f, 0xae, 0xd0], "wrfsbase rax", "changes the thread pointer"),
        (&[0xf3, 0x0f, 0xae, 0xd9], "wrgsbase ecx", "changes the base of %gs"),
    ] {
        let error = has_own(&[&[0x90], code].concat()).unwrap_err();
        let CodeError::ForbiddenInstruction { instruction, by, at } = &error else { panic!("{error}") };
        assert!(instruction.contains(text) && by.as_str().contains(what), "{error}");
        let symbol = Some("f".to_owned());
        let place = Location { section: Some(".text".to_owned()), symbol, offset_bytes: Some(1), object: None };
        assert_eq!((at, error.reason()), (&place, Reason::ForbiddenInstruction));
    }
}

#[test]
fn what_stands_between_functions_is_not_refused_as_it_may_be_a_table() {
    let code = [0xc3, 0x65, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0, 0xc3];
    let mut object = Builder::with_text(&code);
    object.function("f", 0, 1);
    object.function("g", 9, 1);
    assert_eq!(parse(&object.build()).unwrap().thread(), None);
}

#[test]
fn constants_behind_code_that_has_no_size_are_not_refused_but_what_may_run_is() {
    let flat = |code: &[u8]| {
        let entries = vec![FlatEntry { name: "f".to_owned(), offset_bytes: 0 }];
        Image::parse_flat(code, entries, &Limits::default()).map(|_| ())
    };
    // lea msg(%rip), %rax; ret; then text that reads as `outs %gs:(%rsi), (%dx)`.
    let text = b"\x48\x8d\x05\x01\0\0\0\xc3en of it";
    assert!(flat(text).is_ok());
    // mov %gs:(%rax), %rax behind a branch, behind a return that is jumped over, and called.
    let by_gs = [0x65, 0x48, 0x8b, 0x00, 0xc3];
    for before in [&[][..], &[0x75, 1, 0xc3], &[0xe8, 1, 0, 0, 0, 0xc3], &[0xeb, 0], &[0xff, 0xe0]] {
        let error = flat(&[before, &by_gs].concat()).unwrap_err();
        assert_eq!(error.reason(), Reason::ForbiddenInstruction, "{before:x?}: {error}");
    }
    for before in [&[0xc3][..], &[0xeb, 0xfe], &[0x0f, 0x0b]] {
        assert!(flat(&[before, &by_gs].concat()).is_ok(), "{before:x?}");
    }
}

#[test]
fn flat_code_is_read_too() {
    let flat = |code: &[u8]| {
        let entry = FlatEntry { name: "f".to_owned(), offset_bytes: 0 };
        Image::parse_flat(code, vec![entry], &Limits::default()).map(|image| image.thread())
    };
    assert_eq!(flat(&[0xc3]), Ok(None));
    let own = flat(&[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0xc3]).unwrap().unwrap();
    assert_eq!((own.size_bytes, own.align_bytes, own.errno_offset), (0, 1, 0x34));
    assert!(matches!(flat(&[0x65, 0x8b, 0x00, 0xc3]), Err(CodeError::ForbiddenInstruction { .. })));
}

/// A function that calls `host` and `strlen`, and reads `%fs:0` if that is wanted.
fn caller(uses_thread: bool) -> Vec<u8> {
    let load = [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0];
    let calls = [0xe8, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0xc3];
    let code = if uses_thread { [&calls[..], &load].concat() } else { calls.to_vec() };
    let mut object = Builder::with_text(&code);
    object.function("f", 0, code.len() as u64);
    for (offset, name) in [(1, "host"), (6, "strlen")] {
        let symbol = object.undefined(name);
        object.relocation(1, offset, R_X86_64_PLT32, symbol, -4);
    }
    object.build()
}

#[test]
fn host_functions_that_depend_on_the_thread_pointer_are_called_by_the_switch_by_such_code_alone() {
    let linked = link(&parse(&caller(true)).unwrap());
    let at = |offset| (destination(&linked.code, offset) - AT.code) as usize;
    let thunk = &linked.code[at(1)..][..24];
    assert_eq!((&thunk[..2], &thunk[2..10]), (&[0x49, 0xbb][..], &HOST.to_le_bytes()[..]));
    assert_eq!((&thunk[10..12], &thunk[12..20]), (&[0x49, 0xba][..], &SWITCH.to_le_bytes()[..]));
    assert_eq!(thunk[20..23], [0x41, 0xff, 0xe2]);
    assert_eq!(linked.code[at(6)..][..2], [0xff, 0x25], "strlen has an ordinary stub");
    let linked = link(&parse(&caller(false)).unwrap());
    assert_eq!(linked.code[(destination(&linked.code, 1) - AT.code) as usize..][..2], [0xff, 0x25]);
}

#[test]
fn where_code_cannot_have_a_thread_pointer_that_is_said() {
    let error = super::parse(&caller(true)).unwrap_err();
    assert_eq!((error.reason(), &error), (Reason::TargetMismatch, &CodeError::NoThreads));
    assert!(error.to_string().contains("FSGSBASE"), "{error}");
    super::parse(&caller(false)).unwrap();
}

#[test]
fn the_address_of_errno_can_be_asked_for_and_is_that_of_the_images_own_if_there_is_one() {
    for has_own in [false, true] {
        let mut object = Builder::with_text(&[0xe8, 0, 0, 0, 0, 0xc3]);
        object.function("f", 0, 6);
        let location = object.undefined("__errno_location");
        object.relocation(1, 1, R_X86_64_PLT32, location, -4);
        if has_own {
            let section = object.zeros(".tbss", TLS, 4, 12);
            variable(&mut object, "errno", section, 8, 4);
        }
        let image = parse(&object.build()).unwrap();
        let offset = if has_own { -4 } else { 0x34 };
        assert_eq!(image.thread().unwrap().errno_offset, offset);
        let linked = link(&image);
        let at = (destination(&linked.code, 1) - AT.code) as usize;
        // mov %fs:0, %rax; add $offset, %rax; ret
        let expected =
            [&[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x05], &(offset as i32).to_le_bytes()[..], &[0xc3]];
        assert_eq!(linked.code[at..][..16], expected.concat());
    }
}
