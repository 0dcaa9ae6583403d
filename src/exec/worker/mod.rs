//! Calls in processes of their own.
//!
//! Instead of on an executor's thread a call can run in a *worker*: a process that shares with the daemon the memory of
//! that executor alone, and of the arenas what is run and read. So code that writes anywhere, ends its process or cannot
//! be stopped costs a worker, and the call's outcome says so; ordinary traps are recovered inside of the worker, as in a
//! thread. Everything else is as with threads: the executor prepares the call in its slot, which the worker has at the
//! same addresses, and collects what it left there.
//!
//! The memory of all is laid out (`site`, `window`) before the `zygote` is forked; that forks workers, each of which lives
//! as `life` says. The `nursery` keeps some ready and hears of their deaths, the `hand` is an executor's way to its worker,
//! by the `desk` in its frame.
//!
//! Calls that one worker runs one after the other are not kept apart more than in a thread: code that takes its worker
//! over could falsify later calls there. So a worker runs calls of one tenant.

mod child;
mod desk;
mod hand;
mod life;
mod nursery;
mod seclude;
mod site;
mod step;
mod sync;
mod system;
mod trial;
mod window;
mod zygote;

use std::ops::Range;
use std::sync::Arc;

use super::confine::FilterState;
use super::signals;
use super::start::{ExecConfig, StartError, filter_state};
use crate::confine::Needs;

pub(super) use child::Worker;
pub(super) use desk::Desk;
pub(super) use hand::{Hand, Lost, Turn, Watch};
pub(super) use nursery::{Keeper, Nursery};
pub(super) use system::cpu_clock;
pub(super) use window::{COLUMNS_BYTES, fits};

pub use nursery::WorkerStats;
pub use system::Death;
pub use trial::try_workers;

/// A process that forks workers, and what they will share: for one pool.
#[derive(Debug)]
pub struct Workers {
    pub(super) nursery: Arc<Nursery>,
    pub(super) config: ExecConfig,
    pub(super) filter: FilterState,
}

impl Workers {
    /// Forks it. Only while the process has one thread, and when executable memory is mapped. `data` are the addresses of
    /// all writable data that calls may touch, in whole pages; `spawns_max_per_s` bounds how many workers are forked in a
    /// second; `needs` are those of this process, as it will give up what it does not need: so do workers.
    ///
    /// # Errors
    /// [`StartError`], with `EBUSY` if there are other threads.
    pub fn prepare(
        config: &ExecConfig,
        data: &[Range<u64>],
        spawns_max_per_s: u32,
        needs: &Needs,
    ) -> Result<Workers, StartError> {
        let config = config.in_processes();
        config.check()?;
        let children = system::keep_children();
        children.map_err(|errno| StartError::Worker { step: "being told of the end of a process", errno })?;
        // Workers inherit it.
        signals::install().map_err(StartError::Signals)?;
        // Tried out here, on a thread that ends: workers are under the filter if this says so, and only then.
        let filter = filter_state(config.filter)?;
        let site = site::Site::lay_out(&config, data, filter == FilterState::InForce)?;
        let zygote = zygote::Zygote::start(&site, needs).map_err(|(step, errno)| StartError::Worker { step, errno })?;
        let nursery = Nursery::new(site, zygote, spawns_max_per_s.max(1))?;
        Ok(Workers { nursery: Arc::new(nursery), config, filter })
    }
}
