use proptest::collection::vec;
use proptest::prelude::*;

use super::super::FlatEntry;
use super::*;

/// Small enough that a blob that gets past a limit is seen, large enough that the sample fits.
const LIMITS: Limits = Limits {
    blob_max_bytes: 16 << 10,
    image_max_bytes: 64 << 10,
    sections_max: 64,
    symbols_max: 64,
    relocations_max: 64,
    symbol_name_max_bytes: 64,
    align_max_bytes: 4096,
};

/// Text of errors at most: they travel in response trailers.
const ERROR_TEXT_MAX_BYTES: usize = 4096;

/// Numbers at which checks go wrong.
const EDGES: [u64; 12] =
    [0, 1, 7, 24, 0xff, 0xfff1, 0xffff, 1 << 31, u32::MAX as u64, 1 << 63, i64::MAX as u64, u64::MAX];

/// Overwrites up to 8 bytes of a blob.
#[derive(Debug, Clone)]
struct Edit {
    /// Of the whole blob, so that it fits any.
    place: prop::sample::Index,
    value: u64,
    width: usize,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let value = prop_oneof![prop::sample::select(EDGES.to_vec()), any::<u64>(), 0..64u64];
    let edit = (any::<prop::sample::Index>(), value, prop::sample::select(vec![1usize, 2, 4, 8]));
    vec(edit.prop_map(|(place, value, width)| Edit { place, value, width }), 1..6)
}

fn edited(mut blob: Vec<u8>, range: std::ops::Range<usize>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        // Fields are aligned to their width: what is overwritten is most often one of them.
        let start = (range.start + edit.place.index(range.len())) / edit.width * edit.width;
        let end = blob.len().min(start + edit.width);
        blob[start..end].copy_from_slice(&edit.value.to_le_bytes()[..end - start]);
    }
    blob
}

fn config() -> ProptestConfig {
    // Each case of the interpreter is slow; elsewhere PROPTEST_CASES in the environment asks for more.
    let cases = if cfg!(miri) { 16 } else { ProptestConfig::default().cases.max(1000) };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// What must hold of whatever became of a blob.
fn check(result: Result<Image, CodeError>) {
    match result {
        Ok(image) => check_image(&image),
        Err(error) => check_error(&error),
    }
}

fn check_error(error: &CodeError) {
    let text = error.to_string();
    assert!(text.len() <= ERROR_TEXT_MAX_BYTES && !text.contains('\n'), "{text}");
    assert!(!error.reason().as_str().is_empty());
}

fn check_image(image: &Image) {
    let sizes = image.sizes();
    let parts = [sizes.code, sizes.rodata, sizes.data];
    assert!(parts.iter().map(|part| part.size_bytes).sum::<u64>() <= LIMITS.image_max_bytes, "{sizes:?}");
    for part in parts {
        assert!(part.align_bytes.is_power_of_two() && part.align_bytes <= LIMITS.align_max_bytes, "{sizes:?}");
    }
    assert!(image.data_init_bytes() <= sizes.data.size_bytes);
    assert!(image.symbols().is_sorted_by(|a, b| a.name < b.name), "sorted and unique");
    for symbol in image.symbols() {
        let part = match symbol.part {
            PartKind::Code => sizes.code,
            PartKind::Rodata => sizes.rodata,
            PartKind::Data => sizes.data,
        };
        assert!(symbol.offset_bytes + symbol.size_bytes <= part.size_bytes, "{symbol:?} {sizes:?}");
        assert!(!symbol.is_function || symbol.part == PartKind::Code, "{symbol:?}");
        assert!(!symbol.is_function || symbol.offset_bytes < sizes.code.size_bytes, "{symbol:?}");
    }
    assert!(image.functions().is_sorted_by_key(|function| function.offset_bytes));
    const LOW: Addresses = Addresses { code: 0x1000_0000, rodata: 0x1800_0000, data: 0x2000_0000 };
    assert_eq!(image.needs_low(), image.low_problem().is_some());
    for at in [LOW, AT] {
        let linked = link_at(image, at);
        assert_eq!(linked.is_ok(), image.diagnose_link(at).is_empty());
        match linked {
            Ok(linked) => assert!(linked.data[image.data_init_bytes() as usize..].iter().all(|&byte| byte == 0)),
            Err(error) => check_error(&error),
        }
    }
    assert!(!image.needs_low() || link_at(image, AT).is_err(), "elsewhere it cannot run");
    if let Err(error) = link_at(image, Addresses { code: u64::MAX, rodata: 0, data: 1 << 63 }) {
        check_error(&error);
    }
}

fn parse_small(blob: &[u8]) -> Result<Image, CodeError> {
    let parsed = Image::parse_elf(blob, &all_sections(), &imports(), &LIMITS);
    match Image::diagnose_elf(blob, &all_sections(), &[], &imports(), &LIMITS) {
        Ok(_) => assert!(parsed.is_ok(), "nothing is diagnosed: {parsed:?}"),
        Err(found) => {
            assert!(parsed.is_err() && found.total >= found.problems.len() as u64 && !found.problems.is_empty());
            found.problems.iter().for_each(check_error);
        }
    }
    parsed
}

#[test]
fn the_sample_is_within_the_limits_of_these_tests() {
    check_image(&parse_small(SAMPLE).unwrap());
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_bytes_are_an_error(blob in vec(any::<u8>(), 0..512)) {
        check_error(&parse_small(&blob).unwrap_err());
    }

    #[test]
    fn an_object_with_random_bytes_behind_its_header_is_an_error_or_links(tail in vec(any::<u8>(), 0..1024)) {
        check(parse_small(&[&SAMPLE[..64], &tail].concat()));
    }

    #[test]
    fn an_object_that_was_changed_anywhere_is_an_error_or_links(edits in edits()) {
        check(parse_small(&edited(SAMPLE.to_vec(), 0..SAMPLE.len(), &edits)));
    }

    #[test]
    fn an_object_with_a_changed_section_table_is_an_error_or_links(edits in edits()) {
        let table = u64_at(SAMPLE, 40) as usize;
        check(parse_small(&edited(SAMPLE.to_vec(), table..SAMPLE.len(), &edits)));
    }

    #[test]
    fn an_object_with_changed_symbols_and_relocations_is_an_error_or_links(edits in edits()) {
        let table = u64_at(SAMPLE, 40) as usize;
        let code_and_data = 0x1d8; // .symtab begins there
        check(parse_small(&edited(SAMPLE.to_vec(), code_and_data..table, &edits)));
    }

    #[test]
    fn an_object_cut_short_is_an_error(length in 0..SAMPLE.len()) {
        check_error(&parse_small(&SAMPLE[..length]).unwrap_err());
    }

    #[test]
    fn flat_code_with_any_entries_is_an_error_or_links(
        blob in vec(any::<u8>(), 0..64),
        entries in vec(("[ab]{0,2}", 0..80u64), 0..5),
    ) {
        let entries = entries.into_iter().map(|(name, offset_bytes)| FlatEntry { name, offset_bytes }).collect();
        check(Image::parse_flat(&blob, entries, &LIMITS));
    }
}
