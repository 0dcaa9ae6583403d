//! What the room's tests share.

use std::{cell::RefCell, collections::BTreeSet, fs, ops::Range};

thread_local! {
    static LINES: RefCell<Option<BTreeSet<usize>>> = const { RefCell::new(None) };
}

/// Takes note that an operation looks at this word of the allocator's tables.
pub(super) fn touch<T>(word: &T) {
    LINES.with_borrow_mut(|lines| lines.as_mut().map(|lines| lines.insert((word as *const T).addr() / 64)));
}

/// How many cache lines of the allocator's tables an operation looks at.
pub(super) fn lines_touched<T>(operation: impl FnOnce() -> T) -> (T, usize) {
    LINES.set(Some(BTreeSet::new()));
    let done = operation();
    (done, LINES.take().map_or(0, |lines| lines.len()))
}

/// Set in the process that [`alone`] starts.
const ALONE: &str = "CODECACHED_TEST_ALONE";

/// Repeatable random numbers: splitmix64.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not zero.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        (self.next() % u64::from(bound)) as u32
    }

    /// Below `bound`, which is not zero; the smaller the likelier.
    pub(super) fn small(&mut self, bound: u32) -> u32 {
        let below = self.below(bound) + 1;
        self.below(below)
    }
}

/// One entry of `/proc/self/smaps`.
pub(super) struct MapEntry {
    pub(super) range: Range<u64>,
    pub(super) permissions: String,
    pub(super) name: String,
    pub(super) pss_bytes: u64,
}

impl MapEntry {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
        let permissions = words.next()?.to_owned();
        Some(Self { range, permissions, name: words.skip(3).collect::<Vec<_>>().join(" "), pss_bytes: 0 })
    }
}

/// All mappings of this process, in order of their addresses.
pub(super) fn smaps() -> Vec<MapEntry> {
    let mut entries: Vec<MapEntry> = Vec::new();
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(entry) = MapEntry::parse(line) {
            entries.push(entry);
        } else if let Some(kib) = line.strip_prefix("Pss:") {
            let kib: u64 = kib.trim().trim_end_matches(" kB").parse().unwrap();
            entries.last_mut().unwrap().pss_bytes = kib << 10;
        }
    }
    entries
}

/// Bytes of addresses that this process has mapped, but for the heap, which grows when it likes.
pub(super) fn mapped_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/maps").unwrap();
    let entries = text.lines().filter_map(MapEntry::parse).filter(|it| it.name != "[heap]");
    entries.map(|it| it.range.end - it.range.start).sum()
}

/// How many descriptors this process has open, the one that lists them included.
pub(super) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs the test of this name in a process of its own, where nobody else maps or opens anything, and answers whether
/// this is that process.
pub(super) fn alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let test = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new(test);
    let ended = command.args([name, "--exact", "--test-threads=1"]).env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&ended.stderr));
    false
}
