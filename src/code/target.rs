//! What a processor must have for code to run on it.

use std::fmt;

/// A level of x86-64, as its ABI defines them. Each holds those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are those of the ABI")]
pub enum Level {
    Baseline,
    V2,
    V3,
    V4,
}

impl Level {
    /// All of them, the lowest first: the order of their bits in `GNU_PROPERTY_X86_ISA_1_NEEDED`.
    pub const ALL: [Level; 4] = [Self::Baseline, Self::V2, Self::V3, Self::V4];

    /// As compilers name it after `-march=`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Baseline => "x86-64",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    /// What it has beyond the level before: table 3.1 of the System V x86-64 ABI, but for what every 64-bit mode has (CMOV,
    /// CX8, FPU, MMX, OSFXSR, SCE) and LAHF-SAHF, which programs are not told of in one agreed way. `avx` is there only where
    /// the kernel keeps its registers (OSXSAVE).
    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Baseline => &["fxsr", "sse", "sse2"],
            Self::V2 => &["cmpxchg16b", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"],
            Self::V3 => &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"],
            Self::V4 => &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"],
        }
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// What a processor and its kernel have of the features that are known by name.
#[derive(Debug, Clone, Default)]
pub struct CpuFeatures {
    /// Sorted by name.
    all: Box<[(&'static str, bool)]>,
}

/// Something that is needed and not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// A feature.
    Feature {
        /// As it was asked for.
        name: String,
        /// It is a name that is known here.
        is_known: bool,
    },
    /// A level.
    Level {
        /// Which one.
        level: Level,
        /// What of it is not there.
        features: Vec<&'static str>,
    },
    /// A level that did not exist when this was written.
    UnknownLevel {
        /// Its bits in `GNU_PROPERTY_X86_ISA_1_NEEDED`.
        bits: u32,
    },
}

impl CpuFeatures {
    /// Names, and whether each is there.
    pub fn new(features: impl IntoIterator<Item = (&'static str, bool)>) -> Self {
        let mut all: Vec<_> = features.into_iter().collect();
        all.sort_unstable();
        Self { all: all.into() }
    }

    /// Names of what is there, in name order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.all.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name)
    }

    /// The levels that are there, the lowest first.
    pub fn levels(&self) -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().take_while(|level| self.missing_of(*level).is_empty())
    }

    /// What is not there of names that were asked for: of features, and of levels.
    pub fn missing_names<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<Missing> {
        names.into_iter().filter_map(|name| self.missing_name(name)).collect()
    }

    /// What is not there of the levels whose bits in `GNU_PROPERTY_X86_ISA_1_NEEDED` these are.
    pub fn missing_levels(&self, bits: u32) -> Vec<Missing> {
        let known = Level::ALL.iter().fold(0, |known, level| known | level.bit());
        let asked = Level::ALL.into_iter().filter(|level| bits & level.bit() != 0);
        let mut missing: Vec<_> = asked.filter_map(|level| self.missing_level(level)).collect();
        if bits & !known != 0 {
            missing.push(Missing::UnknownLevel { bits: bits & !known });
        }
        missing
    }

    fn missing_name(&self, name: &str) -> Option<Missing> {
        if let Some(level) = Level::ALL.into_iter().find(|level| level.as_str() == name) {
            return self.missing_level(level);
        }
        let found = self.find(name);
        (found != Some(true)).then(|| Missing::Feature { name: name.to_owned(), is_known: found.is_some() })
    }

    fn missing_level(&self, level: Level) -> Option<Missing> {
        let missing = Level::ALL.into_iter().filter(|below| *below <= level).flat_map(|below| self.missing_of(below));
        let features: Vec<_> = missing.collect();
        (!features.is_empty()).then_some(Missing::Level { level, features })
    }

    fn missing_of(&self, level: Level) -> Vec<&'static str> {
        level.features().iter().copied().filter(|name| self.find(name) != Some(true)).collect()
    }

    fn find(&self, name: &str) -> Option<bool> {
        let at = self.all.binary_search_by_key(&name, |(name, _)| name).ok()?;
        Some(self.all[at].1)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature { name, is_known: true } => write!(f, "{name}"),
            Self::Feature { name, is_known: false } => write!(f, "{} (not a known name)", name.escape_debug()),
            Self::Level { level, features } => write!(f, "{} (lacks {})", level.as_str(), features.join(", ")),
            Self::UnknownLevel { bits } => write!(f, "a level of x86-64 above those known (bits {bits:#x})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor of a level that has also `more`, and knows of all other features that it lacks them.
    fn processor(level: Level, more: &[&'static str]) -> CpuFeatures {
        let of = |it: Level| it.features().iter().map(move |name| (*name, it <= level || more.contains(name)));
        CpuFeatures::new(Level::ALL.into_iter().flat_map(of))
    }

    #[test]
    fn a_level_needs_its_features_and_those_of_the_levels_below() {
        let v2 = processor(Level::V2, &["avx"]);
        assert_eq!(v2.levels().collect::<Vec<_>>(), [Level::Baseline, Level::V2]);
        assert_eq!(v2.missing_levels(0b0011), []);
        let missing = v2.missing_levels(0b0111);
        let lacks = vec!["avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"];
        assert_eq!(missing, [Missing::Level { level: Level::V3, features: lacks.clone() }]);
        assert_eq!(missing[0].to_string(), "x86-64-v3 (lacks avx2, bmi1, bmi2, f16c, fma, lzcnt, movbe)");
        let v4 = v2.missing_levels(0b1000);
        assert!(
            matches!(&v4[..], [Missing::Level { level: Level::V4, features }] if features.len() == lacks.len() + 5)
        );
        assert_eq!(processor(Level::V4, &[]).missing_levels(0b1111), []);
        assert_eq!(processor(Level::V4, &[]).levels().count(), 4);
        assert_eq!(CpuFeatures::default().levels().count(), 0);
    }

    #[test]
    fn a_level_of_the_future_is_missing_on_every_processor() {
        let missing = processor(Level::V4, &[]).missing_levels(1 << 7 | 1);
        assert_eq!(missing, [Missing::UnknownLevel { bits: 1 << 7 }]);
        assert!(missing[0].to_string().contains("0x80"));
    }

    #[test]
    fn names_may_be_features_and_levels_and_all_that_is_missing_is_told() {
        let v2 = processor(Level::V2, &[]);
        assert_eq!(v2.missing_names(["sse4.2", "x86-64-v2"]), []);
        let missing = v2.missing_names(["avx2", "sse2", "x86-64-v3", "avx\n3"]);
        let told: Vec<String> = missing.iter().map(Missing::to_string).collect();
        assert_eq!((&*told[0], &*told[2]), ("avx2", "avx\\n3 (not a known name)"));
        assert!(told[1].starts_with("x86-64-v3 (lacks avx, avx2"), "{told:?}");
        assert_eq!(told.len(), 3);
    }

    #[test]
    fn names_of_what_is_there_are_in_name_order_whatever_order_they_come_in() {
        let features = CpuFeatures::new([("sse2", true), ("avx", false), ("fxsr", true)]);
        assert_eq!(features.names().collect::<Vec<_>>(), ["fxsr", "sse2"]);
    }
}
