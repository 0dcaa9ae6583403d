//! Code that does what no code may, through gRPC: the right trap each time, and good calls stay right meanwhile.

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use codecached::{
    client::Client,
    proto::{
        ResultType,
        TrapKind::{self, Abort, Breakpoint, Bus, Fpe, Ill, Segv, StackOverflow, Timeout},
        execute_response::Outcome,
        value::Kind,
    },
};
use support::{Daemon, Random, call, elf, handle, returned, trapped};

/// Calls of each kind in a row.
const IN_A_ROW: u32 = 1000;
/// CPU time that endless loops get.
const SPIN_LIMIT_MS: i32 = 2;

const TRAPS: &[(&str, &[TrapKind])] = &[
    ("infinite_recursion", &[StackOverflow]),
    ("big_frame_recursion", &[StackOverflow]),
    ("zero_stack", &[Segv, Bus]),
    ("non_canonical", &[Segv]),
    ("non_canonical_stack", &[Bus, Segv]),
    ("jump_to_zero", &[Segv]),
    ("jump_to_stack", &[Segv]),
    ("read_null", &[Segv]),
    ("write_code", &[Segv]),
    ("undefined", &[Ill]),
    ("privileged", &[Segv]),
    ("divide_by_zero", &[Fpe]),
    ("breakpoint", &[Breakpoint]),
    ("single_step", &[Breakpoint]),
    ("alignment_check", &[Bus]),
    ("unmasked_float", &[Fpe]),
    ("wreck_everything", &[Ill]),
    ("unbalanced", &[Segv]),
    ("to_32_bit", &[Segv, Ill, Bus]),
    ("wrong_fs_then_fault", &[Ill]),
    ("leave_unmapped_fs", &[Segv]),
    ("spin", &[Timeout]),
    ("spin_backwards", &[Timeout]),
    ("spin_wrong_fs", &[Timeout]),
];

const MESSES: &[&str] = &[
    "leave_df",
    "leave_ac",
    "leave_mxcsr",
    "leave_x87_full",
    "leave_mmx",
    "leave_registers",
    "leave_stack_popped",
    "leave_other_fs",
    "leave_x87_precision",
];

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
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hostile_kind_traps_a_thousand_times_in_a_row_while_good_calls_stay_right() {
    let scene = Scene::set().await;
    for (symbol, kinds) in TRAPS {
        for round in 0..IN_A_ROW {
            let mut request = call(scene.hostile, symbol, Vec::new(), ResultType::Void);
            if kinds.contains(&Timeout) {
                request.cpu_limit = Some(prost_types::Duration { seconds: 0, nanos: SPIN_LIMIT_MS * 1_000_000 });
            }
            let trap = trapped(scene.client.execute(request).await.unwrap());
            assert!(kinds.contains(&trap.kind()), "{symbol}, round {round}: {trap:?}");
            let outside =
                ["jump_to_zero", "jump_to_stack", "unbalanced", "to_32_bit", "leave_unmapped_fs"].contains(symbol);
            assert!(outside || (trap.symbol == *symbol && !trap.outside), "{symbol}, round {round}: {trap:?}");
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mess_that_a_call_leaves_behind_is_cleaned_up() {
    let scene = Scene::set().await;
    for symbol in MESSES {
        for round in 0..IN_A_ROW {
            let answer = scene.client.execute(call(scene.hostile, symbol, Vec::new(), ResultType::I32)).await.unwrap();
            let outcome = answer.outcome.clone();
            let Some(Outcome::Returned(returned)) = outcome else { panic!("{symbol}, round {round}: {outcome:?}") };
            assert_eq!(returned.value.unwrap().kind, Some(Kind::I32(42)), "{symbol}, round {round}");
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_different_traps_from_many_clients_are_told_apart() {
    let scene = Scene::set().await;
    let wrong = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..16_u64)
        .map(|task| {
            let (client, hostile, wrong) = (scene.client.clone(), scene.hostile, Arc::clone(&wrong));
            tokio::spawn(async move {
                let mut random = Random(1000 + task);
                for _ in 0..300 {
                    let (symbol, kinds) = TRAPS[random.below(21) as usize];
                    let answer = client.execute(call(hostile, symbol, Vec::new(), ResultType::Void)).await.unwrap();
                    wrong.fetch_add(u64::from(!kinds.contains(&trapped(answer).kind())), Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(wrong.load(Relaxed), 0);
    let status = scene.client.status().await.unwrap();
    assert!(status.counters.unwrap().traps >= 16 * 300);
    scene.client.evict(codecached::proto::EvictRequest::default()).await.unwrap_err();
    scene.end().await;
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
