//! What the queue needs of the standard library. A file of its own, so that a model can put its own in its place.

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(super) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
pub(super) use std::thread::{Thread, current, park};

/// How often an executor looks for the next call before it sleeps. Short: the executors share their cores with the
/// threads that would bring that call.
pub(super) const SPINS: usize = 50;
