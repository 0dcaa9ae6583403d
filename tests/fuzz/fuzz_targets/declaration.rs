//! Any text as a declaration: an error that shows a place in it, or a signature that is read back from its own text.
#![no_main]

use codecached::code::{PARAMETERS_MAX, parse_declaration};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse_declaration(text) {
        Ok((name, signature)) => {
            assert!(!name.is_empty() && signature.parameters().len() <= PARAMETERS_MAX);
            let again = signature.declaration(name).to_string();
            // A name that is shown otherwise than it is written is another one.
            if name.escape_debug().eq(name.chars()) && again.len() <= codecached::code::DECLARATION_MAX_BYTES {
                assert_eq!(parse_declaration(&again), Ok((name, signature)));
            }
        }
        Err(error) => assert!(error.at_byte <= text.len() && !error.to_string().contains('\n')),
    }
});
