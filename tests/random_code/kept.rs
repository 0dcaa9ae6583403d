//! Inputs that took a daemon down: which one of those under way it was, what it does, and where that is written down.

use std::{fmt::Write, fs, ops::Range, path::PathBuf};

use codecached::proto::{Trap, TrapKind};

use crate::{
    generate::{Generator, disassembled},
    run::{Ends, Lost, run, start, trap_of},
    support::Daemon,
};

/// How often an input is tried alone: where memory lies is another matter each time.
const TRIES: u32 = 3;

/// One loss of the daemon.
#[derive(Debug)]
pub struct Kept {
    /// The input that does it alone; else all that were under way or shortly before.
    pub inputs: Vec<u64>,
    /// What it writes over, if that is what it does.
    pub explanation: Option<String>,
}

impl Kept {
    /// Of these batches one took the daemon down at its last input or before.
    pub async fn find(generator: &Generator, seed: u64, lost: &[(Range<u64>, Lost)]) -> Kept {
        let suspects: Vec<u64> = lost.iter().map(|(_, lost)| lost.at).collect();
        let earlier: Vec<u64> = lost.iter().flat_map(|(batch, lost)| batch.start..lost.at).collect();
        let mut inputs = Vec::new();
        for number in suspects.iter().chain(earlier.iter().rev()) {
            if takes_down(generator, *number).await {
                inputs = vec![*number];
                break;
            }
        }
        if inputs.is_empty() {
            inputs = suspects.into_iter().chain(earlier).collect();
        }
        let mut explanation = None;
        for number in &inputs {
            if explanation.is_none() {
                explanation = writes_wildly(generator, *number).await.map(|how| format!("input {number}: {how}"));
            }
        }
        let kept = Kept { inputs, explanation };
        kept.write(generator, seed);
        kept
    }

    /// Where a batch goes on behind what took the daemon down.
    pub fn next(&self, batch: &Range<u64>) -> Option<u64> {
        let own = self.inputs.iter().filter(|number| batch.contains(number));
        own.max().map(|number| number + 1)
    }

    fn write(&self, generator: &Generator, seed: u64) {
        let directory = std::env::var_os("CODECACHED_TEST_RANDOM_KEPT")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/random-code"), PathBuf::from);
        let mut text = format!("{:?}\n", self.explanation);
        for number in &self.inputs {
            let code = generator.input(*number);
            let hex: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "seed {seed}, input {number}: {hex}\n{}", disassembled(&code)).unwrap();
        }
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{seed}-{}.txt", self.inputs[0])), &text).unwrap();
        eprintln!("{text}");
    }
}

async fn takes_down(generator: &Generator, number: u64) -> bool {
    for _ in 0..TRIES {
        let mut daemon = start("thread").await;
        let client = daemon.client().await;
        let done = run(&client, generator, number..number + 1, &mut Ends::new()).await;
        // It may have spoilt what is needed later only.
        let after = run(&client, generator, 0..1, &mut Ends::new()).await;
        if done.is_err() || after.is_err() || !daemon.is_running() {
            return true;
        }
    }
    false
}

/// What an input writes over, if so. In a worker process what is the daemon's cannot be written, so that is a fault there,
/// or the end of the process where it is what the worker itself needs.
async fn writes_wildly(generator: &Generator, number: u64) -> Option<String> {
    for _ in 0..TRIES {
        let daemon = start("process").await;
        let client = daemon.client().await;
        let trap = trap_of(&client, generator, number).await;
        if let Some(how) = trap.and_then(|trap| wild(&daemon, &trap)) {
            return Some(how);
        }
    }
    None
}

fn wild(daemon: &Daemon, trap: &Trap) -> Option<String> {
    if trap.kind() == TrapKind::Worker {
        return Some(format!("its worker process ended, by signal {} or status {:?}", trap.signal, trap.exit_status));
    }
    let address = trap.fault_address?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
    let is_there = |line: &&str| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        rest.starts_with("rw") && (number(start)..number(end)).contains(&address)
    };
    let line = maps.lines().find(is_there)?;
    Some(format!("{:?} at {address:#x}, the daemon's memory: {line}", trap.instruction))
}
