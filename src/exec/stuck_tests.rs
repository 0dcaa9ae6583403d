//! Code that blocks the signal by which it would be stopped.
#![allow(unsafe_code)] // The tests' own machine code stands between linker symbols.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::batch::{Batch, Column, ColumnType};
use super::call::{Arg, Call, Held, Outcome, ResultType, Scalar};
use super::confine::FilterPolicy;
use super::lend_thread;
use super::pace::SHORT_MIN;
use super::pool::Pool;
use super::refusal::Refusal;
use super::start::ExecConfig;
use super::test_code::{TestCode, TestPool, assemble, call, config, eventually, number, wait, wait_for};
use super::trap::{TrapKind, TrapStage};
use super::writable::Writable;

assemble!(identity, "mov rax, rdi", "ret");
assemble!(
    /// `(cell, stays)`: where it stays, blocks all signals by a system call, counts up, and is endless until the cell says so with
    /// its upper half. Returns 7.
    block_signals,
    "mov r9, rdi", "test rsi, rsi", "jz 3f", "mov eax, 14", "xor edi, edi", "push -1", "mov rsi, rsp", "xor edx, edx",
    "mov r10d, 8", "syscall", "pop rax", "lock inc dword ptr [r9]", "2:", "pause", "cmp dword ptr [r9 + 4], 0", "je 2b",
    "3:", "mov eax, 7", "ret"
);

const SERIAL: Writable = Writable { id: 7, reentrant: false };
const SOON: Duration = Duration::from_millis(30);

/// Lives for ever, as code of a test that fails may look at it for ever.
#[derive(Default)]
struct Cell {
    entered: AtomicU32,
    leave: AtomicU32,
}

impl Cell {
    fn new() -> &'static Cell {
        Box::leak(Box::default())
    }

    fn entered(&self) -> u32 {
        self.entered.load(Ordering::SeqCst)
    }

    fn open(&self) {
        self.leave.store(1, Ordering::SeqCst);
    }
}

/// Lets go of what waits at its cell when the test ends, however it ends.
struct Opened(&'static Cell);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Without the filter, under which code could block signals by the C library's instructions only.
fn stuck_config(executors: usize) -> ExecConfig {
    ExecConfig { stuck_after: SOON, filter: FilterPolicy::Off, ..config(executors, 64) }
}

fn stuck_pool(executors: usize, stuck_max: usize) -> TestPool {
    Pool::start(ExecConfig { stuck_max, ..stuck_config(executors) }).unwrap()
}

/// A call that cannot be stopped, and is to be at once.
fn unstoppable(code: &Arc<TestCode>, cell: &'static Cell) -> Call<Arc<TestCode>> {
    let args = vec![Arg::U64(std::ptr::from_ref(cell) as u64), Arg::U64(1)];
    Call { cpu_limit: Duration::from_millis(5), ..call(code, args, ResultType::U64) }
}

fn is_stuck(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Timeout && trap.stage == TrapStage::Stuck)
}

#[test]
fn a_call_that_cannot_be_stopped_is_answered_and_its_executor_replaced() {
    let (pool, cell, code) = (stuck_pool(1, 2), Cell::new(), TestCode::new(block_signals(), None));
    let _opened = Opened(cell);
    let done = wait(pool.submit(unstoppable(&code, cell)).unwrap());
    assert!(is_stuck(&done.outcome) && done.wall >= SOON, "{done:?}");
    assert_eq!((cell.entered(), code.stuck.load(Ordering::SeqCst)), (1, 1));
    let other = TestCode::new(identity(), None);
    for value in 0..50 {
        assert_eq!(number(&pool, &other, vec![Arg::U64(value)]), value);
    }
    let stats = pool.stats();
    assert_eq!((stats.executors, stats.stuck, stats.missing, stats.replaced), (1, 1, 0, 1));
    assert_eq!((stats.timeouts(), stats.running), (1, stats.running.min(1)));
    assert_eq!(Arc::strong_count(&code), 2, "its code is not freed under it");
    cell.open();
    eventually("the thread ends", || pool.stats().stuck == 0 && Arc::strong_count(&code) == 1);
    assert_eq!(pool.stats().timeouts(), 1, "it is not counted again");
    assert_eq!(number(&pool, &other, vec![Arg::U64(3)]), 3);
}

#[test]
fn a_call_whose_caller_has_gone_gives_its_place_up_too_and_its_callee_is_told() {
    let (pool, cell, code) = (stuck_pool(1, 1), Cell::new(), TestCode::new(block_signals(), None));
    let _opened = Opened(cell);
    let ticket = pool.submit(Call { cpu_limit: Duration::from_secs(60), ..unstoppable(&code, cell) }).unwrap();
    eventually("it runs", || cell.entered() == 1);
    drop(ticket);
    eventually("it is replaced", || pool.stats().replaced == 1);
    assert_eq!((pool.stats().cancelled, code.stuck.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(number(&pool, &TestCode::new(identity(), None), vec![Arg::U64(3)]), 3);
}

#[test]
fn who_waits_for_its_data_is_answered_and_who_comes_refused_until_it_has_ended() {
    let (pool, cell, code) = (stuck_pool(2, 1), Cell::new(), TestCode::new(block_signals(), Some(SERIAL)));
    let _opened = Opened(cell);
    let stuck = pool.submit(unstoppable(&code, cell)).unwrap();
    eventually("it runs", || cell.entered() == 1);
    let waiting = pool.submit(unstoppable(&code, cell)).unwrap();
    assert!(is_stuck(&wait(stuck).outcome));
    assert_eq!(wait(waiting).outcome, Outcome::Stuck(Held::Data));
    assert_eq!(pool.submit(unstoppable(&code, cell)).unwrap_err().refusal, Refusal::Stuck(Held::Data));
    assert_eq!(code.restores.load(Ordering::SeqCst), 0, "it may still write");
    cell.open();
    eventually("it ends", || pool.stats().stuck == 0);
    assert_eq!(code.restores.load(Ordering::SeqCst), 1);
    let args = vec![Arg::U64(std::ptr::from_ref(cell) as u64), Arg::U64(0)];
    assert_eq!(number(&pool, &code, args), 7);
}

#[test]
fn a_batch_and_a_call_of_a_series_are_answered_too_and_what_waits_in_that_is_given_back() {
    let (pool, cell, code) = (stuck_pool(1, 2), Cell::new(), TestCode::new(block_signals(), None));
    let _opened = Opened(cell);
    let address = std::ptr::from_ref(cell) as u64;
    let function = || Call { args: vec![], ..unstoppable(&code, cell) };
    let calls = [0, 1, 0].map(|stays| vec![Arg::U64(address), Arg::U64(stays)]);
    let mut ticket = pool.submit_series(function(), (11..).zip(calls).collect()).unwrap();
    wait_for(&mut ticket);
    let done = ticket.take_done();
    assert_eq!(done.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [11, 12]);
    assert!(matches!(done[0].1.outcome, Outcome::Returned { .. }) && is_stuck(&done[1].1.outcome), "{done:?}");
    assert_eq!(ticket.take_waiting().into_iter().map(|(number, _)| number).collect::<Vec<_>>(), [13]);
    let column = |values: &[u64]| Column {
        kind: ColumnType::U64,
        values: values.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>().into(),
    };
    let batch = Batch::new(2, vec![column(&[address]), column(&[0, 1])]).unwrap();
    let end = wait_for(pool.submit_batch(function(), batch).unwrap());
    assert!(is_stuck(&end.done.outcome) && (end.rows, end.results.len()) == (0, 0), "{end:?}");
    eventually("both are replaced", || (pool.stats().missing, pool.stats().replaced) == (0, 2));
    let stats = pool.stats();
    assert_eq!((stats.stuck, stats.returned, stats.timeouts()), (2, 1, 2));
    assert_eq!((cell.entered(), code.stuck.load(Ordering::SeqCst)), (2, 2));
    cell.open();
    eventually("the threads end", || pool.stats().stuck == 0 && Arc::strong_count(&code) == 1);
    assert_eq!((pool.stats().timeouts(), ticket.take_done().len()), (2, 0), "nothing is counted or told again");
}

#[test]
fn a_series_that_waits_for_its_data_is_answered_call_by_call() {
    let (pool, cell, code) = (stuck_pool(2, 2), Cell::new(), TestCode::new(block_signals(), Some(SERIAL)));
    let _opened = Opened(cell);
    let first = pool.submit(unstoppable(&code, cell)).unwrap();
    let arguments = unstoppable(&code, cell).args;
    let calls = (1..).zip([arguments.clone(), arguments]).collect();
    let mut ticket = pool.submit_series(Call { args: vec![], ..unstoppable(&code, cell) }, calls).unwrap();
    assert!(is_stuck(&wait(first).outcome));
    wait_for(&mut ticket);
    let done = ticket.take_done();
    assert_eq!(done.len(), 2);
    assert!(done.iter().all(|(_, it)| it.outcome == Outcome::Stuck(Held::Data)), "{done:?}");
    assert_eq!((cell.entered(), pool.stats().cancelled), (1, 2));
}

#[test]
fn without_a_replacement_the_pool_tells_and_refuses_until_the_executor_is_there_again() {
    let (pool, cell, code) = (stuck_pool(1, 0), Cell::new(), TestCode::new(block_signals(), None));
    let _opened = Opened(cell);
    let other = TestCode::new(identity(), None);
    let stuck = pool.submit(unstoppable(&code, cell)).unwrap();
    eventually("it runs", || cell.entered() == 1);
    let waiting = pool.submit(call(&other, vec![Arg::U64(1)], ResultType::U64)).unwrap();
    assert!(is_stuck(&wait(stuck).outcome));
    assert_eq!(wait(waiting).outcome, Outcome::Stuck(Held::Executors));
    let refused = pool.submit(call(&other, vec![Arg::U64(1)], ResultType::U64)).unwrap_err();
    assert_eq!(refused.refusal, Refusal::Stuck(Held::Executors));
    let stats = pool.stats();
    assert_eq!((stats.stuck, stats.missing, stats.replaced), (1, 1, 0));
    cell.open();
    eventually("another one sits in its seat", || pool.stats().missing == 0);
    assert_eq!((number(&pool, &other, vec![Arg::U64(3)]), pool.stats().stuck), (3, 0));
}

#[test]
fn no_more_are_replaced_at_one_time_than_may_be() {
    let (pool, cell) = (stuck_pool(3, 1), Cell::new());
    let _opened = Opened(cell);
    for _ in 0..2 {
        let code = TestCode::new(block_signals(), None);
        assert!(is_stuck(&wait(pool.submit(unstoppable(&code, cell)).unwrap()).outcome));
    }
    eventually("one is replaced", || pool.stats().replaced == 1);
    let stats = pool.stats();
    assert_eq!((stats.stuck, stats.missing), (2, 1));
    assert_eq!(number(&pool, &TestCode::new(identity(), None), vec![Arg::U64(3)]), 3, "two are left");
    cell.open();
    eventually("all are there", || pool.stats().missing == 0 && pool.stats().stuck == 0);
}

#[test]
fn neither_who_drains_nor_who_drops_the_pool_waits_for_it() {
    let (pool, cell, code) = (stuck_pool(1, 1), Cell::new(), TestCode::new(block_signals(), None));
    let _opened = Opened(cell);
    assert!(is_stuck(&wait(pool.submit(unstoppable(&code, cell)).unwrap()).outcome));
    assert!(pool.drain(Instant::now() + Duration::from_secs(60)));
    drop(pool);
    assert_eq!(Arc::strong_count(&code), 2);
    cell.open();
    eventually("it ends with nobody there", || Arc::strong_count(&code) == 1);
}

#[test]
fn a_pool_that_is_dropped_gives_up_what_does_not_stop() {
    let (pool, cell, code) = (stuck_pool(2, 1), Cell::new(), TestCode::new(block_signals(), None));
    let _opened = Opened(cell);
    let ticket = pool.submit(Call { cpu_limit: Duration::from_secs(60), ..unstoppable(&code, cell) }).unwrap();
    eventually("it runs", || cell.entered() == 1);
    drop(pool);
    assert_eq!(wait(ticket).outcome, Outcome::Cancelled);
}

#[test]
fn a_lent_thread_that_is_stuck_is_told_of_and_nothing_runs_inline_any_more() {
    let inline = ExecConfig { inline_threads: 2, inline: Duration::from_secs(60), ..stuck_config(1) };
    let pool: TestPool = Pool::start(inline).unwrap();
    let (cell, code) = (Cell::new(), TestCode::new(block_signals(), None));
    let _opened = Opened(cell);
    let args = |stays| vec![Arg::U64(std::ptr::from_ref(cell) as u64), Arg::U64(stays)];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lend_thread();
            (0..SHORT_MIN).for_each(|_| assert_eq!(number(&pool, &code, args(0)), 7));
            let ticket = pool.submit(call(&code, args(1), ResultType::U64)).unwrap();
            assert_eq!(wait(ticket).outcome, Outcome::Returned { value: Some(Scalar::U64(7)), buffers: vec![] });
        });
        let _opened = Opened(cell);
        eventually("it is told of", || pool.stats().stuck_lent == 1);
        scope.spawn(|| {
            lend_thread();
            let other = TestCode::new(identity(), None);
            (0..2 * SHORT_MIN).for_each(|value| assert_eq!(number(&pool, &other, vec![Arg::U64(value)]), value));
        });
        eventually("the others are answered", || pool.stats().returned >= 3 * SHORT_MIN);
        assert_eq!(pool.stats().inline, 0);
        assert_eq!(code.stuck.load(Ordering::SeqCst), 0, "only the thread has its callee");
        (0..2).for_each(|_| assert_eq!(number(&pool, &code, args(0)), 7));
        assert_eq!(code.stuck.load(Ordering::SeqCst), 1, "told once");
        cell.open();
        eventually("it is told that it has ended", || pool.stats().stuck_lent == 0);
    });
}

#[test]
fn while_an_inline_call_runs_on_no_other_begins() {
    let stuck_after = Duration::from_secs(60);
    let inline = ExecConfig { inline_threads: 2, inline: Duration::from_secs(60), stuck_after, ..stuck_config(1) };
    let pool: TestPool = Pool::start(inline).unwrap();
    let (cell, code, other) = (Cell::new(), TestCode::new(block_signals(), None), TestCode::of_tenant(identity(), 1));
    let args = |stays| vec![Arg::U64(std::ptr::from_ref(cell) as u64), Arg::U64(stays)];
    (0..SHORT_MIN).for_each(|_| assert_eq!(number(&pool, &code, args(0)), 7));
    (0..SHORT_MIN).for_each(|_| assert_eq!(number(&pool, &other, vec![Arg::U64(1)]), 1));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lend_thread();
            number(&pool, &code, args(1))
        });
        let _opened = Opened(cell);
        eventually("it runs", || cell.entered() == 1);
        assert_eq!(pool.stats().inline_running, 1);
        let others = scope.spawn(|| {
            lend_thread();
            let goes_inline = || {
                let before = pool.stats().inline;
                assert_eq!(number(&pool, &other, vec![Arg::U64(1)]), 1);
                pool.stats().inline > before
            };
            eventually("all pause", || !goes_inline());
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(10));
                assert!(!goes_inline(), "though it was long ago");
            }
        });
        others.join().unwrap();
    });
}

#[test]
fn a_callee_is_not_told_of_timeouts_by_limits_below_the_default() {
    assemble!(endless, "2:", "jmp 2b");
    let cpu_limit_default = Duration::from_millis(20);
    let pool: TestPool = Pool::start(ExecConfig { cpu_limit_default, ..config(1, 8) }).unwrap();
    let code = TestCode::new(endless(), None);
    let ends = |limits: fn(&mut Call<Arc<TestCode>>)| {
        let mut looping = Call { cpu_limit: Duration::from_millis(20), ..call(&code, vec![], ResultType::Void) };
        limits(&mut looping);
        let outcome = wait(pool.submit(looping).unwrap()).outcome;
        assert!(matches!(outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Timeout), "{outcome:?}");
        code.traps.load(Ordering::SeqCst)
    };
    assert_eq!(ends(|call| call.cpu_limit = Duration::from_millis(19)), 0);
    assert_eq!(ends(|call| call.wall_cap = Duration::from_millis(19)), 0);
    assert_eq!(ends(|_| ()), 1);
}

#[test]
fn a_callee_is_told_of_traps_and_timeouts_but_not_of_what_its_caller_did() {
    assemble!(ud2, "ud2");
    assemble!(endless, "2:", "jmp 2b");
    let pool: TestPool = Pool::start(config(1, 8)).unwrap();
    let (trapping, looping) = (TestCode::new(ud2(), None), TestCode::new(endless(), None));
    let told = |code: &Arc<TestCode>| code.traps.load(Ordering::SeqCst);
    wait(pool.submit(call(&trapping, vec![], ResultType::Void)).unwrap());
    assert_eq!(told(&trapping), 1);
    let short = Duration::from_millis(2);
    wait(pool.submit(Call { cpu_limit: short, ..call(&looping, vec![], ResultType::Void) }).unwrap());
    assert_eq!(told(&looping), 1);
    let deadline = Some(Instant::now() + Duration::from_millis(20));
    wait(pool.submit(Call { deadline, ..call(&looping, vec![], ResultType::Void) }).unwrap());
    let ticket = pool.submit(call(&looping, vec![], ResultType::Void)).unwrap();
    eventually("it runs", || pool.stats().running == 1);
    drop(ticket);
    eventually("it is cancelled", || pool.stats().cancelled == 1);
    assert_eq!(told(&looping), 1);
    looping.is_quarantined.store(true, Ordering::SeqCst);
    assert_eq!(pool.submit(call(&looping, vec![], ResultType::Void)).unwrap_err().refusal, Refusal::Quarantined);
}

#[test]
fn calls_that_wait_when_their_callee_is_quarantined_do_not_run() {
    let (pool, cell) = (stuck_pool(1, 1), Cell::new());
    let _opened = Opened(cell);
    let (gate, code) = (TestCode::new(block_signals(), None), TestCode::new(block_signals(), None));
    let holds = pool.submit(Call { cpu_limit: Duration::from_secs(60), ..unstoppable(&gate, cell) }).unwrap();
    eventually("it runs", || cell.entered() == 1);
    let single = pool.submit(unstoppable(&code, cell)).unwrap();
    let calls = (1..).zip([unstoppable(&code, cell).args, unstoppable(&code, cell).args]).collect();
    let mut series = pool.submit_series(Call { args: vec![], ..unstoppable(&code, cell) }, calls).unwrap();
    code.is_quarantined.store(true, Ordering::SeqCst);
    cell.open();
    assert!(matches!(wait(holds).outcome, Outcome::Returned { .. }));
    let done = wait(single);
    assert_eq!((done.outcome, done.wall), (Outcome::Quarantined, Duration::ZERO));
    wait_for(&mut series);
    let outcomes: Vec<_> = series.take_done().into_iter().map(|(number, done)| (number, done.outcome)).collect();
    assert_eq!(outcomes, [(1, Outcome::Quarantined)]);
    assert_eq!(series.take_waiting().len(), 1, "the others are given back, to be refused");
    assert_eq!((cell.entered(), pool.stats().cancelled), (1, 2));
}
