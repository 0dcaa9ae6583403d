//! Declared signatures: of an install, and as what calls are held to.

use super::{convert, failure::Failure};
use crate::{
    code::{self, Image, Number, PARAMETERS_MAX, Parameter, Signature, Undeclarable},
    exec::{Arg, ResultType},
    proto::{self, signature_declaration::Form},
};

/// Declarations of one install: the bound of exports, of which each has one at most.
const DECLARATIONS_MAX: usize = 4096;
/// Bytes of a symbol's name: the bound of exports.
const SYMBOL_MAX_BYTES: usize = 1024;

/// A declaration that was read.
pub(super) struct Declaration {
    pub(super) symbol: String,
    pub(super) signature: Signature,
}

/// Reads the declarations of an install.
///
/// # Errors
/// INVALID_FIELD.
pub(super) fn declarations(wire: &[proto::SignatureDeclaration]) -> Result<Vec<Declaration>, Failure> {
    if wire.len() > DECLARATIONS_MAX {
        return Err(Failure::field("signatures", format!("are {}, at most {DECLARATIONS_MAX}", wire.len())));
    }
    let read = |(at, it): (usize, &proto::SignatureDeclaration)| {
        declaration(it)
            .map_err(|what| Failure::field("signatures", format!("signature {at}: {what}")).with("index", at))
    };
    wire.iter().enumerate().map(read).collect()
}

fn declaration(wire: &proto::SignatureDeclaration) -> Result<Declaration, String> {
    let (symbol, signature) = match &wire.form {
        Some(Form::Text(_)) if !wire.symbol.is_empty() => {
            return Err("symbol must be empty: the text has the name".to_owned());
        }
        Some(Form::Text(text)) => code::parse_declaration(text).map_err(|error| error.to_string())?,
        Some(Form::Signature(parts)) => (&*wire.symbol, from_parts(parts)?),
        None => return Err("give a text, or a symbol with a signature".to_owned()),
    };
    if !(1..=SYMBOL_MAX_BYTES).contains(&symbol.len()) {
        return Err(format!("the symbol must have 1 to {SYMBOL_MAX_BYTES} bytes"));
    }
    Ok(Declaration { symbol: symbol.to_owned(), signature })
}

fn from_parts(wire: &proto::Signature) -> Result<Signature, String> {
    let result = convert::result_type(wire.result).map_err(|failure| failure.message)?;
    if wire.parameters.len() > PARAMETERS_MAX {
        return Err(format!("it has {} parameters, at most {PARAMETERS_MAX} can be passed", wire.parameters.len()));
    }
    let unknown = |at: usize| format!("parameter {at} is of no type that this version knows");
    let parameters = wire.parameters.iter().enumerate().map(|(at, it)| parameter(*it).ok_or_else(|| unknown(at)));
    Signature::new(number(result), &parameters.collect::<Result<Vec<_>, _>>()?).map_err(|error| error.to_string())
}

/// Attaches declarations to the symbols of an image; tells each that cannot be.
pub(super) fn declare(image: &mut Image, declarations: &[Declaration]) -> Vec<(String, Failure)> {
    let mut failures = Vec::new();
    // Gone through once: an image may have very many symbols.
    let mut exported = None;
    for Declaration { symbol, signature } in declarations {
        if let Err(why) = image.declare(symbol, *signature) {
            let exported: &String = exported.get_or_insert_with(|| exported_functions(image));
            failures.push((symbol.clone(), undeclarable(exported, symbol, why)));
        }
    }
    failures
}

fn exported_functions(image: &Image) -> String {
    /// Functions that are named: enough to see a slip, few enough for a line.
    const OFFERED_MAX: usize = 8;
    let functions = image.symbols().iter().filter(|it| it.is_function).take(OFFERED_MAX);
    functions.map(|it| shown(&it.name)).collect::<Vec<_>>().join(", ")
}

fn undeclarable(exported: &str, symbol: &str, why: Undeclarable) -> Failure {
    let shown = shown(symbol);
    let what = match why {
        Undeclarable::Absent => format!("{shown} is not exported; exported are {exported}"),
        Undeclarable::NoFunction => format!("{shown} is no function"),
        Undeclarable::Twice => format!("{shown} is declared twice"),
    };
    Failure::field("signatures", what).with("symbol", shown)
}

/// A name for a message: those of the usual length are whole.
fn shown(name: &str) -> String {
    cut(name).escape_debug().to_string()
}

fn cut(name: &str) -> &str {
    const SHOWN_CHARS: usize = 96;
    name.char_indices().nth(SHOWN_CHARS).map_or(name, |(end, _)| &name[..end])
}

/// Holds a call to its function's declared signature; answers the type of the result.
///
/// # Errors
/// INVALID_FIELD, with the symbol, its signature and the position.
pub(super) fn check(
    symbol: &str,
    declared: Option<&Signature>,
    args: &[Arg],
    result: i32,
) -> Result<ResultType, Failure> {
    let asked = convert::result_type(result)?;
    let Some(declared) = declared else { return Ok(asked) };
    let differs = |field, what: String| {
        let declaration = declared.declaration(cut(symbol));
        let message = format!("{what}; the declared signature is {declaration}");
        Failure::field(field, message).with("symbol", shown(symbol)).with("signature", declaration)
    };
    let parameters = declared.parameters();
    if let Some(at) = parameters.iter().zip(args).position(|(parameter, arg)| !takes(*parameter, arg)) {
        let (wanted, given) = (parameters[at].as_str(), word(&args[at]));
        let what = format!("argument {at} of {} is {given}, must be {wanted}", shown(symbol));
        return Err(differs("arguments", what).with("position", at));
    }
    if parameters.len() != args.len() {
        let (wanted, given) = (parameters.len(), args.len());
        let what = format!("{} takes {wanted} arguments, {given} are given", shown(symbol));
        return Err(differs("arguments", what).with("position", wanted.min(given)));
    }
    let wanted = declared.result().map_or(ResultType::Void, result_type);
    if result != proto::ResultType::Unspecified as i32 && asked != wanted {
        let (wanted, asked) =
            (declared.result().map_or("void", Number::as_str), number(asked).map_or("void", Number::as_str));
        return Err(differs("result", format!("of {} is {wanted}, {asked} is asked for", shown(symbol))));
    }
    Ok(wanted)
}

fn takes(parameter: Parameter, arg: &Arg) -> bool {
    match parameter {
        Parameter::Number(number) => word(arg) == number.as_str(),
        Parameter::Bytes => matches!(arg, Arg::Bytes(_)),
        Parameter::Out => matches!(arg, Arg::Out(_)),
        Parameter::InOut => matches!(arg, Arg::InOut(_)),
        Parameter::Pointer => matches!(arg, Arg::Bytes(_) | Arg::Out(_) | Arg::InOut(_) | Arg::U64(_)),
    }
}

fn word(arg: &Arg) -> &'static str {
    match arg {
        Arg::I32(_) => "i32",
        Arg::U32(_) => "u32",
        Arg::I64(_) => "i64",
        Arg::U64(_) => "u64",
        Arg::F32(_) => "f32",
        Arg::F64(_) => "f64",
        Arg::Bytes(_) => "bytes",
        Arg::Out(_) => "out",
        Arg::InOut(_) => "inout",
    }
}

/// As an answer shows it.
pub(super) fn to_proto(signature: &Signature) -> proto::Signature {
    use proto::ParameterType as Wire;
    let parameter = |it: &Parameter| match it {
        Parameter::Number(Number::I32) => Wire::I32,
        Parameter::Number(Number::U32) => Wire::U32,
        Parameter::Number(Number::I64) => Wire::I64,
        Parameter::Number(Number::U64) => Wire::U64,
        Parameter::Number(Number::F32) => Wire::F32,
        Parameter::Number(Number::F64) => Wire::F64,
        Parameter::Bytes => Wire::Bytes,
        Parameter::Out => Wire::Out,
        Parameter::InOut => Wire::Inout,
        Parameter::Pointer => Wire::Pointer,
    };
    let result = match signature.result() {
        None => proto::ResultType::Void,
        Some(Number::I32) => proto::ResultType::I32,
        Some(Number::U32) => proto::ResultType::U32,
        Some(Number::I64) => proto::ResultType::I64,
        Some(Number::U64) => proto::ResultType::U64,
        Some(Number::F32) => proto::ResultType::F32,
        Some(Number::F64) => proto::ResultType::F64,
    };
    let parameters = signature.parameters().iter().map(|it| parameter(it).into()).collect();
    proto::Signature { result: result.into(), parameters }
}

fn parameter(wire: i32) -> Option<Parameter> {
    use proto::ParameterType as Wire;
    Some(match Wire::try_from(wire).ok()? {
        Wire::Unspecified => return None,
        Wire::I32 => Parameter::Number(Number::I32),
        Wire::U32 => Parameter::Number(Number::U32),
        Wire::I64 => Parameter::Number(Number::I64),
        Wire::U64 => Parameter::Number(Number::U64),
        Wire::F32 => Parameter::Number(Number::F32),
        Wire::F64 => Parameter::Number(Number::F64),
        Wire::Bytes => Parameter::Bytes,
        Wire::Out => Parameter::Out,
        Wire::Inout => Parameter::InOut,
        Wire::Pointer => Parameter::Pointer,
    })
}

fn result_type(number: Number) -> ResultType {
    match number {
        Number::I32 => ResultType::I32,
        Number::U32 => ResultType::U32,
        Number::I64 => ResultType::I64,
        Number::U64 => ResultType::U64,
        Number::F32 => ResultType::F32,
        Number::F64 => ResultType::F64,
    }
}

fn number(result: ResultType) -> Option<Number> {
    Some(match result {
        ResultType::Void => return None,
        ResultType::I32 => Number::I32,
        ResultType::U32 => Number::U32,
        ResultType::I64 => Number::I64,
        ResultType::U64 => Number::U64,
        ResultType::F32 => Number::F32,
        ResultType::F64 => Number::F64,
    })
}
