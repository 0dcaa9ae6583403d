//! Failures that tests ask for: the n-th system call of a kind, and if wanted all after it, fail in this thread.

use std::cell::RefCell;

use nix::errno::Errno;

use super::system::Call;

/// Which calls fail, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) call: Call,
    /// Counted from 0.
    pub(super) first: u32,
    /// The first alone, or all from it on.
    pub(super) all: bool,
    pub(super) errno: Errno,
}

impl Plan {
    /// All calls of this kind fail.
    pub(super) fn always(call: Call, errno: Errno) -> Self {
        Self { call, first: 0, all: true, errno }
    }
}

#[derive(Default)]
struct Active {
    plans: Vec<Plan>,
    /// How often each plan's kind was called.
    seen: Vec<u32>,
    failed: u32,
}

thread_local! {
    static ACTIVE: RefCell<Active> = RefCell::default();
}

/// Runs this with failures; answers also how many there were.
pub(super) fn with<T>(plans: &[Plan], body: impl FnOnce() -> T) -> (T, u32) {
    ACTIVE.set(Active { plans: plans.to_vec(), seen: vec![0; plans.len()], failed: 0 });
    let done = body();
    (done, ACTIVE.take().failed)
}

/// What a call of this kind is to answer.
pub(super) fn check(call: Call) -> Result<(), Errno> {
    ACTIVE.with_borrow_mut(|Active { plans, seen, failed }| {
        let Some(at) = plans.iter().position(|it| it.call == call) else { return Ok(()) };
        let (plan, now) = (plans[at], seen[at]);
        seen[at] += 1;
        if now == plan.first || plan.all && now > plan.first {
            *failed += 1;
            return Err(plan.errno);
        }
        Ok(())
    })
}

#[cfg(test)]
#[path = "faults_tests.rs"]
mod tests;
