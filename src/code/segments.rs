//! Finds what code does by the segment registers `%fs` and `%gs`.
//!
//! Reading all code would take longer than linking it, so bytes are searched that such an instruction must have: the
//! prefixes, and the opcode of `wrfsbase`. What cannot be told from the bytes around is decoded, from the start of its
//! function, as text of instructions can only be read from there. What stands between functions may be a table.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::disasm::{Writer, decode, function_at};
use super::elf::Object;
use super::error::shown;
use super::sections::Home;
use super::thread::CONTROL_BYTES;
use super::{CodeError, Function, Location, PartKind, THREAD_MAX_BYTES};

/// The prefixes of `%fs` and `%gs`, and the second byte of what changes them.
const FS: u8 = 0x64;
const GS: u8 = 0x65;
const CHANGE: u8 = 0xae;
/// Where a thread's stack canary is.
const CANARY: i64 = 0x28;

/// What code must not do with segment registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SegmentUse {
    /// A read or write by `%gs`.
    Gs,
    /// A read or write by `%fs` at a place that is not the code's.
    Beyond,
    /// `wrfsbase`
    ChangeOfFs,
    /// `wrgsbase`
    ChangeOfGs,
}

impl SegmentUse {
    /// In words, with what to do.
    pub fn as_str(self) -> &'static str {
        match self {
            SegmentUse::Gs => "there is nothing at %gs in this process",
            SegmentUse::Beyond => {
                "it is beyond the thread's block, which has the image's variables below the thread pointer and 512 bytes \
                 above"
            }
            SegmentUse::ChangeOfFs => "it changes the thread pointer, which is the host's",
            SegmentUse::ChangeOfGs => "it changes the base of %gs, which is the host's",
        }
    }
}

/// An instruction that must not be.
pub(super) struct Forbidden {
    /// Bytes from the start of the code.
    offset_bytes: u64,
    instruction: Box<str>,
    by: SegmentUse,
}

impl Forbidden {
    /// As an error, with its place in the objects.
    pub(super) fn at(self, objects: &[Object<'_>], homes: &[Vec<Home>], functions: &[Function]) -> CodeError {
        let found = objects.iter().zip(homes).find_map(|(object, homes)| {
            homes.iter().enumerate().find_map(|(index, home)| match *home {
                Home::Placed { part: PartKind::Code, offset_bytes, .. } => {
                    let offset = self.offset_bytes.checked_sub(offset_bytes)?;
                    let is_inside = offset < object.contents(index).map_or(0, |it| it.len() as u64);
                    is_inside.then(|| Location { offset_bytes: Some(offset), ..object.section_location(index) })
                }
                _ => None,
            })
        });
        let found = found.unwrap_or(Location { offset_bytes: Some(self.offset_bytes), ..Location::default() });
        let symbol = function_at(functions, self.offset_bytes).map(|it| shown(it.name.as_bytes()));
        CodeError::ForbiddenInstruction { instruction: self.instruction, by: self.by, at: Location { symbol, ..found } }
    }
}

fn starts(homes: &[Vec<Home>]) -> Vec<u64> {
    let start = |home: &Home| match *home {
        Home::Placed { part: PartKind::Code, offset_bytes, .. } => Some(offset_bytes),
        _ => None,
    };
    let mut starts: Vec<u64> = homes.iter().flatten().filter_map(start).collect();
    starts.sort_unstable();
    starts
}

/// What is known of the code.
pub(super) struct Code<'a> {
    pub(super) bytes: &'a [u8],
    /// Sorted by offset.
    pub(super) functions: &'a [Function],
    /// Where the sections of each object are.
    pub(super) sections: &'a [Vec<Home>],
    /// Bytes of variables below the thread pointer.
    pub(super) variables_bytes: u64,
}

/// Whether code touches more at its thread pointer than the stack canary.
pub(super) fn uses_thread(code: &Code<'_>) -> Result<bool, Forbidden> {
    let flow = Flow::default();
    let mut reader = Reader { code, sections: None, decoded_end: 0, flow, uses_thread: false, forbidden: None };
    let mut skip_end = 0;
    for at in memchr::memchr3_iter(FS, GS, CHANGE, code.bytes) {
        if at < skip_end || at < reader.decoded_end {
            continue;
        }
        if let Some(size) = canary_bytes(&code.bytes[at..]) {
            skip_end = at + size;
        } else if is_suspect(code.bytes, at) {
            reader.read_beyond(at);
            if let Some(forbidden) = reader.forbidden {
                return Err(forbidden);
            }
        }
    }
    Ok(reader.uses_thread)
}

/// Bytes of an instruction that reads the canary as compilers do. As the middle of another instruction they are not
/// one by `%fs`.
fn canary_bytes(code: &[u8]) -> Option<usize> {
    let &[FS, 0x48..=0x4f, 0x8b | 0x2b | 0x33 | 0x3b | 0x39, modrm, 0x25, 0x28, 0, 0, 0, ..] = code else {
        return None;
    };
    (modrm & 0b1100_0111 == 0b100).then_some(9)
}

/// Whether an instruction that matters may have its prefix or its opcode here.
fn is_suspect(code: &[u8], at: usize) -> bool {
    let byte = |index: Option<usize>| index.and_then(|it| code.get(it)).copied().unwrap_or_default();
    if code[at] == CHANGE {
        let before = byte(at.checked_sub(2));
        let repeat = if before & 0xf0 == 0x40 { byte(at.checked_sub(3)) } else { before };
        return byte(at.checked_sub(1)) == 0x0f && repeat == 0xf3 && matches!(byte(Some(at + 1)), 0xd0..=0xdf);
    }
    // If it is a prefix, those before it change nothing about that; but some opcodes exist only by them.
    let mut decoder = Decoder::new(64, &code[at..], DecoderOptions::NONE);
    let instruction = decoder.decode();
    instruction.is_invalid() || has_segment(&instruction)
}

struct Reader<'a> {
    code: &'a Code<'a>,
    /// Where sections start, ascending, once that is asked for.
    sections: Option<Vec<u64>>,
    /// Everything that starts before this was decoded, or is in a function that nobody suspects.
    decoded_end: usize,
    /// Of the function that was decoded last.
    flow: Flow,
    uses_thread: bool,
    forbidden: Option<Forbidden>,
}

/// Where a function without a size may end, which may have constants behind it.
#[derive(Default)]
struct Flow {
    /// The last place that a direct branch or call led to.
    furthest: u64,
    has_ended: bool,
}

impl Flow {
    fn pass(&mut self, instruction: &Instruction) {
        use FlowControl as F;
        let kind = instruction.flow_control();
        if matches!(kind, F::ConditionalBranch | F::UnconditionalBranch | F::Call) {
            self.furthest = self.furthest.max(instruction.near_branch_target());
        }
        let is_end = matches!(kind, F::Return | F::UnconditionalBranch | F::Exception);
        self.has_ended |= is_end && self.furthest < instruction.next_ip();
    }
}

impl Reader<'_> {
    /// Decodes from the start of the function until an instruction ends behind `at`.
    fn read_beyond(&mut self, at: usize) {
        let code = self.code;
        let functions = code.functions;
        let after = functions.partition_point(|function| function.offset_bytes <= at as u64);
        let sections = self.sections.get_or_insert_with(|| starts(code.sections));
        let section_after = sections.partition_point(|start| *start <= at as u64);
        let function_start = after.checked_sub(1).map_or(0, |it| functions[it].offset_bytes);
        let section_start = section_after.checked_sub(1).map_or(0, |it| sections[it]);
        let ends = [functions.get(after).map(|it| it.offset_bytes), sections.get(section_after).copied()];
        let end = ends.into_iter().flatten().min().map_or(code.bytes.len(), |it| it as usize);
        let (own_start, decoded_end) = (function_start.max(section_start) as usize, self.decoded_end);
        let start = decoded_end.max(own_start);
        if own_start >= decoded_end {
            self.flow = Flow::default();
        }
        self.decoded_end = end;
        decode(&code.bytes[start..end], start as u64, |_, instruction, size_bytes| {
            if !instruction.is_invalid() {
                self.judge(instruction);
                self.flow.pass(instruction);
            }
            let next = instruction.ip() + size_bytes;
            if next > at as u64 {
                self.decoded_end = next as usize;
            }
            next <= at as u64 && self.forbidden.is_none()
        });
    }

    fn judge(&mut self, instruction: &Instruction) {
        let by = match instruction.mnemonic() {
            Mnemonic::Wrfsbase => SegmentUse::ChangeOfFs,
            Mnemonic::Wrgsbase => SegmentUse::ChangeOfGs,
            _ if !has_segment(instruction) => return,
            _ if instruction.memory_segment() == Register::GS => SegmentUse::Gs,
            _ => match by_thread_pointer(instruction, self.code.variables_bytes) {
                Access::Canary => return,
                Access::Block => {
                    self.uses_thread = true;
                    return;
                }
                Access::Beyond => SegmentUse::Beyond,
            },
        };
        // What stands between functions, or behind one without a size, may be a table; it is not run.
        let function = function_at(self.code.functions, instruction.ip());
        if function.is_some_and(|it| it.size_bytes > 0 || !self.flow.has_ended) {
            let text = Writer::new().text(instruction).into();
            self.forbidden = Some(Forbidden { offset_bytes: instruction.ip(), instruction: text, by });
        }
    }
}

/// Whether an instruction reads or writes by `%fs` or `%gs`.
fn has_segment(instruction: &Instruction) -> bool {
    let is_memory = |kind| {
        use OpKind as K;
        let by_si = matches!(kind, K::MemorySegSI | K::MemorySegESI | K::MemorySegRSI);
        by_si || matches!(kind, K::Memory | K::MemorySegDI | K::MemorySegEDI | K::MemorySegRDI)
    };
    matches!(instruction.segment_prefix(), Register::FS | Register::GS)
        && !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop)
        && (0..instruction.op_count()).any(|operand| is_memory(instruction.op_kind(operand)))
}

enum Access {
    Canary,
    Block,
    Beyond,
}

fn by_thread_pointer(instruction: &Instruction, variables_bytes: u64) -> Access {
    let is_constant = instruction.memory_base() == Register::None && instruction.memory_index() == Register::None;
    let has_memory = (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    if instruction.is_ip_rel_memory_operand() {
        return Access::Beyond;
    }
    // What is in registers is not known here: distances of variables, as linked.
    if !is_constant || !has_memory {
        return Access::Block;
    }
    let size_bytes = instruction.memory_size().size() as i64;
    let start = instruction.memory_displacement64() as i64;
    let is_read = instruction.op0_kind() != OpKind::Memory || instruction.mnemonic() == Mnemonic::Cmp;
    if start == CANARY && size_bytes == 8 && is_read {
        return Access::Canary;
    }
    debug_assert!(variables_bytes <= THREAD_MAX_BYTES, "invariant: variables are placed within their limit");
    let within = -(variables_bytes as i64)..=CONTROL_BYTES - size_bytes;
    if within.contains(&start) { Access::Block } else { Access::Beyond }
}
