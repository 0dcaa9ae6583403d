//! What entries are linked against.
//!
//! An entry owns every entry that its code may reach, so that memory is there for as long as anybody runs what
//! refers to it. It is linked against residencies that are there before it, never against keys, and so there is no
//! circle of owners. By key one could be meant nevertheless, and is refused.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{Cache, Handle, Meta, Name, Pinned, Target, entry::Entry};
use crate::code::Provider;

/// Entries that one can name as its dependencies: each of its undefined symbols is looked for in all of them.
pub const DEPENDENCIES_MAX: usize = 16;
/// Entries that one can reach, by whatever way: a use of it is a use of all of them, under the cache lock.
pub const REACHED_MAX: usize = 64;
/// Length of a chain of dependencies: its last entry may be dropped by the first, and that by recursion.
pub const DEPTH_MAX: u32 = 16;

/// What is known of an entry that another one is linked against, without holding on to its memory.
#[derive(Debug, Clone)]
pub struct Dependency {
    /// Names that residency.
    pub handle: Handle,
    /// What is known of it.
    pub meta: Arc<Meta>,
    /// Run addresses of its code.
    pub code: Range<u64>,
}

/// What is known of all that an entry is linked against.
#[derive(Debug, Default)]
pub struct Reached {
    /// Each once, and each before those that it is linked against itself.
    all: Box<[Dependency]>,
    /// Those that the install named, in its order.
    direct: Box<[u8]>,
    /// Length of the longest chain from the entry on: 0 for one without dependencies.
    depth: u32,
}

impl Reached {
    /// What the install named, in its order.
    pub fn direct(&self) -> impl ExactSizeIterator<Item = &Dependency> {
        self.direct.iter().map(|&at| &self.all[usize::from(at)])
    }

    /// All that the entry's code may reach, each before those that it is linked against itself.
    pub fn all(&self) -> &[Dependency] {
        &self.all
    }

    fn leads_to(&self, name: &Name) -> bool {
        self.all.iter().any(|it| it.meta.name == *name)
    }
}

/// The share of an entry in another one that it is linked against.
pub(super) struct Share(Arc<Entry>);

impl Share {
    fn new(entry: Arc<Entry>) -> Self {
        entry.meta.dependants.fetch_add(1, Relaxed);
        Self(entry)
    }

    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.meta.dependants.fetch_sub(1, Relaxed);
    }
}

/// The entries that one is to be linked against, kept where they are.
#[derive(Default)]
pub struct Dependencies {
    /// Each once, and each before those that it is linked against itself.
    all: Vec<Pinned>,
    /// Of those, what the install names, in its order.
    direct: Vec<usize>,
}

/// Why an entry cannot be linked against others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DependencyError {
    /// More of them than an entry may name.
    #[error("{count} are named, an entry may have {DEPENDENCIES_MAX}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// The same name twice.
    #[error("{name:?} is named twice")]
    Twice {
        /// Which.
        name: Name,
    },
    /// Not installed.
    #[error("no entry under {name:?}; install it first")]
    Missing {
        /// Which.
        name: Name,
    },
    /// It is the entry itself, or what that is linked against.
    #[error("{of:?} would need itself: {by:?} is linked against it; install {by:?} again without it first")]
    Cycle {
        /// The entry to be.
        of: Name,
        /// The dependency that leads back to it.
        by: Name,
    },
    /// The entry itself.
    #[error("{of:?} cannot need itself")]
    Own {
        /// The entry to be.
        of: Name,
    },
    /// Too long a chain.
    #[error("{name:?} ends a chain of {DEPTH_MAX} dependencies, the longest that there may be")]
    TooDeep {
        /// The dependency that has it.
        name: Name,
    },
    /// Too many, with what they are linked against.
    #[error("{count} entries would be reached, with those that dependencies need themselves; {REACHED_MAX} may be")]
    TooWide {
        /// How many there are.
        count: usize,
    },
}

impl DependencyError {
    /// As many as an entry may name.
    ///
    /// # Errors
    /// [`DependencyError::TooMany`].
    pub fn hold_count(count: usize) -> Result<(), Self> {
        if count > DEPENDENCIES_MAX { Err(Self::TooMany { count }) } else { Ok(()) }
    }
}

impl Cache {
    /// Finds the entries that one of the name `of` is to be linked against, and keeps them. A use of each.
    ///
    /// # Errors
    /// [`DependencyError`].
    pub fn dependencies(&self, of: &Name, names: &[Name]) -> Result<Dependencies, DependencyError> {
        DependencyError::hold_count(names.len())?;
        let mut direct: Vec<Pinned> = Vec::new();
        for name in names {
            if name == of {
                return Err(DependencyError::Own { of: of.clone() });
            }
            let missing = || DependencyError::Missing { name: name.clone() };
            let pinned = self.pin(Target::Name(name)).ok_or_else(missing)?;
            let (reached, name) = (&pinned.meta().reached, name.clone());
            if direct.iter().any(|it| it.handle() == pinned.handle()) {
                return Err(DependencyError::Twice { name });
            }
            if reached.leads_to(of) {
                return Err(DependencyError::Cycle { of: of.clone(), by: name });
            }
            if reached.depth >= DEPTH_MAX {
                return Err(DependencyError::TooDeep { name });
            }
            direct.push(pinned);
        }
        Dependencies::new(direct)
    }
}

impl Dependencies {
    fn new(direct: Vec<Pinned>) -> Result<Self, DependencyError> {
        let mut all: Vec<Pinned> = Vec::new();
        for pinned in &direct {
            let shares = pinned.entry.shares.iter().map(Share::entry).zip(pinned.meta().reached.all());
            let others = shares.map(|(entry, it)| Pinned { entry: Arc::clone(entry), handle: it.handle });
            let itself = Pinned { entry: Arc::clone(&pinned.entry), handle: pinned.handle };
            for reached in others.chain([itself]) {
                if !all.iter().any(|it| it.handle == reached.handle) {
                    all.push(reached);
                }
            }
        }
        if all.len() > REACHED_MAX {
            return Err(DependencyError::TooWide { count: all.len() });
        }
        // What is linked against another one has the longer chain.
        all.sort_by_key(|it| std::cmp::Reverse(it.meta().reached.depth));
        let at = |pinned: &Pinned| all.iter().position(|it| it.handle == pinned.handle);
        let direct = direct.iter().filter_map(at).collect();
        Ok(Self { all, direct })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What an install named, in its order.
    pub fn direct(&self) -> impl ExactSizeIterator<Item = &Pinned> {
        self.direct.iter().map(|&at| &self.all[at])
    }

    /// What their symbols are and where.
    pub fn providers(&self) -> Vec<Provider<'_>> {
        self.direct()
            .map(|it| Provider {
                symbols: it.meta().exports.symbols(),
                at: it.entry.addresses(),
                has_thread: it.meta().thread.is_some(),
            })
            .collect()
    }

    /// Bytes that are charged for them all, and must stay so for as long as what is linked against them.
    pub(super) fn charged_bytes(&self) -> u64 {
        self.all.iter().map(|it| it.entry.charge.amount().total_bytes()).sum()
    }

    /// Whether one of them lies below 2 GiB.
    pub(super) fn hold_low(&self) -> bool {
        self.all.iter().any(|it| it.entry.is_low())
    }

    /// Bytes of heap that an entry takes for them.
    pub(super) fn heap_bytes(&self) -> u64 {
        let each_bytes = size_of::<Share>() + size_of::<Dependency>();
        (self.all.len() * each_bytes + self.direct.len()) as u64
    }

    /// What an entry keeps of them.
    pub(super) fn into_shares(self) -> (Box<[Share]>, Reached) {
        // At most REACHED_MAX, so that an index fits.
        let direct = self.direct.iter().map(|&at| at as u8).collect();
        let dependency =
            |it: &Pinned| Dependency { handle: it.handle, meta: Arc::clone(it.meta()), code: it.code_range() };
        let all = self.all.iter().map(dependency).collect();
        let depth = self.all.iter().map(|it| it.meta().reached.depth + 1).max().unwrap_or(0);
        (self.all.into_iter().map(|it| Share::new(it.entry)).collect(), Reached { all, direct, depth })
    }
}
