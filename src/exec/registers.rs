//! Registers that the platform lets a call leave as it likes: vectors, masks, x87.
//!
//! The general ones are for the trampoline: it loads or clears each of them for each call.
#![allow(unsafe_code)] // Instructions that Rust has no function for.

use std::arch::asm;

/// Makes them all zero. What must stay across calls is as it was: modes, and the x87 stack is empty.
pub(super) fn clear() {
    if std::is_x86_feature_detected!("avx512f") {
        clear_avx512();
    }
    if std::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has the instruction; the compiler is told what it overwrites.
        unsafe { asm!("vzeroall", clobber_abi("C"), options(nomem, nostack, preserves_flags)) };
    } else {
        clear_sse();
    }
    clear_x87();
}

/// What `vzeroall` does not reach: the upper sixteen, and the masks.
fn clear_avx512() {
    // SAFETY: only called where the processor has the instructions; the compiler is told what they overwrite.
    unsafe {
        asm!(
            "vpxord zmm16, zmm16, zmm16",
            "vpxord zmm17, zmm17, zmm17",
            "vpxord zmm18, zmm18, zmm18",
            "vpxord zmm19, zmm19, zmm19",
            "vpxord zmm20, zmm20, zmm20",
            "vpxord zmm21, zmm21, zmm21",
            "vpxord zmm22, zmm22, zmm22",
            "vpxord zmm23, zmm23, zmm23",
            "vpxord zmm24, zmm24, zmm24",
            "vpxord zmm25, zmm25, zmm25",
            "vpxord zmm26, zmm26, zmm26",
            "vpxord zmm27, zmm27, zmm27",
            "vpxord zmm28, zmm28, zmm28",
            "vpxord zmm29, zmm29, zmm29",
            "vpxord zmm30, zmm30, zmm30",
            "vpxord zmm31, zmm31, zmm31",
            // Clears what is above the word, too.
            "kxorw k0, k0, k0",
            "kxorw k1, k1, k1",
            "kxorw k2, k2, k2",
            "kxorw k3, k3, k3",
            "kxorw k4, k4, k4",
            "kxorw k5, k5, k5",
            "kxorw k6, k6, k6",
            "kxorw k7, k7, k7",
            clobber_abi("C"),
            options(nomem, nostack, preserves_flags),
        )
    };
}

fn clear_sse() {
    // SAFETY: SSE2 belongs to x86-64; the compiler is told what they overwrite.
    unsafe {
        asm!(
            "pxor xmm0, xmm0",
            "pxor xmm1, xmm1",
            "pxor xmm2, xmm2",
            "pxor xmm3, xmm3",
            "pxor xmm4, xmm4",
            "pxor xmm5, xmm5",
            "pxor xmm6, xmm6",
            "pxor xmm7, xmm7",
            "pxor xmm8, xmm8",
            "pxor xmm9, xmm9",
            "pxor xmm10, xmm10",
            "pxor xmm11, xmm11",
            "pxor xmm12, xmm12",
            "pxor xmm13, xmm13",
            "pxor xmm14, xmm14",
            "pxor xmm15, xmm15",
            clobber_abi("C"),
            options(nomem, nostack, preserves_flags),
        )
    };
}

/// `emms` and `fninit` only mark the registers empty: their contents, which are also those of MMX, must be written.
fn clear_x87() {
    // SAFETY: the x87 stack is empty between calls, as the platform asks, and is so afterwards; `fninit` sets the mode
    // that the platform has.
    unsafe {
        asm!(
            "fldz",
            "fldz",
            "fldz",
            "fldz",
            "fldz",
            "fldz",
            "fldz",
            "fldz",
            "fninit",
            clobber_abi("C"),
            options(nomem, nostack, preserves_flags),
        )
    };
}
