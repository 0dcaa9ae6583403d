//! What is free in an arena at one moment, and what would be if some of its owners went: so that none go in vain.

use std::{collections::BTreeMap, ops::Range};

use super::{
    PartKind, Published, ReserveError,
    cells::holds,
    shard::{Shard, Want, Wants},
};

/// The free runs in the arena below 2 GiB of those parts of a layout that find no room there.
#[derive(Debug)]
pub struct Gaps {
    arena: u32,
    lacking: Vec<Lacking>,
    refusal: Option<ReserveError>,
}

/// A part without room.
#[derive(Debug)]
struct Lacking {
    kind: PartKind,
    want: Want,
    /// The end of each free run, by its start. No two touch.
    free: BTreeMap<u32, u32>,
}

impl Gaps {
    /// Looks at each span of a kind that lacks.
    pub(super) fn of(shard: &Shard, arena: u32, wants: &Wants) -> Self {
        let lacking = Self::lacking(shard, wants).map(|(kind, want)| {
            let free = shard.area(kind).runs().filter(|run| !run.used);
            Lacking { kind, want, free: free.map(|run| (run.granules.start, run.granules.end)).collect() }
        });
        Self { arena, lacking: lacking.collect(), refusal: None }
    }

    /// The kinds that have no room.
    pub(super) fn lacking(shard: &Shard, wants: &Wants) -> impl Iterator<Item = (PartKind, Want)> {
        let wanted = PartKind::ALL.into_iter().filter_map(|kind| Some((kind, wants[kind as usize]?)));
        wanted.filter(|&(kind, want)| !shard.area(kind).has_room(want.granules, want.align_granules))
    }

    pub(super) fn refused(self, with: impl FnOnce(PartKind) -> ReserveError) -> Self {
        Self { refusal: self.lacking.first().map(|it| with(it.kind)), ..self }
    }

    /// Why there was no room when this was made; `None` if there was.
    pub fn refusal(&self) -> Option<ReserveError> {
        self.refusal
    }

    /// Whether the layout would find room.
    pub fn suffice(&self) -> bool {
        self.lacking.is_empty()
    }

    /// Whether it would if this memory were free, too.
    pub fn suffice_with(&self, published: &Published) -> bool {
        self.lacking.iter().all(|it| it.holds(&it.with(&self.of_arena(published, it.kind))))
    }

    /// Takes this memory for free from now on. What lies elsewhere makes no difference.
    pub fn add(&mut self, published: &Published) {
        let given: Vec<_> = self.lacking.iter().map(|it| self.of_arena(published, it.kind)).collect();
        let mut given = given.into_iter();
        self.lacking.retain_mut(|it| !given.next().is_some_and(|given| it.add(&given)));
    }

    fn of_arena(&self, published: &Published, kind: PartKind) -> Range<u32> {
        let grant = published.grant();
        if grant.arena == self.arena { grant.granules(kind) } else { 0..0 }
    }
}

impl Lacking {
    fn holds(&self, run: &Range<u32>) -> bool {
        !run.is_empty() && holds(run, self.want.granules, self.want.align_granules)
    }

    /// The free run that a span is a part of once it is free.
    fn with(&self, span: &Range<u32>) -> Range<u32> {
        if span.is_empty() {
            return span.clone();
        }
        let before = self.free.range(..span.start).next_back().filter(|&(_, &end)| end == span.start);
        let end = self.free.get(&span.end).copied().unwrap_or(span.end);
        before.map_or(span.start, |(&start, _)| start)..end
    }

    /// Whether there is room now.
    fn add(&mut self, span: &Range<u32>) -> bool {
        let run = self.with(span);
        if !run.is_empty() {
            self.free.remove(&span.end);
            self.free.insert(run.start, run.end);
        }
        self.holds(&run)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::arena::{ArenaConfig, Arenas, Layout, Part};

    fn part(size_bytes: u64, align_log2: u32) -> Part {
        Part { size_bytes, align_bytes: 1 << align_log2 }
    }

    fn low(code: Part, data: Part) -> Layout {
        Layout { code, data, rodata: Part::NONE, low: true }
    }

    #[test]
    fn what_would_suffice_does_once_it_is_given_back_and_what_would_not_does_not() {
        let arenas = Arenas::map(&ArenaConfig { low_bytes: 2 << 20, ..ArenaConfig::new(2 << 20, 64 << 20) }).unwrap();
        let sizes = || (1_u64..300_000, 0_u64..300_000);
        proptest!(|(
            spans in proptest::collection::vec((sizes(), any::<bool>()), 1..30),
            (code, data) in (1_u64..1_500_000, 0_u64..1_500_000),
            (code_align, data_align) in (0_u32..=12, 0_u32..=12),
        )| {
            let spans = spans.into_iter().filter_map(|((code, data), goes)| {
                Some((arenas.reserve(&low(part(code, 4), part(data, 4))).ok()?.publish().unwrap(), goes))
            });
            let (going, staying): (Vec<_>, Vec<_>) = spans.partition(|(_, goes)| *goes);
            let wanted = low(part(code, code_align), part(data, data_align));
            let mut gaps = arenas.low_gaps(&wanted).unwrap();
            prop_assert_eq!(gaps.refusal(), arenas.reserve(&wanted).err());
            for (published, _) in &going {
                let suffices = gaps.suffice_with(published);
                gaps.add(published);
                prop_assert_eq!(gaps.suffice(), suffices);
            }
            drop(going);
            prop_assert_eq!(gaps.suffice(), arenas.reserve(&wanted).is_ok());
            drop(staying);
        });
    }
}
