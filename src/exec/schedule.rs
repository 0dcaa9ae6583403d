//! Who runs next: a plain value without threads, clocks or the operating system.
//!
//! Calls without writable data are ready at once and are taken first in, first out. Each piece of writable data has a
//! *lane*, and a call goes through the lanes of all data that it may touch at once: it is admitted to all of them in the
//! same moment, when each admits it. So none waits for a lane while it is in another. A serial lane admits one call at a
//! time, the oldest that waits there, so that no call waits for a younger one; the others wait in the lane, so they occupy
//! no executor. A reentrant lane admits all, past those that wait for another lane. When a call ends badly all its
//! lanes are *dirty*: they admit nothing until the calls already running have ended and the data was restored.

use std::collections::{HashMap, VecDeque};

use super::writable::Writables;

/// A call that waits or was taken.
#[derive(Debug)]
pub(super) struct Entry<J> {
    /// Unique in the life of a schedule, and larger than those before.
    pub(super) id: u64,
    /// The writable data that it may touch: its lanes.
    pub(super) lanes: Writables,
    /// The call itself.
    pub(super) job: J,
}

/// What the end of a call leaves to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// So many waiting calls became ready.
    pub(super) released: usize,
    /// The data of these lanes must be restored now, by who got this answer, and then [`Schedule::restored`] called.
    pub(super) restore: Vec<u64>,
}

/// Where a cancelled call was found.
#[derive(Debug)]
pub(super) enum Cancelled<J> {
    /// It waited and is out now; so many others became ready.
    Waiting(J, usize),
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
    /// Not admitted yet, by id, and so the oldest first; their entries are in [`Schedule::barred`].
    waiting: VecDeque<u64>,
}

impl Lane {
    fn admits(&self) -> bool {
        !self.dirty && (self.reentrant || self.admitted == 0)
    }
}

/// The waiting and the running calls of one pool.
#[derive(Debug)]
pub(super) struct Schedule<J> {
    ready: VecDeque<Entry<J>>,
    /// Calls that wait in lanes.
    barred: HashMap<u64, Entry<J>>,
    lanes: HashMap<u64, Lane>,
    waiting_max: usize,
    /// What each executor runs, by id.
    running: Vec<Option<u64>>,
}

impl<J> Schedule<J> {
    /// An empty schedule of `executors`, with room for `waiting_max` waiting calls.
    pub(super) fn new(executors: usize, waiting_max: usize) -> Schedule<J> {
        Schedule {
            ready: VecDeque::new(),
            barred: HashMap::new(),
            lanes: HashMap::new(),
            waiting_max,
            running: vec![None; executors],
        }
    }

    /// Takes a call in; answers whether it is ready, or gives the job back if there is no room.
    pub(super) fn submit(&mut self, entry: Entry<J>) -> Result<bool, J> {
        if self.waiting() >= self.waiting_max {
            return Err(entry.job);
        }
        let id = entry.id;
        for writable in entry.lanes.iter() {
            let reentrant = writable.reentrant;
            let new = || Lane { reentrant, admitted: 0, dirty: false, waiting: VecDeque::new() };
            let lane = self.lanes.entry(writable.id).or_insert_with(new);
            // A lane that has been opened finds calls that were told otherwise before.
            lane.reentrant |= reentrant;
            lane.waiting.push_back(id);
        }
        if self.is_admissible(id, &entry.lanes) {
            self.admit(entry);
            return Ok(true);
        }
        self.barred.insert(id, entry);
        Ok(false)
    }

    /// Gives `executor`, which must be free, the oldest ready call.
    pub(super) fn take(&mut self, executor: usize) -> Option<Entry<J>> {
        debug_assert!(self.running[executor].is_none(), "executor {executor} takes a second call");
        let entry = self.ready.pop_front()?;
        self.running[executor] = Some(entry.id);
        Some(entry)
    }

    /// A call that was taken has ended; `faulted` if the data of its lanes may be in any state.
    pub(super) fn settle(&mut self, lanes: &Writables, faulted: bool) -> Settled {
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
        Settled { restore, released: self.release(lanes.iter().map(|writable| writable.id)) }
    }

    /// The data of these lanes was restored; answers how many waiting calls became ready.
    pub(super) fn restored(&mut self, lanes: &[u64]) -> usize {
        for id in lanes {
            if let Some(lane) = self.lanes.get_mut(id) {
                lane.dirty = false;
            }
        }
        self.release(lanes.iter().copied())
    }

    /// The calls of these lanes may overlap from now on; answers how many waiting calls became ready.
    pub(super) fn open(&mut self, lanes: &[u64]) -> usize {
        for id in lanes {
            if let Some(lane) = self.lanes.get_mut(id) {
                lane.reentrant = true;
            }
        }
        self.release(lanes.iter().copied())
    }

    /// `executor` has nothing to do with its call any more.
    pub(super) fn free(&mut self, executor: usize) {
        self.running[executor] = None;
    }

    /// Takes a waiting call out, or tells where it runs.
    pub(super) fn cancel(&mut self, id: u64) -> Cancelled<J> {
        if let Some(executor) = self.executor_of(id) {
            return Cancelled::Running(executor);
        }
        if let Some(entry) = self.barred.remove(&id) {
            for writable in entry.lanes.iter() {
                if let Some(lane) = self.lanes.get_mut(&writable.id) {
                    lane.waiting.retain(|waiting| *waiting != id);
                }
            }
            return Cancelled::Waiting(entry.job, self.release(entry.lanes.iter().map(|writable| writable.id)));
        }
        let Some(at) = self.ready.iter().position(|entry| entry.id == id) else { return Cancelled::Gone };
        match self.ready.remove(at) {
            Some(entry) => {
                let released = self.withdraw(&entry.lanes);
                Cancelled::Waiting(entry.job, released)
            }
            None => Cancelled::Gone,
        }
    }

    /// The executor that has the call.
    pub(super) fn executor_of(&self, id: u64) -> Option<usize> {
        self.running.iter().position(|running| *running == Some(id))
    }

    /// Whether the call waits.
    pub(super) fn is_waiting(&self, id: u64) -> bool {
        self.barred.contains_key(&id) || self.ready.iter().any(|entry| entry.id == id)
    }

    /// Takes every waiting call out.
    pub(super) fn clear(&mut self) -> Vec<Entry<J>> {
        self.lanes.values_mut().for_each(|lane| lane.waiting.clear());
        let mut cleared: Vec<_> = self.barred.drain().map(|(_, entry)| entry).collect();
        for entry in std::mem::take(&mut self.ready) {
            self.withdraw(&entry.lanes);
            cleared.push(entry);
        }
        self.lanes.retain(|_, lane| lane.admitted > 0 || lane.dirty);
        cleared
    }

    /// Calls that wait.
    pub(super) fn waiting(&self) -> usize {
        self.ready.len() + self.barred.len()
    }

    /// Calls that an executor could take now.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Executors that have a call.
    pub(super) fn running(&self) -> usize {
        self.running.iter().flatten().count()
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
        self.ready.push_back(entry);
    }

    /// A call that was admitted and never ran leaves its lanes.
    fn withdraw(&mut self, lanes: &Writables) -> usize {
        for writable in lanes.iter() {
            if let Some(lane) = self.lanes.get_mut(&writable.id) {
                lane.admitted -= 1;
            }
        }
        self.release(lanes.iter().map(|writable| writable.id))
    }

    /// Admits what may be admitted now that these lanes have changed; answers how many.
    fn release(&mut self, changed: impl Iterator<Item = u64>) -> usize {
        let mut released = 0;
        // Lanes that a call left which was admitted by way of another lane: the next one may follow.
        let mut open = Vec::new();
        for changed in changed {
            released += self.release_lane(changed, &mut open);
            while let Some(next) = open.pop() {
                released += self.release_lane(next, &mut open);
            }
        }
        released
    }

    /// The first of a serial lane, and all of a reentrant one that no other lane bars.
    fn release_lane(&mut self, lane_id: u64, open: &mut Vec<u64>) -> usize {
        let (mut released, mut at) = (0, 0);
        while let Some(lane) = self.lanes.get(&lane_id).filter(|lane| lane.admits())
            && let Some(&id) = lane.waiting.get(at)
        {
            let goes_on = lane.reentrant;
            let is_admissible = self.barred.get(&id).is_some_and(|entry| self.is_admissible(id, &entry.lanes));
            match is_admissible.then(|| self.barred.remove(&id)).flatten() {
                Some(entry) => {
                    open.extend(entry.lanes.iter().map(|writable| writable.id).filter(|id| *id != lane_id));
                    self.admit(entry);
                    released += 1;
                }
                None if goes_on => at += 1,
                None => break,
            }
        }
        // A lane with nothing in it is forgotten, so the map is bounded by the calls that there are.
        if self.lanes.get(&lane_id).is_some_and(|it| it.admitted == 0 && it.waiting.is_empty() && !it.dirty) {
            self.lanes.remove(&lane_id);
        }
        released
    }

    /// Admitted calls of dirty lanes that have not begun go back to wait, before those that came after them. Ready calls
    /// of their other lanes, reentrant ones then, stay so.
    fn take_back(&mut self) {
        let lanes = &self.lanes;
        let is_dirty = |id: &u64| lanes.get(id).is_some_and(|lane| lane.dirty);
        let (back, stay): (VecDeque<_>, VecDeque<_>) =
            self.ready.drain(..).partition(|entry| entry.lanes.iter().any(|writable| is_dirty(&writable.id)));
        self.ready = stay;
        for entry in back {
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
