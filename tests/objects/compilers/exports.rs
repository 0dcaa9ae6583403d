//! A crate of its own, which tests/compilers.rs compiles: `functions.rs` as C functions, without the standard library.
#![no_std]
#![allow(unsafe_code)] // Names and pointers of C.

mod functions;

use core::{
    panic::PanicInfo,
    slice,
    sync::atomic::{AtomicI64, Ordering::Relaxed},
};

unsafe extern "C" {
    safe fn abort() -> !;
    safe fn sqrt(x: f64) -> f64;
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    abort()
}

/// What the compiler's own library names; nothing unwinds where a panic aborts.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// # Safety
/// `data` is for `n` values.
unsafe fn read<'a, T>(data: *const T, n: u64) -> &'a [T] {
    // SAFETY: by the caller; the test passes a buffer of this size, or of one byte for none.
    unsafe { slice::from_raw_parts(data, n as usize) }
}

/// # Safety
/// As `read`, and nobody else uses it meanwhile.
unsafe fn write<'a, T>(data: *mut T, n: u64) -> &'a mut [T] {
    // SAFETY: by the caller; the test passes a buffer of the call.
    unsafe { slice::from_raw_parts_mut(data, n as usize) }
}

/// Functions of numbers, as they are.
macro_rules! numbers {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($argument: $type),*) -> $result {
            functions::$name($($argument),*)
        }
    )*};
}

numbers! {
    collatz(n: u64) -> u32;
    opcode(op: u32, a: i64, b: i64) -> i64;
    fibonacci(n: u32) -> u32;
    ackermann(m: u32, n: u32) -> u32;
    is_even(n: u32) -> i32;
    apply(which: u32, a: i64, b: i64) -> i64;
    multiply_high(a: u64, b: u64) -> u64;
    divide_wide(high: u64, low: u64, by: u64) -> u64;
    polynomial(x: f64) -> f64;
    mixed(a: i32, b: f64, c: i64, d: f32, e: u32, f: f64) -> f64;
    many(seed: i64) -> i64;
    bits(n: u64) -> u64;
    to_double(n: u64) -> f64;
    to_integer(x: f64) -> u64;
}

#[unsafe(no_mangle)]
pub extern "C" fn hypotenuse(a: f64, b: f64) -> f64 {
    sqrt(a * a + b * b)
}

static COUNT: AtomicI64 = AtomicI64::new(1000);
static CALLS: AtomicI64 = AtomicI64::new(0);

#[unsafe(no_mangle)]
pub extern "C" fn bump(by: i64) -> i64 {
    let calls = CALLS.fetch_add(1, Relaxed) + 1;
    let count = functions::bumped(COUNT.load(Relaxed), calls, by);
    COUNT.store(count, Relaxed);
    count
}

/// # Safety
/// Both are for `n` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dot(a: *const f64, b: *const f64, n: u64) -> f64 {
    // SAFETY: by the caller.
    let a = unsafe { read(a, n) };
    // SAFETY: by the caller.
    let b = unsafe { read(b, n) };
    functions::dot(a, b)
}

/// # Safety
/// It is for `n` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scale(values: *mut f32, n: u64, by: f32) {
    // SAFETY: by the caller.
    functions::scale(unsafe { write(values, n) }, by);
}

/// # Safety
/// It is for 16 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn planet(index: u32, out: *mut u8) -> u64 {
    // SAFETY: by the caller.
    functions::planet(index, unsafe { write(out, 16) })
}

/// # Safety
/// It is for `n` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn checksum(data: *const u8, n: u64) -> u32 {
    // SAFETY: by the caller.
    functions::checksum(unsafe { read(data, n) })
}

/// # Safety
/// It is for `n` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sort(values: *mut i32, n: u64) {
    // SAFETY: by the caller.
    functions::sort(unsafe { write(values, n) });
}

/// # Safety
/// It is for 24 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn decimal(n: i64, out: *mut u8) -> u64 {
    // SAFETY: by the caller.
    functions::decimal(n, unsafe { write(out, 24) })
}

/// # Safety
/// Each is for 16 values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn multiply4(a: *const [f32; 16], b: *const [f32; 16], out: *mut [f32; 16]) {
    // SAFETY: by the caller.
    let a = unsafe { *a };
    // SAFETY: by the caller.
    let b = unsafe { *b };
    // SAFETY: by the caller.
    unsafe { *out = functions::multiply4(&a, &b) };
}

/// # Safety
/// It is for `n` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn words(text: *const u8, n: u64) -> u64 {
    // SAFETY: by the caller.
    functions::words(unsafe { read(text, n) })
}

/// # Safety
/// It is for `n` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn digest(data: *const u8, n: u64) -> u64 {
    // SAFETY: by the caller.
    functions::digest(unsafe { read(data, n) })
}

/// Panics where `at` is beyond the table.
#[unsafe(no_mangle)]
pub extern "C" fn letters_of_planet(at: u64) -> u64 {
    functions::PLANETS[at as usize].len() as u64
}
