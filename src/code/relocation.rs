use super::{CodeError, Location, RelocationName};

/// Relocation types that objects may hold, as the ABI names them. `R_X86_64_NONE` is taken too.
pub const RELOCATIONS: [&str; 32] = [
    "R_X86_64_64",
    "R_X86_64_PC32",
    "R_X86_64_GOT32",
    "R_X86_64_PLT32",
    "R_X86_64_GOTPCREL",
    "R_X86_64_32",
    "R_X86_64_32S",
    "R_X86_64_16",
    "R_X86_64_PC16",
    "R_X86_64_8",
    "R_X86_64_PC8",
    "R_X86_64_DTPOFF64",
    "R_X86_64_TPOFF64",
    "R_X86_64_TLSGD",
    "R_X86_64_TLSLD",
    "R_X86_64_DTPOFF32",
    "R_X86_64_GOTTPOFF",
    "R_X86_64_TPOFF32",
    "R_X86_64_PC64",
    "R_X86_64_GOTOFF64",
    "R_X86_64_GOTPC32",
    "R_X86_64_GOT64",
    "R_X86_64_GOTPCREL64",
    "R_X86_64_GOTPC64",
    "R_X86_64_GOTPLT64",
    "R_X86_64_PLTOFF64",
    "R_X86_64_SIZE32",
    "R_X86_64_SIZE64",
    "R_X86_64_GOTPC32_TLSDESC",
    "R_X86_64_TLSDESC_CALL",
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

/// A relocation type that this linker takes. S is the symbol's address, Z its size, A the addend, P the address of the
/// field, GOT that of the global offset table, G that of the symbol's slot in it, L that of its call stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Relocation {
    /// S + A in 64 bits.
    Abs64 = 1,
    /// S + A - P in 32 bits.
    Pc32 = 2,
    /// G + A - GOT in 32 bits.
    Got32 = 3,
    /// L + A - P in 32 bits, or as `Pc32` where the symbol is near.
    Plt32 = 4,
    /// G + A - P in 32 bits.
    GotPcRel = 9,
    /// S + A in 32 bits, which zeroes follow.
    Abs32 = 10,
    /// S + A in 32 bits, which are sign-extended.
    Abs32S = 11,
    /// S + A in 16 bits.
    Abs16 = 12,
    /// S + A - P in 16 bits.
    Pc16 = 13,
    /// S + A in 8 bits.
    Abs8 = 14,
    /// S + A - P in 8 bits.
    Pc8 = 15,
    /// As `TpOff64`: the distance from the start of the thread's variables, which code gets as the thread pointer.
    DtpOff64 = 17,
    /// S + A in 64 bits, S being the distance of a thread's variable from the thread pointer.
    TpOff64 = 18,
    /// As `DtpOff64` in 32 bits.
    DtpOff32 = 21,
    /// G + A - P in 32 bits, the slot holding such a distance.
    GotTpOff = 22,
    /// As `TpOff64` in 32 bits.
    TpOff32 = 23,
    /// S + A - P in 64 bits.
    Pc64 = 24,
    /// S + A - GOT in 64 bits.
    GotOff64 = 25,
    /// GOT + A - P in 32 bits.
    GotPc32 = 26,
    /// As `Got32` in 64 bits.
    Got64 = 27,
    /// As `GotPcRel` in 64 bits.
    GotPcRel64 = 28,
    /// As `GotPc32` in 64 bits.
    GotPc64 = 29,
    /// As `Got64`, which a stub may share.
    GotPlt64 = 30,
    /// L + A - GOT in 64 bits.
    PltOff64 = 31,
    /// Z + A in 32 bits.
    Size32 = 32,
    /// Z + A in 64 bits.
    Size64 = 33,
    /// As `GotPcRel`; the linker may rewrite the instruction.
    GotPcRelX = 41,
    /// As `GotPcRelX`, of an instruction with a REX prefix.
    RexGotPcRelX = 42,
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// So many bytes, sign-extended where they are used.
    Signed(u64),
    /// So many bytes, followed by zeroes where they are used.
    Unsigned(u64),
    /// So many bytes, used as either.
    Either(u64),
}

impl Relocation {
    /// The type with the ELF number `number`, if it is taken.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        use Relocation::*;
        let all = [
            Abs64,
            Pc32,
            Got32,
            Plt32,
            GotPcRel,
            Abs32,
            Abs32S,
            Abs16,
            Pc16,
            Abs8,
            Pc8,
            DtpOff64,
            TpOff64,
            DtpOff32,
            GotTpOff,
            TpOff32,
            Pc64,
            GotOff64,
            GotPc32,
            Got64,
            GotPcRel64,
            GotPc64,
            GotPlt64,
            PltOff64,
            Size32,
            Size64,
            GotPcRelX,
            RexGotPcRelX,
        ];
        all.into_iter().find(|&it| it as u32 == number)
    }

    pub(super) fn name(self) -> RelocationName {
        RelocationName(self as u32)
    }

    /// What the field holds.
    pub(super) fn field(self) -> Field {
        use Relocation::*;
        match self {
            Abs64 | DtpOff64 | TpOff64 | Pc64 | GotOff64 | Got64 | GotPcRel64 | GotPc64 | GotPlt64 | PltOff64
            | Size64 => Field::Either(8),
            Pc32 | Got32 | Plt32 | GotPcRel | Abs32S | DtpOff32 | GotTpOff | TpOff32 | GotPc32 | GotPcRelX
            | RexGotPcRelX => Field::Signed(4),
            Abs32 | Size32 => Field::Unsigned(4),
            Abs16 => Field::Either(2),
            Pc16 => Field::Signed(2),
            Abs8 => Field::Either(1),
            Pc8 => Field::Signed(1),
        }
    }

    /// Bytes of the field.
    pub(super) fn width_bytes(self) -> u64 {
        match self.field() {
            Field::Signed(bytes) | Field::Unsigned(bytes) | Field::Either(bytes) => bytes,
        }
    }

    /// The address of the field is subtracted.
    pub(super) fn is_relative(self) -> bool {
        use Relocation::*;
        matches!(
            self,
            Pc32 | Plt32
                | GotPcRel
                | GotTpOff
                | Pc16
                | Pc8
                | Pc64
                | GotPc32
                | GotPcRel64
                | GotPc64
                | GotPcRelX
                | RexGotPcRelX
        )
    }

    /// The start of the global offset table is subtracted.
    pub(super) fn is_relative_to_slots(self) -> bool {
        use Relocation::*;
        matches!(self, Got32 | GotOff64 | Got64 | GotPlt64 | PltOff64)
    }

    /// It refers to a slot of the global offset table instead of the symbol.
    pub(super) fn is_by_slot(self) -> bool {
        use Relocation::*;
        matches!(self, Got32 | GotPcRel | GotTpOff | Got64 | GotPcRel64 | GotPlt64 | GotPcRelX | RexGotPcRelX)
    }

    /// It refers to the start of the global offset table, whatever its symbol.
    pub(super) fn is_of_slots_start(self) -> bool {
        matches!(self, Relocation::GotPc32 | Relocation::GotPc64)
    }

    /// It refers to a variable of the thread.
    pub(super) fn is_thread_local(self) -> bool {
        use Relocation::*;
        matches!(self, DtpOff64 | TpOff64 | DtpOff32 | GotTpOff | TpOff32)
    }

    /// It refers to the size of the symbol.
    pub(super) fn is_size(self) -> bool {
        matches!(self, Relocation::Size32 | Relocation::Size64)
    }

    /// The instruction may be rewritten to do without the slot.
    pub(super) fn may_relax(self) -> bool {
        matches!(self, Relocation::GotPcRelX | Relocation::RexGotPcRelX)
    }

    /// It holds an address in so few bits that only what lies below 2 GiB has one.
    pub(super) fn is_low_address(self) -> bool {
        matches!(self, Relocation::Abs32 | Relocation::Abs32S)
    }

    /// It holds an address in so few bits that nothing has one.
    pub(super) fn is_tiny_address(self) -> bool {
        matches!(self, Relocation::Abs16 | Relocation::Abs8)
    }
}

/// Name of the relocation type `number` without its prefix.
pub(super) fn name(number: u32) -> Option<&'static str> {
    NAMES.get(number as usize).copied()
}

/// The error for a relocation type that is not taken.
pub(super) fn unsupported(number: u32, at: Location) -> CodeError {
    let hint = match number {
        16 | 36 => "it is for dynamic linkers",
        _ => "relocatable objects of this linker hold none",
    };
    CodeError::UnsupportedRelocation { relocation: RelocationName(number), hint, at }
}

/// The error for an address of the object's own in a field that only holds those below 2 GiB.
pub(super) fn low_address(relocation: Relocation, at: Location) -> CodeError {
    let hint = "it needs code below 2 GiB, where this daemon has no arena: compile with -fPIC, or set arena.low_bytes";
    CodeError::UnsupportedRelocation { relocation: relocation.name(), hint, at }
}

/// The error for an address in a field that holds none that there is.
pub(super) fn tiny_address(relocation: Relocation, at: Location) -> CodeError {
    let hint = "no code lies so low, below 2 GiB or not: compile with -fPIC";
    CodeError::UnsupportedRelocation { relocation: relocation.name(), hint, at }
}

/// The error for a symbol of another entry that a field does not reach.
pub(super) fn far_entry(relocation: Relocation, at: Location) -> CodeError {
    let hint = match relocation.is_low_address() {
        true => "the symbol is of another entry, which does not lie below 2 GiB: compile with -fPIC",
        false => "the symbol is of another entry, which is too far away for this displacement: compile with -fPIC",
    };
    CodeError::UnsupportedRelocation { relocation: relocation.name(), hint, at }
}

/// The error for a place within a host function, to which no stub leads.
pub(super) fn far_host(relocation: Relocation, at: Location) -> CodeError {
    let hint = "the symbol is of the host, which does not lie below 2 GiB: compile with -fPIC";
    CodeError::UnsupportedRelocation { relocation: relocation.name(), hint, at }
}
