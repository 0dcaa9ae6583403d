//! Classes and cases of characters.
//!
//! The functions read tables of the C library; the macros of `<ctype.h>` ask for the address of a pointer to one.
//! The C library's pointers are variables of the executor's thread, which code must not get hold of, so there are
//! constants here instead, with the tables of the "C" locale, which is the one the functions use.
#![allow(unsafe_code)] // Functions with the C ABI in assembly, and pointers in constants.

use std::arch::naked_asm;

use super::Entry;

pass_on! {
    isalnum, isalpha, isblank, iscntrl, isdigit, isgraph, islower, isprint, ispunct, isspace, isupper, isxdigit,
    tolower, toupper;
}

pub(super) const OWN: &[(&str, Entry)] =
    &[("__ctype_b_loc", classes), ("__ctype_tolower_loc", lower), ("__ctype_toupper_loc", upper)];

/// Entries for -128 (a negative `char`) to 255, with -1 for the end of a file.
const ENTRIES: usize = 384;
const NEGATIVE: usize = 128;

/// What `__ctype_*_loc` point to: the entry for character 0.
#[repr(transparent)]
struct Table<T: 'static>(*const T);

// SAFETY: points to a constant.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T> Table<T> {
    const fn new(entries: &'static [T; ENTRIES]) -> Self {
        Table(entries.split_at(NEGATIVE).1.as_ptr())
    }
}

static CLASSES: Table<u16> = Table::new(const { &classes_of_all() });
static LOWER: Table<i32> = Table::new(const { &cases(true) });
static UPPER: Table<i32> = Table::new(const { &cases(false) });

const fn classes_of_all() -> [u16; ENTRIES] {
    let mut entries = [0; ENTRIES];
    let mut character = 0;
    while character < 128 {
        entries[NEGATIVE + character as usize] = class(character);
        character += 1;
    }
    entries
}

/// The bits of the C library's header.
const fn class(character: u8) -> u16 {
    let c = character;
    (c.is_ascii_uppercase() as u16) << 8
        | (c.is_ascii_lowercase() as u16) << 9
        | (c.is_ascii_alphabetic() as u16) << 10
        | (c.is_ascii_digit() as u16) << 11
        | (c.is_ascii_hexdigit() as u16) << 12
        | (matches!(c, b'\t'..=b'\r' | b' ') as u16) << 13
        | (matches!(c, b' '..=b'~') as u16) << 14
        | (c.is_ascii_graphic() as u16) << 15
        | matches!(c, b'\t' | b' ') as u16
        | (c.is_ascii_control() as u16) << 1
        | (c.is_ascii_punctuation() as u16) << 2
        | (c.is_ascii_alphanumeric() as u16) << 3
}

const fn cases(to_lower: bool) -> [i32; ENTRIES] {
    let mut entries = [0; ENTRIES];
    let mut index = 0;
    while index < ENTRIES {
        let character = (index as u8).wrapping_sub(NEGATIVE as u8);
        let other = if to_lower { character.to_ascii_lowercase() } else { character.to_ascii_uppercase() };
        entries[index] = other as i32;
        index += 1;
    }
    entries[NEGATIVE - 1] = -1;
    entries
}

#[unsafe(naked)]
unsafe extern "C" fn classes() {
    naked_asm!("lea rax, [rip + {table}]", "ret", table = sym CLASSES)
}

#[unsafe(naked)]
unsafe extern "C" fn lower() {
    naked_asm!("lea rax, [rip + {table}]", "ret", table = sym LOWER)
}

#[unsafe(naked)]
unsafe extern "C" fn upper() {
    naked_asm!("lea rax, [rip + {table}]", "ret", table = sym UPPER)
}
