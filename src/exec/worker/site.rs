//! The memory that is shared with worker processes, all of it laid out before the first one is forked.
//!
//! Workers find everything at the addresses at which this process has it, and no descriptor is needed for it. What a
//! worker is not to have it unmaps before it runs any code.
//!
//! ```text
//! slots     slot 0 | slot 1 | ...                       of executors; see `stack`
//! windows   data 0, columns 0 | data 1, columns 1 | ... of executors; see `window`
//! cradle    a word for each worker that is not yet an executor's
//! ```
#![allow(unsafe_code)] // References to words at mapped addresses.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use nix::errno::Errno;

use crate::exec::seat::Seats;
use crate::exec::stack::{Backing, PAGE_BYTES, Slot, map_shared, reserve_addresses, shared_file};
use crate::exec::start::{ExecConfig, StartError, seats};

use super::system;
use super::window::{Window, WindowLayout};

/// Words of the cradle, which are used in turn. Far more than there are workers that wait.
pub(super) const CELLS: usize = PAGE_BYTES / size_of::<AtomicU32>();
/// What a worker stores in its cell when it has come through its set-up.
pub(super) const JOINED: u32 = u32::MAX;

/// Where everything is.
#[derive(Debug)]
pub(in crate::exec) struct Site {
    pub(in crate::exec) seats: Arc<Seats>,
    executors: usize,
    windows: Vec<Window>,
    cradle: usize,
    layout: Arc<WindowLayout>,
    /// Where code may lie.
    pub(super) code: Vec<Range<u64>>,
    /// Whether workers run under a filter of system calls.
    pub(super) is_filtered: bool,
}

impl Site {
    /// For calls that may touch the addresses `data`, in which nothing is executable.
    pub(super) fn lay_out(config: &ExecConfig, data: &[Range<u64>], is_filtered: bool) -> Result<Site, StartError> {
        let seats = Arc::new(seats(config, Backing::Shared)?);
        let executors = config.bounds().executors;
        let layout = Arc::new(WindowLayout::new(data));
        let windows = (0..executors).map(|_| Window::map(&layout)).collect::<Result<Vec<_>, _>>();
        let shared = |errno| StartError::Worker { step: "mapping shared memory", errno };
        let windows = windows.map_err(shared)?;
        let cradle = Self::map_cradle().map_err(shared)?;
        let code = config.code.clone();
        Ok(Site { seats, executors, windows, cradle, layout, code, is_filtered })
    }

    /// How many executors there are.
    pub(super) fn executors(&self) -> usize {
        self.executors
    }

    /// The memory of an executor, if there is this one.
    pub(super) fn slot(&self, executor: usize) -> Option<&Slot> {
        if executor < self.executors { self.seats.executor(executor).slot() } else { None }
    }

    fn map_cradle() -> Result<usize, Errno> {
        let file = shared_file(PAGE_BYTES)?;
        let start = reserve_addresses(PAGE_BYTES)?;
        map_shared(&file, start..start + PAGE_BYTES, 0)?;
        Ok(start)
    }

    /// The word by which a worker that waits is told whose it is: the executor's number and one. It answers [`JOINED`].
    pub(super) fn cell(&self, cell: usize) -> &AtomicU32 {
        let address = (self.cradle + cell % CELLS * size_of::<AtomicU32>()) as *const AtomicU32;
        // SAFETY: within the page that was mapped with this value and stays as long as it.
        unsafe { &*address }
    }

    pub(super) fn cradle(&self) -> Range<usize> {
        self.cradle..self.cradle + PAGE_BYTES
    }

    pub(super) fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// What windows have in common.
    pub(super) fn layout(&self) -> &WindowLayout {
        &self.layout
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Addresses that are left are no harm.
        let _ = system::unmap(self.cradle());
    }
}
