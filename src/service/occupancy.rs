//! The map of an area, made coarse enough for a bounded answer. Pure.

use crate::arena::{OccupancyRun, RunState};

/// The finest cells of a coarse map: a page. Finer ones would seldom save anything.
const CELL_MIN_BYTES: u64 = 4096;

/// Every state, in the order of the counts of a [`Cell`].
const STATES: [RunState; 4] = [RunState::Used, RunState::Lingering, RunState::Free, RunState::Uncommitted];

/// Neighbouring bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// From the start of the area.
    pub(super) offset_bytes: u64,
    bytes_of: [u64; STATES.len()],
}

/// The whole of an area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// In order, without gaps.
    pub(super) cells: Vec<Cell>,
    /// Cells begin at multiples of this; 0 if each is exactly a run.
    pub(super) cell_bytes: u64,
}

impl Cell {
    fn of_run(run: &OccupancyRun) -> Self {
        let bytes_of = STATES.map(|state| if state == run.state { run.bytes } else { 0 });
        Self { offset_bytes: run.offset_bytes, bytes_of }
    }

    /// All bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes_of.iter().sum()
    }

    /// The bytes of one state.
    pub(super) fn bytes_of(&self, state: RunState) -> u64 {
        STATES.iter().zip(self.bytes_of).find(|(it, _)| **it == state).map_or(0, |(_, bytes)| bytes)
    }

    /// The state of all bytes; `None` if they differ.
    pub(super) fn state(&self) -> Option<RunState> {
        STATES.into_iter().find(|&state| self.bytes_of(state) == self.bytes())
    }

    fn end_bytes(&self) -> u64 {
        self.offset_bytes + self.bytes()
    }

    /// With what follows it.
    fn joined(mut self, next: &Self) -> Self {
        self.bytes_of.iter_mut().zip(next.bytes_of).for_each(|(sum, bytes)| *sum += bytes);
        self
    }

    /// Cut where coarser cells begin and end: what reaches up to the first, the whole ones together, and the rest.
    /// Only a cell of one state is ever cut: others come from finer cells, which do not lie across coarser ones.
    fn cut(self, cell_bytes: u64) -> impl Iterator<Item = Self> {
        let (start, end) = (self.offset_bytes, self.end_bytes());
        let first = start.next_multiple_of(cell_bytes).min(end);
        let last = (end / cell_bytes * cell_bytes).max(first);
        let pieces = [start..first, first..last, last..end].into_iter().filter(|piece| !piece.is_empty());
        pieces.map(move |piece| {
            let bytes = piece.end - piece.start;
            let bytes_of = if bytes == self.bytes() {
                self.bytes_of
            } else {
                self.bytes_of.map(|of| if of > 0 { bytes } else { 0 })
            };
            Self { offset_bytes: piece.start, bytes_of }
        })
    }
}

impl Map {
    /// At most `cells_max` cells, but at least one, in the finest cells with which that can be had.
    pub(super) fn bounded(runs: &[OccupancyRun], cells_max: usize) -> Self {
        let mut map = Self { cells: runs.iter().map(Cell::of_run).collect(), cell_bytes: 0 };
        // Ends when a cell is as long as the area.
        while map.cells.len() > cells_max.max(1) {
            map = map.coarser((map.cell_bytes * 2).max(CELL_MIN_BYTES));
        }
        map
    }

    fn coarser(&self, cell_bytes: u64) -> Self {
        let mut cells: Vec<Cell> = Vec::new();
        let mut open: Option<Cell> = None;
        for piece in self.cells.iter().flat_map(|cell| cell.cut(cell_bytes)) {
            match &mut open {
                Some(cell) if !piece.offset_bytes.is_multiple_of(cell_bytes) => *cell = cell.joined(&piece),
                _ => push(&mut cells, open.replace(piece)),
            }
        }
        push(&mut cells, open);
        Self { cells, cell_bytes }
    }
}

/// Appends a cell, to the last one if both are of the same single state.
fn push(cells: &mut Vec<Cell>, cell: Option<Cell>) {
    let Some(cell) = cell else { return };
    match cells.last_mut() {
        Some(last) if last.state().is_some() && last.state() == cell.state() => *last = last.joined(&cell),
        _ => cells.push(cell),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = CELL_MIN_BYTES;

    /// Neighbours of the lengths, taking turns in state.
    fn runs(lengths: &[u64]) -> Vec<OccupancyRun> {
        let mut offset_bytes = 0;
        let run = |(at, &bytes): (usize, &u64)| {
            let run = OccupancyRun { offset_bytes, bytes, state: STATES[at % STATES.len()] };
            offset_bytes += bytes;
            run
        };
        lengths.iter().enumerate().map(run).collect()
    }

    fn totals(map: &Map) -> [u64; 4] {
        STATES.map(|state| map.cells.iter().map(|cell| cell.bytes_of(state)).sum())
    }

    #[test]
    fn a_map_that_fits_is_exact() {
        let runs = runs(&[64, 128, 3904, 8192]);
        let map = Map::bounded(&runs, 4);
        assert_eq!((map.cells.len(), map.cell_bytes), (4, 0));
        assert!(map.cells.iter().zip(&runs).all(|(cell, run)| {
            (cell.offset_bytes, cell.bytes(), cell.state()) == (run.offset_bytes, run.bytes, Some(run.state))
        }));
    }

    #[test]
    fn whole_cells_of_one_state_stay_exact_and_the_others_say_what_they_hold() {
        let map = Map::bounded(&runs(&[64, PAGE, 4 * PAGE - 64, PAGE]), 3);
        let shown: Vec<_> = map.cells.iter().map(|cell| (cell.offset_bytes, cell.bytes(), cell.state())).collect();
        assert_eq!(map.cell_bytes, 2 * PAGE);
        assert_eq!(
            shown,
            [(0, 2 * PAGE, None), (2 * PAGE, 2 * PAGE, Some(RunState::Free)), (4 * PAGE, 2 * PAGE, None)]
        );
        let first = STATES.map(|state| map.cells[0].bytes_of(state));
        assert_eq!(first, [64, PAGE, PAGE - 64, 0]);
    }

    #[test]
    fn any_map_is_bounded_covers_the_area_and_keeps_every_byte_of_every_state() {
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for round in 0..50 {
            let length = |_| {
                let most = 1 << random(12);
                64 * (1 + random(most))
            };
            let lengths: Vec<u64> = (0..5 * round + 1).map(length).collect();
            let exact = Map::bounded(&runs(&lengths), usize::MAX);
            for cells_max in [0, 1, 2, 10, 100] {
                let map = Map::bounded(&runs(&lengths), cells_max);
                assert!(map.cells.len() <= cells_max.max(1), "round {round}");
                assert_eq!(totals(&map), totals(&exact), "round {round}");
                let mut end_bytes = 0;
                for cell in &map.cells {
                    assert_eq!(cell.offset_bytes, end_bytes, "round {round}");
                    assert!(map.cell_bytes == 0 || cell.offset_bytes.is_multiple_of(map.cell_bytes), "round {round}");
                    assert!(cell.state().is_some() || cell.bytes() <= map.cell_bytes, "round {round}");
                    end_bytes = cell.end_bytes();
                }
                assert_eq!(end_bytes, lengths.iter().sum::<u64>(), "round {round}");
            }
        }
    }
}
