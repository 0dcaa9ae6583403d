//! Host functions that compute, compared with Rust's own.
#![allow(unsafe_code)] // The tests' own machine code, and the C library's answers to compare with.

use bytes::Bytes;

use super::{apply, returned, trapped, with, words};
use crate::exec::call::{Arg, ResultType, Scalar};
use crate::exec::test_code::{TestPool, assemble, import, pool};
use crate::exec::trap::TrapKind;

type OfDouble = fn(f64) -> f64;
type OfDoubles = fn(f64, f64) -> f64;
type OfFloat = fn(f32) -> f32;

#[allow(clashing_extern_declarations)] // The table needs no signatures.
mod reference {
    unsafe extern "C" {
        pub(super) safe fn erf(x: f64) -> f64;
        pub(super) safe fn erfc(x: f64) -> f64;
        pub(super) safe fn tgamma(x: f64) -> f64;
        pub(super) safe fn exp10(x: f64) -> f64;
        pub(super) safe fn logb(x: f64) -> f64;
        pub(super) safe fn fdim(x: f64, y: f64) -> f64;
        pub(super) safe fn fmin(x: f64, y: f64) -> f64;
        pub(super) safe fn fmax(x: f64, y: f64) -> f64;
        pub(super) safe fn remainder(x: f64, y: f64) -> f64;
        pub(super) safe fn nextafter(x: f64, y: f64) -> f64;
        pub(super) safe fn erff(x: f32) -> f32;
        pub(super) safe fn tgammaf(x: f32) -> f32;
    }
}

assemble!(
    /// `(function, a, b, c, d, out)`: stores the two words of `function(a, b, c, d, out + 16)`.
    apply_wide,
    "push r9", "mov rax, rdi", "mov rdi, rsi", "mov rsi, rdx", "mov rdx, rcx", "mov rcx, r8", "lea r8, [r9 + 16]",
    "call rax", "pop rcx", "mov [rcx], rax", "mov [rcx + 8], rdx", "ret"
);
assemble!(
    /// `(function, x)` and `(function, x, y)` of long doubles, which are passed on the stack.
    apply_long,
    "sub rsp, 40", "movsd [rsp], xmm0", "fld qword ptr [rsp]", "movsd [rsp + 8], xmm1", "fld qword ptr [rsp + 8]",
    "fstp tbyte ptr [rsp + 16]", "fstp tbyte ptr [rsp]", "call rdi", "fstp qword ptr [rsp]", "movsd xmm0, [rsp]",
    "add rsp, 40", "ret"
);
fn f64_of(pool: &TestPool, name: &str, args: impl IntoIterator<Item = Arg>) -> f64 {
    match returned(pool, apply(), with(name, args), ResultType::F64).0 {
        Some(Scalar::F64(value)) => value,
        other => panic!("{name} returned {other:?}"),
    }
}

fn f32_of(pool: &TestPool, name: &str, args: impl IntoIterator<Item = Arg>) -> f32 {
    match returned(pool, apply(), with(name, args), ResultType::F32).0 {
        Some(Scalar::F32(value)) => value,
        other => panic!("{name} returned {other:?}"),
    }
}

const DOUBLES: [f64; 12] = [0.0, -0.0, 0.5, -0.75, 1.0, 2.5, -3.5, 1e-310, 123_456.789, 1e300, f64::INFINITY, f64::NAN];

#[test]
fn functions_of_one_double_give_rusts_results_to_the_bit() {
    let pool = pool(1, 8);
    let functions: [(&str, OfDouble); 31] = [
        ("sin", f64::sin),
        ("cos", f64::cos),
        ("tan", f64::tan),
        ("asin", f64::asin),
        ("acos", f64::acos),
        ("atan", f64::atan),
        ("sinh", f64::sinh),
        ("cosh", f64::cosh),
        ("tanh", f64::tanh),
        ("exp", f64::exp),
        ("exp2", f64::exp2),
        ("expm1", f64::exp_m1),
        ("log", f64::ln),
        ("log2", f64::log2),
        ("log10", f64::log10),
        ("log1p", f64::ln_1p),
        ("sqrt", f64::sqrt),
        ("cbrt", f64::cbrt),
        ("floor", f64::floor),
        ("ceil", f64::ceil),
        ("trunc", f64::trunc),
        ("round", f64::round),
        ("rint", f64::round_ties_even),
        ("nearbyint", f64::round_ties_even),
        ("roundeven", f64::round_ties_even),
        ("fabs", f64::abs),
        ("erf", |x| reference::erf(x)),
        ("erfc", |x| reference::erfc(x)),
        ("tgamma", |x| reference::tgamma(x)),
        ("exp10", |x| reference::exp10(x)),
        ("logb", |x| reference::logb(x)),
    ];
    for (name, expected) in functions {
        for x in DOUBLES {
            let (got, expected) = (f64_of(&pool, name, [Arg::F64(x)]), expected(x));
            // Which NaN it is depends on the way it came about.
            assert!(
                got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
                "{name}({x}) = {got}, expected {expected}"
            );
        }
    }
}

#[test]
fn functions_of_two_and_three_doubles_give_rusts_results_to_the_bit() {
    let pool = pool(1, 8);
    let functions: [(&str, OfDoubles); 11] = [
        ("atan2", f64::atan2),
        ("pow", f64::powf),
        ("hypot", f64::hypot),
        ("fmod", |x, y| x % y),
        ("copysign", f64::copysign),
        ("fmin", |x, y| reference::fmin(x, y)),
        ("fmax", |x, y| reference::fmax(x, y)),
        ("fdim", |x, y| reference::fdim(x, y)),
        ("remainder", |x, y| reference::remainder(x, y)),
        ("nextafter", |x, y| reference::nextafter(x, y)),
        ("fma", |x, y| x.mul_add(y, 0.1)),
    ];
    for (name, expected) in functions {
        for (x, y) in DOUBLES.into_iter().flat_map(|x| [0.0, -1.5, 2.0, 1e-3, f64::NAN].map(|y| (x, y))) {
            let got = f64_of(&pool, name, [Arg::F64(x), Arg::F64(y), Arg::F64(0.1)]);
            let expected = expected(x, y);
            assert!(
                got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
                "{name}({x}, {y}) = {got}, expected {expected}"
            );
        }
    }
}

#[test]
fn functions_of_floats_give_rusts_results_to_the_bit() {
    let pool = pool(1, 8);
    let functions: [(&str, OfFloat); 14] = [
        ("sinf", f32::sin),
        ("cosf", f32::cos),
        ("tanf", f32::tan),
        ("atanf", f32::atan),
        ("expf", f32::exp),
        ("expm1f", f32::exp_m1),
        ("logf", f32::ln),
        ("log2f", f32::log2),
        ("sqrtf", f32::sqrt),
        ("cbrtf", f32::cbrt),
        ("floorf", f32::floor),
        ("roundf", f32::round),
        ("erff", |x| reference::erff(x)),
        ("tgammaf", |x| reference::tgammaf(x)),
    ];
    for (name, expected) in functions {
        for x in DOUBLES.map(|x| x as f32) {
            let (got, expected) = (f32_of(&pool, name, [Arg::F32(x)]), expected(x));
            assert!(
                got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
                "{name}({x}) = {got}, expected {expected}"
            );
        }
    }
    assert_eq!(f32_of(&pool, "powf", [Arg::F32(2.5), Arg::F32(3.5)]), 2.5_f32.powf(3.5));
    assert_eq!(f32_of(&pool, "fmaf", [Arg::F32(2.5), Arg::F32(3.5), Arg::F32(0.1)]), 2.5_f32.mul_add(3.5, 0.1));
}

#[test]
fn mathematical_functions_take_and_give_numbers_and_pointers() {
    let pool = pool(1, 8);
    assert_eq!(f64_of(&pool, "ldexp", [Arg::I32(-3), Arg::F64(5.0)]), 0.625);
    assert_eq!(f64_of(&pool, "scalbln", [Arg::I64(4), Arg::F64(5.0)]), 80.0);
    let integer = |name, x| returned(&pool, apply(), with(name, [Arg::F64(x)]), ResultType::I64).0;
    assert_eq!(integer("lround", -2.5), Some(Scalar::I64(-3)));
    assert_eq!(integer("llrint", -2.5), Some(Scalar::I64(-2)));
    let flag = |name, x| returned(&pool, apply(), with(name, [Arg::F64(x)]), ResultType::I32).0;
    assert_eq!((flag("ilogb", 1000.0), flag("__isnan", 1.0)), (Some(Scalar::I32(9)), Some(Scalar::I32(0))));
    assert_eq!((flag("isinf", f64::NEG_INFINITY), flag("finite", 1.0)), (Some(Scalar::I32(-1)), Some(Scalar::I32(1))));
    let (value, buffers) = returned(&pool, apply(), with("frexp", [Arg::Out(4), Arg::F64(40.0)]), ResultType::F64);
    assert_eq!((value, &buffers[0][..]), (Some(Scalar::F64(0.625)), &6_i32.to_le_bytes()[..]));
    let (value, buffers) = returned(&pool, apply(), with("modf", [Arg::Out(8), Arg::F64(-2.75)]), ResultType::F64);
    assert_eq!((value, &buffers[0][..]), (Some(Scalar::F64(-0.75)), &(-2_f64).to_le_bytes()[..]));
    let args = with("sincos", [Arg::Out(8), Arg::Out(8), Arg::F64(0.7)]);
    let (_, buffers) = returned(&pool, apply(), args, ResultType::Void);
    assert_eq!(buffers, [0.7_f64.sin(), 0.7_f64.cos()].map(|x| Bytes::copy_from_slice(&x.to_le_bytes())));
    let args = with("lgamma_r", [Arg::Out(4), Arg::F64(-0.5)]);
    let (value, buffers) = returned(&pool, apply(), args, ResultType::F64);
    let Some(Scalar::F64(value)) = value else { panic!("{value:?}") };
    assert!((value - 1.265_512_123_484_645_4).abs() < 1e-15, "{value}");
    assert_eq!(buffers[0][..], (-1_i32).to_le_bytes());
    let args = with("remquo", [Arg::Out(4), Arg::F64(29.0), Arg::F64(3.0)]);
    let (value, buffers) = returned(&pool, apply(), args, ResultType::F64);
    assert_eq!((value, buffers[0][0] & 7), (Some(Scalar::F64(-1.0)), 10 & 7));
}

#[test]
fn long_doubles_pass_on_the_stack() {
    let pool = pool(1, 8);
    let long = |name, x, y| {
        let args = vec![import(name), Arg::F64(x), Arg::F64(y)];
        returned(&pool, apply_long(), args, ResultType::F64).0
    };
    assert_eq!(long("sqrtl", 2.0, 0.0), Some(Scalar::F64(2_f64.sqrt())));
    assert_eq!(long("floorl", -2.5, 0.0), Some(Scalar::F64(-3.0)));
    assert_eq!(long("powl", 3.0, 5.0), Some(Scalar::F64(243.0)));
    assert_eq!(long("fmodl", 29.0, 3.0), Some(Scalar::F64(2.0)));
    assert_eq!(long("expl", 1.0, 0.0), Some(Scalar::F64(std::f64::consts::E)));
}

/// The 128-bit result of `name(a, b)`, and the 16 bytes behind the pointer that is its third argument.
fn wide(pool: &TestPool, name: &str, a: u128, b: u128) -> (u128, u128) {
    let args = with(name, words(a).into_iter().chain(words(b)).chain([Arg::Out(32)]));
    let (_, buffers) = returned(pool, apply_wide(), args, ResultType::Void);
    let word = |at: usize| u128::from_le_bytes(buffers[0][at..at + 16].try_into().unwrap());
    (word(0), word(16))
}

#[test]
fn helpers_of_compilers_compute_what_rust_computes() {
    let pool = pool(1, 8);
    let numbers = [1, 3, u128::from(u64::MAX), 1 << 64, 0xdead_beef << 77, u128::MAX - 4, i128::MAX as u128];
    for (a, b) in numbers.into_iter().flat_map(|a| numbers.map(|b| (a, b))) {
        let (signed_a, signed_b) = (a as i128, b as i128);
        assert_eq!(wide(&pool, "__udivti3", a, b).0, a / b, "{a} / {b}");
        assert_eq!(wide(&pool, "__umodti3", a, b).0, a % b, "{a} % {b}");
        assert_eq!(wide(&pool, "__udivmodti4", a, b), (a / b, a % b), "{a} / {b}");
        assert_eq!(wide(&pool, "__divti3", a, b).0 as i128, signed_a / signed_b, "{signed_a} / {signed_b}");
        assert_eq!(wide(&pool, "__modti3", a, b).0 as i128, signed_a % signed_b, "{signed_a} % {signed_b}");
        assert_eq!(wide(&pool, "__multi3", a, b).0, a.wrapping_mul(b), "{a} * {b}");
        let (product, overflows) = signed_a.overflowing_mul(signed_b);
        assert_eq!(wide(&pool, "__muloti4", a, b), (product as u128, overflows.into()), "{signed_a} * {signed_b}");
    }
    for (a, by) in numbers.into_iter().flat_map(|a| [0, 1, 63, 64, 127].map(|by| (a, by))) {
        assert_eq!(wide(&pool, "__ashlti3", a, by).0, a << by);
        assert_eq!(wide(&pool, "__lshrti3", a, by).0, a >> by);
        assert_eq!(wide(&pool, "__ashrti3", a, by).0 as i128, (a as i128) >> by);
        assert_eq!(f64_of(&pool, "__floattidf", words(a)), a as i128 as f64);
        assert_eq!(f64_of(&pool, "__floatuntidf", words(a)), a as f64);
        assert_eq!(f32_of(&pool, "__floattisf", words(a)), a as i128 as f32);
        assert_eq!(wide(&pool, "__popcountti2", a, 0).0 as u32, a.count_ones());
        assert_eq!(wide(&pool, "__clzti2", a, 0).0 as u32, a.leading_zeros());
        assert_eq!(wide(&pool, "__ctzti2", a, 0).0 as u32, a.trailing_zeros());
    }
    for x in [0.0, -1.9, 1e10, -1e30] {
        let args = with("__fixdfti", words(0).into_iter().chain(words(0)).chain([Arg::Out(32), Arg::F64(x)]));
        let (_, buffers) = returned(&pool, apply_wide(), args, ResultType::Void);
        assert_eq!(buffers[0][..16], (x as i128).to_le_bytes(), "{x}");
    }
    assert_eq!(f64_of(&pool, "__powidf2", [Arg::I32(-3), Arg::F64(2.0)]), 0.125);
}

#[test]
fn a_wide_division_by_zero_is_an_arithmetic_fault() {
    let pool = pool(1, 8);
    for name in ["__udivti3", "__umodti3", "__divti3", "__modti3", "__udivmodti4"] {
        let args = with(name, words(7).into_iter().chain(words(0)).chain([Arg::Out(32)]));
        assert_eq!(trapped(&pool, apply_wide(), args).kind, TrapKind::Fpe, "{name}");
    }
}
