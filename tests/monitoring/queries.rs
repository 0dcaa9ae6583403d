//! Which series a query asks for, and which a scrape has.

use std::collections::{BTreeMap, BTreeSet};

/// Labels of one metric, each with all of its values.
pub type Labels = BTreeMap<String, BTreeSet<String>>;

/// A scrape.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<String, Labels>);

impl Samples {
    /// Of the text format. Values of labels hold neither commas nor quotes here.
    pub fn parse(text: &str) -> Self {
        let mut samples = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, _)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let there = samples.0.entry(name.to_owned()).or_default();
            for (label, _, value) in matchers(labels.trim_end_matches('}')) {
                there.entry(label).or_default().insert(value);
            }
        }
        samples
    }

    pub fn labels(&self, name: &str) -> Option<&Labels> {
        self.0.get(name)
    }
}

/// A selector of a query: label and the values that it is held against.
#[derive(Debug)]
pub struct Asked {
    pub name: String,
    pub matchers: Vec<(String, Vec<String>)>,
}

/// All selectors of ours in a text.
pub fn asked(text: &str) -> Vec<Asked> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let length = text.as_bytes()[at..].iter().take_while(|byte| is_name(**byte)).count();
        let name = &text[at..at + length];
        at += length.max(1);
        while !text.is_char_boundary(at) {
            at += 1;
        }
        let ours = ["codecache_", "codecache:", "process_"].iter().any(|start| name.starts_with(start));
        // Prose ends in a colon, and a rule's own name stands behind `record: `.
        if ours && !name.ends_with(':') {
            let inside = text[at..].strip_prefix('{').and_then(|rest| Some(rest.split_once('}')?.0)).unwrap_or("");
            let values = |operator: &str, value: &str| -> Vec<String> {
                match operator {
                    "=" | "!=" => vec![value.to_owned()],
                    _ => value.split('|').filter(|it| *it != ".*").map(str::to_owned).collect(),
                }
            };
            let each = |(label, operator, value): (String, &'static str, String)| (label, values(operator, &value));
            found.push(Asked { name: name.to_owned(), matchers: matchers(inside).map(each).collect() });
        }
    }
    found
}

/// Label, operator and value of each part of `a="b",c=~"d"`.
fn matchers(text: &str) -> impl Iterator<Item = (String, &'static str, String)> + '_ {
    text.split(',').filter_map(|part| {
        let operator = ["=~", "!~", "!=", "="].into_iter().find(|it| part.contains(&format!("{it}\"")))?;
        let (label, value) = part.split_once(operator)?;
        Some((label.trim().to_owned(), operator, value.trim().trim_matches('"').to_owned()))
    })
}
