//! `list`: entries, page by page.

use codecached::proto::{Entry, ListOrder, ListRequest};
use serde_json::json;

use crate::{
    args::{List, Order},
    context::{self, Context, Report},
    failure::Failure,
    residency,
    table::{Align, Table},
    units,
};

/// The largest page that a daemon gives.
const PAGE_MAX: u32 = 1000;

/// Lists entries up to the limit.
pub(crate) async fn run(context: &Context, asked: List) -> Result<Report, Failure> {
    let mut request = ListRequest {
        namespace: context.namespace.clone(),
        key_prefix: context::key(&asked.prefix)?,
        order: ListOrder::from(asked.order).into(),
        ..ListRequest::default()
    };
    let limit = asked.limit as usize;
    let mut entries: Vec<Entry> = Vec::new();
    let more = loop {
        request.page_size = PAGE_MAX.min((limit - entries.len()) as u32);
        let page =
            context.client.list(request.clone()).await.map_err(|error| Failure::client("list entries", error))?;
        let came = page.entries.len();
        entries.extend(page.entries);
        let more = !page.next_page_token.is_empty();
        // An empty page with a token would go on forever.
        if !more || came == 0 || entries.len() >= limit || asked.order != Order::Key {
            break more;
        }
        request.page_token = page.next_page_token;
    };
    entries.truncate(limit);
    Ok(context.report(
        || human(&entries, more),
        || json!({ "entries": entries.iter().map(|entry| residency::to_json(entry, false)).collect::<Vec<_>>(), "more": more }),
    ))
}

fn human(entries: &[Entry], more: bool) -> String {
    let mut table = Table::new([
        ("KEY", Align::Left),
        ("CHARGED", Align::Right),
        ("CODE", Align::Right),
        ("RODATA", Align::Right),
        ("DATA", Align::Right),
        ("CALLS", Align::Right),
        ("RUNNING", Align::Right),
        ("USED", Align::Right),
        ("INSTALLED", Align::Right),
        ("NEEDED BY", Align::Right),
        ("QUARANTINED", Align::Right),
        ("NEEDS", Align::Left),
    ]);
    for entry in entries {
        table.row([
            units::key(&entry.key),
            units::bytes(entry.charged_bytes),
            units::bytes(entry.code_bytes),
            units::bytes(entry.rodata_bytes),
            units::bytes(entry.data_bytes),
            entry.calls.to_string(),
            entry.pins.to_string(),
            units::milliseconds(entry.idle_ms),
            units::milliseconds(entry.age_ms),
            entry.dependants.to_string(),
            entry.quarantine.as_ref().map_or_else(|| "-".into(), |it| units::milliseconds(it.since_ms)),
            residency::dependencies(entry),
        ]);
    }
    let charged: u64 = entries.iter().map(|entry| entry.charged_bytes).sum();
    let tail = if more { "; there are more, --limit shows them" } else { "" };
    format!("{}{} entries, {}{tail}\n", table.render(), entries.len(), units::bytes(charged))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_sums_up() {
        let entry = Entry { key: "k".into(), charged_bytes: 1024, ..Entry::default() };
        let text = human(&[entry.clone(), entry], true);
        assert!(text.ends_with("2 entries, 2 KiB; there are more, --limit shows them\n"), "{text}");
        assert!(human(&[], false).ends_with("\n0 entries, 0 B\n"));
    }
}
