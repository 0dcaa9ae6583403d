//! How long to wait between attempts.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Attempts of one call, the first included.
const ATTEMPTS_MAX: u32 = 4;

/// Upper bound of the first pause: about what a daemon needs to come back under a supervisor that restarts at once.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Upper bound of a pause of our own choice.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A daemon that asks for more than this is not waited for.
const ASKED_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The pauses of one call.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure; none if there have been enough. Never shorter than `asked`.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.failures += 1;
        let asked = asked.unwrap_or_default();
        if self.failures >= ATTEMPTS_MAX || asked > ASKED_PAUSE_MAX {
            return None;
        }
        let pause = (FIRST_PAUSE * 2u32.pow(self.failures - 1)).min(PAUSE_MAX);
        // Half of it is random, so that clients that failed together do not come back together.
        Some(asked + pause.mul_f64(0.5 + 0.5 * fraction()))
    }
}

/// A random number in 0..1; the standard library seeds each `RandomState` differently.
fn fraction() -> f64 {
    let bits = RandomState::new().hash_one(0u8);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_pauses_grow_and_then_it_is_over() {
        let mut backoff = Backoff::default();
        for bound in [50, 100, 200].map(Duration::from_millis) {
            let pause = backoff.next(None).unwrap();
            assert!(pause >= bound / 2 && pause <= bound, "{pause:?} for a bound of {bound:?}");
        }
        assert_eq!(backoff.next(None), None);
    }

    #[test]
    fn what_the_daemon_asks_for_is_waited_unless_it_is_too_long() {
        let asked = Duration::from_secs(2);
        assert!(Backoff::default().next(Some(asked)).unwrap() >= asked);
        assert_eq!(Backoff::default().next(Some(ASKED_PAUSE_MAX * 2)), None);
    }

    #[test]
    fn fractions_differ_and_stay_below_one() {
        let drawn: Vec<f64> = (0..100).map(|_| fraction()).collect();
        assert!(drawn.iter().all(|drawn| (0.0..1.0).contains(drawn)), "{drawn:?}");
        assert!(drawn.iter().any(|other| *other != drawn[0]), "{drawn:?}");
    }
}
