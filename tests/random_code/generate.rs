//! Machine code by chance: what input has which number is decided by the seed alone.

use std::{fs, path::Path};

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use object::{Object, ObjectSection, ObjectSymbol};

use crate::support::Random;

/// Longest input.
const BYTES_MAX: usize = 512;
const RET: u8 = 0xc3;

/// Makes inputs of real functions, which are those of objects that the repository has as files.
pub struct Generator {
    seed: u64,
    functions: Vec<Vec<u8>>,
}

impl Generator {
    pub fn new(seed: u64) -> Generator {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/code/tests/golden");
        let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|it| it.unwrap().path()).collect();
        paths.sort();
        let objects = paths.iter().filter(|path| path.extension().is_some_and(|it| it == "o"));
        let functions: Vec<_> = objects.flat_map(|path| functions(&fs::read(path).unwrap())).collect();
        assert!(functions.len() > 20, "only {} functions were found", functions.len());
        Generator { seed, functions }
    }

    pub fn input(&self, number: u64) -> Vec<u8> {
        let mixed = (self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mut random = Random((mixed ^ (mixed >> 31)) | 1);
        let random = &mut random;
        let mut code = match number % 6 {
            0 => bytes(random, 64),
            1 => instructions(random),
            2 => self.flipped(random),
            3 => self.spliced(random),
            4 => self.inserted(random),
            _ => [instructions(random), self.flipped(random)].concat(),
        };
        code.truncate(BYTES_MAX);
        code.push(RET);
        code
    }

    fn function(&self, random: &mut Random) -> Vec<u8> {
        self.functions[random.below(self.functions.len() as u64) as usize].clone()
    }

    /// A function of which some bits are others.
    fn flipped(&self, random: &mut Random) -> Vec<u8> {
        let mut code = self.function(random);
        for _ in 0..=random.below(6) {
            let at = random.below(code.len() as u64) as usize;
            code[at] ^= 1 << random.below(8);
        }
        code
    }

    /// The beginning of one and the end of another.
    fn spliced(&self, random: &mut Random) -> Vec<u8> {
        let (mut code, other) = (self.function(random), self.function(random));
        code.truncate(random.below(code.len() as u64 + 1) as usize);
        code.extend_from_slice(&other[random.below(other.len() as u64) as usize..]);
        code
    }

    /// A function with something in it that was not there, or without something that was.
    fn inserted(&self, random: &mut Random) -> Vec<u8> {
        let mut code = self.function(random);
        for _ in 0..=random.below(3) {
            let at = random.below(code.len() as u64) as usize;
            let new = if random.below(2) == 0 { bytes(random, 8) } else { instructions(random) };
            let gone = (random.below(4) as usize).min(code.len() - at);
            code.splice(at..at + gone, new);
        }
        code
    }
}

/// The bytes of each function of an object.
fn functions(object: &[u8]) -> Vec<Vec<u8>> {
    let file = object::File::parse(object).unwrap();
    let of = |symbol: object::Symbol<'_, '_>| {
        let section = file.section_by_index(symbol.section_index()?).ok()?;
        let is_code = section.kind() == object::SectionKind::Text && symbol.size() > 0;
        let (start, bytes) = (symbol.address() as usize, symbol.size() as usize);
        is_code.then(|| section.data().ok()?.get(start..start + bytes).map(<[u8]>::to_vec))?
    };
    file.symbols().filter_map(of).collect()
}

fn bytes(random: &mut Random, max: u64) -> Vec<u8> {
    (0..=random.below(max)).map(|_| random.next() as u8).collect()
}

/// Instructions that exist.
fn instructions(random: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    for _ in 0..=random.below(12) {
        let instruction = loop {
            let bytes: [u8; 15] = std::array::from_fn(|_| random.next() as u8);
            let decoded = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            if !decoded.is_invalid() {
                break bytes[..decoded.len()].to_vec();
            }
        };
        code.extend(instruction);
    }
    code
}

/// What a decoder makes of it from its start on, a line each.
pub fn disassembled(code: &[u8]) -> String {
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    for instruction in &mut Decoder::with_ip(64, code, 0, DecoderOptions::NONE) {
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        text += &format!("{:4x}  {line}\n", instruction.ip());
    }
    text
}
