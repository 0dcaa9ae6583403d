use object::elf::*;

use super::builder::Builder;
use super::*;

fn refusal(blob: &[u8]) -> String {
    parse(blob).unwrap_err().to_string()
}

#[test]
fn what_is_no_elf_object_is_refused_by_what_it_is() {
    for (blob, part) in [
        (&b"BC\xc0\xde\x35\x14"[..], "LLVM bitcode"),
        (b"\xcf\xfa\xed\xfe\x07\x00\x00\x01", "Mach-O"),
        (b"\x64\x86\x03\x00", "COFF"),
        (b"MZ\x90\x00", "Windows"),
        (b"\x00asm\x01\x00\x00\x00", "WebAssembly"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        (b"\t.text\n\tret\n", "text"),
        (b"\x8d\x04\x37\xc3", "flat code"),
    ] {
        let text = refusal(blob);
        assert!(text.contains(part) && text.len() < 160, "{text}");
    }
}

#[test]
fn an_archive_within_an_archive_is_refused_as_one() {
    let inner = crate::client::archive([("a.o", &b"\x7fELF"[..])]);
    let outer = crate::client::archive([("inner.a", &*inner)]);
    assert!(refusal(&outer).contains("archive within an archive"), "{}", refusal(&outer));
}

#[test]
fn an_object_with_intermediate_code_only_is_refused() {
    let mut object = Builder::with_text(&[0xc3]);
    object.symbol("__gnu_lto_slim", STB_GLOBAL, STT_OBJECT, SHN_COMMON, 1, 1);
    assert!(refusal(&object.build()).contains("-fno-lto"));
}
