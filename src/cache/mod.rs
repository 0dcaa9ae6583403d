//! Which image is resident: index, recency, budget, pins.
//!
//! [`Cache::install`] brings a parsed image in, [`Cache::lookup`] finds it, [`Cache::pin`] keeps it where it is
//! for a call, [`Cache::evict`] takes it out. Entries may be linked against others ([`Cache::dependencies`]), which they keep. The charged bytes of all entries and of what is being uploaded
//! ([`Cache::upload`]) never exceed the budget; to make room, the least recently used entries go that nothing holds.
//!
//! Absent here: how memory is mapped (`arena`), what an object looks like (`code`), how code is called (`exec`), who asks
//! (`service`).
//!
//! Locks: one around `Residents`, and the ledger's, which may be taken inside it and holds nothing else.
//! The arena's lock is never taken under either. A pin is an `Arc` that only the cache lock hands out,
//! so an entry with one owner, seen under that lock, is one that nobody holds.

mod dependencies;
mod entry;
mod exports;
mod install;
mod kept;
mod ledger;
mod lru;
mod name;
mod quarantine;
mod residents;
mod room;
mod startup;
mod upload;
mod victims;
mod watch;

#[cfg(test)]
mod dependencies_tests;
#[cfg(test)]
mod recency_tests;
#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod watch_tests;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub use self::{
    dependencies::{DEPENDENCIES_MAX, DEPTH_MAX, Dependencies, Dependency, DependencyError, REACHED_MAX, Reached},
    entry::{Meta, OnFreed, Pinned, View},
    exports::Exports,
    install::{Install, InstallError, InstallTimes, Installed, Outcome, Victim},
    ledger::{Amount, Charged},
    lru::Handle,
    name::{DEFAULT_NAMESPACE, KEY_MAX_BYTES, NAMESPACE_MAX_BYTES, Name, NameError, Namespace},
    quarantine::{Conduct, Quarantine, QuarantineRule, Quarantines},
    residents::{EvictionCount, Evictions, Lookups, Reason},
    startup::Startup,
    upload::Upload,
    watch::{Placed, Watch, Watched, Watcher},
};
use self::{kept::Kept, ledger::Ledger, quarantine::Ward, residents::Residents};
use crate::{arena::Arenas, code::ImportTable};

/// Where the time comes from.
pub type Clock = fn() -> Instant;

/// Entries looked at while the lock is held once, by listings: some tens of microseconds.
const SCAN_STEP: usize = 512;

/// How a cache is set up.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Bytes that may be charged.
    pub budget_bytes: u64,
    /// How many of the oldest entries are looked at where contiguous room is missing; 0 evicts in strict order.
    pub eviction_window: usize,
    /// Any number; handles of a process with another one are stale here.
    pub generation_seed: u64,
    /// What the numbers of namespaces are made with, by which code of one is told from another's: random, and kept to itself.
    pub tenant_key: [u8; 32],
    /// Where the time comes from.
    pub clock: Clock,
}

impl CacheConfig {
    /// With numbers that anybody can foresee, evicting in strict order: for tests and benches.
    pub fn foreseeable(budget_bytes: u64) -> Self {
        Self { budget_bytes, eviction_window: 0, generation_seed: 1, tenant_key: [7; 32], clock: Instant::now }
    }
}

/// Names an entry in a request.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// By namespace and key.
    Name(&'a Name),
    /// By handle, which must be of this namespace.
    Handle(Namespace<'a>, Handle),
}

/// What became of an evicted entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Its memory is free.
    Freed,
    /// Calls run on, or entries are linked against it.
    Lingering,
}

/// An entry that was evicted on request.
#[derive(Debug)]
pub struct EvictedEntry {
    /// Whether its memory is free.
    pub gone: Gone,
    /// The entry as it was.
    pub view: View,
}

/// What the top of a list is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// The most recently used first.
    MostRecent,
    /// The least recently used first.
    LeastRecent,
    /// The most charged bytes first.
    Size,
    /// The most calls first.
    Calls,
}

/// Counts at one moment.
#[derive(Debug, Clone, Copy)]
pub struct CacheStats {
    /// What `charged` never exceeds.
    pub budget_bytes: u64,
    /// What counts against the budget.
    pub charged: Charged,
    /// Entries that can be found.
    pub resident_entries: u64,
    /// Entries that were made, since the start.
    pub installs: u64,
    /// Lookups since the start.
    pub lookups: Lookups,
    /// Evictions since the start.
    pub evictions: Evictions,
    /// Entries that are not called for now.
    pub quarantines: Quarantines,
    /// Time since the use of the next victim.
    pub oldest_idle: Option<Duration>,
}

/// The resident images under one budget.
pub struct Cache {
    arenas: Arc<Arenas>,
    imports: ImportTable,
    ledger: Arc<Ledger>,
    residents: Mutex<Residents>,
    eviction_window: usize,
    clock: Clock,
    watcher: Option<Watcher>,
    /// Makes numbers of namespaces. Its keys are nobody's to know, so that nobody can find a namespace with the number of
    /// another.
    tenant_key: [u8; 32],
    ward: Arc<Ward>,
    kept: Option<Kept>,
}

impl Cache {
    /// An empty cache over `arenas`, whose entries may import what `imports` offers.
    pub fn new(config: &CacheConfig, arenas: Arc<Arenas>, imports: ImportTable) -> Self {
        Self {
            arenas,
            imports,
            ledger: Ledger::new(config.budget_bytes, config.clock),
            residents: Mutex::new(Residents::new(config.generation_seed)),
            eviction_window: config.eviction_window,
            clock: config.clock,
            watcher: None,
            tenant_key: config.tenant_key,
            ward: Ward::new(QuarantineRule { traps: 0, window: Duration::ZERO }, config.clock),
            kept: None,
        }
    }

    /// Tells `watcher` of every entry from now on.
    #[must_use]
    pub fn watched_by(self, watcher: Watcher) -> Self {
        Self { watcher: Some(watcher), ..self }
    }

    /// Quarantines entries by this rule, where without it only those are whose code cannot be stopped.
    #[must_use]
    pub fn quarantining(self, rule: QuarantineRule) -> Self {
        let ward = Ward::new(rule, self.clock);
        Self { ward, ..self }
    }

    /// From now on what is evicted on request, or replaced, keeps its addresses until the budget or the arenas need
    /// them: so long it lingers. What goes for the budget's sake is freed at once.
    #[must_use]
    pub fn keeping_addresses(self) -> Self {
        Self { kept: Some(Kept::default()), ..self }
    }

    /// What images may import.
    pub fn imports(&self) -> &ImportTable {
        &self.imports
    }

    /// Finds an entry. A use, unless `peek`.
    pub fn lookup(&self, target: Target<'_>, peek: bool) -> Option<View> {
        let now = (self.clock)();
        let mut residents = self.residents();
        let handle = residents.find(target);
        if !peek {
            residents.count_lookup(handle.is_some());
        }
        let handle = handle?;
        let resident = if peek { residents.get(handle) } else { residents.touch(handle, now) };
        resident.map(|it| it.view(handle))
    }

    /// Finds an entry and keeps it for a call. A use.
    pub fn pin(&self, target: Target<'_>) -> Option<Pinned> {
        let now = (self.clock)();
        let mut residents = self.residents();
        let handle = residents.find(target)?;
        let entry = Arc::clone(&residents.touch(handle, now)?.entry);
        Some(Pinned { entry, handle })
    }

    /// Finds an entry and keeps it to be looked at. No use.
    pub fn peek(&self, target: Target<'_>) -> Option<Pinned> {
        let residents = self.residents();
        let handle = residents.find(target)?;
        let entry = Arc::clone(&residents.get(handle)?.entry);
        Some(Pinned { entry, handle })
    }

    /// Lets an entry be called again; what its quarantine was, if it was in one. No use. `None`: there is no such entry.
    pub fn lift_quarantine(&self, target: Target<'_>) -> Option<(View, Option<Quarantine>)> {
        let view = self.lookup(target, true)?;
        let lifted = view.meta.conduct.lift();
        Some((view, lifted))
    }

    /// Takes an entry out. `on_freed` is called once its memory is free, if it is not at once.
    pub fn evict(&self, target: Target<'_>, on_freed: Option<OnFreed>) -> Option<EvictedEntry> {
        let now = (self.clock)();
        let (resident, view) = {
            let mut residents = self.residents();
            let handle = residents.find(target)?;
            let view = residents.get(handle)?.view(handle);
            (residents.evict(handle, Reason::Requested, now)?, view)
        };
        let gone = self.let_go(resident.entry, on_freed);
        Some(EvictedEntry { gone, view })
    }

    /// A page of entries in key order, from the one after `after` on.
    pub fn page(&self, namespace: Namespace<'_>, prefix: &[u8], after: Option<&Name>, limit: usize) -> Vec<View> {
        let prefix = namespace.name_prefix(prefix);
        let mut page: Vec<View> = Vec::new();
        while page.len() < limit {
            let last = page.last().map(|view| view.meta.name.clone());
            let step = SCAN_STEP.min(limit - page.len());
            let views = self.residents().views(&prefix, last.as_ref().or(after), step);
            let ended = views.len() < step;
            page.extend(views);
            if ended {
                break;
            }
        }
        page
    }

    /// The first `limit` entries by `rank`. Entries that come or go meanwhile may be missed.
    pub fn top(&self, namespace: Namespace<'_>, prefix: &[u8], rank: Rank, limit: usize) -> Vec<View> {
        self.ranked(&namespace.name_prefix(prefix), rank, limit)
    }

    /// [`Self::top`] of all namespaces together: for who runs the daemon.
    pub fn top_of_all(&self, rank: Rank, limit: usize) -> Vec<View> {
        self.ranked(&[], rank, limit)
    }

    fn ranked(&self, prefix: &[u8], rank: Rank, limit: usize) -> Vec<View> {
        let now = (self.clock)();
        let score = |view: &View| {
            let idle_ns = now.saturating_duration_since(view.last_used).as_nanos() as u64;
            match rank {
                Rank::MostRecent => u64::MAX - idle_ns,
                Rank::LeastRecent => idle_ns,
                Rank::Size => view.charged_bytes,
                Rank::Calls => view.calls,
            }
        };
        let mut top: BinaryHeap<Reverse<Ranked>> = BinaryHeap::new();
        let mut after: Option<Name> = None;
        loop {
            let views = self.residents().views(prefix, after.as_ref(), SCAN_STEP);
            after = views.last().map(|view| view.meta.name.clone());
            let ended = views.len() < SCAN_STEP;
            for view in views {
                top.push(Reverse(Ranked { score: score(&view), view }));
                if top.len() > limit {
                    top.pop();
                }
            }
            if ended {
                return top.into_sorted_vec().into_iter().map(|Reverse(ranked)| ranked.view).collect();
            }
        }
    }

    /// Counts at one moment.
    pub fn stats(&self) -> CacheStats {
        let now = (self.clock)();
        let residents = self.residents();
        CacheStats {
            budget_bytes: self.ledger.limit_bytes(),
            charged: self.ledger.charged(),
            resident_entries: residents.len() as u64,
            installs: residents.installs(),
            lookups: residents.lookups(),
            evictions: residents.evictions(),
            quarantines: self.ward.counts(),
            oldest_idle: residents.oldest_use().map(|used| now.saturating_duration_since(used)),
        }
    }

    /// How long the memory of evicted entries took to come back, since the last time this was asked.
    pub fn take_reclaim_delays(&self) -> Vec<Duration> {
        self.ledger.take_reclaim_delays()
    }

    /// Gives up the index's share of an entry that was taken out.
    fn let_go(&self, entry: Arc<entry::Entry>, on_freed: Option<OnFreed>) -> Gone {
        if let Some(call) = on_freed {
            entry.on_freed(call);
        }
        if let Some(kept) = &self.kept {
            kept.push(Arc::clone(&entry));
        }
        // No new pin can come: what nobody holds now is freed below, and only what somebody holds need be marked.
        if Arc::strong_count(&entry) > 1 {
            entry.published.linger();
        }
        // Before this share goes, so that the last pin, which may go at any moment, finds it counted.
        entry.charge.linger();
        match Arc::into_inner(entry) {
            Some(_freed_here) => Gone::Freed,
            None => Gone::Lingering,
        }
    }

    fn residents(&self) -> MutexGuard<'_, Residents> {
        // Under the lock only values move. Were that to panic, the next one would still find index and order in step.
        self.residents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A view that sorts by its score, then by name so that equal ones have an order.
struct Ranked {
    score: u64,
    view: View,
}

impl Ranked {
    fn key(&self) -> (u64, Reverse<&[u8]>) {
        (self.score, Reverse(self.view.meta.name.key()))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}
