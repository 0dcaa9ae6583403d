//! What a call sees of the writable data that lives across calls.
//!
//! A worker does not have the arenas' data. At the same addresses it has memory of its own, the window, which its executor
//! has elsewhere: before a call the executor copies the data there that the call may touch, and when the call has returned
//! it copies it back. So a call that writes elsewhere changes nobody's data, one that traps changes none at all, and calls
//! of an entry with data pay for its size. That nobody else changes the data meanwhile is what lanes are for: in worker
//! processes calls of one entry with data never overlap.
//!
//! Behind the data a window has room for the columns and results of a batch, at the same addresses on both sides.
#![allow(unsafe_code)] // Copies between memory that code writes.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::system;
use crate::exec::batch::{Batch, Column};
use crate::exec::stack::{Backing, give_back, map_shared, prefer_small_pages, reserve_addresses, shared_file};

/// Room for the columns of a batch, which come in one message, and for its results.
pub(in crate::exec) const COLUMNS_BYTES: usize = 96 << 20;

/// In which `st_blocks` counts.
const BLOCK_BYTES: usize = 512;

/// Where columns and results of a batch lie in a window.
#[derive(Clone, Debug)]
pub(in crate::exec) struct Away {
    /// Address of each column.
    pub(in crate::exec) columns: Vec<u64>,
    /// Of the first result.
    pub(in crate::exec) results: usize,
}

/// Whether columns and results of a batch fit into a window.
pub(in crate::exec) fn fits(batch: &Batch, results_bytes: usize) -> bool {
    let columns: usize = batch.columns().iter().map(|column| padded(column.values.len())).sum();
    columns + padded(results_bytes) <= COLUMNS_BYTES
}

/// Columns begin at cache lines.
fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(64)
}

/// What windows have in common.
#[derive(Clone, Debug)]
pub(in crate::exec) struct WindowLayout {
    /// Addresses of data, and where they lie in a window.
    data: Vec<(Range<usize>, usize)>,
    data_bytes: usize,
}

impl WindowLayout {
    /// Of whole pages.
    pub(super) fn new(data: &[Range<u64>]) -> WindowLayout {
        let mut data_bytes = 0;
        let place = |range: &Range<u64>| {
            let range = range.start as usize..range.end as usize;
            let offset = data_bytes;
            data_bytes += range.len();
            (range, offset)
        };
        let data = data.iter().map(place).collect();
        WindowLayout { data, data_bytes }
    }

    fn bytes(&self) -> usize {
        self.data_bytes + COLUMNS_BYTES
    }

    /// All addresses of data.
    pub(super) fn data(&self) -> impl Iterator<Item = &Range<usize>> {
        self.data.iter().map(|(range, _)| range)
    }
}

/// One executor's.
#[derive(Debug)]
pub(in crate::exec) struct Window {
    base: usize,
    layout: Arc<WindowLayout>,
    /// What is mapped there.
    file: OwnedFd,
    /// Bytes behind the data that columns and results take now. Of the executor alone.
    columns_bytes: AtomicUsize,
}

impl Window {
    pub(super) fn map(layout: &Arc<WindowLayout>) -> Result<Window, Errno> {
        let bytes = layout.bytes();
        let (base, file) = (reserve_addresses(bytes)?, shared_file(bytes)?);
        let window = Window { base, layout: Arc::clone(layout), file, columns_bytes: AtomicUsize::new(0) };
        map_shared(&window.file, window.whole(), 0)?;
        // How much memory it takes is measured: by what is written, and not by how large the system's pages are.
        prefer_small_pages(window.whole());
        Ok(window)
    }

    /// In the worker whose window it is: puts it where code looks for data.
    pub(super) fn take(&self) -> Result<(), Errno> {
        for (range, offset) in &self.layout.data {
            let from = self.base + offset;
            system::move_mapping(from..from + range.len(), range.start)?;
        }
        Ok(())
    }

    /// Where a worker has it that has taken it.
    pub(super) fn taken(&self) -> Vec<Range<usize>> {
        let columns = self.base + self.layout.data_bytes..self.base + self.layout.bytes();
        self.layout.data().cloned().chain([columns]).collect()
    }

    /// In other workers.
    pub(super) fn leave(&self) -> Result<(), Errno> {
        system::unmap(self.whole())
    }

    fn whole(&self) -> Range<usize> {
        self.base..self.base + self.layout.bytes()
    }

    /// Copies the columns of a batch to where the worker sees them, if [`fits`] says that they fit, with room for results.
    pub(in crate::exec) fn place(&self, batch: &Batch, results_bytes: usize) -> Away {
        let mut next = self.base + self.layout.data_bytes;
        let end = self.base + self.layout.bytes();
        let mut take = |bytes: usize| {
            let start = next;
            next += padded(bytes);
            assert!(next <= end, "a batch that was taken fits");
            start
        };
        let results = take(results_bytes);
        let mut copy = |column: &Column| {
            let to = take(column.values.len());
            // SAFETY: within the window, of which Rust has no reference; the source is a reference.
            unsafe { std::ptr::copy_nonoverlapping(column.values.as_ptr(), to as *mut u8, column.values.len()) };
            to as u64
        };
        let columns = batch.columns().iter().map(&mut copy).collect();
        self.columns_bytes.store(next - self.base - self.layout.data_bytes, Ordering::Relaxed);
        Away { columns, results }
    }

    /// Copies results from there, as many as `into` takes, which is no more than there was room for.
    pub(in crate::exec) fn fetch(&self, away: &Away, into: &mut [u8]) {
        // SAFETY: within the window, see above; code wrote what is copied, and it is bytes.
        unsafe { std::ptr::copy_nonoverlapping(away.results as *const u8, into.as_mut_ptr(), into.len()) };
    }

    /// Copies data to where the worker sees it. False if it is none that the window has.
    pub(super) fn copy_in(&self, data: &Range<u64>) -> bool {
        let Some(here) = self.address(data) else { return false };
        // SAFETY: the caller holds who owns the data, and no call runs that may touch it; the target is within the
        // window, of which Rust has no reference.
        unsafe { std::ptr::copy_nonoverlapping(data.start as *const u8, here as *mut u8, len(data)) };
        true
    }

    /// Copies it back.
    pub(super) fn copy_out(&self, data: &Range<u64>) {
        let Some(here) = self.address(data) else { return };
        // SAFETY: as above, the other way round. Code wrote what is copied; it is bytes.
        unsafe { std::ptr::copy_nonoverlapping(here as *const u8, data.start as *mut u8, len(data)) };
    }

    /// Gives back what [`Self::place`] took.
    pub(super) fn release_columns(&self) {
        self.columns_bytes.store(0, Ordering::Relaxed);
        give_back(self.base + self.layout.data_bytes..self.base + self.layout.bytes(), Backing::Shared);
    }

    /// Leaves zeros, and takes no memory.
    pub(super) fn clear(&self) {
        give_back(self.whole(), Backing::Shared);
    }

    /// The same where data lies; what was placed stays.
    pub(super) fn clear_data(&self) {
        give_back(self.base..self.base + self.layout.data_bytes, Backing::Shared);
    }

    /// Whether a batch lies there.
    pub(super) fn has_columns(&self) -> bool {
        self.columns_bytes() > 0
    }

    /// What it takes.
    pub(super) fn columns_bytes(&self) -> usize {
        self.columns_bytes.load(Ordering::Relaxed)
    }

    /// Memory of the system that the window takes, whoever wrote there.
    pub(super) fn memory_bytes(&self) -> usize {
        let blocks = fstat(&self.file).map_or(0, |stat| stat.st_blocks);
        usize::try_from(blocks).unwrap_or(0) * BLOCK_BYTES
    }

    fn address(&self, data: &Range<u64>) -> Option<usize> {
        let (start, end) = (data.start as usize, data.end as usize);
        let holds = |(range, _): &&(Range<usize>, usize)| range.start <= start && start <= end && end <= range.end;
        let (range, offset) = self.layout.data.iter().find(holds)?;
        Some(self.base + offset + (start - range.start))
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // Addresses that are left are no harm.
        let _ = system::unmap(self.whole());
    }
}

fn len(data: &Range<u64>) -> usize {
    (data.end - data.start) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::batch::ColumnType;

    fn pages(count: usize) -> (Vec<u64>, Range<u64>) {
        let memory: Vec<u64> = (0..count as u64 * 512).collect();
        let start = memory.as_ptr() as u64;
        (memory, start..start + count as u64 * 4096)
    }

    #[test]
    fn data_goes_to_its_place_in_the_window_and_back_and_what_has_none_is_told() {
        let ((_first, one), (mut second, two)) = (pages(1), pages(2));
        let window = Window::map(&Arc::new(WindowLayout::new(&[one.clone(), two.clone()]))).unwrap();
        assert_eq!(window.address(&(two.start + 8..two.start + 16)), Some(window.base + 4096 + 8));
        let part = two.start + 800..two.start + 1600;
        assert!(window.copy_in(&part) && window.copy_in(&one));
        second.fill(7);
        window.copy_out(&part);
        let expected = |at: u64| if (100..200).contains(&at) { at } else { 7 };
        assert!((0..1024).all(|at| second[at as usize] == expected(at)));
        window.clear();
        window.copy_out(&two);
        assert!(second.iter().all(|word| *word == 0), "nothing is left of what was shown");
        let reaches_over = two.end - 8..two.end + 8;
        assert!(!window.copy_in(&reaches_over) && !window.copy_in(&(0..8)));
    }

    #[test]
    fn a_window_that_is_dropped_is_unmapped() {
        // No other one is as large.
        let (_memory, data) = pages(7);
        let window = Window::map(&Arc::new(WindowLayout::new(&[data]))).unwrap();
        let line = format!("{:x}-{:x} rw-s", window.whole().start, window.whole().end);
        let is_mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(&line);
        assert!(is_mapped());
        drop(window);
        assert!(!is_mapped());
    }

    #[test]
    fn a_batch_is_placed_behind_the_data_with_room_for_its_results() {
        let window = Window::map(&Arc::new(WindowLayout::new(&[]))).unwrap();
        let column = |value: u8, bytes: usize| Column { kind: ColumnType::I64, values: vec![value; bytes].into() };
        let batch = Batch::new(3, vec![column(1, 24), column(2, 8)]).unwrap();
        assert!(fits(&batch, 24));
        let away = window.place(&batch, 24);
        assert_eq!((away.columns.len(), away.results), (2, window.base));
        assert!(away.columns.iter().all(|at| at.is_multiple_of(64) && *at >= away.results as u64 + 24));
        let mut results = [9; 24];
        window.fetch(&Away { results: away.columns[0] as usize, ..away }, &mut results);
        assert_eq!(results, [1; 24]);
        assert!(!fits(&batch, COLUMNS_BYTES), "columns and results together");
    }
}
