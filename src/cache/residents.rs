//! What the cache lock guards: the index, the order of use and the counts of evictions.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Meta, Name, Target,
    entry::{Entry, Resident, View},
    lru::{Handle, Lru},
    victims::Victims,
};
use crate::arena::{Gaps, Lacks};

/// An entry whose last use is no longer ago was likely to be used again.
pub(super) const RECENT: Duration = Duration::from_secs(60);

/// Why an entry went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// To make room.
    Capacity,
    /// A client asked.
    Requested,
    /// Other bytes came under its key.
    Replaced,
}

/// Entries that went for one reason, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EvictionCount {
    /// Counted.
    pub entries: u64,
    /// Their charged bytes.
    pub bytes: u64,
}

/// Evictions since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evictions {
    /// To make room.
    pub capacity: EvictionCount,
    /// A client asked.
    pub requested: EvictionCount,
    /// Other bytes came under their key.
    pub replaced: EvictionCount,
    /// Of all, those that nobody had used.
    pub never_used: u64,
    /// Of `capacity`, those whose last use was less than a minute ago: the budget is too small for what is used.
    pub recently_used: u64,
    /// Of `capacity`, those that went before an older one whose going could help, to make contiguous room.
    pub out_of_order: u64,
}

/// Lookups since the start, without peeks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lookups {
    /// That found an entry.
    pub hits: u64,
    /// That did not.
    pub misses: u64,
}

/// The resident entries. Every method only moves values and counts: what it takes out, the caller drops outside the lock.
pub(super) struct Residents {
    index: BTreeMap<Arc<[u8]>, Handle>,
    order: Lru<Resident>,
    /// Those that hold memory below 2 GiB, in the same order: to make room there nobody else need be looked at.
    low: Lru<Handle>,
    installs: u64,
    lookups: Lookups,
    evictions: Evictions,
}

impl Residents {
    pub(super) fn new(generation_seed: u64) -> Self {
        Self {
            index: BTreeMap::new(),
            order: Lru::new(generation_seed),
            low: Lru::new(generation_seed),
            installs: 0,
            lookups: Lookups::default(),
            evictions: Evictions::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn evictions(&self) -> Evictions {
        self.evictions
    }

    pub(super) fn installs(&self) -> u64 {
        self.installs
    }

    pub(super) fn lookups(&self) -> Lookups {
        self.lookups
    }

    pub(super) fn count_lookup(&mut self, hit: bool) {
        *if hit { &mut self.lookups.hits } else { &mut self.lookups.misses } += 1;
    }

    pub(super) fn oldest_use(&self) -> Option<Instant> {
        self.order.oldest_first().next().map(|(_, resident)| resident.last_used)
    }

    pub(super) fn has_room(&self) -> bool {
        self.order.has_room()
    }

    /// The handle of a live entry; a handle of another namespace is none.
    pub(super) fn find(&self, target: Target<'_>) -> Option<Handle> {
        match target {
            Target::Name(name) => self.index.get(name.as_bytes()).copied(),
            Target::Handle(namespace, handle) => {
                self.order.get(handle).filter(|it| it.entry.meta.name.is_in(namespace)).map(|_| handle)
            }
        }
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Resident> {
        self.order.get(handle)
    }

    /// Makes the entry the most recently used.
    ///
    /// What it is linked against is used with it, and last what all others are linked against: so an entry always is
    /// older than what it is linked against, and the oldest one has nobody who is.
    pub(super) fn touch(&mut self, handle: Handle, now: Instant) -> Option<&Resident> {
        let meta = &self.touch_alone(handle, now)?.entry.meta;
        if !meta.reached.all().is_empty() {
            let meta = Arc::clone(meta);
            self.touch_reached(&meta, now);
        }
        self.get(handle)
    }

    fn touch_reached(&mut self, meta: &Meta, now: Instant) {
        for dependency in meta.reached.all() {
            // One that was taken out lingers, and has no place in the order.
            self.touch_alone(dependency.handle, now);
        }
    }

    fn touch_alone(&mut self, handle: Handle, now: Instant) -> Option<&Resident> {
        let resident = self.order.touch(handle)?;
        if let Some(low) = resident.low {
            self.low.touch(low);
        }
        resident.last_used = now;
        resident.used = true;
        Some(resident)
    }

    /// The same for an entry that is what an install would make; `None` for another one, and for one in quarantine if
    /// the install is to replace it.
    pub(super) fn touch_same(
        &mut self,
        handle: Handle,
        identity: &[u8; 32],
        replace: bool,
        now: Instant,
    ) -> Option<View> {
        let meta = &self.get(handle)?.entry.meta;
        if meta.identity != *identity || replace && meta.conduct.is_quarantined() {
            return None;
        }
        self.touch(handle, now).map(|it| it.view(handle))
    }

    /// Puts an entry in whose name is not live, as a use of what it is linked against. `None` without a free slot.
    pub(super) fn insert(&mut self, entry: Arc<Entry>) -> Option<Handle> {
        let name = Arc::clone(entry.meta.name.as_bytes());
        let meta = Arc::clone(&entry.meta);
        let (last_used, holds_low) = (entry.meta.installed_at, entry.helps(Lacks::Low));
        let low = &mut self.low;
        let handle = self.order.insert(|handle| {
            // As many slots as there are below 2 GiB too: what has one here has one there.
            let low = if holds_low { low.insert(|_| handle) } else { None };
            Resident { entry, last_used, used: false, low }
        })?;
        let before = self.index.insert(name, handle);
        debug_assert!(before.is_none(), "two live entries under one name");
        self.touch_reached(&meta, last_used);
        self.installs += 1;
        Some(handle)
    }

    pub(super) fn evict(&mut self, handle: Handle, reason: Reason, now: Instant) -> Option<Resident> {
        let resident = self.order.remove(handle)?;
        if let Some(low) = resident.low {
            self.low.remove(low);
        }
        self.index.remove(resident.entry.meta.name.as_bytes());
        let count = match reason {
            Reason::Capacity => &mut self.evictions.capacity,
            Reason::Requested => &mut self.evictions.requested,
            Reason::Replaced => &mut self.evictions.replaced,
        };
        count.entries += 1;
        count.bytes += resident.entry.charge.amount().total_bytes();
        self.evictions.never_used += u64::from(!resident.used);
        let recent = resident.used && now.saturating_duration_since(resident.last_used) < RECENT;
        self.evictions.recently_used += u64::from(recent && reason == Reason::Capacity);
        Some(resident)
    }

    /// The least recently used entries that nobody holds, once those before them are gone, whose charged bytes together
    /// with those of what lingers only for them are at least `bytes`; `None` if all of that is less. Looks past no more
    /// entries than are pinned, and what those are linked against.
    pub(super) fn victims(&self, bytes: u64) -> Option<Victims> {
        let mut victims = Victims::default();
        for (handle, resident) in self.order.oldest_first() {
            if victims.bytes >= bytes {
                break;
            }
            if resident.is_idle() || victims.owners_go(&resident.entry, 1) {
                victims.add(handle, &resident.entry);
            }
        }
        (victims.bytes >= bytes).then_some(victims)
    }

    /// The idle entry to evict where room is missing, of those whose going helps: the oldest of the `window` oldest for
    /// which `fits` says that its memory alone would do; else the oldest.
    pub(super) fn evict_for_room(
        &mut self,
        window: usize,
        lacks: Lacks,
        now: Instant,
        fits: impl Fn(&Entry) -> bool,
    ) -> Option<Resident> {
        let idle = || self.order.oldest_first().filter(|(_, it)| it.is_idle() && it.entry.helps(lacks));
        let oldest = idle().next()?.0;
        let victim = idle().take(window).find(|(_, it)| fits(&it.entry)).map_or(oldest, |(handle, _)| handle);
        self.evictions.out_of_order += u64::from(victim != oldest);
        self.evict(victim, Reason::Capacity, now)
    }

    /// Those to evict so that there is room below 2 GiB: of the `window` oldest that nobody holds and whose going helps
    /// there the first whose memory alone would do; else the oldest, as many as it takes, without those that would free
    /// nothing there. `None` if all of them would not do: then nobody need go.
    pub(super) fn victims_for_low_room(&self, window: usize, mut gaps: Gaps) -> Option<Vec<Handle>> {
        if gaps.suffice() {
            return Some(Vec::new());
        }
        let fits = |it: &Entry| gaps.suffice_with(&it.published);
        if let Some((handle, _)) = self.idle_low().take(window).find(|(_, it)| fits(&it.entry)) {
            return Some(vec![handle]);
        }
        let mut victims = Victims::default();
        let mut freed = HashSet::new();
        for (handle, resident) in self.low_oldest_first() {
            if !resident.is_idle() && !victims.owners_go(&resident.entry, 1) {
                continue;
            }
            let followers = victims.followers.len();
            victims.add(handle, &resident.entry);
            for entry in [&resident.entry].into_iter().chain(&victims.followers[followers..]) {
                gaps.add(&entry.published);
                freed.insert(Arc::as_ptr(entry));
            }
            if gaps.suffice() {
                let is_freed = |it: &Arc<Entry>| it.is_low() && freed.contains(&Arc::as_ptr(it));
                let is_of_use = |it: &Arc<Entry>| is_freed(it) || it.shares.iter().any(|it| is_freed(it.entry()));
                victims.handles.retain(|&handle| self.get(handle).is_some_and(|it| is_of_use(&it.entry)));
                return Some(victims.handles);
            }
        }
        None
    }

    /// Evicts [those](Self::victims_for_low_room).
    pub(super) fn evict_for_low_room(&mut self, window: usize, gaps: Gaps, now: Instant) -> Option<Vec<Resident>> {
        let oldest = self.idle_low().next().map(|(handle, _)| handle);
        let victims = self.victims_for_low_room(window, gaps)?;
        if victims.first() != oldest.as_ref() {
            self.evictions.out_of_order += victims.len() as u64;
        }
        Some(victims.into_iter().filter_map(|it| self.evict(it, Reason::Capacity, now)).collect())
    }

    fn low_oldest_first(&self) -> impl Iterator<Item = (Handle, &Resident)> {
        self.low.oldest_first().filter_map(|(_, &handle)| Some((handle, self.order.get(handle)?)))
    }

    fn idle_low(&self) -> impl Iterator<Item = (Handle, &Resident)> {
        self.low_oldest_first().filter(|(_, resident)| resident.is_idle())
    }

    /// Views in the order of names of at most `limit` entries whose name starts so, from the name after `after` on.
    pub(super) fn views(&self, prefix: &[u8], after: Option<&Name>, limit: usize) -> Vec<View> {
        let from = match after {
            Some(name) if name.as_bytes()[..] >= prefix[..] => Bound::Excluded(&name.as_bytes()[..]),
            _ => Bound::Included(prefix),
        };
        self.index
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .take(limit)
            .filter_map(|(_, &handle)| Some(self.order.get(handle)?.view(handle)))
            .collect()
    }
}
