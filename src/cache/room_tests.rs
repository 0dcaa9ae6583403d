//! Who goes for want of contiguous room, below 2 GiB and elsewhere.

use std::sync::Arc;

use object::{
    Architecture, BinaryFormat, Endianness, SymbolFlags, SymbolKind, SymbolScope, elf,
    write::{Object, Relocation, RelocationFlags, StandardSection, Symbol, SymbolSection},
};

use super::*;
use crate::{
    arena::{ArenaConfig, Lacks, ReserveError},
    code::{CodeError, FlatEntry, Image, Limits, Selection},
};

const MIB: usize = 1 << 20;

/// What there is of each kind of memory, here and below 2 GiB; far less than the budget.
const RESERVED: u64 = 2 << 20;

fn cache_with(window: usize, low_bytes: u64, budget_bytes: u64) -> (Arc<Arenas>, Cache) {
    let config = ArenaConfig { low_bytes, shards: 1, ..ArenaConfig::new(RESERVED, 64 << 20) };
    let arenas = Arenas::map(&config).unwrap();
    let config = CacheConfig { eviction_window: window, ..CacheConfig::foreseeable(budget_bytes) };
    let cache = Cache::new(&config, Arc::clone(&arenas), ImportTable::default());
    (arenas, cache)
}

fn cache(window: usize) -> (Arc<Arenas>, Cache) {
    cache_with(window, RESERVED, 48 << 20)
}

fn name(key: &str) -> Name {
    Name::new(Namespace::new("").unwrap(), key.as_bytes()).unwrap()
}

/// Code of so many bytes that may lie anywhere.
fn anywhere(size_bytes: usize) -> Image {
    let entries = vec![FlatEntry { name: "f".to_owned(), offset_bytes: 0 }];
    Image::parse_flat(&vec![0xc3; size_bytes], entries, &Limits::default()).unwrap()
}

/// Code of so many bytes that holds its own address in 32 bits.
fn low(size_bytes: usize) -> Image {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let text = object.section_id(StandardSection::Text);
    object.append_section_data(text, &vec![0xc3; size_bytes], 64);
    let f = object.add_symbol(Symbol {
        name: b"f".to_vec(),
        value: 0,
        size: size_bytes as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    });
    let flags = RelocationFlags::Elf { r_type: elf::R_X86_64_32S };
    object.add_relocation(text, Relocation { offset: 8, symbol: f, addend: 0, flags }).unwrap();
    let blob = object.write().unwrap();
    let image = Image::parse_elf(&blob, &Selection::default(), &ImportTable::default(), &Limits::default()).unwrap();
    assert!(image.needs_low());
    image
}

fn install(cache: &Cache, key: &str, image: Image, needs: &[&str]) -> Result<Installed, InstallError> {
    let needs: Vec<_> = needs.iter().map(|key| name(key)).collect();
    let dependencies = cache.dependencies(&name(key), &needs).unwrap();
    let identity = *blake3::hash(key.as_bytes()).as_bytes();
    let request = Install { name: name(key), digest: identity, identity, replace: false, reentrant: false };
    cache.install_linked(None, &request, image, dependencies)
}

/// The resident ones of these keys.
fn there<'a>(cache: &Cache, keys: &[&'a str]) -> Vec<&'a str> {
    keys.iter().copied().filter(|key| cache.lookup(Target::Name(&name(key)), true).is_some()).collect()
}

fn use_it(cache: &Cache, key: &str) {
    assert!(cache.lookup(Target::Name(&name(key)), false).is_some(), "{key}");
}

fn assert_empty(arenas: &Arenas, cache: Cache) {
    drop(cache);
    assert_eq!(arenas.stats().total().used_bytes, 0);
}

#[test]
fn room_below_2_gib_is_made_by_those_that_lie_there_in_order_of_use() {
    let (arenas, cache) = cache(0);
    install(&cache, "old", anywhere(MIB / 2), &[]).unwrap();
    install(&cache, "a", low(MIB), &[]).unwrap();
    install(&cache, "b", low(MIB / 2), &[]).unwrap();
    install(&cache, "c", low(MIB / 2), &[]).unwrap();
    install(&cache, "new", anywhere(MIB / 2), &[]).unwrap();
    use_it(&cache, "a");
    let all = ["old", "a", "b", "c", "new", "d", "e"];
    let installed = install(&cache, "d", low(MIB / 4), &[]).unwrap();
    assert_eq!((installed.victims.len(), there(&cache, &all)), (1, vec!["old", "a", "c", "new", "d"]));
    let evictions = cache.stats().evictions;
    assert_eq!((evictions.capacity.entries, evictions.out_of_order), (1, 0), "what lies elsewhere does not count");
    let installed = install(&cache, "e", low(MIB), &[]).unwrap();
    assert_eq!((installed.victims.len(), there(&cache, &all)), (2, vec!["old", "new", "d", "e"]), "c, then a");
    assert_empty(&arenas, cache);
}

#[test]
fn within_the_window_the_one_goes_whose_place_will_do() {
    let (_arenas, cache) = cache(16);
    install(&cache, "small", low(MIB / 4), &[]).unwrap();
    install(&cache, "large", low(MIB), &[]).unwrap();
    install(&cache, "rest", low(3 * MIB / 4), &[]).unwrap();
    install(&cache, "new", low(MIB / 2), &[]).unwrap();
    assert_eq!(there(&cache, &["small", "large", "rest", "new"]), ["small", "rest", "new"]);
    assert_eq!(cache.stats().evictions.out_of_order, 1);
}

#[test]
fn who_needs_what_lies_below_2_gib_goes_before_it_and_others_stay() {
    let (arenas, cache) = cache(0);
    install(&cache, "other", anywhere(1000), &[]).unwrap();
    install(&cache, "needed", low(MIB), &[]).unwrap();
    install(&cache, "lingers", low(3 * MIB / 4), &[]).unwrap();
    install(&cache, "caller", anywhere(1000), &["needed", "lingers"]).unwrap();
    install(&cache, "by", anywhere(1000), &["caller"]).unwrap();
    cache.evict(Target::Name(&name("lingers")), None).unwrap();
    let all = ["other", "needed", "caller", "by", "new", "newer"];
    // `by` goes, as it needs `caller`, and that, with which the one goes that lingers: there is room then.
    let installed = install(&cache, "new", low(MIB / 2), &[]).unwrap();
    assert_eq!((installed.victims.len(), there(&cache, &all)), (2, vec!["other", "needed", "new"]));
    let installed = install(&cache, "newer", low(MIB), &[]).unwrap();
    assert_eq!((installed.victims.len(), there(&cache, &all)), (1, vec!["other", "new", "newer"]));
    assert_empty(&arenas, cache);
}

#[test]
fn if_what_lies_there_cannot_go_nobody_goes_and_the_error_says_what_is_full() {
    let (arenas, cache) = cache(16);
    install(&cache, "other", anywhere(MIB), &[]).unwrap();
    install(&cache, "held", low(MIB), &[]).unwrap();
    let pinned = cache.pin(Target::Name(&name("held"))).unwrap();
    let error = install(&cache, "new", low(MIB + 64), &[]).unwrap_err();
    assert!(matches!(error, InstallError::Fragmented(ReserveError::Fragmented { lacks: Lacks::Low, .. })), "{error}");
    assert!(error.to_string().contains("below 2 GiB"), "{error}");
    assert_eq!(there(&cache, &["other", "held", "new"]), ["other", "held"]);
    assert_eq!(cache.stats().evictions.capacity.entries, 0);
    // What it needs is held by the install itself.
    let error = install(&cache, "new", low(MIB + 64), &["held"]).unwrap_err();
    assert!(matches!(error, InstallError::Fragmented(_)), "{error}");
    drop(pinned);
    install(&cache, "new", low(MIB + 64), &[]).unwrap();
    assert_eq!(there(&cache, &["other", "held", "new"]), ["other", "new"]);
    assert_empty(&arenas, cache);
}

#[test]
fn who_only_needs_what_cannot_go_stays() {
    let (arenas, cache) = cache(0);
    install(&cache, "held", low(MIB), &[]).unwrap();
    for key in ["by", "by2", "by3"] {
        install(&cache, key, anywhere(1000), &["held"]).unwrap();
    }
    let pinned = cache.pin(Target::Name(&name("held"))).unwrap();
    let all = ["held", "by", "by2", "by3", "free", "new"];
    let error = install(&cache, "new", low(MIB + 64), &[]).unwrap_err();
    assert!(matches!(error, InstallError::Fragmented(_)), "{error}");
    // Nor does it help to be linked against it.
    let error = install(&cache, "new", low(MIB + 64), &["held"]).unwrap_err();
    assert!(matches!(error, InstallError::Fragmented(_)), "{error}");
    assert_eq!((there(&cache, &all), cache.stats().evictions.capacity.entries), (all[..4].to_vec(), 0));
    // They are older than the one whose place will do.
    install(&cache, "free", low(MIB), &[]).unwrap();
    let installed = install(&cache, "new", low(MIB), &[]).unwrap();
    assert_eq!((installed.victims.len(), there(&cache, &all)), (1, vec!["held", "by", "by2", "by3", "new"]));
    drop(pinned);
    install(&cache, "newer", low(2 * MIB), &[]).unwrap();
    assert_eq!(there(&cache, &all), Vec::<&str>::new());
    assert_empty(&arenas, cache);
}

#[test]
fn where_no_gap_could_become_large_enough_nobody_goes_for_bytes_either() {
    let (arenas, cache) = cache_with(16, RESERVED, 4 << 20);
    install(&cache, "old", anywhere(3 * MIB / 2), &[]).unwrap();
    install(&cache, "a", low(MIB - 64), &[]).unwrap();
    install(&cache, "middle", low(64), &[]).unwrap();
    install(&cache, "b", low(MIB), &[]).unwrap();
    let pinned = cache.pin(Target::Name(&name("middle"))).unwrap();
    let all = ["old", "a", "middle", "b", "new"];
    for evicted in [false, true] {
        if evicted {
            cache.evict(Target::Name(&name("middle")), None).unwrap();
        }
        let error = install(&cache, "new", low(MIB + 64), &[]).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, InstallError::Fragmented(_)) && text.contains("below 2 GiB"), "{text}");
        assert_eq!(there(&cache, &["old", "a", "b", "new"]), ["old", "a", "b"]);
        assert_eq!(cache.stats().evictions.capacity.entries, 0);
    }
    drop(pinned);
    install(&cache, "new", low(MIB + 64), &[]).unwrap();
    assert!(there(&cache, &all).ends_with(&["new"]));
    assert_empty(&arenas, cache);
}

#[test]
fn for_room_elsewhere_those_below_2_gib_stay_however_many_and_old_they_are() {
    for window in [16, 0] {
        let (_arenas, cache) = cache(window);
        let old: Vec<String> = (0..20).map(|at| format!("low{at}")).collect();
        let old: Vec<&str> = old.iter().map(|it| &**it).collect();
        for key in &old {
            install(&cache, key, low(64), &[]).unwrap();
        }
        install(&cache, "a", anywhere(MIB), &[]).unwrap();
        install(&cache, "b", anywhere(MIB), &[]).unwrap();
        install(&cache, "new", anywhere(3 * MIB / 2), &[]).unwrap();
        assert_eq!((there(&cache, &["a", "b", "new"]), there(&cache, &old)), (vec!["new"], old.clone()), "{window}");
        assert_eq!(cache.stats().evictions.out_of_order, 0, "{window}");
        let pinned = cache.pin(Target::Name(&name("new"))).unwrap();
        let error = install(&cache, "newer", anywhere(MIB), &[]).unwrap_err();
        let InstallError::Fragmented(ReserveError::Fragmented { lacks: Lacks::Common, .. }) = error else {
            panic!("{error}")
        };
        assert_eq!(there(&cache, &old), old, "{window}");
        drop(pinned);
    }
}

#[test]
fn who_lies_below_2_gib_and_needs_what_does_not_goes_before_it() {
    let (arenas, cache) = cache(0);
    install(&cache, "needed", anywhere(MIB), &[]).unwrap();
    install(&cache, "other", low(64), &[]).unwrap();
    install(&cache, "by", low(64), &["needed"]).unwrap();
    install(&cache, "new", anywhere(3 * MIB / 2), &[]).unwrap();
    assert_eq!(there(&cache, &["needed", "other", "by", "new"]), ["other", "new"]);
    assert_empty(&arenas, cache);
}

#[test]
fn what_can_never_lie_there_is_refused_before_anybody_goes() {
    // Full to the last byte, so that any charge would need a victim.
    let (_arenas, cache) = cache_with(16, 0, 1 << 20);
    install(&cache, "old", anywhere(MIB - 64 * 1024), &[]).unwrap();
    let error = install(&cache, "new", low(128 * 1024), &[]).unwrap_err();
    let InstallError::Link(CodeError::UnsupportedRelocation { at, .. }) = &error else { panic!("{error}") };
    assert_eq!((at.section.as_deref(), at.offset_bytes), (Some(".text"), Some(8)));
    assert!(error.to_string().contains("arena.low_bytes"), "{error}");
    let (_low_arenas, with_low) = cache_with(16, 1, 4 << 20);
    install(&with_low, "old", anywhere(2 * MIB), &[]).unwrap();
    let too_large = install(&with_low, "new", low(2 * MIB + 1), &[]).unwrap_err();
    assert!(matches!(too_large, InstallError::Reserve(ReserveError::TooLarge { low: true, .. })), "{too_large}");
    for (cache, image) in [(&cache, low(64)), (&with_low, low(2 * MIB + 1))] {
        assert!(cache.hold(&name("new"), &image, &Dependencies::default()).is_err());
        assert_eq!((there(cache, &["old", "new"]), cache.stats().evictions.capacity.entries), (vec!["old"], 0));
    }
    assert!(with_low.hold(&name("new"), &low(64), &Dependencies::default()).is_ok());
}

#[test]
fn kept_addresses_below_2_gib_are_given_up_for_room_there_and_others_are_not() {
    let (arenas, cache) = cache(0);
    let cache = cache.keeping_addresses();
    for (key, image) in [("a", anywhere(MIB / 2)), ("b", low(MIB)), ("c", low(MIB)), ("d", anywhere(MIB / 2))] {
        install(&cache, key, image, &[]).unwrap();
        cache.evict(Target::Name(&name(key)), None).unwrap();
    }
    assert_eq!(cache.stats().charged.lingering_entries, 4);
    install(&cache, "e", low(MIB), &[]).unwrap();
    assert_eq!((cache.stats().charged.lingering_entries, there(&cache, &["e"])), (3, vec!["e"]), "b alone");
    install(&cache, "f", anywhere(3 * MIB / 2), &[]).unwrap();
    assert_eq!((cache.stats().charged.lingering_entries, there(&cache, &["e", "f"]).len()), (1, 2), "a and d, not c");
    let pinned = cache.pin(Target::Name(&name("f"))).unwrap();
    assert!(install(&cache, "g", anywhere(MIB), &[]).is_err());
    assert_eq!(cache.stats().charged.lingering_entries, 1, "c gives no room there");
    drop(pinned);
    assert_empty(&arenas, cache);
}
