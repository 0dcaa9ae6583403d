//! The atomics of what has a model: the models put others in their place.

pub(super) use std::sync::atomic::{AtomicU64, Ordering};
