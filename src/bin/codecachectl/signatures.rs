//! Declared signatures on the command line: those that are given, and what they say of arguments without a type.

use std::{fs, path::PathBuf};

use codecached::proto::{ParameterType, Signature, SignatureDeclaration, signature_declaration::Form};

use crate::{context::Context, failure::Failure, symbols, value::Argument};

/// Bytes of a file of declarations at most: as many of usual length as an install may have.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Those of the command line, then those of the files: one a line, without empty ones and comments.
pub(crate) fn read(given: &[String], files: &[PathBuf]) -> Result<Vec<SignatureDeclaration>, Failure> {
    let mut texts = given.to_vec();
    for path in files {
        let failed = |why: String| Failure::local(format!("cannot read {}: {why}", path.display()));
        let size_bytes = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
        if size_bytes > FILE_MAX_BYTES {
            return Err(failed(format!("it has {size_bytes} bytes, at most {FILE_MAX_BYTES} are declarations")));
        }
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        texts.extend(lines(&text));
    }
    let declaration = |text| SignatureDeclaration { form: Some(Form::Text(text)), ..SignatureDeclaration::default() };
    Ok(texts.into_iter().map(declaration).collect())
}

fn lines(text: &str) -> impl Iterator<Item = String> {
    let is_comment = |line: &&str| line.starts_with('#') || line.starts_with("//");
    let lines = text.lines().map(str::trim).filter(move |line| !line.is_empty() && !is_comment(line));
    lines.map(str::to_owned)
}

/// Gives arguments without a type that of the function's declared signature.
pub(crate) async fn typed(
    context: &Context,
    key: &str,
    symbol: &str,
    arguments: &[Argument],
) -> Result<Vec<Argument>, Failure> {
    let Some(at) = arguments.iter().position(|argument| matches!(argument, Argument::Untyped(_))) else {
        return Ok(arguments.to_vec());
    };
    let entry = symbols::entry(context, key).await?;
    let found = entry.symbols.iter().find(|it| it.name == symbol);
    let Some(found) = found else { return Err(Failure::no_symbol(symbol, key)) };
    let Some(signature) = &found.signature else {
        return Err(Failure::misuse(format!(
            "argument {at} has no type and {symbol:?} has no declared signature: write TYPE:VALUE, such as u32:7"
        )));
    };
    let give = |(at, argument): (usize, &Argument)| {
        give(argument, parameter(signature, at)).map_err(|why| Failure::misuse(format!("argument {at}: {why}")))
    };
    arguments.iter().enumerate().map(give).collect()
}

fn parameter(signature: &Signature, at: usize) -> Option<ParameterType> {
    signature.parameters.get(at).and_then(|it| ParameterType::try_from(*it).ok())
}

fn give(argument: &Argument, parameter: Option<ParameterType>) -> Result<Argument, String> {
    let Argument::Untyped(text) = argument else { return Ok(argument.clone()) };
    let prefix = match parameter {
        None => return Err(format!("{text:?} is one more than the function takes")),
        Some(ParameterType::Unspecified) => return Err("its declared type is not known here".into()),
        Some(ParameterType::Pointer) if !text.contains(':') && !text.starts_with('@') => {
            return Err(format!("{text:?} is for a pointer: write bytes:, inout:, out: or u64: before it"));
        }
        // What goes in is the usual use; inout: in front asks for more.
        Some(ParameterType::Bytes | ParameterType::Pointer) => "bytes",
        Some(ParameterType::I32) => "i32",
        Some(ParameterType::U32) => "u32",
        Some(ParameterType::I64) => "i64",
        Some(ParameterType::U64) => "u64",
        Some(ParameterType::F32) => "f32",
        Some(ParameterType::F64) => "f64",
        Some(ParameterType::Out) => "out",
        Some(ParameterType::Inout) => "inout",
    };
    format!("{prefix}:{text}").parse().map_err(|why| format!("{text:?} for {prefix}: {why}"))
}

#[cfg(test)]
mod tests {
    use codecached::proto::value::Kind;

    use super::*;

    #[test]
    fn a_file_has_one_declaration_a_line_and_comments() {
        let all: Vec<_> = lines("# c\n\n  i32 f(i32)\n// c\nvoid g()\n").collect();
        assert_eq!(all, ["i32 f(i32)", "void g()"]);
    }

    #[test]
    fn an_argument_without_a_type_takes_that_of_its_parameter() {
        let untyped = |text: &str| Argument::Untyped(text.to_owned());
        assert_eq!(give(&untyped("-7"), Some(ParameterType::I32)), Ok(Argument::Ready(Kind::I32(-7))));
        assert_eq!(give(&untyped("8"), Some(ParameterType::Out)), Ok(Argument::Ready(Kind::OutBytes(8))));
        assert_eq!(give(&untyped("text:a"), Some(ParameterType::Pointer)), "bytes:text:a".parse());
        assert_eq!(give(&untyped("@x"), Some(ParameterType::Inout)), "inout:@x".parse());
        let typed: Argument = "u32:7".parse().unwrap();
        assert_eq!(give(&typed, Some(ParameterType::F64)), Ok(typed.clone()));
        for (text, parameter, needle) in [
            ("x", Some(ParameterType::I32), "\"x\" for i32"),
            ("1", Some(ParameterType::Pointer), "write bytes:"),
            ("1", None, "one more than"),
            ("abc", Some(ParameterType::Bytes), "must be @FILE"),
        ] {
            let why = give(&untyped(text), parameter).unwrap_err();
            assert!(why.contains(needle), "{why}");
        }
    }
}
