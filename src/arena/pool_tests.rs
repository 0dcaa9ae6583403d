//! The pool over pages that are only counted.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
};

use super::*;
use crate::arena::{shard::Want, testing::Random};

const GEOMETRY: Geometry =
    Geometry { arenas: 2, area_bytes: HUGE_BYTES, low_area_bytes: 0, granule_bytes: 64, unit_pages: 1 };
const GRANULE_BYTES: u64 = 64;

fn pool(limit_bytes: u64) -> Pool {
    Pool::new(GEOMETRY, limit_bytes, 1 << 30)
}
const STEPS: u32 = if cfg!(miri) { 40 } else { 3000 };

/// Remembers which pages have memory, and refuses when told to.
struct Pages {
    committed: RefCell<BTreeSet<(usize, u32)>>,
    limit_bytes: Cell<u64>,
    /// How many more calls succeed; then one is refused.
    refuse_after: Cell<Option<u32>>,
}

impl Pages {
    fn new(limit_bytes: u64) -> Self {
        Self { committed: RefCell::default(), limit_bytes: Cell::new(limit_bytes), refuse_after: Cell::new(None) }
    }

    fn bytes(&self) -> u64 {
        self.committed.borrow().len() as u64 * PAGE_BYTES
    }

    fn permit(&self) -> Result<(), Errno> {
        match self.refuse_after.get() {
            Some(0) => {
                self.refuse_after.set(None);
                Err(Errno::ENOMEM)
            }
            left => {
                self.refuse_after.set(left.map(|it| it - 1));
                Ok(())
            }
        }
    }
}

impl Backing for Pages {
    fn commit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno> {
        self.permit()?;
        for page in pages {
            assert!(self.committed.borrow_mut().insert((area.index(), page)), "{area:?} page {page} committed twice");
        }
        assert!(self.bytes() <= self.limit_bytes.get(), "the limit was passed");
        Ok(())
    }

    fn decommit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno> {
        self.permit()?;
        for page in pages {
            assert!(self.committed.borrow_mut().remove(&(area.index(), page)), "{area:?} page {page} had no memory");
        }
        Ok(())
    }
}

fn committed_and_used(pool: &Pool) -> (u64, u64) {
    let stats = PartKind::ALL.map(|kind| pool.stats(kind));
    (stats.iter().map(|it| it.committed_bytes).sum(), stats.iter().map(|it| it.used_bytes).sum())
}

fn want(random: &mut Random, granules_max: u32) -> Option<Want> {
    let granules = random.small(granules_max);
    (granules > 0).then(|| Want { granules, align_granules: 1 << random.below(7) })
}

fn granules(grant: &Grant) -> u64 {
    grant.spans().map(|(_, span)| span.range().len() as u64).sum()
}

fn all_spans_are_committed(grants: &[Grant], pages: &Pages) -> bool {
    let committed = pages.committed.borrow();
    let touched = |span: Span| GEOMETRY.pages_touched(&span.range());
    grants
        .iter()
        .flat_map(Grant::spans)
        .all(|(area, span)| touched(span).all(|page| committed.contains(&(area.index(), page))))
}

#[test]
fn committed_pages_are_counted_exactly_and_stay_below_the_limit_under_any_load_and_refusal() {
    for (seed, limit_bytes, granules_max) in [
        (1, 1 << 20, 256),
        (2, 3 << 20, 2000),
        (3, 64 << 10, 40),
        (4, 1 << 30, 4000),
        (5, 1 << 20, 64),
        (6, 200 << 10, 20),
    ] {
        let mut random = Random::new(seed);
        let (pool, pages) = (pool(limit_bytes), Pages::new(limit_bytes));
        let (mut grants, mut taken, mut failed) = (Vec::new(), 0, 0);
        for step in 0..STEPS {
            let context = format!("seed {seed} step {step}");
            pages.refuse_after.set((random.below(10) == 0).then(|| random.below(3)));
            if random.below(100) < 55 {
                let wants =
                    [want(&mut random, granules_max), want(&mut random, granules_max), want(&mut random, granules_max)];
                let used_before = committed_and_used(&pool).1;
                match pool.reserve(&wants, &pages) {
                    Ok(grant) => {
                        assert_eq!(
                            granules(&grant),
                            wants.iter().flatten().map(|it| u64::from(it.granules)).sum::<u64>(),
                            "{context}"
                        );
                        grants.push(grant);
                        taken += 1;
                    }
                    Err(_) => {
                        assert_eq!(committed_and_used(&pool).1, used_before, "{context}: a failure kept spans");
                        failed += 1;
                    }
                }
            } else if !grants.is_empty() {
                let grant = grants.swap_remove(random.below(grants.len() as u32) as usize);
                pool.give(&grant, &pages).unwrap_or_else(|error| panic!("{context}: {error}"));
                assert!(pool.give(&grant, &pages).is_err() || granules(&grant) == 0, "{context}: given twice");
            }
            let used_bytes = grants.iter().map(granules).sum::<u64>() * GRANULE_BYTES;
            assert_eq!(committed_and_used(&pool), (pages.bytes(), used_bytes), "{context}");
            assert!(step % 50 != 0 || all_spans_are_committed(&grants, &pages), "{context}");
        }
        assert!(taken > 0 && (failed > 0 || cfg!(miri)), "seed {seed}: {taken} taken, {failed} failed");
        pages.refuse_after.set(None);
        for grant in grants.drain(..) {
            pool.give(&grant, &pages).unwrap();
        }
        // With nothing in use, every page that is committed can be given back.
        pool.set_limit(0, &pages);
        assert_eq!((committed_and_used(&pool), pages.bytes()), ((0, 0), 0), "seed {seed}");
    }
}

fn code(pages: u32) -> [Option<Want>; 3] {
    [Some(Want { granules: pages * 64, align_granules: 64 }), None, None]
}

#[test]
fn idle_pages_are_given_back_before_new_ones_are_taken_and_only_as_many_as_needed() {
    let limit_bytes = 10 * PAGE_BYTES;
    let (pool, pages) = (pool(limit_bytes), Pages::new(limit_bytes));
    let eight = pool.reserve(&code(8), &pages).unwrap();
    pool.give(&eight, &pages).unwrap();
    assert_eq!(pages.bytes(), 8 * PAGE_BYTES, "nothing is committed ahead where that would pass the limit");
    let data = [None, None, Some(Want { granules: 64 * 5, align_granules: 1 })];
    let five = pool.reserve(&data, &pages).unwrap();
    assert_eq!((pages.bytes(), pool.stats(PartKind::Code).committed_bytes), (10 * PAGE_BYTES, 5 * PAGE_BYTES));
    // Six cannot be: data has five, and code kept the lowest five.
    let refused = pool.reserve(&code(6), &pages).unwrap_err();
    assert!(matches!(refused, ReserveError::Fragmented { part: PartKind::Code, needed_bytes: 4096, .. }), "{refused}");
    pool.give(&five, &pages).unwrap();
    pool.reserve(&code(6), &pages).unwrap();
}

#[test]
fn a_span_shares_its_edge_pages_with_neighbours_and_only_the_last_of_them_makes_a_page_idle() {
    let (pool, pages) = (pool(2 * PAGE_BYTES), Pages::new(2 * PAGE_BYTES));
    let granules = |granules| [Some(Want { granules, align_granules: 1 }), None, None];
    let grants = [48, 32, 48].map(|it| pool.reserve(&granules(it), &pages).unwrap());
    assert_eq!(pages.bytes(), 2 * PAGE_BYTES);
    pool.give(&grants[0], &pages).unwrap();
    pool.give(&grants[2], &pages).unwrap();
    pool.set_limit(0, &pages);
    assert_eq!(pages.bytes(), 2 * PAGE_BYTES, "the span in the middle lies on both pages");
    pool.give(&grants[1], &pages).unwrap();
    pool.set_limit(0, &pages);
    assert_eq!(pages.bytes(), 0);
}

#[test]
fn a_layout_goes_to_the_first_arena_that_has_room_for_all_its_parts() {
    let (pool, pages) = (pool(1 << 30), Pages::new(1 << 30));
    let whole = Want { granules: (GEOMETRY.area_bytes / GEOMETRY.granule_bytes) as u32, align_granules: 1 };
    let first = pool.reserve(&[Some(whole), None, None], &pages).unwrap();
    let second = pool.reserve(&[Some(whole), Some(whole), Some(whole)], &pages).unwrap();
    assert_eq!((first.arena, second.arena), (0, 1));
    let rodata = pool.reserve(&[None, Some(whole), None], &pages).unwrap();
    assert_eq!(rodata.arena, 0);
    let refused = pool.reserve(&code(1), &pages).unwrap_err();
    assert!(
        matches!(refused, ReserveError::Fragmented { part: PartKind::Code, largest_free_bytes: 0, .. }),
        "{refused}"
    );
}

#[test]
fn a_refusal_of_the_system_is_reported_with_its_errno_and_takes_nothing() {
    let (pool, pages) = (pool(1 << 30), Pages::new(1 << 30));
    let wants = [Some(Want { granules: 100, align_granules: 1 }); 3];
    pages.refuse_after.set(Some(2));
    // Refused pages that are not needed yet are done without; refused again, the reservation fails.
    let grant = pool.reserve(&wants, &pages).unwrap();
    assert_eq!(pages.bytes(), (16 + 16 + 2) * PAGE_BYTES);
    pool.give(&grant, &pages).unwrap();
    pages.refuse_after.set(Some(0));
    let wants = [Some(Want { granules: 100 * 64, align_granules: 64 }); 3];
    let refused = pool.reserve(&wants, &pages).unwrap_err();
    let bytes = 84 * PAGE_BYTES;
    assert_eq!(refused, ReserveError::Commit { part: PartKind::Code, step: "commit", bytes, errno: Errno::ENOMEM });
    assert_eq!(committed_and_used(&pool), (pages.bytes(), 0));
    assert_eq!(pool.commit.charged_bytes(), pages.bytes());
    pool.reserve(&wants, &pages).unwrap();
    assert_eq!(pages.bytes(), 300 * PAGE_BYTES);
}

#[test]
fn a_lowered_limit_gives_back_what_is_free_at_once_and_no_more_than_it_must() {
    let (pool, pages) = (pool(1 << 30), Pages::new(1 << 30));
    let kept = pool.reserve(&code(20), &pages).unwrap();
    let grant = pool.reserve(&code(100), &pages).unwrap();
    pool.give(&grant, &pages).unwrap();
    pool.set_limit(50 * PAGE_BYTES, &pages);
    assert_eq!(pages.bytes(), 50 * PAGE_BYTES);
    pool.set_limit(10 * PAGE_BYTES, &pages);
    assert_eq!(pages.bytes(), 20 * PAGE_BYTES);
    pool.reserve(&code(1), &pages).unwrap_err();
    pool.give(&kept, &pages).unwrap();
    pool.reserve(&code(1), &pages).unwrap();
}

#[test]
fn whole_free_chunks_go_back_when_more_is_free_than_is_to_be_kept() {
    let (pages, chunk) = (Pages::new(1 << 30), 512 * PAGE_BYTES);
    for (keep_bytes, left_bytes) in [(0, 0), (chunk - 1, 0), (chunk, chunk)] {
        let pool = Pool::new(GEOMETRY, 1 << 30, keep_bytes);
        let [large, small] = [500, 12].map(|count| pool.reserve(&code(count), &pages).unwrap());
        pool.give(&large, &pages).unwrap();
        assert_eq!(pages.bytes(), chunk, "the chunk is not free as a whole");
        pool.give(&small, &pages).unwrap();
        assert_eq!(pages.bytes(), left_bytes, "{keep_bytes} to be kept");
        pool.set_limit(0, &pages);
    }
}

#[test]
fn a_batch_is_taken_as_a_whole_or_not_at_all() {
    let (pool, pages) = (pool(1 << 30), Pages::new(1 << 30));
    let grants = pool.reserve_many(&[code(1), code(300), code(300)], &pages).unwrap();
    assert_eq!(grants.iter().map(|grant| grant.arena).collect::<Vec<_>>(), [0, 0, 1]);
    let used = committed_and_used(&pool).1;
    let refused = pool.reserve_many(&[code(100), code(100), code(300)], &pages).unwrap_err();
    assert!(matches!(refused, ReserveError::Fragmented { .. }), "{refused}");
    pool.set_limit(0, &pages);
    pool.set_limit(1 << 30, &pages);
    pages.refuse_after.set(Some(1));
    pool.reserve_many(&[code(100), code(100)], &pages).unwrap_err();
    assert_eq!(committed_and_used(&pool).1, used);
    assert_eq!(pool.commit.charged_bytes(), pages.bytes());
}

#[test]
fn threads_never_pass_the_limit_and_each_page_is_committed_once() {
    struct Shared(std::sync::Mutex<BTreeSet<(usize, u32)>>, u64);
    impl Backing for Shared {
        fn commit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno> {
            let mut committed = self.0.lock().unwrap();
            for page in pages {
                assert!(committed.insert((area.index(), page)), "{area:?} page {page} committed twice");
            }
            assert!(committed.len() as u64 * PAGE_BYTES <= self.1, "the limit was passed");
            Ok(())
        }
        fn decommit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno> {
            let mut committed = self.0.lock().unwrap();
            for page in pages {
                assert!(committed.remove(&(area.index(), page)), "{area:?} page {page} had no memory");
            }
            Ok(())
        }
    }
    let limit_bytes = 300 * PAGE_BYTES;
    let pool = Pool::new(GEOMETRY, limit_bytes, 0);
    let pages = Shared(Default::default(), limit_bytes);
    std::thread::scope(|scope| {
        for thread in 0..if cfg!(miri) { 2 } else { 4 } {
            let (pool, pages) = (&pool, &pages);
            scope.spawn(move || {
                let mut random = Random::new(thread);
                let mut grants = Vec::new();
                for _ in 0..STEPS {
                    let wants = [want(&mut random, 6000), want(&mut random, 600), want(&mut random, 600)];
                    match pool.reserve(&wants, pages) {
                        Ok(grant) => grants.push(grant),
                        Err(_) => {
                            for grant in grants.drain(..) {
                                pool.give(&grant, pages).unwrap();
                            }
                        }
                    }
                    if random.below(3) == 0 && !grants.is_empty() {
                        let grant = grants.swap_remove(random.below(grants.len() as u32) as usize);
                        pool.give(&grant, pages).unwrap();
                    }
                }
                for grant in &grants {
                    pool.give(grant, pages).unwrap();
                }
            });
        }
    });
    pool.set_limit(0, &pages);
    assert_eq!((committed_and_used(&pool), pool.commit.charged_bytes()), ((0, 0), 0));
    assert!(pages.0.lock().unwrap().is_empty());
}
