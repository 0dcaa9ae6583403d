//! Who must not run inline for now: a plain value without clocks.

/// Time without inline calls after one that had to be ended: such a one takes a lent thread up to three ticks of the
/// watchdog.
const PAUSE_NS: u64 = 50_000_000;
/// The same for calls of the tenant that it was of.
const PAUSE_TENANT_NS: u64 = 1_000_000_000;
/// Tenants that are remembered so. There are no more, as all pause together in between.
const PAUSED_MAX: usize = (PAUSE_TENANT_NS / PAUSE_NS) as usize;

/// Who must not run inline for now.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    all_until_ns: u64,
    /// Tenant and end, the latest last.
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

    /// A call of the tenant had to be ended.
    pub(super) fn begin(&mut self, tenant: u64, now_ns: u64) {
        self.all_until_ns = self.all_until_ns.max(now_ns + PAUSE_NS);
        self.tenants.retain(|(paused, until_ns)| *paused != tenant && now_ns < *until_ns);
        if self.tenants.len() == PAUSED_MAX {
            self.tenants.remove(0);
        }
        self.tenants.push((tenant, now_ns + PAUSE_TENANT_NS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_call_that_was_ended_all_pause_and_its_tenant_longer() {
        let mut pauses = Pauses::default();
        assert!(!pauses.holds(1, 0));
        pauses.begin(1, 100);
        assert!(pauses.holds(1, 100) && pauses.holds(2, 100));
        assert!(pauses.holds(1, 100 + PAUSE_NS) && !pauses.holds(2, 100 + PAUSE_NS));
        assert!(!pauses.holds(1, 100 + PAUSE_TENANT_NS));
    }

    #[test]
    fn no_more_tenants_are_remembered_than_can_pause_at_once() {
        let mut pauses = Pauses::default();
        (0..1000).for_each(|tenant| pauses.begin(tenant, tenant));
        assert_eq!(pauses.tenants.len(), PAUSED_MAX);
        assert!(pauses.holds(999, 1000 + PAUSE_NS) && !pauses.holds(1, 1000 + PAUSE_NS));
    }
}
