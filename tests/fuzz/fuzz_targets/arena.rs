//! Any bytes as operations on the spans of an area: what is granted is free, what is refused cannot be had, and what is
//! not exactly a span is not taken back.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod arena {
    #[path = "../../../../src/arena/blocks.rs"]
    mod blocks;
    #[path = "../../../../src/arena/cells.rs"]
    mod cells;
    #[path = "../../../../src/arena/classes.rs"]
    mod classes;
    #[path = "../../../../src/arena/free_error.rs"]
    mod free_error;
    pub(crate) mod operations;
}

fuzz_target!(|bytes: &[u8]| arena::operations::run(bytes));
