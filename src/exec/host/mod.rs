//! Functions of this process that code may call.
//!
//! What holds for all of them: they take no lock, keep no state that outlives the call, own nothing and cannot panic,
//! so the signal handler may end a call in the middle of any. They get pointers from hostile code: a fault inside
//! them is the code's, and recovered like any other. Each is entered through a few instructions that make the
//! direction flag what the ABI promises; code may have left it set. Why each family keeps to that stands in its file.
//!
//! Not offered, however often objects ask for it: what uses the process's allocator (`qsort`, `snprintf`), locks
//! (`stdio`), statics (`strtok`, `rand`, `lgamma` with its `signgam`), the environment, or the address of anything of
//! the executor's thread (`__errno_location`; code with a thread pointer of its own gets its own).
//!
//! The C library is bound when the process starts (Rust links so), hence no call enters the dynamic linker.
#![allow(unsafe_code)] // Functions with the C ABI, in part assembly.

/// A table of functions that are passed on to the library that has them: `names; name => other name`. A jump passes
/// on all registers and the arguments on the stack, so it does not matter what they are.
macro_rules! pass_on {
    ($($name:ident),* $(,)?; $($alias:ident => $target:ident),* $(,)?) => {
        /// Only their addresses are used.
        #[allow(unsafe_code)] // Their signatures do not matter to a jump.
        mod target {
            unsafe extern "C" {
                $(pub(super) fn $name();)*
            }
        }
        #[allow(unsafe_code)] // Assembly.
        mod pass {
            $(
                #[unsafe(naked)]
                pub(super) unsafe extern "C" fn $name() {
                    std::arch::naked_asm!("cld", "jmp {target}@PLT", target = sym super::target::$name)
                }
            )*
            $(
                #[unsafe(naked)]
                pub(super) unsafe extern "C" fn $alias() {
                    std::arch::naked_asm!("cld", "jmp {target}@PLT", target = sym super::target::$target)
                }
            )*
        }
        pub(super) const PASSED: &[(&str, crate::exec::host::Entry)] =
            &[$((stringify!($name), pass::$name),)* $((stringify!($alias), pass::$alias),)*];
    };
}

mod allocate;
mod characters;
mod checked;
mod jumps;
mod math;
mod runtime;
mod search;
mod startup;
mod strings;

use super::arch::abort_trap;

/// Version of the table: one more whenever functions are added. Names are never removed within a major version of
/// the daemon, so code that links at one version links at every later one. `names.txt` tells what came when.
pub const IMPORTS_VERSION: u32 = 2;

/// How a function is entered; its true signature is C's.
type Entry = unsafe extern "C" fn();

const FAMILIES: [&[(&str, Entry)]; 12] = [
    allocate::OWN,
    characters::PASSED,
    characters::OWN,
    checked::ENDS,
    checked::OWN,
    jumps::OWN,
    math::PASSED,
    runtime::PASSED,
    runtime::OWN,
    search::OWN,
    startup::OWN,
    strings::PASSED,
];

/// Names and addresses of what is offered.
pub fn imports() -> Vec<(&'static str, u64)> {
    FAMILIES.iter().copied().flatten().map(|&(name, function)| (name, function as *const () as u64)).collect()
}

/// Addresses of the functions that code with a thread pointer of its own calls without exchanging it: they do not
/// depend on it, and either come back in unusual ways, or look at who called, or call code.
pub(super) fn direct() -> Vec<u64> {
    let families = [characters::OWN, checked::ENDS, jumps::OWN, search::OWN];
    families.into_iter().flatten().map(|&(_, function)| function as *const () as u64).collect()
}

/// Traps with the caller's return address where the handler looks for it.
#[unsafe(naked)]
unsafe extern "C" fn abort() {
    std::arch::naked_asm!("mov rax, [rsp]", "jmp {trap}", trap = sym abort_trap)
}

/// The same for a function that was entered with the stack pointer `sp`.
#[unsafe(naked)]
unsafe extern "C" fn abort_from(sp: usize) -> ! {
    std::arch::naked_asm!("mov rax, [rdi]", "jmp {trap}", trap = sym abort_trap)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_import_has_one_name_and_an_address() {
        let mut names: Vec<_> = imports().into_iter().map(|(name, address)| (name, address != 0)).collect();
        assert!(names.iter().all(|(_, present)| *present));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_changed_table_has_a_new_version_and_nothing_is_removed() {
        // By name: the version that added it.
        let mut listed: BTreeMap<&str, u32> = BTreeMap::new();
        for line in include_str!("names.txt").lines() {
            let (version, names) = line.split_once(' ').unwrap();
            listed.extend(names.split(' ').map(|name| (name, version.parse::<u32>().unwrap())));
        }
        let offered: BTreeMap<&str, u64> = imports().into_iter().collect();
        let added: Vec<_> = offered.keys().filter(|name| !listed.contains_key(*name)).copied().collect();
        let removed: Vec<_> = listed.keys().filter(|name| !offered.contains_key(*name)).copied().collect();
        assert!(removed.is_empty(), "clients may depend on {removed:?}");
        assert!(added.is_empty(), "of a new IMPORTS_VERSION, names.txt gets: {}", added.join(" "));
        assert_eq!(listed.values().max(), Some(&IMPORTS_VERSION));
    }
}
