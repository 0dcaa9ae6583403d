//! Who runs next: a plain value without threads, clocks or the operating system.
//!
//! Calls without writable data are ready at once; `fair` says which of the ready ones is taken next. Each piece of writable data has a
//! *lane*, and a call goes through the lanes of all data that it may touch at once: it is admitted to all of them in the
//! same moment, when each admits it. So none waits for a lane while it is in another. A serial lane admits one call at a
//! time, the oldest that waits there, so that no call waits for a younger one; the others wait in the lane, so they occupy
//! no executor; priorities do not change that order. A reentrant lane admits all, past those that wait for another lane. When a call ends badly all its
//! lanes are *dirty*: they admit nothing until the calls already running have ended and the data was restored.

use std::collections::{HashMap, VecDeque};

use super::call::Priority;
use super::fair::Fair;
use super::writable::{Writable, Writables};

/// A call that waits or was taken.
#[derive(Debug)]
pub(super) struct Entry<J> {
    /// Unique in the life of a schedule, and larger than those before.
    pub(super) id: u64,
    /// Whose it is.
    pub(super) tenant: u64,
    /// Among the calls of its tenant.
    pub(super) priority: Priority,
    /// The writable data that it may touch: its lanes.
    pub(super) lanes: Writables,
    /// The call itself.
    pub(super) job: J,
}

/// Why a call is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// As many calls wait as may.
    All,
    /// As many calls of this tenant wait as may.
    Tenant,
    /// A call that cannot be stopped holds data that this one may touch.
    Lost,
}

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Executors, the spare ones too.
    pub(super) executors: usize,
    /// What they are numbered by: no less than there are, as one may take the place of another.
    pub(super) seats: usize,
    /// Of those, how many are spare: see `fair`.
    pub(super) spare: usize,
    /// Calls that wait.
    pub(super) waiting_max: usize,
    /// Calls of one tenant that wait.
    pub(super) waiting_tenant_max: usize,
}

/// Where a cancelled call was found.
#[derive(Debug)]
pub(super) enum Cancelled<J> {
    /// It waited and is out now.
    Waiting(J),
    /// It runs on this executor.
    Running(usize),
    /// It has ended.
    Gone,
}

#[derive(Debug)]
struct Lane {
    reentrant: bool,
    /// Calls that are ready or running.
    admitted: usize,
    dirty: bool,
    /// Of those, calls that cannot be stopped: as long as there are some, nobody waits here.
    lost: usize,
    /// Not admitted yet, by id, and so the oldest first; their entries are in [`Schedule::barred`].
    waiting: VecDeque<u64>,
}

impl Lane {
    fn admits(&self) -> bool {
        !self.dirty && (self.reentrant || self.admitted == 0)
    }
}

/// A call that an executor has.
#[derive(Clone, Debug)]
struct Running {
    id: u64,
    tenant: u64,
    lanes: Writables,
    began_ns: u64,
}

/// The waiting and the running calls of one pool. Times are nanoseconds since any fixed moment, and never go back.
#[derive(Debug)]
pub(super) struct Schedule<J> {
    ready: Fair<J>,
    /// Calls that wait in lanes.
    barred: HashMap<u64, Entry<J>>,
    lanes: HashMap<u64, Lane>,
    bounds: Bounds,
    /// What each executor runs.
    running: Vec<Option<Running>>,
}

impl<J> Schedule<J> {
    /// An empty schedule.
    pub(super) fn new(bounds: Bounds) -> Schedule<J> {
        Schedule {
            ready: Fair::new(bounds.executors.saturating_sub(bounds.spare).max(1)),
            barred: HashMap::new(),
            lanes: HashMap::new(),
            bounds,
            running: vec![None; bounds.seats],
        }
    }

    /// Takes a call in, or gives the job back if there is no room.
    pub(super) fn submit(&mut self, entry: Entry<J>, now_ns: u64) -> Result<(), (NoRoom, J)> {
        if self.waiting() >= self.bounds.waiting_max {
            return Err((NoRoom::All, entry.job));
        }
        if self.ready.waiting_of(entry.tenant) >= self.bounds.waiting_tenant_max {
            return Err((NoRoom::Tenant, entry.job));
        }
        let is_lost = |writable: &Writable| self.lanes.get(&writable.id).is_some_and(|lane| lane.lost > 0);
        if entry.lanes.iter().any(is_lost) {
            return Err((NoRoom::Lost, entry.job));
        }
        self.ready.arrive(entry.tenant, now_ns);
        let id = entry.id;
        for writable in entry.lanes.iter() {
            let reentrant = writable.reentrant;
            let new = || Lane { reentrant, admitted: 0, dirty: false, lost: 0, waiting: VecDeque::new() };
            let lane = self.lanes.entry(writable.id).or_insert_with(new);
            // A lane that has been opened finds calls that were told otherwise before.
            lane.reentrant |= reentrant;
            lane.waiting.push_back(id);
        }
        if self.is_admissible(id, &entry.lanes) {
            self.admit(entry);
        } else {
            self.barred.insert(id, entry);
        }
        Ok(())
    }

    /// Gives `executor`, which must be free, the call whose turn it is.
    pub(super) fn take(&mut self, executor: usize, now_ns: u64) -> Option<Entry<J>> {
        debug_assert!(self.running[executor].is_none(), "executor {executor} takes a second call");
        let entry = self.ready.take(now_ns)?;
        let (id, tenant, lanes) = (entry.id, entry.tenant, entry.lanes.clone());
        self.running[executor] = Some(Running { id, tenant, lanes, began_ns: now_ns });
        Some(entry)
    }

    /// Whether a call of the tenant may run at once beside the executors. It must have no lanes.
    pub(super) fn may_pass(&mut self, tenant: u64, now_ns: u64) -> bool {
        self.ready.may_pass(tenant, now_ns)
    }

    /// The tenant has used so much beside the executors.
    pub(super) fn charge(&mut self, tenant: u64, cost_ns: u64) {
        self.ready.charge(tenant, cost_ns);
    }

    /// A call that was taken has ended; `faulted` if the data of its lanes may be in any state. Answers the lanes whose
    /// data must be restored now, by who got this answer, and then [`Schedule::restored`] called.
    #[must_use]
    pub(super) fn settle(&mut self, lanes: &Writables, faulted: bool) -> Vec<u64> {
        let mut is_new = false;
        for writable in lanes.iter() {
            if let Some(lane) = self.lanes.get_mut(&writable.id) {
                lane.admitted -= 1;
                is_new |= faulted && !lane.dirty;
                lane.dirty |= faulted;
            }
        }
        if is_new {
            self.take_back();
        }
        let is_due = |id: &u64| self.lanes.get(id).is_some_and(|lane| lane.dirty && lane.admitted == 0);
        let restore = lanes.iter().map(|writable| writable.id).filter(is_due).collect();
        self.release(lanes.iter().map(|writable| writable.id));
        restore
    }

    /// The data of these lanes was restored.
    pub(super) fn restored(&mut self, lanes: &[u64]) {
        for id in lanes {
            if let Some(lane) = self.lanes.get_mut(id) {
                lane.dirty = false;
            }
        }
        self.release(lanes.iter().copied());
    }

    /// The call of `executor` cannot be stopped. It counts as ended, but its lanes are lost until [`Schedule::found`];
    /// answers the calls that waited for them, which are out now.
    pub(super) fn lose(&mut self, executor: usize, now_ns: u64) -> Vec<Entry<J>> {
        let Some(Running { tenant, lanes, began_ns, .. }) = self.running[executor].take() else { return Vec::new() };
        self.ready.end(tenant, began_ns, now_ns);
        for writable in lanes.iter() {
            if let Some(lane) = self.lanes.get_mut(&writable.id) {
                lane.lost += 1;
                lane.dirty = true;
            }
        }
        self.take_back();
        let of_lost = |entry: &Entry<J>| entry.lanes.iter().any(|it| lanes.iter().any(|lost| lost.id == it.id));
        let mut out: Vec<_> = self.barred.extract_if(|_, entry| of_lost(entry)).map(|(_, entry)| entry).collect();
        out.sort_unstable_by_key(|entry| entry.id);
        for entry in &out {
            for writable in entry.lanes.iter() {
                if let Some(lane) = self.lanes.get_mut(&writable.id) {
                    lane.waiting.retain(|waiting| *waiting != entry.id);
                }
            }
            self.ready.leave(entry.tenant);
        }
        // What waited behind them for other lanes may follow.
        let others: Vec<u64> = out.iter().flat_map(|entry| entry.lanes.iter()).map(|it| it.id).collect();
        self.release(others.into_iter());
        out
    }

    /// A call that was lost has ended after all, of which [`Schedule::settle`] tells next.
    pub(super) fn found(&mut self, lanes: &Writables) {
        for writable in lanes.iter() {
            if let Some(lane) = self.lanes.get_mut(&writable.id) {
                lane.lost -= 1;
            }
        }
    }

    /// The calls of these lanes may overlap from now on.
    pub(super) fn open(&mut self, lanes: &[u64]) {
        for id in lanes {
            if let Some(lane) = self.lanes.get_mut(id) {
                lane.reentrant = true;
            }
        }
        self.release(lanes.iter().copied());
    }

    /// `executor` has nothing to do with its call any more, if it had one.
    pub(super) fn free(&mut self, executor: usize, now_ns: u64) {
        if let Some(Running { tenant, began_ns, .. }) = self.running[executor].take() {
            self.ready.end(tenant, began_ns, now_ns);
        }
    }

    /// Takes a waiting call of this tenant out, or tells where it runs.
    pub(super) fn cancel(&mut self, tenant: u64, id: u64) -> Cancelled<J> {
        if let Some(executor) = self.executor_of(id) {
            return Cancelled::Running(executor);
        }
        let entry = match self.barred.remove(&id) {
            Some(entry) => {
                for writable in entry.lanes.iter() {
                    if let Some(lane) = self.lanes.get_mut(&writable.id) {
                        lane.waiting.retain(|waiting| *waiting != id);
                    }
                }
                entry
            }
            None => {
                let Some(entry) = self.ready.pull(tenant, id) else { return Cancelled::Gone };
                self.withdraw(&entry.lanes);
                entry
            }
        };
        self.ready.leave(tenant);
        self.release(entry.lanes.iter().map(|writable| writable.id));
        Cancelled::Waiting(entry.job)
    }

    /// The executor that has the call.
    pub(super) fn executor_of(&self, id: u64) -> Option<usize> {
        self.running.iter().position(|running| running.as_ref().is_some_and(|it| it.id == id))
    }

    /// Whether the call, of this tenant, waits.
    pub(super) fn is_waiting(&self, tenant: u64, id: u64) -> bool {
        self.barred.contains_key(&id) || self.ready.is_ready(tenant, id)
    }

    /// Takes every waiting call out.
    pub(super) fn clear(&mut self) -> Vec<Entry<J>> {
        self.lanes.values_mut().for_each(|lane| lane.waiting.clear());
        let mut cleared: Vec<_> = self.barred.drain().map(|(_, entry)| entry).collect();
        for entry in self.ready.pull_all(|_| true) {
            self.withdraw(&entry.lanes);
            cleared.push(entry);
        }
        cleared.iter().for_each(|entry| self.ready.leave(entry.tenant));
        self.lanes.retain(|_, lane| lane.admitted > 0 || lane.dirty);
        cleared
    }

    /// Calls that wait for nothing but an executor.
    pub(super) fn ready(&self) -> usize {
        self.ready.ready()
    }

    /// Calls that wait.
    pub(super) fn waiting(&self) -> usize {
        self.ready.ready() + self.barred.len()
    }

    /// Tenants of which something is remembered.
    #[cfg(test)]
    pub(super) fn tenants_known(&self) -> usize {
        self.ready.tenants_known()
    }

    /// Tenants whose calls wait.
    pub(super) fn tenants_waiting(&self) -> usize {
        self.ready.tenants_waiting()
    }

    /// How many executors would find a call if they looked now, at least; 0 only if none would.
    pub(super) fn takeable(&self) -> usize {
        self.ready.takeable()
    }

    /// Executors that have a call.
    pub(super) fn running(&self) -> usize {
        self.ready.running()
    }

    /// Lanes that are known: those with a call in them.
    #[cfg(test)]
    pub(super) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Whether all lanes admit a call, and none that is older waits in a serial one.
    fn is_admissible(&self, id: u64, lanes: &Writables) -> bool {
        let is_next = |lane: &Lane| lane.reentrant || lane.waiting.front() == Some(&id);
        lanes.iter().all(|it| self.lanes.get(&it.id).is_some_and(|lane| lane.admits() && is_next(lane)))
    }

    /// Moves a call from where it waits in its lanes to those that are ready.
    fn admit(&mut self, entry: Entry<J>) {
        for writable in entry.lanes.iter() {
            if let Some(lane) = self.lanes.get_mut(&writable.id) {
                if let Ok(at) = lane.waiting.binary_search(&entry.id) {
                    lane.waiting.remove(at);
                }
                lane.admitted += 1;
            }
        }
        self.ready.push(entry);
    }

    /// A call that was admitted and never ran leaves its lanes.
    fn withdraw(&mut self, lanes: &Writables) {
        for writable in lanes.iter() {
            if let Some(lane) = self.lanes.get_mut(&writable.id) {
                lane.admitted -= 1;
            }
        }
    }

    /// Admits what may be admitted now that these lanes have changed.
    fn release(&mut self, changed: impl Iterator<Item = u64>) {
        // Lanes that a call left which was admitted by way of another lane: the next one may follow.
        let mut open = Vec::new();
        for changed in changed {
            self.release_lane(changed, &mut open);
            while let Some(next) = open.pop() {
                self.release_lane(next, &mut open);
            }
        }
    }

    /// The first of a serial lane, and all of a reentrant one that no other lane bars.
    fn release_lane(&mut self, lane_id: u64, open: &mut Vec<u64>) {
        let mut at = 0;
        while let Some(lane) = self.lanes.get(&lane_id).filter(|lane| lane.admits())
            && let Some(&id) = lane.waiting.get(at)
        {
            let goes_on = lane.reentrant;
            let is_admissible = self.barred.get(&id).is_some_and(|entry| self.is_admissible(id, &entry.lanes));
            match is_admissible.then(|| self.barred.remove(&id)).flatten() {
                Some(entry) => {
                    open.extend(entry.lanes.iter().map(|writable| writable.id).filter(|id| *id != lane_id));
                    self.admit(entry);
                }
                None if goes_on => at += 1,
                None => break,
            }
        }
        // A lane with nothing in it is forgotten, so the map is bounded by the calls that there are.
        if self.lanes.get(&lane_id).is_some_and(|it| it.admitted == 0 && it.waiting.is_empty() && !it.dirty) {
            self.lanes.remove(&lane_id);
        }
    }

    /// Admitted calls of dirty lanes that have not begun go back to wait, before those that came after them. Ready calls
    /// of their other lanes, reentrant ones then, stay so.
    fn take_back(&mut self) {
        let lanes = &self.lanes;
        let is_dirty = |id: &u64| lanes.get(id).is_some_and(|lane| lane.dirty);
        for entry in self.ready.pull_all(|entry| entry.lanes.iter().any(|writable| is_dirty(&writable.id))) {
            for writable in entry.lanes.iter() {
                if let Some(lane) = self.lanes.get_mut(&writable.id) {
                    lane.admitted -= 1;
                    // In one order in all lanes: two calls never wait for each other.
                    let at = lane.waiting.partition_point(|waiting| *waiting < entry.id);
                    lane.waiting.insert(at, entry.id);
                }
            }
            self.barred.insert(entry.id, entry);
        }
    }
}
