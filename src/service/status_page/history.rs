//! The last minutes, a point for each interval. Pure.

use std::{collections::VecDeque, time::Instant};

use crate::metrics::LatencyCounts;

/// Ten minutes of points every two seconds: about 20 KiB.
pub(super) const POINTS_MAX: usize = 300;

/// What the layers had counted at a moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) charged_bytes: u64,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) calls: u64,
    pub(super) installs: u64,
    pub(super) evictions: u64,
    pub(super) latencies: LatencyCounts,
}

/// What happened between two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) charged_bytes: u64,
    /// `None` without lookups.
    pub(super) hit_ratio: Option<f64>,
    /// Per second, as the next two.
    pub(super) calls: f64,
    pub(super) installs: f64,
    pub(super) evictions: f64,
    /// `None` without requests, as the next.
    pub(super) median_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
}

/// The points, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    last: Option<(Instant, Sample)>,
    points: VecDeque<Point>,
}

impl History {
    pub(super) fn add(&mut self, now: Instant, sample: Sample) {
        if let Some((then, before)) = &self.last {
            let seconds = now.saturating_duration_since(*then).as_secs_f64();
            // Two samples of one moment: nothing can be said of what is between.
            if seconds <= 0.0 {
                return;
            }
            if self.points.len() == POINTS_MAX {
                self.points.pop_front();
            }
            self.points.push_back(between(before, &sample, seconds));
        }
        self.last = Some((now, sample));
    }

    pub(super) fn column<T>(&self, of: impl Fn(&Point) -> T) -> Vec<T> {
        self.points.iter().map(of).collect()
    }
}

fn between(before: &Sample, after: &Sample, seconds: f64) -> Point {
    let rate = |count: fn(&Sample) -> u64| count(after).saturating_sub(count(before)) as f64 / seconds;
    let (hits, misses) = (rate(|it| it.hits), rate(|it| it.misses));
    let latencies = after.latencies.since(&before.latencies);
    let quantile = |share| latencies.quantile(share).map(|it| it.as_secs_f64());
    Point {
        charged_bytes: after.charged_bytes,
        hit_ratio: (hits + misses > 0.0).then(|| hits / (hits + misses)),
        calls: rate(|it| it.calls),
        installs: rate(|it| it.installs),
        evictions: rate(|it| it.evictions),
        median_seconds: quantile(0.5),
        p99_seconds: quantile(0.99),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{BuildInfo, Metrics};

    fn sample(count: u64) -> Sample {
        let latencies = Metrics::new(&BuildInfo::default()).latencies();
        Sample {
            charged_bytes: 10 * count,
            hits: 3 * count,
            misses: count,
            calls: 8 * count,
            installs: 2 * count,
            evictions: 0,
            latencies,
        }
    }

    #[test]
    fn a_point_is_what_happened_between_two_samples_for_each_second() {
        let (mut history, start) = (History::default(), Instant::now());
        history.add(start, sample(1));
        assert!(history.column(|it| it.calls).is_empty());
        history.add(start + Duration::from_secs(4), sample(3));
        history.add(start + Duration::from_secs(4), sample(9));
        history.add(start + Duration::from_secs(5), sample(3));
        assert_eq!(history.column(|it| it.calls), [4.0, 0.0]);
        assert_eq!(history.column(|it| it.charged_bytes), [30, 30]);
        assert_eq!(history.column(|it| it.hit_ratio), [Some(0.75), None]);
        assert_eq!(history.column(|it| it.p99_seconds), [None, None]);
    }

    #[test]
    fn the_oldest_points_go() {
        let (mut history, start) = (History::default(), Instant::now());
        for second in 0..=POINTS_MAX as u64 + 7 {
            history.add(start + Duration::from_secs(second), sample(second));
        }
        let charged = history.column(|it| it.charged_bytes);
        assert_eq!((charged.len(), charged[0]), (POINTS_MAX, 80));
    }
}
