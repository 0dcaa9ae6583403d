//! Declared signatures, and installs that are only validated, through the built binaries.

mod support;

use std::{fs, process::Command};

use codecached::{
    client::{Client, ClientError},
    proto::{
        InstallRequest, ParameterType, ResultType, Severity, Signature, SignatureDeclaration,
        signature_declaration::Form, value::Kind,
    },
};
use support::{ADD, Daemon, call, elf, flat, handle, returned};
use tonic::Code;

/// Wants what must not be: memory that is writable and executable, twice, and symbols that nobody has.
const WRONG: &str = r#"
extern int absent(int), memcpi(void *);
int f(void) { int counter; return absent(1) + memcpi(&counter) + absent(2); }
asm(".section .one,\"awx\",@progbits\n.byte 1\n.section .other,\"awx\",@progbits\n.byte 1\n.text");
"#;

fn text(text: &str) -> SignatureDeclaration {
    SignatureDeclaration { form: Some(Form::Text(text.to_owned())), ..SignatureDeclaration::default() }
}

fn add(key: &str, declarations: &[&str]) -> InstallRequest {
    InstallRequest { signatures: declarations.iter().map(|it| text(it)).collect(), ..flat(key, ADD) }
}

fn compile_text(source: &str, flags: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (file, object) = (directory.path().join("a.c"), directory.path().join("a.o"));
    fs::write(&file, source).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let status = Command::new(compiler).args(flags).arg("-c").arg(&file).arg("-o").arg(&object).status().unwrap();
    assert!(status.success());
    fs::read(object).unwrap()
}

fn invalid(error: &ClientError, needles: &[&str]) {
    assert_eq!((error.code(), error.reason()), (Some(Code::InvalidArgument), "INVALID_FIELD"), "{error}");
    needles.iter().for_each(|needle| assert!(error.to_string().contains(needle), "should say {needle}: {error}"));
}

async fn refused(client: &Client, entry: u64, arguments: Vec<Kind>, result: ResultType) -> ClientError {
    client.execute(call(entry, "f", arguments, result)).await.unwrap_err()
}

#[tokio::test]
async fn calls_are_held_to_the_signature_and_need_not_say_the_result() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let installed = client.install(add("k", &["int f(int a, int b);"])).await.unwrap();
    let symbol = &installed.entry.as_ref().unwrap().symbols[0];
    assert_eq!(symbol.signature_text, "i32 f(i32, i32)");
    let parts = symbol.signature.as_ref().unwrap();
    assert_eq!((parts.result(), parts.parameters.len()), (ResultType::I32, 2));
    let entry = handle(&installed);
    for result in [ResultType::Unspecified, ResultType::I32] {
        let answer = client.execute(call(entry, "f", vec![Kind::I32(2), Kind::I32(3)], result)).await.unwrap();
        assert_eq!(returned(answer).0, Some(Kind::I32(5)));
    }
    let declared = "the declared signature is i32 f(i32, i32)";
    let error = refused(&client, entry, vec![Kind::I32(2), Kind::U32(3)], ResultType::I32).await;
    invalid(&error, &["arguments: argument 1 of f is u32, must be i32", declared]);
    let error = refused(&client, entry, vec![Kind::I32(2)], ResultType::I32).await;
    invalid(&error, &["arguments: f takes 2 arguments, 1 are given", declared]);
    let error = refused(&client, entry, vec![Kind::I32(2); 3], ResultType::I32).await;
    invalid(&error, &["f takes 2 arguments, 3 are given"]);
    for (result, word) in [(ResultType::Void, "void"), (ResultType::U32, "u32")] {
        let error = refused(&client, entry, vec![Kind::I32(2); 2], result).await;
        invalid(&error, &["result: of f is i32", &format!("{word} is asked for"), declared]);
    }
    // Without a declaration nothing is checked.
    let free = handle(&client.install(flat("free", ADD)).await.unwrap());
    let answer = client.execute(call(free, "f", vec![Kind::U64(2), Kind::I64(3)], ResultType::U32)).await.unwrap();
    assert_eq!(returned(answer).0, Some(Kind::U32(5)));
}

#[tokio::test]
async fn a_pointer_of_c_takes_every_buffer_and_an_address_and_the_words_of_the_api_take_one() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    // mov rax, rdi; ret
    let identity = [0x48, 0x89, 0xf8, 0xc3];
    let with =
        |key: &str, declaration: &str| InstallRequest { signatures: vec![text(declaration)], ..flat(key, &identity) };
    let loose = handle(&client.install(with("loose", "size_t f(const void *)")).await.unwrap());
    let buffers = [Kind::Bytes(b"a"[..].into()), Kind::OutBytes(1), Kind::Inout(b"a"[..].into()), Kind::U64(0)];
    for argument in buffers.clone() {
        client.execute(call(loose, "f", vec![argument], ResultType::U64)).await.unwrap();
    }
    invalid(&refused(&client, loose, vec![Kind::I64(0)], ResultType::U64).await, &["is i64, must be pointer"]);
    let strict = handle(&client.install(with("strict", "u64 f(inout)")).await.unwrap());
    let mut taken = 0;
    for argument in buffers {
        match client.execute(call(strict, "f", vec![argument], ResultType::U64)).await {
            Ok(_) => taken += 1,
            Err(error) => invalid(&error, &["must be inout"]),
        }
    }
    assert_eq!(taken, 1);
}

#[tokio::test]
async fn declarations_that_cannot_be_are_refused_at_the_install() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    for (declarations, needle) in [
        (&["i32 g(i32)"][..], "signatures: g is not exported; exported are f"),
        (&["i32 f(i32)", "void f()"], "signatures: f is declared twice"),
        (&["i32 f(i32)", "i32 f(short)"], "signatures: signature 1: short has fewer than 32 bits"),
    ] {
        invalid(&client.install(add("k", declarations)).await.unwrap_err(), &[needle]);
    }
    let many: Vec<String> = (0..4097).map(|it| format!("void f{it}()")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    invalid(&client.install(add("k", &many)).await.unwrap_err(), &["signatures: are 4097, at most 4096"]);
    let parts = |parameters: Vec<i32>| SignatureDeclaration {
        symbol: "f".to_owned(),
        form: Some(Form::Signature(Signature { result: ResultType::I32.into(), parameters })),
    };
    let both = SignatureDeclaration { symbol: "f".to_owned(), ..text("i32 f(i32)") };
    for (declaration, needle) in [
        (SignatureDeclaration::default(), "give a text, or a symbol"),
        (both, "symbol must be empty"),
        (parts(vec![0]), "parameter 0 is of no type"),
        (parts(vec![1, 77]), "parameter 1 is of no type"),
        (parts(vec![1; 17]), "17 parameters, at most 16"),
    ] {
        let request = InstallRequest { signatures: vec![declaration], ..flat("k", ADD) };
        invalid(&client.install(request).await.unwrap_err(), &[needle]);
    }
    assert_eq!(client.status().await.unwrap().counters.unwrap().installs, 0);
    let structured = parts(vec![ParameterType::I32.into(); 2]);
    let request = InstallRequest { signatures: vec![structured], ..flat("k", ADD) };
    let installed = client.install(request).await.unwrap();
    assert_eq!(installed.entry.unwrap().symbols[0].signature_text, "i32 f(i32, i32)");
    // The same in words is the same install; other signatures are other bytes.
    assert!(!client.install(add("k", &["int f(int, int)"])).await.unwrap().created);
    assert_eq!(client.install(add("k", &[])).await.unwrap_err().reason(), "KEY_OCCUPIED");
    assert_eq!(client.install(add("k", &["u32 f(i32, i32)"])).await.unwrap_err().reason(), "KEY_OCCUPIED");
}

#[tokio::test]
async fn signatures_are_charged() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let free = client.install(add("a", &[])).await.unwrap().entry.unwrap();
    let declared = client.install(add("b", &["i32 f(i32, i32)"])).await.unwrap().entry.unwrap();
    assert!(declared.charged_bytes >= free.charged_bytes + 18, "{} {}", declared.charged_bytes, free.charged_bytes);
}

#[tokio::test]
async fn validation_tells_all_problems_and_leaves_everything_as_it_was() {
    let daemon = Daemon::start_with(&["--set", "code.screen=warn"]);
    let client = daemon.client().await;
    client.install(flat("there", ADD)).await.unwrap();
    let before = client.status().await.unwrap();
    let request = InstallRequest {
        signatures: vec![text("i32 nobody(i32)")],
        required_cpu_features: vec!["sse2".to_owned(), "avx99".to_owned()],
        validate_only: true,
        ..elf("k", compile_text(WRONG, &["-O1", "-fPIC"]))
    };
    let answer = client.install(request.clone()).await.unwrap();
    assert!(answer.entry.is_none() && !answer.created);
    let told: Vec<String> = answer.diagnostics.iter().map(|it| format!("{} {}", it.reason, it.message)).collect();
    for needle in [
        "TARGET_MISMATCH this processor does not have what the install requires: avx99 (not a known name)",
        "MALFORMED_OBJECT unsupported object: a section cannot be both writable and executable in section .one",
        "MALFORMED_OBJECT unsupported object: a section cannot be both writable and executable in section .other",
        "UNRESOLVED_SYMBOL unresolved symbol absent, first used in section .text",
        "UNRESOLVED_SYMBOL unresolved symbol memcpi (nearest offered: memcpy), first used in section .text",
    ] {
        assert!(told.iter().any(|it| it.starts_with(needle)), "no {needle:?} in {told:#?}");
    }
    assert_eq!(answer.diagnostics_total, answer.diagnostics.len() as u64);
    assert!(answer.diagnostics.iter().all(|it| it.severity() == Severity::Error));
    let absent = answer.diagnostics.iter().find(|it| it.symbol == "absent").unwrap();
    assert!(absent.section == ".text" && absent.offset_bytes.is_some(), "{absent:?}");
    // Even the key of another entry is fine: nothing is installed.
    let answer = client.install(InstallRequest { key: b"there"[..].into(), ..request }).await.unwrap();
    assert!(answer.diagnostics_total > 4);
    let after = client.status().await.unwrap();
    assert_eq!(after.counters.unwrap().installs, before.counters.unwrap().installs);
    assert_eq!(after.budget.unwrap().charged_bytes, before.budget.unwrap().charged_bytes);
}

#[tokio::test]
async fn validation_of_what_can_be_read_goes_on_to_signatures_linking_and_screening() {
    let daemon = Daemon::start_with(&["--set", "code.screen=warn"]);
    let client = daemon.client().await;
    let validate = |request: InstallRequest| InstallRequest { validate_only: true, ..request };
    // xor eax, eax; syscall; ret
    let syscall = [0x31, 0xc0, 0x0f, 0x05, 0xc3];
    let request = InstallRequest { signatures: vec![text("i32 g()"), text("i32 f()")], ..flat("k", &syscall) };
    let found = client.install(validate(request)).await.unwrap().diagnostics;
    let told: Vec<_> = found.iter().map(|it| (it.severity(), &*it.reason, &*it.symbol, it.offset_bytes)).collect();
    let screened = (Severity::Warning, "FORBIDDEN_INSTRUCTION", "f", Some(2));
    assert_eq!(told, [(Severity::Error, "INVALID_FIELD", "g", None), screened]);
    let low = "int table[4]; int f(long at) { return table[at]; }";
    let low = compile_text(low, &["-O2", "-fno-pic", "-fno-pie", "-mcmodel=small"]);
    let found = client.install(validate(elf("low", low.clone()))).await.unwrap().diagnostics;
    let refused = client.install(elf("low", low)).await.unwrap_err();
    assert_eq!((found.len(), &*found[0].reason), (1, refused.reason()), "{found:?}");
    assert!(found[0].message.contains("-fPIC"), "{found:?}");
    let fine = client.install(validate(elf("fine", support::compile("counter.c")))).await.unwrap();
    assert_eq!((fine.diagnostics_total, fine.entry), (0, None));
    // What is wrong with the request itself is an error of it.
    let unnamed = InstallRequest { key: Default::default(), ..flat("k", ADD) };
    assert_eq!(client.install(validate(unnamed)).await.unwrap_err().reason(), "INVALID_FIELD");
    let large = [ADD, &vec![0x90; 5 << 20]].concat();
    let answer = client.install(validate(flat("large", &large))).await.unwrap();
    assert_eq!((answer.diagnostics_total, answer.entry), (0, None), "and it comes in chunks as well");
    assert_eq!(client.status().await.unwrap().budget.unwrap().charged_bytes, 0);
}

#[test]
fn the_client_declares_checks_lists_and_calls_without_types() {
    let daemon = Daemon::start();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let asks = file("asks.o", &support::compile_with("asks_much.c", &["-O2", "-fPIC", "-fno-builtin"]));
    let wrong = file("wrong.o", &compile_text(WRONG, &["-O1", "-fPIC"]));
    let header = file(
        "asks.h",
        b"# of asks_much.c\nuint32_t crc32_bitwise(uint32_t, bytes data, uint32_t);\n\n// the other\nvoid fill(out, u32, u32)\n",
    );
    let case = |code: i32, arguments: &[&str], needles: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codecachectl"));
        let output = command.args(["--server", &daemon.target]).args(arguments).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        needles.iter().for_each(|it| assert!(text.contains(it), "{arguments:?} should say {it}: {text}"));
    };
    case(
        1,
        &["install", "w", &wrong, "--check"],
        &["w: error: UNRESOLVED_SYMBOL: unresolved symbol absent", "both writable and executable in section .other"],
    );
    case(
        1,
        &["--json", "install", "w", &wrong, "--check"],
        &["\"reason\": \"UNRESOLVED_SYMBOL\"", "\"diagnostics_total\""],
    );
    case(0, &["install", "asks", &asks, "--check", "--signatures", &header], &["asks: nothing is wrong"]);
    case(3, &["lookup", "asks"], &["ENTRY_NOT_FOUND"]);
    case(1, &["install", "asks", &asks, "--signature", "void none()"], &["none is not exported; exported are"]);
    case(2, &["install", "asks", &asks, "--signatures", "/nonexistent"], &["cannot read /nonexistent"]);
    case(0, &["install", "asks", &asks, "--signatures", &header, "--signature", "void give_up(void)"], &["created"]);
    case(0, &["symbols", "asks"], &["SIGNATURE", "u32 crc32_bitwise(u32, bytes, u32)", "void give_up()"]);
    case(0, &["--json", "symbols", "asks"], &["\"signature\": \"void fill(out, u32, u32)\"", "\"signature\": null"]);
    case(0, &["call", "asks", "crc32_bitwise", "0", "text:123456789", "9"], &["u32 3421780262"]);
    case(0, &["call", "asks", "crc32_bitwise", "u32:0", "text:123456789", "9"], &["u32 3421780262"]);
    case(0, &["call", "asks", "fill", "4", "4", "65"], &["void", "hex 41414141"]);
    case(1, &["call", "asks", "crc32_bitwise", "0", "text:1"], &["takes 3 arguments, 2 are given"]);
    case(1, &["call", "asks", "fill", "4", "4", "65", "--result", "u32"], &["result: of fill is void"]);
    case(2, &["call", "asks", "crc32_bitwise", "-1", "text:1", "1"], &["argument 0: \"-1\" for u32"]);
    case(3, &["call", "asks", "nobody", "1"], &["\"asks\" has no \"nobody\"", "--symbols"]);
}
