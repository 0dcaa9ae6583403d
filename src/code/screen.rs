//! Reads code for what it must not do, before it runs.
//!
//! A filter for mistakes and the careless, not a proof: code can write code's addresses into registers, and what a
//! register jumps to is not seen here.

use iced_x86::{ConstantOffsets, Decoder, Instruction, Mnemonic, OpKind};

use super::disasm::{Writer, branch_target, decode, function_at};
use super::error::shown;
use super::{Function, Image, PartKind};

/// Something that code must not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it breaks.
    pub rule: Rule,
    /// The function that holds it, as the blob has it; empty if it lies outside of every one.
    pub function: Box<str>,
    /// Bytes from the start of `function`; of the code if that is empty.
    pub function_offset_bytes: u64,
    /// Bytes from the start of the code.
    pub offset_bytes: u64,
    /// The instruction as text; its addresses count from the start of the code.
    pub instruction: String,
}

/// What code must not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Ask the kernel: `syscall`, `sysenter`.
    SystemCall,
    /// Raise an interrupt: `int n`, `int1`. `int3` may stand anywhere: it is the trap.
    Interrupt,
    /// Talk to a device: `in`, `out` and their string forms.
    PortIo,
    /// Change the rights of memory: `wrpkru`.
    ProtectionKey,
    /// Load state that has such rights in it: `xrstor` and its forms.
    ExtendedState,
    /// Change a segment: loads of a segment register, `wrfsbase`, `wrgsbase`.
    Segment,
    /// Change the code segment: far jumps, calls and returns, `iret`.
    FarBranch,
    /// What only a kernel may, or what leaves for a hypervisor.
    Privileged,
    /// A direct branch to where no instruction starts, or out of the code.
    BranchTarget,
    /// A relocation that changes more of an instruction than its displacement or its immediate.
    RelocatedOpcode,
    /// Bytes of a function that are no instruction.
    Undecodable,
}

impl Rule {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::SystemCall => "a system call",
            Rule::Interrupt => "a software interrupt",
            Rule::PortIo => "access to a port",
            Rule::ProtectionKey => "a write of the protection keys",
            Rule::ExtendedState => "a load of extended state",
            Rule::Segment => "a write of a segment",
            Rule::FarBranch => "a far branch",
            Rule::Privileged => "privileged",
            Rule::BranchTarget => "a branch to where no instruction starts",
            Rule::RelocatedOpcode => "an opcode changed by a relocation",
            Rule::Undecodable => "no instruction",
        }
    }
}

/// What screening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Screened {
    /// The first [`Screened::FINDINGS_MAX`] by offset.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub total: u64,
}

impl Screened {
    /// Findings that are kept at most: whoever reads them needs the first, and the number of all.
    pub const FINDINGS_MAX: usize = 32;
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.function.is_empty() { "code".to_owned() } else { shown(self.function.as_bytes()) };
        write!(f, "{} at {place}+{:#x} ({})", self.instruction, self.function_offset_bytes, self.rule.as_str())
    }
}

impl Image {
    /// Reads all code, from the start of each section and function that is known, and finds what it must not do.
    /// Whatever decodes is held to all rules; what does not is found only inside of a function, since sections of code
    /// may hold tables. Takes time linear in the code and a quarter of its size in memory.
    pub fn screen(&self) -> Screened {
        let mut screen = Screen::new(self);
        screen.read(Pass::First);
        if screen.marks.has_stray() {
            screen.read(Pass::Branches);
        }
        screen.found
    }
}

/// What is looked for: branches can be judged only when all starts of instructions are known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Everything, but branches only as far as they leave the code.
    First,
    /// Direct branches to where no instruction starts.
    Branches,
}

struct Screen<'a> {
    code: &'a [u8],
    functions: &'a [Function],
    /// Offsets at which decoding starts anew, ascending, each once.
    starts: Vec<u64>,
    fields: Fields,
    marks: Marks,
    writer: Writer,
    found: Screened,
}

impl<'a> Screen<'a> {
    fn new(image: &'a Image) -> Self {
        let (code, links) = image.code_and_links();
        let functions = image.functions();
        let sections = links.sources.iter().filter(|it| it.part == PartKind::Code).map(|it| it.offset_bytes);
        let stubs = (!links.stubs.is_empty()).then_some(links.stubs_offset_bytes);
        let mut starts: Vec<u64> = functions.iter().map(|function| function.offset_bytes).collect();
        starts.extend(sections.chain(stubs).chain([0]));
        starts.sort_unstable();
        starts.dedup();
        let of_code = links.fixups.iter().filter(|it| links.sources[it.source as usize].part == PartKind::Code);
        let mut fields: Vec<_> = of_code.map(|it| (it.offset_bytes, it.relocation.width_bytes())).collect();
        fields.sort_unstable();
        Screen {
            code,
            functions,
            starts,
            fields: Fields { fields, next: 0 },
            marks: Marks::new(code.len()),
            writer: Writer::new(),
            found: Screened::default(),
        }
    }

    /// Goes over the code once.
    fn read(&mut self, pass: Pass) {
        self.fields.next = 0;
        let code = self.code;
        for index in 0..self.starts.len() {
            let start = self.starts[index] as usize;
            let end = self.starts.get(index + 1).map_or(code.len(), |&next| next as usize);
            // The end of undecodable bytes that were told of: what follows them at once is the same finding.
            let mut bad_end = u64::MAX;
            decode(&code[start..end], start as u64, |decoder, instruction, size_bytes| {
                let at = instruction.ip();
                if instruction.is_invalid() {
                    if pass == Pass::First && at != bad_end && function_at(self.functions, at).is_some() {
                        self.find(Rule::Undecodable, instruction);
                    }
                    bad_end = at + size_bytes;
                    return true;
                }
                match pass {
                    Pass::First => self.first(decoder, instruction),
                    Pass::Branches => self.branch(decoder, instruction),
                }
                true
            });
        }
    }

    fn first(&mut self, decoder: &Decoder<'_>, instruction: &Instruction) {
        self.marks.start(instruction.ip());
        if let Some(rule) = forbidden(instruction) {
            self.find(rule, instruction);
        }
        let field = self.fields.of(decoder, instruction);
        if field == Field::Opcode {
            self.find(Rule::RelocatedOpcode, instruction);
        }
        if let Some(target) = branch_target(instruction).filter(|_| field == Field::None) {
            if target < self.code.len() as u64 {
                self.marks.target(target);
            } else {
                self.find(Rule::BranchTarget, instruction);
            }
        }
    }

    fn branch(&mut self, decoder: &Decoder<'_>, instruction: &Instruction) {
        let field = self.fields.of(decoder, instruction);
        let target = branch_target(instruction).filter(|&it| field == Field::None && it < self.code.len() as u64);
        if target.is_some_and(|target| !self.marks.is_start(target)) {
            self.find(Rule::BranchTarget, instruction);
        }
    }

    /// Notes a finding, in its place by offset.
    fn find(&mut self, rule: Rule, instruction: &Instruction) {
        self.found.total += 1;
        let offset_bytes = instruction.ip();
        let findings = &mut self.found.findings;
        let place = findings.partition_point(|finding| finding.offset_bytes <= offset_bytes);
        if place >= Screened::FINDINGS_MAX {
            return;
        }
        findings.truncate(Screened::FINDINGS_MAX - 1);
        let function = function_at(self.functions, offset_bytes);
        findings.insert(
            place,
            Finding {
                rule,
                function: function.map(|it| it.name.clone()).unwrap_or_default(),
                function_offset_bytes: offset_bytes - function.map_or(0, |it| it.offset_bytes),
                offset_bytes,
                instruction: self.writer.text(instruction),
            },
        );
    }
}

/// The rule that an instruction breaks by itself.
fn forbidden(instruction: &Instruction) -> Option<Rule> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Syscall | M::Sysenter => Rule::SystemCall,
        M::Int | M::Int1 | M::Into => Rule::Interrupt,
        M::In | M::Insb | M::Insw | M::Insd | M::Out | M::Outsb | M::Outsw | M::Outsd => Rule::PortIo,
        M::Wrpkru => Rule::ProtectionKey,
        M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64 => Rule::ExtendedState,
        M::Wrfsbase | M::Wrgsbase | M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => Rule::Segment,
        M::Mov | M::Pop if is_segment_load(instruction) => Rule::Segment,
        M::Retf | M::Iret | M::Iretd | M::Iretq | M::Uiret => Rule::FarBranch,
        M::Jmp | M::Call if is_far(instruction) => Rule::FarBranch,
        M::Vmcall | M::Vmmcall | M::Vmfunc | M::Vmgexit => Rule::Privileged,
        _ if instruction.is_privileged() => Rule::Privileged,
        _ => return None,
    })
}

fn is_segment_load(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_segment_register()
}

fn is_far(instruction: &Instruction) -> bool {
    let code = instruction.code();
    code.is_jmp_far() || code.is_jmp_far_indirect() || code.is_call_far() || code.is_call_far_indirect()
}

/// What links will write into an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    /// Nothing.
    None,
    /// A displacement or an immediate.
    Value,
    /// Other bytes.
    Opcode,
}

/// The fields that links will write, walked along with the instructions.
struct Fields {
    /// Offset in the code and bytes of each, ascending.
    fields: Vec<(u64, u64)>,
    /// The first that does not lie before the instruction.
    next: usize,
}

impl Fields {
    /// What starts in this instruction. Each instruction is asked for once, in their order.
    fn of(&mut self, decoder: &Decoder<'_>, instruction: &Instruction) -> Field {
        let (start, end) = (instruction.ip(), instruction.next_ip());
        let mut found = Field::None;
        while let Some(&(offset, width)) = self.fields.get(self.next).filter(|(offset, _)| *offset < end) {
            self.next += 1;
            if offset < start {
                continue; // In bytes that are no instruction.
            }
            let is_value = is_constant(&decoder.get_constant_offsets(instruction), offset - start, width);
            found = if is_value && found != Field::Opcode { Field::Value } else { Field::Opcode };
        }
        found
    }
}

/// Whether these bytes of an instruction lie in its displacement or in its immediate.
fn is_constant(constants: &ConstantOffsets, offset: u64, width: u64) -> bool {
    let holds = |start: usize, size: usize| offset >= start as u64 && offset + width <= (start + size) as u64;
    holds(constants.displacement_offset(), constants.displacement_size())
        || holds(constants.immediate_offset(), constants.immediate_size())
}

/// Two bits for each byte of the code: whether an instruction starts there, and whether a direct branch goes there.
struct Marks {
    starts: Vec<u64>,
    targets: Vec<u64>,
}

impl Marks {
    fn new(code_bytes: usize) -> Self {
        let words = code_bytes.div_ceil(64);
        Marks { starts: vec![0; words], targets: vec![0; words] }
    }

    fn start(&mut self, offset: u64) {
        self.starts[(offset / 64) as usize] |= 1 << (offset % 64);
    }

    fn target(&mut self, offset: u64) {
        self.targets[(offset / 64) as usize] |= 1 << (offset % 64);
    }

    fn is_start(&self, offset: u64) -> bool {
        self.starts[(offset / 64) as usize] >> (offset % 64) & 1 == 1
    }

    /// Whether a branch goes to where nothing starts.
    fn has_stray(&self) -> bool {
        self.targets.iter().zip(&self.starts).any(|(targets, starts)| targets & !starts != 0)
    }
}
