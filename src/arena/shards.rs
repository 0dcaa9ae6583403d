//! The arenas with their locks, and which of them a thread tries first.
//!
//! Each arena is a shard with a lock of its own. A thread keeps to one until it often waits for another thread there.

use std::{
    cell::Cell,
    hint, ptr,
    sync::{
        Mutex, MutexGuard, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use super::{geometry::Geometry, shard::Shard};

/// How often a thread looks again at its shard, which most often is held for less than a microsecond, before it waits.
const LOOKS_MAX: u32 = 100;
/// What waiting for another thread in its shard adds to a thread's annoyance, of which each quiet visit takes one away:
/// it grows where more than a fifth of the visits wait.
const WAITED: u32 = 4;
/// Annoyed so much, a thread moves to another shard. Not for less: what it takes there must be committed first, which
/// costs more than a few waits.
const MOVES: u32 = 1024;

thread_local! {
    /// The shard that this thread tries first, to be taken modulo their number.
    static HOME: Cell<usize> = const { Cell::new(0) };
    /// From waiting for others who take spans there. Who gives spans back there is gone at once and never comes twice.
    static ANNOYANCE: Cell<u32> = const { Cell::new(0) };
}

/// A shard with its lock, on cache lines of its own.
#[repr(align(128))]
struct Locked {
    shard: Mutex<Shard>,
    /// How often a thread that wanted spans found the lock held.
    contended: AtomicU64,
    /// Which thread took spans here last.
    taker: AtomicUsize,
    /// More is free than is to be kept.
    spare: AtomicBool,
}

/// All shards.
pub(super) struct Shards {
    locked: Box<[Locked]>,
    /// How many of them threads choose from: all but the one below 2 GiB, which comes last.
    common: usize,
    newly_spare: AtomicBool,
}

impl Shards {
    /// All memory is free.
    pub(super) fn new(geometry: Geometry) -> Self {
        let locked = |arena| Locked {
            shard: Mutex::new(Shard::new(geometry, arena)),
            contended: AtomicU64::new(0),
            taker: AtomicUsize::new(0),
            spare: AtomicBool::new(false),
        };
        Self {
            locked: (0..geometry.all_arenas()).map(locked).collect(),
            common: geometry.arenas as usize,
            newly_spare: AtomicBool::new(false),
        }
    }

    /// How many there are to choose from.
    pub(super) fn common(&self) -> usize {
        self.common
    }

    pub(super) fn lock(&self, arena: u32) -> MutexGuard<'_, Shard> {
        self.locked[arena as usize].shard.lock().expect("invariant: nothing panics under an arena's lock")
    }

    /// The same for who wants spans there and nowhere else.
    pub(super) fn lock_wanted(&self, arena: u32) -> MutexGuard<'_, Shard> {
        self.try_lock(arena as usize).unwrap_or_else(|| {
            self.locked[arena as usize].contended.fetch_add(1, Relaxed);
            self.lock(arena)
        })
    }

    /// How often a thread that wanted spans found the lock held.
    pub(super) fn contended(&self, arena: u32) -> u64 {
        self.locked[arena as usize].contended.load(Relaxed)
    }

    /// Takes note, under the arena's lock, whether it has more free memory than it keeps.
    pub(super) fn note_spare(&self, arena: u32, spare: bool) {
        let noted = &self.locked[arena as usize].spare;
        if noted.load(Relaxed) != spare {
            noted.store(spare, Relaxed);
            self.newly_spare.fetch_or(spare, Relaxed);
        }
    }

    /// Whether an arena waits for whole chunks to become free: nothing shall be kept there that has no owner.
    pub(super) fn has_spare(&self, arena: u32) -> bool {
        self.locked[arena as usize].spare.load(Relaxed)
    }

    /// Whether [`Self::has_spare`] has become true of some arena since this was last asked.
    pub(super) fn take_newly_spare(&self) -> bool {
        self.newly_spare.load(Relaxed) && self.newly_spare.swap(false, Relaxed)
    }

    /// Waits for the thread's shard. Who has to again and again has the next one from the next time on.
    pub(super) fn lock_home(&self, home: usize) -> MutexGuard<'_, Shard> {
        let (annoyance, own) = ANNOYANCE.with(|it| (it.get(), ptr::from_ref(it).addr()));
        let taker = &self.locked[home].taker;
        let shard = match self.try_lock(home) {
            Some(shard) => {
                if annoyance > 0 {
                    ANNOYANCE.set(annoyance - 1);
                }
                shard
            }
            None => {
                self.locked[home].contended.fetch_add(1, Relaxed);
                // Of two who wait for each other one stays, or both would meet again where they go.
                if taker.load(Relaxed) < own {
                    self.annoy(annoyance + WAITED, home);
                }
                let mut looks = (0..LOOKS_MAX).filter_map(|_| {
                    hint::spin_loop();
                    self.try_lock(home)
                });
                looks.next().unwrap_or_else(|| self.lock(home as u32))
            }
        };
        if taker.load(Relaxed) != own {
            taker.store(own, Relaxed);
        }
        shard
    }

    fn annoy(&self, annoyance: u32, home: usize) {
        if annoyance < MOVES {
            ANNOYANCE.set(annoyance);
        } else {
            ANNOYANCE.set(0);
            HOME.set((home + 1) % self.common);
        }
    }

    /// The shard that this thread tries first.
    pub(super) fn home(&self) -> usize {
        let home = HOME.get();
        if home < self.common { home } else { home % self.common }
    }

    /// `None` where another thread has it.
    pub(super) fn try_lock(&self, at: usize) -> Option<MutexGuard<'_, Shard>> {
        match self.locked[at].shard.try_lock() {
            Ok(shard) => Some(shard),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(_)) => panic!("invariant: nothing panics under an arena's lock"),
        }
    }
}
