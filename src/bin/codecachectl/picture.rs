//! What an area holds, drawn as a grid of characters. Pure.

use codecached::proto::{ArenaArea, ArenaRun, RunState};

use crate::units;

/// Rows of a picture at most.
const ROWS_MAX: u64 = 12;
/// Columns of the offset in front of a row, with what stands between them and the grid.
const LABEL_COLUMNS: usize = 12;
/// Cells of a row at least, however narrow the terminal is.
const CELLS_MIN: u64 = 8;

/// A quarter, half, three quarters and all of a cell that is used.
const USED: [char; 4] = ['░', '▒', '▓', '█'];
/// A cell in which something lingers: up to a half of it has an owner, or more.
const LINGERING: [char; 2] = ['x', 'X'];
const FREE: char = '.';
const UNCOMMITTED: char = ' ';

/// What the characters mean.
pub(crate) const LEGEND: &str = "█▓▒░ used, all to a quarter   Xx lingering, more or less than half   . free   \
                                 blank not committed";

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Columns of a line, border and offset included.
    pub(crate) width: usize,
    /// With the terminal's colours.
    pub(crate) color: bool,
}

/// Bytes of each state in a cell; the rest is not committed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cell {
    used_bytes: u64,
    lingering_bytes: u64,
    free_bytes: u64,
}

/// The area up to its last committed byte, row by row, and a line about the rest. Nothing for an area without memory.
pub(crate) fn draw(area: &ArenaArea, granule_bytes: u64, style: Style) -> String {
    let end_bytes = area.runs.iter().filter(|run| has_memory(run)).map(end).max().unwrap_or(0);
    if end_bytes == 0 {
        return String::new();
    }
    let columns = (style.width.saturating_sub(LABEL_COLUMNS + 1) as u64).max(CELLS_MIN);
    // A power of two: the cells of a map that the daemon made coarser lie within those of the picture.
    let share_bytes = end_bytes.div_ceil(columns * ROWS_MAX).max(granule_bytes).max(area.cell_bytes).max(1);
    let cell_bytes = share_bytes.next_power_of_two();
    let cells = cells(&area.runs, end_bytes, cell_bytes);
    let mut text = String::new();
    for (row, cells) in cells.chunks(columns as usize).enumerate() {
        let offset = units::bytes(row as u64 * columns * cell_bytes);
        let blank = " ".repeat(columns as usize - cells.len());
        text += &format!("{offset:>10} |{}{blank}|\n", line(cells, cell_bytes, style.color));
    }
    text += &format!("{:>10}  one character is {}", "", units::bytes(cell_bytes));
    match area.bytes.saturating_sub(end_bytes) {
        0 => text + "\n",
        rest => text + &format!("; {} behind it not committed\n", units::bytes(rest)),
    }
}

fn has_memory(run: &ArenaRun) -> bool {
    run.state() != RunState::Uncommitted
}

fn end(run: &ArenaRun) -> u64 {
    run.offset_bytes.saturating_add(run.bytes)
}

fn cells(runs: &[ArenaRun], end_bytes: u64, cell_bytes: u64) -> Vec<Cell> {
    let mut cells = vec![Cell::default(); end_bytes.div_ceil(cell_bytes) as usize];
    for run in runs.iter().filter(|run| has_memory(run)) {
        let first = run.offset_bytes / cell_bytes;
        let touched = cells.iter_mut().enumerate().skip(first as usize);
        for (at, cell) in touched.take_while(|(at, _)| (*at as u64) * cell_bytes < end(run)) {
            let start_bytes = at as u64 * cell_bytes;
            let inside_bytes = end(run).min(start_bytes + cell_bytes) - run.offset_bytes.max(start_bytes);
            cell.add(run, inside_bytes);
        }
    }
    cells
}

impl Cell {
    /// Adds the part of a run that lies in this cell. A mixed run never reaches beyond one.
    fn add(&mut self, run: &ArenaRun, inside_bytes: u64) {
        match run.state() {
            RunState::Used => self.used_bytes += inside_bytes,
            RunState::Lingering => self.lingering_bytes += inside_bytes,
            RunState::Free => self.free_bytes += inside_bytes,
            RunState::Mixed => {
                self.used_bytes += run.used_bytes;
                self.lingering_bytes += run.lingering_bytes;
                self.free_bytes += run.free_bytes;
            }
            RunState::Uncommitted | RunState::Unspecified => {}
        }
    }

    /// What lingers is shown however little it is: it is rare, and what one looks for.
    fn state(&self) -> RunState {
        match self {
            Self { lingering_bytes: 1.., .. } => RunState::Lingering,
            Self { used_bytes: 1.., .. } => RunState::Used,
            Self { free_bytes: 1.., .. } => RunState::Free,
            _ => RunState::Uncommitted,
        }
    }

    fn character(&self, cell_bytes: u64) -> char {
        let owned_bytes = self.used_bytes + self.lingering_bytes;
        let shade = |shades: &[char]| {
            let at = (owned_bytes * shades.len() as u64).div_ceil(cell_bytes).max(1) - 1;
            shades[(at as usize).min(shades.len() - 1)]
        };
        match self.state() {
            RunState::Lingering => shade(&LINGERING),
            RunState::Used => shade(&USED),
            RunState::Free => FREE,
            RunState::Uncommitted | RunState::Mixed | RunState::Unspecified => UNCOMMITTED,
        }
    }
}

/// One row; a colour is set where it changes.
fn line(cells: &[Cell], cell_bytes: u64, color: bool) -> String {
    let mut text = String::new();
    for same in cells.chunk_by(|a, b| a.state() == b.state()) {
        let characters: String = same.iter().map(|cell| cell.character(cell_bytes)).collect();
        match same.first().and_then(|cell| escape(cell.state())).filter(|_| color) {
            Some(escape) => text += &format!("\x1b[{escape}m{characters}\x1b[0m"),
            None => text += &characters,
        }
    }
    text
}

fn escape(state: RunState) -> Option<u8> {
    match state {
        RunState::Used => Some(32),
        RunState::Lingering => Some(33),
        RunState::Free => Some(36),
        RunState::Uncommitted | RunState::Mixed | RunState::Unspecified => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { width: 29, color: false };

    fn area(bytes: u64, runs: &[(u64, RunState)]) -> ArenaArea {
        let mut offset_bytes = 0;
        let run = |&(bytes, state): &(u64, RunState)| {
            let run = ArenaRun { offset_bytes, bytes, state: state.into(), ..ArenaRun::default() };
            offset_bytes += bytes;
            run
        };
        let runs: Vec<ArenaRun> = runs.iter().map(run).collect();
        ArenaArea { bytes, runs, ..ArenaArea::default() }
    }

    #[test]
    fn a_picture_shows_what_is_used_lingers_and_is_free_and_tells_of_the_rest() {
        use RunState::{Free, Lingering, Uncommitted, Used};
        let area = area(
            2 << 20,
            &[
                (1024, Used),
                (64, Free),
                (448, Used),
                (512, Free),
                (64, Lingering),
                (192, Used),
                (1792, Uncommitted),
                (64, Used),
                (64, Free),
                (128, Used),
                (256, Lingering),
                (1024, Free),
                ((2 << 20) - 5632, Uncommitted),
            ],
        );
        let wanted = [
            "       0 B |████▓█..X       |",
            "     4 KiB |▓X....          |",
            "            one character is 256 B; 2 MiB behind it not committed",
        ];
        assert_eq!(draw(&area, 256, PLAIN).lines().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn a_cell_is_never_finer_than_a_granule_or_the_map() {
        let mut area = area(4096, &[(64, RunState::Used), (4032, RunState::Free)]);
        assert!(draw(&area, 256, PLAIN).contains("one character is 256 B\n"));
        area.cell_bytes = 4096;
        assert!(draw(&area, 64, PLAIN).contains("one character is 4 KiB\n"));
    }

    #[test]
    fn a_picture_has_so_many_rows_and_columns_at_most() {
        for (end_bytes, width) in [(64, 40), (1 << 20, 21), (256 << 20, 100), ((256 << 20) - 64, 7), (1 << 28, 1000)] {
            let text = draw(&area(256 << 20, &[(end_bytes, RunState::Used)]), 64, Style { width, color: false });
            let rows: Vec<&str> = text.lines().filter(|line| line.ends_with('|')).collect();
            assert!((1..=ROWS_MAX as usize).contains(&rows.len()), "{text}");
            let most = width.max(LABEL_COLUMNS + 1 + CELLS_MIN as usize);
            assert!(rows.iter().all(|row| row.chars().count() == most), "{width}: {text}");
        }
    }

    #[test]
    fn a_mixed_run_counts_what_it_says() {
        let mixed = ArenaRun {
            bytes: 4096,
            state: RunState::Mixed.into(),
            used_bytes: 3000,
            free_bytes: 1096,
            ..ArenaRun::default()
        };
        let area = ArenaArea { bytes: 4096, cell_bytes: 4096, runs: vec![mixed], ..ArenaArea::default() };
        assert!(draw(&area, 64, PLAIN).contains("|▓ "));
    }

    #[test]
    fn colours_change_with_the_state_and_end_with_it() {
        let area = area(512, &[(128, RunState::Used), (64, RunState::Lingering), (64, RunState::Free)]);
        let text = draw(&area, 64, Style { width: 29, color: true });
        assert!(text.contains("|\x1b[32m██\x1b[0m\x1b[33mX\x1b[0m\x1b[36m.\x1b[0m    "), "{text:?}");
        assert!(!draw(&area, 64, PLAIN).contains('\x1b'));
    }

    #[test]
    fn an_area_without_memory_is_not_drawn() {
        assert_eq!(draw(&area(4096, &[(4096, RunState::Uncommitted)]), 64, PLAIN), "");
        assert_eq!(draw(&ArenaArea::default(), 64, PLAIN), "");
    }
}
