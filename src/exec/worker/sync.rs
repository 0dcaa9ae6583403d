//! What the desk asks of the standard library and the kernel: the model puts others in their place.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

pub(super) use std::sync::atomic::{AtomicU32, Ordering, fence};

pub(super) use super::system::{futex_wait, futex_wake};

/// Time that either side spins: longer than it takes to wake a thread, so that sleeping would not have been faster.
const SPIN: Duration = Duration::from_micros(15);
/// Looks between two looks at the clock.
const SPINS: u32 = 64;

/// Looks until `is_so`, for a moment. False: it was not.
pub(super) fn spin(is_so: impl Fn() -> bool) -> bool {
    let looks = || {
        (0..SPINS).any(|_| {
            spin_loop();
            is_so()
        })
    };
    if is_so() || looks() {
        return true;
    }
    let end = Instant::now() + SPIN;
    while Instant::now() < end {
        if looks() {
            return true;
        }
    }
    false
}
