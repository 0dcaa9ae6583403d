//! The load: all slots at once, for a time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::work::Worker;

/// How long calls under way may take to end after the time is over.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How long taking the entries out again may take.
const CLEAN_UP_MAX: Duration = Duration::from_secs(10);

/// Pause of a slot after an error, so that a daemon that is gone does not become a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(1);

/// Digits of latencies that are kept.
const DIGITS: u8 = 3;

/// Reason under which calls are counted that did not end in time.
const UNFINISHED: &str = "UNFINISHED";

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// What is to be put on the daemon.
pub(super) struct Load {
    pub(super) workers: Vec<Worker>,
    pub(super) warmup: Duration,
    pub(super) measured: Duration,
}

/// What was measured.
#[derive(Debug)]
pub(super) struct Tally {
    /// Of calls that went well, in nanoseconds.
    pub(super) latency: Histogram<u64>,
    /// Calls that did not, by reason; those of the warm-up too.
    pub(super) errors: BTreeMap<String, u64>,
    /// How long calls were counted.
    pub(super) elapsed: Duration,
}

impl Load {
    /// Runs it, and cleans up after it.
    pub(super) async fn run(self) -> Tally {
        let phase = Arc::new(AtomicU8::new(WARMING));
        let mut slots = JoinSet::new();
        for worker in self.workers {
            slots.spawn(drive(worker, Arc::clone(&phase)));
        }
        tokio::time::sleep(self.warmup).await;
        phase.store(MEASURING, Relaxed);
        let start = Instant::now();
        tokio::time::sleep(self.measured).await;
        phase.store(OVER, Relaxed);
        let mut total = Tally::new();
        total.elapsed = start.elapsed();
        let workers = total.collect(slots).await;
        clean_up(workers).await;
        total
    }
}

impl Tally {
    pub(super) fn new() -> Self {
        let latency = Histogram::new(DIGITS).expect("3 digits are a precision that the histogram has");
        Self { latency, errors: BTreeMap::new(), elapsed: Duration::ZERO }
    }

    /// Calls that went well.
    pub(super) fn calls(&self) -> u64 {
        self.latency.len()
    }

    /// One call that went well.
    pub(super) fn record(&mut self, took: Duration) {
        self.latency.record(took.as_nanos() as u64).expect("a histogram that grows takes every number");
    }

    fn count(&mut self, reason: String, times: u64) {
        *self.errors.entry(reason).or_default() += times;
    }

    fn add(&mut self, other: Self) {
        self.latency.add(&other.latency).expect("this histogram grows to what the other one holds");
        other.errors.into_iter().for_each(|(reason, times)| self.count(reason, times));
    }

    /// Takes in what each slot counted, and gives the workers back.
    async fn collect(&mut self, mut slots: JoinSet<(Worker, Self)>) -> Vec<Worker> {
        let end = tokio::time::Instant::now() + DRAIN_MAX;
        let mut workers = Vec::with_capacity(slots.len());
        while let Ok(Some(done)) = tokio::time::timeout_at(end, slots.join_next()).await {
            match done {
                Ok((worker, tally)) => {
                    self.add(tally);
                    workers.push(worker);
                }
                Err(error) => self.count(format!("TASK_ENDED: {error}"), 1),
            }
        }
        if !slots.is_empty() {
            self.count(UNFINISHED.to_owned(), slots.len() as u64);
        }
        slots.shutdown().await;
        workers
    }
}

/// The loop that is measured: nothing in it but the call, two looks at the clock and one at the phase.
async fn drive(mut worker: Worker, phase: Arc<AtomicU8>) -> (Worker, Tally) {
    let mut tally = Tally::new();
    while phase.load(Relaxed) != OVER {
        let start = Instant::now();
        match worker.step().await {
            // A call counts if it ends while calls are counted.
            Ok(()) if phase.load(Relaxed) == MEASURING => {
                tally.record(start.elapsed());
            }
            Ok(()) => {}
            Err(fault) => {
                tally.count(fault.reason(&worker), 1);
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
    (worker, tally)
}

async fn clean_up(workers: Vec<Worker>) {
    let deadline = Instant::now() + CLEAN_UP_MAX;
    let mut tasks: JoinSet<()> = workers.into_iter().map(|worker| worker.clean_up(deadline)).collect();
    while tasks.join_next().await.is_some() {}
}
