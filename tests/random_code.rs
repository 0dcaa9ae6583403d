//! Random machine code, in worker processes and in threads. What input has which number is decided by the seed, so a run
//! can go on where another one stopped:
//!
//! - CODECACHED_TEST_RANDOM_PROCESS, CODECACHED_TEST_RANDOM_THREAD: COUNT[,SEED[,FROM]], how many inputs, of which seed,
//!   and the number of the first one.
//! - CODECACHED_TEST_RANDOM_KEPT: the directory where inputs are kept that took a daemon down (default
//!   target/random-code).
//!
//! In processes no input may take the daemon down. In threads those may that write over its memory: this program watches
//! over the daemon, starts it again, finds out which input it was and whether in a worker process that input writes
//! where it may not. One that does not is a defect, and so is one that takes the daemon down and cannot be found.

#[path = "random_code/generate.rs"]
mod generate;
#[path = "random_code/kept.rs"]
mod kept;
#[path = "random_code/run.rs"]
mod run;
mod support;

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex},
};

use generate::Generator;
use kept::Kept;
use run::{Ends, Lost, run, start};
use support::Daemon;

/// Inputs of one entry.
const BATCH: u64 = 16;
/// Entries whose inputs are called at one time.
const CLIENTS: usize = 4;

/// What is asked for by a variable.
#[derive(Clone, Copy, Debug)]
struct Asked {
    seed: u64,
    from: u64,
    count: u64,
}

impl Asked {
    fn of(variable: &str, default: u64) -> Asked {
        let text = std::env::var(variable).unwrap_or_else(|_| default.to_string());
        let numbers: Vec<u64> = text.split(',').map(|it| it.trim().parse().unwrap()).collect();
        let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
        Asked { seed: number(1, 1), from: number(2, 0), count: number(0, default) }
    }

    fn batches(self) -> VecDeque<Range<u64>> {
        let end = self.from + self.count;
        (self.from..end).step_by(BATCH as usize).map(|start| start..(start + BATCH).min(end)).collect()
    }
}

/// What is left to do, and what was done.
struct Work {
    generator: Generator,
    batches: Mutex<VecDeque<Range<u64>>>,
    ends: Mutex<Ends>,
}

impl Work {
    fn new(asked: Asked) -> Arc<Work> {
        let (batches, ends) = (Mutex::new(asked.batches()), Mutex::default());
        Arc::new(Work { generator: Generator::new(asked.seed), batches, ends })
    }

    /// Until nothing is left, or the daemon is lost: then the batches that were under way, and at which input.
    async fn go_on(self: &Arc<Work>, daemon: &Daemon) -> Vec<(Range<u64>, Lost)> {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| tokio::spawn(Arc::clone(self).client(daemon.target.clone()))).collect();
        let mut lost = Vec::new();
        for client in clients {
            lost.extend(client.await.unwrap());
        }
        lost
    }

    async fn client(self: Arc<Work>, target: String) -> Option<(Range<u64>, Lost)> {
        let client = codecached::client::Client::connect(&target).await.ok()?;
        loop {
            let batch = self.batches.lock().unwrap().pop_front()?;
            let mut ends = Ends::new();
            let done = run(&client, &self.generator, batch.clone(), &mut ends).await;
            for (end, times) in ends {
                *self.ends.lock().unwrap().entry(end).or_default() += times;
            }
            if let Err(lost) = done {
                return Some((batch, lost));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_random_code_in_worker_processes_takes_the_daemon_down() {
    let asked = Asked::of("CODECACHED_TEST_RANDOM_PROCESS", 1000);
    let (work, mut daemon) = (Work::new(asked), start("process").await);
    let lost = work.go_on(&daemon).await;
    assert!(lost.is_empty() && daemon.is_running(), "{asked:?}: the daemon was lost: {lost:?}");
    let ends = work.ends.lock().unwrap();
    eprintln!("process, {asked:?}: {ends:?}");
    assert_eq!(ends.values().sum::<u64>(), asked.count);
    daemon.terminate();
    assert_eq!(daemon.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn random_code_in_threads_takes_the_daemon_down_only_by_writing_over_it() {
    let asked = Asked::of("CODECACHED_TEST_RANDOM_THREAD", 500);
    let work = Work::new(asked);
    let mut kept = Vec::new();
    loop {
        let mut daemon = start("thread").await;
        let lost = work.go_on(&daemon).await;
        if lost.is_empty() && daemon.is_running() {
            daemon.terminate();
            assert_eq!(daemon.wait(), Some(0));
            break;
        }
        drop(daemon);
        let found = Kept::find(&work.generator, asked.seed, &lost).await;
        // What was not reached is done now, but for those that took the daemon down.
        let mut batches = work.batches.lock().unwrap();
        for (batch, lost) in &lost {
            let next = found.next(batch).unwrap_or(lost.at + 1);
            batches.push_back(next..batch.end);
        }
        kept.push(found);
    }
    eprintln!("thread, {asked:?}: {:?}", work.ends.lock().unwrap());
    let defects: Vec<_> = kept.iter().filter(|it| it.explanation.is_none()).collect();
    eprintln!("thread, {asked:?}: lost {} times, {} of them unexplained", kept.len(), defects.len());
    assert!(defects.is_empty(), "{defects:#?}");
}
