//! Any bytes as an object: an error, or an image within its limits that links or says why not; moved, it is what linking
//! makes there.
#![no_main]

use codecached::code::{Addresses, Image, ImportTable, Limits, MoveError, Screened, Selection};
use libfuzzer_sys::fuzz_target;

const AT: Addresses = Addresses { code: 0x7f00_0000_0000, rodata: 0x7f00_1000_0000, data: 0x7f00_2000_0000 };
const THERE: Addresses = Addresses { code: 0x6f00_1000_0000, rodata: 0x6f00_0000_0000, data: 0x6f00_3000_0040 };
const LOW: Addresses = Addresses { code: 0x1000_0000, rodata: 0x1800_0000, data: 0x2000_0000 };
const LOW_THERE: Addresses = Addresses { code: 0x3000_1000, rodata: 0x2000_0000, data: 0x5000_0040 };

fuzz_target!(|blob: &[u8]| {
    let limits = Limits { image_max_bytes: 1 << 20, ..Limits::default() };
    let imports =
        ["memcpy", "malloc", "strlen", "memset", "free", "__udivti3"].into_iter().zip((0x5555_0000_1000..).step_by(16));
    let imports = ImportTable::new(imports);
    let diagnosed = Image::diagnose_elf(blob, &Selection::default(), &[], &imports, &limits);
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
    for (at, there) in [(LOW, LOW_THERE), (AT, THERE)] {
        let linked = image.link(at, &mut code, &mut rodata, &mut data);
        assert_eq!(linked.is_ok(), image.diagnose_link(at).is_empty());
        if linked.is_err() {
            continue;
        }
        let moved = image.link_state().relink(at, there, &mut code, &mut rodata, &mut data);
        let [mut code_there, mut rodata_there, mut data_there] = [&code, &rodata, &data].map(|it| vec![0; it.len()]);
        let linked = image.link(there, &mut code_there, &mut rodata_there, &mut data_there);
        match moved {
            Ok(()) if linked.is_ok() => assert!(code == code_there && rodata == rodata_there && data == data_there),
            Ok(()) | Err(MoveError::Overlapping) => (),
            Err(error) => assert!(linked.is_err(), "{error}, but it can be linked there"),
        }
    }
});
