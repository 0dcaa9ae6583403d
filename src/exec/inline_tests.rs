//! Calls on the thread of their caller.
#![allow(unsafe_code)] // The tests' own machine code stands between linker symbols; a signal is raised.

use std::cell::RefCell;
use std::ptr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::call::{Arg, Call, Outcome, ResultType, Scalar};
use super::confine::FilterPolicy;
use super::counts::PoolStats;
use super::lend_thread;
use super::pace::SHORT_MIN;
use super::pool::Pool;
use super::start::ExecConfig;
use super::system_call::{Abi, SystemCall};
use super::test_code::{TestCode, TestPool, assemble, call, config, eventually, number, pool, wait};
use super::trap::TrapKind;
use super::writable::Writable;

assemble!(identity, "mov rax, rdi", "ret");
assemble!(
    /// `(turns)`: that many turns of a loop.
    turns, "mov rax, rdi", "2:", "test rdi, rdi", "jz 3f", "dec rdi", "jmp 2b", "3:", "ret"
);
assemble!(
    /// `(value)`: returns what is not zero.
    trap_at_zero, "mov rax, rdi", "test rdi, rdi", "jz 2f", "ret", "2:", "ud2"
);
assemble!(
    /// `(value)`: returns what is not zero, else the id of the process.
    process_id_at_zero, "mov rax, rdi", "test rdi, rdi", "jz 2f", "ret", "2:", "mov eax, 39", "syscall", "ret"
);
assemble!(
    /// `(buffer, value)`: stores the value, and ends never if it is not zero.
    store_and_stay, "mov [rdi], rsi", "2:", "test rsi, rsi", "jnz 2b", "ret"
);

/// How often the watchdog may be late.
const LATE_MAX: u32 = 20;

/// Every call that ends is taken for short, however loaded the machine is.
fn inline_config() -> ExecConfig {
    ExecConfig { inline_threads: 2, inline: Duration::from_secs(60), ..config(2, 64) }
}

fn inline_pool() -> TestPool {
    Pool::start(inline_config()).unwrap()
}

/// Runs `body` on a thread that is lent.
fn on_lent_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            lend_thread();
            body()
        });
        thread.join().unwrap()
    })
}

/// Calls until the function counts as short; answers the statistics then.
fn proven(pool: &TestPool, code: &Arc<TestCode>, args: &[Arg]) -> PoolStats {
    for _ in 0..SHORT_MIN {
        assert!(matches!(outcome(pool, call(code, args.to_vec(), ResultType::U64)), Outcome::Returned { .. }));
    }
    pool.stats()
}

fn outcome(pool: &TestPool, call: Call<Arc<TestCode>>) -> Outcome {
    wait(pool.submit(call).unwrap()).outcome
}

#[test]
fn a_function_that_was_short_runs_where_it_is_called() {
    let (pool, code) = (inline_pool(), TestCode::new(identity(), None));
    on_lent_thread(|| {
        assert_eq!(proven(&pool, &code, &[Arg::U64(1)]).inline, 0, "not before it is known");
        for value in 0..50 {
            let ticket = pool.submit(call(&code, vec![Arg::U64(value)], ResultType::U64)).unwrap();
            assert!(ticket.started());
            let done = wait(ticket);
            assert_eq!(done.outcome, Outcome::Returned { value: Some(Scalar::U64(value)), buffers: vec![] });
            assert_eq!(done.queued, Duration::ZERO);
            assert!(done.cpu <= done.wall);
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.inline, stats.inline_moved, stats.calls), (50, 0, 50 + SHORT_MIN));
    assert_eq!(Arc::strong_count(&code), 1);
}

#[test]
fn a_call_that_takes_long_after_all_runs_again_on_an_executor_and_gives_the_same() {
    let (pool, code) = (inline_pool(), TestCode::new(turns(), None));
    on_lent_thread(|| {
        proven(&pool, &code, &[Arg::U64(1)]);
        let many = 200_000_000;
        let mut began = Instant::now();
        // Where the watchdog comes late, the call ends before it takes too long.
        for _ in 0..LATE_MAX {
            began = Instant::now();
            assert_eq!(number(&pool, &code, vec![Arg::U64(many)]), many);
            if pool.stats().inline_moved > 0 {
                break;
            }
        }
        let stats = pool.stats();
        assert_eq!((stats.inline_moved, stats.timeouts()), (1, 0));
        proven(&pool, &code, &[Arg::U64(1)]);
        assert_eq!(number(&pool, &code, vec![Arg::U64(1)]), 1);
        // On a slow machine the pause is over by now.
        let still_paused = began.elapsed() < Duration::from_millis(500);
        assert!(!still_paused || pool.stats().inline == stats.inline, "its tenant pauses");
    });
}

#[test]
fn code_without_end_does_not_keep_the_thread_and_its_buffers_begin_anew() {
    let (pool, code) = (inline_pool(), TestCode::new(store_and_stay(), None));
    on_lent_thread(|| {
        proven(&pool, &code, &[Arg::Out(8), Arg::U64(0)]);
        let mut endless = call(&code, vec![Arg::Out(8), Arg::U64(1)], ResultType::Void);
        endless.cpu_limit = Duration::from_millis(20);
        assert!(matches!(outcome(&pool, endless), Outcome::Trap(trap) if trap.kind == TrapKind::Timeout));
        let stats = pool.stats();
        assert_eq!((stats.inline_moved, stats.timeouts()), (1, 1), "ended there, and again where it ran to its limit");
        assert_eq!(number(&pool, &TestCode::new(identity(), None), vec![Arg::U64(7)]), 7);
    });
}

#[test]
fn a_trap_is_the_answer_and_the_function_has_to_prove_itself_again() {
    let (pool, code) = (inline_pool(), TestCode::new(trap_at_zero(), None));
    on_lent_thread(|| {
        proven(&pool, &code, &[Arg::U64(5)]);
        let trap = outcome(&pool, call(&code, vec![Arg::U64(0)], ResultType::U64));
        assert!(matches!(trap, Outcome::Trap(trap) if trap.kind == TrapKind::Ill), "{trap:?}");
        assert_eq!((pool.stats().inline, pool.stats().trapped(TrapKind::Ill)), (1, 1));
        assert_eq!(proven(&pool, &code, &[Arg::U64(5)]).inline, 1);
        assert_eq!(number(&pool, &code, vec![Arg::U64(6)]), 6);
        assert_eq!(pool.stats().inline, 2, "a trap pauses nobody");
    });
}

#[test]
fn a_system_call_by_code_is_a_trap_with_its_number_and_the_thread_goes_on_with_its_own() {
    let (pool, code) = (inline_pool(), TestCode::new(process_id_at_zero(), None));
    let other = TestCode::new(identity(), None);
    on_lent_thread(|| {
        proven(&pool, &other, &[Arg::U64(1)]);
        for round in 1..=3 {
            let before = proven(&pool, &code, &[Arg::U64(1)]);
            let Outcome::Trap(trap) = outcome(&pool, call(&code, vec![Arg::U64(0)], ResultType::U64)) else {
                panic!("it is let through")
            };
            assert_eq!((trap.kind, trap.signal), (TrapKind::Syscall, libc::SIGSYS));
            let told = SystemCall { abi: Abi::X86_64, number: libc::SYS_getpid as u32 };
            assert_eq!(trap.system_call, Some(told));
            let stats = pool.stats();
            assert_eq!((stats.inline, stats.trapped(TrapKind::Syscall)), (before.inline + 1, round));
            // What no executor could do.
            assert!(std::fs::read_to_string("/proc/thread-self/status").unwrap().contains("Seccomp:\t2"));
            assert_eq!(thread::scope(|scope| scope.spawn(std::process::id).join().unwrap()), std::process::id());
            assert_eq!(number(&pool, &other, vec![Arg::U64(round)]), round);
            assert_eq!(pool.stats().inline, before.inline + 2);
        }
    });
    assert_eq!(pool.stats().refused_system_calls, 0);
}

#[test]
fn without_the_filter_system_calls_by_code_are_made_here_too() {
    let without = ExecConfig { filter: FilterPolicy::Off, ..inline_config() };
    let (pool, code) = (Pool::start(without).unwrap(), TestCode::new(process_id_at_zero(), None));
    on_lent_thread(|| {
        proven(&pool, &code, &[Arg::U64(1)]);
        assert_eq!(number(&pool, &code, vec![Arg::U64(0)]), u64::from(std::process::id()));
        assert_eq!(pool.stats().inline, 1);
    });
}

#[test]
fn what_could_not_run_again_or_is_large_or_is_called_elsewhere_goes_to_an_executor() {
    let pool = inline_pool();
    let serial = TestCode::new(identity(), Some(Writable { id: 1, reentrant: true }));
    let plain = TestCode::new(identity(), None);
    on_lent_thread(|| {
        proven(&pool, &serial, &[Arg::U64(1)]);
        proven(&pool, &plain, &[Arg::U64(1)]);
        number(&pool, &serial, vec![Arg::U64(1)]);
        number(&pool, &plain, vec![Arg::Out(1 << 20)]);
        let mut short = call(&plain, vec![Arg::U64(1)], ResultType::U64);
        short.cpu_limit = Duration::from_micros(100);
        outcome(&pool, short);
        let mut soon = call(&plain, vec![Arg::U64(1)], ResultType::U64);
        soon.deadline = Some(Instant::now() + Duration::from_millis(1));
        outcome(&pool, soon);
        assert_eq!(pool.stats().inline, 0);
    });
    // As often as it takes: the one with a deadline may have met it.
    let elsewhere = || (0..SHORT_MIN).for_each(|_| assert_eq!(number(&pool, &plain, vec![Arg::U64(1)]), 1));
    thread::scope(|scope| scope.spawn(elsewhere).join().unwrap());
    assert_eq!(pool.stats().inline, 0, "that thread was not lent");
    on_lent_thread(|| number(&pool, &plain, vec![Arg::U64(1)]));
    assert_eq!(pool.stats().inline, 1);
}

#[test]
fn more_lent_threads_than_seats_and_a_second_pool_of_one_thread_go_to_executors() {
    let (first, second) = (inline_pool(), inline_pool());
    let code = TestCode::new(identity(), None);
    on_lent_thread(|| {
        proven(&first, &code, &[Arg::U64(1)]);
        proven(&second, &code, &[Arg::U64(1)]);
        number(&first, &code, vec![Arg::U64(1)]);
        number(&second, &code, vec![Arg::U64(1)]);
        assert_eq!((first.stats().inline, second.stats().inline), (1, 0));
    });
    for _ in 0..5 {
        on_lent_thread(|| number(&first, &code, vec![Arg::U64(1)]));
    }
    assert_eq!(first.stats().inline, 2, "of two seats the other one");
}

#[test]
fn nothing_runs_inline_where_that_is_switched_off_or_the_pool_drains() {
    let (off, draining) = (pool(1, 64), inline_pool());
    let code = TestCode::new(identity(), None);
    on_lent_thread(|| {
        proven(&off, &code, &[Arg::U64(1)]);
        number(&off, &code, vec![Arg::U64(1)]);
        proven(&draining, &code, &[Arg::U64(1)]);
        assert!(draining.drain(Instant::now() + Duration::from_secs(60)));
        assert!(draining.submit(call(&code, vec![Arg::U64(1)], ResultType::U64)).is_err());
    });
    assert_eq!((off.stats().inline, draining.stats().inline), (0, 0));
}

#[test]
fn a_thread_outlives_the_pool_that_it_was_lent_to() {
    let (pool, code) = (inline_pool(), TestCode::new(identity(), None));
    on_lent_thread(|| {
        proven(&pool, &code, &[Arg::U64(1)]);
        number(&pool, &code, vec![Arg::U64(1)]);
        assert_eq!(pool.stats().inline, 1);
        drop(pool);
        // The handler runs on the alternate stack, which lies in the seat.
        // SAFETY: a signal that is ignored where it is nobody's.
        assert_eq!(unsafe { libc::raise(libc::SIGURG) }, 0);
    });
}

#[test]
fn who_drains_waits_for_an_inline_call() {
    let (pool, code) = (inline_pool(), TestCode::new(turns(), None));
    on_lent_thread(|| {
        proven(&pool, &code, &[Arg::U64(1)]);
        thread::scope(|scope| {
            let drained = scope.spawn(|| {
                eventually("it runs", || pool.stats().inline_running == 1 || pool.stats().inline_moved == 1);
                pool.drain(Instant::now() + Duration::from_secs(60))
            });
            let ended = pool.submit(call(&code, vec![Arg::U64(100_000_000)], ResultType::U64));
            // Taken again before the drain began, or refused after.
            if let Ok(ticket) = ended {
                assert!(matches!(wait(ticket).outcome, Outcome::Returned { .. }));
            }
            assert!(drained.join().unwrap());
        });
    });
}

#[test]
fn a_lent_thread_that_ends_leaves_no_alternate_stack_to_handlers() {
    /// Looks when what is local to the thread is dropped; locals that came first are dropped last.
    struct Look(mpsc::Sender<libc::c_int>);
    impl Drop for Look {
        fn drop(&mut self) {
            let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
            // SAFETY: writes to a local.
            unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) };
            let _ = self.0.send(stack.ss_flags);
        }
    }
    thread_local!(static LOOK: RefCell<Option<Look>> = const { RefCell::new(None) });
    let (pool, code) = (inline_pool(), TestCode::new(identity(), None));
    let (sender, flags) = mpsc::channel();
    for is_first in [true, false] {
        let sender = sender.clone();
        on_lent_thread(|| {
            let put = |sender| LOOK.with_borrow_mut(|look| *look = Some(Look(sender)));
            if is_first {
                put(sender.clone());
            }
            proven(&pool, &code, &[Arg::U64(1)]);
            assert_eq!(number(&pool, &code, vec![Arg::U64(1)]), 1);
            if !is_first {
                put(sender);
            }
        });
    }
    let flags = [flags.recv().unwrap(), flags.recv().unwrap()];
    assert_eq!(flags, [libc::SS_DISABLE; 2]);
    assert_eq!(pool.stats().inline, 2 + SHORT_MIN);
}

#[test]
fn with_a_watchdog_that_looks_rarely_nothing_runs_inline() {
    let rare = ExecConfig { tick: Duration::from_millis(6), ..inline_config() };
    let (pool, code) = (Pool::start(rare).unwrap(), TestCode::new(identity(), None));
    on_lent_thread(|| (0..3).for_each(|_| assert_eq!(proven(&pool, &code, &[Arg::U64(1)]).inline, 0)));
}
