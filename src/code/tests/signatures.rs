use object::elf::*;

use super::super::{Number, Parameter, Signature, Undeclarable, parse_declaration};
use super::builder::{Builder, DATA};
use super::*;

fn image() -> Image {
    let mut object = Builder::with_text(&[0xc3; 8]);
    object.function("f", 0, 1);
    object.hidden_function("hidden", 4, 1);
    let data = object.section(".data", SHT_PROGBITS, DATA, 4, &[1, 0, 0, 0]);
    object.symbol("variable", STB_GLOBAL, STT_OBJECT, SymbolSection(data), 0, 4);
    parse(&object.build()).unwrap()
}

#[test]
fn exported_functions_are_declared_once_and_nothing_else_is() {
    let mut image = image();
    let (name, signature) = parse_declaration("i32 f(bytes, u64)").unwrap();
    assert_eq!(image.declare(name, signature), Ok(()));
    assert_eq!(image.declare("f", signature), Err(Undeclarable::Twice));
    assert_eq!(image.declare("hidden", signature), Err(Undeclarable::Absent));
    assert_eq!(image.declare("variable", signature), Err(Undeclarable::NoFunction));
    let declared = image.symbols().iter().find(|it| &*it.name == "f").unwrap().signature.as_deref();
    assert_eq!(declared, Some(&signature));
    assert_eq!(signature.result(), Some(Number::I32));
    assert_eq!(signature.parameters(), [Parameter::Bytes, Parameter::Number(Number::U64)]);
}

#[test]
fn a_signature_has_sixteen_parameters_at_most() {
    let sixteen = Signature::new(None, &[Parameter::Pointer; 16]).unwrap();
    assert_eq!(sixteen.parameters().len(), 16);
    assert_eq!(Signature::new(None, &[Parameter::Pointer; 17]).unwrap_err().given, 17);
}
