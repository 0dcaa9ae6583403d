//! Inline calls: code on the thread of its caller.
//!
//! Handing a call to an executor and its answer back wakes two threads, which takes longer than a short call by far. So
//! calls of functions that were short of late run where they are submitted, under the same guard, if the thread was lent
//! for it ([`lend_thread`]). Such a thread gets a seat of its own when the first call runs there: slot, alternate stack
//! and signal mask are as an executor's, for as long as the thread lives. Its filter of system calls is not: the
//! thread's own work needs what executors may not call. So it has a second one that refuses only what the instructions of
//! code ask for, which leaves open what executors are kept from as well: code that jumps to an instruction of the C library.
//!
//! A thread that somebody lent must come back. So a call has a small slice of CPU time: if it has not ended by then, the
//! watchdog ends it, and it runs again from its beginning on an executor, with the limits that it asked for. That nobody
//! can tell, because only callees without writable data run inline: buffers, stack and heap are made anew, and host
//! functions have no state. While a call runs on after the watchdog's signal no other begins inline, so that it is alone
//! in holding a thread that somebody lent. After it nothing runs inline for a while, and nothing of its tenant for longer,
//! which bounds the share of time that lent threads can lose.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::call::{Call, Callee, Done, Outcome};
use super::executor::{self, CPU_RESOLUTION, Executor};
use super::frame::Limits;
use super::memory::layout_bytes;
use super::pool::Shared;
use super::seat::Seats;
use super::signals::ThreadSignals;
use super::start::ExecConfig;
use super::traces::Traces;
use super::trap::TrapKind;
use super::watchdog::nanos;

/// CPU time of an inline call.
const SLICE: Duration = Duration::from_micros(500);
/// Its time by the wall clock, for code that blocks: a thread that only was preempted is not to blame.
const WALL_MAX: Duration = Duration::from_millis(50);
/// With a watchdog that looks more rarely nothing runs inline: a call that is not short holds its thread for as long.
const TICK_MAX: Duration = Duration::from_millis(5);
/// Buffers of an inline call: what is copied in some hundred nanoseconds.
const BUFFERS_MAX_BYTES: usize = 16 << 10;
/// In place of the id of a job: no job has it.
const NO_JOB: u64 = u64::MAX;

thread_local! {
    static IS_LENT: Cell<bool> = const { Cell::new(false) };
    static STATION: RefCell<Option<Station>> = const { RefCell::new(None) };
}

/// Lets pools run short calls on the calling thread when it submits them. All signals but those of faults are blocked
/// on it from the first such call on, and it keeps the memory of an executor until it ends. Where executors run under a
/// filter of system calls, it and the threads that it starts from then on can gain no privileges, and no instruction in
/// the pool's code can make a system call on them; all other system calls stay as they were.
pub fn lend_thread() {
    IS_LENT.set(true);
}

/// How long calls that run inline may take, in a pool that is configured so; zero: none does.
pub(super) fn limit(config: &ExecConfig) -> Duration {
    if config.tick > TICK_MAX { Duration::ZERO } else { config.inline }
}

/// What a lent thread has of one pool.
#[derive(Debug)]
struct Station {
    /// First, so that it is dropped first: the alternate stack lies in the seat.
    _signals: ThreadSignals,
    index: usize,
    canary: u64,
    traces: Traces,
    /// Tenant and time of the last call, to be charged with the next.
    owed: Option<(u64, u64)>,
    seats: Arc<Seats>,
}

/// Runs the call here if that can be done; `None`: it is for an executor. `now` is the time of its submit.
pub(super) fn run<C: Callee>(shared: &Shared<C>, call: &Call<C>, now: Instant) -> Option<Done> {
    if !IS_LENT.get() || !is_candidate(shared, call, now) {
        return None;
    }
    // An error means that the thread ends, or that code is running on it: then no inline call can begin.
    let run = |station: &RefCell<Option<Station>>| {
        let mut station = station.try_borrow_mut().ok()?;
        at_station(shared, call, now, Station::of(&mut station, shared)?)
    };
    STATION.try_with(run).ok()?
}

/// Short of late, small, and nothing is lost if it has to run again.
fn is_candidate<C: Callee>(shared: &Shared<C>, call: &Call<C>, now: Instant) -> bool {
    shared.paces.is_short(call.entry)
        && call.cpu_limit > SLICE
        && call.wall_cap > WALL_MAX
        && call.deadline.is_none_or(|deadline| deadline > now + WALL_MAX)
        && layout_bytes(&call.args).is_some_and(|bytes| bytes <= BUFFERS_MAX_BYTES)
}

fn at_station<C: Callee>(shared: &Shared<C>, call: &Call<C>, now: Instant, station: &mut Station) -> Option<Done> {
    let tenant = call.callee.tenant();
    let _turn = shared.queue.begin_inline(station.index, tenant, now, station.owed.take())?;
    let seat = station.seats.inline(station.index);
    let executor = Executor::new(shared, seat, seat.slot()?, station.canary, &station.traces);
    let wall_end_ns = nanos((now + WALL_MAX).saturating_duration_since(shared.epoch));
    let limits = Limits { job: NO_JOB, call: 0, cpu_limit_ns: nanos(SLICE), wall_end_ns };
    shared.staff.lent[station.index].begin(call.entry);
    let outcome = executor.run(call, &call.args, limits);
    let wall = now.elapsed();
    station.owed = Some((tenant, nanos(wall)));
    let is_returned = matches!(outcome, Outcome::Returned { .. });
    shared.paces.note(call.entry, is_returned.then_some(wall));
    if matches!(&outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Timeout) {
        shared.counters.inline_moved.fetch_add(1, Ordering::Relaxed);
        shared.queue.pause_inline(tenant, now + wall, wall);
        return None;
    }
    shared.counters.inline.fetch_add(1, Ordering::Relaxed);
    shared.note_end(call, &outcome);
    let cpu = if wall < CPU_RESOLUTION { Duration::ZERO } else { wall };
    Some(Done { outcome, queued: Duration::ZERO, wall, cpu })
}

impl Station {
    /// The thread's station, which is set up if it is of no pool yet; `None` if there is no seat, or it is of another pool.
    fn of<'a, C: Callee>(station: &'a mut Option<Station>, shared: &Shared<C>) -> Option<&'a mut Station> {
        if station.is_none() {
            *station = Station::set_up(shared);
            // Not tried again if there is no seat.
            IS_LENT.set(station.is_some());
        }
        station.as_mut().filter(|it| Arc::ptr_eq(&it.seats, &shared.seats))
    }

    /// With the filter of system calls, if executors have theirs: where the thread cannot be put under it, no code runs here.
    fn set_up<C: Callee>(shared: &Shared<C>) -> Option<Station> {
        let (index, seat) = shared.seats.next_inline()?;
        let (signals, victim) = executor::set_up(seat.slot()?, shared.lent_filter.as_deref()).ok()?;
        seat.take(victim);
        let canary = RandomState::new().hash_one(index) << 8;
        let (traces, seats) = (Traces::none(true), Arc::clone(&shared.seats));
        Some(Station { _signals: signals, index, canary, traces, owed: None, seats })
    }
}
