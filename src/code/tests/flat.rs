use super::super::{FlatEntry, Reason};
use super::*;

const BLOB: [u8; 4] = [0x31, 0xc0, 0xc3, 0xc3];

fn entry(name: &str, offset_bytes: u64) -> FlatEntry {
    FlatEntry { name: name.to_owned(), offset_bytes }
}

fn flat(entries: Vec<FlatEntry>) -> Result<Image, CodeError> {
    Image::parse_flat(&BLOB, entries, &Limits::default())
}

#[test]
fn flat_code_is_linked_as_it_is() {
    let image = flat(vec![entry("zero", 0), entry("nothing", 2)]).unwrap();
    let linked = link(&image);
    assert_eq!(linked, Linked { code: BLOB.to_vec(), rodata: vec![], data: vec![] });
    assert_eq!(image.sizes().code.align_bytes, 64);
    let symbols: Vec<_> = image.symbols().iter().map(|s| (&*s.name, s.offset_bytes, s.is_function)).collect();
    assert_eq!(symbols, [("nothing", 2, true), ("zero", 0, true)], "in name order");
    let functions: Vec<_> = image.functions().iter().map(|f| &*f.name).collect();
    assert_eq!(functions, ["zero", "nothing"], "in order of offset");
}

#[test]
fn two_names_may_share_an_entry_point() {
    assert_eq!(flat(vec![entry("a", 0), entry("b", 0)]).unwrap().symbols().len(), 2);
}

#[test]
fn wrong_entries_are_named_by_place_and_offset() {
    let long = "n".repeat(1025);
    let cases = [
        (vec![entry("ok", 0), entry("", 0)], 1, "its name is empty"),
        (vec![entry("ok", 0), entry(&long, 0)], 1, "its name is too long"),
        (vec![entry("ok", 0), entry("end", 4)], 1, "its offset is not in the blob"),
        (vec![entry("far", u64::MAX)], 0, "its offset is not in the blob"),
        (vec![entry("same", 0), entry("other", 1), entry("same", 2)], 2, "its name is given twice"),
    ];
    for (entries, wrong, problem) in cases {
        let offset = entries[wrong].offset_bytes;
        let error = flat(entries).unwrap_err();
        assert_eq!(error.reason(), Reason::InvalidField);
        let CodeError::InvalidEntry { index, offset_bytes, what, .. } = error else { panic!("{error}") };
        assert_eq!((index, offset_bytes, what), (wrong, offset, problem));
    }
}

#[test]
fn the_number_of_entries_is_bounded() {
    let entries = |count: u64| (0..count).map(|index| entry(&index.to_string(), 0)).collect();
    assert_eq!(flat(entries(4096)).unwrap().symbols().len(), 4096);
    for count in [0, 4097] {
        let error = flat(entries(count)).unwrap_err();
        assert_eq!(error, CodeError::EntryCount { count: count as usize, max: 4096 });
        assert_eq!(error.reason(), Reason::InvalidField);
    }
}

#[test]
fn size_limits_hold_for_flat_code() {
    let entries = || vec![entry("f", 0)];
    let parse = |blob: &[u8], limits| Image::parse_flat(blob, entries(), &limits).map(|_| ()).map_err(|e| e.reason());
    let exact = Limits { blob_max_bytes: 4, image_max_bytes: 4, ..Limits::default() };
    assert_eq!(parse(&BLOB, exact), Ok(()));
    assert_eq!(parse(&BLOB, Limits { blob_max_bytes: 3, ..exact }), Err(Reason::BlobTooLarge));
    assert_eq!(parse(&BLOB, Limits { image_max_bytes: 3, ..exact }), Err(Reason::BlobTooLarge));
    assert_eq!(parse(&[], exact), Err(Reason::MalformedObject));
}

#[test]
fn imports_are_sorted_and_the_first_of_a_name_is_kept() {
    let table = ImportTable::new([("b", 2), ("a", 1), ("b", 3)]);
    assert_eq!(table.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((table.get("a"), table.get("b"), table.get("c")), (Some(1), Some(2), None));
}
