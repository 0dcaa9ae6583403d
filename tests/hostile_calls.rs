//! Code that does what no code may, through gRPC: the right trap each time, and good calls stay right meanwhile.

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use codecached::{
    client::Client,
    proto::{
        ResultType, SystemCallAbi, SystemCallContainment,
        TrapKind::{Abort, Segv, Syscall},
        value::Kind,
    },
};
use support::{Daemon, Random, call, elf, flat, handle, returned, trapped};

/// Calls of each kind in a row.
const IN_A_ROW: u32 = 1000;
/// Calls good functions until told to stop, and checks every answer. Answers how many.
async fn good_calls(client: Client, add: u64, doubles: u64, stop: Arc<AtomicBool>, seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut calls = 0;
    while !stop.load(Relaxed) {
        let (a, b) = (random.next() as i32, random.next() as i32);
        let sum = client.execute(call(add, "add", vec![Kind::I32(a), Kind::I32(b)], ResultType::I32)).await.unwrap();
        assert_eq!(returned(sum).0, Some(Kind::I32(a.wrapping_add(b))), "seed {seed}");
        let x = random.below(1 << 40) as f64;
        let root = client.execute(call(doubles, "newton_sqrt", vec![Kind::F64(x)], ResultType::F64)).await.unwrap();
        let Some(Kind::F64(root)) = returned(root).0 else { panic!("no double") };
        assert!((root - x.sqrt()).abs() <= x.sqrt() * 1e-15, "the root of {x} came as {root}");
        calls += 2;
    }
    calls
}

/// Installs, and starts two tasks of good calls.
struct Scene {
    daemon: Daemon,
    client: Client,
    hostile: u64,
    stop: Arc<AtomicBool>,
    good: Vec<tokio::task::JoinHandle<u64>>,
}

impl Scene {
    async fn set() -> Self {
        let daemon = Daemon::start();
        let client = daemon.client().await;
        let hostile = handle(&client.install(elf("hostile", support::compile("hostile.S"))).await.unwrap());
        let doubles = handle(&client.install(elf("doubles", support::compile("doubles.c"))).await.unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let good = (1..=2)
            .map(|seed| tokio::spawn(good_calls(client.clone(), hostile, doubles, Arc::clone(&stop), seed)))
            .collect();
        Self { daemon, client, hostile, stop, good }
    }

    async fn end(mut self) {
        self.stop.store(true, Relaxed);
        for task in self.good {
            assert!(task.await.unwrap() > 0, "no good call was made meanwhile");
        }
        assert!(self.daemon.is_running());
        let system_calls = self.client.status().await.unwrap().system_calls.unwrap();
        assert_eq!(system_calls.containment(), SystemCallContainment::InForce);
        // The C library reads a setting of the kernel when it first gives memory back, and does without.
        assert!(system_calls.refused <= 1, "executors themselves were kept from system calls that they need");
    }
}

/// Number, name, arguments.
fn system_calls(daemon: u32) -> [(u64, &'static str, [u64; 3]); 10] {
    let daemon = daemon.into();
    [
        (39, "getpid", [0; 3]),
        (1, "write", [2, 0, 0]),
        (231, "exit_group", [0; 3]),
        (60, "exit", [0; 3]),
        (59, "execve", [0; 3]),
        (62, "kill", [daemon, 9, 0]),
        (15, "rt_sigreturn", [0; 3]),
        (425, "io_uring_setup", [8, 0, 0]),
        (0x4000_0000 | 39, "getpid", [0; 3]),
        (0x3fff_ffff, "", [0; 3]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_system_call_is_a_trap_a_thousand_times_in_a_row_and_nothing_happens() {
    let scene = Scene::set().await;
    for (number, name, arguments) in system_calls(scene.daemon.pid()) {
        let arguments: Vec<Kind> = [number].into_iter().chain(arguments).map(Kind::U64).collect();
        let abi = if number & 0x4000_0000 == 0 { SystemCallAbi::X8664 } else { SystemCallAbi::X32 };
        for round in 0..IN_A_ROW {
            let request = call(scene.hostile, "system_call", arguments.clone(), ResultType::U64);
            let trap = trapped(scene.client.execute(request).await.unwrap());
            assert!(trap.kind() == Syscall && trap.symbol == "system_call" && !trap.outside, "{round}: {trap:?}");
            assert_eq!((trap.instruction.as_str(), trap.offset_bytes), ("syscall", 12), "{round}: {trap:?}");
            let told = trap.system_call.as_ref().unwrap();
            let plain = number & !0x4000_0000;
            assert_eq!((told.abi(), u64::from(told.number), &*told.name), (abi, plain, name), "{round}: {trap:?}");
        }
    }
    for round in 0..IN_A_ROW {
        let request = call(scene.hostile, "interrupt_0x80", vec![Kind::U64(20)], ResultType::U64);
        let trap = trapped(scene.client.execute(request).await.unwrap());
        // Kernels can be built and started without the interface.
        let told = trap.system_call.as_ref().map(|it| (it.abi(), it.number, &*it.name));
        let refused = trap.kind() == Syscall && told == Some((SystemCallAbi::I386, 20, "getpid"));
        assert!(refused || trap.kind() == Segv, "{round}: {trap:?}");
    }
    scene.end().await;
}

/// Returns its argument, or else the id of the process.
const PROCESS_ID_AT_ZERO: &[u8] = &[
    0x48, 0x89, 0xf8, // mov rax, rdi
    0x48, 0x85, 0xff, // test rdi, rdi
    0x75, 0x07, // jnz 1f
    0xb8, 0x27, 0x00, 0x00, 0x00, // mov eax, 39
    0x0f, 0x05, // syscall
    0xc3, // 1: ret
];

#[tokio::test(flavor = "multi_thread")]
async fn a_system_call_on_the_thread_of_a_request_is_such_a_trap_too_and_the_thread_serves_on() {
    let daemon = Daemon::start_with(&["--set", "exec.inline_us=1000"]);
    let client = daemon.client().await;
    let entry = handle(&client.install(flat("inline", PROCESS_ID_AT_ZERO)).await.unwrap());
    let with = |value| call(entry, "f", vec![Kind::U64(value)], ResultType::U64);
    let inline = async || client.status().await.unwrap().executors.unwrap().inline_calls;
    let mut traps = 0;
    for _ in 0..200 {
        // Short calls, after which the next one is inline unless the machine is busy.
        for value in 1..=20 {
            assert_eq!(returned(client.execute(with(value)).await.unwrap()).0, Some(Kind::U64(value)));
        }
        let before = inline().await;
        let trap = trapped(client.execute(with(0)).await.unwrap());
        let told = trap.system_call.as_ref().map(|it| (it.abi(), it.number, &*it.name));
        assert_eq!((trap.kind(), told), (Syscall, Some((SystemCallAbi::X8664, 39, "getpid"))), "{trap:?}");
        assert_eq!((trap.instruction.as_str(), trap.offset_bytes, trap.outside), ("syscall", 13, false), "{trap:?}");
        traps += inline().await - before;
        if traps == 20 {
            return;
        }
    }
    panic!("only {traps} of 200 were inline");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_filter_code_may_call_the_system_and_the_daemon_says_so() {
    let daemon = Daemon::start_with(&["--set", "exec.system_call_filter=off"]);
    let client = daemon.client().await;
    let hostile = handle(&client.install(elf("hostile", support::compile("hostile.S"))).await.unwrap());
    let get_pid = call(hostile, "system_call", vec![Kind::U64(39)], ResultType::U32);
    assert_eq!(returned(client.execute(get_pid).await.unwrap()).0, Some(Kind::U32(daemon.pid())));
    let status = client.status().await.unwrap().system_calls.unwrap();
    assert_eq!(status.containment(), SystemCallContainment::Off);
    assert!(daemon.log().contains("system calls of code are not contained"), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_gives_up_or_smashes_its_stack_aborts_alone() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let object = support::compile_with("asks_much.c", &["-O2", "-fPIC", "-fno-builtin", "-fstack-protector-all"]);
    let entry = handle(&client.install(elf("asks", object)).await.unwrap());
    for _ in 0..IN_A_ROW {
        let answer = client.execute(call(entry, "give_up", Vec::new(), ResultType::Void)).await.unwrap();
        assert_eq!(trapped(answer).kind(), Abort);
        let smashed = call(entry, "smash", vec![Kind::U32(64)], ResultType::Void);
        assert_eq!(trapped(client.execute(smashed).await.unwrap()).kind(), Abort);
        let wild = trapped(client.execute(call(entry, "wild_memcpy", Vec::new(), ResultType::Void)).await.unwrap());
        assert!(wild.kind() == Segv && wild.fault_address.is_some_and(|it| it < 4096), "{wild:?}");
    }
    let whole = call(entry, "smash", vec![Kind::U32(16)], ResultType::Void);
    returned(client.execute(whole).await.unwrap());
}
