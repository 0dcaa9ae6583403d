//! What code may know of the processor: the variables that GCC's runtime library has for `__builtin_cpu_supports` and
//! for `target_clones`. LLVM's compilers and library use the same.
//!
//! The numbers are those of `enum processor_features` in GCC's `common/config/i386/i386-cpuinfo.h`; they are an
//! interface and do not change. Which maker and model it is, is not told: what asks for one (`arch=haswell`,
//! `__builtin_cpu_is`) finds another one, and takes its default.

/// Of `__cpu_model`: maker, type, subtype and the first 32 features.
const MODEL_WORDS: usize = 4;
/// Of `__cpu_features2`: the features behind them.
const MORE_WORDS: usize = 4;
/// The value of a maker that is none of those known.
const VENDOR_OTHER: u32 = 3;

/// Names of constants, each with its bytes.
pub fn constants() -> Vec<(&'static str, Box<[u8]>)> {
    let mut words = [0_u32; 1 + MORE_WORDS];
    for (number, _) in features().into_iter().filter(|&(_, is_present)| is_present) {
        words[number / 32] |= 1 << (number % 32);
    }
    let mut model = [0; MODEL_WORDS];
    (model[0], model[MODEL_WORDS - 1]) = (VENDOR_OTHER, words[0]);
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    vec![("__cpu_features2", bytes(&words[1..])), ("__cpu_model", bytes(&model))]
}

/// Numbers of features, and whether the processor and its kernel have them.
fn features() -> Vec<(usize, bool)> {
    macro_rules! present {
        ($($number:literal $name:tt),* $(,)?) => {
            vec![$(($number, std::arch::is_x86_feature_detected!($name))),*]
        };
    }
    let mut features = present![
        2 "popcnt", 3 "sse", 4 "sse2", 5 "sse3", 6 "ssse3", 7 "sse4.1", 8 "sse4.2", 9 "avx", 10 "avx2", 11 "sse4a",
        14 "fma", 15 "avx512f", 16 "bmi1", 17 "bmi2", 18 "aes", 19 "pclmulqdq", 20 "avx512vl", 21 "avx512bw",
        22 "avx512dq", 23 "avx512cd", 26 "avx512vbmi", 27 "avx512ifma", 30 "avx512vpopcntdq", 31 "avx512vbmi2",
        32 "gfni", 33 "vpclmulqdq", 34 "avx512vnni", 35 "avx512bitalg", 36 "avx512bf16", 37 "avx512vp2intersect",
        40 "adx", 46 "cmpxchg16b", 49 "f16c", 51 "fxsr", 57 "lzcnt", 58 "movbe", 69 "rdrand", 70 "rdseed", 74 "sha",
        78 "vaes", 81 "xsave", 82 "xsavec", 83 "xsaveopt", 84 "xsaves",
    ];
    // What every processor of 64 bits has: cmov, mmx, the baseline itself.
    features.extend([(0, true), (1, true), (95, true)]);
    let has = |numbers: &[usize]| numbers.iter().all(|number| features.contains(&(*number, true)));
    let second = has(&[46, 2, 5, 6, 7, 8]);
    let third = second && has(&[9, 10, 14, 16, 17, 49, 57, 58, 81]);
    let fourth = third && has(&[15, 20, 21, 22, 23]);
    features.extend([(96, second), (97, third), (98, fourth)]);
    features
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_features_are_where_gcc_looks_for_them() {
        let constants = constants();
        let (name, model) = &constants[1];
        assert_eq!((*name, model.len()), ("__cpu_model", 16));
        let word = u32::from_le_bytes(model[12..].try_into().unwrap());
        assert_eq!(word & 0b1_1011, 0b1_1011, "cmov, mmx, sse, sse2");
        assert_eq!(word & 1 << 10 != 0, std::arch::is_x86_feature_detected!("avx2"));
        let (name, more) = &constants[0];
        assert_eq!((*name, more[7] & 0x80), ("__cpu_features2", 0x80), "feature 95: x86-64 itself");
    }
}
