//! The map of the executable memory, as a running daemon answers it.

mod support;

use codecached::{
    client::Client,
    proto::{
        ArenaArea, EvictRequest, EvictState, GetArenasRequest, GetArenasResponse, MemoryKind, ResultType, RunState,
        WriteWindow, evict_request,
    },
};
use support::{ADD, Daemon, Random, call, flat, handle, trapped, until};
use tonic::Code;

/// A loop that ends only when it is stopped.
const SPIN: &[u8] = &[0xeb, 0xfe];
/// One for each parallel arena, and so many entries that every arena may have some.
const ENTRIES: u64 = 60;

async fn map(client: &Client) -> GetArenasResponse {
    client.arenas(GetArenasRequest { runs_max: 65_536, ..GetArenasRequest::default() }).await.unwrap()
}

async fn evict(client: &Client, key: &str) -> EvictState {
    let target = Some(evict_request::Target::Key(key.as_bytes().to_vec().into()));
    client.evict(EvictRequest { target, ..EvictRequest::default() }).await.unwrap().state()
}

/// Entries of many sizes, some of which have gone again.
async fn fill(client: &Client) {
    let mut random = Random(1);
    for key in 0..ENTRIES {
        let blob = [ADD, &vec![0x90; random.below(20_000) as usize]].concat();
        client.install(flat(&format!("k{key}"), &blob)).await.unwrap();
    }
    for key in (0..ENTRIES).step_by(3) {
        assert_eq!(evict(client, &format!("k{key}")).await, EvictState::Freed);
    }
}

/// Bytes of a state in the runs of an area.
fn bytes_of(area: &ArenaArea, state: RunState) -> u64 {
    let bytes = |run: &codecached::proto::ArenaRun| match (run.state(), state) {
        (RunState::Mixed, RunState::Used) => run.used_bytes,
        (RunState::Mixed, RunState::Lingering) => run.lingering_bytes,
        (RunState::Mixed, RunState::Free) => run.free_bytes,
        (RunState::Mixed, RunState::Uncommitted) => run.bytes - run.used_bytes - run.lingering_bytes - run.free_bytes,
        (own, _) if own == state => run.bytes,
        _ => 0,
    };
    area.runs.iter().map(bytes).sum()
}

fn assert_whole(area: &ArenaArea) {
    let mut end_bytes = 0;
    for run in &area.runs {
        assert_eq!(run.offset_bytes, end_bytes, "runs of arena {} have a gap or overlap", area.arena);
        assert!(run.bytes > 0 && run.state() != RunState::Unspecified, "{run:?}");
        assert!(area.cell_bytes > 0 || run.state() != RunState::Mixed, "{run:?}");
        end_bytes += run.bytes;
    }
    assert_eq!(end_bytes, area.bytes);
    assert_eq!(bytes_of(area, RunState::Used), area.used_bytes);
    assert_eq!(bytes_of(area, RunState::Lingering), area.lingering_bytes);
    assert_eq!(bytes_of(area, RunState::Free), area.free_bytes);
    assert_eq!(area.used_bytes + area.lingering_bytes + area.free_bytes, area.committed_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_covers_every_area_and_adds_up_to_the_status() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    fill(&client).await;
    let map = map(&client).await;
    map.areas.iter().for_each(assert_whole);
    let arena = client.status().await.unwrap().arena.unwrap();
    let totals = map.totals.unwrap();
    let sum = |of: fn(&ArenaArea) -> u64| map.areas.iter().map(of).sum::<u64>();
    assert!(arena.used_bytes > 0);
    assert_eq!((sum(|it| it.used_bytes), totals.used_bytes), (arena.used_bytes, arena.used_bytes));
    assert_eq!((sum(|it| it.committed_bytes), totals.committed_bytes), (arena.committed_bytes, arena.committed_bytes));
    assert_eq!((sum(|it| it.free_bytes), sum(|it| it.bytes)), (arena.free_bytes, arena.reserved_bytes));
    assert_eq!((sum(|it| it.spans), totals.spans), (arena.spans, ENTRIES - ENTRIES / 3));
    assert!(sum(|it| it.operations) >= ENTRIES + ENTRIES / 3);
    assert_eq!((map.granule_bytes, map.write_window()), (64, WriteWindow::Always));
    assert_eq!((&map.strategy, &map.strategy_attempts), (&arena.strategy, &arena.strategy_attempts));
    assert!((0.0..=1.0).contains(&totals.fragmentation_ratio) && totals.committed_bytes <= totals.commit_limit_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_entry_that_runs_on_lingers_in_the_map_until_it_ends() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    client.install(flat("stays", ADD)).await.unwrap();
    let entry = handle(&client.install(flat("spin", SPIN)).await.unwrap());
    let running = tokio::spawn({
        let client = client.clone();
        let spin = codecached::proto::ExecuteRequest {
            cpu_limit: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            ..call(entry, "f", Vec::new(), ResultType::Void)
        };
        async move { client.execute(spin).await.unwrap() }
    });
    until("the call to run", async || (client.status().await.unwrap().executors.unwrap().running == 1).then_some(()))
        .await;
    assert_eq!(evict(&client, "spin").await, EvictState::Lingering);
    let totals = map(&client).await.totals.unwrap();
    assert_eq!((totals.used_bytes, totals.lingering_bytes, totals.spans), (64, 64, 2));
    let lingering = map(&client).await.areas.into_iter().find(|area| area.lingering_bytes > 0).unwrap();
    assert_eq!(lingering.kind(), MemoryKind::Code);
    assert_whole(&lingering);
    assert_eq!(client.status().await.unwrap().arena.unwrap().lingering_bytes, 64);
    trapped(running.await.unwrap());
    until("the memory to come back", async || (map(&client).await.totals.unwrap().lingering_bytes == 0).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_made_coarser_until_it_has_no_more_runs_than_were_asked_for() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    fill(&client).await;
    let exact = map(&client).await;
    let count = exact.areas.len() as u32;
    for runs_max in [1, count, 4 * count] {
        let coarse = client.arenas(GetArenasRequest { runs_max, ..GetArenasRequest::default() }).await.unwrap();
        assert_eq!(coarse.areas.len(), exact.areas.len());
        let runs: usize = coarse.areas.iter().map(|area| area.runs.len()).sum();
        assert!(runs <= runs_max.max(count) as usize, "{runs} runs of {runs_max}");
        coarse.areas.iter().for_each(assert_whole);
        assert!(coarse.areas.iter().any(|area| area.cell_bytes > 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn areas_are_chosen_by_kind_and_by_arena_and_what_is_not_there_is_refused() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let kind = MemoryKind::Rodata;
    let request = GetArenasRequest { kind: kind.into(), arena: Some(0), ..GetArenasRequest::default() };
    let chosen = client.arenas(request).await.unwrap();
    assert_eq!(chosen.areas.iter().map(|area| (area.arena, area.kind())).collect::<Vec<_>>(), [(0, kind)]);
    for (request, field) in [
        (GetArenasRequest { arena: Some(u32::MAX), ..request }, "arena"),
        (GetArenasRequest { kind: 99, ..request }, "kind"),
        (GetArenasRequest { runs_max: 65_537, ..request }, "runs_max"),
    ] {
        let error = client.arenas(request).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Some(Code::InvalidArgument), "INVALID_FIELD"), "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
}
