//! `executions` and `cancel`: what runs, and its end.

use codecached::proto::{CancelExecutionRequest, Execution, ExecutionState, ListExecutionsRequest};
use serde_json::{Value, json};

use crate::{
    args::Cancel,
    context::{Context, Report},
    failure::Failure,
    table::{Align, Table},
    units,
};

/// The largest page that a daemon gives.
const PAGE_MAX: u32 = 1000;
/// Pages at most: far more than a daemon has executions.
const PAGES_MAX: u32 = 1000;

/// Lists what runs and waits.
pub(crate) async fn list(context: &Context) -> Result<Report, Failure> {
    let mut request = ListExecutionsRequest {
        namespace: context.namespace.clone(),
        page_size: PAGE_MAX,
        ..ListExecutionsRequest::default()
    };
    let mut executions: Vec<Execution> = Vec::new();
    for _ in 0..PAGES_MAX {
        let page = context.client.list_executions(request.clone()).await;
        let page = page.map_err(|error| Failure::client("list executions", error))?;
        executions.extend(page.executions);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let all = || executions.iter().map(to_json).collect::<Vec<_>>();
    Ok(context.report(|| human(&executions), || json!({ "executions": all() })))
}

/// Stops one.
pub(crate) async fn cancel(context: &Context, asked: Cancel) -> Result<Report, Failure> {
    let request = CancelExecutionRequest { namespace: context.namespace.clone(), execution_id: asked.id };
    let answer = context.client.cancel_execution(request).await;
    answer.map_err(|error| Failure::client(&format!("cancel execution {}", asked.id), error))?;
    Ok(context.report(|| format!("cancelled execution {}\n", asked.id), || json!({ "cancelled": asked.id })))
}

fn human(executions: &[Execution]) -> String {
    let mut table = Table::new([
        ("ID", Align::Right),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("CPU LIMIT", Align::Right),
        ("ROWS", Align::Right),
        ("KEY", Align::Left),
        ("SYMBOL", Align::Left),
    ]);
    for it in executions {
        table.row([
            it.execution_id.to_string(),
            state(it).to_owned(),
            units::milliseconds(it.age_ms),
            units::milliseconds(cpu_limit_ms(it)),
            if it.rows == 0 { "-".to_owned() } else { it.rows.to_string() },
            units::key(&it.key),
            it.symbol.clone(),
        ]);
    }
    format!("{}{} executions\n", table.render(), executions.len())
}

fn to_json(it: &Execution) -> Value {
    json!({
        "execution_id": it.execution_id,
        "state": state(it),
        "age_ms": it.age_ms,
        "cpu_limit_ms": cpu_limit_ms(it),
        "rows": it.rows,
        "key": units::key(&it.key),
        "handle": format!("{:#018x}", it.handle),
        "symbol": it.symbol,
    })
}

fn state(it: &Execution) -> &'static str {
    match it.state() {
        ExecutionState::Unspecified => "unknown",
        ExecutionState::Queued => "queued",
        ExecutionState::Running => "running",
    }
}

fn cpu_limit_ms(it: &Execution) -> u64 {
    let limit = it.cpu_limit.unwrap_or_default();
    let [seconds, nanos] = [limit.seconds, i64::from(limit.nanos)].map(|it| u64::try_from(it).unwrap_or_default());
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_is_shown_with_what_it_takes_to_stop_it() {
        let it = Execution {
            execution_id: 77,
            key: "k".into(),
            symbol: "spin".into(),
            state: ExecutionState::Running.into(),
            age_ms: 1500,
            cpu_limit: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
            ..Execution::default()
        };
        let text = human(std::slice::from_ref(&it));
        for part in ["77", "running", "1.5 s", "spin", "1 executions"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert_eq!((&to_json(&it)["cpu_limit_ms"], &to_json(&it)["state"]), (&json!(1500), &json!("running")));
    }
}
