//! The same functions as the C program, as far as they need no data, for machines without a compiler.

use crate::proto::FlatEntry;

/// A function: its name, and each instruction with what it does.
type Function = (&'static str, &'static [(&'static [u8], &'static str)]);

/// The zlib polynomial, bit by bit. The shift brings out the lowest bit as carry; `sbb` makes a mask of it.
const CRC32: Function = (
    "crc32",
    &[
        (&[0x89, 0xf8], "mov eax, edi"),
        (&[0xf7, 0xd0], "not eax"),
        (&[0x48, 0x85, 0xd2], "next: test rdx, rdx"),
        (&[0x74, 0x22], "je done"),
        (&[0x0f, 0xb6, 0x0e], "movzx ecx, byte [rsi]"),
        (&[0x31, 0xc8], "xor eax, ecx"),
        (&[0xb9, 0x08, 0x00, 0x00, 0x00], "mov ecx, 8"),
        (&[0xd1, 0xe8], "bit: shr eax, 1"),
        (&[0x19, 0xff], "sbb edi, edi"),
        (&[0x81, 0xe7, 0x20, 0x83, 0xb8, 0xed], "and edi, 0xedb88320"),
        (&[0x31, 0xf8], "xor eax, edi"),
        (&[0xff, 0xc9], "dec ecx"),
        (&[0x75, 0xf0], "jne bit"),
        (&[0x48, 0xff, 0xc6], "inc rsi"),
        (&[0x48, 0xff, 0xca], "dec rdx"),
        (&[0xeb, 0xd9], "jmp next"),
        (&[0xf7, 0xd0], "done: not eax"),
        (&[0xc3], "ret"),
    ],
);

const PEEK: Function = ("peek", &[(&[0x8b, 0x07], "mov eax, [rdi]"), (&[0xc3], "ret")]);

const PROCESS_ID: Function =
    ("process_id", &[(&[0xb8, 0x27, 0x00, 0x00, 0x00], "mov eax, 39"), (&[0x0f, 0x05], "syscall"), (&[0xc3], "ret")]);

const SPIN: Function = ("spin", &[(&[0xeb, 0xfe], "here: jmp here")]);

/// Functions start at multiples of this.
const ALIGNMENT_BYTES: usize = 16;

/// int3, so that nothing runs on from one function into the next.
const FILLING: u8 = 0xcc;

/// Machine code of x86-64, and where its functions are.
pub(super) fn assemble() -> (Vec<u8>, Vec<FlatEntry>) {
    let mut code = Vec::new();
    let mut entries = Vec::new();
    for (name, instructions) in [CRC32, PEEK, PROCESS_ID, SPIN] {
        code.resize(code.len().next_multiple_of(ALIGNMENT_BYTES), FILLING);
        entries.push(FlatEntry { name: name.into(), offset_bytes: code.len() as u64 });
        instructions.iter().for_each(|(bytes, _)| code.extend_from_slice(bytes));
    }
    (code, entries)
}

/// The instructions of one function, a line each.
pub(super) fn listing() -> String {
    let line = |(bytes, text): &(&[u8], &str)| {
        let bytes = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        format!("{bytes:20}{text}\n")
    };
    CRC32.1.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a relative jump of two bytes at instruction `at` goes to.
    fn target(at: usize) -> usize {
        let before: usize = CRC32.1[..=at].iter().map(|(bytes, _)| bytes.len()).sum();
        before.checked_add_signed(isize::from(CRC32.1[at].0[1] as i8)).unwrap()
    }

    fn start(label: &str) -> usize {
        let at = CRC32.1.iter().position(|(_, text)| text.starts_with(label)).unwrap();
        CRC32.1[..at].iter().map(|(bytes, _)| bytes.len()).sum()
    }

    #[test]
    fn jumps_go_where_their_text_says() {
        for (at, (_, text)) in CRC32.1.iter().enumerate() {
            let text = text.rsplit(": ").next().unwrap();
            if let Some((_, label)) = text.split_once(' ').filter(|_| text.starts_with('j')) {
                assert_eq!(target(at), start(&format!("{label}:")), "{text}");
            }
        }
    }

    #[test]
    fn functions_are_aligned_and_in_order() {
        let (code, entries) = assemble();
        let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["crc32", "peek", "process_id", "spin"]);
        assert!(entries.iter().all(|entry| entry.offset_bytes % 16 == 0 && entry.offset_bytes < code.len() as u64));
    }
}
