//! What a thread frees and uses again by way of the shelves.

use super::{
    tests::{MIB, arenas, byte_at, call, constant, layout, pss_bytes, publish},
    *,
};
use crate::arena::{Published, memory::TRAP, testing::Random};

/// Publishes, and says how many barriers that took.
fn barriers_to_publish(arenas: &Arc<Arenas>, draft: Draft) -> (u64, Published) {
    let before = arenas.memory.epochs.barriers();
    let published = draft.publish().unwrap();
    (arenas.memory.epochs.barriers() - before, published)
}

#[test]
fn what_a_thread_frees_it_gets_again_without_the_arena_and_not_without_a_barrier_if_it_ran() {
    let arenas = arenas(2 * MIB, MIB);
    let first = publish(&arenas, &constant(1));
    let at = first.addresses().code;
    drop(first);
    let operations = || arenas.memory.pool.shard(0).area(PartKind::Code).operations();
    let before = operations();
    assert_eq!((arenas.find(at), byte_at(&arenas, at)), (None, TRAP), "nobody has it");
    // Never published, it does not forget that something ran there.
    drop(arenas.reserve(&layout(64, 0, 0)).unwrap());
    let draft = arenas.reserve(&layout(6, 0, 0)).unwrap();
    assert_eq!((draft.addresses().code, operations()), (at, before));
    assert_eq!(arenas.find(at).map(|it| it.range), Some(at..at + 64));
    let (barriers, published) = barriers_to_publish(&arenas, draft);
    assert_eq!(barriers, 1);
    drop(published);
    arenas.memory.epochs.serialise(|| arenas.memory.barrier.serialise());
    let (barriers, _published) = barriers_to_publish(&arenas, arenas.reserve(&layout(6, 0, 0)).unwrap());
    assert_eq!((barriers, operations()), (0, before), "a barrier came between");
}

/// What a draft of two granules that comes from a shelf leaves at its addresses.
fn left_by(arenas: &Arc<Arenas>, owner: impl FnOnce(Draft)) -> Vec<u8> {
    let mut old = arenas.reserve(&layout(128, 0, 0)).unwrap();
    old.write_code(&[0x90; 128]);
    let at = old.addresses().code;
    drop(old.publish().unwrap());
    let bytes = || (at..at + 128).map(|address| byte_at(arenas, address)).collect::<Vec<_>>();
    assert_eq!(bytes(), [[TRAP; 64], [0x90; 64]].concat(), "whoever calls it is stopped");
    let draft = arenas.reserve(&layout(128, 0, 0)).unwrap();
    assert_eq!(draft.addresses().code, at);
    owner(draft);
    bytes()
}

#[test]
fn nothing_of_an_earlier_owner_is_left_in_code_that_is_published_or_was_given_back() {
    let publish = |draft: Draft| std::mem::forget(draft.publish().unwrap());
    type Owner = Box<dyn Fn(Draft)>;
    let cases: [(&str, Owner, usize); 6] = [
        ("published as it is", Box::new(publish), 0),
        ("written in part", Box::new(move |mut draft| (draft.write_code(&[1; 70]), publish(draft)).1), 70),
        ("written whole", Box::new(move |mut draft| (draft.write_code(&[1; 128]), publish(draft)).1), 128),
        (
            "written twice",
            Box::new(move |mut draft| {
                draft.write_code(&[2; 128]);
                draft.write_code(&[1; 3]);
                publish(draft);
            }),
            3,
        ),
        (
            "written through a reference",
            Box::new(move |mut draft| {
                draft.code_mut()[..5].fill(1);
                publish(draft);
            }),
            5,
        ),
        (
            "cut",
            Box::new(move |mut draft| {
                draft.shrink(PartKind::Code, 64);
                draft.write_code(&[1; 9]);
                publish(draft);
            }),
            9,
        ),
    ];
    for (name, owner, written) in cases {
        let left = left_by(&arenas(2 * MIB, MIB), owner);
        assert_eq!(left, [vec![1; written], vec![TRAP; 128 - written]].concat(), "{name}");
    }
    // From a shelf to the arena.
    let arenas = arenas(2 * MIB, MIB);
    assert_eq!(left_by(&arenas, |draft| (drop(draft), arenas.stats()).0), [TRAP; 128]);
}

#[test]
fn what_is_cut_off_a_draft_remembers_that_code_ran_there() {
    let arenas = arenas(2 * MIB, MIB);
    let mut draft = arenas.reserve(&layout(4096, 0, 0)).unwrap();
    draft.code_mut()[..6].copy_from_slice(&constant(1));
    let at = draft.addresses().code;
    drop(draft.publish().unwrap());
    let mut draft = arenas.reserve(&layout(4096, 0, 0)).unwrap();
    assert_eq!(draft.addresses().code, at);
    draft.shrink(PartKind::Code, 64);
    let end = arenas.reserve(&layout(4096 - 64, 0, 0)).unwrap();
    assert_eq!(end.addresses().code, at + 64);
    assert_eq!(barriers_to_publish(&arenas, end).0, 1);
}

#[test]
fn what_threads_keep_is_free_and_goes_to_whoever_needs_it() {
    let arenas = arenas(2 * MIB, 2 * MIB);
    let keep_some = || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let drafts: Vec<_> = (1..200).map(|n| arenas.reserve(&layout(n * 40, 0, 0)).unwrap()).collect();
                drop(drafts);
            });
        });
        assert!(arenas.memory.pool.stats(PartKind::Code).spans > 0, "some are kept");
    };
    keep_some();
    drop(arenas.reserve(&layout(2 * MIB, 0, 0)).unwrap());
    keep_some();
    assert_eq!(arenas.reserve_many(&[layout(MIB, 0, 0); 2]).map(|it| it.len()), Ok(2));
    let start = arenas.areas()[0].start;
    keep_some();
    let mut draft = arenas.reserve(&layout(9000, 0, 0)).unwrap();
    let follows = start + 2 * MIB - draft.addresses().code;
    assert_eq!(draft.grow(PartKind::Code, follows), Ok(true), "all that follows is free");
    drop(draft);
    keep_some();
    assert_eq!(arenas.stats().total().used_bytes + arenas.stats().total().spans, 0);
    keep_some();
    arenas.set_commit_limit(0);
    assert_eq!((arenas.stats().committed_bytes(), pss_bytes(&arenas)), (0, 0));
}

#[test]
fn spans_that_threads_keep_do_not_hold_up_chunks_that_are_to_go_back() {
    let config = ArenaConfig { keep_free_bytes: MIB, shards: 1, ..ArenaConfig::new(64 * MIB, 64 * MIB) };
    let arenas = Arenas::map(&config).unwrap();
    let mut random = Random::new(1);
    let mut drafts: Vec<_> =
        (0..30_000).map(|_| arenas.reserve(&layout(u64::from(1 + random.below(4000)), 0, 0)).unwrap()).collect();
    let full = arenas.memory.pool.stats(PartKind::Code).committed_bytes;
    while !drafts.is_empty() {
        drafts.swap_remove(random.below(drafts.len() as u32) as usize);
    }
    let left = arenas.memory.pool.stats(PartKind::Code).committed_bytes;
    assert!(full > 50 * MIB && left <= 4 * MIB, "{left} of {full} bytes are left");
}

#[test]
fn memory_goes_with_the_last_who_has_it_whatever_is_on_shelves() {
    for holder_last in [false, true] {
        let arenas = arenas(2 * MIB, MIB);
        let memory = Arc::downgrade(&arenas.memory);
        let holder = publish(&arenas, &constant(1));
        drop(publish(&arenas, &constant(2)));
        drop((1..9).map(|n| arenas.reserve(&layout(n * 300, 0, 0)).unwrap()).collect::<Vec<_>>());
        if holder_last {
            drop(arenas);
            assert_eq!(call(&holder), 1);
            drop(holder);
        } else {
            drop(holder);
            drop(arenas);
        }
        assert_eq!(memory.strong_count(), 0, "holder last: {holder_last}");
    }
}
