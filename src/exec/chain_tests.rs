//! Faults that are not the code's go to the action that was there before. Each in a process of its own: this test
//! program, started again.
#![allow(unsafe_code)] // Signal handlers, and faults on purpose.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::call::{Outcome, ResultType};
use super::test_code::{TestCode, assemble, call, is_again, pool, run, started_again};
use super::trap::TrapKind;

const EARLIER_HANDLER_STATUS: i32 = 42;

assemble!(null_read, "xor eax, eax", "mov al, [rax]", "ret");

extern "C" fn earlier_handler(_: libc::c_int) {
    // SAFETY: may be called from a handler.
    unsafe { libc::_exit(EARLIER_HANDLER_STATUS) }
}

fn child(test: &str) -> ExitStatus {
    started_again(module_path!(), test).status
}

/// A pool that recovered a fault of code, so the handler is in place and works.
fn recover_once() {
    let pool = pool(1, 4);
    let outcome = run(&pool, call(&TestCode::new(null_read(), None), vec![], ResultType::Void));
    assert!(matches!(outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Segv), "{outcome:?}");
}

fn fault() {
    let nowhere = std::hint::black_box(8_usize) as *const u64;
    // SAFETY: none: the fault is the test.
    std::hint::black_box(unsafe { nowhere.read_volatile() });
}

#[test]
fn an_earlier_handler_gets_a_fault_outside_of_code() {
    if is_again() {
        // SAFETY: the handler only ends the process.
        unsafe { libc::signal(libc::SIGSEGV, earlier_handler as *const () as usize) };
        recover_once();
        fault();
    }
    assert_eq!(child("an_earlier_handler_gets_a_fault_outside_of_code").code(), Some(EARLIER_HANDLER_STATUS));
}

#[test]
fn without_an_earlier_handler_a_fault_outside_of_code_ends_the_process() {
    if is_again() {
        // SAFETY: the default action.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        recover_once();
        fault();
    }
    let status = child("without_an_earlier_handler_a_fault_outside_of_code_ends_the_process");
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}

#[test]
fn a_fault_signal_that_somebody_sends_is_not_taken_for_a_fault_of_code() {
    if is_again() {
        // SAFETY: the handler only ends the process.
        unsafe { libc::signal(libc::SIGBUS, earlier_handler as *const () as usize) };
        recover_once();
        // SAFETY: has no preconditions.
        unsafe { libc::raise(libc::SIGBUS) };
    }
    assert_eq!(
        child("a_fault_signal_that_somebody_sends_is_not_taken_for_a_fault_of_code").code(),
        Some(EARLIER_HANDLER_STATUS)
    );
}

#[test]
fn a_stop_signal_from_elsewhere_does_nothing() {
    if is_again() {
        recover_once();
        // SAFETY: has no preconditions.
        unsafe { libc::raise(super::signals::STOP_SIGNAL) };
        std::process::exit(EARLIER_HANDLER_STATUS);
    }
    assert_eq!(child("a_stop_signal_from_elsewhere_does_nothing").code(), Some(EARLIER_HANDLER_STATUS));
}
