//! The functions of `<math.h>` for double, float and long double.
//!
//! They come from the C library, or a few of the exact ones from Rust's runtime, where the linker meets it first: those
//! that this daemon would call itself. They compute from their arguments, through pointers at most into memory of the
//! caller. Some change the rounding mode for a moment, which the way back from a call sets right wherever it was ended;
//! an exception that code has unmasked is the code's fault. They set the executor's `errno`, which nobody looks at
//! across a call. `lgamma` is left out, as it stores a sign for all threads; `lgamma_r` gives it to the caller.

pass_on! {
    // Double.
    acos, acosh, asin, asinh, atan, atan2, atanh, cbrt, ceil, copysign, cos, cosh, erf, erfc, exp, exp10, exp2, expm1,
    fabs, fdim, floor, fma, fmax, fmin, fmod, frexp, hypot, ilogb, ldexp, lgamma_r, llrint, llround, log, log10, log1p,
    log2, logb, lrint, lround, modf, nearbyint, nextafter, nexttoward, pow, remainder, remquo, rint, round, roundeven,
    scalbln, scalbn, sin, sincos, sinh, sqrt, tan, tanh, tgamma, trunc,
    // Float.
    acosf, acoshf, asinf, asinhf, atanf, atan2f, atanhf, cbrtf, ceilf, copysignf, cosf, coshf, erff, erfcf, expf,
    exp10f, exp2f, expm1f, fabsf, fdimf, floorf, fmaf, fmaxf, fminf, fmodf, frexpf, hypotf, ilogbf, ldexpf, lgammaf_r,
    llrintf, llroundf, logf, log10f, log1pf, log2f, logbf, lrintf, lroundf, modff, nearbyintf, nextafterf, nexttowardf,
    powf, remainderf, remquof, rintf, roundf, roundevenf, scalblnf, scalbnf, sinf, sincosf, sinhf, sqrtf, tanf, tanhf,
    tgammaf, truncf,
    // Long double.
    acosl, acoshl, asinl, asinhl, atanl, atan2l, atanhl, cbrtl, ceill, copysignl, cosl, coshl, erfl, erfcl, expl,
    exp10l, exp2l, expm1l, fabsl, fdiml, floorl, fmal, fmaxl, fminl, fmodl, frexpl, hypotl, ilogbl, ldexpl, lgammal_r,
    llrintl, llroundl, logl, log10l, log1pl, log2l, logbl, lrintl, lroundl, modfl, nearbyintl, nextafterl, nexttowardl,
    powl, remainderl, remquol, rintl, roundl, roundevenl, scalblnl, scalbnl, sinl, sincosl, sinhl, sqrtl, tanl, tanhl,
    tgammal, truncl,
    // What the macros of the header call.
    __finite, __finitef, __finitel, __fpclassify, __fpclassifyf, __fpclassifyl, __isinf, __isinff, __isinfl, __isnan,
    __isnanf, __isnanl, __signbit, __signbitf, __signbitl;
    finite => __finite, finitef => __finitef, isinf => __isinf, isinff => __isinff, isnan => __isnan,
    isnanf => __isnanf,
    // What a static libm calls of the C library beside it.
    __copysign => copysign, __copysignf => copysignf, __frexp => frexp, __frexpf => frexpf, __ldexp => ldexp,
    __ldexpf => ldexpf, __modf => modf, __modff => modff, __scalbn => scalbn, __scalbnf => scalbnf,
}
