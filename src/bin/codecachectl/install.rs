//! `install`: files become entries.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use codecached::{
    client::archive,
    proto::{
        BlobFormat, Dependency, Digest, DigestAlgorithm, FlatEntry, InstallRequest, InstallResponse, ScreenFinding,
        ScreenRule,
    },
};
use serde_json::{Value, json};

use crate::{
    args::Install,
    context::{self, Context, Report},
    diagnostics::{self, Checked},
    failure::Failure,
    progress::Progress,
    residency, signatures,
    table::{Align, Table},
    units,
    value::read_file,
};

const ELF_MAGIC: &[u8] = b"\x7fELF";
const ARCHIVE_MAGIC: &[u8] = b"!<arch>\n";

/// Installs every file, or all joined; the first failure ends it, and what was installed before it stays.
pub(crate) async fn run(context: &Context, asked: Install) -> Result<Report, Failure> {
    let limits = context.limits().await?;
    let bytes_max = limits.unary_max_bytes.max(limits.stream_max_bytes);
    let signatures = signatures::read(&asked.signature, &asked.signatures)?;
    let (mut installed, mut checked) = (Vec::new(), Vec::new());
    let blobs = blobs(&asked, bytes_max)?;
    let count = blobs.len();
    let dependencies = dependencies(&asked)?;
    for Named { key, blob, format } in blobs {
        let request = InstallRequest {
            namespace: context.namespace.clone(),
            key: context::key(&key)?,
            format: format.into(),
            digest: Some(digest(&blob)),
            blob,
            flat_entries: asked.flat.clone(),
            replace: asked.replace,
            reentrant: asked.reentrant,
            exports: asked.export.clone(),
            keep_unused_sections: asked.keep_unused,
            signatures: signatures.clone(),
            required_cpu_features: asked.require.clone(),
            validate_only: asked.check,
            dependencies: dependencies.clone(),
        };
        let progress = Progress::new(&key, request.blob.len() as u64, !context.json);
        let answer = context.client.install_with_progress(request, progress.callback()).await;
        progress.clear();
        let before = match installed.len() {
            0 => String::new(),
            before => format!(" (after {before} of {count} files)"),
        };
        let answer = answer.map_err(|error| Failure::client(&format!("install {key:?}{before}"), error))?;
        match asked.check {
            true => checked.push(Checked { key, answer }),
            false => installed.push(answer),
        }
    }
    if asked.check {
        let report = context.report(|| diagnostics::human(&checked), || diagnostics::to_json(&checked));
        return Ok(Report { exit: diagnostics::exit(&checked), ..report });
    }
    Ok(context
        .report(|| human(&installed), || json!({ "installed": installed.iter().map(to_json).collect::<Vec<_>>() })))
}

/// What the code is to be linked against.
fn dependencies(asked: &Install) -> Result<Vec<Dependency>, Failure> {
    let dependency = |key: &String| Ok(Dependency { namespace: String::new(), key: context::key(key)? });
    asked.needs.iter().map(dependency).collect()
}

/// What is to be installed under which key.
struct Named {
    key: String,
    blob: Bytes,
    format: BlobFormat,
}

fn blobs(asked: &Install, bytes_max: u64) -> Result<Vec<Named>, Failure> {
    let read = |path: &PathBuf| {
        let blob = read_file(path, bytes_max, "stream_max_bytes")?;
        let format = format_of(&blob, &asked.flat);
        Ok((blob, format.map_err(|why| Failure::misuse(format!("{}: {why}", path.display())))?))
    };
    let files: Vec<_> = asked.files.iter().map(read).collect::<Result<_, Failure>>()?;
    if files.len() > 1 && !asked.key.contains("{}") {
        return Ok(vec![Named {
            key: asked.key.clone(),
            blob: joined(&asked.files, &files)?,
            format: BlobFormat::Archive,
        }]);
    }
    let keys = keys(&asked.key, &asked.files)?;
    Ok(keys.into_iter().zip(files).map(|(key, (blob, format))| Named { key, blob, format }).collect())
}

/// Several objects as one archive.
fn joined(paths: &[PathBuf], files: &[(Bytes, BlobFormat)]) -> Result<Bytes, Failure> {
    if let Some(at) = files.iter().position(|(_, format)| *format != BlobFormat::ElfObject) {
        let text = format!("{}: only objects are joined under one key; use {{}} in the key", paths[at].display());
        return Err(Failure::misuse(text));
    }
    let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy()).collect();
    let members = names.iter().zip(files).map(|(name, (blob, _))| (&**name, &**blob));
    Ok(archive(members).into())
}

/// The key of each file.
fn keys(template: &str, files: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let keys: Vec<String> = files.iter().map(|path| template.replace("{}", &stem(path))).collect();
    let mut seen = HashSet::new();
    match keys.iter().find(|key| !seen.insert(*key)) {
        Some(twice) => Err(Failure::misuse(format!("two of the files have the key {twice:?}"))),
        None => Ok(keys),
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn format_of(blob: &[u8], flat: &[FlatEntry]) -> Result<BlobFormat, &'static str> {
    if !flat.is_empty() {
        return Ok(BlobFormat::Flat);
    }
    if blob.starts_with(ELF_MAGIC) {
        return Ok(BlobFormat::ElfObject);
    }
    if blob.starts_with(ARCHIVE_MAGIC) {
        return Ok(BlobFormat::Archive);
    }
    Err("neither an ELF object nor an archive; flat code needs --flat NAME=OFFSET")
}

fn digest(blob: &Bytes) -> Digest {
    let value = Bytes::copy_from_slice(blake3::hash(blob).as_bytes());
    Digest { algorithm: DigestAlgorithm::Blake3.into(), value }
}

fn human(installed: &[InstallResponse]) -> String {
    let mut table = Table::new([
        ("KEY", Align::Left),
        ("", Align::Left),
        ("CHARGED", Align::Right),
        ("CODE", Align::Right),
        ("RODATA", Align::Right),
        ("DATA", Align::Right),
        ("SYMBOLS", Align::Right),
        ("OBJECTS", Align::Right),
        ("EVICTED", Align::Right),
    ]);
    for answer in installed {
        let entry = answer.entry.clone().unwrap_or_default();
        table.row([
            units::key(&entry.key),
            outcome(answer).into(),
            units::bytes(entry.charged_bytes),
            units::bytes(entry.code_bytes),
            units::bytes(entry.rodata_bytes),
            units::bytes(entry.data_bytes),
            entry.symbols.len().to_string(),
            answer.objects.to_string(),
            answer.evicted_entries.to_string(),
        ]);
    }
    table.render() + &installed.iter().flat_map(|it| [initialisers(it), findings(it)]).collect::<String>()
}

/// What is to run before the first call.
fn initialisers(answer: &InstallResponse) -> String {
    let entry = answer.entry.clone().unwrap_or_default();
    match entry.initialisers_waiting {
        0 => String::new(),
        1 => format!("{}: 1 initialiser runs before the first call\n", units::key(&entry.key)),
        many => format!("{}: {many} initialisers run before the first call\n", units::key(&entry.key)),
    }
}

/// What the screening found, one a line.
fn findings(answer: &InstallResponse) -> String {
    let key = units::key(&answer.entry.clone().unwrap_or_default().key);
    let line = |it: &ScreenFinding| {
        let rule = word(it.rule());
        let place = if it.function.is_empty() { "code".into() } else { it.function.escape_debug().to_string() };
        format!("{key}: {rule}: {} at {place}+{:#x}\n", it.instruction, it.function_offset_bytes)
    };
    let mut text: String = answer.screen_findings.iter().map(line).collect();
    let more = answer.screen_findings_total.saturating_sub(answer.screen_findings.len() as u64);
    if more > 0 {
        text.push_str(&format!("{key}: {more} more\n"));
    }
    text
}

/// A rule of the screening, such as SYSTEM_CALL.
fn word(rule: ScreenRule) -> &'static str {
    rule.as_str_name().trim_start_matches("SCREEN_RULE_")
}

fn finding_json(finding: &ScreenFinding) -> Value {
    json!({
        "rule": word(finding.rule()),
        "function": finding.function,
        "function_offset_bytes": finding.function_offset_bytes,
        "offset_bytes": finding.offset_bytes,
        "instruction": finding.instruction,
    })
}

fn to_json(answer: &InstallResponse) -> Value {
    json!({
        "entry": answer.entry.as_ref().map(|entry| residency::to_json(entry, true)),
        "outcome": outcome(answer),
        "created": answer.created,
        "replaced": answer.replaced,
        "evicted_entries": answer.evicted_entries,
        "evicted_bytes": answer.evicted_bytes,
        "objects": answer.objects,
        "unused_sections": answer.unused_sections,
        "unused_bytes": answer.unused_bytes,
        "screen_findings": answer.screen_findings.iter().map(finding_json).collect::<Vec<_>>(),
        "screen_findings_total": answer.screen_findings_total,
    })
}

fn outcome(answer: &InstallResponse) -> &'static str {
    match (answer.created, answer.replaced) {
        (_, true) => "replaced",
        (true, false) => "created",
        (false, false) => "existed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_of_each_stem() {
        let files = ["a/crc32.o".into(), "b/adler32.o".into()];
        assert_eq!(keys("zlib/{}", &files).unwrap(), ["zlib/crc32", "zlib/adler32"]);
        assert_eq!(keys("plain", &files[..1]).unwrap(), ["plain"]);
    }

    #[test]
    fn two_files_under_one_key_are_misuse_and_so_is_joining_what_is_no_object() {
        let files =
            [(Bytes::from_static(b"a"), BlobFormat::ElfObject), (Bytes::from_static(b"b"), BlobFormat::Archive)];
        assert!(joined(&["a.o".into(), "b.a".into()], &files).unwrap_err().to_string().contains("b.a"));
        assert!(keys("{}", &["x/a.o".into(), "y/a.o".into()]).unwrap_err().to_string().contains("\"a\""));
    }

    #[test]
    fn the_format_is_told_by_the_first_bytes_unless_it_is_flat() {
        assert_eq!(format_of(b"\x7fELF..", &[]), Ok(BlobFormat::ElfObject));
        assert_eq!(format_of(b"\xc3", &[FlatEntry::default()]), Ok(BlobFormat::Flat));
        assert_eq!(format_of(b"!<arch>\n..", &[]), Ok(BlobFormat::Archive));
        assert!(format_of(b"\xc3", &[]).unwrap_err().contains("--flat"));
    }
}
