//! Thread-local variables, and code of another C library than the daemon's, called through gRPC.
//!
//! Where a compiler or library is not installed its tests are ignored, and say what is missing;
//! CODECACHED_REQUIRE_REAL_OBJECTS=1 makes that a failure.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use codecached::{
    client::{Client, archive},
    proto::{BlobFormat, InstallRequest, ResultType, value::Kind},
};
use libtest_mimic::Arguments;
use support::{Daemon, call, elf, flat, handle, returned, trial};
use tempfile::TempDir;

const MUSL: &str = "/usr/lib/x86_64-linux-musl/libc.a";

const MODELS: [&str; 4] = ["local-exec", "initial-exec", "local-dynamic", "global-dynamic"];
/// How else objects are made; the second to last is not known to all compilers.
const WAYS: [&[&str]; 7] = [
    &["-O2", "-fno-pic"],
    &["-O0", "-fno-pic", "-g"],
    &["-O2", "-fPIC"],
    &["-O0", "-fPIC", "-fstack-protector-all"],
    &["-O2", "-fPIC", "-fno-plt"],
    &["-O2", "-fPIC", "-mtls-dialect=gnu2"],
    &["-O2", "-fPIC", "-mcmodel=large"],
];

fn main() {
    let arguments = Arguments::from_args();
    let compiler = Command::new("cc").arg("--version").output().is_err().then_some("the command cc");
    let musl = compiler.or((!Path::new(MUSL).exists()).then_some("musl's libc.a (Debian: musl-dev)"));
    let test = |name, missing: Option<&str>, run: fn()| trial("CODECACHED_REQUIRE_REAL_OBJECTS", name, missing, run);
    let tests = vec![
        test("variables_have_their_initial_values_in_each_call_in_every_model_of_access", compiler, models),
        test("errno_that_a_host_function_sets_is_seen_by_code_and_by_no_other_call", compiler, errno),
        test("code_that_touches_what_is_the_hosts_is_refused_with_its_place", compiler, refused),
        test("snprintf_and_strtod_of_musl_give_what_the_hosts_give", musl, musl_library),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

fn with_daemon(test: impl AsyncFnOnce(Client)) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut daemon = Daemon::start();
        let client = daemon.client().await;
        test(client).await;
        assert!(daemon.is_running());
    });
}

fn joined(key: &str, objects: &[Vec<u8>], exports: &[&str]) -> InstallRequest {
    let blob = archive(objects.iter().map(|object| ("object.o", &**object)));
    let exports = exports.iter().map(|&it| it.to_owned()).collect();
    InstallRequest { format: BlobFormat::Archive.into(), exports, ..elf(key, blob) }
}

/// `None`: the compiler does not know a flag.
fn compiled(file: &str, flags: &[&str]) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let object = directory.path().join("object.o");
    let source = source(file);
    let output = Command::new("cc").args(flags).arg("-c").arg(&source).arg("-o").arg(&object).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let is_unknown = errors.contains("-mtls-dialect") && !output.status.success();
    assert!(is_unknown || output.status.success(), "{file} with {flags:?}: {errors}");
    (!is_unknown).then(|| fs::read(object).unwrap())
}

fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects").join(file)
}

async fn number(client: &Client, entry: u64, symbol: &str, arguments: Vec<Kind>) -> i32 {
    let answer = client.execute(call(entry, symbol, arguments, ResultType::I32)).await.unwrap();
    match returned(answer).0 {
        Some(Kind::I32(number)) => number,
        other => panic!("{symbol} gave {other:?}"),
    }
}

fn models() {
    with_daemon(async |client| {
        let mut installed = 0;
        for (model, way) in MODELS.iter().flat_map(|model| WAYS.iter().map(move |way| (model, way))) {
            let model = format!("-ftls-model={model}");
            let flags = [way, &[&*model][..]].concat();
            let Some(first) = compiled("threads.c", &flags) else { continue };
            let other = compiled("threads_other.c", &flags).unwrap();
            let request = joined(&flags.join(" "), &[first, other], &["run", "misaligned"]);
            let entry = handle(&client.install(request).await.unwrap_or_else(|error| panic!("{flags:?}: {error}")));
            for by in [0, 1, 5, 5, -3] {
                let expected = 40 + by + by + 1000 + by + 7 + i32::from(b'i');
                assert_eq!(number(&client, entry, "run", vec![Kind::I32(by)]).await, expected, "{flags:?}");
            }
            assert_eq!(number(&client, entry, "misaligned", vec![]).await, 0, "{flags:?}");
            installed += 1;
        }
        assert!(installed >= MODELS.len() * (WAYS.len() - 1), "{installed} of them");
    });
}

fn errno() {
    const SOURCE: &str = "#include <errno.h>\n#include <stdlib.h>\n#include <math.h>\n
        int errno_of(const char *text) { errno = 0; strtol(text, 0, 10); return errno; }
        int left(void) { return errno; }
        int kept(const char *text) { errno = 77; strtol(text, 0, 10); return errno; }";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("errno.c");
    fs::write(&path, SOURCE).unwrap();
    let object = compiled(path.to_str().unwrap(), &["-O2", "-fPIC"]).unwrap();
    with_daemon(async |client| {
        let entry = handle(&client.install(elf("errno", object)).await.unwrap());
        let text = |text: &str| vec![Kind::Bytes(format!("{text}\0").into_bytes().into())];
        for (digits, errno) in [("1", 0), ("99999999999999999999", libc::ERANGE), ("2", 0)] {
            assert_eq!(number(&client, entry, "errno_of", text(digits)).await, errno, "{digits}");
            assert_eq!(number(&client, entry, "left", vec![]).await, 0);
        }
        assert_eq!(number(&client, entry, "kept", text("5")).await, 77);
    });
}

fn refused() {
    let assembly = |body: &str| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("code.S");
        let function = format!(".text\n.globl f\n.type f,@function\nf: nop\n{body}\nret\n.size f,.-f\n");
        fs::write(&path, function).unwrap();
        compiled(path.to_str().unwrap(), &[]).unwrap()
    };
    with_daemon(async |client| {
        for (body, says) in [
            ("mov %gs:0x28, %rax", "mov rax, qword ptr gs:[0x28]"),
            ("mov %fs:0x1000, %rax", "mov rax, qword ptr fs:[0x1000]"),
            ("wrfsbase %rax", "wrfsbase rax"),
        ] {
            let error = client.install(elf("refused", assembly(body))).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(says) && text.contains("in section .text at offset 0x1 for symbol f"), "{text}");
            assert!(format!("{error:?}").contains("FORBIDDEN_INSTRUCTION"), "{error:?}");
        }
        // The pointer guard, where musl has errno: each call's own.
        let entry = handle(&client.install(elf("own", assembly("incq %fs:0x30\nmov %fs:0x30, %rax"))).await.unwrap());
        for _ in 0..3 {
            assert_eq!(number(&client, entry, "f", vec![]).await, 1);
        }
        // mov %fs:0x30, %rax; ret
        let code = [0x64, 0x48, 0x8b, 0x04, 0x25, 0x30, 0, 0, 0, 0xc3];
        let entry = handle(&client.install(flat("flat", &code)).await.unwrap());
        assert_eq!(number(&client, entry, "f", vec![]).await, 0);
    });
}

/// Integers, texts, and numbers as text; none of those for which C leaves open whether there is an error.
const CASES: [(i32, &str, &str); 12] = [
    (0, "", "0"),
    (-1, "text", "-0.5"),
    (i32::MAX, "a longer text than its room", "1e308"),
    (i32::MIN, "%s", "1.7976931348623157e308"),
    (1, "x", "1e309"),
    (2, "x", "-1e400"),
    (3, "x", "1e-400"),
    (4, "x", "2.2250738585072014e-308"),
    (5, "x", "0x1.8p3rest"),
    (6, "x", "  12.25 and more"),
    (7, "x", "infinity"),
    (8, "x", "3.14159265358979323846264338327950288"),
];

fn musl_library() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("host");
    let flags = ["-O1", "-fno-builtin", "-DHOST", "-o"];
    let built = Command::new("cc").args(flags).arg(&program).arg(source("threads_musl.c")).status();
    assert!(built.unwrap().success());
    let request = InstallRequest {
        format: BlobFormat::Archive.into(),
        exports: vec!["print".to_owned(), "scan".to_owned()],
        ..elf("musl", with_musl(&directory))
    };
    with_daemon(async |client| {
        let entry = handle(&client.install(request).await.unwrap());
        let mut out_of_range = 0;
        for (integer, text, digits) in CASES {
            let expected = Command::new(&program).args([&integer.to_string(), text, digits]).output().unwrap();
            let expected = String::from_utf8(expected.stdout).unwrap();
            let zeroed = |text: &str| Kind::Bytes(format!("{text}\0").into_bytes().into());
            let scan = vec![zeroed(digits), Kind::OutBytes(8), Kind::OutBytes(4)];
            let answer = client.execute(call(entry, "scan", scan, ResultType::F64)).await.unwrap();
            let (Some(Kind::F64(number)), buffers) = returned(answer) else { panic!("no number of {digits}") };
            let used = i64::from_le_bytes(buffers[0][..].try_into().unwrap());
            let errno = i32::from_le_bytes(buffers[1][..].try_into().unwrap());
            out_of_range += i32::from(errno == libc::ERANGE);
            let print = vec![Kind::OutBytes(512), Kind::U64(512), Kind::I32(integer), zeroed(text), Kind::F64(number)];
            let answer = client.execute(call(entry, "print", print, ResultType::I32)).await.unwrap();
            let (Some(Kind::I32(length)), buffers) = returned(answer) else { panic!("no length of {digits}") };
            let printed = buffers[0].split(|&byte| byte == 0).next().unwrap();
            let printed = String::from_utf8_lossy(printed);
            assert_eq!(format!("{length}\n{printed}\n{} {used} {errno}\n", number.to_bits()), expected);
        }
        assert!(out_of_range >= 3, "errno of musl was seen {out_of_range} times");
    });
}

/// The library with the callers of its functions in it.
fn with_musl(directory: &TempDir) -> Vec<u8> {
    let [object, library] = ["callers.o", "all.a"].map(|name| directory.path().join(name));
    fs::write(&object, compiled("threads_musl.c", &["-O1", "-fPIC", "-fno-builtin"]).unwrap()).unwrap();
    fs::copy(MUSL, &library).unwrap();
    assert!(Command::new("ar").arg("r").args([&library, &object]).status().unwrap().success());
    fs::read(library).unwrap()
}
