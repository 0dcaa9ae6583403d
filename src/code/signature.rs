//! What a symbol takes and returns, as its installer declares it.

use std::fmt;

/// Parameters of a signature at most: what the API passes to a call.
pub const PARAMETERS_MAX: usize = 16;

/// Type of a number that is passed in a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Number {
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

/// Type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter {
    /// A number.
    Number(Number),
    /// A pointer to bytes that come with the call and do not go back.
    Bytes,
    /// A pointer to zeroed bytes that go back.
    Out,
    /// A pointer to bytes that come with the call and go back.
    InOut,
    /// A pointer of C, which says none of this: one of the three, or an address as a number, such as 0.
    Pointer,
}

/// Types of a function's result and parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    result: Option<Number>,
    /// Those beyond `count` are not looked at, and all the same, so that equal signatures are equal.
    parameters: [Parameter; PARAMETERS_MAX],
    count: u8,
}

/// More than [`PARAMETERS_MAX`] parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has {given} parameters, at most {PARAMETERS_MAX} can be passed")]
pub struct TooManyParameters {
    /// How many it has.
    pub given: usize,
}

impl Signature {
    /// A signature; no `result` is void.
    ///
    /// # Errors
    /// [`TooManyParameters`].
    pub fn new(result: Option<Number>, parameters: &[Parameter]) -> Result<Self, TooManyParameters> {
        let mut all = [Parameter::Pointer; PARAMETERS_MAX];
        let given = parameters.len();
        all.get_mut(..given).ok_or(TooManyParameters { given })?.copy_from_slice(parameters);
        Ok(Self { result, parameters: all, count: given as u8 })
    }

    /// What it returns; `None` for void.
    pub fn result(&self) -> Option<Number> {
        self.result
    }

    /// What it takes, in the order of C.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters[..usize::from(self.count)]
    }

    /// As a declaration of `symbol`, such as `i32 add(i32, i32)`.
    pub fn declaration<'a>(&'a self, symbol: &'a str) -> impl fmt::Display + 'a {
        Declared { signature: self, symbol }
    }
}

struct Declared<'a> {
    signature: &'a Signature,
    symbol: &'a str,
}

impl fmt::Display for Declared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = self.signature.result.map_or("void", Number::as_str);
        let parameters: Vec<_> = self.signature.parameters().iter().map(|it| it.as_str()).collect();
        write!(f, "{result} {}({})", self.symbol.escape_debug(), parameters.join(", "))
    }
}

impl Number {
    /// All of them.
    pub const ALL: [Number; 6] = [Self::I32, Self::U32, Self::I64, Self::U64, Self::F32, Self::F64];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

impl Parameter {
    /// Those that are no numbers.
    pub const BUFFERS: [Parameter; 4] = [Self::Bytes, Self::Out, Self::InOut, Self::Pointer];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Number(number) => number.as_str(),
            Self::Bytes => "bytes",
            Self::Out => "out",
            Self::InOut => "inout",
            Self::Pointer => "pointer",
        }
    }
}
