//! Declarations of functions as text.
//!
//! ```text
//! declaration = result name "(" [ "void" | parameter { "," parameter } ] ")" [ ";" ]
//! result      = "void" | number
//! parameter   = ( number | "bytes" | "out" | "inout" | "pointer" ) [ name ]
//!             | word { word } "*" { "*" | word }          a pointer of C, whatever it points to
//! number      = "i32" | "u32" | "i64" | "u64" | "f32" | "f64", or a word of C for one of them: NUMBERS
//! ```
//!
//! Words are separated by white space. A name is any word without `( ) * , ;`, so that those that compilers make up can be
//! declared. Types of C that are narrower than 32 bits are not taken: what is above them in a register is not defined.

use super::error::shown;
use super::signature::{Number, Parameter, Signature, TooManyParameters};

/// Bytes of a declaration at most: a name of the longest that a symbol may have, and as much again for its types.
pub const DECLARATION_MAX_BYTES: usize = 2048;

/// What separates words beside white space.
const MARKS: [char; 5] = ['(', ')', '*', ',', ';'];

/// Words of C for numbers, on x86-64 Linux.
const NUMBERS: [(&str, Number); 25] = [
    ("int", Number::I32),
    ("signed", Number::I32),
    ("signed int", Number::I32),
    ("int32_t", Number::I32),
    ("unsigned", Number::U32),
    ("unsigned int", Number::U32),
    ("uint32_t", Number::U32),
    ("long", Number::I64),
    ("long int", Number::I64),
    ("signed long", Number::I64),
    ("long long", Number::I64),
    ("long long int", Number::I64),
    ("int64_t", Number::I64),
    ("ssize_t", Number::I64),
    ("ptrdiff_t", Number::I64),
    ("intptr_t", Number::I64),
    ("unsigned long", Number::U64),
    ("unsigned long int", Number::U64),
    ("unsigned long long", Number::U64),
    ("unsigned long long int", Number::U64),
    ("uint64_t", Number::U64),
    ("size_t", Number::U64),
    ("uintptr_t", Number::U64),
    ("float", Number::F32),
    ("double", Number::F64),
];

/// Types of C that a register does not hold in one agreed way.
const NARROW: [&str; 14] = [
    "char",
    "signed char",
    "unsigned char",
    "short",
    "short int",
    "signed short",
    "unsigned short",
    "unsigned short int",
    "int8_t",
    "uint8_t",
    "int16_t",
    "uint16_t",
    "bool",
    "_Bool",
];

/// Why a text is no declaration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at_byte}; a declaration looks like: i32 add(i32, bytes)")]
pub struct DeclarationError {
    /// What is wrong.
    pub what: String,
    /// Bytes from the start of the text.
    pub at_byte: usize,
}

/// Reads the declaration of one function; answers its name too.
///
/// # Errors
/// [`DeclarationError`].
pub fn parse(text: &str) -> Result<(&str, Signature), DeclarationError> {
    if text.len() > DECLARATION_MAX_BYTES {
        let what =
            format!("{} bytes are more than the {DECLARATION_MAX_BYTES} that a declaration may have", text.len());
        return Err(DeclarationError { what, at_byte: DECLARATION_MAX_BYTES });
    }
    let wrong = |what: &str, at_byte| DeclarationError { what: what.to_owned(), at_byte };
    let open = text.find('(').ok_or_else(|| wrong("no ( follows", text.len()))?;
    let body = text[open + 1..].trim_end().trim_end_matches(';').trim_end();
    let Some(list) = body.strip_suffix(')') else {
        return Err(wrong("no ) ends the parameters", open + 1 + body.len()));
    };
    if let Some(at) = list.find(['(', ')', ';']) {
        return Err(wrong("a function as a parameter is not taken: declare it as pointer", open + 1 + at));
    }
    let (name, result) = head(&text[..open])?;
    let parameters = parameters(list, open + 1)?;
    let many = |error: TooManyParameters| wrong(&error.to_string(), open + 1);
    Ok((name, Signature::new(result, &parameters).map_err(many)?))
}

/// What stands before the parameters.
fn head(text: &str) -> Result<(&str, Option<Number>), DeclarationError> {
    let wrong = |what: String| DeclarationError { what, at_byte: 0 };
    let words = words(text);
    if words.contains(&"*") {
        return Err(wrong("a pointer as result is not taken: declare u64 for the address".to_owned()));
    }
    match words.split_last() {
        Some((name, [])) if !name.contains(MARKS) => Err(wrong("a result and a name must stand before (".to_owned())),
        Some((name, ["void"])) if !name.contains(MARKS) => Ok((name, None)),
        Some((name, of_type)) if !name.contains(MARKS) => {
            let number = number(of_type).ok_or_else(|| wrong(no_number(of_type)))?;
            Ok((name, Some(number)))
        }
        _ => Err(wrong("a result and a name must stand before (".to_owned())),
    }
}

fn parameters(list: &str, at_byte: usize) -> Result<Vec<Parameter>, DeclarationError> {
    let alone = words(list);
    if alone.is_empty() || alone == ["void"] {
        return Ok(Vec::new());
    }
    let mut at_byte = at_byte;
    let mut parameters = Vec::new();
    for text in list.split(',') {
        let parameter = parameter(&words(text)).map_err(|what| DeclarationError { what, at_byte })?;
        parameters.push(parameter);
        at_byte += text.len() + 1;
    }
    Ok(parameters)
}

fn parameter(words: &[&str]) -> Result<Parameter, String> {
    if let Some(star) = words.iter().position(|word| *word == "*") {
        return if star > 0 { Ok(Parameter::Pointer) } else { Err("nothing stands before *".to_owned()) };
    }
    let whole = typed(words);
    // The last word may be the name of the parameter.
    let named = || words.split_last().and_then(|(_, of_type)| typed(of_type));
    whole.or_else(named).ok_or_else(|| no_number(words))
}

fn typed(words: &[&str]) -> Option<Parameter> {
    let buffer = |word: &&str| Parameter::BUFFERS.into_iter().find(|it| it.as_str() == *word);
    match words {
        [word] => buffer(word).or_else(|| number(words).map(Parameter::Number)),
        _ => number(words).map(Parameter::Number),
    }
}

fn number(words: &[&str]) -> Option<Number> {
    let spelled = without_const(words);
    let own = Number::ALL.into_iter().find(|it| it.as_str() == spelled);
    own.or_else(|| NUMBERS.into_iter().find(|(word, _)| *word == spelled).map(|(_, number)| number))
}

fn without_const(words: &[&str]) -> String {
    words.iter().filter(|word| **word != "const").copied().collect::<Vec<_>>().join(" ")
}

fn no_number(words: &[&str]) -> String {
    let spelled = without_const(words);
    let is_narrow = |of: &str| spelled == of || spelled.strip_prefix(of).is_some_and(|name| name.starts_with(' '));
    if NARROW.into_iter().any(is_narrow) {
        return format!(
            "{} has fewer than 32 bits, which are not passed: let the function take 32",
            shown(spelled.as_bytes())
        );
    }
    if spelled.is_empty() {
        return "a type is missing".to_owned();
    }
    format!("{} is no type that is passed", shown(spelled.as_bytes()))
}

/// Words, and marks as words of their own.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for run in text.split_whitespace() {
        words.extend(run.split_inclusive(MARKS).flat_map(|it| match it.strip_suffix(MARKS) {
            Some(word) => [word, &it[word.len()..]],
            None => [it, ""],
        }));
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is understood, in the words of the API.
    fn read(text: &str) -> String {
        match parse(text) {
            Ok((name, signature)) => signature.declaration(name).to_string(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn words_of_the_api_are_read_as_they_are_written() {
        for text in ["i32 add(i32, i32)", "void f(bytes, u64)", "f64 g()", "u32 h(out, inout, f32, pointer, i64)"] {
            assert_eq!(read(text), text);
        }
        assert_eq!(read("  i32\tadd ( i32 a ,i32 b ) ;\n"), "i32 add(i32, i32)");
        assert_eq!(read("void f(void)"), "void f()");
        assert_eq!(read("u32 _ZN3foo3barE.part.0$x@V(u32)"), "u32 _ZN3foo3barE.part.0$x@V(u32)");
    }

    #[test]
    fn prototypes_of_c_are_read_where_they_have_one_meaning() {
        let cases = [
            ("uint32_t crc32(uint32_t crc, const uint8_t *data, size_t n);", "u32 crc32(u32, pointer, u64)"),
            (
                "int compress(unsigned char*, size_t * restrict, struct x const *p, long)",
                "i32 compress(pointer, pointer, pointer, i64)",
            ),
            ("double f(unsigned x, unsigned long long int y, const float z)", "f64 f(u32, u64, f32)"),
            ("unsigned long f(signed, char **argv)", "u64 f(i32, pointer)"),
        ];
        for (text, meant) in cases {
            assert_eq!(read(text), meant, "{text}");
        }
    }

    #[test]
    fn what_is_not_clear_is_refused_with_the_place_and_an_example() {
        let cases = [
            ("", "no ( follows at byte 0"),
            ("i32 add", "no ( follows at byte 7"),
            ("i32 add(i32", "no ) ends"),
            ("add(i32)", "a result and a name"),
            ("(i32)", "a result and a name"),
            ("i32 (i32)", "a result and a name"),
            ("char *f(void)", "a pointer as result"),
            (
                "int f(int, short)",
                "short has fewer than 32 bits, which are not passed: let the function take 32 at byte 10",
            ),
            ("int f(unsigned char c)", "unsigned char c has fewer"),
            ("int f(struct x)", "struct x is no type"),
            ("int f(void, int)", "void is no type that is passed at byte 6"),
            ("int f(int,)", "a type is missing at byte 10"),
            ("int f(*)", "nothing stands before *"),
            ("int f(int (*)(int))", "a function as a parameter"),
            ("int f(int) int g(int)", "a function as a parameter"),
            ("long double f(void)", "long double is no type"),
            (
                "int f(i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32)",
                "17 parameters",
            ),
        ];
        for (text, needle) in cases {
            let found = read(text);
            assert!(found.starts_with("error: ") && found.contains(needle), "{text} should say {needle}: {found}");
        }
        let long = format!("i32 {}(i32)", "x".repeat(DECLARATION_MAX_BYTES));
        assert!(read(&long).contains("2057 bytes are more than the 2048"), "{}", read(&long));
    }

    fn signatures() -> impl Strategy<Value = Signature> {
        let number = || prop::sample::select(Number::ALL.to_vec());
        let parameter =
            prop_oneof![number().prop_map(Parameter::Number), prop::sample::select(Parameter::BUFFERS.to_vec())];
        let parameters = prop::collection::vec(parameter, 0..=super::super::signature::PARAMETERS_MAX);
        (prop::option::of(number()), parameters).prop_map(|(result, all)| Signature::new(result, &all).unwrap())
    }

    fn config() -> ProptestConfig {
        let cases = if cfg!(miri) { 16 } else { ProptestConfig::default().cases.max(1000) };
        ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn every_signature_is_read_back_from_its_text(signature in signatures(), name in "[a-zA-Z_.$@0-9]{1,40}") {
            let text = signature.declaration(&name).to_string();
            prop_assert_eq!(parse(&text), Ok((&*name, signature)));
        }

        #[test]
        fn any_text_is_read_or_refused_in_a_line_that_is_not_long(text in "[ iu3264fbytesouin(),;*\\t\u{fc}\n]{0,80}") {
            match parse(&text) {
                Ok((name, signature)) => {
                    prop_assert!(!name.is_empty() && signature.parameters().len() <= super::super::signature::PARAMETERS_MAX);
                }
                Err(error) => {
                    prop_assert!(error.at_byte <= text.len(), "{}", error);
                    prop_assert!(error.to_string().len() < 600 && !error.to_string().contains('\n'), "{}", error);
                }
            }
        }
    }
}
