//! A worker's life: it waits to be an executor's, gives everything else up, and then runs one call after the other.
//!
//! It runs them by the same trampoline as a thread of the daemon would, under the same handler. What it has of writable
//! memory while code runs is its slot, its window, and the stack and variables of its own thread; it has no descriptor.
//! After each call it finds what it needs anew, from memory that code cannot write, so a call that wrote over all that it
//! could reach breaks itself at most, or ends the process before the call counts as done.
//!
//! **Fetched instructions.** A barrier of the daemon reaches the daemon's threads alone. But memory is published again only
//! after a barrier later than its last call. So an executor keeps the number of the latest barrier before each call; if it
//! is that of the worker's last call, then nothing that the worker has run was written over since, and if not, the worker
//! first drops what its processor has fetched.
#![allow(unsafe_code)] // References that outlive every function of the process.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use libc::pid_t;

use super::seclude::{self, Block};
use super::site::{JOINED, Site};
use super::step::Step;
use super::system;
use super::zygote::ExitOnPanic;
use crate::confine::install;
use crate::exec::arch::{self, Constants};
use crate::exec::confine::this_daemon;
use crate::exec::filter::worker_program;
use crate::exec::registers;
use crate::exec::signals::ThreadSignals;
use crate::exec::stack::{Slot, all_slots};

/// With which a process ends itself; a worker that could not be set up, with that of a [`Step`].
pub(super) mod status {
    /// The zygote could not be set up.
    pub(crate) const SET_UP: i32 = 81;
    /// A panic.
    pub(crate) const PANIC: i32 = 82;
}

/// Bytes that may be mapped beyond what is.
const SPARE_BYTES: u64 = 1 << 20;

/// What the worker needs for each call. Not written after the first.
struct Own {
    slot: *const Slot,
    constants: Constants,
    blocked_signals: u64,
    filtered: bool,
    block: Block,
}

static OWN: AtomicPtr<Own> = AtomicPtr::new(ptr::null_mut());

/// All of it, in a process that was forked for it.
pub(super) fn live(site: &Site, cell: usize, daemon: pid_t) -> ! {
    let _end = ExitOnPanic;
    let cell = site.cell(cell);
    let set_up = prepare(daemon).and_then(|()| join(site, wait_for_executor(cell), cell));
    if let Err(step) = set_up {
        system::exit(step.status());
    }
    loop {
        turn();
    }
}

/// What can be done before it is known whose it will be.
fn prepare(daemon: pid_t) -> Result<(), Step> {
    // Where that cannot be said, they go when they go.
    let _ = system::go_first();
    Step::Descriptors.of(system::close_all(0, u32::MAX))?;
    system::set_name(c"codecached-work");
    // Not inherited.
    Step::Parent.of(system::bind_to(daemon))?;
    Step::NoProcesses.of(system::limit(libc::RLIMIT_NPROC, 0))
}

/// The executor's number.
fn wait_for_executor(cell: &AtomicU32) -> usize {
    loop {
        match cell.load(Ordering::Acquire) {
            0 => system::futex_wait(cell, 0, None),
            number => return number as usize - 1,
        }
    }
}

/// Becomes an executor's worker: gives up what is not that one's, and can gain nothing afterwards.
fn join(site: &Site, executor: usize, cell: &AtomicU32) -> Result<(), Step> {
    let slot = Step::Executor.of(site.slot(executor).ok_or(()))?;
    let (all, own_slot) = (all_slots(), slot.whole());
    let above = own_slot.end..all.end;
    Step::OtherSlots.of(system::unmap(all.start..own_slot.start).and_then(|()| system::unmap(above)))?;
    for (number, window) in site.windows().iter().enumerate() {
        match number == executor {
            true => Step::OwnWindow.of(window.take())?,
            false => Step::OtherWindows.of(window.leave())?,
        }
    }
    let signals = Step::Signals.of(ThreadSignals::enter(slot.alt_stack()))?;
    let context = &slot.frame().context;
    context.init();
    let filtered = site.is_filtered;
    let (constants, blocked_signals) = (context.constants(), signals.blocked);
    let own = Own { slot, constants, blocked_signals, filtered, block: Block::copy() };
    let own: &'static Own = Box::leak(Box::new(own));
    std::mem::forget(signals);
    OWN.store(ptr::from_ref(own).cast_mut(), Ordering::Release);
    let limited = system::mapped_bytes().and_then(|bytes| system::limit(libc::RLIMIT_AS, bytes + SPARE_BYTES));
    Step::Addresses.of(limited)?;
    let program = worker_program(&site.code, this_daemon(false));
    let mut shared = site.windows()[executor].taken();
    shared.extend([own_slot, site.cradle()]);
    Step::ReadOnly.of(seclude::keep_little(&own.block, &shared))?;
    std::mem::forget(shared);
    // From here on nothing is allocated or freed.
    Step::NoDescriptors.of(system::limit(libc::RLIMIT_NOFILE, 0))?;
    // All that depends on the machine's state has been done: how this process ends is no more a matter of its set-up.
    cell.store(JOINED, Ordering::Release);
    system::futex_wake(cell);
    Step::Cradle.of(system::unmap(site.cradle()))?;
    // Only this last step is not what each call takes.
    let confined = if filtered { install(&program) } else { Ok(()) };
    std::mem::forget(program);
    Step::Filter.of(confined)
}

/// One call. Comes back, if at all, with nothing on the stack that is needed.
#[inline(never)]
fn turn() {
    // SAFETY: stored by `join`, never freed, and not written since.
    let Own { slot, constants, blocked_signals, filtered, .. } = unsafe { &*OWN.load(Ordering::Relaxed) };
    // SAFETY: the site is the daemon's at the fork, which this process never comes back to drop.
    let frame = unsafe { &**slot }.frame();
    frame.desk.next();
    let before = frame.desk.before();
    if before.refetches {
        arch::refetch();
    }
    frame.restore(constants, *blocked_signals, *filtered);
    if before.clears_registers {
        registers::clear();
    }
    frame.context.run();
    done();
}

/// The call is over. By now the stack has brought it here.
#[inline(never)]
fn done() {
    // SAFETY: as above.
    let Own { slot, block, .. } = unsafe { &*OWN.load(Ordering::Relaxed) };
    block.restore();
    // SAFETY: as above.
    unsafe { &**slot }.frame().desk.finish();
}
