//! A batch: one function over columns of numbers.
//!
//! A batch is one call that runs a loop. Its rows share what a call has: its limits, its heap and thread, which are not
//! made anew between them, and the modes of the processor that a row may leave behind. Columns are read where they came
//! in, unaligned, one number at a time, so code never gets a pointer into them.

use bytes::Bytes;

use super::call::{ARGS_MAX, ArgError, Done, ResultType};

/// Rows of a batch at most: as many as the narrowest column of 16 MiB has, which is what the largest message holds.
pub const ROWS_MAX: usize = 4 << 20;

/// Type of the values of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// 32-bit signed integers.
    I32,
    /// 32-bit unsigned integers.
    U32,
    /// 64-bit signed integers.
    I64,
    /// 64-bit unsigned integers.
    U64,
    /// C `float`s.
    F32,
    /// C `double`s.
    F64,
}

impl ColumnType {
    /// Bytes of one value.
    pub fn width_bytes(self) -> usize {
        match self {
            ColumnType::I32 | ColumnType::U32 | ColumnType::F32 => 4,
            ColumnType::I64 | ColumnType::U64 | ColumnType::F64 => 8,
        }
    }

    /// Whether its values go in vector registers, if one is left.
    pub(super) fn is_float(self) -> bool {
        matches!(self, ColumnType::F32 | ColumnType::F64)
    }

    /// Type of the column that results of this type make; `None` for void.
    pub fn of_result(result: ResultType) -> Option<ColumnType> {
        Some(match result {
            ResultType::Void => return None,
            ResultType::I32 => ColumnType::I32,
            ResultType::U32 => ColumnType::U32,
            ResultType::I64 => ColumnType::I64,
            ResultType::U64 => ColumnType::U64,
            ResultType::F32 => ColumnType::F32,
            ResultType::F64 => ColumnType::F64,
        })
    }
}

/// One argument of all calls of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Type of the values.
    pub kind: ColumnType,
    /// Little-endian values without gaps: one for each row, or a single one for all rows.
    pub values: Bytes,
}

impl Column {
    /// Whether one value stands for all rows, and which, as a register has it.
    pub(super) fn constant(&self) -> Option<u64> {
        match (self.kind, self.values.len()) {
            (ColumnType::I32, 4) => self.values.first_chunk().map(|bytes| i64::from(i32::from_le_bytes(*bytes)) as u64),
            (ColumnType::U32 | ColumnType::F32, 4) => {
                self.values.first_chunk().map(|bytes| u32::from_le_bytes(*bytes).into())
            }
            (ColumnType::I64 | ColumnType::U64 | ColumnType::F64, 8) => {
                self.values.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
            }
            _ => None,
        }
    }
}

/// Why columns make no batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// More columns than a call has arguments.
    #[error(transparent)]
    Columns(#[from] ArgError),
    /// More than [`ROWS_MAX`].
    #[error("{given} rows, at most {ROWS_MAX} go into a batch")]
    TooManyRows {
        /// How many the batch has.
        given: u64,
    },
    /// A column that is neither as long as the batch nor a single value.
    #[error(
        "column {column} has {given_bytes} bytes, must have {rows_bytes} for all rows or {width_bytes} for one value"
    )]
    Length {
        /// Which one, from 0.
        column: usize,
        /// Bytes that it has.
        given_bytes: usize,
        /// Bytes of a value for each row.
        rows_bytes: usize,
        /// Bytes of one value.
        width_bytes: usize,
    },
}

/// Columns of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    rows: usize,
    columns: Vec<Column>,
}

impl Batch {
    /// Checks the lengths of `columns`, which are the arguments in the order of the C signature.
    pub fn new(rows: u64, columns: Vec<Column>) -> Result<Batch, BatchError> {
        if columns.len() > ARGS_MAX {
            return Err(ArgError::TooMany { given: columns.len() }.into());
        }
        if rows > ROWS_MAX as u64 {
            return Err(BatchError::TooManyRows { given: rows });
        }
        let rows = rows as usize;
        for (at, Column { kind, values }) in columns.iter().enumerate() {
            let (width_bytes, given_bytes) = (kind.width_bytes(), values.len());
            let rows_bytes = rows * width_bytes;
            if given_bytes != rows_bytes && given_bytes != width_bytes {
                return Err(BatchError::Length { column: at, given_bytes, rows_bytes, width_bytes });
            }
        }
        Ok(Batch { rows, columns })
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }
}

/// A finished batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchDone {
    /// How it ended, without a value or buffers, and the times of all rows together.
    pub done: Done,
    /// Rows that returned: all of them, or those before the row that trapped.
    pub rows: usize,
    /// Their results as a column; empty for void.
    pub results: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(kind: ColumnType, bytes: usize) -> Column {
        Column { kind, values: vec![0xff; bytes].into() }
    }

    #[test]
    fn columns_are_as_long_as_the_batch_or_hold_one_value() {
        for bytes in [8, 24] {
            assert!(Batch::new(3, vec![column(ColumnType::I64, bytes)]).is_ok(), "{bytes} bytes");
        }
        for bytes in [0, 1, 4, 16, 23, 25, 32] {
            let refused = Batch::new(3, vec![column(ColumnType::I32, 12), column(ColumnType::F64, bytes)]).unwrap_err();
            let expected = BatchError::Length { column: 1, given_bytes: bytes, rows_bytes: 24, width_bytes: 8 };
            assert_eq!(refused, expected);
        }
        assert!(Batch::new(0, vec![column(ColumnType::U32, 0), column(ColumnType::U32, 4)]).is_ok());
        assert!(Batch::new(0, vec![column(ColumnType::U32, 8)]).is_err());
    }

    #[test]
    fn rows_and_columns_are_bounded() {
        let constant = || column(ColumnType::I32, 4);
        assert!(Batch::new(ROWS_MAX as u64, vec![constant(); ARGS_MAX]).is_ok());
        let rows = ROWS_MAX as u64 + 1;
        assert_eq!(Batch::new(rows, vec![]), Err(BatchError::TooManyRows { given: rows }));
        assert_eq!(Batch::new(u64::MAX, vec![]), Err(BatchError::TooManyRows { given: u64::MAX }));
        let given = ARGS_MAX + 1;
        assert_eq!(Batch::new(1, vec![constant(); given]), Err(ArgError::TooMany { given }.into()));
    }

    #[test]
    fn a_single_value_is_what_a_register_has_of_it() {
        let of = |kind, bytes: &[u8]| Column { kind, values: Bytes::copy_from_slice(bytes) }.constant();
        assert_eq!(of(ColumnType::I32, &(-2_i32).to_le_bytes()), Some(-2_i64 as u64));
        assert_eq!(of(ColumnType::U32, &[0xff; 4]), Some(u32::MAX.into()));
        assert_eq!(of(ColumnType::F64, &1.5_f64.to_le_bytes()), Some(1.5_f64.to_bits()));
        assert_eq!((of(ColumnType::I64, &[1; 4]), of(ColumnType::I32, &[1; 8])), (None, None));
    }
}
