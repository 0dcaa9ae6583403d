//! Instructions that load an address from the global offset table, for what is near enough to do without.
//!
//! The forms are those of the System V x86-64 ABI, "Optimize GOTPCRELX Relocations", but for those that would need an
//! address in 32 bits.

use super::relocation::Relocation;

/// How an instruction is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `mov reg, [rip + slot]` to `lea reg, [rip + symbol]`.
    Load,
    /// `call [rip + slot]` to `addr32 call symbol`.
    Call,
    /// `jmp [rip + slot]` to `jmp symbol; nop`, which is a byte shorter before its field.
    Jump,
}

impl Form {
    /// Bytes before the field that tell the form: opcode and ModR/M.
    pub(super) const BEFORE_BYTES: u64 = 2;

    /// The form of an instruction with these bytes before its field, if it is one.
    pub(super) fn of(before: [u8; 2], relocation: Relocation) -> Option<Self> {
        /// Of a ModR/M byte: no register but the instruction pointer.
        const IS_RELATIVE: u8 = 0b1100_0111;
        match before {
            [0x8b, modrm] if modrm & IS_RELATIVE == 0b101 => Some(Form::Load),
            [0xff, 0x15] if relocation == Relocation::GotPcRelX => Some(Form::Call),
            [0xff, 0x25] if relocation == Relocation::GotPcRelX => Some(Form::Jump),
            _ => None,
        }
    }

    /// How many bytes earlier the field is afterwards.
    pub(super) fn earlier_bytes(self) -> u64 {
        u64::from(self == Form::Jump)
    }

    /// Rewrites an instruction; `code` begins with the bytes that told the form.
    pub(super) fn write(self, code: &mut [u8]) {
        match self {
            Form::Load => code[0] = 0x8d,
            Form::Call => code[..2].copy_from_slice(&[0x67, 0xe8]),
            Form::Jump => {
                code[0] = 0xe9;
                code[5] = 0x90;
            }
        }
    }
}
