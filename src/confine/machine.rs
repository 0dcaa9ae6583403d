//! Runs programs as the kernel does, for the tests of those who make them.

use libc::sock_filter;

use super::program::INSTRUCTIONS_MAX;

/// What the kernel asks: `struct seccomp_data`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Data {
    pub(crate) number: u32,
    pub(crate) arch: u32,
    pub(crate) pointer: u64,
    pub(crate) arguments: [u64; 6],
}

impl Data {
    fn bytes(&self) -> Vec<u8> {
        let words = [self.pointer].into_iter().chain(self.arguments);
        let head = [self.number.to_le_bytes(), self.arch.to_le_bytes()].concat();
        head.into_iter().chain(words.flat_map(u64::to_le_bytes)).collect()
    }
}

/// The verdict of a program. Refuses what the kernel would not take.
pub(crate) fn run(program: &[sock_filter], data: &Data) -> u32 {
    let bytes = data.bytes();
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |yes: bool| usize::from(if yes { jt } else { jf });
        match u32::from(code) {
            0x20 => {
                assert!(k.is_multiple_of(4), "a load that is not aligned");
                accumulator = u32::from_le_bytes(bytes[k as usize..][..4].try_into().unwrap());
            }
            0x54 => accumulator &= k,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// The kernel would take it.
pub(crate) fn assert_fit(program: &[sock_filter]) {
    assert!(program.len() <= INSTRUCTIONS_MAX, "{} instructions", program.len());
    for (at, instruction) in program.iter().enumerate() {
        let end = at + 1 + usize::from(instruction.jt.max(instruction.jf));
        assert!(end < program.len() || instruction.code == 0x06, "instruction {at} jumps out of the program");
    }
}
