//! Limits of time and number, cancelling, and data that calls share.
#![allow(unsafe_code)] // The tests' own machine code stands between linker symbols.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::call::{Arg, Outcome, ResultType};
use super::pool::Pool;
use super::refusal::Refusal;
use super::start::ExecConfig;
use super::test_code::{TestCode, TestPool, assemble, call, config, eventually, number, pool, run, wait};
use super::trap::TrapKind;
use super::writable::Writable;

assemble!(endless, "2:", "jmp 2b");
assemble!(identity, "mov rax, rdi", "ret");
assemble!(ud2, "ud2");
assemble!(
    /// `(cell)`: counts up, and is endless where the cell says so with its upper half.
    enter_cell, "lock inc dword ptr [rdi]", "2:", "cmp dword ptr [rdi + 4], 0", "je 2b", "mov eax, [rdi]", "ret"
);

const SERIAL: Writable = Writable { id: 7, reentrant: false };
const REENTRANT: Writable = Writable { id: 8, reentrant: true };

/// Two counters that code and the test share: calls that entered, and the sign to leave.
#[repr(C)]
#[derive(Default)]
struct Cell {
    entered: std::sync::atomic::AtomicU32,
    leave: std::sync::atomic::AtomicU32,
}

impl Cell {
    fn arg(&self) -> Arg {
        Arg::U64(std::ptr::from_ref(self) as u64)
    }

    fn entered(&self) -> u32 {
        self.entered.load(Ordering::SeqCst)
    }

    fn open(&self) {
        self.leave.store(1, Ordering::SeqCst);
    }
}

fn is_trap(outcome: &Outcome, kind: TrapKind) -> bool {
    matches!(outcome, Outcome::Trap(trap) if trap.kind == kind)
}

fn submit(pool: &TestPool, code: &Arc<TestCode>, args: Vec<Arg>) -> super::ticket::Ticket {
    pool.submit(call(code, args, ResultType::U32)).unwrap()
}

#[test]
fn cpu_limit_wall_cap_and_deadline_each_end_a_loop() {
    let pool = pool(1, 8);
    let code = TestCode::new(endless(), None);
    let forever = || call(&code, vec![], ResultType::Void);
    let short = Duration::from_millis(3);
    let mut by_cpu = forever();
    by_cpu.cpu_limit = short;
    let done = wait(pool.submit(by_cpu).unwrap());
    assert!(is_trap(&done.outcome, TrapKind::Timeout) && done.wall >= short && done.cpu > Duration::ZERO, "{done:?}");
    let mut by_wall = forever();
    by_wall.wall_cap = short;
    assert!(is_trap(&run(&pool, by_wall), TrapKind::Timeout));
    let mut by_deadline = forever();
    by_deadline.deadline = Some(Instant::now() + Duration::from_millis(50));
    assert!(is_trap(&run(&pool, by_deadline), TrapKind::Timeout));
    assert_eq!(pool.stats().timeouts(), 3);
}

#[test]
fn the_watchdog_wakes_from_sleep_for_a_call_after_a_long_rest() {
    let pool = pool(1, 8);
    let code = TestCode::new(endless(), None);
    for rest_ms in [0, 5, 40, 80] {
        std::thread::sleep(Duration::from_millis(rest_ms));
        let mut endless = call(&code, vec![], ResultType::Void);
        endless.cpu_limit = Duration::from_millis(1);
        assert!(is_trap(&run(&pool, endless), TrapKind::Timeout));
    }
}

#[test]
fn a_deadline_that_has_passed_keeps_the_code_from_running() {
    let pool = pool(1, 8);
    let mut late = call(&TestCode::new(ud2(), None), vec![], ResultType::Void);
    late.deadline = Some(Instant::now());
    let done = wait(pool.submit(late).unwrap());
    assert_eq!((done.outcome, done.wall), (Outcome::DeadlineBeforeStart, Duration::ZERO));
    assert_eq!(pool.stats().late, 1);
}

#[test]
fn a_dropped_ticket_stops_the_running_call_and_lets_its_code_go() {
    let pool = pool(1, 8);
    let (cell, code) = (Cell::default(), TestCode::new(enter_cell(), None));
    let ticket = submit(&pool, &code, vec![cell.arg()]);
    eventually("the call runs", || cell.entered() == 1);
    assert!(ticket.started());
    drop(ticket);
    eventually("it is stopped", || pool.stats().cancelled == 1 && pool.stats().running == 0);
    assert_eq!(Arc::strong_count(&code), 1);
    assert_eq!(pool.stats().timeouts(), 0, "that was no timeout");
}

#[test]
fn a_dropped_ticket_takes_the_waiting_call_out_of_the_queue() {
    let pool = pool(1, 2);
    let (cell, code) = (Cell::default(), TestCode::new(enter_cell(), None));
    let running = submit(&pool, &code, vec![cell.arg()]);
    eventually("the first runs", || cell.entered() == 1);
    let waiting = submit(&pool, &code, vec![cell.arg()]);
    assert!(!waiting.started());
    assert_eq!(pool.stats().queued, 1);
    drop(waiting);
    assert_eq!((pool.stats().queued, Arc::strong_count(&code)), (0, 2));
    cell.open();
    assert!(matches!(wait(running).outcome, Outcome::Returned { .. }));
    assert_eq!(cell.entered(), 1, "the cancelled call never ran");
}

#[test]
fn a_full_queue_refuses_at_once_and_gives_the_call_back() {
    let pool = pool(1, 1);
    let (cell, code) = (Cell::default(), TestCode::new(enter_cell(), None));
    let running = submit(&pool, &code, vec![cell.arg()]);
    eventually("the first runs", || cell.entered() == 1);
    let waiting = submit(&pool, &code, vec![cell.arg()]);
    let rejected = pool.submit(call(&code, vec![cell.arg()], ResultType::U32)).unwrap_err();
    assert_eq!(rejected.refusal, Refusal::Saturated { queue_max: 1 });
    assert_eq!(rejected.call.args, [cell.arg()]);
    cell.open();
    for ticket in [running, waiting] {
        assert!(matches!(wait(ticket).outcome, Outcome::Returned { .. }));
    }
}

#[test]
fn a_tenant_whose_queue_is_full_is_refused_and_others_are_not() {
    let pool: TestPool = Pool::start(ExecConfig { queue_tenant_max: 1, ..config(1, 8) }).unwrap();
    let (cell, code) = (Cell::default(), TestCode::new(enter_cell(), None));
    let running = submit(&pool, &code, vec![cell.arg()]);
    eventually("the first runs", || cell.entered() == 1);
    let waiting = submit(&pool, &code, vec![cell.arg()]);
    let rejected = pool.submit(call(&code, vec![cell.arg()], ResultType::U32)).unwrap_err();
    assert_eq!(rejected.refusal, Refusal::TenantSaturated { queue_tenant_max: 1 });
    let other = submit(&pool, &TestCode::of_tenant(enter_cell(), 9), vec![cell.arg()]);
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.tenants_queued, stats.refused, stats.refused_tenant), (2, 2, 0, 1));
    cell.open();
    for ticket in [running, waiting, other] {
        assert!(matches!(wait(ticket).outcome, Outcome::Returned { .. }));
    }
}

#[test]
fn long_calls_of_one_tenant_leave_the_spare_executor_to_another() {
    let pool: TestPool = Pool::start(ExecConfig { spare_executors: 1, ..config(2, 8) }).unwrap();
    let (cell, code) = (Cell::default(), TestCode::new(enter_cell(), None));
    let tickets: Vec<_> = (0..5).map(|_| submit(&pool, &code, vec![cell.arg()])).collect();
    eventually("two run", || cell.entered() == 2);
    let other = TestCode::of_tenant(identity(), 9);
    for value in 0..100 {
        assert_eq!(number(&pool, &other, vec![Arg::U64(value)]), value);
    }
    assert_eq!((cell.entered(), pool.stats().queued), (2, 3), "no third one");
    cell.open();
    for ticket in tickets {
        assert!(matches!(wait(ticket).outcome, Outcome::Returned { .. }));
    }
}

#[test]
fn calls_on_serial_data_never_overlap_and_leave_the_executors_to_others() {
    let pool = pool(2, 8);
    let (cell, code) = (Cell::default(), TestCode::new(enter_cell(), Some(SERIAL)));
    let tickets: Vec<_> = (0..3).map(|_| submit(&pool, &code, vec![cell.arg()])).collect();
    eventually("the first runs", || cell.entered() == 1);
    let other = TestCode::new(identity(), None);
    for value in 0..100 {
        assert_eq!(number(&pool, &other, vec![Arg::U64(value)]), value);
    }
    assert_eq!((cell.entered(), pool.stats().queued), (1, 2));
    cell.open();
    for ticket in tickets {
        assert!(matches!(wait(ticket).outcome, Outcome::Returned { .. }));
    }
    assert_eq!((cell.entered(), code.restores.load(Ordering::SeqCst)), (3, 0));
}

#[test]
fn calls_on_reentrant_data_overlap() {
    let pool = pool(2, 8);
    let (cell, code) = (Cell::default(), TestCode::new(enter_cell(), Some(REENTRANT)));
    let tickets: Vec<_> = (0..2).map(|_| submit(&pool, &code, vec![cell.arg()])).collect();
    eventually("both run", || cell.entered() == 2);
    cell.open();
    for ticket in tickets {
        assert!(matches!(wait(ticket).outcome, Outcome::Returned { .. }));
    }
}

#[test]
fn data_is_restored_after_a_trap_a_timeout_and_a_cancel_before_the_next_call() {
    let pool = pool(2, 8);
    let restores = |code: &Arc<TestCode>| code.restores.load(Ordering::SeqCst);
    let trapping = TestCode::new(ud2(), Some(SERIAL));
    assert!(is_trap(&run(&pool, call(&trapping, vec![], ResultType::Void)), TrapKind::Ill));
    assert_eq!(restores(&trapping), 1);
    let looping = TestCode::new(endless(), Some(SERIAL));
    let mut timed = call(&looping, vec![], ResultType::Void);
    timed.cpu_limit = Duration::from_millis(1);
    assert!(is_trap(&run(&pool, timed), TrapKind::Timeout));
    assert_eq!(restores(&looping), 1);
    let (cell, waiting) = (Cell::default(), TestCode::new(enter_cell(), Some(SERIAL)));
    let ticket = submit(&pool, &waiting, vec![cell.arg()]);
    eventually("it runs", || cell.entered() == 1);
    let next = submit(&pool, &waiting, vec![cell.arg()]);
    drop(ticket);
    eventually("the next one runs", || cell.entered() == 2);
    assert_eq!(restores(&waiting), 1, "restored before the next call began");
    cell.open();
    assert!(matches!(wait(next).outcome, Outcome::Returned { .. }));
    assert_eq!(restores(&waiting), 1, "a call that returned restores nothing");
}

#[test]
fn reentrant_data_is_restored_only_when_the_other_calls_have_ended() {
    let pool = pool(2, 8);
    let (cell, staying) = (Cell::default(), TestCode::new(enter_cell(), Some(REENTRANT)));
    let trapping = TestCode::new(ud2(), Some(REENTRANT));
    let stays = submit(&pool, &staying, vec![cell.arg()]);
    eventually("it runs", || cell.entered() == 1);
    assert!(is_trap(&run(&pool, call(&trapping, vec![], ResultType::Void)), TrapKind::Ill));
    let next = submit(&pool, &staying, vec![cell.arg()]);
    assert!(!next.started(), "dirty data admits nothing");
    assert_eq!(trapping.restores.load(Ordering::SeqCst) + staying.restores.load(Ordering::SeqCst), 0);
    cell.open();
    assert!(matches!(wait(stays).outcome, Outcome::Returned { .. }));
    assert!(matches!(wait(next).outcome, Outcome::Returned { .. }));
    assert_eq!(staying.restores.load(Ordering::SeqCst), 1, "by the last one that ran");
}

#[test]
fn drain_refuses_new_calls_waits_for_the_old_and_tells_if_time_ran_out() {
    let pool = pool(1, 8);
    let (cell, code) = (Cell::default(), TestCode::new(enter_cell(), None));
    let tickets: Vec<_> = (0..3).map(|_| submit(&pool, &code, vec![cell.arg()])).collect();
    eventually("the first runs", || cell.entered() == 1);
    assert!(!pool.drain(Instant::now() + Duration::from_millis(5)));
    let rejected = pool.submit(call(&code, vec![cell.arg()], ResultType::U32)).unwrap_err();
    assert_eq!(rejected.refusal, Refusal::Draining);
    cell.open();
    assert!(pool.drain(Instant::now() + Duration::from_secs(60)));
    for ticket in tickets {
        assert!(matches!(wait(ticket).outcome, Outcome::Returned { .. }));
    }
    assert_eq!(pool.stats().returned, 3);
}

#[test]
fn a_pool_that_goes_away_stops_what_runs_and_answers_what_waits() {
    let pool = pool(2, 8);
    let code = TestCode::new(endless(), Some(SERIAL));
    let tickets: Vec<_> = (0..4).map(|_| submit(&pool, &code, vec![])).collect();
    eventually("one runs", || pool.stats().running == 1);
    drop(pool);
    for ticket in tickets {
        assert_eq!(wait(ticket).outcome, Outcome::Cancelled);
    }
    assert_eq!(Arc::strong_count(&code), 1);
}

#[test]
fn tickets_dropped_at_any_moment_leave_nothing_behind() {
    let pool = pool(2, 64);
    let serial = TestCode::new(endless(), Some(SERIAL));
    let plain = TestCode::new(endless(), None);
    let quick = TestCode::new(identity(), Some(REENTRANT));
    for round in 0..300_u32 {
        let code = [&serial, &plain, &quick][round as usize % 3];
        let ticket = submit(&pool, code, vec![Arg::U32(round)]);
        for _ in 0..round * 7 % 1000 {
            std::hint::spin_loop();
        }
        drop(ticket);
    }
    eventually("all is quiet", || pool.stats().running + pool.stats().queued == 0);
    let codes = [&serial, &plain, &quick].map(Arc::strong_count);
    assert_eq!((pool.stats().calls, codes), (300, [1, 1, 1]));
    assert_eq!(number(&pool, &quick, vec![Arg::U64(5)]), 5);
}
