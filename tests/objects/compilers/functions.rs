//! What tests/compilers.rs asks of compiled code, in Rust: the test compares with these functions, and `exports.rs` makes
//! an object of them. C has the same in functions.c.

/// Steps until the Collatz sequence of `n` is at 1.
pub fn collatz(mut n: u64) -> u32 {
    let mut steps = 0;
    while n > 1 {
        n = if n.is_multiple_of(2) { n / 2 } else { n.wrapping_mul(3).wrapping_add(1) };
        steps += 1;
    }
    steps
}

/// What compilers make a table of jumps of: each case computes in another way.
pub fn opcode(op: u32, a: i64, b: i64) -> i64 {
    match op {
        0 => a.wrapping_add(b),
        1 => a.wrapping_sub(b),
        2 => a.wrapping_mul(b),
        3 => a & b,
        4 => a | b,
        5 => a ^ b,
        6 => a.wrapping_shl((b & 63) as u32),
        7 => a >> (b & 63),
        8 => !a,
        9 => a.wrapping_neg(),
        10 => i64::from(a < b),
        11 => a.max(b),
        12 => a.min(b).wrapping_mul(3),
        13 => a.wrapping_mul(a).wrapping_sub(b.wrapping_mul(b)),
        _ => -1,
    }
}

/// In the order of the elements, so that every compiler gives the same bits.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sum = 0.0;
    for (x, y) in a.iter().zip(b) {
        sum += x * y;
    }
    sum
}

/// What compilers make vectors of.
pub fn scale(values: &mut [f32], by: f32) {
    for value in values {
        *value = *value * by + 1.0;
    }
}

pub const PLANETS: [&str; 8] = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"];

/// Writes the name and answers its length.
pub fn planet(index: u32, out: &mut [u8]) -> u64 {
    let name = match PLANETS.get(index as usize) {
        Some(name) => name,
        None => "none",
    };
    out[..name.len()].copy_from_slice(name.as_bytes());
    name.len() as u64
}

/// By recursion.
pub fn fibonacci(n: u32) -> u32 {
    if n < 2 { n } else { fibonacci(n - 1).wrapping_add(fibonacci(n - 2)) }
}

/// By recursion within recursion.
pub fn ackermann(m: u32, n: u32) -> u32 {
    match (m, n) {
        (0, _) => n + 1,
        (_, 0) => ackermann(m - 1, 1),
        _ => ackermann(m - 1, ackermann(m, n - 1)),
    }
}

/// By mutual recursion.
pub fn is_even(n: u32) -> i32 {
    if n == 0 { 1 } else { is_odd(n - 1) }
}

fn is_odd(n: u32) -> i32 {
    if n == 0 { 0 } else { is_even(n - 1) }
}

const OPERATIONS: [fn(i64, i64) -> i64; 4] = [average, difference, product, weighted];

/// Through a table of functions.
pub fn apply(which: u32, a: i64, b: i64) -> i64 {
    OPERATIONS[which as usize % OPERATIONS.len()](a, b)
}

fn average(a: i64, b: i64) -> i64 {
    (a & b).wrapping_add((a ^ b) >> 1)
}

fn difference(a: i64, b: i64) -> i64 {
    a.wrapping_sub(b)
}

fn product(a: i64, b: i64) -> i64 {
    a.wrapping_mul(b)
}

fn weighted(a: i64, b: i64) -> i64 {
    a.wrapping_mul(3).wrapping_add(b.wrapping_mul(5))
}

/// What `bump` answers where the counter was `count` before `calls` calls.
pub fn bumped(count: i64, calls: i64, by: i64) -> i64 {
    count.wrapping_add(by).wrapping_mul(2).wrapping_add(calls)
}

/// The CRC-32 of zlib and others.
pub fn checksum(data: &[u8]) -> u32 {
    let mut sum = !0_u32;
    for &byte in data {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    !sum
}

pub fn sort(values: &mut [i32]) {
    values.sort_unstable();
}

pub fn multiply_high(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// The low half of a division of 128 bits, which compilers call a helper for.
pub fn divide_wide(high: u64, low: u64, by: u64) -> u64 {
    ((u128::from(high) << 64 | u128::from(low)) / u128::from(by)) as u64
}

/// Writes a number and answers the length.
pub fn decimal(n: i64, out: &mut [u8]) -> u64 {
    let mut digits = [0; 20];
    let (mut rest, mut count) = (n.unsigned_abs(), 0);
    loop {
        digits[count] = b'0' + (rest % 10) as u8;
        (rest, count) = (rest / 10, count + 1);
        if rest == 0 {
            break;
        }
    }
    let sign = usize::from(n < 0);
    if n < 0 {
        out[0] = b'-';
    }
    for at in 0..count {
        out[sign + at] = digits[count - 1 - at];
    }
    (sign + count) as u64
}

const COEFFICIENTS: [f64; 6] = [0.5, -1.25, 3.0, 0.1, -7.5, 2.0];

/// Constants out of read-only data, Horner's way.
pub fn polynomial(x: f64) -> f64 {
    let mut sum = 0.0;
    for c in COEFFICIENTS {
        sum = sum * x + c;
    }
    sum
}

/// Four by four, rows first.
pub fn multiply4(a: &[f32; 16], b: &[f32; 16]) -> [f32; 16] {
    let mut out = [0.0; 16];
    for row in 0..4 {
        for column in 0..4 {
            let mut sum = 0.0;
            for at in 0..4 {
                sum += a[4 * row + at] * b[4 * at + column];
            }
            out[4 * row + column] = sum;
        }
    }
    out
}

/// Words of letters times a thousand, and numbers. A machine of three states.
pub fn words(text: &[u8]) -> u64 {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        Between,
        Word,
        Number,
    }
    let (mut words, mut numbers, mut state) = (0, 0, State::Between);
    for &byte in text {
        let next = match byte {
            b'0'..=b'9' if state != State::Word => State::Number,
            b'0'..=b'9' | b'a'..=b'z' => State::Word,
            _ => State::Between,
        };
        words += u64::from(next == State::Word && state != State::Word);
        numbers += u64::from(next == State::Number && state == State::Between);
        state = next;
    }
    1000 * words + numbers
}

/// State of `digest`: large enough that compilers copy it by a call.
#[derive(Clone, Copy)]
struct Block {
    lanes: [u64; 40],
}

/// Copies large values.
pub fn digest(data: &[u8]) -> u64 {
    let mut block = Block { lanes: [0; 40] };
    for (at, &byte) in data.iter().enumerate() {
        let before = block;
        block.lanes[at % 40] =
            before.lanes[(at + 7) % 40].rotate_left(5) ^ u64::from(byte).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    block.lanes.iter().fold(0, |sum: u64, lane| sum.wrapping_mul(31).wrapping_add(*lane))
}

/// Integers and floating-point numbers in turn.
pub fn mixed(a: i32, b: f64, c: i64, d: f32, e: u32, f: f64) -> f64 {
    f64::from(a) * b + c as f64 * f64::from(d) - f64::from(e) / f
}

/// More arguments than registers.
pub fn many(seed: i64) -> i64 {
    let s = seed;
    let w = i64::wrapping_mul;
    let add = i64::wrapping_add;
    let terms = [s, w(s, 2), w(s, 3), w(s, 5), w(s, 7), w(s, 11), w(s, 13), w(s, 17), w(s, 19), w(s, 23)];
    terms.iter().enumerate().fold(0, |sum, (at, term)| add(w(sum, 3), term ^ at as i64))
}

/// The counts of bits, all in one number.
pub fn bits(n: u64) -> u64 {
    let swapped = n.swap_bytes().rotate_left(13);
    swapped
        ^ u64::from(n.count_ones())
        ^ u64::from((n | 1).leading_zeros()) << 8
        ^ u64::from((n | 1 << 63).trailing_zeros()) << 16
}

/// Conversions for which there is no instruction.
pub fn to_double(n: u64) -> f64 {
    n as f64
}

/// For numbers from 0 up to 2^64.
pub fn to_integer(x: f64) -> u64 {
    x as u64
}
