//! All that is wrong with a blob, where one error would not do.

use super::CodeError;

/// What is wrong with a blob.
#[derive(Debug, Default)]
pub struct Diagnosis {
    /// The first [`PROBLEMS_MAX`](Self::PROBLEMS_MAX), in the order in which they were found.
    pub problems: Vec<CodeError>,
    /// How many there are.
    pub total: u64,
}

impl Diagnosis {
    /// Problems that are kept: more than anybody goes through before the next try, in an answer of some 10 KiB.
    pub const PROBLEMS_MAX: usize = 256;

    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Further problems are only counted.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() >= Self::PROBLEMS_MAX
    }

    pub(super) fn note(&mut self, problem: CodeError) {
        self.total += 1;
        if !self.is_full() {
            self.problems.push(problem);
        }
    }
}

/// What becomes of a problem that others may be found behind.
pub(super) enum Problems<'a> {
    /// It ends the work.
    Fatal,
    /// It is noted.
    Noted(&'a mut Diagnosis),
}

impl Problems<'_> {
    /// The error, if it ends the work.
    pub(super) fn take(&mut self, problem: CodeError) -> Result<(), CodeError> {
        match self {
            Self::Fatal => Err(problem),
            Self::Noted(diagnosis) => {
                diagnosis.note(problem);
                Ok(())
            }
        }
    }
}
