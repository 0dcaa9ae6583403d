//! Slots in order of use: a slab whose elements are linked by index.

/// Ends a chain of slots.
const NONE: u32 = u32::MAX;
/// Slots at most: the slot part of a handle has 24 bits.
pub(super) const SLOTS_MAX: u32 = 1 << 24;
/// Generations of a slot at most: the generation part of a handle has 40 bits.
const GENERATION_MAX: u64 = (1 << 40) - 1;

/// What hot paths send instead of a name: the slot and its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(u64);

impl Handle {
    fn new(slot: u32, generation: u64) -> Self {
        Self(u64::from(slot) << 40 | generation)
    }

    /// The number on the wire. Never 0, as no generation is.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// Any number; one that never was a handle is stale.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Number of this residency of its slot, 1 to 2^40 - 1.
    pub fn generation(self) -> u64 {
        self.0 & GENERATION_MAX
    }

    fn slot(self) -> u32 {
        (self.0 >> 40) as u32
    }
}

#[derive(Debug)]
struct Slot<T> {
    value: Option<T>,
    generation: u64,
    /// The slot used just after this one; in the free chain, the next free one.
    newer: u32,
    /// The slot used just before this one.
    older: u32,
}

/// Values in order of use. Every operation is constant in the number of values.
#[derive(Debug)]
pub(super) struct Lru<T> {
    slots: Vec<Slot<T>>,
    free: u32,
    newest: u32,
    oldest: u32,
    len: usize,
    first_generation: u64,
}

impl<T> Lru<T> {
    /// An empty one whose slots start at a generation made from `seed`, so that handles of another process are
    /// stale here. From the lower half of the range: a slot lasts for 2^39 residencies.
    pub(super) fn new(seed: u64) -> Self {
        let first_generation = 1 + seed % (GENERATION_MAX / 2);
        Self { slots: Vec::new(), free: NONE, newest: NONE, oldest: NONE, len: 0, first_generation }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether [`Lru::insert`] has a slot to give.
    pub(super) fn has_room(&self) -> bool {
        self.free != NONE || (self.slots.len() as u64) < u64::from(SLOTS_MAX)
    }

    /// Puts the value that `make` gives for its handle in as the newest. `None` without room.
    pub(super) fn insert(&mut self, make: impl FnOnce(Handle) -> T) -> Option<Handle> {
        if !self.has_room() {
            return None;
        }
        let slot = self.free_slot();
        let handle = Handle::new(slot, self.at(slot).generation);
        self.at_mut(slot).value = Some(make(handle));
        self.link_newest(slot);
        self.len += 1;
        Some(handle)
    }

    /// The value of a handle that is not stale.
    pub(super) fn get(&self, handle: Handle) -> Option<&T> {
        let slot = self.slots.get(handle.slot() as usize)?;
        slot.value.as_ref().filter(|_| slot.generation == handle.generation())
    }

    /// The same, and makes it the newest.
    pub(super) fn touch(&mut self, handle: Handle) -> Option<&mut T> {
        self.get(handle)?;
        let slot = handle.slot();
        if self.newest != slot {
            self.unlink(slot);
            self.link_newest(slot);
        }
        self.at_mut(slot).value.as_mut()
    }

    /// Takes the value out; its handle is stale from now on.
    pub(super) fn remove(&mut self, handle: Handle) -> Option<T> {
        self.get(handle)?;
        let index = handle.slot();
        self.unlink(index);
        self.len -= 1;
        let free = self.free;
        let slot = self.at_mut(index);
        let value = slot.value.take();
        // A slot at its last generation is retired: its next handle could be taken for an old one.
        if slot.generation < GENERATION_MAX {
            slot.generation += 1;
            slot.newer = free;
            self.free = index;
        }
        value
    }

    /// Handles and values, the oldest first.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = (Handle, &T)> {
        let mut next = self.oldest;
        std::iter::from_fn(move || {
            let slot = self.slots.get(next as usize)?;
            let handle = Handle::new(next, slot.generation);
            next = slot.newer;
            slot.value.as_ref().map(|value| (handle, value))
        })
    }

    fn free_slot(&mut self) -> u32 {
        if self.free == NONE {
            let generation = self.first_generation;
            self.slots.push(Slot { value: None, generation, newer: NONE, older: NONE });
            return (self.slots.len() - 1) as u32;
        }
        let slot = self.free;
        self.free = self.at(slot).newer;
        slot
    }

    fn link_newest(&mut self, slot: u32) {
        let older = std::mem::replace(&mut self.newest, slot);
        let link = self.at_mut(slot);
        (link.older, link.newer) = (older, NONE);
        match older {
            NONE => self.oldest = slot,
            _ => self.at_mut(older).newer = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let (older, newer) = (self.at(slot).older, self.at(slot).newer);
        match older {
            NONE => self.oldest = newer,
            _ => self.at_mut(older).newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.at_mut(newer).older = older,
        }
    }

    fn at(&self, slot: u32) -> &Slot<T> {
        &self.slots[slot as usize]
    }

    fn at_mut(&mut self, slot: u32) -> &mut Slot<T> {
        &mut self.slots[slot as usize]
    }
}

/// Bytes that a slot takes for a value of `T`, twice: a vector that grows is up to half empty.
pub(super) const fn slot_bytes<T>() -> u64 {
    2 * size_of::<Slot<T>>() as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Insert,
        Touch(usize),
        Remove(usize),
        UseStale(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => Just(Op::Insert),
            3 => any::<usize>().prop_map(Op::Touch),
            2 => any::<usize>().prop_map(Op::Remove),
            1 => any::<usize>().prop_map(Op::UseStale),
        ]
    }

    proptest! {
        #[test]
        fn behaves_as_a_vector_that_is_kept_in_order(ops in proptest::collection::vec(op(), 1..300), seed: u64) {
            let mut lru = Lru::new(seed);
            let mut model: Vec<(Handle, u32)> = Vec::new();
            let mut stale: Vec<Handle> = Vec::new();
            let mut seen = HashSet::new();
            for (step, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Insert => {
                        let handle = lru.insert(|_| step as u32).unwrap();
                        prop_assert!(seen.insert(handle) && handle.to_bits() != 0);
                        model.push((handle, step as u32));
                    }
                    Op::Touch(at) if !model.is_empty() => {
                        let used = model.remove(at % model.len());
                        prop_assert_eq!(lru.touch(used.0).copied(), Some(used.1));
                        model.push(used);
                    }
                    Op::Remove(at) if !model.is_empty() => {
                        let (handle, value) = model.remove(at % model.len());
                        prop_assert_eq!(lru.remove(handle), Some(value));
                        stale.push(handle);
                    }
                    Op::UseStale(at) if !stale.is_empty() => {
                        let handle = stale[at % stale.len()];
                        prop_assert!(lru.get(handle).is_none());
                        prop_assert!(lru.touch(handle).is_none() && lru.remove(handle).is_none());
                    }
                    _ => {}
                }
                let order: Vec<_> = lru.oldest_first().map(|(handle, value)| (handle, *value)).collect();
                prop_assert_eq!(&order, &model);
                prop_assert_eq!(lru.len(), model.len());
            }
        }
    }

    #[test]
    fn a_slot_at_its_last_generation_is_retired() {
        let mut lru = Lru::new(0);
        lru.first_generation = GENERATION_MAX;
        let last = lru.insert(|_| ()).unwrap();
        lru.remove(last);
        let next = lru.insert(|_| ()).unwrap();
        assert_ne!(last.slot(), next.slot());
        assert!(lru.get(last).is_none());
    }

    #[test]
    fn a_made_up_handle_is_stale() {
        let lru = Lru::<()>::new(7);
        assert!(lru.get(Handle::from_bits(u64::MAX)).is_none());
        assert!(lru.get(Handle::from_bits(0)).is_none());
    }
}
