//! Tables with aligned columns.

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows under a head.
pub(crate) struct Table<const COLUMNS: usize> {
    columns: [Align; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// An empty table with a head.
    pub(crate) fn new(head: [(&str, Align); COLUMNS]) -> Self {
        Self { columns: head.map(|(_, align)| align), rows: vec![head.map(|(name, _)| name.to_owned())] }
    }

    /// Adds a row at the end.
    pub(crate) fn row(&mut self, row: [String; COLUMNS]) {
        self.rows.push(row);
    }

    /// The table as lines.
    pub(crate) fn render(&self) -> String {
        let widths: [usize; COLUMNS] =
            std::array::from_fn(|column| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
        self.rows.iter().map(|row| line(row, &widths, &self.columns)).collect()
    }
}

/// Names and values, one pair a line, the values below each other.
pub(crate) fn pairs<N: AsRef<str>>(pairs: impl IntoIterator<Item = (N, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let width = pairs.iter().map(|(name, _)| name.as_ref().chars().count()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{:width$}  {value}\n", name.as_ref())).collect()
}

fn line(cells: &[String], widths: &[usize], columns: &[Align]) -> String {
    let padded = cells.iter().zip(widths).zip(columns).map(|((cell, &width), align)| match align {
        Align::Left => format!("{cell:<width$}"),
        Align::Right => format!("{cell:>width$}"),
    });
    let line = padded.collect::<Vec<_>>().join("  ");
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([("KEY", Align::Left), ("BYTES", Align::Right)]);
        table.row(["ä-long-key".into(), "1".into()]);
        table.row(["k".into(), "1234567".into()]);
        assert_eq!(table.render(), "KEY           BYTES\nä-long-key        1\nk           1234567\n");
    }

    #[test]
    fn pairs_line_up() {
        assert_eq!(pairs([("a", "1".to_owned()), ("long", "2".to_owned())]), "a     1\nlong  2\n");
    }
}
