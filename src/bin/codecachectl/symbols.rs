//! `symbols`: what an entry exports.

use codecached::proto::{Entry, EntryView, LookupRequest, Symbol, SymbolKind, lookup_request::Target};
use serde_json::{Value, json};

use crate::{
    args::Symbols,
    context::{self, Context, Report},
    failure::Failure,
    table::{Align, Table},
    units,
};

/// Shows the symbols of an entry; no use of it.
pub(crate) async fn run(context: &Context, asked: Symbols) -> Result<Report, Failure> {
    let entry = entry(context, &asked.key).await?;
    let json = || json!({ "key": units::key(&entry.key), "symbols": all_json(&entry) });
    Ok(context.report(|| table(&entry), json))
}

/// The entry under a key, with its symbols; no use of it.
pub(crate) async fn entry(context: &Context, key: &str) -> Result<Entry, Failure> {
    let request = LookupRequest {
        namespace: context.namespace.clone(),
        target: Some(Target::Key(context::key(key)?)),
        peek: true,
        view: EntryView::Full.into(),
    };
    let answer = context.client.lookup(request).await;
    let answer = answer.map_err(|error| Failure::client(&format!("find {key:?}"), error))?;
    answer.entry.ok_or_else(|| Failure::answer("the daemon answered without an entry"))
}

/// One symbol a line.
pub(crate) fn table(entry: &Entry) -> String {
    let mut table = Table::new([
        ("SYMBOL", Align::Left),
        ("KIND", Align::Left),
        ("OFFSET", Align::Right),
        ("BYTES", Align::Right),
        ("SIGNATURE", Align::Left),
    ]);
    for symbol in &entry.symbols {
        let signature = if symbol.signature_text.is_empty() { "-".into() } else { symbol.signature_text.clone() };
        let offset = format!("{:#x}", symbol.offset_bytes);
        let kind = kind(symbol.kind()).into();
        table.row([symbol.name.clone(), kind, offset, symbol.size_bytes.to_string(), signature]);
    }
    table.render()
}

/// All symbols for programs.
pub(crate) fn all_json(entry: &Entry) -> Vec<Value> {
    let one = |symbol: &Symbol| {
        let signature = symbol.signature.as_ref().map(|_| &symbol.signature_text);
        json!({
            "name": symbol.name,
            "kind": kind(symbol.kind()),
            "offset_bytes": symbol.offset_bytes,
            "size_bytes": symbol.size_bytes,
            "signature": signature,
        })
    };
    entry.symbols.iter().map(one).collect()
}

fn kind(kind: SymbolKind) -> &'static str {
    match kind {
        SymbolKind::Unspecified => "unknown",
        SymbolKind::Function => "function",
        SymbolKind::Data => "data",
    }
}

#[cfg(test)]
mod tests {
    use codecached::proto::Signature;

    use super::*;

    #[test]
    fn a_symbol_is_shown_with_its_signature_if_it_has_one() {
        let symbol = |name: &str, text: &str| Symbol {
            name: name.into(),
            kind: SymbolKind::Function.into(),
            signature: (!text.is_empty()).then(Signature::default),
            signature_text: text.into(),
            ..Symbol::default()
        };
        let entry = Entry { symbols: vec![symbol("f", "void f()"), symbol("g", "")], ..Entry::default() };
        let shown = table(&entry);
        assert!(shown.lines().nth(1).unwrap().ends_with("void f()"), "{shown}");
        assert!(shown.lines().nth(2).unwrap().trim_end().ends_with('-'), "{shown}");
        let json = all_json(&entry);
        assert_eq!((&json[0]["signature"], &json[1]["signature"]), (&json!("void f()"), &Value::Null));
    }
}
