//! The schedule against rules that a reader can check, over seeded random histories.

use std::collections::{HashMap, HashSet};

use super::call::Priority;
use super::schedule::{Bounds, Cancelled, Entry, NoRoom, Schedule};
use super::writable::{Writable, Writables};

const SERIAL: Writable = Writable { id: 1, reentrant: false };
const REENTRANT: Writable = Writable { id: 2, reentrant: true };

/// No spare executors, one tenant.
fn schedule(executors: usize, waiting_max: usize) -> Schedule<u64> {
    Schedule::new(Bounds { executors, seats: executors, spare: 0, waiting_max, waiting_tenant_max: waiting_max })
}

fn entry(id: u64, lane: Option<Writable>) -> Entry<u64> {
    Entry { id, tenant: 0, priority: Priority::Normal, lanes: lane.into(), job: id }
}

/// A call that may touch the data of several lanes.
fn wide(id: u64, lanes: &[Writable]) -> Entry<u64> {
    Entry { lanes: Writables::new(lanes.iter().copied()), ..entry(id, None) }
}

/// Whether it is ready at once; the job if there is no room.
fn submit(schedule: &mut Schedule<u64>, entry: Entry<u64>) -> Result<bool, u64> {
    let before = schedule.ready();
    schedule.submit(entry, 0).map_err(|(_, job)| job)?;
    Ok(schedule.ready() > before)
}

/// What the end of a call led to: so many calls became ready, and this is to be restored.
#[derive(Debug, PartialEq)]
struct Settled {
    released: usize,
    restore: Vec<u64>,
}

fn settle(schedule: &mut Schedule<u64>, lanes: &[Writable], faulted: bool) -> Settled {
    let before = schedule.ready();
    let restore = schedule.settle(&Writables::new(lanes.iter().copied()), faulted);
    Settled { released: schedule.ready().saturating_sub(before), restore }
}

/// How many calls became ready by it.
fn restored(schedule: &mut Schedule<u64>, lanes: &[u64]) -> usize {
    let before = schedule.ready();
    schedule.restored(lanes);
    schedule.ready() - before
}

fn released(released: usize) -> Settled {
    Settled { released, restore: Vec::new() }
}

fn restore(lanes: &[Writable]) -> Settled {
    Settled { released: 0, restore: lanes.iter().map(|lane| lane.id).collect() }
}

fn taken(schedule: &mut Schedule<u64>, executor: usize) -> Option<u64> {
    schedule.take(executor, 0).map(|entry| entry.job)
}

#[test]
fn calls_without_data_are_taken_in_order_and_refused_beyond_the_limit() {
    let mut schedule = schedule(2, 2);
    assert_eq!(submit(&mut schedule, entry(1, None)), Ok(true));
    assert_eq!(submit(&mut schedule, entry(2, None)), Ok(true));
    assert_eq!(submit(&mut schedule, entry(3, None)), Err(3), "given back");
    assert_eq!((taken(&mut schedule, 0), taken(&mut schedule, 1)), (Some(1), Some(2)));
    assert_eq!((schedule.waiting(), schedule.running()), (0, 2));
}

#[test]
fn a_busy_serial_lane_keeps_its_calls_from_the_executors_and_in_order() {
    let mut schedule = schedule(3, 9);
    assert_eq!(submit(&mut schedule, entry(1, Some(SERIAL))), Ok(true));
    assert_eq!(submit(&mut schedule, entry(2, Some(SERIAL))), Ok(false));
    assert_eq!(submit(&mut schedule, entry(3, Some(SERIAL))), Ok(false));
    assert_eq!(submit(&mut schedule, entry(4, None)), Ok(true));
    assert_eq!((taken(&mut schedule, 0), taken(&mut schedule, 1)), (Some(1), Some(4)), "others pass");
    assert_eq!(taken(&mut schedule, 2), None);
    assert_eq!(schedule.waiting(), 2, "they count as waiting");
    assert_eq!(settle(&mut schedule, &[SERIAL], false), released(1));
    assert_eq!(taken(&mut schedule, 2), Some(2));
}

#[test]
fn a_fault_in_a_serial_lane_asks_for_a_restore_before_the_next_call() {
    let mut schedule = schedule(2, 9);
    assert_eq!(submit(&mut schedule, entry(1, Some(SERIAL))), Ok(true));
    assert_eq!(taken(&mut schedule, 0), Some(1));
    assert_eq!(submit(&mut schedule, entry(2, Some(SERIAL))), Ok(false));
    assert_eq!(settle(&mut schedule, &[SERIAL], true), restore(&[SERIAL]));
    assert_eq!(submit(&mut schedule, entry(3, Some(SERIAL))), Ok(false), "while it is being restored");
    assert_eq!(taken(&mut schedule, 1), None);
    assert_eq!(restored(&mut schedule, &[SERIAL.id]), 1);
    assert_eq!(taken(&mut schedule, 1), Some(2));
}

#[test]
fn a_fault_in_a_reentrant_lane_waits_for_the_running_calls_and_takes_back_the_ready_ones() {
    let mut schedule = schedule(2, 9);
    for id in 1..=4 {
        assert_eq!(submit(&mut schedule, entry(id, Some(REENTRANT))), Ok(true));
    }
    assert_eq!((taken(&mut schedule, 0), taken(&mut schedule, 1)), (Some(1), Some(2)));
    assert_eq!(settle(&mut schedule, &[REENTRANT], true), released(0), "the other still runs");
    schedule.free(0, 0);
    assert_eq!(taken(&mut schedule, 0), None, "the ready ones must not begin");
    assert_eq!(submit(&mut schedule, entry(5, Some(REENTRANT))), Ok(false));
    assert_eq!(settle(&mut schedule, &[REENTRANT], false), restore(&[REENTRANT]));
    assert_eq!(restored(&mut schedule, &[REENTRANT.id]), 3);
    schedule.free(1, 0);
    assert_eq!((taken(&mut schedule, 0), taken(&mut schedule, 1)), (Some(3), Some(4)), "in their order");
}

#[test]
fn an_opened_lane_lets_its_calls_overlap_those_that_came_before_too() {
    let mut schedule = schedule(4, 9);
    assert_eq!(submit(&mut schedule, entry(1, Some(SERIAL))), Ok(true));
    assert_eq!(taken(&mut schedule, 0), Some(1));
    assert_eq!(submit(&mut schedule, entry(2, Some(SERIAL))), Ok(false));
    assert_eq!(submit(&mut schedule, entry(3, Some(SERIAL))), Ok(false));
    schedule.open(&[SERIAL.id]);
    assert_eq!(schedule.ready(), 2);
    assert_eq!((taken(&mut schedule, 1), taken(&mut schedule, 2)), (Some(2), Some(3)));
    assert_eq!(submit(&mut schedule, entry(4, Some(SERIAL))), Ok(true), "though it was told otherwise");
    for _ in 0..2 {
        assert_eq!(settle(&mut schedule, &[SERIAL], false), released(0));
    }
    assert_eq!(settle(&mut schedule, &[SERIAL], true), restore(&[SERIAL]), "what was ready waits again");
    assert_eq!((restored(&mut schedule, &[SERIAL.id]), taken(&mut schedule, 3)), (1, Some(4)));
}

#[test]
fn a_cancelled_call_is_found_where_it_is() {
    let mut schedule = schedule(1, 9);
    for id in 1..=3 {
        assert!(submit(&mut schedule, entry(id, Some(SERIAL))).is_ok());
    }
    assert!(matches!(schedule.cancel(0, 2), Cancelled::Waiting(2)), "in the lane");
    assert!(matches!(schedule.cancel(0, 1), Cancelled::Waiting(1)), "ready: the next one follows");
    assert_eq!(taken(&mut schedule, 0), Some(3));
    assert!(matches!(schedule.cancel(0, 3), Cancelled::Running(0)));
    assert_eq!(settle(&mut schedule, &[SERIAL], false), released(0));
    schedule.free(0, 0);
    assert!(matches!(schedule.cancel(0, 3), Cancelled::Gone));
    assert_eq!((schedule.waiting(), schedule.lanes()), (0, 0));
}

/// What must hold, kept beside the schedule in the simplest form.
#[derive(Default)]
struct Model {
    next_id: u64,
    /// Submitted, neither taken nor cancelled, oldest first.
    waiting: Vec<(u64, Vec<Writable>)>,
    running: HashMap<usize, (u64, Vec<Writable>)>,
    /// A call of the lane ended badly and its data is not restored yet.
    dirty: HashSet<u64>,
}

impl Model {
    fn running_of(&self, lane: Writable) -> usize {
        self.running.values().filter(|(_, lanes)| lanes.contains(&lane)).count()
    }

    fn begin(&mut self, executor: usize, got: &Entry<u64>, seed: u64) {
        let at = self.waiting.iter().position(|(id, _)| *id == got.id);
        let at = at.unwrap_or_else(|| panic!("seed {seed}: call {} was not waiting", got.id));
        for lane in got.lanes.iter() {
            // Of a reentrant lane an older call may have been taken back for the sake of another lane.
            let older = !lane.reentrant && self.waiting[..at].iter().any(|(_, lanes)| lanes.contains(lane));
            assert!(!older, "seed {seed}: call {} passed an older one of its lane", got.id);
            assert!(!self.dirty.contains(&lane.id), "seed {seed}: call {} began on dirty data", got.id);
            let alone = lane.reentrant || self.running_of(*lane) == 0;
            assert!(alone, "seed {seed}: call {} overlaps another of its serial lane", got.id);
        }
        self.running.insert(executor, self.waiting.remove(at));
    }

    /// Some waiting call could begin: it is the oldest of its serial lanes, and nothing is in its way.
    fn could_begin(&self) -> bool {
        let is_free = |at: usize, lane: &Writable| {
            let is_oldest = !self.waiting[..at].iter().any(|(_, lanes)| lanes.contains(lane));
            (is_oldest || lane.reentrant)
                && !self.dirty.contains(&lane.id)
                && (lane.reentrant || self.running_of(*lane) == 0)
        };
        self.waiting.iter().enumerate().any(|(at, (_, lanes))| lanes.iter().all(|lane| is_free(at, lane)))
    }
}

const EXECUTORS: usize = 3;
const WAITING_MAX: usize = 12;

fn play(seed: u64) {
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut schedule = schedule(EXECUTORS, WAITING_MAX);
    let mut model = Model::default();
    let mut restoring: Vec<u64> = Vec::new();
    for _ in 0..2000 {
        let executor = random(EXECUTORS as u64) as usize;
        match random(10) {
            0..4 => {
                // None, one or several of four lanes.
                let set = if random(3) == 0 { random(16) } else { 1 << random(6) };
                let lanes: Vec<_> = (0..4_u64).filter(|lane| set >> lane & 1 == 1).collect();
                let lanes: Vec<_> = lanes.iter().map(|&id| Writable { id, reentrant: id > 1 }).collect();
                let id = model.next_id;
                model.next_id += 1;
                let accepted = submit(&mut schedule, wide(id, &lanes)).is_ok();
                assert_eq!(accepted, model.waiting.len() < WAITING_MAX, "seed {seed}: call {id}");
                if accepted {
                    model.waiting.push((id, lanes));
                }
            }
            4..6 if !model.running.contains_key(&executor) => match schedule.take(executor, 0) {
                Some(got) => model.begin(executor, &got, seed),
                None => assert!(!model.could_begin(), "seed {seed}: a call that could begin was kept"),
            },
            6..8 => finish(&mut schedule, &mut model, executor, random(3) == 0, &mut restoring, seed),
            8 if !restoring.is_empty() => {
                let lane = restoring.swap_remove(random(restoring.len() as u64) as usize);
                model.dirty.remove(&lane);
                restored(&mut schedule, &[lane]);
            }
            _ if !model.waiting.is_empty() => {
                let (id, _) = model.waiting.remove(random(model.waiting.len() as u64) as usize);
                assert!(schedule.is_waiting(0, id), "seed {seed}: call {id}");
                assert!(matches!(schedule.cancel(0, id), Cancelled::Waiting(got) if got == id), "seed {seed}");
            }
            _ => {}
        }
        assert_eq!(schedule.waiting(), model.waiting.len(), "seed {seed}");
        assert_eq!(schedule.running(), model.running.len(), "seed {seed}");
    }
    settle_all(&mut schedule, &mut model, &mut restoring, seed);
}

fn finish(
    schedule: &mut Schedule<u64>,
    model: &mut Model,
    executor: usize,
    faulted: bool,
    restoring: &mut Vec<u64>,
    seed: u64,
) {
    let Some((_, lanes)) = model.running.remove(&executor) else { return };
    if faulted {
        model.dirty.extend(lanes.iter().map(|lane| lane.id));
    }
    let due = lanes.iter().filter(|lane| model.dirty.contains(&lane.id) && model.running_of(**lane) == 0);
    let due: Vec<u64> = due.map(|lane| lane.id).collect();
    let settled = settle(schedule, &lanes, faulted);
    assert_eq!(settled.restore, due, "seed {seed}: restore exactly when the last call of dirty data ends");
    restoring.extend(due);
    schedule.free(executor, 0);
}

/// Runs everything to its end: nothing may be stuck, and no lane be left.
fn settle_all(schedule: &mut Schedule<u64>, model: &mut Model, restoring: &mut Vec<u64>, seed: u64) {
    while !(model.waiting.is_empty() && model.running.is_empty() && restoring.is_empty()) {
        for executor in 0..EXECUTORS {
            finish(schedule, model, executor, false, restoring, seed);
        }
        for lane in restoring.drain(..) {
            model.dirty.remove(&lane);
            restored(schedule, &[lane]);
        }
        if !model.waiting.is_empty() {
            let got = schedule.take(0, 0).unwrap_or_else(|| panic!("seed {seed}: stuck with {:?}", model.waiting));
            model.begin(0, &got, seed);
        }
    }
    assert_eq!((schedule.waiting(), schedule.ready(), schedule.lanes()), (0, 0, 0), "seed {seed}");
}

#[test]
fn a_call_of_several_lanes_waits_for_all_of_them_and_holds_none_meanwhile() {
    let other = Writable { id: 3, reentrant: false };
    let mut schedule = schedule(3, 9);
    assert_eq!(submit(&mut schedule, entry(1, Some(SERIAL))), Ok(true));
    assert_eq!(submit(&mut schedule, wide(2, &[SERIAL, other])), Ok(false));
    assert_eq!(submit(&mut schedule, entry(3, Some(other))), Ok(false), "the older one is not passed");
    assert_eq!(taken(&mut schedule, 0), Some(1));
    assert_eq!(settle(&mut schedule, &[SERIAL], false), released(1));
    assert_eq!((taken(&mut schedule, 1), taken(&mut schedule, 2)), (Some(2), None));
    assert_eq!(settle(&mut schedule, &[SERIAL, other], true), restore(&[SERIAL, other]), "its data and the other's");
    assert_eq!(restored(&mut schedule, &[SERIAL.id, other.id]), 1);
    assert_eq!(taken(&mut schedule, 2), Some(3));
}

#[test]
fn a_call_of_a_reentrant_lane_passes_those_that_wait_there_for_another_one() {
    let mut schedule = schedule(4, 9);
    assert_eq!(submit(&mut schedule, wide(1, &[SERIAL, REENTRANT])), Ok(true));
    assert_eq!(submit(&mut schedule, wide(2, &[SERIAL, REENTRANT])), Ok(false), "of the serial lane one at a time");
    assert_eq!(submit(&mut schedule, entry(3, Some(REENTRANT))), Ok(true));
    assert_eq!((taken(&mut schedule, 0), taken(&mut schedule, 1)), (Some(1), Some(3)));
    assert_eq!(settle(&mut schedule, &[SERIAL, REENTRANT], true), restore(&[SERIAL]), "while the other is in use");
    assert_eq!(submit(&mut schedule, entry(4, Some(REENTRANT))), Ok(false), "its data is to be restored");
    assert_eq!(restored(&mut schedule, &[SERIAL.id]), 0);
    assert_eq!(settle(&mut schedule, &[REENTRANT], false), restore(&[REENTRANT]));
    assert_eq!(restored(&mut schedule, &[REENTRANT.id]), 2, "all that wait for nothing else");
    assert_eq!((taken(&mut schedule, 2), taken(&mut schedule, 3)), (Some(2), Some(4)));
}

#[test]
fn an_older_call_that_is_cancelled_lets_those_pass_that_waited_behind_it() {
    let other = Writable { id: 3, reentrant: false };
    let mut schedule = schedule(2, 9);
    assert_eq!(submit(&mut schedule, entry(1, Some(SERIAL))), Ok(true));
    assert_eq!(submit(&mut schedule, wide(2, &[SERIAL, other])), Ok(false));
    assert_eq!(submit(&mut schedule, entry(3, Some(other))), Ok(false));
    assert!(matches!(schedule.cancel(0, 2), Cancelled::Waiting(2)));
    assert_eq!((taken(&mut schedule, 0), taken(&mut schedule, 1)), (Some(1), Some(3)));
}

#[test]
fn a_call_that_is_lost_takes_out_who_waits_for_its_data_and_lets_nobody_wait_until_it_is_found() {
    let other = Writable { id: 3, reentrant: false };
    let mut schedule = schedule(2, 9);
    for (id, lanes) in [(1, &[SERIAL, REENTRANT][..]), (2, &[SERIAL]), (3, &[SERIAL, other]), (4, &[REENTRANT])] {
        assert!(submit(&mut schedule, wide(id, lanes)).is_ok());
    }
    assert_eq!((taken(&mut schedule, 0), taken(&mut schedule, 1)), (Some(1), Some(4)));
    for (id, lanes) in [(5, &[REENTRANT][..]), (6, &[other]), (7, &[])] {
        assert!(submit(&mut schedule, wide(id, lanes)).is_ok());
    }
    let out: Vec<_> = schedule.lose(0, 0).into_iter().map(|entry| entry.id).collect();
    assert_eq!(out, [2, 3, 5], "of a reentrant lane those too that had not begun");
    assert_eq!((schedule.running(), schedule.waiting()), (1, 2));
    for lanes in [&[SERIAL][..], &[REENTRANT]] {
        let refused = schedule.submit(wide(8, lanes), 0).map_err(|(no_room, _)| no_room);
        assert_eq!(refused, Err(NoRoom::Lost));
    }
    assert_eq!(settle(&mut schedule, &[REENTRANT], false), released(0), "one that ran beside it ends");
    schedule.free(1, 0);
    assert_eq!((taken(&mut schedule, 1), schedule.ready()), (Some(7), 1), "and what waited behind them");
    schedule.found(&Writables::new([SERIAL, REENTRANT]));
    assert_eq!(settle(&mut schedule, &[SERIAL, REENTRANT], true), restore(&[SERIAL, REENTRANT]));
    assert_eq!(submit(&mut schedule, entry(9, Some(SERIAL))), Ok(false), "while it is being restored");
    assert_eq!(restored(&mut schedule, &[SERIAL.id, REENTRANT.id]), 1);
}

#[test]
fn random_histories_keep_order_exclusion_and_restores_and_lose_no_call() {
    (0..200).for_each(play);
}

#[test]
fn clear_hands_out_every_waiting_call_and_leaves_the_running_ones_consistent() {
    let mut schedule = schedule(1, 9);
    for (id, lane) in [(1, Some(SERIAL)), (2, Some(SERIAL)), (3, Some(REENTRANT)), (4, None)] {
        assert!(submit(&mut schedule, entry(id, lane)).is_ok());
    }
    assert_eq!(taken(&mut schedule, 0), Some(1));
    let mut cleared: Vec<_> = schedule.clear().into_iter().map(|entry| entry.id).collect();
    cleared.sort_unstable();
    assert_eq!(cleared, [2, 3, 4]);
    assert_eq!(settle(&mut schedule, &[SERIAL], true), restore(&[SERIAL]));
    restored(&mut schedule, &[SERIAL.id]);
    assert_eq!((schedule.waiting(), schedule.ready(), schedule.lanes()), (0, 0, 0));
}
