//! Code of entries as text: for who asks, and where a call trapped.

use super::{
    Service,
    asked::Asked,
    failure::{Failure, Reason},
};
use crate::{
    cache::{Handle, Name, Pinned, Target},
    code::{self, INSTRUCTION_MAX_BYTES, Line},
    exec::{Trap, TrapKind},
    proto,
};

/// Instructions of an answer that does not say how many.
const INSTRUCTIONS_DEFAULT: usize = 1000;
/// Instructions of an answer at most: they take some milliseconds.
const INSTRUCTIONS_MAX: usize = 10_000;
/// Bytes of an answer, about: half of what clients commonly take. Names alone could make it larger.
const ANSWER_MAX_BYTES: usize = 2 << 20;
/// Bytes of an instruction in an answer beside its own and its texts: address, tags and lengths.
const FRAMING_BYTES: usize = 24;

/// # Errors
/// No such entry or symbol, or INVALID_FIELD.
pub(super) fn answer(
    service: &Service,
    request: proto::DisassembleRequest,
) -> Result<proto::DisassembleResponse, Failure> {
    let max = match request.max_instructions as usize {
        0 => INSTRUCTIONS_DEFAULT,
        max if max <= INSTRUCTIONS_MAX => max,
        _ => return Err(Failure::field("max_instructions", format!("must be at most {INSTRUCTIONS_MAX}"))),
    };
    let asked = Asked::new(&request.namespace, request.target)?;
    let entry = service.cache.peek(asked.target()).ok_or_else(|| asked.absent())?;
    let listing = entry.listing();
    let extent = match request.symbol.as_str() {
        "" => 0..entry.meta().sizes.code.size_bytes,
        symbol => listing.extent(symbol).ok_or_else(|| no_function(symbol))?,
    };
    // As many instructions take no more, each at its longest.
    let bytes_max = (max as u64 * INSTRUCTION_MAX_BYTES).min(extent.end - extent.start);
    let code = entry.read_code(extent.start, bytes_max);
    let (mut instructions, mut answer_bytes, mut end) = (Vec::new(), 0, extent.start);
    for line in listing.lines(&code, extent.start, max) {
        let name = listing.starts(line.offset_bytes).unwrap_or_default();
        answer_bytes += FRAMING_BYTES + line.size_bytes as usize + line.text.len() + name.len();
        if answer_bytes > ANSWER_MAX_BYTES {
            break;
        }
        end = line.offset_bytes + line.size_bytes;
        instructions.push(instruction(&entry, &code, extent.start, line, name));
    }
    Ok(proto::DisassembleResponse { instructions, truncated: end < extent.end })
}

/// The instruction where a call of the entry with this name and handle trapped, there or in what it is linked against.
/// Empty if the call had left all of that, or if the entry has gone.
pub(super) fn trapped(service: &Service, handle: Handle, name: &Name, trap: &Trap) -> String {
    let entry = service.cache.peek(Target::Name(name)).filter(|entry| entry.handle() == handle);
    let Some(entry) = entry.and_then(|entry| entry.with_code_at(trap.pc)) else { return String::new() };
    let offset = trap.pc - entry.code_range().start;
    if trap.kind == TrapKind::Abort {
        // The last byte of the call.
        let start = (offset + 1).saturating_sub(INSTRUCTION_MAX_BYTES);
        return code::call_text(&entry.read_code(start, offset + 1 - start), trap.pc + 1);
    }
    code::instruction_text(&entry.read_code(offset, INSTRUCTION_MAX_BYTES), trap.pc)
}

fn instruction(entry: &Pinned, code: &[u8], start: u64, line: Line, name: &str) -> proto::Instruction {
    let bytes = &code[(line.offset_bytes - start) as usize..][..line.size_bytes as usize];
    proto::Instruction {
        address: entry.code_range().start + line.offset_bytes,
        bytes: bytes.to_vec().into(),
        text: line.text,
        symbol: name.to_owned(),
    }
}

fn no_function(symbol: &str) -> Failure {
    let name: String = symbol.escape_debug().take(256).collect();
    let message = format!("no function {name:?} in the entry; without a name all of its code is shown");
    Failure::absent(Reason::SymbolNotFound, "symbol", name, message)
}
