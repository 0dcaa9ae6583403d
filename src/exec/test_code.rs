//! Machine code for tests: assembled into the test program, copied to a page that can be run and not written.
#![allow(unsafe_code)] // Assembly, and a mapping to run it from.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::pin::pin;
use std::process::{Command, Output};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};

use super::call::{Arg, Call, Callee, Done, Outcome, Priority, ResultType, Scalar, Thread};
use super::confine::FilterPolicy;
use super::pool::Pool;
use super::start::ExecConfig;
use super::ticket::Ticket;
use super::trap::{Trap, TrapStage};
use super::writable::{Writable, Writables};

const PAGE_BYTES: usize = 4096;
/// Addresses that tests have for code.
const REGION_BYTES: usize = 256 << 20;

/// Where the tests' code lies, and nothing else: what pools take for code.
pub(super) fn code_region() -> Range<u64> {
    static START: OnceLock<usize> = OnceLock::new();
    let start = START.get_or_init(|| {
        let bytes = NonZeroUsize::new(REGION_BYTES).expect("not zero");
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping.
        let start = unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_NONE, flags) }.unwrap();
        start.as_ptr() as usize
    });
    *start as u64..(*start + REGION_BYTES) as u64
}

/// Pages of the region that nobody has: given back ones by length, and where those begin that nobody had.
static FREE: Mutex<(Vec<(usize, usize)>, usize)> = Mutex::new((Vec::new(), 0));

fn take_pages(bytes: usize) -> usize {
    let mut free = FREE.lock().unwrap();
    if let Some(at) = free.0.iter().position(|pages| pages.1 == bytes) {
        return free.0.swap_remove(at).0;
    }
    let at = free.1;
    free.1 += bytes;
    assert!(free.1 <= REGION_BYTES, "the tests have more code at once than there is room for");
    code_region().start as usize + at
}

/// `fn $name() -> &'static [u8]`: the bytes of position-independent assembly.
macro_rules! assemble {
    ($(#[$doc:meta])* $name:ident, $($line:literal),+ $(,)?) => {
        $(#[$doc])*
        fn $name() -> &'static [u8] {
            let (start, end): (*const u8, *const u8);
            // SAFETY: the bytes are put among the constants; only their addresses are taken here.
            unsafe {
                std::arch::asm!(
                    "lea {start}, [rip + 77f]",
                    "lea {end}, [rip + 78f]",
                    ".pushsection .rodata",
                    "77:",
                    $($line,)+
                    "78:",
                    ".popsection",
                    start = out(reg) start,
                    end = out(reg) end,
                    options(nomem, nostack, preserves_flags),
                )
            };
            // SAFETY: the two addresses enclose the bytes that were assembled above.
            unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
        }
    };
}
pub(super) use assemble;

/// Code on a page of its own, with counted restores.
#[derive(Debug)]
pub(super) struct TestCode {
    page: NonNull<libc::c_void>,
    bytes: usize,
    writable: Option<Writable>,
    thread: Option<Thread>,
    tenant: u64,
    pub(super) restores: AtomicUsize,
    /// Calls that its callee was told of.
    pub(super) traps: AtomicUsize,
    pub(super) stuck: AtomicUsize,
    pub(super) is_quarantined: AtomicBool,
}

// SAFETY: the page is read-only for everybody after `new`.
unsafe impl Send for TestCode {}
// SAFETY: as above.
unsafe impl Sync for TestCode {}

impl TestCode {
    pub(super) fn new(code: &[u8], writable: Option<Writable>) -> Arc<TestCode> {
        Arc::new(Self::map(code, writable))
    }

    /// Code with a thread pointer of its own.
    pub(super) fn with_thread(code: &[u8], thread: Thread) -> Arc<TestCode> {
        let mut code = Self::map(code, None);
        code.thread = Some(thread);
        Arc::new(code)
    }

    /// Code of another tenant than all other code.
    pub(super) fn of_tenant(code: &[u8], tenant: u64) -> Arc<TestCode> {
        let mut code = Self::map(code, None);
        code.tenant = tenant;
        Arc::new(code)
    }

    /// The same with a thread pointer of its own.
    pub(super) fn of_tenant_with_thread(code: &[u8], tenant: u64, thread: Thread) -> Arc<TestCode> {
        let mut code = Self::map(code, None);
        (code.tenant, code.thread) = (tenant, Some(thread));
        Arc::new(code)
    }

    fn map(code: &[u8], writable: Option<Writable>) -> TestCode {
        let bytes = code.len().next_multiple_of(PAGE_BYTES);
        let length = NonZeroUsize::new(bytes).expect("code is not empty");
        let (address, rw) = (take_pages(bytes), ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
        // SAFETY: these pages of the region are ours since the line before.
        let page = unsafe { mmap_anonymous(NonZeroUsize::new(address), length, rw, flags) }.unwrap();
        // SAFETY: the mapping is at least as long as the code.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), page.as_ptr().cast::<u8>(), code.len()) };
        // SAFETY: the mapping made above.
        unsafe { mprotect(page, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_EXEC) }.unwrap();
        TestCode {
            page,
            bytes,
            writable,
            thread: None,
            tenant: 0,
            restores: AtomicUsize::new(0),
            traps: AtomicUsize::new(0),
            stuck: AtomicUsize::new(0),
            is_quarantined: AtomicBool::new(false),
        }
    }

    pub(super) fn entry(&self) -> u64 {
        self.page.as_ptr() as u64
    }
}

impl Drop for TestCode {
    fn drop(&mut self) {
        // SAFETY: the pages taken in `map`; the pool has dropped what it held, so no thread runs in them.
        unsafe { mprotect(self.page, self.bytes, ProtFlags::PROT_NONE) }.unwrap();
        FREE.lock().unwrap().0.push((self.page.as_ptr() as usize, self.bytes));
    }
}

impl Callee for Arc<TestCode> {
    fn code_range(&self) -> Range<u64> {
        self.entry()..self.entry() + self.bytes as u64
    }

    fn tenant(&self) -> u64 {
        self.tenant
    }

    fn writable(&self) -> Writables {
        self.writable.into()
    }

    fn thread(&self) -> Option<Thread> {
        self.thread
    }

    fn is_quarantined(&self) -> bool {
        self.is_quarantined.load(Ordering::SeqCst)
    }

    fn trapped(&self, trap: &Trap) {
        let counter = if trap.stage == TrapStage::Stuck { &self.stuck } else { &self.traps };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn restore(&self, _: u64) {
        self.restores.fetch_add(1, Ordering::SeqCst);
    }
}

pub(super) type TestPool = Pool<Arc<TestCode>>;

pub(super) const CALL_MEMORY_BYTES: usize = 4 << 20;

pub(super) fn pool(executors: usize, queue_max: usize) -> TestPool {
    Pool::start(config(executors, queue_max)).unwrap()
}

pub(super) fn config(executors: usize, queue_max: usize) -> ExecConfig {
    ExecConfig {
        executors,
        spare_executors: 0,
        queue_max,
        queue_tenant_max: queue_max,
        stack_bytes: 256 << 10,
        stack_guard_bytes: 64 << 20,
        call_memory_max_bytes: CALL_MEMORY_BYTES,
        inline_threads: 1,
        inline: Duration::ZERO,
        stuck_after: Duration::from_secs(60),
        stuck_max: 0,
        cpu_limit_default: Duration::ZERO,
        tick: Duration::from_millis(1),
        code: vec![code_region()],
        code_flips: false,
        filter: FilterPolicy::Require,
    }
}

/// A call with limits that no test that means well reaches.
pub(super) fn call(code: &Arc<TestCode>, args: Vec<Arg>, result: ResultType) -> Call<Arc<TestCode>> {
    let limit = Duration::from_secs(60);
    let callee = Arc::clone(code);
    let entry = code.entry();
    Call { callee, entry, priority: Priority::Normal, args, result, cpu_limit: limit, wall_cap: limit, deadline: None }
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for the end of a call.
pub(super) fn wait(ticket: Ticket) -> Done {
    wait_for(ticket)
}

/// Waits for whatever a ticket resolves to.
pub(super) fn wait_for<T>(ticket: impl Future<Output = T>) -> T {
    let mut ticket = pin!(ticket);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match ticket.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}

pub(super) fn run(pool: &TestPool, call: Call<Arc<TestCode>>) -> Outcome {
    wait(pool.submit(call).unwrap()).outcome
}

/// What code without buffers returned as u64.
pub(super) fn number(pool: &TestPool, code: &Arc<TestCode>, args: Vec<Arg>) -> u64 {
    match run(pool, call(code, args, ResultType::U64)) {
        Outcome::Returned { value: Some(Scalar::U64(value)), .. } => value,
        other => panic!("expected a number, not {other:?}"),
    }
}

/// Polls until `condition`, a minute at most.
pub(super) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "never happened: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn import(name: &str) -> Arg {
    let found = super::imports().into_iter().find(|(import, _)| *import == name);
    Arg::U64(found.unwrap_or_else(|| panic!("{name} is offered")).1)
}

/// Set in a process that was started again.
const AGAIN: &str = "EXEC_TEST_AGAIN";

/// Starts this test program again for one test of `module`, and waits for its end.
pub(super) fn started_again(module: &str, test: &str) -> Output {
    let program = std::env::current_exe().unwrap();
    let name = format!("{}::{test}", module.split_once("::").unwrap().1);
    let mut command = Command::new(program);
    command.args(["--exact", &name, "--nocapture", "--test-threads=1"]).env(AGAIN, "1").output().unwrap()
}

/// Whether this is such a process, which then ends after a while whatever happens.
pub(super) fn is_again() -> bool {
    let is_again = std::env::var_os(AGAIN).is_some();
    if is_again {
        // SAFETY: has no preconditions.
        unsafe { libc::alarm(120) };
    }
    is_again
}
