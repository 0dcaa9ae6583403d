//! Times of requests in buckets that can be read back, for the status page: what the exporter keeps, only a scrape shows.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Shorter times fall into the first bucket.
const FIRST_EXPONENT: u32 = 10;
/// Longer ones, from 69 s on, into the last.
const LAST_EXPONENT: u32 = 35;
/// Buckets between a power of two and the next: a quantile is at most a fifth too high.
const STEPS: u32 = 4;
const BUCKETS: usize = ((LAST_EXPONENT - FIRST_EXPONENT + 1) * STEPS + 1) as usize;

/// Counts since the start.
#[derive(Debug)]
pub(super) struct Latencies([AtomicU64; BUCKETS]);

impl Latencies {
    pub(super) fn new() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }

    pub(super) fn record(&self, duration: Duration) {
        self.0[bucket(duration)].fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self) -> LatencyCounts {
        LatencyCounts(self.0.each_ref().map(|count| count.load(Relaxed)))
    }
}

/// Counts of times, by their length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyCounts([u64; BUCKETS]);

impl LatencyCounts {
    /// What came after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.0;
        counts.iter_mut().zip(earlier.0).for_each(|(count, before)| *count = count.saturating_sub(before));
        Self(counts)
    }

    /// A time that this share of all (0 to 1) is not longer than, at most a fifth too high; `None` if there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.0.iter().sum();
        let wanted = ((all as f64 * share).ceil() as u64).max(1);
        let mut sum = 0;
        let found = self.0.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        found.map(longest)
    }
}

fn bucket(duration: Duration) -> usize {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let exponent = nanos.checked_ilog2().unwrap_or(0);
    if exponent < FIRST_EXPONENT {
        return 0;
    }
    let step = (nanos >> (exponent - STEPS.ilog2())) as usize % STEPS as usize;
    (((exponent - FIRST_EXPONENT) * STEPS) as usize + step + 1).min(BUCKETS - 1)
}

/// The end of a bucket.
fn longest(bucket: usize) -> Duration {
    let (exponent, step) = (bucket as u32 / STEPS + FIRST_EXPONENT, bucket as u32 % STEPS);
    Duration::from_nanos((u64::from(STEPS + step)) << (exponent - STEPS.ilog2()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_behind_each_of_its_times_and_at_most_a_quarter_above() {
        let mut nanos = 1_u64 << FIRST_EXPONENT;
        while nanos < 1 << LAST_EXPONENT {
            let end = longest(bucket(Duration::from_nanos(nanos))).as_nanos() as u64;
            assert!(end > nanos && end <= nanos + nanos / 4 + 1, "{nanos}: {end}");
            nanos += nanos / 7 + 1;
        }
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_came_between_two_readings() {
        let latencies = Latencies::new();
        assert_eq!(latencies.read().quantile(0.5), None);
        latencies.record(Duration::from_secs(5));
        let before = latencies.read();
        (0..99).for_each(|_| latencies.record(Duration::from_micros(100)));
        latencies.record(Duration::from_millis(10));
        let between = latencies.read().since(&before);
        let near = |share, micros: u64| {
            let found = between.quantile(share).unwrap().as_micros() as u64;
            assert!((micros..micros + micros / 4).contains(&found), "{share}: {found}");
        };
        near(0.5, 100);
        near(0.99, 100);
        near(1.0, 10_000);
    }
}
