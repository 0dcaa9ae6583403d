use object::elf::*;
use proptest::prelude::*;

use super::builder::{Builder, DATA, RODATA};
use super::*;

/// Addresses within reach of each other, anywhere.
fn anywhere() -> impl Strategy<Value = Addresses> {
    (0x1000_u64..0x7fff_0000, 0_u64..0x1000_0000, 0_u64..0x1000_0000).prop_map(|(base, rodata, data)| {
        let start = base << 16;
        Addresses { code: start, rodata: start + (rodata & !63), data: start + (data & !63) }
    })
}

/// What an image is that was linked for `from` and then moved.
fn moved(image: &Image, from: Addresses, to: Addresses) -> Result<Linked, MoveError> {
    let Linked { mut code, mut rodata, mut data } = link_at(image, from).unwrap();
    image.link_state().relink(from, to, &mut code, &mut rodata, &mut data)?;
    Ok(Linked { code, rodata, data })
}

/// Fields of every width that can move, in all parts, to all parts, to the host and to nowhere.
fn object() -> Vec<u8> {
    let mut object = Builder::with_text(&[0x90; 256]);
    let second = object.section(".text.second", SHT_PROGBITS, super::builder::TEXT, 16, &[0x90; 512]);
    let data = object.section(".data", SHT_PROGBITS, DATA, 8, &[7; 300]);
    let rodata = object.section(".rodata", SHT_PROGBITS, RODATA, 8, &[9; 64]);
    object.zeros(".bss", DATA, 8, 40);
    let function = object.symbol("function", STB_GLOBAL, STT_FUNC, SymbolSection(second), 3, 1);
    let variable = object.symbol("variable", STB_GLOBAL, STT_OBJECT, SymbolSection(data), 8, 8);
    let constant = object.symbol("constant", STB_GLOBAL, STT_OBJECT, SymbolSection(rodata), 8, 8);
    let symbols = [function, variable, constant, object.undefined("host")];
    let absolute = object.symbol("absolute", STB_GLOBAL, STT_NOTYPE, SHN_ABS, 5, 0);
    for (at, &symbol) in symbols.iter().enumerate() {
        let at = 64 * at as u64;
        object.relocation(1, at, R_X86_64_64, symbol, 1);
        object.relocation(1, at + 8, R_X86_64_PLT32, symbol, -4);
        object.relocation(1, at + 16, R_X86_64_PC64, symbol, 3);
        object.relocation(1, at + 24, R_X86_64_GOTPCREL, symbol, -4);
        object.relocation(1, at + 32, R_X86_64_GOTPC32, symbol, 8);
        object.relocation(1, at + 40, R_X86_64_GOTOFF64, symbol, 1);
        object.relocation(1, at + 48, R_X86_64_GOT64, symbol, 0);
        object.relocation(1, at + 56, R_X86_64_PLTOFF64, symbol, 0);
        object.relocation(data, at, R_X86_64_64, symbol, 0);
        object.relocation(data, at + 8, R_X86_64_PC64, symbol, 0);
        object.relocation(rodata, at / 8, R_X86_64_64, symbol, -1);
    }
    object.relocation(data, 290, R_X86_64_32, absolute, 0);
    object.relocation(data, 296, R_X86_64_32S, absolute, -9);
    object.build()
}

proptest! {
    #[test]
    fn a_moved_image_is_what_linking_makes_there(from in anywhere(), to in anywhere()) {
        for blob in [object(), SAMPLE.to_vec()] {
            let image = parse(&blob).unwrap();
            prop_assert_eq!(moved(&image, from, to).unwrap(), link_at(&image, to).unwrap());
        }
    }
}

#[test]
fn a_field_takes_two_bytes_and_one_that_never_changes_takes_none() {
    let image = parse(&object()).unwrap();
    let state = image.link_state();
    // In the code: the stub of the host and two fields of its own function are as far away wherever it lies, slots as far
    // from the first one, the constant too, and the host where it is. In the data the variable and the host.
    let code = 4 * 8 - (1 + 2 + 4 + 2 + 1);
    let (data, rodata, slots, stubs) = (4 * 2 - 2, 4 - 1, 4 - 1, 1);
    assert_eq!(state.fields(), code + data + rodata + slots + stubs);
    // The stub is behind the second section, farther from the field before it than one byte says.
    assert_eq!(state.heap_bytes(), 2 * state.fields() as u64 + 1);

    let image = parse(&Builder::with_text(&[0xc3]).build()).unwrap();
    assert_eq!((image.link_state().fields(), image.link_state().heap_bytes()), (0, 0));
}

#[test]
fn fields_far_apart_are_found_again() {
    let mut object = Builder::with_text(&vec![0x90; 3 << 20]);
    let variable = object.section(".data", SHT_PROGBITS, DATA, 8, &[0; 8]);
    let variable = object.symbol("variable", STB_GLOBAL, STT_OBJECT, SymbolSection(variable), 0, 8);
    for at in [0, 127 + 4, 16_000, 16_384 + 16_000, (3 << 20) - 4] {
        object.relocation(1, at, R_X86_64_PC32, variable, 0);
    }
    let image = parse(&object.build()).unwrap();
    let to = Addresses { code: AT.code - 0x1000, ..AT };
    assert_eq!(moved(&image, AT, to).unwrap(), link_at(&image, to).unwrap());
    assert_eq!(image.link_state().heap_bytes(), 2 + 3 + 3 + 4 + 5);
}

#[test]
fn what_does_not_reach_is_an_error_that_says_where() {
    let image = parse(&object()).unwrap();
    let far = Addresses { data: AT.data + (1 << 32), ..AT };
    let error = moved(&image, AT, far).unwrap_err();
    assert_eq!(error, MoveError::OutOfReach { part: PartKind::Code, offset_bytes: 64 + 8 });
    assert!(link_at(&image, far).is_err());
}

#[test]
fn fields_that_lie_over_each_other_cannot_be_moved() {
    for (distance, is_moved) in [(0, false), (3, false), (4, true)] {
        let mut object = Builder::with_text(&[0x90; 32]);
        let data = object.section(".data", SHT_PROGBITS, DATA, 8, &[0; 8]);
        let variable = object.symbol("variable", STB_GLOBAL, STT_OBJECT, SymbolSection(data), 0, 8);
        object.relocation(1, 8, R_X86_64_PC32, variable, 0);
        object.relocation(1, 8 + distance, R_X86_64_PC32, variable, 1);
        let image = parse(&object.build()).unwrap();
        let moved = moved(&image, AT, Addresses { code: AT.code + 64, ..AT });
        assert_eq!(moved.err(), (!is_moved).then_some(MoveError::Overlapping), "{distance} bytes apart");
    }
}
