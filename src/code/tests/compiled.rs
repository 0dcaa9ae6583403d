//! What compilers made is linked into bytes that somebody has read: each object of `golden/` with a text beside it.
//!
//! CODECACHED_REWRITE_GOLDEN=1 writes the texts anew; the difference is then to be read.

use std::{fmt::Write as _, fs, path::PathBuf};

use super::*;
use crate::code::{Line, Listing};

const OBJECTS: [&str; 5] = ["gcc", "gcc_large", "clang", "rust", "nasm"];
const ROW_BYTES: usize = 16;
/// What a function may have of lines, far more than any here.
const LINES_MAX: usize = 1000;

fn path(name: &str, extension: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/code/tests/golden").join(name).with_extension(extension)
}

#[test]
fn objects_of_compilers_are_linked_into_the_bytes_that_were_reviewed() {
    let is_rewritten = std::env::var_os("CODECACHED_REWRITE_GOLDEN").is_some();
    for name in OBJECTS {
        let image = image(&fs::read(path(name, "o")).unwrap());
        let text = text(&image, &link(&image));
        if is_rewritten {
            fs::write(path(name, "txt"), &text).unwrap();
        }
        let golden = fs::read_to_string(path(name, "txt")).unwrap();
        let differs = golden.lines().zip(text.lines()).find(|(golden, now)| golden != now);
        assert!(differs.is_none(), "{name}: reviewed, and now: {differs:#?}");
        assert_eq!(golden, text, "{name}");
    }
}

#[test]
fn what_was_reviewed_moves_with_its_addresses_and_nothing_else_changes() {
    let moved = Addresses { code: AT.code + 0x40_0000, rodata: AT.rodata + 0x40_0000, data: AT.data + 0x40_0000 };
    for name in OBJECTS {
        let image = image(&fs::read(path(name, "o")).unwrap());
        let (here, there) = (link(&image), link_at(&image, moved).unwrap());
        // What is relative within the image stays; whole addresses are all of one distance.
        let mut moved = 0;
        for (here, there) in [(here.rodata, there.rodata), (here.data, there.data)] {
            for (at, (here, there)) in here.chunks_exact(8).zip(there.chunks_exact(8)).enumerate() {
                let distance = u64_at(there, 0).wrapping_sub(u64_at(here, 0));
                assert!(matches!(distance, 0 | 0x40_0000), "{name}: {distance:#x} at {:#x}", 8 * at);
                moved += usize::from(distance != 0);
            }
        }
        assert!(moved >= 3, "{name}: {moved} addresses");
    }
}

fn image(blob: &[u8]) -> Image {
    let imports = ["strlen", "memcpy", "__udivti3"].into_iter().zip((HOST..).step_by(0x1000));
    Image::parse_elf(blob, &Selection::default(), &ImportTable::new(imports), &Limits::default()).unwrap()
}

fn text(image: &Image, linked: &Linked) -> String {
    let mut text = String::new();
    let sizes = image.sizes();
    for (name, part, at) in
        [("code", sizes.code, AT.code), ("read-only data", sizes.rodata, AT.rodata), ("data", sizes.data, AT.data)]
    {
        writeln!(text, "{name}: {} bytes aligned to {} at {at:#x}", part.size_bytes, part.align_bytes).unwrap();
    }
    writeln!(text, "\nsymbols").unwrap();
    for symbol in image.symbols() {
        let (part, at, size) = (symbol.part, symbol.offset_bytes, symbol.size_bytes);
        writeln!(text, "  {:<10} {part:?} {at:#x}, {size} bytes", symbol.name).unwrap();
    }
    writeln!(text, "\ncode").unwrap();
    code(&mut text, image, &linked.code);
    for (name, bytes) in [("read-only data", &linked.rodata), ("data", &linked.data)] {
        writeln!(text, "\n{name}").unwrap();
        for (row, bytes) in bytes.chunks(ROW_BYTES).enumerate() {
            let shown = bytes.escape_ascii().to_string();
            let readable = if shown.len() == bytes.len() { format!(" {shown}") } else { String::new() };
            writeln!(text, "  {:04x}  {}{readable}", row * ROW_BYTES, hex(bytes)).unwrap();
        }
    }
    text
}

fn code(text: &mut String, image: &Image, code: &[u8]) {
    let listing = Listing::new(AT, code.len() as u64, image.functions(), image.symbols());
    let lines = listing.lines(code, 0, LINES_MAX);
    // What fills up to the next function is one line.
    let is_filling = |line: &Line| line.size_bytes == 1 && matches!(&*line.text, "int3" | "nop");
    for lines in lines.chunk_by(|a, b| is_filling(a) && is_filling(b) && a.text == b.text) {
        let (line, count) = (&lines[0], lines.len());
        if let Some(name) = listing.starts(line.offset_bytes) {
            writeln!(text, "{name}:").unwrap();
        }
        let bytes = &code[line.offset_bytes as usize..][..line.size_bytes as usize];
        let times = if count > 1 { format!(", {count} times") } else { String::new() };
        writeln!(text, "  {:04x}  {:<30} {}{times}", line.offset_bytes, hex(bytes), line.text).unwrap();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
