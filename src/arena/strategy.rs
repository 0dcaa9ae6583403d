//! The ways to have memory that is written at one time or place and run at another, in the order they are tried.

use std::fmt;

use nix::errno::Errno;

use super::{ArenaConfig, HugePages};

/// A way to have such memory. None ever has a page that is writable and executable at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StrategyKind {
    /// A memory file on huge pages, mapped twice. If the configuration asks for it.
    MemfdHuge,
    /// A memory file that execve refuses, mapped twice.
    Memfd,
    /// A memory file, mapped twice.
    MemfdPlain,
    /// A nameless file in a directory, mapped twice. If the configuration names one.
    File,
    /// Private memory that changes between writable and executable. If the configuration allows it.
    Protect,
}

impl StrategyKind {
    /// For metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemfdHuge => "memfd-hugetlb",
            Self::Memfd => "memfd-noexec",
            Self::MemfdPlain => "memfd",
            Self::File => "file",
            Self::Protect => "mprotect",
        }
    }

    /// The same memory is mapped at two addresses: one to write, one to run.
    pub fn is_dual_mapping(self) -> bool {
        self != Self::Protect
    }

    /// For people.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::MemfdHuge => "memfd on huge pages",
            Self::Memfd => "memfd with noexec seal",
            Self::MemfdPlain => "memfd without noexec seal",
            Self::File => "nameless file in a directory instead of memfd",
            Self::Protect => "private memory that mprotect changes, instead of memory mapped twice",
        }
    }

    /// What the configuration allows, the best first.
    pub(super) fn ladder(config: &ArenaConfig) -> impl Iterator<Item = Self> {
        let allowed = [
            (Self::MemfdHuge, config.huge_pages == HugePages::Hugetlb),
            (Self::Memfd, true),
            (Self::MemfdPlain, true),
            (Self::File, config.directory.is_some()),
            (Self::Protect, config.allow_mprotect),
        ];
        allowed.into_iter().filter_map(|(kind, allowed)| allowed.then_some(kind))
    }
}

impl fmt::Display for StrategyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is done in turn when a way is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Creating the file.
    Create,
    /// Giving it its sparse size.
    Grow,
    /// Fixing that size for ever.
    Seal,
    /// Opening it again, for reading only. Needs `/proc`.
    Reopen,
    /// Mapping memory that can be written.
    MapWindow,
    /// Mapping memory that can be read or run; changing the protection of memory to that.
    MapCode,
    /// Keeping the memory out of child processes and core dumps.
    Advise,
    /// Getting the memory of a page.
    Commit,
    /// Making memory writable.
    OpenWindow,
    /// Running code that was written.
    Run,
    /// Running other code at the same place.
    Rerun,
    /// Giving the memory of a page back.
    GiveBack,
}

impl Step {
    /// This step's error.
    pub(super) fn failed(self) -> impl FnOnce(Errno) -> StepError {
        move |errno| StepError { step: self, errno: Some(errno) }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create the file",
            Self::Grow => "grow the file",
            Self::Seal => "seal the file",
            Self::Reopen => "reopen the file for reading only",
            Self::MapWindow => "map writable memory",
            Self::MapCode => "map executable memory",
            Self::Advise => "keep the memory out of child processes and core dumps",
            Self::Commit => "commit memory",
            Self::OpenWindow => "make memory writable",
            Self::Run => "run new code",
            Self::Rerun => "run rewritten code",
            Self::GiveBack => "give memory back",
        })
    }
}

/// The step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepError {
    /// Which.
    pub step: Step,
    /// What the system said; `None` if it said nothing, but other code ran than was written.
    pub errno: Option<Errno>,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            Some(errno) => write!(f, "cannot {}: {errno}", self.step),
            None => write!(f, "cannot {}: other code ran than was written", self.step),
        }
    }
}

impl std::error::Error for StepError {}

/// A way that was tried and failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Which.
    pub strategy: StrategyKind,
    /// The first step that failed.
    pub step: Step,
    /// What the system said; `None` if it said nothing, but other code ran than was written.
    pub errno: Option<Errno>,
}

impl Attempt {
    pub(super) fn new(strategy: StrategyKind, StepError { step, errno }: StepError) -> Self {
        Self { strategy, step, errno }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.strategy, StepError { step: self.step, errno: self.errno })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_has_what_the_configuration_allows_and_mprotect_last() {
        use StrategyKind::*;
        let ladder = |config: &ArenaConfig| StrategyKind::ladder(config).collect::<Vec<_>>();
        let mut config = ArenaConfig::new(1, 1);
        assert_eq!(ladder(&config), [Memfd, MemfdPlain]);
        config.allow_mprotect = true;
        config.directory = Some("/dev/shm".into());
        config.huge_pages = HugePages::Hugetlb;
        assert_eq!(ladder(&config), [MemfdHuge, Memfd, MemfdPlain, File, Protect]);
    }

    #[test]
    fn an_attempt_says_what_was_tried_what_failed_and_why() {
        let error = StepError { step: Step::Create, errno: Some(Errno::EACCES) };
        let text = Attempt::new(StrategyKind::MemfdPlain, error).to_string();
        assert_eq!(text, "memfd: cannot create the file: EACCES: Permission denied");
        let error = StepError { step: Step::Rerun, errno: None };
        let text = Attempt::new(StrategyKind::Protect, error).to_string();
        assert_eq!(text, "mprotect: cannot run rewritten code: other code ran than was written");
    }
}
