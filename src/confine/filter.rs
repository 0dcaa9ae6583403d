//! Which system calls the process may make once it has started, as a program for the kernel.
//!
//! What is named here is refused with EPERM, all else is made: the process is held to what it does, and a call that
//! nobody thought of fails as it would for want of a right, instead of ending the daemon. The executors' own filter, which
//! is a list of what is allowed, comes on top. Pure: nothing here calls the system.

use std::ops::Range;

use libc::{c_int, c_long, sock_filter};

use super::program::{ALLOWED, Program, Test};

/// What who asks is answered.
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

/// The bit of O_TMPFILE that is its own.
const TMPFILE: c_int = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// Refused whatever the arguments.
const NEVER: &[c_long] = &[
    libc::SYS_execve,   // another program
    libc::SYS_execveat, // as above
    // Memory that is executable, or may be mapped so by whoever is handed its descriptor.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_uselib,
    libc::SYS_remap_file_pages,  // moves what executable pages show
    libc::SYS_personality,       // READ_IMPLIES_EXEC
    libc::SYS_process_vm_writev, // writes what this process may not
    libc::SYS_ptrace,            // as above
    // Opens for writing by other names, or changes files without.
    libc::SYS_creat,
    libc::SYS_openat2, // its flags lie in memory, where no filter sees them
    libc::SYS_open_by_handle_at,
    libc::SYS_truncate,
    // Has calls of its own, which no filter sees.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Programs in the kernel, and faults that are answered from outside of it.
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
];

/// What a program must know of this process.
#[derive(Clone, Debug, Default)]
pub(super) struct Process {
    /// Where its executable memory lies.
    pub(super) code: Vec<Range<u64>>,
    /// That memory changes between writable and executable, for want of a second view.
    pub(super) flips_protection: bool,
    /// Files are opened to append to them.
    pub(super) appends: bool,
}

/// The program for a process.
pub(super) fn program(process: &Process) -> Vec<sock_filter> {
    let mut program = Program::native(REFUSED).x32(REFUSED).calls(NEVER, REFUSED);
    let executable = Test::bits(2, libc::PROT_EXEC, libc::PROT_EXEC);
    program = program.call(libc::SYS_mmap, &[executable], REFUSED);
    let flipped = Test::is(2, (libc::PROT_READ | libc::PROT_EXEC) as u32);
    for range in process.code.iter().filter(|range| process.flips_protection && !range.is_empty()) {
        let [from, to] = Test::within(0, range);
        program = program.call(libc::SYS_mprotect, &[flipped, from, to], ALLOWED);
    }
    for number in [libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        program = program.call(number, &[executable], REFUSED);
    }
    program = program.call(libc::SYS_shmat, &[Test::bits(2, libc::SHM_EXEC, libc::SHM_EXEC)], REFUSED);
    // Moved, or shown a second time, executable memory would be where it was not mapped.
    for range in process.code.iter().filter(|range| !range.is_empty()) {
        program = program.call(libc::SYS_mremap, &Test::within(0, range), REFUSED);
    }
    for (number, flags) in [(libc::SYS_openat, 2), (libc::SYS_open, 1)] {
        program = opens(program, number, flags, process.appends);
    }
    program.otherwise(ALLOWED)
}

/// To read what is there; or to append, if that is wanted. Nothing else.
fn opens(program: Program, number: c_long, flags: u32, appends: bool) -> Program {
    let reads = Test::bits(flags, libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | TMPFILE, libc::O_RDONLY);
    let appending = libc::O_WRONLY | libc::O_APPEND;
    let adds = Test::bits(flags, libc::O_ACCMODE | libc::O_APPEND | libc::O_TRUNC | TMPFILE, appending);
    let mut program = program.call(number, &[reads], ALLOWED);
    if appends {
        program = program.call(number, &[adds], ALLOWED);
    }
    program.call(number, &[], REFUSED)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
