//! The figures: each with a name, a unit and the values of all repetitions.

use crate::peer::Peer;

pub(crate) const MIB: f64 = 1_048_576.0;
const DIGITS: i32 = 6;

struct Row {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

impl Row {
    fn median(&self) -> f64 {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }
}

/// Rows in the order in which they were first added.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    printed: usize,
}

impl Report {
    /// Adds a value to the row of this name.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        let name = name.into();
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row { name, unit, values: vec![value] }),
        }
    }

    /// The median of a row.
    pub(crate) fn median(&self, name: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.name == name).map(Row::median)
    }

    /// Prints what was not printed yet.
    pub(crate) fn print_new(&mut self) {
        for row in &self.rows[self.printed..] {
            println!("arena.{} {} {}", row.name, short(row.median()), row.unit);
        }
        self.printed = self.rows.len();
    }

    /// Prints how each row compares with the peer's of the same name, where that is not zero.
    pub(crate) fn print_ratios(&self, peer: &Peer) {
        for row in &self.rows {
            if let Some(theirs) = peer.value(&row.name).filter(|it| *it != 0.0) {
                println!("arena.ratio.{} {} x", row.name, short(row.median() / theirs));
            }
        }
    }
}

/// A number to six digits, without zeros at the end.
pub(crate) fn short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let decimals = (DIGITS - 1 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
