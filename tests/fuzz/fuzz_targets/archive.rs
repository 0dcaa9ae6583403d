//! Any bytes as an archive, and as the members of a well-formed one: an error, or an image within its limits that links or
//! says why not.
#![no_main]

use codecached::{
    client::archive,
    code::{Addresses, Image, ImportTable, Limits, Selection, ThreadSwitch},
};
use libfuzzer_sys::fuzz_target;

const AT: Addresses = Addresses { code: 0x7f00_0000_0000, rodata: 0x7f00_1000_0000, data: 0x7f00_2000_0000 };
/// What divides the input into members: the start of an object.
const DIVIDER: &[u8] = b"\x7fELF";

fuzz_target!(|bytes: &[u8]| {
    let starts = bytes.windows(DIVIDER.len()).enumerate().filter(|(_, it)| *it == DIVIDER).map(|(at, _)| at);
    let ends: Vec<usize> = starts.chain([bytes.len()]).collect();
    let members = ends.windows(2).map(|it| ("member.o", &bytes[it[0]..it[1]]));
    // Names of what the search begins with.
    let roots = ["f", "bump", "crc32", "cbrt", "LZ4_compress_default"].map(str::to_owned).to_vec();
    for blob in [archive(members.collect::<Vec<_>>()), [&b"!<arch>\n"[..], bytes].concat()] {
        for selection in [Selection::default(), Selection { roots: roots.clone(), keep_unwind: true, ..Selection::default() }] {
            link(&blob, &selection);
        }
    }
});

fn link(blob: &[u8], selection: &Selection) {
    let limits = Limits { image_max_bytes: 1 << 20, ..Limits::default() };
    let imports =
        ["memcpy", "malloc", "strlen", "memset", "free", "__udivti3"].into_iter().zip((0x5555_0000_1000..).step_by(16));
    let switch = ThreadSwitch { address: 0x5555_0000_3000, direct: Box::default() };
    let imports = ImportTable::new(imports).with_thread_switch(Some(switch));
    let Ok(image) = Image::parse_elf(blob, selection, &imports, &limits) else { return };
    let sizes = image.sizes();
    let [mut code, mut rodata, mut data] =
        [sizes.code, sizes.rodata, sizes.data].map(|part| vec![0; part.size_bytes as usize]);
    assert!(code.len() + rodata.len() + data.len() <= 1 << 20, "the image is larger than its limit");
    let _ = image.link(AT, &mut code, &mut rodata, &mut data);
}
