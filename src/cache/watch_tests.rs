use std::sync::{Arc, Mutex};

use super::*;
use crate::{
    arena::ArenaConfig,
    code::{FlatEntry, Image, Limits},
};

const BUDGET_BYTES: u64 = 256 << 10;
/// What each entry's code has, so that the budget holds some dozens.
const CODE_BYTES: usize = 4 << 10;

fn cache() -> Cache {
    let arenas = Arenas::map(&ArenaConfig::new(16 << 20, BUDGET_BYTES * 2)).unwrap();
    let config = CacheConfig::foreseeable(BUDGET_BYTES);
    Cache::new(&config, arenas, ImportTable::default())
}

fn name(key: u8) -> Name {
    Name::new(Namespace::new("").unwrap(), &[key]).unwrap()
}

fn install(cache: &Cache, key: u8) -> View {
    let entries = vec![FlatEntry { name: "f".to_owned(), offset_bytes: 0 }];
    let image = Image::parse_flat(&[0xc3; CODE_BYTES], entries, &Limits::default()).unwrap();
    let install = Install { name: name(key), digest: [key; 32], identity: [key; 32], replace: true, reentrant: false };
    cache.install(&install, image).unwrap().view
}

fn start(cache: &Cache, key: u8) -> u64 {
    cache.peek(Target::Name(&name(key))).unwrap().code_range().start
}

#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<String>>>);

impl Events {
    fn note(&self, event: &str) {
        self.0.lock().unwrap().push(event.to_owned());
    }
}

/// Notes when it is let go.
struct Held(Events);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.note("let go");
    }
}

fn watcher(events: &Events, heap_bytes: u64) -> Watcher {
    let events = events.clone();
    Watcher {
        heap_bytes: Box::new(move |_| heap_bytes),
        watch: Box::new(move |placed| {
            assert_eq!(placed.read_code(), [0xc3; CODE_BYTES]);
            events.note(&format!("{:?} {}", placed.name, placed.functions[0].name));
            Some(Box::new(Held(events.clone())))
        }),
    }
}

#[test]
fn a_watcher_hears_of_an_entry_and_lets_go_before_its_memory_is_free() {
    let events = Events::default();
    let cache = cache().watched_by(watcher(&events, 0));
    install(&cache, b'a');
    let running = cache.pin(Target::Name(&name(b'a'))).unwrap();
    let freed = events.clone();
    cache.evict(Target::Name(&name(b'a')), Some(Box::new(move || freed.note("free"))));
    assert_eq!(*events.0.lock().unwrap(), ["default/a f"]);
    drop(running);
    assert_eq!(*events.0.lock().unwrap(), ["default/a f", "let go", "free"]);
}

#[test]
fn what_a_watcher_takes_is_charged() {
    let events = Events::default();
    let charged = |heap_bytes| install(&cache().watched_by(watcher(&events, heap_bytes)), 1).charged_bytes;
    assert_eq!(charged(1000) - charged(0), 1000);
}

#[test]
fn an_address_is_not_used_again_while_the_budget_has_room_if_addresses_are_kept() {
    let (usual, keeping) = (cache(), cache().keeping_addresses());
    for (cache, is_kept) in [(&usual, false), (&keeping, true)] {
        install(cache, 1);
        let before = start(cache, 1);
        let gone = cache.evict(Target::Name(&name(1)), None).unwrap().gone;
        install(cache, 2);
        assert_eq!(start(cache, 2) != before, is_kept);
        assert_eq!(gone, if is_kept { Gone::Lingering } else { Gone::Freed });
    }
    let charged = keeping.stats().charged;
    assert_eq!((charged.lingering_entries, charged.lingering.total_bytes()), (1, charged.live.total_bytes()));
}

#[test]
fn what_is_kept_goes_before_anything_resident_and_the_budget_holds() {
    let cache = cache().keeping_addresses();
    install(&cache, 0);
    for key in 1..200 {
        install(&cache, key);
        cache.evict(Target::Name(&name(key)), None).unwrap();
        assert!(cache.stats().charged.total_bytes() <= BUDGET_BYTES);
    }
    assert!(cache.lookup(Target::Name(&name(0)), true).is_some(), "the oldest entry is still there");
    assert_eq!(cache.stats().evictions.capacity.entries, 0);
    assert!(cache.stats().charged.lingering_entries > 10);
}
