//! The repository holds itself to its own rules: direction of imports, places of `unsafe`, lengths, loose ends.

#![allow(clippy::unwrap_used, reason = "a check that cannot read its input must fail")]

#[path = "tidy/checks.rs"]
mod checks;
#[path = "tidy/source.rs"]
mod source;

use std::{fs, path::Path};

use checks::*;
use source::Source;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust() -> Vec<Source> {
    let found: Vec<Source> = ["src", "tests", "examples", "benches", "build.rs"]
        .into_iter()
        .flat_map(|top| Source::tree(root(), top, &[".rs"]))
        .collect();
    assert!(found.len() > 50, "only {} files were found: the checks would pass for nothing", found.len());
    found
}

fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// Findings for files that do not exist.
fn found(check: fn(&[Source]) -> Vec<String>, files: &[(&str, &str)]) -> Vec<String> {
    check(&files.iter().map(|(path, text)| Source::new(path, text)).collect::<Vec<_>>())
}

#[test]
fn rooms_import_in_one_direction() {
    none(imports(&rust()));
}

#[test]
fn unsafe_stands_only_in_the_listed_files() {
    none(unsafe_files(&rust(), UNSAFE_FILES));
}

#[test]
fn no_file_is_too_long() {
    none(file_lengths(&rust()));
}

#[test]
fn no_function_is_too_long() {
    none(function_lengths(&rust()));
}

#[test]
fn nothing_is_marked_for_later() {
    let endings = [
        ".rs", ".toml", ".proto", ".md", ".c", ".S", "/run", "/deep", "/deploy", "/steps", ".py", ".yml", ".yaml",
        ".json",
    ];
    none(marks(&Source::tree(root(), ".", &endings)));
}

#[test]
fn nothing_that_is_shipped_unwraps() {
    none(unwraps(&rust()));
}

#[test]
fn the_changelog_has_a_place_for_what_comes_next() {
    none(changelog(&fs::read_to_string(root().join("CHANGELOG.md")).unwrap()));
}

#[test]
fn every_key_of_the_shipped_configuration_is_documented() {
    none(config_comments(&fs::read_to_string(root().join("config.toml")).unwrap()));
}

#[test]
fn an_import_against_the_direction_is_found_in_every_form() {
    for text in [
        "use crate::cache::Cache;",
        "use crate::{exec, code::Image};",
        "use crate::{\n    code::{Image, Limits},\n    cache,\n};",
        "fn f() { crate::service::run() }",
        "use codecached::daemon;",
    ] {
        assert_eq!(found(imports, &[("src/code/image.rs", text)]).len(), 1, "{text}");
    }
    assert_eq!(found(imports, &[("src/arena/a.rs", "use tokio::sync::Mutex;")]).len(), 1);
    assert_eq!(found(imports, &[("src/exec/a.rs", "use super::super::arena;")]).len(), 1);
    assert_eq!(found(imports, &[("src/attic/a.rs", "")]).len(), 1);
    assert_eq!(found(imports, &[("src/bin/codecachectl/a.rs", "use codecached::cache;")]).len(), 1);
    let place = &found(imports, &[("src/code/a.rs", "\n\nuse crate::exec;")])[0];
    assert!(place.starts_with("src/code/a.rs:3: code must not import exec"), "{place}");
}

#[test]
fn an_import_in_the_direction_in_a_comment_in_a_literal_or_in_a_test_is_let_through() {
    for text in [
        "use crate::{arena, code::{self, Image}};",
        "// use crate::exec;\n/* crate::exec /* nested */ crate::exec */",
        "const A: &str = \"crate::exec\"; const B: &str = r#\"\" crate::exec\"#; const C: char = '\"';",
        "#[cfg(test)]\nmod tests {\n    use crate::exec;\n}",
        "#[cfg(all(test, unix))]\n#[allow(x)]\nuse crate::exec::{self};",
        "fn f<'a>(x: &'a str) -> &'a str { x }",
        "mod tokio_like { fn not_tokio::x() {} }",
    ] {
        assert_eq!(found(imports, &[("src/cache/a.rs", text)]), Vec::<String>::new(), "{text}");
    }
    let declared = (
        "src/cache/mod.rs",
        "#[cfg(test)]\nmod tests;\n#[cfg(test)]\npub(crate) mod testing;\n\
         #[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod other;",
    );
    for path in ["src/cache/tests.rs", "src/cache/testing/mod.rs", "src/cache/tests/model.rs", "src/cache/b_tests.rs"] {
        assert_eq!(found(imports, &[declared, (path, "use crate::exec;")]), Vec::<String>::new(), "{path}");
        assert_eq!(
            found(imports, &[(path, "use crate::exec;")]).len(),
            1,
            "{path} is shipped if nobody says otherwise"
        );
    }
}

#[test]
fn unsafe_in_another_file_and_a_name_that_needs_none_are_found() {
    let files = |text| [Source::new("src/a.rs", text), Source::new("src/b.rs", "unsafe fn f() {}")];
    assert_eq!(unsafe_files(&files("fn f() { unsafe { g() } }"), &["src/b.rs"]).len(), 1);
    assert_eq!(unsafe_files(&files("#![allow(unsafe_code)] // unsafe"), &["src/b.rs"]), Vec::<String>::new());
    assert_eq!(unsafe_files(&files(""), &["src/a.rs", "src/b.rs"]).len(), 1);
    assert_eq!(unsafe_files(&files(""), &["src/b.rs", "src/gone.rs"]).len(), 1);
}

#[test]
fn a_file_of_501_lines_is_found_and_one_of_500_is_not() {
    assert_eq!(found(file_lengths, &[("src/a.rs", &"\n".repeat(500))]), Vec::<String>::new());
    assert_eq!(found(file_lengths, &[("src/a.rs", &"\n".repeat(501))]).len(), 1);
}

#[test]
fn a_function_of_71_lines_is_found_and_one_of_70_is_not() {
    let function = |lines: usize| {
        format!("fn f<'a, T>(x: [u8; 2], y: fn(u8)) -> T\nwhere\n    T: Fn() -> (),\n{{{}}}", "\n".repeat(lines - 4))
    };
    assert_eq!(found(function_lengths, &[("src/a.rs", &function(70))]), Vec::<String>::new());
    assert_eq!(found(function_lengths, &[("src/a.rs", &function(71))]).len(), 1);
    let short = format!(
        "trait T {{ fn f(); }}\ntype F = fn(u8) -> u8;\nconst C: &[fn()] = &[];\n{}mod m {{}}",
        "\n".repeat(99)
    );
    assert_eq!(found(function_lengths, &[("src/a.rs", &short)]), Vec::<String>::new());
    let braces = format!("fn f() {{ let _ = ('{{', \"{{\", b'\\'', r\"{{\"); }} // {{\n{}fn g() {{}}", "\n".repeat(99));
    assert_eq!(found(function_lengths, &[("src/a.rs", &braces)]), Vec::<String>::new());
}

#[test]
fn marks_are_found_in_comments_and_only_as_whole_words() {
    for mark in [["FIX", "ME"].concat(), ["TO", "DO"].concat(), ["XX", "X"].concat()] {
        assert_eq!(found(marks, &[("src/a.rs", &format!("// {mark}: later"))]).len(), 1);
        assert_eq!(found(marks, &[("src/a.rs", &format!("// a{mark} {mark}X {}", mark.to_lowercase()))]).len(), 0);
    }
}

#[test]
fn an_unwrap_is_found_in_shipped_code_only() {
    assert_eq!(found(unwraps, &[("src/a.rs", "fn f() { g().unwrap() }")]).len(), 1);
    assert_eq!(found(unwraps, &[("src/a.rs", "#[cfg(test)]\nmod tests { fn f() { g().unwrap() } }")]).len(), 0);
    assert_eq!(found(unwraps, &[("src/a.rs", "/// g().unwrap()\nfn f() { g().unwrap_or(1) }")]).len(), 0);
    assert_eq!(found(unwraps, &[("tests/a.rs", "fn f() { g().unwrap() }")]).len(), 0);
}

#[test]
fn a_changelog_without_an_unreleased_section_first_is_found() {
    assert_eq!(changelog("# Changelog\n\n## [Unreleased]\n").len(), 0);
    assert_eq!(changelog("# Changelog\n\n## [0.1.0]\n\n## [Unreleased]\n").len(), 1);
    assert_eq!(changelog("# Changelog\n").len(), 1);
}

#[test]
fn a_key_without_a_comment_is_found() {
    assert_eq!(config_comments("[a]\n# What it is.\nb = 1\n").len(), 0);
    assert_eq!(config_comments("[a]\n# What it is.\nb = 1\nc = 2\n").len(), 1);
    assert_eq!(config_comments("b = 1").len(), 1);
}
