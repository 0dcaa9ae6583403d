//! Time in ticks of the processor's counter.
#![allow(unsafe_code)] // Reads that counter.

use std::{
    arch::x86_64::{__rdtscp, _mm_lfence},
    time::{Duration, Instant},
};

const CALIBRATION: Duration = Duration::from_millis(50);
const CALIBRATION_READS: usize = 20_001;

/// The counter. What runs before is over, and what comes after has not begun.
pub(crate) fn ticks() -> u64 {
    let mut core = 0;
    // SAFETY: Every x86-64 processor with this crate's system calls has the instruction, and it writes to `core` alone.
    let now = unsafe { __rdtscp(&mut core) };
    // SAFETY: SSE2 belongs to x86-64.
    unsafe { _mm_lfence() };
    now
}

/// Nanoseconds since an instant.
pub(crate) fn ns_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e9
}

/// How ticks become nanoseconds.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    ns_per_tick: f64,
    /// What two reads in a row differ by; subtracted.
    own_ticks: u64,
}

impl Clock {
    pub(crate) fn calibrate() -> Self {
        let (start, from) = (Instant::now(), ticks());
        while start.elapsed() < CALIBRATION {}
        let ns_per_tick = ns_since(start) / (ticks() - from) as f64;
        let mut reads: Vec<u64> = (0..CALIBRATION_READS)
            .map(|_| {
                let from = ticks();
                ticks() - from
            })
            .collect();
        let (_, &mut own_ticks, _) = reads.select_nth_unstable(CALIBRATION_READS / 2);
        Self { ns_per_tick, own_ticks }
    }

    pub(crate) fn own_ns(self) -> f64 {
        self.own_ticks as f64 * self.ns_per_tick
    }
}

/// Durations of many operations.
pub(crate) struct Ticks {
    clock: Clock,
    durations: Vec<u64>,
}

impl Ticks {
    pub(crate) fn with_capacity(clock: Clock, operations: usize) -> Self {
        Self { clock, durations: Vec::with_capacity(operations) }
    }

    pub(crate) fn add(&mut self, from: u64, to: u64) {
        self.durations.push((to - from).saturating_sub(self.clock.own_ticks));
    }

    pub(crate) fn count(&self) -> usize {
        self.durations.len()
    }

    pub(crate) fn mean_ns(&self) -> f64 {
        let sum: f64 = self.durations.iter().map(|&it| it as f64).sum();
        sum / self.durations.len() as f64 * self.clock.ns_per_tick
    }

    /// The duration that a share `p` of all is below.
    pub(crate) fn quantile_ns(&mut self, p: f64) -> f64 {
        let at = ((p * self.durations.len() as f64) as usize).min(self.durations.len() - 1);
        let (_, &mut duration, _) = self.durations.select_nth_unstable(at);
        duration as f64 * self.clock.ns_per_tick
    }
}
