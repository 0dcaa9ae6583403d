//! Backtraces that begin in a host function pass through resident code into the executor that called it.

mod support;

use std::{
    backtrace::Backtrace,
    sync::{Arc, Mutex},
    time::Duration,
};

use codecached::{
    arena::{ArenaConfig, Arenas},
    cache::{Cache, CacheConfig, Install, Name, Namespace, Pinned, Target},
    code::{Image, ImportTable, Limits, Selection},
    exec::{Arg, Call, ExecConfig, FilterPolicy, Outcome, Pool, Priority, ResultType, Scalar},
    tools::{Tools, ToolsConfig},
};

const BUDGET_BYTES: u64 = 4 << 20;
/// As many as are told to the runtime library together, several times.
const ENTRIES: u64 = 2000;

/// Tests of this process capture one after the other.
static CAPTURING: Mutex<()> = Mutex::new(());
static CAPTURED: Mutex<Option<Backtrace>> = Mutex::new(None);

extern "C" fn capture() {
    *CAPTURED.lock().unwrap() = Some(Backtrace::force_capture());
}

fn cache(is_told: bool) -> Cache {
    let arenas = Arenas::map(&ArenaConfig::new(64 << 20, BUDGET_BYTES * 21 / 20)).unwrap();
    let config = CacheConfig { eviction_window: 16, ..CacheConfig::foreseeable(BUDGET_BYTES) };
    let imports = ImportTable::new([("capture", capture as *const () as u64)]);
    let cache = Cache::new(&config, Arc::clone(&arenas), imports);
    let config =
        ToolsConfig { perf: None, directory: Default::default(), file_max_bytes: 0, gdb: false, unwind: is_told };
    match Tools::start(&config).unwrap() {
        Some(tools) => cache.watched_by(tools.watcher()),
        None => cache,
    }
}

fn pool() -> Pool<Pinned> {
    let config = ExecConfig {
        executors: 1,
        spare_executors: 0,
        queue_max: 16,
        queue_tenant_max: 16,
        stack_bytes: 1 << 20,
        stack_guard_bytes: 64 << 10,
        call_memory_max_bytes: 64 << 10,
        inline_threads: 0,
        inline: Duration::ZERO,
        stuck_after: Duration::from_secs(60),
        stuck_max: 0,
        cpu_limit_default: Duration::ZERO,
        tick: Duration::from_millis(1),
        code: vec![],
        code_flips: false,
        filter: FilterPolicy::Require,
    };
    Pool::start(config).unwrap()
}

fn name(key: u64) -> Name {
    Name::new(Namespace::new("").unwrap(), &key.to_le_bytes()).unwrap()
}

fn install(cache: &Cache, object: &[u8], key: u64) {
    let selection = Selection { keep_unwind: true, ..Selection::default() };
    let image = Image::parse_elf(object, &selection, cache.imports(), &Limits::default()).unwrap();
    assert!(image.unwind_functions() >= 4, "the object has a table of its functions");
    let mut identity = [0; 32];
    identity[..8].copy_from_slice(&key.to_le_bytes());
    let install = Install { name: name(key), digest: identity, identity, replace: false, reentrant: true };
    cache.install(&install, image).unwrap();
}

/// The frames of the backtrace that a call of the entry makes.
fn backtrace(cache: &Cache, pool: &Pool<Pinned>, key: u64) -> String {
    backtrace_with(cache, pool, key, vec![Arg::U64(3)])
}

fn backtrace_with(cache: &Cache, pool: &Pool<Pinned>, key: u64, args: Vec<Arg>) -> String {
    let callee = cache.pin(Target::Name(&name(key))).unwrap();
    let call = Call {
        entry: callee.function("call_outer").unwrap(),
        callee,
        priority: Priority::Normal,
        args,
        result: ResultType::U64,
        cpu_limit: Duration::from_secs(30),
        wall_cap: Duration::from_secs(60),
        deadline: None,
    };
    let ticket = pool.submit(call).unwrap_or_else(|_| panic!("there is room"));
    let done = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(ticket);
    assert_eq!(done.outcome, Outcome::Returned { value: Some(Scalar::U64(5)), buffers: vec![] });
    CAPTURED.lock().unwrap().take().unwrap().to_string()
}

/// Frames are numbered lines, with the place of each on a line of its own.
fn frames(backtrace: &str) -> Vec<&str> {
    let names = backtrace.lines().filter_map(|line| line.trim_start().split_once(": "));
    names.filter(|(number, _)| number.parse::<u32>().is_ok()).map(|(_, name)| name).collect()
}

fn passes_through(backtrace: &str) -> bool {
    let frames = frames(backtrace);
    let Some(capture) = frames.iter().position(|it| it.ends_with("capture")) else { return false };
    // The code has no names for who knows the executable only.
    let unknown = frames[capture + 1..].iter().take_while(|it| it.contains("unknown")).count();
    let rest = &frames[capture + 1 + unknown..];
    unknown == 2 && rest.iter().any(|it| it.contains("executor")) && rest.iter().any(|it| it.contains("thread"))
}

#[test]
fn a_backtrace_passes_through_resident_code_into_its_executor() {
    let _alone = CAPTURING.lock().unwrap_or_else(|it| it.into_inner());
    let (cache, pool) = (cache(true), pool());
    install(&cache, &support::compile("spinner.c"), 1);
    let backtrace = backtrace(&cache, &pool, 1);
    assert!(passes_through(&backtrace), "{backtrace}");
}

#[test]
fn a_backtrace_passes_through_code_that_was_given_arguments_on_the_stack() {
    let _alone = CAPTURING.lock().unwrap_or_else(|it| it.into_inner());
    let (cache, pool) = (cache(true), pool());
    install(&cache, &support::compile("spinner.c"), 1);
    for count in [15, 16] {
        let backtrace = backtrace_with(&cache, &pool, 1, vec![Arg::U64(3); count]);
        assert!(passes_through(&backtrace), "{count} arguments: {backtrace}");
    }
}

#[test]
fn without_being_told_the_unwinder_ends_at_resident_code() {
    let _alone = CAPTURING.lock().unwrap_or_else(|it| it.into_inner());
    let (cache, pool) = (cache(false), pool());
    install(&cache, &support::compile("spinner.c"), 1);
    let backtrace = backtrace(&cache, &pool, 1);
    assert!(!passes_through(&backtrace), "{backtrace}");
    assert!(frames(&backtrace).iter().any(|it| it.ends_with("capture")), "{backtrace}");
}

#[test]
fn entries_that_come_and_go_leave_the_others_known_and_nothing_behind() {
    let _alone = CAPTURING.lock().unwrap_or_else(|it| it.into_inner());
    let (cache, pool) = (cache(true), pool());
    let object = support::compile("spinner.c");
    for key in 0..ENTRIES {
        install(&cache, &object, key);
    }
    let resident = |cache: &Cache| (0..ENTRIES).filter(|&key| cache.peek(Target::Name(&name(key))).is_some()).count();
    assert!(resident(&cache) > 500, "{} entries are resident", resident(&cache));
    for key in (0..ENTRIES).filter(|key| key % 3 != 0) {
        cache.evict(Target::Name(&name(key)), None);
    }
    let left: Vec<u64> = (0..ENTRIES).filter(|&key| cache.peek(Target::Name(&name(key))).is_some()).collect();
    for &key in left.iter().step_by(left.len() / 8) {
        let backtrace = backtrace(&cache, &pool, key);
        assert!(passes_through(&backtrace), "entry {key}: {backtrace}");
    }
    let before = cache.stats().charged.total_bytes();
    assert!(before > 0);
    for key in left {
        cache.evict(Target::Name(&name(key)), None);
    }
    assert_eq!(cache.stats().charged.total_bytes(), 0);
}
