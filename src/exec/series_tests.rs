//! Series: calls that go to an executor together.
#![allow(unsafe_code)] // The tests' own machine code stands between linker symbols.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::call::{Arg, ArgError, Outcome, ResultType, Scalar};
use super::refusal::Refusal;
use super::series::{SeriesCall, SeriesTicket};
use super::test_code::{TestCode, TestPool, assemble, call, eventually, number, pool, wait_for};
use super::trap::{TrapKind, TrapStage};
use super::writable::Writable;

assemble!(
    /// `(a, cell)`: twice that; a fault for 0; for 1 it counts in the cell, waits until its upper half says so, and then is 2.
    tame,
    "cmp rdi, 1", "jb 3f", "je 2f", "lea rax, [rdi + rdi]", "ret", "2:", "lock inc dword ptr [rsi]", "4:",
    "cmp dword ptr [rsi + 4], 0", "je 4b", "mov eax, 2", "ret", "3:", "ud2"
);

#[repr(C)]
#[derive(Default)]
struct Cell {
    entered: AtomicU32,
    leave: AtomicU32,
}

fn calls(values: impl IntoIterator<Item = u64>, first: u64, cell: &Cell) -> Vec<SeriesCall> {
    let cell = Arg::U64(std::ptr::from_ref(cell) as u64);
    values.into_iter().zip(first..).map(|(value, number)| (number, vec![Arg::U64(value), cell.clone()])).collect()
}

fn submit(pool: &TestPool, code: &Arc<TestCode>, calls: Vec<SeriesCall>) -> SeriesTicket {
    pool.submit_series(call(code, vec![], ResultType::U64), calls).unwrap()
}

fn ends(ticket: &SeriesTicket) -> Vec<(u64, Result<u64, TrapKind>)> {
    let end = |outcome: Outcome| match outcome {
        Outcome::Returned { value: Some(Scalar::U64(value)), .. } => Ok(value),
        Outcome::Trap(trap) => Err(trap.kind),
        other => panic!("{other:?}"),
    };
    ticket.take_done().into_iter().map(|(number, done)| (number, end(done.outcome))).collect()
}

fn finish(mut ticket: SeriesTicket) -> SeriesTicket {
    wait_for(&mut ticket);
    ticket
}

#[test]
fn the_calls_of_a_series_run_in_their_order_and_a_trap_ends_only_its_own() {
    let (pool, cell) = (pool(1, 8), Cell::default());
    let code = TestCode::new(tame(), None);
    let ticket = finish(submit(&pool, &code, calls([5, 0, 7, 0, 9], 100, &cell)));
    let expected = [(100, Ok(10)), (101, Err(TrapKind::Ill)), (102, Ok(14)), (103, Err(TrapKind::Ill)), (104, Ok(18))];
    assert_eq!(ends(&ticket), expected);
    assert_eq!((ends(&ticket), ticket.take_waiting().len(), ticket.series().calls()), (vec![], 0, vec![]));
    assert_eq!((pool.stats().returned, pool.stats().calls), (3, 5));
    assert_eq!(Arc::strong_count(&code), 1, "the code is let go before the answer");
    assert_eq!(ends(&finish(submit(&pool, &code, vec![]))), []);
}

#[test]
fn ends_can_be_taken_and_what_waits_taken_back_while_a_call_runs() {
    let (pool, cell) = (pool(1, 8), Cell::default());
    let code = TestCode::new(tame(), None);
    let ticket = submit(&pool, &code, calls([5, 6, 1, 8, 9], 1, &cell));
    eventually("the third runs", || cell.entered.load(Ordering::SeqCst) == 1);
    assert_eq!(ends(&ticket), [(1, Ok(10)), (2, Ok(12))]);
    assert_eq!(ticket.series().calls(), [(3, true), (4, false), (5, false)]);
    assert_eq!(ticket.take_waiting().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [4, 5]);
    cell.leave.store(1, Ordering::SeqCst);
    assert_eq!(ends(&finish(ticket)), [(3, Ok(2))]);
    assert_eq!(pool.stats().calls, 3);
}

#[test]
fn a_series_on_data_ends_with_a_trap_so_that_the_data_is_restored_before_the_next_call() {
    let (pool, cell) = (pool(2, 8), Cell::default());
    for (id, reentrant) in [(90, false), (91, true)] {
        let code = TestCode::new(tame(), Some(Writable { id, reentrant }));
        let ticket = finish(submit(&pool, &code, calls([5, 0, 7, 0], id * 10, &cell)));
        assert_eq!(ends(&ticket), [(id * 10, Ok(10)), (id * 10 + 1, Err(TrapKind::Ill))]);
        assert_eq!(code.restores.load(Ordering::SeqCst), 1);
        let rest = finish(submit(&pool, &code, ticket.take_waiting().into()));
        assert_eq!(ends(&rest), [(id * 10 + 2, Ok(14)), (id * 10 + 3, Err(TrapKind::Ill))]);
        assert_eq!(code.restores.load(Ordering::SeqCst), 2);
    }
}

#[test]
fn a_series_that_had_its_share_makes_way_for_others() {
    let (pool, cell) = (pool(1, 8), Cell::default());
    let code = TestCode::new(tame(), None);
    let mut ticket = submit(&pool, &code, calls([1, 5, 6], 1, &cell));
    eventually("the first runs", || cell.entered.load(Ordering::SeqCst) == 1);
    let other = pool.submit(call(&code, vec![Arg::U64(50)], ResultType::U64)).unwrap();
    std::thread::sleep(Duration::from_millis(1));
    cell.leave.store(1, Ordering::SeqCst);
    wait_for(&mut ticket);
    assert_eq!((ends(&ticket), ticket.take_waiting().len()), (vec![(1, Ok(2))], 2));
    assert!(matches!(wait_for(other).outcome, Outcome::Returned { .. }));
}

#[test]
fn calls_of_a_series_are_cancelled_one_by_one() {
    let (pool, cell) = (pool(1, 8), Cell::default());
    let code = TestCode::new(tame(), None);
    let ticket = submit(&pool, &code, calls([1, 5, 6, 1, 7], 1, &cell));
    let cancel = |number| pool.cancel_in_series(ticket.id().unwrap(), ticket.series(), number);
    eventually("the first runs", || cell.entered.load(Ordering::SeqCst) == 1);
    assert!(cancel(2));
    let waited = ticket.take_done();
    assert!(
        matches!(waited[..], [(2, ref done)] if matches!(done.outcome, Outcome::Trap(trap) if trap.stage == TrapStage::Waiting))
    );
    assert!(!cancel(2) && !cancel(99));
    assert!(cancel(1));
    eventually("the fourth runs", || cell.entered.load(Ordering::SeqCst) == 2);
    assert_eq!(ends(&ticket), [(1, Err(TrapKind::Cancelled)), (3, Ok(12))]);
    cell.leave.store(1, Ordering::SeqCst);
    let (id, series) = (ticket.id().unwrap(), Arc::clone(ticket.series()));
    assert_eq!(ends(&finish(ticket)), [(4, Ok(2)), (5, Ok(14))]);
    assert!(!pool.cancel_in_series(id, &series, 5));
    assert_eq!((pool.stats().calls, pool.stats().trapped(TrapKind::Cancelled)), (5, 2));
}

#[test]
fn dropping_the_ticket_of_a_series_stops_the_call_that_runs_and_the_rest_never_begins() {
    let (pool, cell) = (pool(1, 8), Cell::default());
    let code = TestCode::new(tame(), None);
    let running = submit(&pool, &code, calls([1, 1, 1], 1, &cell));
    let waiting = submit(&pool, &code, calls([1, 1], 10, &cell));
    eventually("the first runs", || cell.entered.load(Ordering::SeqCst) == 1);
    drop(waiting);
    drop(running);
    eventually("all is quiet", || pool.stats().running + pool.stats().queued == 0);
    assert_eq!((cell.entered.load(Ordering::SeqCst), Arc::strong_count(&code)), (1, 1));
    assert_eq!(number(&pool, &code, vec![Arg::U64(4)]), 8);
}

#[test]
fn a_series_that_cannot_be_taken_is_given_back() {
    let (pool, cell) = (pool(1, 1), Cell::default());
    let code = TestCode::new(tame(), None);
    let too_many = vec![(1, vec![Arg::U64(0); 17])];
    let rejected = pool.submit_series(call(&code, vec![], ResultType::U64), too_many.clone()).unwrap_err();
    assert_eq!((rejected.refusal, rejected.calls), (Refusal::Args(ArgError::TooMany { given: 17 }), too_many));
    let running = submit(&pool, &code, calls([1], 1, &cell));
    eventually("it runs", || cell.entered.load(Ordering::SeqCst) == 1);
    let waiting = submit(&pool, &code, calls([5], 2, &cell));
    let more = calls([6, 7], 3, &cell);
    let rejected = pool.submit_series(call(&code, vec![], ResultType::U64), more.clone()).unwrap_err();
    assert_eq!((rejected.refusal, rejected.calls), (Refusal::Saturated { queue_max: 1 }, more));
    cell.leave.store(1, Ordering::SeqCst);
    assert_eq!([running, waiting].map(|ticket| ends(&finish(ticket))), [[(1, Ok(2))], [(2, Ok(10))]]);
}
