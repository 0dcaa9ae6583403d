//! Helpers that compilers call for what the processor has no instruction for, such as 128-bit division.
//!
//! They come with Rust's own runtime or with GCC's, whichever the linker meets first, and compute from their
//! arguments. What divides by zero would be undefined in one of them, so this is looked at before, and faults as the
//! processor's division does. Those that check for overflow (`__addvdi3`) are left out: they end the process.
#![allow(unsafe_code)] // Functions with the C ABI in assembly.

use super::Entry;

pass_on! {
    // Integers.
    __ashlti3, __ashrti3, __clzdi2, __clzti2, __ctzdi2, __ctzti2, __ffsti2, __lshrti3, __multi3, __muloti4,
    __paritydi2, __popcountdi2, __popcountti2,
    // Conversions.
    __fixdfti, __fixsfti, __fixunsdfti, __fixunssfti, __floattidf, __floattisf, __floatuntidf, __floatuntisf,
    // Floating point.
    __divdc3, __divsc3, __muldc3, __mulsc3, __powidf2, __powisf2;
}

/// A table of functions `(u128, u128 divisor, ...)`.
macro_rules! divide {
    ($($name:ident),* $(,)?) => {
        mod division {
            unsafe extern "C" {
                $(pub(super) fn $name();)*
            }
        }
        mod checked {
            $(
                #[unsafe(naked)]
                pub(super) unsafe extern "C" fn $name() {
                    std::arch::naked_asm!(
                        "mov rax, rdx",
                        "or rax, rcx",
                        "jz 2f",
                        "cld",
                        "jmp {target}@PLT",
                        "2:",
                        "xor edx, edx",
                        "div rax", // by zero: faults
                        target = sym super::division::$name,
                    )
                }
            )*
        }
        pub(super) const OWN: &[(&str, Entry)] = &[$((stringify!($name), checked::$name)),*];
    };
}

divide! { __divti3, __modti3, __udivmodti4, __udivti3, __umodti3 }
