//! Who must not run inline for now: a plain value without clocks.

/// Time without inline calls after one that had to be ended: such a one takes a lent thread up to three ticks of the
/// watchdog.
const PAUSE_NS: u64 = 50_000_000;
/// The same for calls of the tenant that it was of.
const PAUSE_TENANT_NS: u64 = 1_000_000_000;
/// Both are at least so many times as long as the call held its thread.
const PAUSE_PER_HELD: u64 = 16;
/// Tenants that are remembered so. As all pause together in between, there are more only if many lent threads were held
/// at once, or for long.
const PAUSED_MAX: usize = 64;

/// Who must not run inline for now.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    all_until_ns: u64,
    /// Tenant and end.
    tenants: Vec<(u64, u64)>,
}

impl Pauses {
    /// Whether calls of the tenant must go to executors.
    pub(super) fn holds(&self, tenant: u64, now_ns: u64) -> bool {
        now_ns < self.all_until_ns
            || self.tenants.iter().any(|(paused, until_ns)| *paused == tenant && now_ns < *until_ns)
    }

    /// Nothing runs inline any more.
    pub(super) fn begin_for_good(&mut self) {
        self.all_until_ns = u64::MAX;
    }

    /// A call of whomever runs on though it was to end.
    pub(super) fn begin_for_all(&mut self, now_ns: u64) {
        self.all_until_ns = self.all_until_ns.max(now_ns.saturating_add(PAUSE_NS));
    }

    /// A call of the tenant had to be ended, and has held its thread for so long.
    pub(super) fn begin(&mut self, tenant: u64, now_ns: u64, held_ns: u64) {
        let scaled_ns = held_ns.saturating_mul(PAUSE_PER_HELD);
        self.all_until_ns = self.all_until_ns.max(now_ns.saturating_add(PAUSE_NS.max(scaled_ns)));
        let mut until_ns = now_ns.saturating_add(PAUSE_TENANT_NS.max(scaled_ns));
        self.tenants.retain(|(paused, before_ns)| {
            if *paused == tenant {
                until_ns = until_ns.max(*before_ns);
            }
            *paused != tenant && now_ns < *before_ns
        });
        if self.tenants.len() == PAUSED_MAX
            && let Some(first) = (0..PAUSED_MAX).min_by_key(|at| self.tenants[*at].1)
        {
            self.tenants.swap_remove(first);
        }
        self.tenants.push((tenant, until_ns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_call_that_was_ended_all_pause_and_its_tenant_longer() {
        let mut pauses = Pauses::default();
        assert!(!pauses.holds(1, 0));
        pauses.begin(1, 100, 0);
        assert!(pauses.holds(1, 100) && pauses.holds(2, 100));
        assert!(pauses.holds(1, 100 + PAUSE_NS) && !pauses.holds(2, 100 + PAUSE_NS));
        assert!(!pauses.holds(1, 100 + PAUSE_TENANT_NS));
    }

    #[test]
    fn who_held_a_thread_for_longer_pauses_longer() {
        let mut pauses = Pauses::default();
        let held_ns = 2 * PAUSE_TENANT_NS;
        pauses.begin(1, 0, held_ns);
        assert!(pauses.holds(2, PAUSE_PER_HELD * held_ns - 1) && pauses.holds(1, PAUSE_PER_HELD * held_ns - 1));
        pauses.begin(1, 1, 0);
        assert!(pauses.holds(2, PAUSE_PER_HELD * held_ns - 1), "a shorter pause ends none");
        assert!(!pauses.holds(2, PAUSE_PER_HELD * held_ns) && !pauses.holds(1, PAUSE_PER_HELD * held_ns));
    }

    #[test]
    fn all_pause_while_a_call_runs_on_and_for_a_while_after() {
        let mut pauses = Pauses::default();
        pauses.begin_for_all(0);
        pauses.begin_for_all(PAUSE_NS - 1);
        assert!(pauses.holds(1, 2 * PAUSE_NS - 2) && !pauses.holds(1, 2 * PAUSE_NS - 1));
    }

    #[test]
    fn no_more_tenants_are_remembered_than_can_pause_at_once() {
        let mut pauses = Pauses::default();
        (0..1000).for_each(|tenant| pauses.begin(tenant, tenant, 0));
        assert_eq!(pauses.tenants.len(), PAUSED_MAX);
        assert!(pauses.holds(999, 1000 + PAUSE_NS) && !pauses.holds(1, 1000 + PAUSE_NS));
    }
}
