//! Arguments of a call: from text, with their files, to what is sent.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
    str::FromStr,
};

use bytes::Bytes;
use codecached::proto::{Value, value::Kind};

use crate::{failure::Failure, units};

/// An argument as it stands on the command line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Argument {
    /// Complete.
    Ready(Kind),
    /// Bytes that are still to be read.
    Bytes(Source),
    /// The same, sent back afterwards.
    InOut(Source),
    /// Something whose type the function's declared signature has.
    Untyped(String),
}

/// Where bytes are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    Here(Bytes),
    File(PathBuf),
    StandardInput,
}

impl FromStr for Argument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((kind, value)) = text.split_once(':').filter(|_| !text.starts_with('@')) else {
            return Ok(Self::Untyped(text.to_owned()));
        };
        Ok(Self::Ready(match kind {
            "i32" => Kind::I32(number(value)?),
            "u32" => Kind::U32(u32::try_from(units::parse_integer(value)?).map_err(|_| "does not fit 32 bits")?),
            "i64" => Kind::I64(number(value)?),
            "u64" => Kind::U64(units::parse_integer(value)?),
            "f32" => Kind::F32(number(value)?),
            "f64" => Kind::F64(number(value)?),
            "out" => Kind::OutBytes(units::parse_integer(value)?),
            "bytes" => return source(value).map(Self::Bytes),
            "hex" | "text" => return Ok(Self::Untyped(text.to_owned())),
            "inout" => return source(value).map(Self::InOut),
            _ => return Err(format!("{kind:?} is none of i32, u32, i64, u64, f32, f64, bytes, out, inout")),
        }))
    }
}

/// Reads what is still to be read; `bytes_max` is what one call may hold.
pub(crate) fn resolve(arguments: &[Argument], bytes_max: u64) -> Result<Vec<Value>, Failure> {
    let inputs = arguments.iter().filter(|argument| from_input(argument)).count();
    if inputs > 1 {
        return Err(Failure::misuse("standard input can be read for one argument only"));
    }
    let resolved = arguments.iter().map(|argument| {
        let kind = match argument {
            Argument::Ready(kind) => kind.clone(),
            Argument::Bytes(source) => Kind::Bytes(read(source, bytes_max)?),
            Argument::InOut(source) => Kind::Inout(read(source, bytes_max)?),
            Argument::Untyped(text) => return Err(Failure::misuse(format!("{text:?} has no type"))),
        };
        Ok(Value { kind: Some(kind) })
    });
    resolved.collect()
}

/// Reads a file of at most `bytes_max` bytes.
pub(crate) fn read_file(path: &PathBuf, bytes_max: u64, limit: &str) -> Result<Bytes, Failure> {
    let failed = |error: io::Error| Failure::local(format!("cannot read {}: {error}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let size_bytes = file.metadata().map_err(failed)?.len();
    let bytes = bounded(file, bytes_max).map_err(failed)?;
    bytes.ok_or_else(|| too_large(&path.display().to_string(), Some(size_bytes), bytes_max, limit))
}

fn read(source: &Source, bytes_max: u64) -> Result<Bytes, Failure> {
    const LIMIT: &str = "call memory";
    match source {
        Source::Here(bytes) => Ok(bytes.clone()),
        Source::File(path) => read_file(path, bytes_max, LIMIT),
        Source::StandardInput => {
            let read = bounded(io::stdin().lock(), bytes_max);
            let read = read.map_err(|error| Failure::local(format!("cannot read standard input: {error}")))?;
            read.ok_or_else(|| too_large("standard input", None, bytes_max, LIMIT))
        }
    }
}

/// None if there is more than `bytes_max`; a file may have no size, or grow while it is read.
fn bounded(from: impl Read, bytes_max: u64) -> io::Result<Option<Bytes>> {
    let mut bytes = Vec::new();
    let read = from.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((read as u64 <= bytes_max).then(|| bytes.into()))
}

fn too_large(name: &str, size_bytes: Option<u64>, bytes_max: u64, limit: &str) -> Failure {
    let size = match size_bytes {
        Some(size_bytes) if size_bytes > bytes_max => format!("{size_bytes} bytes"),
        _ => "more".to_owned(),
    };
    Failure::misuse(format!("{name} has {size}, the daemon takes {bytes_max} bytes ({limit})"))
}

fn from_input(argument: &Argument) -> bool {
    matches!(argument, Argument::Bytes(Source::StandardInput) | Argument::InOut(Source::StandardInput))
}

fn source(text: &str) -> Result<Source, String> {
    if let Some(path) = text.strip_prefix('@') {
        return match path {
            "" => Err("@ needs the name of a file, or - for standard input".into()),
            "-" => Ok(Source::StandardInput),
            _ => Ok(Source::File(path.into())),
        };
    }
    match text.split_once(':') {
        Some(("hex", digits)) => units::parse_hex(digits).map(|bytes| Source::Here(bytes.into())),
        Some(("text", text)) => Ok(Source::Here(Bytes::copy_from_slice(text.as_bytes()))),
        _ => Err("must be @FILE, @-, hex:00ff or text:abc".into()),
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number of this type"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_form_is_understood() {
        let cases = [
            ("i32:-5", Kind::I32(-5)),
            ("u32:0xffffffff", Kind::U32(u32::MAX)),
            ("i64:-5", Kind::I64(-5)),
            ("u64:18446744073709551615", Kind::U64(u64::MAX)),
            ("f32:1.5", Kind::F32(1.5)),
            ("f64:-inf", Kind::F64(f64::NEG_INFINITY)),
            ("out:100", Kind::OutBytes(100)),
        ];
        for (text, kind) in cases {
            assert_eq!(text.parse(), Ok(Argument::Ready(kind)), "{text}");
        }
        let here = |bytes: &'static [u8]| Source::Here(Bytes::from_static(bytes));
        assert_eq!("bytes:hex:00ff".parse(), Ok(Argument::Bytes(here(&[0, 255]))));
        assert_eq!("inout:text:a:b".parse(), Ok(Argument::InOut(here(b"a:b"))));
        assert_eq!("bytes:@-".parse(), Ok(Argument::Bytes(Source::StandardInput)));
        for text in ["7", "", "text:abc", "@a:b"] {
            assert_eq!(text.parse(), Ok(Argument::Untyped(text.to_owned())));
        }
        assert_eq!("inout:@x:y".parse(), Ok(Argument::InOut(Source::File("x:y".into()))));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for text in
            ["u8:7", "u32:-1", "u32:4294967296", "i32:x", "f64:", "out:-1", "bytes:abc", "bytes:@", "bytes:hex:0"]
        {
            assert!(text.parse::<Argument>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_file_is_read_up_to_the_limit_and_not_beyond() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"12345").unwrap();
        let path = file.path().to_owned();
        assert_eq!(read_file(&path, 5, "limit").unwrap(), "12345");
        let refused = read_file(&path, 4, "limit").unwrap_err().to_string();
        assert!(refused.contains("has 5 bytes, the daemon takes 4 bytes (limit)"), "{refused}");
        // A device has no size.
        let refused = read_file(&"/dev/zero".into(), 4, "limit").unwrap_err().to_string();
        assert!(refused.contains("has more"), "{refused}");
    }

    #[test]
    fn standard_input_is_given_to_one_argument_only() {
        let twice = [Argument::Bytes(Source::StandardInput), Argument::InOut(Source::StandardInput)];
        assert!(resolve(&twice, 10).unwrap_err().to_string().contains("one argument only"));
    }
}
