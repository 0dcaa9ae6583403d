//! Repeatable random numbers: splitmix64.

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        (self.next() % u64::from(bound)) as u32
    }

    /// From `low` to `high`; small ones are likelier.
    pub(crate) fn size(&mut self, low: u64, high: u64) -> u64 {
        let octaves = (high / low).max(1).ilog2() + 1;
        let top = (low << (self.below(octaves) + 1)).min(high);
        low + self.next() % (top - low + 1)
    }
}
