//! The command line.

use std::{path::PathBuf, str::FromStr};

use crate::trace::Law;

/// What was asked for.
pub(crate) struct Arguments {
    pub(crate) trace: Option<PathBuf>,
    /// How a trace is made where none is given.
    pub(crate) law: Law,
    /// What the AsmJit harness printed.
    pub(crate) peer: Option<PathBuf>,
    /// Letters of the scenarios to run.
    pub(crate) only: String,
    /// Of scenarios d and e; the others have a number of their own.
    pub(crate) repetitions: usize,
}

impl Arguments {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self { trace: None, law: Law::default(), peer: None, only: "abcdefgh".into(), repetitions: 3 };
        while let Some(flag) = words.next() {
            // Cargo's own.
            if flag == "--bench" {
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
            parsed.set(&flag, &value)?;
        }
        if parsed.repetitions == 0 {
            return Err("--repetitions must be at least 1".into());
        }
        parsed.law.check().map(|()| parsed)
    }

    fn set(&mut self, flag: &str, value: &str) -> Result<(), String> {
        match flag {
            "--trace" => self.trace = Some(value.into()),
            "--peer" => self.peer = Some(value.into()),
            "--only" => self.only = value.into(),
            "--repetitions" => self.repetitions = number(flag, value)?,
            "--seed" => self.law.seed = number(flag, value)?,
            "--live-bytes" => self.law.live_bytes = number(flag, value)?,
            "--operations" => self.law.operations = number(flag, value)?,
            "--size-min" => self.law.size_min = number(flag, value)?,
            "--size-max" => self.law.size_max = number(flag, value)?,
            _ => return Err(format!("{flag} is not known; the head of benches/arena/main.rs lists what is")),
        }
        Ok(())
    }
}

/// A decimal number, or a hexadecimal one after `0x`.
fn number<T: FromStr + TryFrom<u64>>(flag: &str, text: &str) -> Result<T, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().and_then(|it| T::try_from(it).ok()),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| format!("{flag} {text}: not a number that is possible here"))
}
