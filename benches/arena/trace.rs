//! The churn trace: which block is replaced by one of which size, in which order.

use std::{error::Error, fs, path::Path};

use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"CCHURN01";
const HEADER_BYTES: usize = 40;
/// Of the file with the default arguments. Another sum there means that the arithmetic of this platform differs.
const DEFAULT_SHA256: &str = "192c7d329f8524eb30f8d9d7e4b423d562c028d1679654eec828a3d8aed73060";

/// What a trace is made from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Law {
    pub(crate) seed: u64,
    pub(crate) live_bytes: u64,
    pub(crate) operations: u32,
    pub(crate) size_min: u32,
    pub(crate) size_max: u32,
}

impl Default for Law {
    fn default() -> Self {
        Self { seed: 0x9E37_79B9_7F4A_7C15, live_bytes: 64 << 20, operations: 1_000_000, size_min: 64, size_max: 8192 }
    }
}

impl Law {
    pub(crate) fn check(&self) -> Result<(), String> {
        if 0 < self.size_min && self.size_min < self.size_max && self.live_bytes > 0 && self.operations >= 600 {
            return Ok(());
        }
        Err(format!("no trace can be made of {self:?}: 0 < size-min < size-max, live-bytes and 600 operations needed"))
    }
}

/// The block of the slot is released, and one of this size put there.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) slot: u32,
    pub(crate) size: u32,
}

pub(crate) struct Trace {
    /// Size of the first block of each slot.
    pub(crate) fill: Vec<u32>,
    pub(crate) churn: Vec<Step>,
}

impl Trace {
    /// The trace of a file.
    pub(crate) fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let image = fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Self::parse(&image).ok_or_else(|| format!("{} is not a churn trace, or too short", path.display()).into())
    }

    /// A trace of the same bytes as the generator of the harness makes of the same numbers.
    pub(crate) fn generate(law: &Law) -> Result<Self, Box<dyn Error>> {
        let image = image(law);
        let sum: String = Sha256::digest(&image).iter().map(|byte| format!("{byte:02x}")).collect();
        if *law == Law::default() && sum != DEFAULT_SHA256 {
            return Err(format!("the default trace has sha256 {sum} instead of {DEFAULT_SHA256}").into());
        }
        Self::parse(&image).ok_or_else(|| "a made trace cannot be read".into())
    }

    pub(crate) fn size_max(&self) -> u32 {
        self.fill.iter().copied().chain(self.churn.iter().map(|step| step.size)).max().unwrap_or(0)
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.fill.iter().map(|&size| u64::from(size)).sum()
    }

    /// The size of each slot's block after all operations.
    pub(crate) fn final_sizes(&self) -> Vec<u32> {
        let mut sizes = self.fill.clone();
        for step in &self.churn {
            sizes[step.slot as usize] = step.size;
        }
        sizes
    }

    /// The first `operations` records, of them those of every n-th slot from slot k on, renumbered.
    pub(crate) fn part(&self, k: u32, n: u32, operations: usize) -> Self {
        let steps = self.churn[..operations].iter().filter(|step| step.slot % n == k);
        Self {
            fill: self.fill.iter().copied().skip(k as usize).step_by(n as usize).collect(),
            churn: steps.map(|step| Step { slot: step.slot / n, size: step.size }).collect(),
        }
    }

    fn parse(image: &[u8]) -> Option<Self> {
        let (header, body) = image.split_at_checked(HEADER_BYTES)?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let (slots, operations) = (word(16) as usize, word(20) as usize);
        let mut words = body.chunks_exact(4).map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]));
        let fill: Vec<u32> = words.by_ref().take(slots).collect();
        let mut churn = Vec::with_capacity(operations.min(body.len()));
        while let (Some(slot), Some(size)) = (words.next(), words.next()) {
            churn.push(Step { slot, size });
        }
        let whole = header.starts_with(MAGIC) && fill.len() == slots && churn.len() == operations && operations >= 600;
        let sound = churn.iter().all(|step| (step.slot as usize) < slots && step.size > 0) && !fill.contains(&0);
        (whole && sound).then_some(Self { fill, churn })
    }
}

/// The bytes of a trace file.
fn image(law: &Law) -> Vec<u8> {
    let mut random = Random::new(law.seed);
    let mut fill = Vec::new();
    let mut filled_bytes = 0;
    while filled_bytes < law.live_bytes {
        let size = random.log_uniform(law.size_min, law.size_max);
        filled_bytes += u64::from(size);
        fill.push(size);
    }
    let slots = fill.len() as u32;
    let numbers = [slots, law.operations, law.size_min, law.size_max];
    let mut image = [&MAGIC[..], &law.seed.to_le_bytes()].concat();
    image.extend(numbers.iter().flat_map(|it| it.to_le_bytes()));
    image.extend(law.live_bytes.to_le_bytes());
    image.extend(fill.iter().flat_map(|it| it.to_le_bytes()));
    for _ in 0..law.operations {
        image.extend(random.below(slots).to_le_bytes());
        image.extend(random.log_uniform(law.size_min, law.size_max).to_le_bytes());
    }
    image
}

/// Repeatable random numbers: xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(if seed == 0 { 1 } else { seed })
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (-53_f64).exp2()
    }

    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u32
    }

    /// In [low, high]; each octave is as likely as any other.
    pub(crate) fn log_uniform(&mut self, low: u32, high: u32) -> u32 {
        let (from, to) = (f64::from(low), f64::from(high));
        let drawn = from * 2_f64.powf(self.unit() * (to / from).log2());
        (drawn as u32).clamp(low, high)
    }
}
