//! What compiled functions are asked, and what they must answer.

use codecached::proto::{ResultType, value::Kind};

use crate::{functions, support::Random};

/// Calls of a function with chosen inputs that are not among the edges.
const RANDOM_CALLS: usize = 6;

/// All calls of one function.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) calls: Vec<Asked>,
}

pub(crate) struct Asked {
    pub(crate) arguments: Vec<Kind>,
    /// What it answers; none for a function without a result.
    pub(crate) value: Option<Kind>,
    /// The buffers that come back.
    pub(crate) buffers: Vec<Vec<u8>>,
}

impl Asked {
    fn value(arguments: impl Into<Vec<Kind>>, value: Kind) -> Self {
        Self { arguments: arguments.into(), value: Some(value), buffers: vec![] }
    }

    pub(crate) fn result(&self) -> ResultType {
        match self.value {
            None => ResultType::Void,
            Some(Kind::I32(_)) => ResultType::I32,
            Some(Kind::U32(_)) => ResultType::U32,
            Some(Kind::I64(_)) => ResultType::I64,
            Some(Kind::U64(_)) => ResultType::U64,
            Some(Kind::F32(_)) => ResultType::F32,
            Some(Kind::F64(_)) => ResultType::F64,
            Some(ref other) => panic!("{other:?} is no result"),
        }
    }
}

/// Every function, in the order in which they are called: `bump` keeps a count, which begins with the entry.
pub(crate) fn all() -> Vec<Case> {
    let mut random = Random(1914);
    let mut cases = Vec::new();
    for (name, calls) in [numbers(&mut random), floats(&mut random), buffers(&mut random)].into_iter().flatten() {
        assert!(calls.len() > 1, "{name} is not called");
        cases.push(Case { name, calls });
    }
    cases
}

type Named = (&'static str, Vec<Asked>);

/// Numbers of all lengths, and the edges of their types.
fn words(random: &mut Random) -> Vec<u64> {
    let edges = [
        0,
        1,
        2,
        63,
        64,
        0xff,
        1 << 31,
        u64::from(u32::MAX),
        1 << 32,
        i64::MAX as u64,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ];
    edges.into_iter().chain((0..RANDOM_CALLS).map(|_| random.next() >> random.below(64))).collect()
}

fn numbers(random: &mut Random) -> Vec<Named> {
    let one = |of: &[u64], ask: &dyn Fn(u64) -> Asked| of.iter().map(|&n| ask(n)).collect::<Vec<_>>();
    let words = words(random);
    let pairs: Vec<_> = words.iter().map(|&a| (a, words[random.below(words.len() as u64) as usize])).collect();
    let two = |ask: &dyn Fn(u64, u64) -> Asked| pairs.iter().map(|&(a, b)| ask(a, b)).collect::<Vec<_>>();
    let small: Vec<u64> = (0..20).collect();
    let chosen = |function: fn(u32, i64, i64) -> i64, count: u32| {
        let asked = |which: u32, (a, b): (u64, u64)| {
            let (a, b) = (a as i64, b as i64);
            Asked::value([Kind::U32(which), Kind::I64(a), Kind::I64(b)], Kind::I64(function(which, a, b)))
        };
        (0..count).flat_map(|which| pairs.iter().step_by(5).map(move |&pair| asked(which, pair))).collect::<Vec<_>>()
    };
    let bumps = words.iter().scan((1000, 0), |(count, calls), &by| {
        *calls += 1;
        *count = functions::bumped(*count, *calls, by as i64);
        Some(Asked::value([Kind::I64(by as i64)], Kind::I64(*count)))
    });
    vec![
        (
            "collatz",
            one(&[0, 1, 2, 27, 97, 871, 6171, 77031], &|n| {
                Asked::value([Kind::U64(n)], Kind::U32(functions::collatz(n)))
            }),
        ),
        ("opcode", chosen(functions::opcode, 16)),
        ("apply", chosen(functions::apply, 6)),
        ("fibonacci", one(&small, &|n| Asked::value([Kind::U32(n as u32)], Kind::U32(functions::fibonacci(n as u32))))),
        (
            "ackermann",
            one(&small[..9], &|n| {
                let (m, n) = (n as u32 / 3, n as u32 % 3);
                Asked::value([Kind::U32(m), Kind::U32(n)], Kind::U32(functions::ackermann(m, n)))
            }),
        ),
        ("is_even", one(&small, &|n| Asked::value([Kind::U32(n as u32)], Kind::I32(functions::is_even(n as u32))))),
        ("bump", bumps.collect()),
        (
            "multiply_high",
            two(&|a, b| Asked::value([Kind::U64(a), Kind::U64(b)], Kind::U64(functions::multiply_high(a, b)))),
        ),
        (
            "divide_wide",
            two(&|a, b| {
                let by = b.max(1);
                Asked::value(
                    [Kind::U64(b ^ a), Kind::U64(a), Kind::U64(by)],
                    Kind::U64(functions::divide_wide(b ^ a, a, by)),
                )
            }),
        ),
        ("many", one(&words, &|n| Asked::value([Kind::I64(n as i64)], Kind::I64(functions::many(n as i64))))),
        ("bits", one(&words, &|n| Asked::value([Kind::U64(n)], Kind::U64(functions::bits(n))))),
        ("to_double", one(&words, &|n| Asked::value([Kind::U64(n)], Kind::F64(functions::to_double(n))))),
    ]
}

/// A number of moderate size with all its bits.
fn number(random: &mut Random) -> f64 {
    (random.next() as i64 as f64) / 2_f64.powi(40 + random.below(24) as i32)
}

fn floats(random: &mut Random) -> Vec<Named> {
    let mut calls = || (0..2 * RANDOM_CALLS).map(|_| [(); 6].map(|()| number(random))).collect::<Vec<_>>();
    let inputs = calls();
    let each = |ask: &dyn Fn(&[f64; 6]) -> Asked| inputs.iter().map(ask).collect::<Vec<_>>();
    let edges = [0.0, -0.0, 1e300, f64::MIN_POSITIVE];
    let mut polynomial = each(&|&[x, ..]| Asked::value([Kind::F64(x)], Kind::F64(functions::polynomial(x))));
    polynomial.extend(edges.map(|x| Asked::value([Kind::F64(x)], Kind::F64(functions::polynomial(x)))));
    let above = [0.0, 0.999, 1.0, 9.2e18, 9.3e18, 1.8e19];
    let mut to_integer =
        each(&|&[x, ..]| Asked::value([Kind::F64(x.abs())], Kind::U64(functions::to_integer(x.abs()))));
    to_integer.extend(above.map(|x| Asked::value([Kind::F64(x)], Kind::U64(functions::to_integer(x)))));
    vec![
        ("polynomial", polynomial),
        ("to_integer", to_integer),
        (
            "hypotenuse",
            each(&|&[a, b, ..]| Asked::value([Kind::F64(a), Kind::F64(b)], Kind::F64((a * a + b * b).sqrt()))),
        ),
        (
            "mixed",
            each(&|&[a, b, c, d, e, f]| {
                let (a, c, d, e) = (a as i32, (c * 1e6) as i64, d as f32, e.abs() as u32);
                let arguments = [Kind::I32(a), Kind::F64(b), Kind::I64(c), Kind::F32(d), Kind::U32(e), Kind::F64(f)];
                Asked::value(arguments, Kind::F64(functions::mixed(a, b, c, d, e, f)))
            }),
        ),
    ]
}

fn bytes(data: &[u8]) -> Kind {
    Kind::Bytes(data.to_vec().into())
}

fn inout(data: &[u8]) -> Kind {
    Kind::Inout(data.to_vec().into())
}

/// The bytes of numbers, as they lie in memory.
fn flat<const N: usize>(values: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
    values.into_iter().flatten().collect()
}

/// Some that fill vectors, and some that do not.
const LENGTHS: [usize; 12] = [1, 2, 3, 4, 5, 7, 8, 15, 16, 33, 100, 1000];

fn buffers(random: &mut Random) -> Vec<Named> {
    vec![
        ("dot", LENGTHS.map(|n| dot(random, n)).into()),
        ("scale", LENGTHS.map(|n| scale(random, n)).into()),
        ("sort", LENGTHS.map(|n| sort(random, n)).into()),
        ("checksum", LENGTHS.map(|n| of_text(random, n, |text| Kind::U32(functions::checksum(text)))).into()),
        ("digest", LENGTHS.map(|n| of_text(random, n, |text| Kind::U64(functions::digest(text)))).into()),
        ("words", LENGTHS.map(|n| of_text(random, n, |text| Kind::U64(functions::words(text)))).into()),
        ("multiply4", (0..RANDOM_CALLS).map(|_| multiply4(random)).collect()),
        ("planet", (0..10).map(planet).collect()),
        ("decimal", words(random).into_iter().map(|n| decimal(n as i64)).collect()),
    ]
}

fn dot(random: &mut Random, n: usize) -> Asked {
    let [a, b] = [(); 2].map(|()| (0..n).map(|_| number(random)).collect::<Vec<_>>());
    let in_memory = |values: &[f64]| bytes(&flat(values.iter().map(|it| it.to_le_bytes())));
    Asked::value([in_memory(&a), in_memory(&b), Kind::U64(n as u64)], Kind::F64(functions::dot(&a, &b)))
}

fn scale(random: &mut Random, n: usize) -> Asked {
    let mut values: Vec<_> = (0..n).map(|_| number(random) as f32).collect();
    let in_memory = |values: &[f32]| flat(values.iter().map(|it| it.to_le_bytes()));
    let by = number(random) as f32;
    let arguments = vec![inout(&in_memory(&values)), Kind::U64(n as u64), Kind::F32(by)];
    functions::scale(&mut values, by);
    Asked { arguments, value: None, buffers: vec![in_memory(&values)] }
}

fn sort(random: &mut Random, n: usize) -> Asked {
    let mut values: Vec<_> = (0..n).map(|_| random.next() as i32 >> random.below(31)).collect();
    let in_memory = |values: &[i32]| flat(values.iter().map(|it| it.to_le_bytes()));
    let arguments = vec![inout(&in_memory(&values)), Kind::U64(n as u64)];
    functions::sort(&mut values);
    Asked { arguments, value: None, buffers: vec![in_memory(&values)] }
}

fn of_text(random: &mut Random, n: usize, function: fn(&[u8]) -> Kind) -> Asked {
    let text: Vec<u8> = (0..n).map(|_| b"abcxyz 019  ,."[random.below(14) as usize]).collect();
    Asked::value([bytes(&text), Kind::U64(n as u64)], function(&text))
}

fn multiply4(random: &mut Random) -> Asked {
    let [a, b] = [(); 2].map(|()| [(); 16].map(|()| number(random) as f32));
    let in_memory = |values: &[f32; 16]| flat(values.iter().map(|it| it.to_le_bytes()));
    let arguments = vec![bytes(&in_memory(&a)), bytes(&in_memory(&b)), Kind::OutBytes(64)];
    Asked { arguments, value: None, buffers: vec![in_memory(&functions::multiply4(&a, &b))] }
}

fn planet(index: u32) -> Asked {
    let mut out = vec![0; 16];
    let size = functions::planet(index, &mut out);
    Asked { arguments: vec![Kind::U32(index), Kind::OutBytes(16)], value: Some(Kind::U64(size)), buffers: vec![out] }
}

fn decimal(n: i64) -> Asked {
    let mut out = vec![0; 24];
    let size = functions::decimal(n, &mut out);
    Asked { arguments: vec![Kind::I64(n), Kind::OutBytes(24)], value: Some(Kind::U64(size)), buffers: vec![out] }
}
