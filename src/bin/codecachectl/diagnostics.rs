//! `install --check`: what is wrong with files, without installing them.

use std::fmt::Write;

use codecached::proto::{Diagnostic, InstallResponse, Severity};
use serde_json::{Value, json};

use crate::failure::Exit;

/// What the daemon found in one blob.
pub(crate) struct Checked {
    /// What the blob would be installed under.
    pub(crate) key: String,
    pub(crate) answer: InstallResponse,
}

/// As a compiler ends: with a failure if there is an error anywhere.
pub(crate) fn exit(all: &[Checked]) -> Exit {
    // What is not told may be anything.
    let is_wrong = |it: &Checked| untold(&it.answer) > 0 || it.answer.diagnostics.iter().any(is_error);
    if all.iter().any(is_wrong) { Exit::Refused } else { Exit::Done }
}

fn is_error(diagnostic: &Diagnostic) -> bool {
    diagnostic.severity() != Severity::Warning
}

fn untold(answer: &InstallResponse) -> u64 {
    answer.diagnostics_total.saturating_sub(answer.diagnostics.len() as u64)
}

/// One problem a line.
pub(crate) fn human(all: &[Checked]) -> String {
    let mut text = String::new();
    for Checked { key, answer } in all {
        for it in &answer.diagnostics {
            // A line of text cannot fail.
            let _ = writeln!(text, "{}: {}: {}: {}", key.escape_debug(), severity(it), it.reason, it.message);
        }
        match (untold(answer), answer.diagnostics.is_empty()) {
            (0, true) => text.push_str(&format!("{}: nothing is wrong\n", key.escape_debug())),
            (0, false) => (),
            (more, _) => text.push_str(&format!("{}: {more} more\n", key.escape_debug())),
        }
    }
    text
}

/// The same for programs.
pub(crate) fn to_json(all: &[Checked]) -> Value {
    let one = |it: &Checked| {
        let diagnostics: Vec<Value> = it.answer.diagnostics.iter().map(diagnostic).collect();
        json!({ "key": it.key, "diagnostics": diagnostics, "diagnostics_total": it.answer.diagnostics_total })
    };
    json!({ "checked": all.iter().map(one).collect::<Vec<_>>() })
}

fn diagnostic(it: &Diagnostic) -> Value {
    json!({
        "severity": severity(it),
        "reason": it.reason,
        "message": it.message,
        "object": it.object,
        "section": it.section,
        "symbol": it.symbol,
        "offset_bytes": it.offset_bytes,
    })
}

fn severity(diagnostic: &Diagnostic) -> &'static str {
    if is_error(diagnostic) { "error" } else { "warning" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(severity: Severity, diagnostics_total: u64) -> Checked {
        let it =
            Diagnostic { severity: severity.into(), reason: "R".into(), message: "m".into(), ..Diagnostic::default() };
        let diagnostics = if diagnostics_total > 0 { vec![it] } else { vec![] };
        let answer = InstallResponse { diagnostics, diagnostics_total, ..InstallResponse::default() };
        Checked { key: "k".into(), answer }
    }

    #[test]
    fn errors_and_what_is_not_told_fail_and_warnings_do_not() {
        assert_eq!(exit(&[checked(Severity::Error, 0), checked(Severity::Error, 1)]), Exit::Refused);
        assert_eq!(exit(&[checked(Severity::Warning, 1)]), Exit::Done);
        assert_eq!(exit(&[checked(Severity::Warning, 2)]), Exit::Refused);
    }

    #[test]
    fn each_problem_is_a_line_and_what_is_not_told_is_counted() {
        let all = [checked(Severity::Error, 0), checked(Severity::Error, 3), checked(Severity::Warning, 1)];
        assert_eq!(human(&all), "k: nothing is wrong\nk: error: R: m\nk: 2 more\nk: warning: R: m\n");
        assert_eq!(to_json(&all)["checked"][1]["diagnostics"][0]["severity"], "error");
    }
}
