//! Who runs next: a plain value without threads, clocks or the operating system.
//!
//! Calls without writable data are ready at once and are taken first in, first out. Calls with writable data go
//! through the *lane* of that data. A serial lane admits one call at a time; the others wait in the lane, so they
//! occupy no executor. A reentrant lane admits all. When a call of a lane ends badly the lane is *dirty*: it admits
//! nothing until the calls already running have ended and the data was restored.

use std::collections::{HashMap, VecDeque};

use super::call::Writable;

/// A call that waits or was taken.
#[derive(Debug)]
pub(super) struct Entry<J> {
    /// Unique in the life of a schedule.
    pub(super) id: u64,
    /// The lane it belongs to, if it has writable data.
    pub(super) lane: Option<Writable>,
    /// The call itself.
    pub(super) job: J,
}

/// What the end of a call of a lane leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// Nothing; so many waiting calls became ready.
    Released(usize),
    /// The data must be restored now, by who got this answer, and then [`Schedule::restored`] called.
    Restore,
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
struct Lane<J> {
    reentrant: bool,
    /// Calls that are ready or running.
    admitted: usize,
    dirty: bool,
    /// Not admitted yet, oldest first.
    waiting: VecDeque<Entry<J>>,
}

impl<J> Lane<J> {
    fn admits(&self) -> bool {
        !self.dirty && (self.reentrant || self.admitted == 0)
    }

    /// Moves what may be admitted into `ready`; answers how many.
    fn release(&mut self, ready: &mut VecDeque<Entry<J>>) -> usize {
        let mut released = 0;
        while self.admits() {
            let Some(entry) = self.waiting.pop_front() else { break };
            self.admitted += 1;
            ready.push_back(entry);
            released += 1;
        }
        released
    }
}

/// The waiting and the running calls of one pool.
#[derive(Debug)]
pub(super) struct Schedule<J> {
    ready: VecDeque<Entry<J>>,
    lanes: HashMap<u64, Lane<J>>,
    /// Calls in `ready` and in the lanes.
    waiting: usize,
    waiting_max: usize,
    /// What each executor runs, by id.
    running: Vec<Option<u64>>,
}

impl<J> Schedule<J> {
    /// An empty schedule of `executors`, with room for `waiting_max` waiting calls.
    pub(super) fn new(executors: usize, waiting_max: usize) -> Schedule<J> {
        Schedule {
            ready: VecDeque::new(),
            lanes: HashMap::new(),
            waiting: 0,
            waiting_max,
            running: vec![None; executors],
        }
    }

    /// Takes a call in; answers whether it is ready, or gives the job back if there is no room.
    pub(super) fn submit(&mut self, entry: Entry<J>) -> Result<bool, J> {
        if self.waiting >= self.waiting_max {
            return Err(entry.job);
        }
        self.waiting += 1;
        let Some(writable) = entry.lane else {
            self.ready.push_back(entry);
            return Ok(true);
        };
        let lane = self.lanes.entry(writable.id).or_insert_with(|| Lane {
            reentrant: writable.reentrant,
            admitted: 0,
            dirty: false,
            waiting: VecDeque::new(),
        });
        // A lane that has been opened finds calls that were told otherwise before.
        lane.reentrant |= writable.reentrant;
        lane.waiting.push_back(entry);
        Ok(lane.release(&mut self.ready) > 0)
    }

    /// Gives `executor`, which must be free, the oldest ready call.
    pub(super) fn take(&mut self, executor: usize) -> Option<Entry<J>> {
        debug_assert!(self.running[executor].is_none(), "executor {executor} takes a second call");
        let entry = self.ready.pop_front()?;
        self.waiting -= 1;
        self.running[executor] = Some(entry.id);
        Some(entry)
    }

    /// The call that was taken from this lane has ended; `faulted` if its data may be in any state.
    pub(super) fn settle(&mut self, writable: Writable, faulted: bool) -> Settled {
        let Some(lane) = self.lanes.get_mut(&writable.id) else { return Settled::Released(0) };
        lane.admitted -= 1;
        if faulted && !lane.dirty {
            lane.dirty = true;
            Self::take_back(writable.id, lane, &mut self.ready);
        }
        if lane.dirty {
            return if lane.admitted == 0 { Settled::Restore } else { Settled::Released(0) };
        }
        Settled::Released(self.release(writable.id))
    }

    /// The data was restored; answers how many waiting calls became ready.
    pub(super) fn restored(&mut self, writable: Writable) -> usize {
        if let Some(lane) = self.lanes.get_mut(&writable.id) {
            lane.dirty = false;
        }
        self.release(writable.id)
    }

    /// The calls of this lane may overlap from now on; answers how many waiting calls became ready.
    pub(super) fn open(&mut self, writable: Writable) -> usize {
        if let Some(lane) = self.lanes.get_mut(&writable.id) {
            lane.reentrant = true;
        }
        self.release(writable.id)
    }

    /// `executor` has nothing to do with its call any more.
    pub(super) fn free(&mut self, executor: usize) {
        self.running[executor] = None;
    }

    /// Takes a waiting call out, or tells where it runs. `lane` is the one it was submitted with.
    pub(super) fn cancel(&mut self, id: u64, lane: Option<Writable>) -> Cancelled<J> {
        if let Some(executor) = self.running.iter().position(|running| *running == Some(id)) {
            return Cancelled::Running(executor);
        }
        if let Some(entry) = Self::remove(&mut self.ready, id) {
            self.waiting -= 1;
            let released = lane.map_or(0, |writable| self.withdraw(writable.id));
            return Cancelled::Waiting(entry.job, released);
        }
        let lane = lane.and_then(|writable| self.lanes.get_mut(&writable.id));
        match lane.and_then(|lane| Self::remove(&mut lane.waiting, id)) {
            Some(entry) => {
                self.waiting -= 1;
                Cancelled::Waiting(entry.job, 0)
            }
            None => Cancelled::Gone,
        }
    }

    /// Whether the call waits. `lane` is the one it was submitted with.
    pub(super) fn is_waiting(&self, id: u64, lane: Option<Writable>) -> bool {
        let lane = lane.and_then(|writable| self.lanes.get(&writable.id));
        let in_lane = lane.is_some_and(|lane| lane.waiting.iter().any(|entry| entry.id == id));
        in_lane || self.ready.iter().any(|entry| entry.id == id)
    }

    /// Takes every waiting call out.
    pub(super) fn clear(&mut self) -> Vec<Entry<J>> {
        self.waiting = 0;
        let mut cleared: Vec<_> = self.lanes.values_mut().flat_map(|lane| lane.waiting.drain(..)).collect();
        for entry in std::mem::take(&mut self.ready) {
            if let Some(writable) = entry.lane {
                self.withdraw(writable.id);
            }
            cleared.push(entry);
        }
        cleared
    }

    /// Calls that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
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

    /// A call that was admitted and never ran leaves its lane.
    fn withdraw(&mut self, lane_id: u64) -> usize {
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.admitted -= 1;
        }
        self.release(lane_id)
    }

    fn release(&mut self, lane_id: u64) -> usize {
        let Some(lane) = self.lanes.get_mut(&lane_id) else { return 0 };
        let released = lane.release(&mut self.ready);
        // A lane with nothing in it is forgotten, so the map is bounded by the calls that there are.
        if lane.admitted == 0 && lane.waiting.is_empty() && !lane.dirty {
            self.lanes.remove(&lane_id);
        }
        released
    }

    /// Admitted calls that have not begun go back to wait, before those that came after them.
    fn take_back(lane_id: u64, lane: &mut Lane<J>, ready: &mut VecDeque<Entry<J>>) {
        if lane.admitted == 0 {
            return;
        }
        let (back, stay): (VecDeque<_>, VecDeque<_>) =
            ready.drain(..).partition(|entry| entry.lane.is_some_and(|writable| writable.id == lane_id));
        *ready = stay;
        lane.admitted -= back.len();
        for entry in back.into_iter().rev() {
            lane.waiting.push_front(entry);
        }
    }

    fn remove(queue: &mut VecDeque<Entry<J>>, id: u64) -> Option<Entry<J>> {
        let at = queue.iter().position(|entry| entry.id == id)?;
        queue.remove(at)
    }
}
