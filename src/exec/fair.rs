//! Whose turn it is: ready calls by tenant, a plain value without clocks.
//!
//! Each tenant has a *virtual time*: how long its calls have held executors, in nanoseconds. The tenant with the least is
//! served first, so those that always have calls waiting get equal shares of the executors' time, however long or many
//! their calls are. A call that runs counts as it goes on, so nothing need be known of calls beforehand. A tenant that comes
//! back begins no earlier than the least among those that are active: it neither saves up turns while it rests
//! nor pays for time that nobody else wanted, but what it owes to others it still owes; nor does one that was active all
//! the time pay for more than a moment of what it used while there was room for all. That is the order of Linux's CFS
//! and of start-time fair queueing (Goyal, Vin, Cheng 1996), without weights.
//!
//! Code cannot be preempted for another tenant, so a few executors are *spare*: beyond the others they take only calls of
//! tenants that run nothing. One tenant with long calls cannot hold them all.
//!
//! Within a tenant calls of a higher priority go first, but only so often in a row: a priority orders a tenant's own calls
//! and gains nothing over others, and nothing waits for ever.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::call::Priority;
use super::schedule::Entry;

/// What a call costs its tenant at least, in nanoseconds: about what handing it over takes.
const COST_MIN_NS: u64 = 1_000;
/// How far a tenant that runs calls beside the executors may be ahead of those that wait.
const LEAD_NS: u64 = 1_000_000;
/// How far a tenant may be ahead of the least of those that are active when calls begin to wait: what it used while there
/// was room nobody else wanted.
const LAG_NS: u64 = 100_000_000;
/// So many calls of higher priority in a row pass one that waits.
pub(super) const PASSED_MAX: u32 = 16;
/// Tenants without a call that are remembered, for what they owe. Of more, those that owe the least are forgotten.
const RESTING_MAX: usize = 256;
/// Room for calls that a tenant without any keeps.
const ROOM_KEPT: usize = 16;

const CLASSES: usize = Priority::ALL.len();

#[derive(Debug)]
struct Tenant<J> {
    /// Ready calls, by priority.
    ready: [VecDeque<Entry<J>>; CLASSES],
    /// How often calls of another priority have passed the first one of each.
    passed: [u32; CLASSES],
    /// Calls that wait, ready or not.
    waiting: usize,
    running: u32,
    /// Sum of when they began, in nanoseconds.
    began_sum_ns: u128,
    /// Without the calls that run.
    virtual_ns: u64,
}

impl<J> Tenant<J> {
    fn new() -> Tenant<J> {
        Tenant {
            ready: std::array::from_fn(|_| VecDeque::new()),
            passed: [0; CLASSES],
            waiting: 0,
            running: 0,
            began_sum_ns: 0,
            virtual_ns: 0,
        }
    }

    fn is_ready(&self) -> bool {
        self.ready.iter().any(|calls| !calls.is_empty())
    }

    fn is_resting(&self) -> bool {
        self.waiting == 0 && self.running == 0
    }

    /// With what the running calls have used up to now.
    fn virtual_now_ns(&self, now_ns: u64) -> u64 {
        let running_ns = (u128::from(self.running) * u128::from(now_ns)).saturating_sub(self.began_sum_ns);
        self.virtual_ns.saturating_add(u64::try_from(running_ns).unwrap_or(u64::MAX))
    }

    /// The next call: of the highest priority, unless one below has been passed too often.
    fn pop(&mut self) -> Option<Entry<J>> {
        let some = |class: &usize| !self.ready[*class].is_empty();
        let overdue = (0..CLASSES).filter(some).find(|class| self.passed[*class] >= PASSED_MAX);
        let class = overdue.or_else(|| (0..CLASSES).rev().find(some))?;
        for other in 0..CLASSES {
            let is_passed = other != class && !self.ready[other].is_empty();
            self.passed[other] = if is_passed { self.passed[other] + 1 } else { 0 };
        }
        self.ready[class].pop_front()
    }
}

/// Ready calls by tenant.
#[derive(Debug)]
pub(super) struct Fair<J> {
    tenants: HashMap<u64, Tenant<J>>,
    /// Tenants with ready calls that run nothing, by virtual time.
    fresh: BTreeSet<(u64, u64)>,
    /// Tenants that run something: no more than there are executors.
    busy: Vec<u64>,
    /// Tenants without a call, by virtual time.
    resting: BTreeSet<(u64, u64)>,
    /// The least virtual time at which a tenant may begin; never falls.
    floor_ns: u64,
    /// Executors that any tenant may hold; those beyond are spare.
    regular: usize,
    ready: usize,
    running: usize,
    /// Whether an executor was free for any tenant since calls began to wait the last time.
    had_room: bool,
    /// The latest time that is known.
    now_ns: u64,
}

impl<J> Fair<J> {
    /// Nothing is ready; `regular` executors are not spare, at least 1.
    pub(super) fn new(regular: usize) -> Fair<J> {
        Fair {
            tenants: HashMap::new(),
            fresh: BTreeSet::new(),
            busy: Vec::new(),
            resting: BTreeSet::new(),
            floor_ns: 0,
            regular,
            ready: 0,
            running: 0,
            had_room: true,
            now_ns: 0,
        }
    }

    /// Calls that are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// Calls that run.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// How many executors would find a call if they looked now, at least; 0 only if none would.
    pub(super) fn takeable(&self) -> usize {
        self.ready.min(self.regular.saturating_sub(self.running)).max(self.fresh.len())
    }

    /// Calls of the tenant that wait, ready or not.
    pub(super) fn waiting_of(&self, tenant: u64) -> usize {
        self.tenants.get(&tenant).map_or(0, |it| it.waiting)
    }

    /// Tenants with a call that waits.
    pub(super) fn tenants_waiting(&self) -> usize {
        self.tenants.values().filter(|it| it.waiting > 0).count()
    }

    /// Tenants of which something is remembered.
    #[cfg(test)]
    pub(super) fn tenants_known(&self) -> usize {
        self.tenants.len()
    }

    /// A call of the tenant waits from now on; it is not ready yet.
    pub(super) fn arrive(&mut self, tenant: u64, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        let known = self.tenants.entry(tenant).or_insert_with(Tenant::new);
        if known.is_resting() {
            self.resting.remove(&(known.virtual_ns, tenant));
            let least = self.least_active_ns(now_ns);
            self.floor_ns = self.floor_ns.max(least.unwrap_or_default());
        }
        if let Some(known) = self.tenants.get_mut(&tenant) {
            if known.is_resting() {
                known.virtual_ns = known.virtual_ns.max(self.floor_ns);
            }
            known.waiting += 1;
        }
    }

    /// Whether a call of the tenant may run at once beside the executors: none of its calls waits, and it is not ahead
    /// of tenants that do wait.
    pub(super) fn may_pass(&mut self, tenant: u64, now_ns: u64) -> bool {
        if self.ready == 0 && self.running == 0 {
            return self.waiting_of(tenant) == 0;
        }
        self.arrive(tenant, now_ns);
        let least_ns = self.least_active_ns(now_ns).filter(|_| self.ready > 0);
        let may_pass = self.tenants.get(&tenant).is_some_and(|it| {
            let is_ahead = least_ns.is_some_and(|least_ns| it.virtual_now_ns(now_ns) > least_ns + LEAD_NS);
            it.waiting == 1 && !is_ahead
        });
        self.leave(tenant);
        may_pass
    }

    /// The tenant has used so much beside the executors.
    pub(super) fn charge(&mut self, tenant: u64, cost_ns: u64) {
        // One that is not known begins as the equal of the others whatever it used.
        let Some(known) = self.tenants.get_mut(&tenant) else { return };
        let before_ns = known.virtual_ns;
        known.virtual_ns += cost_ns.max(COST_MIN_NS);
        let after_ns = known.virtual_ns;
        for order in [&mut self.fresh, &mut self.resting] {
            if order.remove(&(before_ns, tenant)) {
                order.insert((after_ns, tenant));
            }
        }
    }

    /// A waiting call that is not ready goes without having run.
    pub(super) fn leave(&mut self, tenant: u64) {
        if let Some(known) = self.tenants.get_mut(&tenant) {
            known.waiting -= 1;
        }
        self.rest(tenant);
    }

    /// A waiting call becomes ready.
    pub(super) fn push(&mut self, entry: Entry<J>) {
        let tenant = entry.tenant;
        if self.ready + self.running < self.regular {
            self.had_room = true;
        } else if std::mem::take(&mut self.had_room) {
            self.forgive(tenant);
        }
        let Some(known) = self.tenants.get_mut(&tenant) else { return debug_assert!(false, "it has arrived") };
        known.ready[entry.priority as usize].push_back(entry);
        if known.running == 0 {
            self.fresh.insert((known.virtual_ns, tenant));
        }
        self.ready += 1;
    }

    /// The next call, for a free executor: it runs from now on.
    pub(super) fn take(&mut self, now_ns: u64) -> Option<Entry<J>> {
        let tenant = self.next(now_ns)?;
        let known = self.tenants.get_mut(&tenant)?;
        let entry = known.pop()?;
        if known.running == 0 {
            self.fresh.remove(&(known.virtual_ns, tenant));
            self.busy.push(tenant);
        }
        known.waiting -= 1;
        known.running += 1;
        known.began_sum_ns += u128::from(now_ns);
        self.ready -= 1;
        self.running += 1;
        Some(entry)
    }

    /// A call that was taken at `began_ns` has left its executor.
    pub(super) fn end(&mut self, tenant: u64, began_ns: u64, now_ns: u64) {
        let Some(known) = self.tenants.get_mut(&tenant) else { return debug_assert!(false, "it has run") };
        known.running -= 1;
        known.began_sum_ns -= u128::from(began_ns);
        known.virtual_ns += now_ns.saturating_sub(began_ns).max(COST_MIN_NS);
        self.running -= 1;
        self.now_ns = self.now_ns.max(now_ns);
        self.had_room |= self.ready + self.running < self.regular;
        if known.running == 0 {
            self.busy.retain(|it| *it != tenant);
            if known.is_ready() {
                self.fresh.insert((known.virtual_ns, tenant));
            }
        }
        self.rest(tenant);
    }

    /// Takes a ready call out; it still waits.
    pub(super) fn pull(&mut self, tenant: u64, id: u64) -> Option<Entry<J>> {
        let queues = &mut self.tenants.get_mut(&tenant)?.ready;
        let find = |calls: &mut VecDeque<Entry<J>>| {
            let at = calls.iter().position(|entry| entry.id == id)?;
            calls.remove(at)
        };
        let entry = queues.iter_mut().find_map(find)?;
        self.pulled(tenant, 1);
        Some(entry)
    }

    /// Takes all ready calls out for which `is_wanted` says so, in the order of their ids; they still wait.
    pub(super) fn pull_all(&mut self, is_wanted: impl Fn(&Entry<J>) -> bool) -> Vec<Entry<J>> {
        let mut all = Vec::new();
        let tenants: Vec<u64> = self.tenants.iter().filter(|(_, it)| it.is_ready()).map(|(id, _)| *id).collect();
        for tenant in tenants {
            let Some(known) = self.tenants.get_mut(&tenant) else { continue };
            let before = all.len();
            for calls in &mut known.ready {
                let (out, stay): (VecDeque<_>, VecDeque<_>) = calls.drain(..).partition(&is_wanted);
                *calls = stay;
                all.extend(out);
            }
            let count = all.len() - before;
            self.pulled(tenant, count);
        }
        all.sort_unstable_by_key(|entry| entry.id);
        all
    }

    /// Whether the call is ready.
    pub(super) fn is_ready(&self, tenant: u64, id: u64) -> bool {
        let queues = self.tenants.get(&tenant).map(|it| &it.ready);
        queues.is_some_and(|it| it.iter().flatten().any(|entry| entry.id == id))
    }

    /// Calls begin to wait after there was room, first one of this tenant: nobody is ahead of the least by more than the
    /// lag.
    fn forgive(&mut self, tenant: u64) {
        let now_ns = self.now_ns;
        let own_ns = self.tenants.get(&tenant).map(|it| it.virtual_now_ns(now_ns));
        let Some(least_ns) = self.least_active_ns(now_ns).into_iter().chain(own_ns).min() else { return };
        let most_ns = least_ns.saturating_add(LAG_NS);
        let mut ahead = self.busy.clone();
        ahead.push(tenant);
        for order in [&mut self.fresh, &mut self.resting] {
            let moved: Vec<u64> = order.split_off(&(most_ns, 0)).into_iter().map(|(_, tenant)| tenant).collect();
            order.extend(moved.iter().map(|tenant| (most_ns, *tenant)));
            ahead.extend(moved);
        }
        for tenant in ahead {
            if let Some(known) = self.tenants.get_mut(&tenant) {
                let ahead_ns = known.virtual_now_ns(now_ns).saturating_sub(most_ns);
                known.virtual_ns = known.virtual_ns.saturating_sub(ahead_ns);
            }
        }
    }

    fn pulled(&mut self, tenant: u64, count: usize) {
        self.ready -= count;
        if let Some(known) = self.tenants.get(&tenant).filter(|it| it.running == 0 && !it.is_ready()) {
            self.fresh.remove(&(known.virtual_ns, tenant));
        }
    }

    /// The tenant whose turn it is.
    fn next(&self, now_ns: u64) -> Option<u64> {
        let fresh = self.fresh.first().copied();
        if self.running >= self.regular {
            return fresh.map(|(_, tenant)| tenant);
        }
        let busy = self.busy.iter().filter_map(|tenant| {
            let known = self.tenants.get(tenant).filter(|it| it.is_ready())?;
            Some((known.virtual_now_ns(now_ns), *tenant))
        });
        busy.chain(fresh).min().map(|(_, tenant)| tenant)
    }

    /// The least virtual time of those who run or could.
    fn least_active_ns(&self, now_ns: u64) -> Option<u64> {
        let busy = self.busy.iter().filter_map(|tenant| self.tenants.get(tenant));
        let busy = busy.map(|it| it.virtual_now_ns(now_ns));
        busy.chain(self.fresh.first().map(|(virtual_ns, _)| *virtual_ns)).min()
    }

    /// Notes that a tenant has no calls any more, if that is so.
    fn rest(&mut self, tenant: u64) {
        let Some(known) = self.tenants.get_mut(&tenant).filter(|it| it.is_resting()) else { return };
        known.passed = [0; CLASSES];
        for calls in &mut known.ready {
            calls.shrink_to(ROOM_KEPT);
        }
        self.resting.insert((known.virtual_ns, tenant));
        if self.ready == 0 && self.running == 0 {
            // Nobody waited for anybody: all begin anew as equals.
            let most = self.resting.last().map_or(0, |(virtual_ns, _)| *virtual_ns);
            self.floor_ns = self.floor_ns.max(most);
        }
        if self.resting.len() > RESTING_MAX
            && let Some((_, tenant)) = self.resting.pop_first()
        {
            self.tenants.remove(&tenant);
        }
    }
}
