//! What a process does whose executors run under the filter: each in a process of its own, this test program started
//! again, since it ends by it or changes the process for good.
#![allow(unsafe_code)] // Faults on purpose, filters that stand for a container's, and what they refuse.

use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use libc::{c_int, c_long, sock_filter};
use nix::errno::Errno;

use super::call::{Arg, Call, Callee, Outcome, Priority, ResultType, Scalar};
use super::confine::{FilterError, FilterPolicy, FilterState};
use super::counts::PoolStats;
use super::lend_thread;
use super::pace::SHORT_MIN;
use super::pool::Pool;
use super::start::{ExecConfig, StartError};
use super::test_code::{TestCode, assemble, call, config, eventually, is_again, pool, run, started_again, wait};
use super::trap::TrapKind;
use super::writable::{Writable, Writables};
use crate::arena::{ArenaConfig, Arenas, Layout, Published};
use crate::confine::{InstallError, install};

/// What a process ends with that came to the end of its test.
const WELL: i32 = 42;

assemble!(process_id, "mov eax, 39", "syscall", "ret");
assemble!(ud2, "ud2");
assemble!(forty_two, "mov eax, 42", "ret");
assemble!(
    /// `(function, number)`: `function(number, 0)`
    by_library, "mov rax, rdi", "mov rdi, rsi", "xor esi, esi", "sub rsp, 8", "call rax", "add rsp, 8", "ret"
);

fn again(test: &str) -> std::process::Output {
    started_again(module_path!(), test)
}

fn well() -> ! {
    std::process::exit(WELL)
}

/// A filter as a container has it: these calls are answered so if the first argument is that, or whatever it is.
fn outer(refused: &[(c_long, Option<u32>, u32)]) -> Vec<sock_filter> {
    let op = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let load = |offset| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equal = |value, no| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, no, value);
    let verdict = |verdict| op(libc::BPF_RET | libc::BPF_K, 0, 0, verdict);
    let mut program = Vec::new();
    for &(number, first, answer) in refused {
        match first {
            Some(first) => {
                program.extend([load(0), equal(number as u32, 3), load(16), equal(first, 1), verdict(answer)]);
            }
            None => program.extend([load(0), equal(number as u32, 1), verdict(answer)]),
        }
    }
    program.push(verdict(libc::SECCOMP_RET_ALLOW));
    program
}

fn errno(errno: c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

const PR_SET_SECCOMP: u32 = libc::PR_SET_SECCOMP as u32;
const PR_SET_NO_NEW_PRIVS: u32 = libc::PR_SET_NO_NEW_PRIVS as u32;

fn start(filter: FilterPolicy) -> Result<Pool<Arc<TestCode>>, StartError> {
    Pool::start(ExecConfig { filter, ..config(1, 4) })
}

/// Code's own getpid is refused by a pool that requires the filter, and whatever else it says.
fn is_contained(pool: &Pool<Arc<TestCode>>) -> PoolStats {
    let outcome = run(pool, call(&TestCode::new(process_id(), None), vec![], ResultType::U64));
    assert!(matches!(outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Syscall), "{outcome:?}");
    pool.stats()
}

#[test]
fn without_privileges_system_calls_are_contained_too() {
    if is_again() {
        if nix::unistd::geteuid().is_root() {
            let nobody = 65534;
            nix::unistd::setgid(nobody.into()).unwrap();
            nix::unistd::setuid(nobody.into()).unwrap();
        }
        let stats = is_contained(&start(FilterPolicy::Require).unwrap());
        assert_eq!((stats.filter, stats.refused_system_calls), (FilterState::InForce, 0));
        well();
    }
    assert_eq!(again("without_privileges_system_calls_are_contained_too").status.code(), Some(WELL));
}

#[test]
fn where_filters_are_refused_a_pool_starts_only_if_it_may_go_without() {
    if is_again() {
        let refused = [
            (libc::SYS_seccomp, None, errno(libc::EPERM)),
            (libc::SYS_prctl, Some(PR_SET_SECCOMP), errno(libc::EPERM)),
        ];
        install(&outer(&refused)).unwrap();
        let error = start(FilterPolicy::Require).unwrap_err();
        let why = FilterError::Install(InstallError::Install(Errno::EPERM));
        assert!(matches!(error, StartError::Filter { error } if error == why), "{error}");
        let pool = start(FilterPolicy::Try).unwrap();
        assert_eq!(pool.stats().filter, FilterState::Unavailable(why));
        let made = run(&pool, call(&TestCode::new(process_id(), None), vec![], ResultType::U32));
        let value = Some(Scalar::U32(std::process::id()));
        assert_eq!(made, Outcome::Returned { value, buffers: vec![] });
        assert_eq!(start(FilterPolicy::Off).unwrap().stats().filter, FilterState::Off);
        well();
    }
    let ended = again("where_filters_are_refused_a_pool_starts_only_if_it_may_go_without");
    assert_eq!(ended.status.code(), Some(WELL), "{ended:?}");
}

#[test]
fn under_a_filter_that_knows_only_the_older_way_that_is_taken() {
    if is_again() {
        install(&outer(&[(libc::SYS_seccomp, None, errno(libc::ENOSYS))])).unwrap();
        assert_eq!(is_contained(&start(FilterPolicy::Require).unwrap()).filter, FilterState::InForce);
        install(&outer(&[(libc::SYS_prctl, Some(PR_SET_NO_NEW_PRIVS), errno(libc::EACCES))])).unwrap();
        let error = start(FilterPolicy::Require).unwrap_err();
        let why = FilterError::Install(InstallError::NoNewPrivileges(Errno::EACCES));
        assert!(matches!(error, StartError::Filter { error } if error == why), "{error}");
        well();
    }
    let ended = again("under_a_filter_that_knows_only_the_older_way_that_is_taken");
    assert_eq!(ended.status.code(), Some(WELL), "{ended:?}");
}

#[test]
fn a_filter_of_somebody_else_keeps_its_handler() {
    extern "C" fn earlier(_: c_int) {
        // SAFETY: may be called from a handler.
        unsafe { libc::_exit(WELL) }
    }
    if is_again() {
        // SAFETY: the handler only ends the process.
        unsafe { libc::signal(libc::SIGSYS, earlier as *const () as usize) };
        is_contained(&start(FilterPolicy::Require).unwrap());
        install(&outer(&[(libc::SYS_getppid, None, libc::SECCOMP_RET_TRAP)])).unwrap();
        // SAFETY: has no preconditions.
        unsafe { libc::getppid() };
    }
    assert_eq!(again("a_filter_of_somebody_else_keeps_its_handler").status.code(), Some(WELL));
}

#[test]
fn a_signal_of_that_kind_that_is_not_ours_ends_the_process_as_before() {
    if is_again() {
        is_contained(&start(FilterPolicy::Require).unwrap());
        install(&outer(&[(libc::SYS_getppid, None, libc::SECCOMP_RET_TRAP)])).unwrap();
        // SAFETY: has no preconditions.
        unsafe { libc::getppid() };
    }
    let ended = again("a_signal_of_that_kind_that_is_not_ours_ends_the_process_as_before");
    assert_eq!(ended.status.signal(), Some(libc::SIGSYS), "{ended:?}");
}

#[test]
fn a_lent_thread_that_cannot_be_put_under_its_filter_leaves_calls_to_executors() {
    if is_again() {
        let inline = ExecConfig { inline_threads: 1, inline: Duration::from_secs(60), ..config(1, 4) };
        let pool = Pool::start(inline).unwrap();
        let code = TestCode::new(forty_two(), None);
        lend_thread();
        let refused = [
            (libc::SYS_seccomp, None, errno(libc::EPERM)),
            (libc::SYS_prctl, Some(PR_SET_SECCOMP), errno(libc::EPERM)),
        ];
        install(&outer(&refused)).unwrap();
        for _ in 0..2 * SHORT_MIN {
            let outcome = run(&pool, call(&code, vec![], ResultType::U32));
            assert_eq!(outcome, Outcome::Returned { value: Some(Scalar::U32(42)), buffers: vec![] });
        }
        assert_eq!((pool.stats().inline, pool.stats().returned), (0, 2 * SHORT_MIN));
        assert_eq!(is_contained(&pool).filter, FilterState::InForce);
        well();
    }
    let ended = again("a_lent_thread_that_cannot_be_put_under_its_filter_leaves_calls_to_executors");
    assert_eq!(ended.status.code(), Some(WELL), "{ended:?}");
}

/// A callee whose executor does something of its own after a call.
struct Host(Arc<TestCode>, fn());

impl Callee for Host {
    fn code_range(&self) -> Range<u64> {
        self.0.code_range()
    }

    fn tenant(&self) -> u64 {
        1
    }

    fn writable(&self) -> Writables {
        Some(Writable { id: 1, reentrant: false }).into()
    }

    fn restore(&self, _: u64) {
        (self.1)();
    }
}

/// A call of code that traps, after which the executor does `work`.
fn after_a_trap(work: fn()) -> Call<Host> {
    let Call { callee, entry, args, result, cpu_limit, wall_cap, deadline, priority } =
        call(&TestCode::new(ud2(), None), vec![], ResultType::Void);
    Call { callee: Host(callee, work), entry, args, result, cpu_limit, wall_cap, deadline, priority }
}

#[test]
fn the_executors_own_refused_calls_are_answered_and_counted() {
    static ANSWERED: AtomicI32 = AtomicI32::new(0);
    let pool = Pool::start(config(1, 4)).unwrap();
    let work = || {
        // SAFETY: has no preconditions.
        let answer = unsafe { libc::syscall(libc::SYS_getppid) };
        ANSWERED.store(if answer == -1 { Errno::last_raw() } else { 0 }, Ordering::SeqCst);
    };
    for refused in 1..=3 {
        let outcome = wait(pool.submit(after_a_trap(work)).ok().unwrap()).outcome;
        assert!(matches!(outcome, Outcome::Trap(trap) if trap.kind == TrapKind::Ill), "{outcome:?}");
        assert_eq!(ANSWERED.swap(0, Ordering::SeqCst), libc::ENOSYS);
        assert_eq!(pool.stats().refused_system_calls, refused);
    }
}

#[test]
fn a_panic_of_an_executor_is_told_and_ends_the_process() {
    if is_again() {
        let pool = Pool::start(config(1, 4)).unwrap();
        wait(pool.submit(after_a_trap(|| panic!("the last words"))).ok().unwrap());
    }
    let ended = again("a_panic_of_an_executor_is_told_and_ends_the_process");
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("the last words"), "{ended:?}");
}

#[test]
fn a_fault_of_an_executor_ends_the_process_as_itself() {
    if is_again() {
        let pool = Pool::start(config(1, 4)).unwrap();
        let work = || {
            let nowhere = std::hint::black_box(8_usize) as *const u64;
            // SAFETY: none: the fault is the test.
            std::hint::black_box(unsafe { nowhere.read_volatile() });
        };
        wait(pool.submit(after_a_trap(work)).ok().unwrap());
    }
    let ended = again("a_fault_of_an_executor_ends_the_process_as_itself");
    assert_eq!(ended.status.signal(), Some(libc::SIGSEGV), "{ended:?}");
}

#[test]
fn code_that_ends_its_thread_by_the_librarys_instruction_ends_the_process_and_leaves_nobody_waiting() {
    if is_again() {
        let library = Arg::U64(libc::syscall as *const () as u64);
        let args = vec![library, Arg::U64(libc::SYS_exit as u64)];
        run(&pool(1, 4), call(&TestCode::new(by_library(), None), args, ResultType::U64));
    }
    let ended =
        again("code_that_ends_its_thread_by_the_librarys_instruction_ends_the_process_and_leaves_nobody_waiting");
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("code ended the thread"), "{ended:?}");
}

/// Code in an arena, which an executor may be the last to let go of.
struct InArena(Published);

impl Callee for InArena {
    fn code_range(&self) -> Range<u64> {
        self.0.code_range()
    }

    fn tenant(&self) -> u64 {
        1
    }

    fn writable(&self) -> Writables {
        None::<Writable>.into()
    }

    fn restore(&self, _: u64) {}
}

/// Calls of code that is given back by executors, large enough that memory goes with it.
fn give_back_by_executors(arenas: &Arc<Arenas>) -> PoolStats {
    let pool = Pool::start(ExecConfig {
        code: arenas.executable_ranges().collect(),
        code_flips: arenas.flips_protection(),
        ..config(2, 64)
    })
    .unwrap();
    for round in 0..50_u64 {
        let low = arenas.low_bytes() > 0 && round % 5 < 3;
        let layout = Layout { low, ..Layout::code(if round % 2 == 0 { 64 } else { 3 << 20 }, 16) };
        let mut draft = arenas.reserve(&layout).unwrap();
        draft.code_mut().fill(0xcc);
        let code = if round % 3 == 0 { process_id() } else { forty_two() };
        draft.code_mut()[..code.len()].copy_from_slice(code);
        let callee = InArena(draft.publish().unwrap());
        let (entry, args, limit) = (callee.0.addresses().code, vec![], Duration::from_secs(60));
        let (result, deadline, priority) = (ResultType::U32, None, Priority::Normal);
        let call = Call { callee, entry, args, result, cpu_limit: limit, wall_cap: limit, deadline, priority };
        let outcome = wait(pool.submit(call).ok().unwrap()).outcome;
        match outcome {
            Outcome::Trap(trap) => assert!(round % 3 == 0 && trap.kind == TrapKind::Syscall, "{trap:?}"),
            other => assert_eq!(other, Outcome::Returned { value: Some(Scalar::U32(42)), buffers: vec![] }),
        }
    }
    eventually("all is given back", || arenas.stats().total().used_bytes == 0);
    pool.stats()
}

#[test]
fn executors_give_memory_back_whatever_way_it_is_had() {
    let ways: [fn(&mut ArenaConfig); 4] = [
        |_| {},
        |config| config.low_bytes = 4 << 20,
        |config| config.write_window = crate::arena::WriteWindow::OnDemand,
        |config| config.huge_pages = crate::arena::HugePages::Collapse,
    ];
    for way in ways {
        let mut config = ArenaConfig { keep_free_bytes: 0, ..ArenaConfig::new(16 << 20, 16 << 20) };
        way(&mut config);
        let arenas = Arenas::map(&config).unwrap();
        assert_eq!(arenas.low_bytes(), config.low_bytes, "{config:?}");
        assert_eq!(give_back_by_executors(&arenas).refused_system_calls, 0, "{config:?}");
    }
}

#[test]
fn executors_give_memory_back_where_its_protection_changes() {
    if is_again() {
        install(&outer(&[(libc::SYS_memfd_create, None, errno(libc::EPERM))])).unwrap();
        let config = ArenaConfig { keep_free_bytes: 0, allow_mprotect: true, ..ArenaConfig::new(16 << 20, 16 << 20) };
        let config = ArenaConfig { low_bytes: 4 << 20, ..config };
        let arenas = Arenas::map(&config).unwrap();
        assert_eq!(arenas.stats().strategy, "mprotect");
        assert_eq!(give_back_by_executors(&arenas).refused_system_calls, 0);
        well();
    }
    let ended = again("executors_give_memory_back_where_its_protection_changes");
    assert_eq!(ended.status.code(), Some(WELL), "{ended:?}");
}
