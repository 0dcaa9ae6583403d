//! `arenas`: the executable memory, as a picture.

use codecached::proto::{ArenaArea, ArenaRun, GetArenasRequest, GetArenasResponse, MemoryKind, RunState, WriteWindow};
use serde_json::{Value, json};

use crate::{
    args::Arenas,
    context::{Context, Report},
    failure::Failure,
    picture::{self, Style},
    table, terminal, units,
};

/// The most that a daemon gives: the finer the map, the finer the picture.
const RUNS_MAX: u32 = 65_536;

/// Shows the executable memory.
pub(crate) async fn run(context: &Context, asked: Arenas) -> Result<Report, Failure> {
    let request = GetArenasRequest {
        kind: asked.kind.map_or(MemoryKind::Unspecified, MemoryKind::from).into(),
        arena: asked.arena,
        runs_max: RUNS_MAX,
    };
    let answer = context.client.arenas(request).await;
    let answer = answer.map_err(|error| Failure::client("read the map of the arenas", error))?;
    let style = Style { width: terminal::columns(asked.width), color: terminal::is_colored(asked.color) };
    Ok(context.report(|| human(&answer, style), || to_json(&answer)))
}

fn human(answer: &GetArenasResponse, style: Style) -> String {
    let mut text = totals(answer);
    for area in &answer.areas {
        let picture = picture::draw(area, answer.granule_bytes, style);
        let gap = if picture.is_empty() { "" } else { "\n" };
        text += &format!("{gap}{}\n{picture}", heading(area));
    }
    if answer.areas.iter().any(|area| area.committed_bytes > 0) {
        text += &format!("\n{}\n", picture::LEGEND);
    }
    text
}

fn totals(answer: &GetArenasResponse) -> String {
    let totals = answer.totals.unwrap_or_default();
    let b = units::bytes;
    let mut pairs = vec![("strategy", format!("{}: {}", answer.strategy, answer.strategy_reason))];
    pairs.extend(answer.strategy_attempts.iter().map(|attempt| ("", format!("before: {attempt}"))));
    if !answer.low_refused.is_empty() {
        pairs.push(("below 2 GiB", answer.low_refused.clone()));
    }
    pairs.extend([
        ("window", format!("{}, {} granules", window(answer.write_window()), b(answer.granule_bytes))),
        (
            "used",
            format!("{} in {} spans, {} lingering", b(totals.used_bytes), totals.spans, b(totals.lingering_bytes)),
        ),
        ("free", format!("{}, fragmentation {:.2}", b(totals.free_bytes), totals.fragmentation_ratio)),
        (
            "committed",
            format!(
                "{} of at most {}, {} on huge pages; {} reserved",
                b(totals.committed_bytes),
                b(totals.commit_limit_bytes),
                b(totals.huge_page_bytes),
                b(totals.reserved_bytes)
            ),
        ),
        ("tables", format!("{} of heap, {} barriers", b(totals.metadata_bytes), totals.barriers)),
    ]);
    table::pairs(pairs)
}

fn heading(area: &ArenaArea) -> String {
    let (name, b) = (kind(area.kind()), units::bytes);
    let title = format!("{name} of arena {}{}", area.arena, if area.low { " (below 2 GiB)" } else { "" });
    if area.committed_bytes == 0 {
        return format!("{title}: nothing committed of {}", b(area.bytes));
    }
    let (used, lingering, free) = (b(area.used_bytes), b(area.lingering_bytes), b(area.free_bytes));
    let (committed, whole, longest) = (b(area.committed_bytes), b(area.bytes), b(area.largest_free_bytes));
    format!(
        "{title}: {used} used in {} spans, {lingering} lingering, {free} free\n  \
         {committed} of {whole} committed, longest free run {longest}; {} operations, {} found it busy",
        area.spans, area.operations, area.contended
    )
}

fn to_json(answer: &GetArenasResponse) -> Value {
    let totals = answer.totals.unwrap_or_default();
    json!({
        "strategy": answer.strategy,
        "strategy_reason": answer.strategy_reason,
        "strategy_attempts": answer.strategy_attempts,
        "write_window": window(answer.write_window()),
        "granule_bytes": answer.granule_bytes,
        "totals": {
            "reserved_bytes": totals.reserved_bytes,
            "committed_bytes": totals.committed_bytes,
            "commit_limit_bytes": totals.commit_limit_bytes,
            "used_bytes": totals.used_bytes,
            "lingering_bytes": totals.lingering_bytes,
            "free_bytes": totals.free_bytes,
            "spans": totals.spans,
            "metadata_bytes": totals.metadata_bytes,
            "barriers": totals.barriers,
            "huge_page_bytes": totals.huge_page_bytes,
            "fragmentation_ratio": totals.fragmentation_ratio,
        },
        "areas": answer.areas.iter().map(area_json).collect::<Vec<_>>(),
        "low_refused": answer.low_refused,
    })
}

fn area_json(area: &ArenaArea) -> Value {
    json!({
        "arena": area.arena,
        "low": area.low,
        "kind": kind(area.kind()),
        "bytes": area.bytes,
        "committed_bytes": area.committed_bytes,
        "used_bytes": area.used_bytes,
        "lingering_bytes": area.lingering_bytes,
        "free_bytes": area.free_bytes,
        "largest_free_bytes": area.largest_free_bytes,
        "spans": area.spans,
        "operations": area.operations,
        "contended": area.contended,
        "cell_bytes": area.cell_bytes,
        "runs": area.runs.iter().map(run_json).collect::<Vec<_>>(),
    })
}

fn run_json(run: &ArenaRun) -> Value {
    let mut value = json!({ "offset_bytes": run.offset_bytes, "bytes": run.bytes, "state": state(run.state()) });
    if run.state() == RunState::Mixed {
        value["used_bytes"] = run.used_bytes.into();
        value["lingering_bytes"] = run.lingering_bytes.into();
        value["free_bytes"] = run.free_bytes.into();
    }
    value
}

fn kind(kind: MemoryKind) -> &'static str {
    match kind {
        MemoryKind::Unspecified => "unknown",
        MemoryKind::Code => "code",
        MemoryKind::Rodata => "rodata",
        MemoryKind::Data => "data",
    }
}

fn state(state: RunState) -> &'static str {
    match state {
        RunState::Unspecified => "unknown",
        RunState::Used => "used",
        RunState::Lingering => "lingering",
        RunState::Free => "free",
        RunState::Uncommitted => "uncommitted",
        RunState::Mixed => "mixed",
    }
}

fn window(window: WriteWindow) -> &'static str {
    match window {
        WriteWindow::Unspecified => "unknown",
        WriteWindow::Always => "always",
        WriteWindow::OnDemand => "on-demand",
    }
}

#[cfg(test)]
mod tests {
    use codecached::proto::ArenaTotals;

    use super::*;

    fn answer() -> GetArenasResponse {
        let run = |offset_bytes, bytes, state: RunState| ArenaRun {
            offset_bytes,
            bytes,
            state: state.into(),
            ..ArenaRun::default()
        };
        let used = ArenaArea {
            kind: MemoryKind::Code.into(),
            bytes: 8192,
            committed_bytes: 4096,
            used_bytes: 1024,
            runs: vec![
                run(0, 1024, RunState::Used),
                run(1024, 3072, RunState::Free),
                run(4096, 4096, RunState::Uncommitted),
            ],
            ..ArenaArea::default()
        };
        let empty =
            ArenaArea { arena: 1, low: true, kind: MemoryKind::Data.into(), bytes: 8192, ..ArenaArea::default() };
        GetArenasResponse {
            strategy: "memfd".to_owned(),
            strategy_attempts: vec!["memfd-noexec: create: EINVAL".to_owned()],
            write_window: WriteWindow::OnDemand.into(),
            granule_bytes: 64,
            totals: Some(ArenaTotals { fragmentation_ratio: 0.25, ..ArenaTotals::default() }),
            areas: vec![used, empty],
            ..GetArenasResponse::default()
        }
    }

    #[test]
    fn people_get_totals_a_picture_of_what_has_memory_and_a_line_about_the_rest() {
        let text = human(&answer(), Style { width: 77, color: false });
        for part in [
            "before: memfd-noexec: create: EINVAL",
            "on-demand, 64 B granules",
            "fragmentation 0.25",
            "code of arena 0: 1 KiB used",
            "|████████████████................................................|",
            "data of arena 1 (below 2 GiB): nothing committed of 8 KiB\n",
            "blank not committed",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn programs_get_every_run_and_what_is_in_a_mixed_one() {
        let mut answer = answer();
        answer.areas[0].runs[0] =
            ArenaRun { bytes: 1024, state: RunState::Mixed.into(), used_bytes: 7, ..ArenaRun::default() };
        let json = to_json(&answer);
        assert_eq!(json["write_window"], "on-demand");
        assert_eq!(json["areas"][0]["runs"][0]["used_bytes"], 7);
        assert_eq!(json["areas"][0]["runs"][1], json!({ "offset_bytes": 1024, "bytes": 3072, "state": "free" }));
    }
}
