//! Programs that decide about system calls, as the kernel reads them: `seccomp_data` in, a verdict out.
//!
//! A program is a row of blocks. A block that does not fit leads to the next one, so that each can be read for itself.
//! Made here by hand: the libraries for such programs know no instruction pointer, and end the process where a call
//! comes by another interface, which is to be an error or a trap here. Pure: nothing here calls the system.

use std::ops::Range;

use libc::{c_int, c_long, sock_filter};

/// Instructions that the kernel takes at most.
pub const INSTRUCTIONS_MAX: usize = 4096;
/// The call is made.
pub const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

/// How the kernel names this interface.
pub const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Set in the numbers of the x32 interface, and in negative ones.
pub const X32_BIT: u32 = 0x4000_0000;

// `struct seccomp_data`: where its fields are. Those of 64 bits have the low half first.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const POINTER: u32 = 8;
const ARGUMENTS: u32 = 16;
const HALF_BYTES: u32 = 4;

/// What an argument must be.
#[derive(Clone, Copy, Debug)]
pub enum Test {
    /// The argument is a C int, of which these bits have this value.
    Bits {
        /// Which argument, from 0.
        argument: u32,
        /// The bits that are looked at.
        mask: u32,
        /// What they are.
        value: u32,
    },
    /// The argument is a C int below this.
    Below {
        /// Which argument, from 0.
        argument: u32,
        /// The first value that is too large.
        bound: u32,
    },
    /// The argument has 64 bits and is at least this.
    AtLeast {
        /// Which argument, from 0.
        argument: u32,
        /// The least.
        value: u64,
    },
    /// The argument has 64 bits and is at most this.
    AtMost {
        /// Which argument, from 0.
        argument: u32,
        /// The most.
        value: u64,
    },
}

impl Test {
    /// Those bits of a C int are this.
    pub const fn bits(argument: u32, mask: c_int, value: c_int) -> Self {
        Self::Bits { argument, mask: mask as u32, value: value as u32 }
    }

    /// A C int is this.
    pub const fn is(argument: u32, value: u32) -> Self {
        Self::Bits { argument, mask: u32::MAX, value }
    }

    /// All 64 bits are this.
    pub const fn exactly(argument: u32, value: u64) -> [Self; 2] {
        [Self::AtLeast { argument, value }, Self::AtMost { argument, value }]
    }

    /// An address in this range, which is not empty.
    pub const fn within(argument: u32, range: &Range<u64>) -> [Self; 2] {
        [Self::AtLeast { argument, value: range.start }, Self::AtMost { argument, value: range.end.saturating_sub(1) }]
    }
}

/// A program that is being made. The first block that fits decides.
#[derive(Clone, Debug, Default)]
pub struct Program {
    blocks: Vec<Vec<Op>>,
}

impl Program {
    /// One that gives this verdict to calls by the 32-bit interface.
    pub fn native(foreign: u32) -> Self {
        let native = Op::If(Compare::Equal, AUDIT_ARCH_X86_64, To::Miss, To::Next);
        Self { blocks: vec![vec![Op::Load(ARCH), native, Op::Verdict(foreign)]] }
    }

    /// For calls whose instruction lies in the range. An empty one has no effect.
    #[must_use]
    pub fn made_in(mut self, range: &Range<u64>, verdict: u32) -> Self {
        if !range.is_empty() {
            // The pointer is that of the next instruction.
            let after = [at_least(POINTER, range.start + 1), at_most(POINTER, range.end), vec![Op::Verdict(verdict)]];
            self.blocks.push(after.concat());
        }
        self
    }

    /// For calls by the x32 interface, and for numbers that are none.
    #[must_use]
    pub fn x32(mut self, verdict: u32) -> Self {
        let beyond = Op::If(Compare::AtLeast, X32_BIT, To::Next, To::Miss);
        self.blocks.push(vec![Op::Load(NUMBER), beyond, Op::Verdict(verdict)]);
        self
    }

    /// For these calls, whatever their arguments.
    #[must_use]
    pub fn calls(mut self, numbers: &[c_long], verdict: u32) -> Self {
        self.blocks.push(vec![Op::Load(NUMBER)]);
        self.blocks.extend(numbers.iter().map(|number| vec![is_number(*number), Op::Verdict(verdict)]));
        self
    }

    /// For this call, if all tests hold.
    #[must_use]
    pub fn call(mut self, number: c_long, tests: &[Test], verdict: u32) -> Self {
        let mut block = vec![Op::Load(NUMBER), is_number(number)];
        block.extend(tests.iter().flat_map(|test| test.ops()));
        block.push(Op::Verdict(verdict));
        self.blocks.push(block);
        self
    }

    /// For all that is left, as the kernel reads it.
    pub fn otherwise(mut self, verdict: u32) -> Vec<sock_filter> {
        self.blocks.push(vec![Op::Verdict(verdict)]);
        self.blocks.iter().flat_map(|block| resolve(block)).collect()
    }
}

/// How the loaded word is compared with a constant.
#[derive(Clone, Copy, Debug)]
enum Compare {
    Equal,
    Above,
    AtLeast,
}

/// Where a comparison goes on.
#[derive(Clone, Copy, Debug)]
enum To {
    Next,
    /// Over this many instructions.
    Over(u8),
    /// Behind the block.
    Miss,
}

/// An instruction whose jumps are not resolved.
#[derive(Clone, Copy, Debug)]
enum Op {
    Load(u32),
    And(u32),
    /// Where it goes if so, and if not.
    If(Compare, u32, To, To),
    Verdict(u32),
}

impl Test {
    fn ops(self) -> Vec<Op> {
        let at = |argument| ARGUMENTS + argument * 2 * HALF_BYTES;
        match self {
            Self::Bits { argument, mask, value } => {
                vec![Op::Load(at(argument)), Op::And(mask), Op::If(Compare::Equal, value, To::Next, To::Miss)]
            }
            Self::Below { argument, bound } => {
                vec![Op::Load(at(argument)), Op::If(Compare::AtLeast, bound, To::Miss, To::Next)]
            }
            Self::AtLeast { argument, value } => at_least(at(argument), value),
            Self::AtMost { argument, value } => at_most(at(argument), value),
        }
    }
}

fn is_number(number: c_long) -> Op {
    Op::If(Compare::Equal, number as u32, To::Next, To::Miss)
}

/// The 64-bit field at `offset` is at least `value`.
fn at_least(offset: u32, value: u64) -> Vec<Op> {
    let (high, low) = halves(value);
    vec![
        Op::Load(offset + HALF_BYTES),
        Op::If(Compare::Above, high, To::Over(3), To::Next),
        Op::If(Compare::Equal, high, To::Next, To::Miss),
        Op::Load(offset),
        Op::If(Compare::AtLeast, low, To::Next, To::Miss),
    ]
}

/// The 64-bit field at `offset` is at most `value`.
fn at_most(offset: u32, value: u64) -> Vec<Op> {
    let (high, low) = halves(value);
    vec![
        Op::Load(offset + HALF_BYTES),
        Op::If(Compare::Above, high, To::Miss, To::Next),
        Op::If(Compare::Equal, high, To::Next, To::Over(2)),
        Op::Load(offset),
        Op::If(Compare::Above, low, To::Miss, To::Next),
    ]
}

fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

/// The block as the kernel reads it.
fn resolve(block: &[Op]) -> Vec<sock_filter> {
    let instruction = |(at, op): (usize, &Op)| {
        let distance = |to| match to {
            To::Next => 0,
            To::Over(instructions) => instructions,
            To::Miss => (block.len() - at - 1) as u8,
        };
        let (code, k, jt, jf) = match *op {
            Op::Load(offset) => (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0),
            Op::And(mask) => (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask, 0, 0),
            Op::If(compare, value, yes, no) => (compare.code(), value, distance(yes), distance(no)),
            Op::Verdict(verdict) => (libc::BPF_RET | libc::BPF_K, verdict, 0, 0),
        };
        sock_filter { code: code as u16, jt, jf, k }
    };
    block.iter().enumerate().map(instruction).collect()
}

impl Compare {
    fn code(self) -> u32 {
        let compare = match self {
            Self::Equal => libc::BPF_JEQ,
            Self::Above => libc::BPF_JGT,
            Self::AtLeast => libc::BPF_JGE,
        };
        libc::BPF_JMP | compare | libc::BPF_K
    }
}
