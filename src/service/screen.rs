//! What becomes of an install whose code holds what it must not.

use super::failure::{Failure, Reason};
use crate::{
    cache::Name,
    code::{Finding, Image, Rule, Screened},
    config::Screen,
    proto::{self, ScreenRule},
};

/// Findings that a refusal names: more would not fit beside its details.
const NAMED_MAX: usize = 4;

/// Reads the code of an image, if that is wanted.
///
/// # Errors
/// FORBIDDEN_INSTRUCTION, if what is found refuses the install.
pub(super) fn screen(mode: Screen, name: &Name, image: &Image) -> Result<Screened, Failure> {
    if mode == Screen::Off {
        return Ok(Screened::default());
    }
    let screened = image.screen();
    let Some(first) = screened.findings.first() else { return Ok(screened) };
    if mode == Screen::Reject {
        return Err(refusal(&screened, first));
    }
    tracing::warn!(key = ?name, findings = screened.total, first = %first, "installed code holds what it must not");
    Ok(screened)
}

pub(super) fn finding(finding: Finding) -> proto::ScreenFinding {
    proto::ScreenFinding {
        rule: rule(finding.rule).into(),
        function: finding.function.into(),
        function_offset_bytes: finding.function_offset_bytes,
        offset_bytes: finding.offset_bytes,
        instruction: finding.instruction,
    }
}

fn refusal(screened: &Screened, first: &Finding) -> Failure {
    let named: Vec<String> = screened.findings.iter().take(NAMED_MAX).map(Finding::to_string).collect();
    let rest = if screened.total > named.len() as u64 { ", ..." } else { "" };
    let message = format!("code must not hold: {}{rest} ({} in all)", named.join(", "), screened.total);
    Failure::new(Reason::ForbiddenInstruction, message)
        .with("rule", rule(first.rule).as_str_name())
        .with("offset_bytes", first.offset_bytes)
        .with("findings_total", screened.total)
}

fn rule(rule: Rule) -> ScreenRule {
    match rule {
        Rule::SystemCall => ScreenRule::SystemCall,
        Rule::Interrupt => ScreenRule::Interrupt,
        Rule::PortIo => ScreenRule::PortIo,
        Rule::ProtectionKey => ScreenRule::ProtectionKey,
        Rule::ExtendedState => ScreenRule::ExtendedState,
        Rule::Segment => ScreenRule::Segment,
        Rule::FarBranch => ScreenRule::FarBranch,
        Rule::Privileged => ScreenRule::Privileged,
        Rule::BranchTarget => ScreenRule::BranchTarget,
        Rule::RelocatedOpcode => ScreenRule::RelocatedOpcode,
        Rule::Undecodable => ScreenRule::Undecodable,
    }
}
