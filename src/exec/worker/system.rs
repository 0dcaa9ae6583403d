//! The system calls of worker processes and of those who start them.
#![allow(unsafe_code)] // Asks the kernel.

use std::ffi::CStr;
use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use libc::{c_int, c_long, c_ulong, pid_t};
use nix::errno::Errno;

/// Where processes are told of, and tell of themselves.
pub(super) const PROCESSES: &str = "/proc";
/// How often a process with several threads is looked at again before it is not forked.
const THREAD_LOOKS: u32 = 50;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// By itself, with this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// Sleeps while the word is `value`, up to `limit`; may come back for no reason. The word may be shared between processes.
pub(super) fn futex_wait(word: &AtomicU32, value: u32, limit: Option<Duration>) {
    let time = limit.map(|limit| libc::timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the word is a reference, the time a local or null. Every error means to look again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, time) };
}

/// Wakes one that sleeps on the word.
pub(super) fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word is a reference.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// The process that forks is the caller's child.
///
/// # Errors
/// Of the system; `EBUSY` if this process has more than one thread: a child would have locks that nobody unlocks.
pub(super) fn fork() -> Result<Option<pid_t>, Errno> {
    // One that was joined a moment ago may still be listed.
    let mut looks = 0..THREAD_LOOKS;
    while threads()? != 1 {
        looks.next().ok_or(Errno::EBUSY)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: there is one thread, so the child finds everything as it is here.
    let pid = Errno::result(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid))
}

/// The process that is forked is a child of the caller's parent, which waits for it. `None` in the child. For processes
/// without other threads.
pub(super) fn fork_sibling() -> Result<Option<pid_t>, Errno> {
    let flags = c_ulong::from(libc::CLONE_PARENT as u32);
    let nothing: c_ulong = 0;
    // SAFETY: like fork, without what the C library does before and after, which concerns other threads.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, nothing, nothing, nothing, nothing) })?;
    Ok((pid != 0).then_some(pid as pid_t))
}

/// Threads of this process.
pub(super) fn threads() -> Result<usize, Errno> {
    let tasks = fs::read_dir("/proc/self/task").map_err(|error| errno_of(&error))?;
    Ok(tasks.count())
}

/// Ends the calling process and nothing else.
pub(super) fn exit(status: c_int) -> ! {
    // SAFETY: does not come back.
    unsafe { libc::_exit(status) }
}

pub(super) fn parent() -> pid_t {
    // SAFETY: has no preconditions.
    unsafe { libc::getppid() }
}

/// The calling process ends when `parent` does, leaves no core, and others of its user cannot look into it.
pub(super) fn bind_to(parent_pid: pid_t) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong)?;
    prctl(libc::PR_SET_DUMPABLE, 0)?;
    // It may have ended before the first line.
    if parent() == parent_pid { Ok(()) } else { Err(Errno::ESRCH) }
}

/// If memory is short in the machine, the calling process goes first. Others of its user can look into it from here to
/// [`bind_to`]: as long as they cannot, what it would write to is not its own.
pub(super) fn go_first() -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, 1)?;
    let path = Path::new(PROCESSES).join("self/oom_score_adj");
    let written = fs::OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(b"1000"));
    written.map_err(|error| errno_of(&error))
}

fn prctl(option: c_int, value: c_ulong) -> Result<(), Errno> {
    let unused: c_ulong = 0;
    // SAFETY: these options change the calling process, and take numbers.
    Errno::result(unsafe { libc::prctl(option, value, unused, unused, unused) }).map(drop)
}

/// Sets a limit of the calling process, soft and hard.
pub(super) fn limit(resource: libc::__rlimit_resource_t, value: u64) -> Result<(), Errno> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: reads a local.
    Errno::result(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// Bytes of addresses that the calling process has mapped.
pub(super) fn mapped_bytes() -> Result<u64, Errno> {
    let text = fs::read_to_string("/proc/self/statm").map_err(|error| errno_of(&error))?;
    let pages: Option<u64> = text.split(' ').next().and_then(|pages| pages.parse().ok());
    pages.and_then(|pages| pages.checked_mul(4096)).ok_or(Errno::EIO)
}

/// Closes all descriptors in a range, both ends included.
pub(super) fn close_all(first: u32, last: u32) -> Result<(), Errno> {
    let nothing: c_long = 0;
    // SAFETY: who calls this uses none of them any more.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, nothing) }).map(drop)
}

/// Unmaps addresses that the caller owns and nobody uses.
pub(super) fn unmap(range: Range<usize>) -> Result<(), Errno> {
    if range.is_empty() {
        return Ok(());
    }
    // SAFETY: the callers pass memory of other workers, which this process has no reference to, or their own at its end.
    Errno::result(unsafe { libc::munmap(range.start as *mut libc::c_void, range.len()) }).map(drop)
}

/// Makes memory that the caller will not write any more read-only.
pub(super) fn make_read_only(range: Range<usize>) -> Result<(), Errno> {
    let start = range.start as *mut libc::c_void;
    // SAFETY: who calls this writes there no more, and nobody else is in the process.
    Errno::result(unsafe { libc::mprotect(start, range.len(), libc::PROT_READ) }).map(drop)
}

/// What the process is called in lists.
pub(super) fn set_name(name: &CStr) {
    // SAFETY: reads a string that ends. That it has another name is no harm.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Moves a mapping to `to`, in the place of what is there: reserved addresses that nobody uses.
pub(super) fn move_mapping(from: Range<usize>, to: usize) -> Result<(), Errno> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let (from, bytes) = (from.start as *mut libc::c_void, from.len());
    // SAFETY: the caller owns both ranges, and has no reference into either.
    let moved = unsafe { libc::mremap(from, bytes, bytes, flags, to as *mut libc::c_void) };
    if moved == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// Makes addresses at which nothing is mapped inaccessible, and keeps them from being used for anything else.
pub(super) fn reserve_at(range: Range<usize>) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let (at, bytes) = (range.start as *mut libc::c_void, range.len());
    // SAFETY: with this flag the kernel replaces nothing that is there.
    let mapped = unsafe { libc::mmap(at, bytes, libc::PROT_NONE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// A descriptor of a child that nobody has waited for yet.
pub(super) fn open_process(pid: pid_t) -> Result<OwnedFd, Errno> {
    let nothing: c_long = 0;
    // SAFETY: takes numbers.
    let descriptor = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, nothing) })?;
    // SAFETY: the kernel made it a moment ago, for nobody else. It is closed on exec.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

/// Ends a child that nobody has waited for, and has no descriptor.
pub(super) fn discard(pid: pid_t) {
    // SAFETY: takes numbers; that of a child stays its own until it is waited for.
    if unsafe { libc::kill(pid, libc::SIGKILL) } != 0 {
        // It would be waited for without end.
        return;
    }
    // SAFETY: as above, and writes nowhere.
    let wait = || Errno::result(unsafe { libc::waitpid(pid, ptr::null_mut(), 0) });
    while wait() == Err(Errno::EINTR) {}
}

/// Children of the calling process can be waited for, whatever it was started with.
pub(super) fn keep_children() -> Result<(), Errno> {
    // SAFETY: sets a signal to its default action, which is to do nothing.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(Errno::last()) } else { Ok(()) }
}

/// Sends a signal to a process; to nobody if it has ended.
pub(super) fn send_signal(process: BorrowedFd<'_>, signal: c_int) {
    let nothing: c_long = 0;
    // SAFETY: takes numbers and no siginfo. That the process has ended is as good.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, nothing, nothing) };
}

/// How a child ended, which it then is no more; `None` if it has not, or `wait` was not asked for.
pub(super) fn reap(process: BorrowedFd<'_>, wait: bool) -> Option<Death> {
    // SAFETY: a plain C struct that the kernel fills.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | if wait { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: writes to a local.
        let result = unsafe { libc::waitid(libc::P_PIDFD, process.as_raw_fd() as libc::id_t, &raw mut info, flags) };
        match Errno::result(result) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            // Somebody else has waited for it.
            Err(Errno::ECHILD) => return Some(Death::Signal(0)),
            Err(_) => return None,
        }
    }
    // SAFETY: the kernel filled it, or it is zero.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    if pid == 0 {
        return None;
    }
    Some(if info.si_code == libc::CLD_EXITED { Death::Exit(status) } else { Death::Signal(status) })
}

/// The clock of a process's CPU time.
pub(in crate::exec) fn cpu_clock(pid: pid_t) -> Result<libc::clockid_t, Errno> {
    let mut clock = 0;
    // SAFETY: writes to a local.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if error == 0 { Ok(clock) } else { Err(Errno::from_raw(error)) }
}

/// CPU time that a child has used; `None` when somebody has waited for it.
pub(super) fn cpu(pid: pid_t) -> Option<Duration> {
    let clock = cpu_clock(pid).ok()?;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local; an id of a process that is no more is an error.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (result == 0).then(|| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
