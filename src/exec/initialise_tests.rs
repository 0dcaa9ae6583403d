//! What must run before the first call.
#![allow(unsafe_code)] // The tests' own machine code stands between linker symbols.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::call::{Arg, Call, Callee, Outcome, Priority, ResultType, Scalar, Step};
use super::pool::Pool;
use super::test_code::{TestCode, assemble, config, eventually, import, wait};
use super::trap::{Trap, TrapKind, TrapStage};
use super::writable::{Writable, Writables};

/// Bytes from one function to the next.
const STRIDE: usize = 64;
/// Where functions of [`code`] are.
const MAIN: u64 = 0;
const FORTY_TWO: u64 = 1;
const FAULT: u64 = 2;
const SPIN: u64 = 3;
const KEEP: u64 = 4;
const BORROW: u64 = 5;

assemble!(identity, "mov rax, rdi", "ret");
assemble!(forty_two, "mov eax, 42", "ret");
assemble!(fault, "xor eax, eax", "mov eax, [rax]", "ret");
assemble!(spin, "2:", "pause", "jmp 2b");

fn absolute(function: u64) -> [u8; 12] {
    let mut code = [0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xd0]; // movabs rax, function; call rax
    code[2..10].copy_from_slice(&function.to_le_bytes());
    code
}

fn address_of(name: &str) -> u64 {
    match import(name) {
        Arg::U64(address) => address,
        other => panic!("{other:?}"),
    }
}

fn code() -> Vec<u8> {
    // sub rsp, 8; mov edi, 100; call malloc; add rsp, 8; ret
    let allocate = [&[0x48, 0x83, 0xec, 8, 0xbf, 100, 0, 0, 0][..], &absolute(address_of("malloc"))].concat();
    let end = [0x48, 0x83, 0xc4, 8, 0xc3];
    // mov rdi, rax; call free
    let release = [&[0x48, 0x89, 0xc7][..], &absolute(address_of("free"))].concat();
    let (keep, borrow) = ([&allocate[..], &end].concat(), [&allocate[..], &release, &end].concat());
    let mut code = Vec::new();
    for (at, function) in (1..).zip([identity(), forty_two(), fault(), spin(), &keep, &borrow]) {
        assert!(function.len() <= STRIDE);
        code.extend_from_slice(function);
        code.resize(at * STRIDE, 0xcc);
    }
    code
}

/// A callee that must be initialised.
struct Starting {
    code: Arc<TestCode>,
    writable: Option<Writable>,
    steps: Mutex<Vec<(u64, Option<u64>)>>,
    /// How often a step was asked for.
    asked: AtomicUsize,
    /// The steps come again and again.
    endless: AtomicBool,
    done: AtomicBool,
    resolved: Mutex<Vec<(u64, u64)>>,
    finished: AtomicUsize,
    restored: AtomicUsize,
}

#[derive(Clone)]
struct Started(Arc<Starting>);

impl Started {
    fn new(steps: Vec<(u64, Option<u64>)>, writable: Option<Writable>) -> Started {
        Started(Arc::new(Starting {
            code: TestCode::new(&code(), None),
            writable,
            steps: Mutex::new(steps),
            asked: AtomicUsize::new(0),
            endless: AtomicBool::new(false),
            done: AtomicBool::new(false),
            resolved: Mutex::default(),
            finished: AtomicUsize::new(0),
            restored: AtomicUsize::new(0),
        }))
    }

    fn address(&self, function: u64) -> u64 {
        self.0.code.entry() + function * STRIDE as u64
    }

    fn call(&self, function: u64, cpu_limit: Duration) -> Call<Started> {
        let (callee, entry) = (self.clone(), self.address(function));
        let (args, result, wall_cap) = (vec![Arg::U64(7)], ResultType::U64, Duration::from_secs(60));
        Call { callee, entry, priority: Priority::Normal, args, result, cpu_limit, wall_cap, deadline: None }
    }
}

impl Callee for Started {
    fn tenant(&self) -> u64 {
        0
    }

    fn code_range(&self) -> Range<u64> {
        self.0.code.code_range()
    }

    fn writable(&self) -> Writables {
        let serial = Writable { id: 9, reentrant: false };
        if self.is_pending() { Some(serial).into() } else { self.0.writable.into() }
    }

    fn restore(&self, _id: u64) {
        self.0.restored.fetch_add(1, Ordering::SeqCst);
    }

    fn is_pending(&self) -> bool {
        !self.0.done.load(Ordering::SeqCst)
    }

    fn step(&self, index: usize) -> Option<Step> {
        let steps = self.0.steps.lock().unwrap();
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let index = if self.0.endless.load(Ordering::SeqCst) { index % steps.len() } else { index };
        let &(function, slot) = steps.get(index)?;
        Some(Step { entry: self.address(function), slot })
    }

    fn resolve(&self, slot: u64, address: u64) -> bool {
        self.0.resolved.lock().unwrap().push((slot, address));
        slot != 666
    }

    fn initialised(&self) {
        self.0.finished.fetch_add(1, Ordering::SeqCst);
        self.0.done.store(true, Ordering::SeqCst);
    }
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(5);

fn pool(executors: usize) -> Pool<Started> {
    Pool::start(config(executors, 256)).unwrap()
}

fn run(pool: &Pool<Started>, call: Call<Started>) -> Outcome {
    wait(pool.submit(call).ok().unwrap()).outcome
}

fn seven() -> Outcome {
    Outcome::Returned { value: Some(Scalar::U64(7)), buffers: Vec::new() }
}

fn trap(outcome: Outcome) -> Trap {
    match outcome {
        Outcome::Trap(trap) => trap,
        other => panic!("expected a trap, not {other:?}"),
    }
}

#[test]
fn of_many_first_calls_at_once_one_runs_the_steps_in_their_order_and_all_return() {
    let pool = pool(4);
    let callee = Started::new(vec![(FORTY_TWO, Some(8)), (BORROW, None), (FORTY_TWO, Some(16))], None);
    let tickets: Vec<_> = (0..64).map(|_| pool.submit(callee.call(MAIN, LONG)).ok().unwrap()).collect();
    for ticket in tickets {
        assert_eq!(wait(ticket).outcome, seven());
    }
    assert_eq!(*callee.0.resolved.lock().unwrap(), [(8, 42), (16, 42)]);
    assert_eq!((callee.0.finished.load(Ordering::SeqCst), callee.0.restored.load(Ordering::SeqCst)), (1, 0));
}

#[test]
fn a_step_that_faults_ends_the_call_in_its_own_name_and_the_next_call_tries_again() {
    let pool = pool(2);
    let callee = Started::new(vec![(FORTY_TWO, None), (FAULT, None)], None);
    for tries in 1..=3 {
        let trap = trap(run(&pool, callee.call(MAIN, LONG)));
        assert_eq!((trap.kind, trap.stage), (TrapKind::Segv, TrapStage::Initialiser));
        assert_eq!(trap.pc, callee.address(FAULT) + 2);
        eventually("the data is restored", || callee.0.restored.load(Ordering::SeqCst) == tries);
    }
    callee.0.steps.lock().unwrap().pop();
    assert_eq!(run(&pool, callee.call(MAIN, LONG)), seven());
    let trap = trap(run(&pool, callee.call(FAULT, LONG)));
    assert_eq!(trap.stage, TrapStage::Call, "afterwards faults are the call's own");
    assert_eq!(callee.0.finished.load(Ordering::SeqCst), 1);
}

#[test]
fn a_step_without_an_end_and_steps_without_number_are_stopped_by_the_limits_of_the_call() {
    let pool = pool(1);
    for step in [SPIN, FORTY_TWO] {
        let callee = Started::new(vec![(step, None)], None);
        callee.0.endless.store(true, Ordering::SeqCst);
        let trap = trap(run(&pool, callee.call(MAIN, SHORT)));
        assert_eq!((trap.kind, trap.stage), (TrapKind::Timeout, TrapStage::Initialiser));
        assert!(callee.is_pending());
    }
}

#[test]
fn a_step_that_keeps_memory_is_told_of_and_one_that_gives_it_back_is_not() {
    let pool = pool(1);
    let callee = Started::new(vec![(BORROW, None), (KEEP, None)], None);
    let trap = trap(run(&pool, callee.call(MAIN, LONG)));
    assert_eq!((trap.kind, trap.stage, trap.pc), (TrapKind::Abort, TrapStage::KeptMemory, callee.address(KEEP)));
    assert!(callee.is_pending());
}

#[test]
fn a_slot_that_cannot_be_written_is_a_trap_of_its_resolver() {
    let pool = pool(1);
    let callee = Started::new(vec![(FORTY_TWO, Some(666))], None);
    let trap = trap(run(&pool, callee.call(MAIN, LONG)));
    assert_eq!((trap.kind, trap.stage, trap.pc), (TrapKind::Bus, TrapStage::Initialiser, callee.address(FORTY_TWO)));
}

#[test]
fn once_initialised_calls_without_data_overlap_also_those_that_waited_for_it() {
    let pool = pool(3);
    let callee = Started::new(vec![(FORTY_TWO, None)], None);
    // All three find it pending: the step and then the loop of the first hold the lane.
    let tickets: Vec<_> = (0..3).map(|_| pool.submit(callee.call(SPIN, LONG)).ok().unwrap()).collect();
    eventually("all three run", || pool.stats().running == 3 && pool.stats().queued == 0);
    drop(tickets);
    eventually("they are stopped", || pool.stats().cancelled == 3);
}

#[test]
fn a_call_that_is_cancelled_while_it_initialises_leaves_it_to_the_next() {
    let pool = pool(2);
    let callee = Started::new(vec![(SPIN, None)], None);
    let first = pool.submit(callee.call(MAIN, LONG)).ok().unwrap();
    let second = pool.submit(callee.call(MAIN, LONG)).ok().unwrap();
    eventually("the first is at its step", || first.started() && callee.0.asked.load(Ordering::SeqCst) > 0);
    assert_eq!((pool.stats().running, pool.stats().queued), (1, 1), "the other waits without an executor");
    *callee.0.steps.lock().unwrap() = vec![(FORTY_TWO, None)];
    drop(first);
    assert_eq!(wait(second).outcome, seven());
    assert_eq!((callee.0.finished.load(Ordering::SeqCst), callee.0.restored.load(Ordering::SeqCst)), (1, 1));
}
