//! `disasm`: the instructions of an entry.

use codecached::proto::{DisassembleRequest, DisassembleResponse, Instruction, disassemble_request::Target};
use serde_json::{Value, json};

use crate::{
    args::Disasm,
    context::{self, Context, Report},
    failure::Failure,
    units,
};

/// Columns of the bytes: those of all but the longest instructions.
const BYTES_WIDTH: usize = 22;

/// Shows instructions as they lie in memory.
pub(crate) async fn run(context: &Context, asked: Disasm) -> Result<Report, Failure> {
    let request = DisassembleRequest {
        namespace: context.namespace.clone(),
        target: Some(Target::Key(context::key(&asked.key)?)),
        symbol: asked.symbol.unwrap_or_default(),
        max_instructions: asked.limit,
    };
    let answer = context.client.disassemble(request).await;
    let answer = answer.map_err(|error| Failure::client(&format!("disassemble {:?}", asked.key), error))?;
    Ok(context.report(|| human(&answer), || to_json(&answer)))
}

fn human(answer: &DisassembleResponse) -> String {
    let mut text: String = answer.instructions.iter().map(line).collect();
    if answer.truncated {
        text.push_str("there are more, --limit shows them\n");
    }
    text
}

fn line(it: &Instruction) -> String {
    let head = if it.symbol.is_empty() { String::new() } else { format!("{}:\n", it.symbol.escape_debug()) };
    format!("{head}  {:#x}  {:BYTES_WIDTH$}  {}\n", it.address, units::hex(&it.bytes), it.text)
}

fn to_json(answer: &DisassembleResponse) -> Value {
    let instruction = |it: &Instruction| {
        json!({
            "address": format!("{:#x}", it.address),
            "bytes_hex": units::hex(&it.bytes),
            "text": it.text,
            "symbol": it.symbol,
        })
    };
    let instructions: Vec<Value> = answer.instructions.iter().map(instruction).collect();
    json!({ "instructions": instructions, "truncated": answer.truncated })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_begins_with_its_name_and_what_is_left_out_is_said() {
        let instruction = |address, bytes: &'static [u8], text: &str, symbol: &str| Instruction {
            address,
            bytes: bytes.into(),
            text: text.into(),
            symbol: symbol.into(),
        };
        let instructions = vec![instruction(0x1000, &[0x90], "nop", "f"), instruction(0x1001, &[0xc3], "ret", "")];
        let answer = DisassembleResponse { instructions, truncated: true };
        let text = human(&answer);
        assert!(text.starts_with("f:\n  0x1000  90  ") && text.contains("  ret\nthere are more"), "{text}");
        assert_eq!(to_json(&answer)["instructions"][1]["bytes_hex"], "c3");
    }
}
