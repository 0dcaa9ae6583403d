//! Calls with chosen arguments, by a short signature.

use codecached::proto::{ResultType, value::Kind};

use crate::support::Random;

/// Room of a buffer that a function fills or changes.
const ROOM_BYTES: usize = 4096;
const STRING_MAX_BYTES: u64 = 60;

/// Arguments from a signature, a letter for each:
///
/// - `d` a double, `f` a float; `g` a double and `h` a float of moderate size
/// - `w` a number of 64 bits, `i` of 32; `k` one from 0 to 31, `c` a character, `z` a size
/// - `s` a string, `S` one that is nearly the last
/// - `b` bytes, `B` as many that are nearly those, `n` how many they are
/// - `o` room for 4 KiB, `O` how much that is, `P` a variable that says so
/// - `x` a string with room behind it, `y` a variable of 8 bytes that is changed
pub(crate) fn arguments(signature: &str, random: &mut Random) -> Vec<Kind> {
    let mut last: Vec<u8> = Vec::new();
    let of = |letter: char| {
        if "sSbBx".contains(letter) {
            last = buffer(letter, &last, random);
        }
        match letter {
            'd' => Kind::F64(double(random)),
            'f' => Kind::F32(double(random) as f32),
            'g' => Kind::F64(moderate(random)),
            'h' => Kind::F32(moderate(random) as f32),
            'w' => Kind::I64(word(random)),
            'i' => Kind::I32(word(random) as i32),
            'k' => Kind::I32(random.below(32) as i32),
            'c' => Kind::I32(character(random).into()),
            'z' => Kind::U64(random.below(1 << 24)),
            's' | 'S' => Kind::Bytes([&last[..], b"\0"].concat().into()),
            'b' | 'B' => Kind::Bytes(last.clone().into()),
            'n' => Kind::U64(last.len() as u64),
            'o' => Kind::OutBytes(ROOM_BYTES as u64),
            'O' => Kind::U64(ROOM_BYTES as u64),
            'P' => Kind::Inout((ROOM_BYTES as u64).to_le_bytes().to_vec().into()),
            'x' => Kind::Inout([&last[..], &vec![0; ROOM_BYTES / 8][..]].concat().into()),
            'y' => Kind::Inout(random.next().to_le_bytes().to_vec().into()),
            _ => panic!("{letter} is in no signature"),
        }
    };
    signature.chars().map(of).collect()
}

/// The type that a letter stands for as a result.
pub(crate) fn result(letter: char) -> ResultType {
    match letter {
        'v' => ResultType::Void,
        'i' => ResultType::I32,
        'u' => ResultType::U32,
        'w' => ResultType::I64,
        'f' => ResultType::F32,
        'd' => ResultType::F64,
        _ => panic!("{letter} is no result"),
    }
}

/// Of all magnitudes, and what is special.
fn double(random: &mut Random) -> f64 {
    const SPECIAL: [f64; 10] =
        [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, f64::MIN_POSITIVE / 8.0];
    match random.below(8) {
        0 => SPECIAL[random.below(10) as usize],
        1 | 2 => f64::from_bits(random.next()),
        3 | 4 => moderate(random) / 16.0,
        _ => moderate(random),
    }
}

fn moderate(random: &mut Random) -> f64 {
    random.next() as i64 as f64 / (1_u64 << 59) as f64
}

fn word(random: &mut Random) -> i64 {
    random.next() as i64 >> random.below(64)
}

/// Few enough that they come again, with digits, signs and what is not of ASCII.
fn character(random: &mut Random) -> u8 {
    b"abeABE 0179.-+\t\xe4z"[random.below(17) as usize]
}

fn buffer(letter: char, last: &[u8], random: &mut Random) -> Vec<u8> {
    let size = 8 + random.below(if letter == 'b' { 2000 } else { STRING_MAX_BYTES });
    match letter {
        'b' => compressible(size as usize, random),
        'S' | 'B' => {
            let mut near = last.to_vec();
            let at = random.below(near.len() as u64) as usize;
            match random.below(4) {
                0 => {}
                1 if letter == 'S' => near.truncate(1 + at / 4),
                2 if letter == 'S' => near = near[at..].to_vec(),
                _ => near[at] = character(random),
            }
            near
        }
        _ => (0..size).map(|_| character(random)).collect(),
    }
}

/// Words that come again, and noise.
fn compressible(size: usize, random: &mut Random) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < size {
        match random.below(3) {
            0 => data.extend(random.next().to_le_bytes()),
            _ => data.extend([&b"install "[..], b"evict ", b"arena arena "][random.below(3) as usize]),
        }
    }
    data.truncate(size);
    data
}
