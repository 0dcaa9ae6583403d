//! Arenas under threads that install, pin, call and drop at random: no torn code, no leak.
//!
//! Every span's code returns the span's own number, from its start and from near its end; whoever holds a pin may call
//! it, and the last one to let go frees it. Without `CODECACHED_SOAK_SECONDS` it makes a fixed number of steps; the seed
//! is fixed unless `CODECACHED_SOAK_SEED` gives another, but how the threads interleave is up to the system.
#![allow(clippy::unwrap_used, reason = "what cannot be had must fail the test")]

#[path = "arena_soak/code.rs"]
mod code;
#[path = "arena_soak/random.rs"]
mod random;

use std::{
    env, fs,
    io::{self, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use codecached::arena::{ArenaConfig, Arenas, Draft, Layout, Part, PartKind, ReserveError};

use code::Numbered;
use random::Random;

const MIB: u64 = 1 << 20;
const THREADS: u64 = 4;
/// Several arenas, and less memory than the slots and pins may come to hold, so that it also runs out.
const RESERVE_BYTES: u64 = 96 * MIB;
const COMMIT_LIMIT_BYTES: u64 = 4 * MIB;
const KEEP_FREE_BYTES: u64 = MIB / 2;
const SLOTS: u32 = 512;
const PINS: usize = 48;
/// Of each thread, where no time is given: a few seconds of an unoptimised build.
const STEPS: u64 = 250_000;
const CHECK_STEPS: u64 = 512;
/// Pages of the kernel's own making, and what a read of smaps may count a page off.
const SLACK_BYTES: u64 = 64 << 10;
const SEED: u64 = 0x5EED_C0DE;

type Slot = Mutex<Option<Arc<Numbered>>>;

/// What the threads share.
struct Soak {
    arenas: Arc<Arenas>,
    slots: Vec<Slot>,
    numbers: AtomicU32,
    exhausted: AtomicU64,
    failed: AtomicBool,
    seed: u64,
    /// When to stop; else after [`STEPS`].
    end: Option<Instant>,
}

/// One thread of it.
struct Worker<'a> {
    soak: &'a Soak,
    random: Random,
    pins: Vec<Arc<Numbered>>,
    thread: u64,
    step: u64,
}

#[test]
fn under_threads_sizes_and_pins_at_random_all_code_is_whole_and_all_memory_comes_back() {
    let variable = |name| env::var(name).ok().map(|it| it.parse::<u64>().unwrap());
    let soak = Soak::new(variable("CODECACHED_SOAK_SEED").unwrap_or(SEED), variable("CODECACHED_SOAK_SECONDS"));
    let seed = soak.seed;
    // Not captured like other output: torn code may end the process before a test can say anything.
    writeln!(io::stderr(), "arena_soak: CODECACHED_SOAK_SEED={seed}").unwrap();
    let before = soak.arenas.stats().total();

    let steps: u64 = thread::scope(|scope| {
        let soak = &soak;
        let workers: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || soak.worker(thread).run())).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| panic!("a thread failed, seed {seed}"))).sum()
    });

    let made = soak.numbers.load(Ordering::Relaxed);
    let exhausted = soak.exhausted.load(Ordering::Relaxed);
    assert!(
        made > 100 && exhausted > 0,
        "seed {seed}: {made} installs, {exhausted} found no memory: nothing was tried"
    );
    let arenas = Arc::clone(&soak.arenas);
    drop(soak);
    let stats = arenas.stats();
    let after = stats.total();
    assert_eq!(
        (after.used_bytes, after.lingering_bytes, after.spans),
        (before.used_bytes, before.lingering_bytes, before.spans),
        "seed {seed}, {steps} steps: something was not given back"
    );
    assert!(stats.committed_bytes() <= COMMIT_LIMIT_BYTES, "seed {seed}, {steps} steps: {stats:?}");
    let resident_bytes = resident_bytes();
    assert!(
        resident_bytes <= stats.committed_bytes() + SLACK_BYTES,
        "seed {seed}, {steps} steps: {resident_bytes} bytes are resident: {stats:?}"
    );
}

impl Soak {
    fn new(seed: u64, seconds: Option<u64>) -> Self {
        let mut config = ArenaConfig::new(RESERVE_BYTES, COMMIT_LIMIT_BYTES);
        config.shards = 2;
        config.keep_free_bytes = KEEP_FREE_BYTES;
        Self {
            arenas: Arenas::map(&config).unwrap(),
            slots: (0..SLOTS).map(|_| Mutex::new(None)).collect(),
            numbers: AtomicU32::new(0),
            exhausted: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            seed,
            end: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
        }
    }

    fn worker(&self, thread: u64) -> Worker<'_> {
        Worker { soak: self, random: Random::new(self.seed ^ (thread + 1)), pins: Vec::new(), thread, step: 0 }
    }
}

impl Worker<'_> {
    /// Answers how many steps it took.
    fn run(mut self) -> u64 {
        while !self.is_over() {
            self.step += 1;
            match self.random.below(16) {
                0..=5 => self.install(),
                6 => self.abandon(),
                7..=11 => self.pin(),
                12..=14 => self.unpin(),
                _ => self.evict(),
            }
            if self.step.is_multiple_of(CHECK_STEPS) {
                self.check_areas();
            }
        }
        self.step
    }

    fn is_over(&self) -> bool {
        let time =
            self.soak.end.map_or(self.step >= STEPS, |end| self.step.is_multiple_of(64) && Instant::now() >= end);
        time || self.soak.failed.load(Ordering::Relaxed)
    }

    fn install(&mut self) {
        let layout = self.layout();
        let Some(mut draft) = self.reserve(&layout) else { return };
        self.resize(&mut draft);
        let number = self.soak.numbers.fetch_add(1, Ordering::Relaxed);
        let made = Arc::new(Numbered::publish(draft, number, &mut self.random));
        self.check(&made);
        let old = self.slot().lock().unwrap().replace(made);
        // Called once more without its slot; then this thread may be the last that has it.
        if let Some(old) = old {
            self.check(&old);
        }
    }

    /// A draft that is never published.
    fn abandon(&mut self) {
        let layout = self.layout();
        if let Some(mut draft) = self.reserve(&layout) {
            draft.code_mut().fill(0x90);
        }
    }

    fn pin(&mut self) {
        let Some(pin) = self.slot().lock().unwrap().clone() else { return };
        self.check(&pin);
        if self.pins.len() < PINS {
            self.pins.push(pin);
        } else {
            let at = self.random.below(PINS as u32) as usize;
            self.check(&self.pins[at]);
            self.pins[at] = pin;
        }
    }

    fn unpin(&mut self) {
        if !self.pins.is_empty() {
            let at = self.random.below(self.pins.len() as u32) as usize;
            let pin = self.pins.swap_remove(at);
            self.check(&pin);
        }
    }

    fn evict(&mut self) {
        let old = self.slot().lock().unwrap().take();
        if let Some(old) = old {
            old.linger();
            self.check(&old);
        }
    }

    /// Mostly small code; now and then more than a chunk of what is committed and given back.
    fn layout(&mut self) -> Layout {
        let code = match self.random.below(4096) {
            0 => self.random.size(MIB, 3 * MIB),
            1..=40 => self.random.size(64 << 10, 512 << 10),
            _ => self.random.size(code::LEAST_BYTES, 16 << 10),
        };
        let [rodata, data] = [(); 2].map(|()| if self.random.below(4) == 0 { self.random.size(4, 8192) } else { 0 });
        let [code, rodata, data] =
            [code, rodata, data].map(|size_bytes| Part { size_bytes, align_bytes: 1 << self.random.below(13) });
        Layout { code, rodata, data, low: false }
    }

    /// Memory for a layout. Where there is none, one slot and all pins of this thread are given up instead.
    fn reserve(&mut self, layout: &Layout) -> Option<Draft> {
        match self.soak.arenas.reserve(layout) {
            Ok(draft) => Some(draft),
            Err(ReserveError::Fragmented { committed_bytes, .. }) => {
                // The one exact count while others run; those of `stats` are of one area after another.
                assert!(committed_bytes <= COMMIT_LIMIT_BYTES, "{}: {committed_bytes} bytes committed", self.place());
                self.soak.exhausted.fetch_add(1, Ordering::Relaxed);
                self.pins.clear();
                self.evict();
                None
            }
            Err(error) => panic!("{}: {layout:?}: {error}", self.place()),
        }
    }

    /// Makes the code shorter or longer, sometimes.
    fn resize(&mut self, draft: &mut Draft) {
        let size_bytes = draft.layout().code.size_bytes;
        match self.random.below(8) {
            0 => draft.shrink(PartKind::Code, self.random.size(code::LEAST_BYTES, size_bytes)),
            1 => match draft.grow(PartKind::Code, size_bytes + self.random.size(1, 4096)) {
                Ok(_) | Err(ReserveError::Fragmented { .. }) => {}
                Err(error) => panic!("{}: cannot grow {size_bytes} bytes: {error}", self.place()),
            },
            _ => {}
        }
    }

    /// Each area's counts are of one moment.
    fn check_areas(&self) {
        for area in self.soak.arenas.areas() {
            assert!(area.memory.free_bytes <= area.memory.committed_bytes, "{}: {area:?}", self.place());
        }
    }

    fn check(&self, numbered: &Numbered) {
        if let Err(torn) = numbered.check() {
            panic!("{}: {torn}", self.place());
        }
    }

    fn slot(&mut self) -> &Slot {
        let soak = self.soak;
        &soak.slots[self.random.below(SLOTS) as usize]
    }

    fn place(&self) -> String {
        format!("seed {}, thread {}, step {}", self.soak.seed, self.thread, self.step)
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        // The others shall not go on for minutes.
        if thread::panicking() {
            self.soak.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// What the system counts for all views of the arenas, a page that several share once.
fn resident_bytes() -> u64 {
    let (mut sum_kib, mut ours) = (0, false);
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or("");
        if !first.ends_with(':') {
            ours = line.contains("memfd:codecached");
        } else if let Some(kib) = line.strip_prefix("Pss:").filter(|_| ours) {
            sum_kib += kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    sum_kib << 10
}
