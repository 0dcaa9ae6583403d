//! The budget is exact while everything happens at once, and the order of eviction is exact when nothing else does.

mod support;

use std::{
    collections::VecDeque,
    fs,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use codecached::{
    arena::{ArenaConfig, Arenas},
    cache::{Cache, CacheConfig, Install, InstallError, Name, Namespace, Pinned, Target},
    code::{self, FlatEntry, Image, ImportTable, Selection},
    exec::{self, Call, ExecConfig, FilterPolicy, Outcome, Pool, Priority, ResultType, Scalar},
};
use object::{
    Architecture, BinaryFormat, Endianness, SymbolFlags, SymbolKind, SymbolScope, elf,
    write::{Object, Relocation, RelocationFlags, StandardSection, Symbol, SymbolSection},
};
use support::Random;

/// Held by each test: what the kernel counts is counted for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const BUDGET_BYTES: u64 = 32 << 20;
const INSTALLS: u32 = 100_000;
/// Of each kind of memory below 2 GiB, where a test has such: a quarter of what would fill the budget.
const LOW_BYTES: u64 = 8 << 20;
/// Installs of that test, of which each third must lie there.
const LOW_INSTALLS: u32 = 10_000;
const KEYS: u64 = 3000;
/// Installs between two looks at what the kernel counts.
const LOOK_EVERY: u32 = 500;

fn parts(eviction_window: usize) -> (Arc<Arenas>, Cache) {
    parts_with(0, eviction_window)
}

fn parts_with(low_bytes: u64, eviction_window: usize) -> (Arc<Arenas>, Cache) {
    let commit_limit_bytes = BUDGET_BYTES + BUDGET_BYTES / 20;
    let arenas = Arenas::map(&ArenaConfig { low_bytes, ..ArenaConfig::new(256 << 20, commit_limit_bytes) }).unwrap();
    let config = CacheConfig { eviction_window, ..CacheConfig::foreseeable(BUDGET_BYTES) };
    let cache = Cache::new(&config, Arc::clone(&arenas), ImportTable::new(exec::imports()));
    (arenas, cache)
}

fn name(key: u64) -> Name {
    Name::new(Namespace::new("").unwrap(), &key.to_le_bytes()).unwrap()
}

/// `mov eax, number; ret`, and then as many bytes as asked for.
fn image(number: u32, size_bytes: usize) -> Image {
    let mut blob = vec![0x90; size_bytes.max(6)];
    blob[0] = 0xb8;
    blob[1..5].copy_from_slice(&number.to_le_bytes());
    blob[5] = 0xc3;
    let entries = vec![FlatEntry { name: "f".to_owned(), offset_bytes: 0 }];
    Image::parse_flat(&blob, entries, &code::Limits::default()).unwrap()
}

/// `mov eax, [number]; ret`, and then as many bytes as asked for: the address of the number has 32 bits.
fn low_image(number: u32, size_bytes: usize) -> Image {
    let mut code = vec![0x90; size_bytes.max(8)];
    code[..8].copy_from_slice(&[0x8b, 0x04, 0x25, 0, 0, 0, 0, 0xc3]);
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let text = object.section_id(StandardSection::Text);
    object.append_section_data(text, &code, 64);
    object.add_symbol(Symbol {
        name: b"f".to_vec(),
        value: 0,
        size: 8,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    });
    let rodata = object.section_id(StandardSection::ReadOnlyData);
    object.append_section_data(rodata, &number.to_le_bytes(), 4);
    let (symbol, flags) = (object.section_symbol(rodata), RelocationFlags::Elf { r_type: elf::R_X86_64_32S });
    object.add_relocation(text, Relocation { offset: 3, symbol, addend: 0, flags }).unwrap();
    let (blob, limits) = (object.write().unwrap(), code::Limits::default());
    Image::parse_elf(&blob, &Selection::default(), &ImportTable::default(), &limits).unwrap()
}

fn install(name: Name, identity: u64) -> Install {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&identity.to_le_bytes());
    Install { name, digest: bytes, identity: bytes, replace: true, reentrant: false }
}

/// Sum of Pss over all mappings of the arenas' memory, in bytes.
fn arenas_pss_bytes() -> u64 {
    let mut ours = false;
    let mut sum = 0;
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(kib) = line.strip_prefix("Pss:") {
            let kib: u64 = kib.trim().trim_end_matches(" kB").parse().unwrap();
            sum += if ours { kib * 1024 } else { 0 };
        } else if line.split(' ').next().is_some_and(|range| range.contains('-')) {
            ours = line.contains("codecached (deleted)");
        }
    }
    sum
}

fn assert_nothing_is_writable_and_executable() {
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let permissions = line.split(' ').nth(1).unwrap();
        assert!(!(permissions.contains('w') && permissions.contains('x')), "{line}");
    }
}

struct Scene {
    arenas: Arc<Arenas>,
    cache: Cache,
    pool: Pool<Pinned>,
    stop: AtomicBool,
    calls: AtomicU64,
    lookups: AtomicU64,
    installs: u32,
}

impl Scene {
    fn key_of(number: u32) -> u64 {
        u64::from(number) % KEYS
    }

    /// Installs one after another; after each, the budget holds.
    fn install_all(&self, seed: u64) {
        let mut random = Random(seed);
        for step in 0..self.installs {
            let number = random.next() as u32;
            let size_bytes = 64 + random.below((64 << 10) - 64 + 1) as usize;
            let request = install(name(Self::key_of(number)), u64::from(number));
            let is_low = self.arenas.low_bytes() > 0 && number.is_multiple_of(3);
            let image = if is_low { low_image(number, size_bytes) } else { image(number, size_bytes) };
            match self.cache.install(&request, image) {
                Ok(_) | Err(InstallError::AllPinned { .. } | InstallError::Fragmented(_)) => {}
                Err(error) => panic!("seed {seed}, step {step}: {error}"),
            }
            let charged_bytes = self.cache.stats().charged.total_bytes();
            assert!(charged_bytes <= BUDGET_BYTES, "seed {seed}, step {step}: {charged_bytes} bytes are charged");
            if step % LOOK_EVERY == 0 {
                self.look(step);
            }
        }
    }

    /// What the kernel counts is what the arenas count. It counts a page by halves in its two views, and not both in one
    /// moment: one that is run for the first time in between is counted once, by half. So it may be asked again.
    fn look(&self, step: u32) {
        const ATTEMPTS: usize = 5;
        let mut seen = Vec::new();
        for _ in 0..ATTEMPTS {
            let (before, resident_bytes, after) =
                (self.arenas.stats().committed_bytes(), arenas_pss_bytes(), self.arenas.stats().committed_bytes());
            let (low, high) = (before.min(after), before.max(after));
            let limit_bytes = BUDGET_BYTES + BUDGET_BYTES / 20;
            assert!(high <= limit_bytes, "step {step}: {high} bytes are committed");
            let slack = high / 20;
            if (low.saturating_sub(slack)..=high + slack).contains(&resident_bytes) {
                return;
            }
            seen.push(format!("{resident_bytes} bytes are resident, {low} to {high} are committed"));
        }
        panic!("step {step}: {}", seen.join("; "));
    }

    fn call_all(&self, seed: u64) {
        let mut random = Random(seed);
        while !self.stop.load(Relaxed) {
            let Some(pinned) = self.cache.pin(Target::Name(&name(random.below(KEYS)))) else { continue };
            let identity = u32::from_le_bytes(pinned.meta().digest[..4].try_into().unwrap());
            let call = Call {
                entry: pinned.function("f").unwrap(),
                callee: pinned,
                priority: Priority::Normal,
                args: Vec::new(),
                result: ResultType::U32,
                cpu_limit: Duration::from_secs(10),
                wall_cap: Duration::from_secs(60),
                deadline: None,
            };
            let Ok(ticket) = self.pool.submit(call) else { continue };
            let done = block_on(ticket);
            match done.outcome {
                Outcome::Returned { value: Some(Scalar::U32(number)), .. } => {
                    assert_eq!(number, identity, "seed {seed}")
                }
                other => panic!("seed {seed}: {other:?}"),
            }
            self.calls.fetch_add(1, Relaxed);
        }
    }

    fn look_up_all(&self, seed: u64) {
        let mut random = Random(seed);
        while !self.stop.load(Relaxed) {
            let key = random.below(KEYS);
            if let Some(view) = self.cache.lookup(Target::Name(&name(key)), false) {
                let number = u32::from_le_bytes(view.meta.digest[..4].try_into().unwrap());
                assert_eq!(Self::key_of(number), key, "seed {seed}: an entry of another key");
                self.lookups.fetch_add(1, Relaxed);
            }
        }
    }

    fn watch_mappings(&self) {
        while !self.stop.load(Relaxed) {
            assert_nothing_is_writable_and_executable();
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn a_hundred_thousand_installs_never_pass_the_budget_and_nothing_is_writable_and_executable() {
    install_beside_calls(0, INSTALLS);
}

#[test]
fn nor_do_they_where_some_must_lie_below_2_gib() {
    install_beside_calls(LOW_BYTES, LOW_INSTALLS);
}

fn install_beside_calls(low_bytes: u64, installs: u32) {
    let _alone = alone();
    let (arenas, cache) = parts_with(low_bytes, 16);
    assert_eq!(arenas.low_bytes(), low_bytes);
    let pool = Pool::start(executors()).unwrap();
    let (stop, calls, lookups) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let scene = Scene { arenas, cache, pool, stop, calls, lookups, installs };
    thread::scope(|scope| {
        let helpers = [
            scope.spawn(|| scene.call_all(11)),
            scope.spawn(|| scene.call_all(12)),
            scope.spawn(|| scene.look_up_all(13)),
            scope.spawn(|| scene.watch_mappings()),
        ];
        let installer = scope.spawn(|| scene.install_all(14));
        let installed = installer.join();
        scene.stop.store(true, Relaxed);
        for helper in helpers {
            helper.join().unwrap();
        }
        installed.unwrap();
    });
    assert!(scene.calls.load(Relaxed) > 1000 && scene.lookups.load(Relaxed) > 1000, "little happened meanwhile");
    assert!(scene.cache.stats().evictions.capacity.entries > u64::from(installs) / 10, "little was evicted");
    let low = scene.arenas.stats().low_total();
    assert!(low_bytes == 0 || low.used_bytes > low_bytes / 2, "little lay below 2 GiB: {low:?}");
    drop((scene.pool, scene.cache));
    assert_eq!(scene.arenas.stats().total().used_bytes, 0, "spans were left behind");
}

#[test]
fn a_sequential_run_evicts_in_exact_order_of_use() {
    let _alone = alone();
    for seed in 1..=4 {
        let (_arenas, cache) = parts(0);
        let mut random = Random(seed);
        let mut model: VecDeque<u64> = VecDeque::new();
        for step in 0..8000_u64 {
            let key = random.below(4000);
            if random.below(2) == 0 && !model.is_empty() {
                let used = model[random.below(model.len() as u64) as usize];
                cache.lookup(Target::Name(&name(used)), false).unwrap_or_else(|| panic!("seed {seed}, step {step}"));
                model.retain(|&it| it != used);
                model.push_back(used);
                continue;
            }
            let size_bytes = 64 + random.below((64 << 10) - 64 + 1) as usize;
            let done = cache.install(&install(name(key), step), image(step as u32, size_bytes)).unwrap();
            for _ in &done.victims {
                let oldest = model.pop_front().unwrap();
                assert!(
                    cache.lookup(Target::Name(&name(oldest)), true).is_none_or(|_| oldest == key),
                    "seed {seed}, step {step}: {oldest} should have gone"
                );
            }
            model.retain(|&it| it != key);
            model.push_back(key);
            assert_eq!(cache.stats().resident_entries, model.len() as u64, "seed {seed}, step {step}");
        }
        for key in &model {
            assert!(cache.lookup(Target::Name(&name(*key)), true).is_some(), "seed {seed}: {key} went too early");
        }
    }
}

#[test]
fn when_everything_is_pinned_an_install_is_refused_at_once_and_the_rest_goes_on() {
    let _alone = alone();
    let (_arenas, cache) = parts(16);
    let big = 4 << 20;
    let mut pins = Vec::new();
    for key in 0..7 {
        cache.install(&install(name(key), key), image(key as u32, big)).unwrap();
        pins.push(cache.pin(Target::Name(&name(key))).unwrap());
    }
    let refused = cache.install(&install(name(100), 100), image(100, big + (1 << 20)));
    assert!(matches!(refused, Err(InstallError::AllPinned { .. })), "{refused:?}");
    assert_eq!(cache.stats().resident_entries, 7, "a refused install must not evict");
    cache.install(&install(name(101), 101), image(101, 1000)).unwrap();
    assert!(cache.lookup(Target::Name(&name(3)), false).is_some());
    drop(pins);
    cache.install(&install(name(100), 100), image(100, big + (1 << 20))).unwrap();
    let too_large = cache.install(&install(name(102), 102), image(102, 15 << 20));
    assert!(too_large.is_ok(), "{too_large:?}");
    let entries = cache.stats().resident_entries;
    assert!(entries < 9, "room was made for it");
}

#[test]
fn uploads_are_charged_beside_entries_take_the_oldest_and_give_back_all() {
    let _alone = alone();
    let (_arenas, cache) = parts(0);
    for key in 0..7 {
        cache.install(&install(name(key), key), image(key as u32, 4 << 20)).unwrap();
    }
    let resident = cache.stats().charged;
    let small = cache.upload(1 << 20).unwrap();
    assert_eq!((small.bytes(), small.victims().len()), (1 << 20, 0));
    assert_eq!(cache.stats().charged.total_bytes(), resident.total_bytes() + (1 << 20));
    let pinned = cache.pin(Target::Name(&name(1))).unwrap();
    let large = cache.upload(8 << 20).unwrap();
    assert_eq!(large.victims().len(), 2);
    for (key, there) in [(0, false), (1, true), (2, false), (3, true)] {
        assert_eq!(cache.lookup(Target::Name(&name(key)), true).is_some(), there, "{key}");
    }
    let charged = cache.stats().charged;
    assert_eq!(charged.live.uploads_bytes, 9 << 20);
    assert!(charged.total_bytes() <= BUDGET_BYTES);
    let refused = cache.upload(BUDGET_BYTES - (8 << 20));
    assert!(matches!(refused, Err(InstallError::AllPinned { .. })), "{refused:?}");
    assert_eq!(cache.stats().charged, charged, "a refused upload must not evict");
    let refused = cache.upload(BUDGET_BYTES + 1);
    assert!(matches!(refused, Err(InstallError::LargerThanBudget { .. })), "{refused:?}");
    let done = cache.install_upload(&large, &install(name(9), 9), image(9, 8 << 20)).unwrap();
    assert!(!done.victims.is_empty() && cache.stats().charged.total_bytes() <= BUDGET_BYTES);
    drop((small, large, pinned));
    let entries = cache.page(Namespace::new("").unwrap(), b"", None, 100);
    let charged_bytes: u64 = entries.iter().map(|view| view.charged_bytes).sum();
    assert_eq!((cache.stats().charged.total_bytes(), cache.stats().charged.live.uploads_bytes), (charged_bytes, 0));
    let large = cache.upload(BUDGET_BYTES / 2 + 1).unwrap();
    let refused = cache.install_upload(&large, &install(name(10), 10), image(10, (BUDGET_BYTES / 2) as usize));
    assert!(matches!(refused, Err(InstallError::LargerThanBudget { .. })), "{refused:?}");
}

#[test]
fn an_evicted_entry_that_runs_lingers_until_its_last_pin_goes() {
    let _alone = alone();
    let (arenas, cache) = parts(16);
    cache.install(&install(name(1), 1), image(1, 100_000)).unwrap();
    let before = cache.stats().charged.total_bytes();
    let pinned = cache.pin(Target::Name(&name(1))).unwrap();
    let freed = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&freed);
    let evicted = cache.evict(Target::Name(&name(1)), Some(Box::new(move || told.store(true, Relaxed)))).unwrap();
    assert_eq!(evicted.gone, codecached::cache::Gone::Lingering);
    let stats = cache.stats();
    assert_eq!((stats.resident_entries, stats.charged.lingering_entries), (0, 1));
    assert_eq!(stats.charged.lingering.total_bytes(), before, "lingering bytes stay charged");
    assert!(cache.pin(Target::Handle(Namespace::new("").unwrap(), pinned.handle())).is_none());
    let memory = arenas.stats().total();
    assert!(!freed.load(Relaxed) && memory.lingering_bytes >= 100_000 && memory.used_bytes == 0, "{memory:?}");
    drop(pinned);
    assert!(freed.load(Relaxed));
    let memory = arenas.stats().total();
    assert_eq!((cache.stats().charged.total_bytes(), memory.used_bytes, memory.lingering_bytes), (0, 0, 0));
}

fn executors() -> ExecConfig {
    ExecConfig {
        executors: 2,
        spare_executors: 0,
        queue_max: 64,
        queue_tenant_max: 64,
        stack_bytes: 256 << 10,
        stack_guard_bytes: 64 << 20,
        call_memory_max_bytes: 1 << 20,
        inline_threads: 0,
        inline: Duration::ZERO,
        stuck_after: Duration::from_secs(60),
        stuck_max: 0,
        cpu_limit_default: Duration::ZERO,
        tick: Duration::from_millis(1),
        code: vec![],
        code_flips: false,
        filter: FilterPolicy::Require,
    }
}
