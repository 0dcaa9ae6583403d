//! What standard output is, and how much fits on a line of it.

use std::{
    env,
    io::{self, IsTerminal},
};

use crate::args::Color;

/// Columns where nothing says how many there are.
const COLUMNS_DEFAULT: usize = 100;

/// Columns of a line: those that were asked for, else `COLUMNS`, else the terminal's.
pub(crate) fn columns(asked: Option<u16>) -> usize {
    let variable = || env::var("COLUMNS").ok()?.parse().ok().filter(|columns| *columns > 0);
    let terminal = || terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0).filter(|it| *it > 0);
    asked.or_else(variable).or_else(terminal).map_or(COLUMNS_DEFAULT, usize::from)
}

/// Whether to use colours.
pub(crate) fn is_colored(asked: Color) -> bool {
    match asked {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
            !refused && !dumb && io::stdout().is_terminal()
        }
    }
}
