//! What a confined process tries, each by the call itself. Made to fail by itself or to do no harm where nothing refuses it.
#![allow(unsafe_code)] // System calls without a wrapper.

use std::{
    ffi::{CString, c_long},
    fs,
    net::{TcpListener, TcpStream},
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
    process::Command,
    thread,
};

use nix::errno::Errno;

const PAGE: usize = 4096;

/// Where a case may try things: two directories, `free` and `held`, with a file `there` in each.
pub struct Place<'a>(pub &'a Path);

impl Place<'_> {
    fn path(&self, name: &str) -> CString {
        CString::new(self.0.join(name).as_os_str().as_bytes()).unwrap()
    }
}

/// Something to be tried.
pub struct Case {
    pub name: &'static str,
    pub run: fn(&Place<'_>) -> Result<(), Errno>,
}

/// What the filter refuses.
pub const BY_FILTER: &[Case] = &[
    Case { name: "execve", run: |_| call(libc::SYS_execve, [c"/nothing".as_ptr() as c_long, 0, 0, 0, 0]) },
    Case {
        name: "execveat",
        run: |_| call(libc::SYS_execveat, [libc::AT_FDCWD.into(), c"/nothing".as_ptr() as c_long, 0, 0, 0]),
    },
    Case {
        name: "execve-in-a-thread",
        run: |_| {
            let run = || call(libc::SYS_execve, [c"/nothing".as_ptr() as c_long, 0, 0, 0, 0]);
            thread::spawn(run).join().unwrap()
        },
    },
    Case { name: "execve-in-a-child", run: |_| Command::new("/nothing").status().map(drop).map_err(errno) },
    Case { name: "execve-x32", run: |_| call(0x4000_0000 + 520, [c"/nothing".as_ptr() as c_long, 0, 0, 0, 0]) },
    Case { name: "mmap-exec", run: |_| map(libc::PROT_READ | libc::PROT_EXEC).map(drop) },
    Case { name: "mmap-write-exec", run: |_| map(libc::PROT_WRITE | libc::PROT_EXEC).map(drop) },
    Case { name: "mprotect-exec", run: |_| protect(libc::SYS_mprotect, libc::PROT_READ | libc::PROT_EXEC) },
    Case { name: "pkey_mprotect-exec", run: |_| protect(libc::SYS_pkey_mprotect, libc::PROT_READ | libc::PROT_EXEC) },
    Case { name: "shmat-exec", run: |_| call(libc::SYS_shmat, [-1, 0, libc::SHM_EXEC.into(), 0, 0]) },
    Case { name: "memfd_create", run: |_| call(libc::SYS_memfd_create, [c"x".as_ptr() as c_long, 0, 0, 0, 0]) },
    Case { name: "memfd_secret", run: |_| call(libc::SYS_memfd_secret, [-1, 0, 0, 0, 0]) },
    Case { name: "uselib", run: |_| call(libc::SYS_uselib, [c"/nothing".as_ptr() as c_long, 0, 0, 0, 0]) },
    Case { name: "remap_file_pages", run: |_| call(libc::SYS_remap_file_pages, [1, 0, 1, 0, 0]) },
    Case { name: "personality", run: |_| call(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0]) },
    Case { name: "process_vm_writev", run: |_| call(libc::SYS_process_vm_writev, [own_id(), 0, 0, 0, 0]) },
    Case { name: "ptrace", run: |_| call(libc::SYS_ptrace, [-1, own_id(), 0, 0, 0]) },
    Case { name: "creat", run: |place| call(libc::SYS_creat, [pointer(&place.path("free/creat")), 0o600, 0, 0, 0]) },
    Case { name: "openat2", run: |_| call(libc::SYS_openat2, [-1, c"x".as_ptr() as c_long, 0, 0, 0]) },
    Case { name: "open_by_handle_at", run: |_| call(libc::SYS_open_by_handle_at, [-1, 0, 0, 0, 0]) },
    Case { name: "truncate", run: |place| call(libc::SYS_truncate, [pointer(&place.path("free/there")), 0, 0, 0, 0]) },
    Case { name: "io_uring_setup", run: |_| call(libc::SYS_io_uring_setup, [0, 0, 0, 0, 0]) },
    Case { name: "io_uring_enter", run: |_| call(libc::SYS_io_uring_enter, [-1, 0, 0, 0, 0]) },
    Case { name: "io_uring_register", run: |_| call(libc::SYS_io_uring_register, [-1, 0, 0, 0, 0]) },
    Case { name: "bpf", run: |_| call(libc::SYS_bpf, [-1, 0, 0, 0, 0]) },
    Case { name: "userfaultfd", run: |_| call(libc::SYS_userfaultfd, [-1, 0, 0, 0, 0]) },
    Case { name: "open-read-write", run: |place| open(place, "free/there", libc::O_RDWR) },
    Case { name: "open-write", run: |place| open(place, "free/there", libc::O_WRONLY) },
    Case { name: "open-append-read", run: |place| open(place, "free/there", libc::O_RDWR | libc::O_APPEND) },
    Case {
        name: "open-append-truncate",
        run: |place| open(place, "free/there", libc::O_WRONLY | libc::O_APPEND | libc::O_TRUNC),
    },
    Case { name: "open-read-create", run: |place| open(place, "free/read", libc::O_CREAT) },
    Case { name: "open-truncate", run: |place| open(place, "free/there", libc::O_TRUNC) },
    Case { name: "open-nameless", run: |place| open(place, "free", libc::O_TMPFILE | libc::O_RDWR) },
    Case {
        name: "open-the-older-way",
        run: |place| call(libc::SYS_open, [pointer(&place.path("free/there")), libc::O_RDWR.into(), 0, 0, 0]),
    },
];

/// What the kernel's sandbox refuses where the filter does not.
pub const BY_LANDLOCK: &[Case] = &[
    Case { name: "append-elsewhere", run: |place| open(place, "held/there", libc::O_WRONLY | libc::O_APPEND) },
    Case { name: "create-elsewhere", run: |place| open(place, "held/new", libc::O_WRONLY | libc::O_CREAT) },
    Case { name: "run-a-program", run: |_| Command::new("/bin/true").status().map(drop).map_err(errno) },
    Case { name: "make-a-directory", run: |place| fs::create_dir(place.0.join("held/d")).map_err(errno) },
    Case { name: "make-a-link", run: |place| symlink("there", place.0.join("held/l")).map_err(errno) },
    Case { name: "remove-elsewhere", run: |place| fs::remove_file(place.0.join("held/there")).map_err(errno) },
    Case {
        name: "rename-elsewhere",
        run: |place| fs::rename(place.0.join("held/there"), place.0.join("held/new")).map_err(errno),
    },
    Case { name: "listen-on-a-port", run: |_| TcpListener::bind("127.0.0.1:0").map(drop).map_err(errno) },
    // Nobody is there: ECONNREFUSED if nothing keeps it from that.
    Case { name: "connect-to-a-port", run: |_| TcpStream::connect("127.0.0.1:1").map(drop).map_err(errno) },
    Case { name: "signal-the-parent", run: |_| call(libc::SYS_kill, [parent_id(), 0, 0, 0, 0]) },
];

/// What stays allowed, to the process and to its threads.
pub const ALLOWED: &[Case] = &[
    Case { name: "open-read", run: |place| open(place, "held/there", libc::O_RDONLY) },
    Case { name: "open-directory", run: |place| open(place, "held", libc::O_RDONLY | libc::O_DIRECTORY) },
    Case { name: "append-where-it-may", run: |place| open(place, "free/there", libc::O_WRONLY | libc::O_APPEND) },
    Case {
        name: "append-to-a-new-one",
        run: |place| open(place, "free/new", libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT),
    },
    Case { name: "remove-where-it-may", run: |place| fs::remove_file(place.0.join("free/there")).map_err(errno) },
    Case { name: "mmap-write", run: |_| map(libc::PROT_READ | libc::PROT_WRITE).map(drop) },
    Case { name: "mprotect-read", run: |_| protect(libc::SYS_mprotect, libc::PROT_READ) },
    Case { name: "signal-itself", run: |_| call(libc::SYS_kill, [own_id(), 0, 0, 0, 0]) },
    Case {
        name: "signal-own-thread",
        run: |_| call(libc::SYS_tgkill, [own_id(), nix::unistd::gettid().as_raw().into(), 0, 0, 0]),
    },
    Case { name: "unix-socket", run: |_| std::os::unix::net::UnixDatagram::unbound().map(drop).map_err(errno) },
    Case { name: "thread", run: |_| thread::spawn(|| Ok(())).join().unwrap() },
];

/// Maps executable memory and answers where: to be done before it is too late.
pub fn code() -> u64 {
    map(libc::PROT_READ | libc::PROT_EXEC).unwrap() as u64
}

/// Changes what the page may be used for.
pub fn change(page: u64, protection: libc::c_int) -> Result<(), Errno> {
    call(libc::SYS_mprotect, [page as c_long, PAGE as c_long, protection.into(), 0, 0])
}

/// Lets the kernel put the page elsewhere.
pub fn shift(page: u64) -> Result<(), Errno> {
    call(libc::SYS_mremap, [page as c_long, PAGE as c_long, 2 * PAGE as c_long, libc::MREMAP_MAYMOVE.into(), 0])
}

/// `getpid` by the 32-bit interface. Without that in the kernel, the process ends by a signal.
pub fn process_id_32() -> i32 {
    let answer: i32;
    // SAFETY: the call has no arguments and changes nothing but these registers.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") 20 => answer, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    answer
}

fn call(number: c_long, [a, b, c, d, e]: [c_long; 5]) -> Result<(), Errno> {
    // SAFETY: the callers give pointers that are valid, or that the kernel finds not to be.
    let answer = unsafe { libc::syscall(number, a, b, c, d, e) };
    Errno::result(answer).map(drop)
}

fn pointer(text: &CString) -> c_long {
    text.as_ptr() as c_long
}

fn open(place: &Place<'_>, name: &str, flags: libc::c_int) -> Result<(), Errno> {
    let path = place.path(name);
    call(libc::SYS_openat, [libc::AT_FDCWD.into(), pointer(&path), (flags | libc::O_CLOEXEC).into(), 0o600, 0])
}

fn map(protection: libc::c_int) -> Result<usize, Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses addresses that nobody uses.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(page as usize) }
}

fn protect(number: c_long, protection: libc::c_int) -> Result<(), Errno> {
    let page = map(libc::PROT_READ | libc::PROT_WRITE)? as c_long;
    call(number, [page, PAGE as c_long, protection.into(), -1, 0])
}

fn own_id() -> c_long {
    std::process::id().into()
}

fn parent_id() -> c_long {
    nix::unistd::getppid().as_raw().into()
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
