//! The pool over pages that are only counted.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
};

use super::*;
use crate::arena::{geometry::HUGE_BYTES, testing::Random};

const GEOMETRY: Geometry = Geometry { arenas: 2, area_bytes: HUGE_BYTES };
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
    let touched = |span: Span| crate::arena::geometry::pages_touched(&span.range());
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
        (6, 5 << 20, 20),
    ] {
        let mut random = Random::new(seed);
        let (mut pool, pages) = (Pool::new(GEOMETRY, limit_bytes), Pages::new(limit_bytes));
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
                pool.give(&grant).unwrap_or_else(|error| panic!("{context}: {error}"));
                assert!(pool.give(&grant).is_err() || granules(&grant) == 0, "{context}: given twice");
            }
            let used_bytes = grants.iter().map(granules).sum::<u64>() * GRANULE_BYTES;
            assert_eq!(committed_and_used(&pool), (pages.bytes(), used_bytes), "{context}");
            assert!(step % 50 != 0 || all_spans_are_committed(&grants, &pages), "{context}");
        }
        assert!(taken > 0 && (failed > 0 || cfg!(miri)), "seed {seed}: {taken} taken, {failed} failed");
        pages.refuse_after.set(None);
        for grant in grants.drain(..) {
            pool.give(&grant).unwrap();
        }
        // With nothing in use, every page that is committed can be given back.
        pool.set_limit(0);
        assert_eq!(pool.shrink(u64::MAX, &pages), Ok(false));
        assert_eq!((committed_and_used(&pool), pages.bytes()), ((0, 0), 0), "seed {seed}");
    }
}

fn code(pages: u32) -> [Option<Want>; 3] {
    [Some(Want { granules: pages * 64, align_granules: 64 }), None, None]
}

#[test]
fn idle_pages_are_given_back_before_new_ones_are_taken_and_only_as_many_as_needed() {
    let limit_bytes = 10 * PAGE_BYTES;
    let (mut pool, pages) = (Pool::new(GEOMETRY, limit_bytes), Pages::new(limit_bytes));
    let eight = pool.reserve(&code(8), &pages).unwrap();
    pool.give(&eight).unwrap();
    assert_eq!(pages.bytes(), 8 * PAGE_BYTES);
    let data = [None, None, Some(Want { granules: 64 * 5, align_granules: 1 })];
    let five = pool.reserve(&data, &pages).unwrap();
    assert_eq!((pages.bytes(), pool.stats(PartKind::Code).committed_bytes), (10 * PAGE_BYTES, 5 * PAGE_BYTES));
    // Six cannot be: data has five, and of the five that code kept the lowest three lack.
    let refused = pool.reserve(&code(6), &pages).unwrap_err();
    assert!(matches!(refused, ReserveError::Fragmented { part: PartKind::Code, needed_bytes: 12288, .. }), "{refused}");
    pool.give(&five).unwrap();
    pool.reserve(&code(6), &pages).unwrap();
}

#[test]
fn a_span_shares_its_edge_pages_with_neighbours_and_only_the_last_of_them_makes_a_page_idle() {
    let (mut pool, pages) = (Pool::new(GEOMETRY, 1 << 20), Pages::new(1 << 20));
    let granules = |granules| [Some(Want { granules, align_granules: 1 }), None, None];
    let grants = [48, 32, 48].map(|it| pool.reserve(&granules(it), &pages).unwrap());
    assert_eq!(pages.bytes(), 2 * PAGE_BYTES);
    pool.set_limit(0);
    pool.give(&grants[0]).unwrap();
    pool.give(&grants[2]).unwrap();
    pool.shrink(u64::MAX, &pages).unwrap();
    assert_eq!(pages.bytes(), 2 * PAGE_BYTES, "the span in the middle lies on both pages");
    pool.give(&grants[1]).unwrap();
    pool.shrink(u64::MAX, &pages).unwrap();
    assert_eq!(pages.bytes(), 0);
}

#[test]
fn a_layout_goes_to_the_first_arena_that_has_room_for_all_its_parts() {
    let (mut pool, pages) = (Pool::new(GEOMETRY, 1 << 30), Pages::new(1 << 30));
    let whole = Want { granules: GEOMETRY.area_granules(), align_granules: 1 };
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
    let (mut pool, pages) = (Pool::new(GEOMETRY, 1 << 30), Pages::new(1 << 30));
    let wants = [Some(Want { granules: 100, align_granules: 1 }); 3];
    pages.refuse_after.set(Some(2));
    let refused = pool.reserve(&wants, &pages).unwrap_err();
    let bytes = 2 * PAGE_BYTES;
    assert_eq!(refused, ReserveError::Commit { part: PartKind::Data, step: "commit", bytes, errno: Errno::ENOMEM });
    assert_eq!(committed_and_used(&pool), (2 * bytes, 0));
    pool.reserve(&wants, &pages).unwrap();
    assert_eq!(pages.bytes(), 3 * bytes);
}

#[test]
fn shrinking_stops_after_the_pages_it_may_take_at_once_and_says_that_there_is_more() {
    let (mut pool, pages) = (Pool::new(GEOMETRY, 1 << 30), Pages::new(1 << 30));
    let grant = pool.reserve(&code(100), &pages).unwrap();
    pool.give(&grant).unwrap();
    pool.set_limit(10 * PAGE_BYTES);
    assert_eq!(pool.shrink(60, &pages), Ok(true));
    assert_eq!(pages.bytes(), 40 * PAGE_BYTES);
    assert_eq!(pool.shrink(60, &pages), Ok(false));
    assert_eq!(pages.bytes(), 10 * PAGE_BYTES);
}
