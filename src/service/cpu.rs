//! What the processor and its kernel have.

use crate::code::CpuFeatures;

/// Those features that compilers commonly ask about, and whether they are there.
pub(super) fn features() -> CpuFeatures {
    macro_rules! asked {
        ($($name:tt),* $(,)?) => {
            CpuFeatures::new([$(($name, std::arch::is_x86_feature_detected!($name))),*])
        };
    }
    asked![
        "adx",
        "aes",
        "avx",
        "avx2",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512f",
        "avx512vbmi",
        "avx512vl",
        "avx512vnni",
        "avx512vpopcntdq",
        "bmi1",
        "bmi2",
        "cmpxchg16b",
        "f16c",
        "fma",
        "fxsr",
        "gfni",
        "lzcnt",
        "movbe",
        "pclmulqdq",
        "popcnt",
        "rdrand",
        "rdseed",
        "sha",
        "sse",
        "sse2",
        "sse3",
        "sse4.1",
        "sse4.2",
        "sse4a",
        "ssse3",
        "tbm",
        "vaes",
        "vpclmulqdq",
        "xsave",
        "xsavec",
        "xsaveopt",
        "xsaves",
    ]
}
