//! Shares of tenants, over a clock that the tests move.

use std::collections::{HashMap, VecDeque};

use super::call::Priority;
use super::fair::PASSED_MAX;
use super::schedule::{Bounds, Entry, NoRoom, Schedule};
use super::writable::Writables;

const MS: u64 = 1_000_000;

/// Executors that run calls of known lengths: a call's job is its length in nanoseconds.
struct Simulation {
    schedule: Schedule<u64>,
    now_ns: u64,
    next_id: u64,
    /// Tenant and end of what each executor runs.
    running: Vec<Option<(u64, u64)>>,
    /// Executors' time by tenant, of calls that have ended.
    used_ns: HashMap<u64, u64>,
    /// Tenants in the order in which their calls were taken.
    taken: Vec<u64>,
}

impl Simulation {
    fn new(executors: usize, spare: usize) -> Simulation {
        let bounds = Bounds { executors, seats: executors, spare, waiting_max: 10_000, waiting_tenant_max: 10_000 };
        Simulation {
            schedule: Schedule::new(bounds),
            now_ns: 0,
            next_id: 1,
            running: vec![None; executors],
            used_ns: HashMap::new(),
            taken: Vec::new(),
        }
    }

    fn submit(&mut self, tenant: u64, length_ns: u64) {
        let id = self.next_id;
        self.next_id += 1;
        let (priority, lanes) = (Priority::Normal, Writables::default());
        let entry = Entry { id, tenant, priority, lanes, job: length_ns };
        assert!(self.schedule.submit(entry, self.now_ns).is_ok());
    }

    /// All free executors look for calls.
    fn dispatch(&mut self) {
        for executor in 0..self.running.len() {
            if self.running[executor].is_some() {
                continue;
            }
            let takeable = self.schedule.takeable();
            let entry = self.schedule.take(executor, self.now_ns);
            assert_eq!(entry.is_some(), takeable > 0, "what is takeable is taken, and nothing else");
            let Some(entry) = entry else { continue };
            self.running[executor] = Some((entry.tenant, self.now_ns + entry.job.max(1)));
            self.taken.push(entry.tenant);
        }
    }

    /// The next call ends, and its tenant is answered.
    fn step(&mut self) -> u64 {
        self.dispatch();
        let next = self.running.iter().enumerate().filter_map(|(at, it)| Some((it.as_ref()?.1, at))).min();
        let (end_ns, executor) = next.expect("something runs");
        let (tenant, _) = self.running[executor].take().expect("it was found");
        let before_ns = self.now_ns;
        self.now_ns = end_ns;
        // Of the call that ends, and of those that go on.
        let running = self.running.iter().flatten().map(|(tenant, _)| *tenant).chain([tenant]);
        for tenant in running {
            *self.used_ns.entry(tenant).or_default() += end_ns - before_ns;
        }
        self.schedule.free(executor, end_ns);
        tenant
    }

    fn used_ns(&self, tenant: u64) -> u64 {
        self.used_ns.get(&tenant).copied().unwrap_or_default()
    }
}

/// A generator of numbers.
fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

#[test]
fn tenants_that_always_wait_get_equal_time_however_long_their_calls_are() {
    for seed in 0..60 {
        let mut random = random(seed);
        let (executors, tenants) = (1 + random(4) as usize, 2 + random(5));
        let mut simulation = Simulation::new(executors, 0);
        let longest: Vec<u64> = (0..tenants).map(|_| 10_u64.pow(3 + random(5) as u32)).collect();
        let most = *longest.iter().max().unwrap();
        for tenant in 0..tenants {
            // More than there are executors, so that it never runs out of waiting calls.
            (0..executors + 1).for_each(|_| simulation.submit(tenant, 1 + random(longest[tenant as usize])));
        }
        for _ in 0..4000 {
            let tenant = simulation.step();
            simulation.submit(tenant, 1 + random(longest[tenant as usize]));
            let used: Vec<u64> = (0..tenants).map(|tenant| simulation.used_ns(tenant)).collect();
            let (least, greatest) = (*used.iter().min().unwrap(), *used.iter().max().unwrap());
            // What runs is not stopped, so at most what all executors together run ahead; and the least cost of a call.
            let bound = (executors as u64 + 1) * (most + 1000) + simulation.taken.len() as u64 * 1000;
            assert!(greatest - least <= bound, "seed {seed}: {used:?}, calls up to {longest:?}, {executors} executors");
        }
    }
}

#[test]
fn a_tenant_that_comes_goes_before_the_further_calls_of_all_others() {
    for seed in 0..60 {
        let mut random = random(seed);
        let (executors, tenants) = (1 + random(4) as usize, 1 + random(6));
        let mut simulation = Simulation::new(executors, 0);
        for _ in 0..200 {
            let (tenant, length) = (random(tenants), 1 + random(100 * MS));
            simulation.submit(tenant, length);
        }
        for _ in 0..random(150) {
            simulation.step();
        }
        simulation.dispatch();
        let (newcomer, before) = (99, simulation.taken.len());
        simulation.submit(newcomer, MS);
        while simulation.taken.last() != Some(&newcomer) {
            simulation.step();
            simulation.dispatch();
            let passed = simulation.taken[before..].iter().position(|it| *it == newcomer);
            let passed = passed.unwrap_or(simulation.taken.len() - before);
            assert!(passed <= executors, "seed {seed}: {passed} calls of others went before, {executors} executors");
            if simulation.taken[before..].contains(&newcomer) {
                break;
            }
        }
    }
}

#[test]
fn between_two_calls_of_a_tenant_that_waits_no_other_gets_much_more_than_it_owed() {
    for seed in 0..40 {
        let mut random = random(seed);
        let mut simulation = Simulation::new(1, 0);
        let length = |tenant: u64| if tenant == 0 { 10 * MS } else { MS / 10 };
        let tenants = 2 + random(4);
        for tenant in 0..tenants {
            (0..2).for_each(|_| simulation.submit(tenant, length(tenant)));
        }
        let mut since: HashMap<u64, u64> = HashMap::new();
        for _ in 0..3000 {
            let tenant = simulation.step();
            simulation.submit(tenant, length(tenant));
            // The tenant of long calls waits until each other one has had as much as its own call took, and no longer.
            match tenant {
                0 => since.clear(),
                other => *since.entry(other).or_default() += length(other),
            }
            let most = since.values().copied().max().unwrap_or_default();
            assert!(most <= length(0) + 2 * length(1), "seed {seed}: {most} ns of one tenant while another waited");
        }
    }
}

#[test]
fn one_call_at_a_time_does_not_shed_what_a_tenant_owes() {
    let mut simulation = Simulation::new(1, 0);
    simulation.submit(1, 100 * MS);
    (0..5).for_each(|_| simulation.submit(2, MS));
    for _ in 0..3000 {
        let tenant = simulation.step();
        simulation.submit(tenant, if tenant == 1 { 100 * MS } else { MS });
    }
    let (long, short) = (simulation.used_ns(1), simulation.used_ns(2));
    assert!(long.abs_diff(short) <= 101 * MS, "{long} and {short} ns");
}

#[test]
fn time_that_nobody_else_wanted_is_not_owed() {
    let mut simulation = Simulation::new(1, 0);
    (0..2).for_each(|_| simulation.submit(1, 10 * MS));
    for _ in 0..1000 {
        assert_eq!(simulation.step(), 1);
        simulation.submit(1, 10 * MS);
    }
    let alone = simulation.used_ns(1);
    (0..3).for_each(|_| simulation.submit(2, MS));
    for _ in 0..1000 {
        let tenant = simulation.step();
        simulation.submit(tenant, if tenant == 1 { 10 * MS } else { MS });
    }
    let (first, second) = (simulation.used_ns(1) - alone, simulation.used_ns(2));
    assert!(first.abs_diff(second) <= 22 * MS, "{first} and {second} ns");
}

#[test]
fn what_active_tenants_used_while_there_was_room_for_all_shuts_none_of_them_out() {
    let mut simulation = Simulation::new(3, 0);
    [1, 1, 2].into_iter().for_each(|tenant| simulation.submit(tenant, 10 * MS));
    for _ in 0..1000 {
        let tenant = simulation.step();
        simulation.submit(tenant, 10 * MS);
    }
    let before = [1, 2].map(|tenant| simulation.used_ns(tenant));
    assert!(before[0] - before[1] > 3000 * MS, "{before:?}");
    (0..4).for_each(|_| [1, 2].into_iter().for_each(|tenant| simulation.submit(tenant, 10 * MS)));
    for _ in 0..100 {
        let tenant = simulation.step();
        simulation.submit(tenant, 10 * MS);
    }
    let used = [1, 2].map(|tenant| simulation.used_ns(tenant) - before[tenant as usize - 1]);
    assert!(used[0].abs_diff(used[1]) <= 100 * MS + 4 * 10 * MS, "{used:?}");
}

#[test]
fn one_tenant_cannot_hold_the_spare_executor_and_another_finds_it_at_once() {
    let mut simulation = Simulation::new(3, 1);
    (0..9).for_each(|_| simulation.submit(1, 60_000 * MS));
    simulation.dispatch();
    assert_eq!(simulation.taken, [1, 1], "of three executors two");
    simulation.submit(2, MS);
    simulation.submit(2, MS);
    simulation.dispatch();
    assert_eq!(simulation.taken, [1, 1, 2], "a tenant that runs nothing, once");
    assert_eq!(simulation.step(), 2);
    simulation.dispatch();
    assert_eq!(simulation.taken, [1, 1, 2, 2]);
    simulation.submit(3, MS);
    simulation.dispatch();
    assert_eq!(simulation.taken.len(), 4, "all executors are taken");
    assert_eq!(simulation.step(), 2);
    simulation.dispatch();
    assert_eq!(simulation.taken, [1, 1, 2, 2, 3]);
}

#[test]
fn random_arrivals_keep_no_executor_from_a_call_and_forget_tenants_without_calls() {
    for seed in 0..40 {
        let mut random = random(seed);
        let (executors, spare) = (2 + random(4) as usize, random(3) as usize);
        let mut simulation = Simulation::new(executors, spare.min(executors - 1));
        let mut waiting = 0_u64;
        for _ in 0..3000 {
            if random(5) < 2 || waiting == 0 {
                let tenants = if random(2) == 0 { 4 } else { 2000 };
                let tenant = random(tenants);
                let length = 1 + random(5 * MS);
                simulation.submit(tenant, length);
                waiting += 1;
                simulation.dispatch();
            } else {
                simulation.step();
                waiting -= 1;
            }
        }
        (0..waiting).for_each(|_| _ = simulation.step());
        assert_eq!((simulation.schedule.waiting(), simulation.schedule.running()), (0, 0), "seed {seed}");
        let known = simulation.schedule.tenants_known();
        assert!(known <= 257, "seed {seed}: {known} tenants are remembered");
    }
}

#[test]
fn a_full_queue_of_one_tenant_refuses_that_one_and_a_full_queue_all() {
    let bounds = Bounds { executors: 1, seats: 1, spare: 0, waiting_max: 3, waiting_tenant_max: 2 };
    let mut schedule = Schedule::new(bounds);
    let submit = |schedule: &mut Schedule<()>, id, tenant| {
        let (priority, lanes) = (Priority::Normal, Writables::default());
        schedule.submit(Entry { id, tenant, priority, lanes, job: () }, 0).map_err(|(bound, ())| bound)
    };
    assert_eq!(submit(&mut schedule, 1, 1), Ok(()));
    assert_eq!(submit(&mut schedule, 2, 1), Ok(()));
    assert_eq!(submit(&mut schedule, 3, 1), Err(NoRoom::Tenant));
    assert_eq!(submit(&mut schedule, 4, 2), Ok(()));
    assert_eq!(submit(&mut schedule, 5, 2), Err(NoRoom::All));
    assert_eq!(schedule.take(0, 0).map(|it| it.id), Some(1));
    assert_eq!(submit(&mut schedule, 6, 1), Ok(()), "what runs does not wait");
}

/// Ids of the calls of one tenant in the order in which they are taken.
fn order(calls: &[(u64, Priority)], arrivals_after: impl Fn(u64) -> Vec<(u64, Priority)>) -> Vec<u64> {
    let mut schedule =
        Schedule::new(Bounds { executors: 1, seats: 1, spare: 0, waiting_max: 999, waiting_tenant_max: 999 });
    let mut coming: VecDeque<(u64, Priority)> = calls.iter().copied().collect();
    let mut taken = Vec::new();
    loop {
        for (id, priority) in coming.drain(..) {
            let entry = Entry { id, tenant: 7, priority, lanes: Writables::default(), job: () };
            assert!(schedule.submit(entry, id).is_ok());
        }
        let Some(entry) = schedule.take(0, taken.len() as u64) else { return taken };
        coming.extend(arrivals_after(taken.len() as u64));
        schedule.free(0, taken.len() as u64);
        taken.push(entry.id);
    }
}

#[test]
fn calls_of_a_higher_priority_go_first_and_of_one_priority_in_their_order() {
    let calls =
        [(1, Priority::Low), (2, Priority::Normal), (3, Priority::High), (4, Priority::Normal), (5, Priority::High)];
    assert_eq!(order(&calls, |_| vec![]), [3, 5, 2, 4, 1]);
}

#[test]
fn a_low_call_is_passed_by_no_more_than_a_bounded_number_of_others() {
    // Each call is followed by two more that pass.
    let endless = |turn: u64| match turn {
        0..60 => vec![(1000 + 2 * turn, Priority::High), (1001 + 2 * turn, Priority::Normal)],
        _ => vec![],
    };
    let taken = order(&[(1, Priority::Low), (2, Priority::Normal), (3, Priority::High)], endless);
    let place = |id: u64| taken.iter().position(|it| *it == id).unwrap();
    assert_eq!(place(1), PASSED_MAX as usize, "{taken:?}");
    assert_eq!(place(2), PASSED_MAX as usize + 1, "{taken:?}");
}

#[test]
fn a_priority_gains_nothing_over_another_tenant() {
    let mut schedule =
        Schedule::new(Bounds { executors: 1, seats: 1, spare: 0, waiting_max: 999, waiting_tenant_max: 999 });
    for id in 0..100 {
        let (tenant, priority) = if id % 2 == 0 { (1, Priority::High) } else { (2, Priority::Low) };
        assert!(schedule.submit(Entry { id, tenant, priority, lanes: Writables::default(), job: () }, 0).is_ok());
    }
    let mut taken = [0, 0];
    for turn in 0..50 {
        let entry = schedule.take(0, turn * MS).unwrap();
        taken[entry.tenant as usize - 1] += 1;
        schedule.free(0, (turn + 1) * MS);
    }
    assert_eq!(taken, [25, 25]);
}
