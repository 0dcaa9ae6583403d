//! What runs before the first call asks for: to be told of the end, and what the processor is.
//!
//! An entry is never exited, only forgotten, so a function that is to run at its end is taken and never called: that is
//! what a process which is killed does, too. What the processor is has been written before (`__cpu_model`), so there is
//! nothing to initialise.
#![allow(unsafe_code)] // Functions with the C ABI in assembly.

use super::Entry;

pub(super) const OWN: &[(&str, Entry)] =
    &[("__cpu_indicator_init", succeed), ("__cxa_atexit", succeed), ("atexit", succeed)];

/// Returns 0, whatever the arguments.
#[unsafe(naked)]
unsafe extern "C" fn succeed() {
    std::arch::naked_asm!("xor eax, eax", "ret")
}
