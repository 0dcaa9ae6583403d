//! Rust source as the checks read it: comments, literals and tests can be blanked out, places stay where they are.

use std::{fs, ops::Range, path::Path};

/// One file.
pub(crate) struct Source {
    /// From the top of the repository, with `/`.
    pub(crate) path: String,
    /// As it is.
    pub(crate) text: String,
    /// With comments and the contents of literals blanked out.
    pub(crate) code: String,
    /// `code` without what is compiled for tests only.
    pub(crate) shipped: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { without_comments_and_literals(text) } else { text.to_owned() };
        let shipped = without_tests(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, shipped }
    }

    /// Every file under `root/top` whose name has one of the endings.
    pub(crate) fn tree(root: &Path, top: &str, endings: &[&str]) -> Vec<Self> {
        let mut found = Vec::new();
        walk(root, &root.join(top), endings, &mut found);
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }

    /// "path:line" of a place in any of the texts.
    pub(crate) fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.path, 1 + self.code[..offset].matches('\n').count())
    }

    /// Paths of files that only tests compile, as this file declares them: `#[cfg(test)] mod name;`, with `#[path]`
    /// or without.
    pub(crate) fn test_modules(&self) -> Vec<String> {
        let (parent, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let folder = match name {
            "mod.rs" | "lib.rs" => parent.to_owned(),
            _ => self.path.trim_end_matches(".rs").to_owned(),
        };
        let mut paths = Vec::new();
        for item in test_items(&self.code) {
            let Some(module) = declared_module(&self.code[item.clone()]) else { continue };
            match self.text[item].split_once("#[path = \"").and_then(|(_, rest)| rest.split_once('"')) {
                Some((path, _)) => paths.push(format!("{parent}/{path}")),
                None => paths.extend([format!("{folder}/{module}.rs"), format!("{folder}/{module}/mod.rs")]),
            }
        }
        paths
    }
}

/// Starts of `word` in `code` where it stands alone, not as a part of a longer name.
pub(crate) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| !code[..at].ends_with(is_name) && !code[at + word.len()..].starts_with(is_name))
}

/// From an opening bracket to behind the one that closes it.
pub(crate) fn bracketed(code: &str, open: usize) -> Range<usize> {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return open..at + 1;
        }
    }
    open..code.len()
}

/// The name in `mod name;`.
fn declared_module(item: &str) -> Option<&str> {
    let mut words = item.trim_end().strip_suffix(';')?.split_whitespace().rev();
    let name = words.next()?;
    (words.next() == Some("mod")).then_some(name)
}

fn walk(root: &Path, path: &Path, endings: &[&str], found: &mut Vec<Source>) {
    let hidden = path.file_name().is_some_and(|name| name == "target" || name == ".git");
    if path.is_dir() && !hidden {
        for entry in fs::read_dir(path).unwrap() {
            walk(root, &entry.unwrap().path(), endings, found);
        }
    } else if let Some(name) = path.strip_prefix(root).unwrap().to_str().filter(|_| path.is_file())
        && endings.iter().any(|ending| name.ends_with(ending))
    {
        found.push(Source::new(name, &fs::read_to_string(path).unwrap()));
    }
}

fn without_comments_and_literals(text: &str) -> String {
    let mut out = text.as_bytes().to_vec();
    let mut at = 0;
    while at < out.len() {
        let end = literal_or_comment_end(text, at);
        match end {
            Some(end) => {
                blank(&mut out, at..end);
                at = end;
            }
            None => at += 1,
        }
    }
    String::from_utf8(out).expect("blanks take the place of whole characters")
}

/// The end of the comment or literal that starts at `at`, if one does.
fn literal_or_comment_end(text: &str, at: usize) -> Option<usize> {
    let rest = &text.as_bytes()[at..];
    let in_name = at > 0 && (text.as_bytes()[at - 1].is_ascii_alphanumeric() || text.as_bytes()[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => Some(at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len())),
        [b'/', b'*', ..] => Some(at + block_comment_len(rest)),
        [b'"', ..] => Some(at + 1 + quoted_len(&rest[1..], b'"')),
        [b'r', b'"' | b'#', ..] if !in_name => raw_string_len(rest).map(|len| at + len),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !in_name => raw_string_len(&rest[1..]).map(|len| at + 1 + len),
        [b'\'', b'\\', ..] => Some(at + 1 + quoted_len(&rest[1..], b'\'')),
        // One character and a quote; otherwise it is a lifetime.
        [b'\'', ..] => {
            let character = text[at + 1..].chars().next()?;
            let close = 1 + character.len_utf8();
            (rest.get(close) == Some(&b'\'')).then_some(at + close + 1)
        }
        _ => None,
    }
}

fn block_comment_len(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Bytes up to behind the quote that closes.
fn quoted_len(bytes: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// From the `r`; `None` for a raw name such as `r#fn`.
fn raw_string_len(bytes: &[u8]) -> Option<usize> {
    let hashes = bytes[1..].iter().take_while(|&&byte| byte == b'#').count();
    let open = 1 + hashes;
    let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    (bytes.get(open) == Some(&b'"')).then(|| {
        let inner = &bytes[open + 1..];
        let len = inner.windows(close.len()).position(|window| window == close);
        len.map_or(bytes.len(), |len| open + 1 + len + close.len())
    })
}

fn without_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    for item in test_items(code) {
        blank(&mut out, item);
    }
    String::from_utf8(out).expect("blanks take the place of whole items")
}

/// Items behind `#[cfg(test)]` and the like, attributes included.
fn test_items(code: &str) -> Vec<Range<usize>> {
    let starts = ["#[cfg(test)]", "#[cfg(all(test"].into_iter().flat_map(|attribute| code.match_indices(attribute));
    starts.map(|(start, _)| start..item_end(code, start)).collect()
}

/// Behind the `;` or the block that ends the item at `start`.
fn item_end(code: &str, start: usize) -> usize {
    let mut at = start;
    while at < code.len() {
        match code.as_bytes()[at] {
            b';' => return at + 1,
            b'{' => return bracketed(code, at).end,
            b'(' | b'[' => at = bracketed(code, at).end,
            _ => at += 1,
        }
    }
    code.len()
}

/// Spaces for everything but line ends.
fn blank(bytes: &mut [u8], range: Range<usize>) {
    let end = range.end.min(bytes.len());
    for byte in &mut bytes[range.start..end] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}
