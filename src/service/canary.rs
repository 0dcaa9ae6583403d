//! Whether code can still be written and run, asked at most once in a while.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long an answer stands. A probe that asks more often costs nothing.
const STANDS: Duration = Duration::from_secs(1);

/// The last answer.
#[derive(Default)]
pub(super) struct Canary(Mutex<Option<Answer>>);

struct Answer {
    at: Instant,
    result: Result<(), String>,
}

impl Canary {
    /// The answer of `try_it`, or the last one if that is fresh. Those who ask meanwhile wait, and get the same.
    pub(super) fn ask(&self, now: Instant, try_it: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        // Each answer is put there whole: after a panic of `try_it` it is still the one before.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = last.as_ref().filter(|it| now.saturating_duration_since(it.at) < STANDS) {
            return answer.result.clone();
        }
        let was_well = last.as_ref().is_none_or(|it| it.result.is_ok());
        let result = try_it();
        match &result {
            Err(error) if was_well => tracing::error!(error, "new code does not run: not ready"),
            Ok(()) if !was_well => tracing::info!("new code runs again"),
            _ => {}
        }
        *last = Some(Answer { at: now, result: result.clone() });
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stands_for_a_second_and_is_then_asked_for_again() {
        let (canary, start) = (Canary::default(), Instant::now());
        let mut tries = 0;
        let mut ask = |after_ms, well| {
            let result = canary.ask(start + Duration::from_millis(after_ms), || {
                tries += 1;
                if well { Ok(()) } else { Err("silent".to_owned()) }
            });
            (result.is_ok(), tries)
        };
        assert_eq!(ask(0, true), (true, 1));
        assert_eq!(ask(999, false), (true, 1));
        assert_eq!(ask(1000, false), (false, 2));
        assert_eq!(ask(1999, true), (false, 2));
        assert_eq!(ask(2000, true), (true, 3));
        assert_eq!(ask(500, false), (true, 3), "a clock that others read earlier asks nothing");
    }
}
