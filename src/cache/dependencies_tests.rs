//! Entries that are linked against others: their order, their bytes and their end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::*;
use crate::{
    arena::ArenaConfig,
    code::{FlatEntry, Image, Limits},
};

const BUDGET_BYTES: u64 = 1 << 20;

fn cache() -> (Arc<Arenas>, Cache) {
    let arenas = Arenas::map(&ArenaConfig::new(64 << 20, 32 << 20)).unwrap();
    let config = CacheConfig::foreseeable(BUDGET_BYTES);
    let cache = Cache::new(&config, Arc::clone(&arenas), ImportTable::default());
    (arenas, cache)
}

fn name(key: &str) -> Name {
    Name::new(Namespace::new("").unwrap(), key.as_bytes()).unwrap()
}

fn image(size_bytes: usize) -> Image {
    let entries = vec![FlatEntry { name: "f".to_owned(), offset_bytes: 0 }];
    Image::parse_flat(&vec![0xc3; size_bytes], entries, &Limits::default()).unwrap()
}

/// Installs an entry that is linked against others; `identity` tells it from others under the key.
fn install(cache: &Cache, key: &str, identity: u8, size_bytes: usize, needs: &[&str]) -> Result<Installed, Refused> {
    let names: Vec<Name> = needs.iter().map(|key| name(key)).collect();
    let dependencies = cache.dependencies(&name(key), &names).map_err(Refused::Dependencies)?;
    let identity = [identity; 32];
    let request = Install { name: name(key), digest: identity, identity, replace: true, reentrant: false };
    cache.install_linked(None, &request, image(size_bytes), dependencies).map_err(Refused::Install)
}

#[derive(Debug)]
enum Refused {
    Dependencies(DependencyError),
    Install(InstallError),
}

fn view(cache: &Cache, key: &str) -> Option<View> {
    cache.lookup(Target::Name(&name(key)), true)
}

fn refusal(result: Result<Installed, Refused>) -> DependencyError {
    match result.unwrap_err() {
        Refused::Dependencies(error) => error,
        Refused::Install(error) => panic!("{error}"),
    }
}

#[test]
fn an_entry_owns_all_that_it_reaches_and_counts_as_a_dependant_of_each() {
    let (arenas, cache) = cache();
    install(&cache, "a", 1, 100, &[]).unwrap();
    install(&cache, "b", 1, 100, &["a"]).unwrap();
    let c = install(&cache, "c", 1, 100, &["b", "a"]).unwrap().view;
    let keys = |it: &Dependency| String::from_utf8(it.meta.name.key().to_vec()).unwrap();
    assert_eq!(c.meta.reached.direct().map(keys).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(
        c.meta.reached.all().iter().map(keys).collect::<Vec<_>>(),
        ["b", "a"],
        "who needs before what is needed"
    );
    let counts = |key| view(&cache, key).map(|it| (it.dependants, it.pins)).unwrap();
    assert_eq!((counts("a"), counts("b"), counts("c")), ((2, 0), (1, 0), (0, 0)));
    let pinned = cache.pin(Target::Name(&name("a"))).unwrap();
    assert_eq!(counts("a"), (2, 1));
    drop(pinned);
    cache.evict(Target::Name(&name("c")), None).unwrap();
    assert_eq!((counts("a"), counts("b")), ((1, 0), (0, 0)));
    drop(cache);
    assert_eq!(arenas.stats().total().used_bytes, 0);
}

#[test]
fn what_cannot_be_needed_is_refused_by_name() {
    let (_arenas, cache) = cache();
    install(&cache, "a", 1, 100, &[]).unwrap();
    install(&cache, "b", 1, 100, &["a"]).unwrap();
    install(&cache, "c", 1, 100, &["b"]).unwrap();
    let (a, b, c) = (name("a"), name("b"), name("c"));
    let error = |key, needs: &[&str]| refusal(install(&cache, key, 9, 100, needs));
    assert_eq!(error("a", &["a"]), DependencyError::Own { of: a.clone() });
    assert_eq!(error("a", &["c"]), DependencyError::Cycle { of: a.clone(), by: c });
    assert_eq!(error("x", &["b", "b"]), DependencyError::Twice { name: b.clone() });
    assert_eq!(error("x", &["b", "y"]), DependencyError::Missing { name: name("y") });
    cache.evict(Target::Name(&a), None).unwrap();
    assert_eq!(error("a", &["b"]), DependencyError::Cycle { of: a, by: b }, "it lingers behind that one");
    let many = vec!["b"; DEPENDENCIES_MAX + 1];
    assert_eq!(error("x", &many), DependencyError::TooMany { count: DEPENDENCIES_MAX + 1 });
}

#[test]
fn a_chain_ends_at_its_bound_and_goes_at_once_with_its_head() {
    let (arenas, cache) = cache();
    let key = |at: u32| format!("k{at}");
    install(&cache, &key(0), 1, 100, &[]).unwrap();
    for at in 1..=DEPTH_MAX {
        install(&cache, &key(at), 1, 100, &[&key(at - 1)]).unwrap();
    }
    let too_deep = refusal(install(&cache, "x", 1, 100, &[&key(DEPTH_MAX)]));
    assert_eq!(too_deep, DependencyError::TooDeep { name: name(&key(DEPTH_MAX)) });
    for at in 0..DEPTH_MAX {
        assert_eq!(cache.evict(Target::Name(&name(&key(at))), None).unwrap().gone, Gone::Lingering);
    }
    assert_eq!(cache.stats().charged.lingering_entries, u64::from(DEPTH_MAX));
    assert_eq!(cache.evict(Target::Name(&name(&key(DEPTH_MAX))), None).unwrap().gone, Gone::Freed);
    assert_eq!((cache.stats().charged, arenas.stats().total().used_bytes), (Charged::default(), 0));
}

#[test]
fn more_entries_than_may_be_reached_are_refused_with_their_number() {
    let (_arenas, cache) = cache();
    let mut groups = Vec::new();
    for group in 0..5 {
        let leaves: Vec<String> = (0..15).map(|at| format!("leaf {group} {at}")).collect();
        for leaf in &leaves {
            install(&cache, leaf, 1, 100, &[]).unwrap();
        }
        let leaves: Vec<&str> = leaves.iter().map(String::as_str).collect();
        install(&cache, &format!("group {group}"), 1, 100, &leaves).unwrap();
        groups.push(format!("group {group}"));
    }
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    install(&cache, "four", 1, 100, &groups[..4]).unwrap();
    assert_eq!(refusal(install(&cache, "five", 1, 100, &groups)), DependencyError::TooWide { count: 80 });
}

#[test]
fn what_never_fits_beside_what_it_needs_is_told_so() {
    let (_arenas, cache) = cache();
    let half = (BUDGET_BYTES / 2) as usize;
    install(&cache, "a", 1, half, &[]).unwrap();
    let refused = install(&cache, "b", 1, half, &["a"]);
    assert!(matches!(refused, Err(Refused::Install(InstallError::LargerThanBudget { .. }))), "{refused:?}");
    assert!(view(&cache, "a").is_some());
    install(&cache, "b", 1, half, &[]).unwrap();
}

#[test]
fn what_lingers_behind_a_victim_makes_room_with_it() {
    let (arenas, cache) = cache();
    let most = (BUDGET_BYTES - (100 << 10)) as usize;
    install(&cache, "large", 1, most, &[]).unwrap();
    install(&cache, "between", 1, 100, &["large"]).unwrap();
    install(&cache, "small", 1, 100, &["between"]).unwrap();
    for key in ["large", "between"] {
        assert_eq!(cache.evict(Target::Name(&name(key)), None).unwrap().gone, Gone::Lingering);
    }
    let running = cache.pin(Target::Name(&name("small"))).unwrap();
    let refused = install(&cache, "new", 1, most, &[]);
    assert!(matches!(refused, Err(Refused::Install(InstallError::AllPinned { .. }))), "{refused:?}");
    drop(running);
    let installed = install(&cache, "new", 1, most, &[]).unwrap();
    assert_eq!(installed.victims.len(), 1, "those that lingered were evicted before");
    let charged = cache.stats().charged;
    assert_eq!((charged.lingering_entries, charged.total_bytes()), (0, installed.view.charged_bytes));
    assert_eq!(arenas.stats().total().lingering_bytes, 0);
}

/// What must hold, kept in the simplest form: entries by handle, and the order of use.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u64, Modelled>,
    /// Those that can be found, the least recently used first.
    order: Vec<u64>,
}

struct Modelled {
    key: String,
    charged_bytes: u64,
    /// All that it reaches, who needs before what is needed.
    reached: Vec<u64>,
}

impl Model {
    fn handle(&self, key: &str) -> Option<u64> {
        self.order.iter().copied().find(|handle| self.entries[handle].key == key)
    }

    fn use_one(&mut self, handle: u64) {
        for used in [&[handle][..], &self.entries[&handle].reached.clone()].concat() {
            if let Some(at) = self.order.iter().position(|it| *it == used) {
                self.order.remove(at);
                self.order.push(used);
            }
        }
    }

    /// Takes one out of the order, and those out of memory that nobody in the order needs.
    fn remove(&mut self, handle: u64) {
        self.order.retain(|it| *it != handle);
        let mut kept: BTreeSet<u64> = self.order.iter().copied().collect();
        kept.extend(self.order.iter().flat_map(|it| &self.entries[it].reached));
        self.entries.retain(|handle, _| kept.contains(handle));
    }

    fn charged_bytes(&self) -> u64 {
        self.entries.values().map(|it| it.charged_bytes).sum()
    }

    fn needs_itself(&self, key: &str, direct: &[u64]) -> bool {
        let reached = direct.iter().flat_map(|it| [&[*it][..], &self.entries[it].reached].concat());
        reached.into_iter().any(|it| self.entries[&it].key == key)
    }

    /// Everything that can be seen of the cache is as it is here.
    fn compare(&self, cache: &Cache, at: &str) {
        let stats = cache.stats();
        let live_bytes: u64 = self.order.iter().map(|it| self.entries[it].charged_bytes).sum();
        let lingering = (self.entries.len() - self.order.len()) as u64;
        assert_eq!(stats.resident_entries, self.order.len() as u64, "{at}");
        assert_eq!(stats.charged.live.total_bytes(), live_bytes, "{at}");
        assert_eq!(stats.charged.lingering.total_bytes(), self.charged_bytes() - live_bytes, "{at}");
        assert_eq!(stats.charged.lingering_entries, lingering, "{at}");
        assert!(stats.charged.total_bytes() <= BUDGET_BYTES, "{at}");
        for handle in &self.order {
            let entry = &self.entries[handle];
            let found = view(cache, &entry.key).unwrap_or_else(|| panic!("{at}: {} went too early", entry.key));
            let dependants = self.entries.values().filter(|it| it.reached.contains(handle)).count() as u64;
            assert_eq!((found.handle.to_bits(), found.dependants, found.pins), (*handle, dependants, 0), "{at}");
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

fn step(cache: &Cache, model: &mut Model, random: &mut Random, at: &str) {
    let any = |model: &Model, random: &mut Random| {
        (!model.order.is_empty()).then(|| model.order[random.below(model.order.len())])
    };
    match random.below(10) {
        0..3 => {
            let Some(handle) = any(model, random) else { return };
            cache.lookup(Target::Name(&name(&model.entries[&handle].key)), false).unwrap();
            model.use_one(handle);
        }
        3 => {
            let Some(handle) = any(model, random) else { return };
            let evicted = cache.evict(Target::Name(&name(&model.entries[&handle].key)), None).unwrap();
            model.remove(handle);
            let lingers = model.entries.contains_key(&handle);
            assert_eq!(evicted.gone == Gone::Lingering, lingers, "{at}");
        }
        _ => {
            let direct: BTreeSet<u64> = (0..random.below(4)).filter_map(|_| any(model, random)).collect();
            install_one(cache, model, random, direct.into_iter().collect(), at);
        }
    }
}

fn install_one(cache: &Cache, model: &mut Model, random: &mut Random, direct: Vec<u64>, at: &str) {
    let key = format!("key {}", random.below(120));
    let size_bytes = 64 + random.below(24 << 10);
    let needs: Vec<String> = direct.iter().map(|it| model.entries[it].key.clone()).collect();
    let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
    let identity = random.below(256) as u8;
    let (before_bytes, replaced) = (model.charged_bytes(), model.handle(&key));
    let done = match install(cache, &key, identity, size_bytes, &needs) {
        Ok(done) => done,
        Err(Refused::Dependencies(DependencyError::Own { .. } | DependencyError::Cycle { .. })) => {
            assert!(model.needs_itself(&key, &direct), "{at}: no circle");
            return forget_refused(cache, model, &direct, &key);
        }
        Err(Refused::Dependencies(DependencyError::TooDeep { name: deep })) => {
            let last = direct.iter().position(|it| name(&model.entries[it].key) == deep).unwrap();
            return direct[..=last].iter().for_each(|it| model.use_one(*it));
        }
        Err(Refused::Dependencies(DependencyError::TooWide { .. })) => {
            return direct.iter().for_each(|it| model.use_one(*it));
        }
        Err(error) => panic!("{at}: {error:?}"),
    };
    assert!(!model.needs_itself(&key, &direct), "{at}: a circle");
    direct.iter().for_each(|it| model.use_one(*it));
    if done.outcome == Outcome::Existed {
        return model.use_one(done.view.handle.to_bits());
    }
    let kept: BTreeSet<u64> = direct.iter().flat_map(|it| [&[*it][..], &model.entries[it].reached].concat()).collect();
    let needed_bytes = done.view.charged_bytes;
    for nth in 0..done.victims.len() {
        let held_bytes = model.charged_bytes();
        assert!(held_bytes + needed_bytes > BUDGET_BYTES, "{at}: victim {nth} went for nothing, {before_bytes} before");
        let oldest = *model.order.iter().find(|it| !kept.contains(it)).unwrap();
        let is_needed = model.order.iter().any(|it| model.entries[it].reached.contains(&oldest));
        assert!(!is_needed, "{at}: the oldest entry is needed by another one");
        model.remove(oldest);
    }
    if let Some(replaced) = replaced {
        model.remove(replaced);
    }
    let handle = done.view.handle.to_bits();
    let reached = done.view.meta.reached.all().iter().map(|it| it.handle.to_bits()).collect();
    model.entries.insert(handle, Modelled { key, charged_bytes: needed_bytes, reached });
    model.order.push(handle);
    model.use_one(handle);
}

/// Those that were looked at before the circle was found were used.
fn forget_refused(cache: &Cache, model: &mut Model, direct: &[u64], key: &str) {
    for handle in direct {
        if model.entries[handle].key == key {
            return;
        }
        model.use_one(*handle);
        if model.needs_itself(key, &[*handle]) {
            return;
        }
    }
    unreachable!("a circle was there: {:?}", cache.stats());
}

#[test]
fn random_histories_evict_in_order_of_use_who_needs_before_what_is_needed_and_lose_no_byte() {
    for seed in 1..=4 {
        let (arenas, cache) = cache();
        let mut random = Random(seed);
        let mut model = Model::default();
        for number in 0..1500 {
            let at = format!("seed {seed}, step {number}");
            step(&cache, &mut model, &mut random, &at);
            model.compare(&cache, &at);
        }
        assert!(cache.stats().evictions.capacity.entries > 100, "seed {seed}: little was evicted");
        while let Some(handle) = model.order.first().copied() {
            cache.evict(Target::Name(&name(&model.entries[&handle].key)), None).unwrap();
            model.remove(handle);
        }
        assert_eq!((cache.stats().charged, arenas.stats().total().used_bytes), (Charged::default(), 0), "seed {seed}");
    }
}
