use object::elf::*;

use super::builder::{Builder, DATA, RODATA};
use super::*;

/// A function that calls a host function twice, loads a variable through the GOT, which is not needed as it is near, and
/// reads a constant.
fn object() -> Vec<u8> {
    #[rustfmt::skip]
    let mut object = Builder::with_text(&[
        0xe8, 0, 0, 0, 0,                   // 00 call host
        0xe8, 0, 0, 0, 0,                   // 05 call host
        0x48, 0x8b, 0x05, 0, 0, 0, 0,       // 0a mov variable@GOTPCREL(%rip), %rax
        0x8b, 0x00,                         // 11 mov (%rax), %eax
        0x03, 0x05, 0, 0, 0, 0,             // 13 add constant(%rip), %eax
        0xc3,                               // 19 ret
    ]);
    let second = object.section(".text.second", SHT_PROGBITS, super::builder::TEXT, 16, &[0xc3]);
    let data = object.section(".data", SHT_PROGBITS, DATA, 4, &[1, 0, 0, 0]);
    let rodata = object.section(".rodata", SHT_PROGBITS, RODATA, 4, &[0, 0, 0, 0, 9, 0, 0, 0]);
    let pointers = object.section(".data.rel.ro", SHT_PROGBITS, DATA, 8, &[0; 8]);
    object.zeros(".bss", DATA, 8, 4);
    let host = object.undefined("host");
    let variable = object.symbol("variable", STB_GLOBAL, STT_OBJECT, SymbolSection(data), 0, 4);
    let constants = object.section_symbol(rodata);
    let tail = object.symbol("tail", STB_GLOBAL, STT_FUNC, SymbolSection(second), 0, 1);
    object.function("main", 0, 26);
    object.relocation(1, 1, R_X86_64_PLT32, host, -4);
    object.relocation(1, 6, R_X86_64_PC32, host, -4);
    object.relocation(1, 0xd, R_X86_64_REX_GOTPCRELX, variable, -4);
    // The second constant: 4, less the 4 bytes to the end of the instruction.
    object.relocation(1, 0x15, R_X86_64_PC32, constants, 0);
    object.relocation(pointers, 0, R_X86_64_64, tail, 0);
    object.build()
}

#[test]
fn a_known_object_is_linked_into_known_bytes() {
    let image = parse(&object()).unwrap();
    let linked = link(&image);
    #[rustfmt::skip]
    assert_eq!(linked.code, [
        0xe8, 0x23, 0x00, 0x00, 0x00,               // 00 call 28, the stub
        0xe8, 0x1e, 0x00, 0x00, 0x00,               // 05 call 28
        0x48, 0x8d, 0x05, 0xef, 0xff, 0xff, 0x1f,   // 0a lea 0x1fffffef(%rip), %rax: the variable at 20000000
        0x8b, 0x00,                                 // 11 mov (%rax), %eax
        0x03, 0x05, 0xeb, 0xff, 0xff, 0x0f,         // 13 add 0xfffffeb(%rip), %eax: the 9 at 10000004
        0xc3,                                       // 19 ret
        0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,         // 1a up to the alignment of the next section
        0xc3,                                       // 20 tail
        0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,   // 21 up to the alignment of stubs
        0xff, 0x25, 0xe2, 0xff, 0xff, 0x0f,         // 28 jmp *0xfffffe2(%rip): slot 0 at 10000010
        0xcc, 0xcc,
    ]);
    #[rustfmt::skip]
    assert_eq!(linked.rodata, [
        0, 0, 0, 0, 9, 0, 0, 0,                     // 00 .rodata
        0x20, 0, 0, 0, 0x00, 0x7f, 0, 0,            // 08 .data.rel.ro: tail
        0x30, 0x12, 0, 0, 0x55, 0x55, 0, 0,         // 10 slot 0: host
    ]);
    assert_eq!(linked.data, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], ".data, padding, .bss");
    assert_eq!(image.data_init_bytes(), 4);
    let part = |size_bytes, align_bytes| super::super::Part { size_bytes, align_bytes };
    let sizes = image.sizes();
    assert_eq!((sizes.code, sizes.rodata, sizes.data), (part(0x30, 16), part(0x18, 8), part(12, 8)));
}

#[test]
fn every_byte_of_the_buffers_is_written() {
    let image = parse(&object()).unwrap();
    let (mut code, mut rodata, mut data) = ([0x11; 0x30], [0x22; 0x18], [0x33; 12]);
    image.link(AT, &mut code, &mut rodata, &mut data).unwrap();
    let linked = Linked { code: code.to_vec(), rodata: rodata.to_vec(), data: data.to_vec() };
    assert_eq!(linked, link(&image), "other garbage before, the same bytes after");
}
