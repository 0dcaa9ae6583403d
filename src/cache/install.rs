//! How an image becomes resident.

use std::{
    ops::Range,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};

use super::{
    Cache, Conduct, Dependencies, Exports, Handle, Meta, Name, Placed, Startup, Target, Upload, View, Watched,
    entry::{AtDrop, Entry, Resident},
    ledger::{Amount, Charge},
    lru::slot_bytes,
    residents::{Reason, Residents},
};
use crate::{
    arena::{self, Draft, Lacks, Layout, PublishError, Published, ReserveError},
    code::{self, CodeError, Image, LinkState},
};

/// What is to be installed, beside the image.
#[derive(Debug, Clone)]
pub struct Install {
    /// Under which name.
    pub name: Name,
    /// BLAKE3 of the blob.
    pub digest: [u8; 32],
    /// Digest of everything that decides what the entry does: the blob, its form, the options.
    pub identity: [u8; 32],
    /// Take the place of a live entry with another identity.
    pub replace: bool,
    /// Calls may overlap although the entry has writable data.
    pub reentrant: bool,
}

/// What an install did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The name was free.
    Created,
    /// The same was there.
    Existed,
    /// Something else was there.
    Replaced,
}

/// An entry that went to make room.
#[derive(Debug, Clone, Copy)]
pub struct Victim {
    /// Bytes that were charged for it.
    pub charged_bytes: u64,
    /// How long it was resident.
    pub lifetime: Duration,
}

/// How long the steps of an install took.
#[derive(Debug, Clone, Copy, Default)]
pub struct InstallTimes {
    /// Charging, evicting and reserving.
    pub reserve: Duration,
    /// Linking.
    pub link: Duration,
    /// Making visible and inserting.
    pub publish: Duration,
}

/// How an install went.
#[derive(Debug)]
pub struct Installed {
    /// The resident entry.
    pub view: View,
    /// What was done.
    pub outcome: Outcome,
    /// What went to make room.
    pub victims: Vec<Victim>,
    /// How long it took; zero for one that existed.
    pub times: InstallTimes,
}

impl Installed {
    fn existing(view: View) -> Self {
        Self { view, outcome: Outcome::Existed, victims: Vec::new(), times: InstallTimes::default() }
    }
}

/// What came of the wish for room.
enum Room {
    /// There is room. `replaces`: the name was live with another identity.
    Charged { charge: Charge, replaces: bool },
    /// None is needed.
    Existing(View),
}

/// Why an image did not become resident. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The name is live with another identity.
    #[error("key holds other bytes; evict it, or install with replace")]
    KeyOccupied,
    /// More than the whole budget.
    #[error("{needed_bytes} bytes are needed, the whole budget is {budget_bytes}")]
    LargerThanBudget {
        /// What would be charged, with the upload that it came by and what it is linked against.
        needed_bytes: u64,
        /// The limit.
        budget_bytes: u64,
    },
    /// What runs or waits holds too much.
    #[error(
        "{missing_bytes} bytes are missing and no entry may go: what is left is running, waiting or being installed"
    )]
    AllPinned {
        /// What a retry needs.
        missing_bytes: u64,
    },
    /// The bytes suffice, but not in one piece.
    #[error("no contiguous room after evicting what may go: {0}")]
    Fragmented(ReserveError),
    /// The arena cannot take it at all, or the kernel refuses memory.
    #[error(transparent)]
    Reserve(ReserveError),
    /// More entries than handles can tell apart.
    #[error("too many entries; evict some")]
    TooManyEntries,
    /// The kernel refuses to make executable what was written.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The image does not fit where it was put, or there is no place for such images.
    #[error(transparent)]
    Link(#[from] CodeError),
}

impl Cache {
    /// Whether there is nothing to do: the entry that is there already, as a use of it. Cheap; install asks again.
    ///
    /// # Errors
    /// [`InstallError::KeyOccupied`].
    pub fn existing(&self, install: &Install) -> Result<Option<View>, InstallError> {
        let now = (self.clock)();
        let mut residents = self.residents();
        let Some(handle) = residents.find(Target::Name(&install.name)) else { return Ok(None) };
        match residents.touch_same(handle, &install.identity, install.replace, now) {
            Some(view) => Ok(Some(view)),
            None if install.replace => Ok(None),
            None => Err(InstallError::KeyOccupied),
        }
    }

    /// Makes an image resident, evicting what must go.
    ///
    /// # Errors
    /// [`InstallError`]; then what was resident still is, but for entries that were evicted before it turned out that
    /// memory is too fragmented, that the system gives none, or that another client's bytes came first.
    pub fn install(&self, install: &Install, image: Image) -> Result<Installed, InstallError> {
        self.install_beside(0, install, image, Dependencies::default())
    }

    /// The same for an image that is linked against others, which are kept for as long as it, and perhaps came by an
    /// upload, which stays charged beside it: what was uploaded is on the heap until it is linked.
    ///
    /// # Errors
    /// The same.
    pub fn install_linked(
        &self,
        upload: Option<&Upload>,
        install: &Install,
        image: Image,
        dependencies: Dependencies,
    ) -> Result<Installed, InstallError> {
        self.install_beside(upload.map_or(0, Upload::bytes), install, image, dependencies)
    }

    /// The same for an image that came by `upload`.
    ///
    /// # Errors
    /// The same.
    pub fn install_upload(&self, upload: &Upload, install: &Install, image: Image) -> Result<Installed, InstallError> {
        self.install_beside(upload.bytes(), install, image, Dependencies::default())
    }

    fn install_beside(
        &self,
        held_bytes: u64,
        install: &Install,
        mut image: Image,
        dependencies: Dependencies,
    ) -> Result<Installed, InstallError> {
        let started = (self.clock)();
        if let Some(view) = self.existing(install)? {
            return Ok(Installed::existing(view));
        }
        let Needs { layout, link_state, amount } = self.needs(&install.name, &image, &dependencies, held_bytes)?;
        self.hold_low_room(&layout)?;
        let mut victims = Vec::new();
        let (charge, replaces) = match self.charge(install, amount, &mut victims)? {
            Room::Charged { charge, replaces } => (charge, replaces),
            Room::Existing(view) => return Ok(Installed::existing(view)),
        };
        let draft = self.reserve(&layout, &mut victims)?;
        let reserved = (self.clock)();
        let (published, data_initial, linked) = self.link(&image, draft)?;
        let (sizes, thread, unwind) = (image.sizes(), image.thread(), image.unwind());
        let (shares, reached) = dependencies.into_shares();
        let meta = Meta {
            name: install.name.clone(),
            tenant: install.name.tenant(&self.tenant_key),
            digest: install.digest,
            identity: install.identity,
            sizes,
            thread,
            startup: Startup::new(image.take_startup()),
            conduct: Conduct::new(&self.ward),
            exports: Exports::new(image.into_exports_and_functions()),
            reentrant: install.reentrant,
            installed_at: (self.clock)(),
            reached,
            calls: AtomicU64::new(0),
            dependants: AtomicU64::new(0),
        };
        let watched = self.watch(&meta, unwind, &published);
        let entry = Entry {
            watched,
            published,
            data_initial: Mutex::new(data_initial),
            link_state,
            shares,
            meta: Arc::new(meta),
            charge,
            freed: AtDrop::default(),
        };
        let (view, outcome) = self.insert(Arc::new(entry), install.replace, replaces)?;
        let times =
            InstallTimes { reserve: reserved - started, link: linked - reserved, publish: (self.clock)() - linked };
        Ok(Installed { view, outcome, victims, times })
    }

    /// Whether an image could become resident if all others went but what it is linked against.
    ///
    /// # Errors
    /// Those of [`InstallError`] for which nobody is evicted in vain.
    pub fn hold(&self, name: &Name, image: &Image, dependencies: &Dependencies) -> Result<(), InstallError> {
        self.needs(name, image, dependencies, 0).map(drop)
    }

    /// What an image takes, if that can be had at all.
    fn needs(
        &self,
        name: &Name,
        image: &Image,
        dependencies: &Dependencies,
        held_bytes: u64,
    ) -> Result<Needs, InstallError> {
        if image.thread().is_some() && self.imports.thread_switch().is_none() {
            return Err(CodeError::NoThreads.into());
        }
        let layout = layout(image);
        self.arenas.hold(&layout).map_err(|error| match (error, image.low_problem()) {
            (ReserveError::NoLow, Some(problem)) => InstallError::Link(problem),
            (error, _) => InstallError::Reserve(error),
        })?;
        let link_state = image.link_state();
        let amount = Amount {
            spans_bytes: self.arenas.charge_bytes(&layout),
            metadata_bytes: Meta::charge_bytes(name, image, &link_state)
                + if layout.low || dependencies.hold_low() { slot_bytes::<Handle>() } else { 0 }
                + self.watched_bytes(image)
                + dependencies.heap_bytes(),
            uploads_bytes: 0,
        };
        let beside_bytes = held_bytes.saturating_add(dependencies.charged_bytes());
        self.hold_to_budget(amount.total_bytes().saturating_add(beside_bytes))?;
        Ok(Needs { layout, link_state, amount })
    }

    /// Charges `amount`, evicting the least recently used entries until it fits. If it cannot, nothing is evicted.
    fn charge(&self, install: &Install, amount: Amount, victims: &mut Vec<Victim>) -> Result<Room, InstallError> {
        loop {
            self.free_kept_for(amount.total_bytes());
            match self.charge_once(install, amount, victims) {
                // Another install may have taken what was freed for this one.
                Err(InstallError::AllPinned { .. }) if self.free_oldest_kept(Lacks::Pages) => {}
                charged => return charged,
            }
        }
    }

    fn charge_once(&self, install: &Install, amount: Amount, victims: &mut Vec<Victim>) -> Result<Room, InstallError> {
        let now = (self.clock)();
        let mut evicted: Vec<Resident> = Vec::new();
        let replaces;
        let mut charge = {
            let mut residents = self.residents();
            let live = residents.find(Target::Name(&install.name));
            // Somebody else may have installed the same meanwhile: then nobody has to go for it.
            if let Some(view) =
                live.and_then(|handle| residents.touch_same(handle, &install.identity, install.replace, now))
            {
                return Ok(Room::Existing(view));
            }
            replaces = live.is_some();
            let reason = |victim| if live == Some(victim) { Reason::Replaced } else { Reason::Capacity };
            if !residents.has_room() {
                return Err(InstallError::TooManyEntries);
            }
            self.charge_evicting(&mut residents, now, amount, reason, &mut evicted)?
        };
        self.settle(&mut charge, amount, evicted, victims);
        Ok(Room::Charged { charge, replaces })
    }

    /// More than the budget is never there, whoever goes.
    pub(super) fn hold_to_budget(&self, needed_bytes: u64) -> Result<(), InstallError> {
        let budget_bytes = self.ledger.limit_bytes();
        if needed_bytes > budget_bytes {
            return Err(InstallError::LargerThanBudget { needed_bytes, budget_bytes });
        }
        Ok(())
    }

    /// Charges `amount`, taking out the least recently used entries until it fits; if it cannot, none. To be called
    /// under the cache lock; [`Cache::settle`] is for after it.
    pub(super) fn charge_evicting(
        &self,
        residents: &mut Residents,
        now: Instant,
        amount: Amount,
        reason: impl Fn(Handle) -> Reason,
        evicted: &mut Vec<Resident>,
    ) -> Result<Charge, InstallError> {
        let missing_bytes = match self.ledger.charge(amount) {
            Ok(charge) => return Ok(charge),
            Err(missing_bytes) => missing_bytes,
        };
        let chosen = residents.victims(missing_bytes).ok_or(InstallError::AllPinned { missing_bytes })?;
        evicted.extend(chosen.handles.into_iter().filter_map(|it| residents.evict(it, reason(it), now)));
        // What lingers only for those who go is freed with them.
        let givers: Vec<&Charge> =
            evicted.iter().map(|it| &it.entry).chain(&chosen.followers).map(|it| &it.charge).collect();
        // Bytes are only added under the cache lock, so at least what was missing is there now.
        self.ledger.charge_over(amount, &givers).map_err(|missing_bytes| InstallError::AllPinned { missing_bytes })
    }

    /// Frees those that went, and lets go of what `amount` does not need of their bytes.
    pub(super) fn settle(
        &self,
        charge: &mut Charge,
        amount: Amount,
        evicted: Vec<Resident>,
        victims: &mut Vec<Victim>,
    ) {
        victims.extend(evicted.iter().map(|it| self.victim(it)));
        // The victims' memory is free before their bytes are: the charge holds both until then.
        drop(evicted);
        charge.settle(amount);
    }

    fn watched_bytes(&self, image: &Image) -> u64 {
        self.watcher.as_ref().map_or(0, |it| (it.heap_bytes)(image))
    }

    fn watch(&self, meta: &Meta, unwind: Option<Range<u64>>, published: &Published) -> Option<Watched> {
        let watcher = self.watcher.as_ref()?;
        (watcher.watch)(&Placed { name: &meta.name, functions: meta.exports.functions(), published, unwind })
    }

    fn link(&self, image: &Image, mut draft: Draft) -> Result<(Published, Box<[u8]>, Instant), InstallError> {
        let at = draft.addresses();
        let at = code::Addresses { code: at.code, rodata: at.rodata, data: at.data };
        let mut data = vec![0; usize::try_from(image.sizes().data.size_bytes).unwrap_or(usize::MAX)];
        {
            let (code, rodata) = draft.code_and_rodata_mut();
            image.link(at, code, rodata, &mut data)?;
        }
        // What follows the initial bytes is zero, and the arena knows how to make zeroes.
        data.truncate(usize::try_from(image.data_kept_bytes()).unwrap_or(usize::MAX));
        let data_initial = data.into_boxed_slice();
        draft.write_data(&data_initial);
        let linked = (self.clock)();
        Ok((draft.publish()?, data_initial, linked))
    }

    /// Inserts an entry, unless somebody else was faster. `replaces`: the name was live when room was made, and its
    /// entry may be among those that went. Where this refuses, `entry` is dropped after the lock.
    fn insert(&self, entry: Arc<Entry>, replace: bool, replaces: bool) -> Result<(View, Outcome), InstallError> {
        let now = (self.clock)();
        let mut residents = self.residents();
        let mut outcome = if replaces { Outcome::Replaced } else { Outcome::Created };
        let mut replaced = None;
        if let Some(handle) = residents.find(Target::Name(&entry.meta.name)) {
            if let Some(view) = residents.touch_same(handle, &entry.meta.identity, replace, now) {
                return Ok((view, Outcome::Existed));
            }
            if !replace {
                return Err(InstallError::KeyOccupied);
            }
            replaced = residents.evict(handle, Reason::Replaced, now);
            outcome = Outcome::Replaced;
        } else if !residents.has_room() {
            return Err(InstallError::TooManyEntries);
        }
        let handle = residents.insert(entry);
        let view = handle.and_then(|handle| Some(residents.get(handle)?.view(handle)));
        drop(residents);
        if let Some(replaced) = replaced {
            self.let_go(replaced.entry, None);
        }
        view.map(|view| (view, outcome)).ok_or(InstallError::TooManyEntries)
    }

    pub(super) fn victim(&self, resident: &Resident) -> Victim {
        let installed_at = resident.entry.meta.installed_at;
        let lifetime = (self.clock)().saturating_duration_since(installed_at);
        Victim { charged_bytes: resident.entry.charge.amount().total_bytes(), lifetime }
    }
}

/// What an image takes.
struct Needs {
    layout: Layout,
    link_state: LinkState,
    amount: Amount,
}

fn layout(image: &Image) -> Layout {
    let part = |part: code::Part| arena::Part { size_bytes: part.size_bytes, align_bytes: part.align_bytes };
    let sizes = image.sizes();
    Layout { code: part(sizes.code), rodata: part(sizes.rodata), data: part(sizes.data), low: image.needs_low() }
}
