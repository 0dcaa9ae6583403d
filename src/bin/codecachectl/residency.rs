//! `lookup` and `evict`: one entry, there and gone.

use codecached::proto::{
    Entry, EntryView, EvictRequest, EvictState, LiftQuarantineRequest, LinkedEntry, LookupRequest, Quarantine,
    evict_request, lift_quarantine_request, lookup_request,
};
use serde_json::{Value, json};

use crate::{
    args::{Evict, Lookup, Unquarantine},
    context::{self, Context, Report},
    failure::Failure,
    symbols, table, units,
};

/// Shows the entry under a key.
pub(crate) async fn lookup(context: &Context, asked: Lookup) -> Result<Report, Failure> {
    let request = LookupRequest {
        namespace: context.namespace.clone(),
        target: Some(lookup_request::Target::Key(context::key(&asked.key)?)),
        peek: asked.peek,
        view: EntryView::Full.into(),
    };
    let answer = context.client.lookup(request).await;
    let answer = answer.map_err(|error| Failure::client(&format!("find {:?}", asked.key), error))?;
    let entry = answer.entry.ok_or_else(|| Failure::answer("the daemon answered without an entry"))?;
    Ok(context.report(|| human(&entry, asked.symbols), || to_json(&entry, asked.symbols)))
}

/// Takes an entry out.
pub(crate) async fn evict(context: &Context, asked: Evict) -> Result<Report, Failure> {
    let request = EvictRequest {
        namespace: context.namespace.clone(),
        target: Some(evict_request::Target::Key(context::key(&asked.key)?)),
        wait: asked.wait,
    };
    let answer = context.client.evict(request).await;
    let answer = answer.map_err(|error| Failure::client(&format!("evict {:?}", asked.key), error))?;
    let (state, words) = match answer.state() {
        EvictState::Freed => ("freed", "its memory is free"),
        EvictState::Lingering if answer.dependants > 0 => {
            ("lingering", "entries are linked against it, its memory comes back when the last of them goes")
        }
        EvictState::Lingering => ("lingering", "calls of it run on, its memory comes back when they end"),
        EvictState::Unspecified => return Err(Failure::answer("the daemon did not say what became of the entry")),
    };
    let charged = units::bytes(answer.charged_bytes);
    Ok(context.report(
        || format!("evicted {:?} ({charged}): {words}\n", asked.key),
        || json!({ "state": state, "charged_bytes": answer.charged_bytes, "dependants": answer.dependants }),
    ))
}

/// Lets an entry be called again.
pub(crate) async fn unquarantine(context: &Context, asked: Unquarantine) -> Result<Report, Failure> {
    let request = LiftQuarantineRequest {
        namespace: context.namespace.clone(),
        target: Some(lift_quarantine_request::Target::Key(context::key(&asked.key)?)),
    };
    let answer = context.client.lift_quarantine(request).await;
    let answer = answer.map_err(|error| Failure::client(&format!("lift the quarantine of {:?}", asked.key), error))?;
    let lifted = answer.lifted.as_ref();
    let human = || match lifted {
        Some(quarantine) => format!("{:?} may be called again; it was quarantined: {}\n", asked.key, told(quarantine)),
        None => format!("{:?} was not quarantined\n", asked.key),
    };
    Ok(context.report(human, || json!({ "lifted": lifted.map(quarantine_json) })))
}

fn told(quarantine: &Quarantine) -> String {
    let ago = units::milliseconds(quarantine.since_ms);
    format!("{ago} ago after {} traps, the last: {}", quarantine.traps, quarantine.reason)
}

fn quarantine_json(quarantine: &Quarantine) -> Value {
    json!({ "since_ms": quarantine.since_ms, "traps": quarantine.traps, "reason": quarantine.reason })
}

/// Everything about an entry; the symbols only if they are asked for.
pub(crate) fn to_json(entry: &Entry, symbols: bool) -> Value {
    let mut value = json!({
        "key": units::key(&entry.key),
        "handle": format!("{:#018x}", entry.handle),
        "generation": entry.generation,
        "charged_bytes": entry.charged_bytes,
        "code_bytes": entry.code_bytes,
        "rodata_bytes": entry.rodata_bytes,
        "data_bytes": entry.data_bytes,
        "link_state_bytes": entry.link_state_bytes,
        "digest_blake3": entry.digest.as_ref().map(|digest| units::hex(&digest.value)),
        "calls": entry.calls,
        "idle_ms": entry.idle_ms,
        "age_ms": entry.age_ms,
        "pins": entry.pins,
        "reentrant": entry.reentrant,
        "initialisers_waiting": entry.initialisers_waiting,
        "dependencies": entry.dependencies.iter().map(dependency_json).collect::<Vec<_>>(),
        "dependants": entry.dependants,
        "quarantine": entry.quarantine.as_ref().map(quarantine_json),
    });
    if symbols {
        value["symbols"] = symbols::all_json(entry).into();
    }
    value
}

fn dependency_json(dependency: &LinkedEntry) -> Value {
    json!({
        "key": units::key(&dependency.key),
        "generation": dependency.generation,
        "handle": format!("{:#018x}", dependency.handle),
    })
}

/// The keys that an entry is linked against, in their order.
pub(crate) fn dependencies(entry: &Entry) -> String {
    match &entry.dependencies[..] {
        [] => "-".into(),
        all => all.iter().map(|it| units::key(&it.key)).collect::<Vec<_>>().join(" "),
    }
}

fn human(entry: &Entry, symbols: bool) -> String {
    let digest = entry.digest.as_ref().map_or_else(String::new, |digest| units::hex(&digest.value));
    let sizes = [entry.code_bytes, entry.rodata_bytes, entry.data_bytes].map(units::bytes);
    let mut text = table::pairs([
        ("key", units::key(&entry.key)),
        ("handle", format!("{:#018x}", entry.handle)),
        ("generation", entry.generation.to_string()),
        ("charged", format!("{} ({} bytes)", units::bytes(entry.charged_bytes), entry.charged_bytes)),
        ("memory", format!("code {}, read-only data {}, data {}", sizes[0], sizes[1], sizes[2])),
        ("link state", units::bytes(entry.link_state_bytes)),
        ("blake3", digest),
        ("calls", format!("{} started, {} under way", entry.calls, entry.pins)),
        ("initialisers", format!("{} wait for the first call", entry.initialisers_waiting)),
        ("quarantine", entry.quarantine.as_ref().map_or_else(|| "no".into(), told)),
        ("reentrant", if entry.reentrant { "yes" } else { "no" }.into()),
        ("needs", dependencies(entry)),
        ("needed by", format!("{} entries", entry.dependants)),
        ("installed", format!("{} ago", units::milliseconds(entry.age_ms))),
        ("used", format!("{} ago", units::milliseconds(entry.idle_ms))),
        ("symbols", entry.symbols.len().to_string()),
    ]);
    if symbols {
        text.push('\n');
        text.push_str(&symbols::table(entry));
    }
    text
}

#[cfg(test)]
mod tests {
    use codecached::proto::{Symbol, SymbolKind};

    use super::*;

    #[test]
    fn symbols_appear_only_if_asked_for() {
        let kind = SymbolKind::Function.into();
        let symbol = Symbol { name: "crc32".into(), kind, offset_bytes: 16, size_bytes: 9, ..Symbol::default() };
        let entry = Entry { key: "k".into(), handle: 0xab, symbols: vec![symbol], ..Entry::default() };
        assert_eq!(to_json(&entry, true)["symbols"][0]["kind"], "function");
        assert!(to_json(&entry, false).get("symbols").is_none());
        assert!(human(&entry, true).contains("crc32   function    0x10"), "{}", human(&entry, true));
        assert!(!human(&entry, false).contains("crc32"));
    }

    #[test]
    fn handles_are_text_so_that_no_program_rounds_them() {
        let entry = Entry { handle: u64::MAX, ..Entry::default() };
        assert_eq!(to_json(&entry, false)["handle"], "0xffffffffffffffff");
    }
}
