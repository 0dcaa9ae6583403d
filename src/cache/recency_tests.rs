use std::{cell::Cell, sync::Arc, time::Instant};

use super::{residents::RECENT, *};
use crate::{
    arena::ArenaConfig,
    code::{FlatEntry, Image, Limits},
};

thread_local! {
    static NOW: Cell<Instant> = Cell::new(Instant::now());
}

fn later(duration: Duration) {
    NOW.set(NOW.get() + duration);
}

fn name(key: u8) -> Name {
    Name::new(Namespace::new("").unwrap(), &[key]).unwrap()
}

/// Three of them are more than the budget.
fn install(cache: &Cache, key: u8) {
    let entries = vec![FlatEntry { name: "f".to_owned(), offset_bytes: 0 }];
    let image = Image::parse_flat(&[0xc3; 40 << 10], entries, &Limits::default()).unwrap();
    let install = Install { name: name(key), digest: [key; 32], identity: [key; 32], replace: true, reentrant: false };
    cache.install(&install, image).unwrap();
}

#[test]
fn an_entry_that_goes_for_room_within_a_minute_of_its_use_is_counted_and_no_other() {
    let budget_bytes = 100 << 10;
    let arenas = Arenas::map(&ArenaConfig::new(16 << 20, 2 * budget_bytes)).unwrap();
    let config = CacheConfig { clock: || NOW.get(), ..CacheConfig::foreseeable(budget_bytes) };
    let cache = Cache::new(&config, Arc::clone(&arenas), ImportTable::default());
    let counts = || {
        let evictions = cache.stats().evictions;
        (evictions.capacity.entries, evictions.recently_used)
    };
    install(&cache, 1);
    install(&cache, 2);
    // Never used.
    install(&cache, 3);
    assert_eq!(counts(), (1, 0));
    cache.lookup(Target::Name(&name(2)), false).unwrap();
    cache.lookup(Target::Name(&name(3)), false).unwrap();
    later(RECENT - Duration::from_millis(1));
    install(&cache, 4);
    assert_eq!(counts(), (2, 1));
    later(Duration::from_millis(1));
    install(&cache, 5);
    assert_eq!(counts(), (3, 1));
    // Not for room.
    cache.lookup(Target::Name(&name(5)), false).unwrap();
    cache.evict(Target::Name(&name(5)), None).unwrap();
    assert_eq!(counts(), (3, 1));
}
