//! Whether worker processes can be had here.

use std::ops::Range;

use super::Workers;
use crate::confine::Needs;
use crate::exec::call::Callee;
use crate::exec::pool::Pool;
use crate::exec::start::{ExecConfig, StartError};
use crate::exec::writable::Writables;

/// What nothing is called of.
enum Nothing {}

impl Callee for Nothing {
    fn code_range(&self) -> Range<u64> {
        0..0
    }

    fn tenant(&self) -> u64 {
        0
    }

    fn writable(&self) -> Writables {
        Writables::default()
    }

    fn restore(&self, _: u64) {}
}

/// Forks what forks workers, has a worker of a single executor run what does nothing, and ends all.
///
/// # Errors
/// [`StartError`], as from a pool.
pub fn try_workers(config: &ExecConfig, needs: &Needs) -> Result<(), StartError> {
    let config = ExecConfig { executors: 1, spare_executors: 0, ..config.clone() };
    let workers = Workers::prepare(&config, &[], 10, needs)?;
    Pool::<Nothing>::start_with_workers(workers).map(drop)
}
