use super::{CodeError, Location, RelocationName};

/// Relocation types that objects may hold, as the ABI names them. `R_X86_64_NONE` is taken too.
pub const RELOCATIONS: [&str; 7] = [
    "R_X86_64_64",
    "R_X86_64_PC32",
    "R_X86_64_PLT32",
    "R_X86_64_GOTPCREL",
    "R_X86_64_PC64",
    "R_X86_64_GOTPCRELX",
    "R_X86_64_REX_GOTPCRELX",
];

/// `R_X86_64_NONE`: nothing to do.
pub(super) const NONE: u32 = 0;

/// Names of the types 0 to 42 without their prefix: table 4.10 of the System V x86-64 ABI, 39 and 40 as in its older
/// versions.
#[rustfmt::skip]
const NAMES: [&str; 43] = [
    "NONE", "64", "PC32", "GOT32", "PLT32", "COPY", "GLOB_DAT", "JUMP_SLOT", "RELATIVE", "GOTPCREL", "32", "32S", "16",
    "PC16", "8", "PC8", "DTPMOD64", "DTPOFF64", "TPOFF64", "TLSGD", "TLSLD", "DTPOFF32", "GOTTPOFF", "TPOFF32", "PC64",
    "GOTOFF64", "GOTPC32", "GOT64", "GOTPCREL64", "GOTPC64", "GOTPLT64", "PLTOFF64", "SIZE32", "SIZE64",
    "GOTPC32_TLSDESC", "TLSDESC_CALL", "TLSDESC", "IRELATIVE", "RELATIVE64", "PC32_BND", "PLT32_BND", "GOTPCRELX",
    "REX_GOTPCRELX",
];

/// A relocation type that this linker takes. S is the symbol's address, A the addend, P the address of the field,
/// G that of the symbol's slot in the global offset table, L that of its call stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Relocation {
    /// S + A in 64 bits.
    Abs64 = 1,
    /// S + A - P in 32 bits.
    Pc32 = 2,
    /// L + A - P in 32 bits, or as `Pc32` where the symbol is near.
    Plt32 = 4,
    /// G + A - P in 32 bits.
    GotPcRel = 9,
    /// S + A - P in 64 bits.
    Pc64 = 24,
    /// As `GotPcRel`; the linker may rewrite the instruction, and does not.
    GotPcRelX = 41,
    /// As `GotPcRelX`, of an instruction with a REX prefix.
    RexGotPcRelX = 42,
}

impl Relocation {
    /// The type with the ELF number `number`, if it is taken.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Relocation::Abs64,
            2 => Relocation::Pc32,
            4 => Relocation::Plt32,
            9 => Relocation::GotPcRel,
            24 => Relocation::Pc64,
            41 => Relocation::GotPcRelX,
            42 => Relocation::RexGotPcRelX,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> RelocationName {
        RelocationName(self as u32)
    }

    /// Bytes of the field.
    pub(super) fn width_bytes(self) -> u64 {
        match self {
            Relocation::Abs64 | Relocation::Pc64 => 8,
            _ => 4,
        }
    }

    /// The address of the field is subtracted.
    pub(super) fn is_relative(self) -> bool {
        self != Relocation::Abs64
    }

    /// It refers to a slot of the global offset table instead of the symbol.
    pub(super) fn is_by_slot(self) -> bool {
        matches!(self, Relocation::GotPcRel | Relocation::GotPcRelX | Relocation::RexGotPcRelX)
    }
}

/// Name of the relocation type `number` without its prefix.
pub(super) fn name(number: u32) -> Option<&'static str> {
    NAMES.get(number as usize).copied()
}

/// The error for a relocation type that is not taken.
pub(super) fn unsupported(number: u32, at: Location) -> CodeError {
    let hint = match number {
        10..=15 => "code is not loaded at low addresses, compile with -fPIC",
        16..=23 | 34..=36 => "thread-local storage is not supported",
        3 | 25..=31 => "this code model is not supported, compile with -fPIC -mcmodel=small",
        _ => "relocatable objects of this linker hold none",
    };
    CodeError::UnsupportedRelocation { relocation: RelocationName(number), hint, at }
}
