//! Any bytes as an object: an error, or an image within its limits that links or says why not.
#![no_main]

use codecached::code::{Addresses, Image, ImportTable, Limits, Screened, Selection};
use libfuzzer_sys::fuzz_target;

const AT: Addresses = Addresses { code: 0x7f00_0000_0000, rodata: 0x7f00_1000_0000, data: 0x7f00_2000_0000 };

fuzz_target!(|blob: &[u8]| {
    let limits = Limits { image_max_bytes: 1 << 20, ..Limits::default() };
    let imports = ImportTable::new([("memcpy", 0x5555_0000_1000), ("malloc", 0x5555_0000_2000)]);
    let diagnosed = Image::diagnose_elf(blob, &Selection::default(), &imports, &limits);
    let parsed = Image::parse_elf(blob, &Selection::default(), &imports, &limits);
    assert_eq!(diagnosed.is_ok(), parsed.is_ok(), "what is taken has no problem, and what is refused has one");
    let Ok(image) = parsed else { return };
    let sizes = image.sizes();
    let buffer = |bytes: u64| vec![0; bytes as usize];
    let (mut code, mut rodata) = (buffer(sizes.code.size_bytes), buffer(sizes.rodata.size_bytes));
    let mut data = buffer(sizes.data.size_bytes);
    assert!((code.len() + rodata.len() + data.len()) as u64 <= limits.image_max_bytes);
    let screened = image.screen();
    assert!(screened.findings.len() as u64 <= screened.total && screened.findings.len() <= Screened::FINDINGS_MAX);
    let linked = image.link(AT, &mut code, &mut rodata, &mut data);
    assert_eq!(linked.is_ok(), image.diagnose_link(AT).is_empty());
});
