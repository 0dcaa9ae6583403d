//! Tests of the room. `builder` writes objects by hand, so that each rule can be broken alone; `sample.o` is what a
//! compiler made of `sample.c`.

mod builder;
mod compiled;
mod diagnosis;
mod disasm;
mod flat;
mod foreign;
mod golden;
mod hostile;
mod link_state;
mod low;
mod objects;
mod properties;
mod providers;
mod relocations;
mod screen;
mod sections;
mod several;
mod signatures;
mod startup;
mod symbols;
mod thread;
mod unwind;

use super::{Addresses, CodeError, Image, ImportTable, Limits, MoveError, PartKind, Selection, ThreadSwitch};

/// An object of real compiler output; the command is in its source.
const SAMPLE: &[u8] = include_bytes!("sample.o");

/// Run addresses as an arena gives them: within reach of each other, far from everything else.
const AT: Addresses = Addresses { code: 0x7f00_0000_0000, rodata: 0x7f00_1000_0000, data: 0x7f00_2000_0000 };

/// Address of the host function `host` in these tests: out of reach of 32-bit displacements.
const HOST: u64 = 0x5555_0000_1230;

/// Offers `host`, and what `sample.c` needs.
fn imports() -> ImportTable {
    ImportTable::new([("host", HOST), ("memcpy", HOST + 0x1000), ("strlen", HOST + 0x2000)])
}

/// Where calls of host functions go from code with a thread pointer of its own, in these tests.
const SWITCH: u64 = 0x5555_0001_0000;

/// The same for a host where code can have a thread pointer of its own; `strlen` does not depend on it.
fn switched() -> ImportTable {
    imports().with_thread_switch(Some(ThreadSwitch { address: SWITCH, direct: [HOST + 0x2000].into() }))
}

/// Also those that no symbol needs, so that a test need not name each.
fn all_sections() -> Selection {
    Selection { keep_unused: true, ..Selection::default() }
}

fn parse(blob: &[u8]) -> Result<Image, CodeError> {
    Image::parse_elf(blob, &all_sections(), &imports(), &Limits::default())
}

/// The three parts of an image after linking.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Linked {
    code: Vec<u8>,
    rodata: Vec<u8>,
    data: Vec<u8>,
}

/// Links `image` for `at`. What can be linked elsewhere too can be moved there, and is the same then.
fn link_at(image: &Image, at: Addresses) -> Result<Linked, CodeError> {
    const ELSEWHERE: Addresses = Addresses { code: 0x6f00_1000_0000, rodata: 0x6f00_0000_0000, data: 0x6f00_3000_0040 };
    const LOW: Addresses = Addresses { code: 0x3000_1000, rodata: 0x2000_0000, data: 0x5000_0040 };
    let elsewhere = if image.needs_low() { LOW } else { ELSEWHERE };
    let linked = write_at(image, at)?;
    if let Ok(there) = write_at(image, elsewhere) {
        let Linked { mut code, mut rodata, mut data } = linked.clone();
        match image.link_state().relink(at, elsewhere, &mut code, &mut rodata, &mut data) {
            Ok(()) => assert_eq!(Linked { code, rodata, data }, there, "moved"),
            Err(error) => assert_eq!(error, MoveError::Overlapping),
        }
    }
    Ok(linked)
}

/// Writes the parts of `image` into buffers that start as garbage.
fn write_at(image: &Image, at: Addresses) -> Result<Linked, CodeError> {
    let sizes = image.sizes();
    let dirty = |part: super::Part| vec![0xa5; part.size_bytes as usize];
    let (mut code, mut rodata, mut data) = (dirty(sizes.code), dirty(sizes.rodata), dirty(sizes.data));
    image.link(at, &mut code, &mut rodata, &mut data)?;
    Ok(Linked { code, rodata, data })
}

fn link(image: &Image) -> Linked {
    link_at(image, AT).unwrap()
}

fn u64_at(bytes: &[u8], offset: u64) -> u64 {
    u64::from_le_bytes(bytes[offset as usize..][..8].try_into().unwrap())
}

fn i32_at(bytes: &[u8], offset: u64) -> i64 {
    i64::from(i32::from_le_bytes(bytes[offset as usize..][..4].try_into().unwrap()))
}

/// The address that a displacement at `offset` of the code means for an instruction that ends with it.
fn destination(code: &[u8], offset: u64) -> u64 {
    (AT.code + offset + 4).checked_add_signed(i32_at(code, offset)).unwrap()
}

/// Address and part of the exported symbol `name`.
fn export(image: &Image, name: &str) -> (PartKind, u64) {
    let index = image.symbols().binary_search_by(|symbol| (*symbol.name).cmp(name)).unwrap();
    (image.symbols()[index].part, image.symbols()[index].offset_bytes)
}
