//! Instructions as text, in Intel's syntax.

use std::{cell::RefCell, ops::Range, rc::Rc};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, Instruction, IntelFormatter, MemorySizeOptions, OpKind,
    SymbolResolver, SymbolResult,
};

use super::error::shown;
use super::{Addresses, Function, PartKind, Symbol};

/// Bytes of an instruction at most: the processor takes no more.
pub const INSTRUCTION_MAX_BYTES: u64 = 15;

/// Stands for a byte that no instruction starts with.
const BAD: &str = "(bad)";

/// Bytes of the calls that compilers make of a name: `call rel32` and `call [rip + disp32]`. No address ends both.
const CALL_BYTES: [usize; 2] = [5, 6];

/// One instruction, or one byte that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Bytes from the start of the code.
    pub offset_bytes: u64,
    /// Bytes of the instruction: 1 to [`INSTRUCTION_MAX_BYTES`].
    pub size_bytes: u64,
    /// Such as `mov rax, qword ptr [rdi]`; `(bad)` for a byte that starts no instruction.
    pub text: String,
}

/// The instruction that starts with `bytes`, which lie at `address`: its text, or `(bad)`. Empty without bytes.
pub fn instruction_text(bytes: &[u8], address: u64) -> String {
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    if decoder.can_decode() { Writer::new().text(&decoder.decode()) } else { String::new() }
}

/// The call by name whose return address is the end of `bytes`; empty if there is none.
pub fn call_text(bytes: &[u8], return_address: u64) -> String {
    let call = CALL_BYTES.into_iter().filter(|&size| size <= bytes.len()).find_map(|size| {
        let start = return_address.wrapping_sub(size as u64);
        let mut decoder = Decoder::with_ip(64, &bytes[bytes.len() - size..], start, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let is_call = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
        (is_call && instruction.len() == size).then_some(instruction)
    });
    call.map(|instruction| Writer::new().text(&instruction)).unwrap_or_default()
}

/// The function of `functions`, which are sorted by offset, that holds the code at this offset. One without a size
/// reaches to the next.
pub fn function_at(functions: &[Function], offset_bytes: u64) -> Option<&Function> {
    let after = functions.partition_point(|function| function.offset_bytes <= offset_bytes);
    let function = functions.get(after.checked_sub(1)?)?;
    let inside = function.size_bytes == 0 || offset_bytes - function.offset_bytes < function.size_bytes;
    inside.then_some(function)
}

/// Linked code with its names.
pub struct Listing<'a> {
    at: Addresses,
    code_bytes: u64,
    functions: &'a [Function],
    /// Symbols of data, sorted by address.
    data: Vec<(u64, &'a Symbol)>,
    /// Other code with its functions, sorted by offset.
    others: Vec<(Range<u64>, &'a [Function])>,
}

impl<'a> Listing<'a> {
    /// Code of `code_bytes` that runs at `at`, with its `functions`, sorted by offset, and the symbols it exports.
    pub fn new(at: Addresses, code_bytes: u64, functions: &'a [Function], symbols: &'a [Symbol]) -> Self {
        let start = |part| match part {
            PartKind::Code => None,
            PartKind::Rodata => Some(at.rodata),
            PartKind::Data => Some(at.data),
        };
        let mut data: Vec<_> =
            symbols.iter().filter_map(|symbol| Some((start(symbol.part)? + symbol.offset_bytes, symbol))).collect();
        data.sort_by_key(|(address, _)| *address);
        Self { at, code_bytes, functions, data, others: Vec::new() }
    }

    /// The same, where what the code calls elsewhere is named too: where that code lies, with its functions, sorted by
    /// offset.
    pub fn beside(self, others: Vec<(Range<u64>, &'a [Function])>) -> Self {
        Self { others, ..self }
    }

    /// Bytes of the code that a function takes, exported or not. One without a size reaches to the next.
    pub fn extent(&self, function: &str) -> Option<Range<u64>> {
        let found = self.functions.iter().find(|it| &*it.name == function)?;
        let start = found.offset_bytes;
        let end = if found.size_bytes > 0 { start + found.size_bytes } else { self.next_start(start) };
        Some(start..end.min(self.code_bytes))
    }

    /// Up to `max` instructions of `code`, which is what stands from `start_bytes` of the code on. Decoding starts anew
    /// at each function.
    pub fn lines(&self, code: &[u8], start_bytes: u64, max: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut writer = Writer::new();
        let mut at = 0;
        while at < code.len() && lines.len() < max {
            let offset = start_bytes + at as u64;
            let end = code.len().min((self.next_start(offset) - start_bytes) as usize);
            let ip = self.at.code + offset;
            decode(&code[at..end], ip, |_, instruction, size_bytes| {
                writer.name(target(instruction).and_then(|address| self.name(address)));
                let offset_bytes = instruction.ip() - self.at.code;
                lines.push(Line { offset_bytes, size_bytes, text: writer.text(instruction) });
                lines.len() < max
            });
            at = end;
        }
        lines
    }

    /// The function that starts at this offset, the first of several.
    pub fn starts(&self, offset_bytes: u64) -> Option<&'a str> {
        let index = self.functions.partition_point(|function| function.offset_bytes < offset_bytes);
        self.functions.get(index).filter(|function| function.offset_bytes == offset_bytes).map(|it| &*it.name)
    }

    /// Where the next function starts, or the code ends.
    fn next_start(&self, offset_bytes: u64) -> u64 {
        let index = self.functions.partition_point(|function| function.offset_bytes <= offset_bytes);
        self.functions.get(index).map_or(self.code_bytes, |function| function.offset_bytes.min(self.code_bytes))
    }

    /// What stands at an address, with the address where that starts.
    fn name(&self, address: u64) -> Option<(u64, &'a str)> {
        if let Some(offset) = address.checked_sub(self.at.code).filter(|&offset| offset < self.code_bytes) {
            let function = function_at(self.functions, offset)?;
            return Some((self.at.code + function.offset_bytes, &function.name));
        }
        if let Some((code, functions)) = self.others.iter().find(|(code, _)| code.contains(&address)) {
            let function = function_at(functions, address - code.start)?;
            return Some((code.start + function.offset_bytes, &function.name));
        }
        let after = self.data.partition_point(|(start, _)| *start <= address);
        let (start, symbol) = self.data.get(after.checked_sub(1)?)?;
        (address - start < symbol.size_bytes.max(1)).then_some((*start, &*symbol.name))
    }
}

/// Decodes `code`, which lies at `ip`, one instruction after the other, and hands each out with its bytes. Where none
/// starts, that is one byte, and an instruction that is invalid. Ends early if `each` returns false.
pub(super) fn decode(code: &[u8], ip: u64, mut each: impl FnMut(&Decoder<'_>, &Instruction, u64) -> bool) {
    let mut decoder = Decoder::with_ip(64, code, ip, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        let start = decoder.position();
        decoder.decode_out(&mut instruction);
        let mut size_bytes = instruction.len() as u64;
        if instruction.is_invalid() {
            size_bytes = 1;
            instruction.set_ip(ip + start as u64);
            decoder.set_position(start + 1).expect("invariant: a byte was there to decode");
            decoder.set_ip(ip + start as u64 + 1);
        }
        if !each(&decoder, &instruction, size_bytes) {
            return;
        }
    }
}

/// Where a direct branch goes.
pub(super) fn branch_target(instruction: &Instruction) -> Option<u64> {
    matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
        .then(|| instruction.near_branch_target())
}

/// The address in an instruction: of a direct branch, or relative to the instruction pointer.
fn target(instruction: &Instruction) -> Option<u64> {
    let relative = || instruction.is_ip_rel_memory_operand().then(|| instruction.ip_rel_memory_address());
    branch_target(instruction).or_else(relative)
}

/// What an address is called; set before each instruction is written.
#[derive(Default, Clone)]
struct Known(Rc<RefCell<Option<(u64, String)>>>);

impl SymbolResolver for Known {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        // Numbers that happen to be equal are no addresses.
        let (start, name) = self.0.borrow().clone().filter(|_| target(instruction) == Some(address))?;
        Some(SymbolResult::with_string(start, name))
    }
}

/// Makes text of instructions.
pub(super) struct Writer {
    formatter: IntelFormatter,
    known: Known,
}

impl Writer {
    pub(super) fn new() -> Self {
        let known = Known::default();
        let mut formatter = IntelFormatter::with_options(Some(Box::new(known.clone())), None);
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_uppercase_hex(false);
        options.set_add_leading_zero_to_hex_numbers(false);
        options.set_branch_leading_zeros(false);
        options.set_show_branch_size(false);
        options.set_space_after_operand_separator(true);
        options.set_memory_size_options(MemorySizeOptions::Always);
        Self { formatter, known }
    }

    pub(super) fn text(&mut self, instruction: &Instruction) -> String {
        if instruction.is_invalid() {
            return BAD.to_owned();
        }
        let mut text = String::new();
        self.formatter.format(instruction, &mut text);
        text
    }

    /// What the address in the next instruction is called, and where what is called so starts.
    fn name(&self, name: Option<(u64, &str)>) {
        *self.known.0.borrow_mut() = name.map(|(start, name)| (start, shown(name.as_bytes())));
    }
}
