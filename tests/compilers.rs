//! Objects of several compilers, with the flags that change what they emit, installed and called through gRPC: each
//! function gives what the same function in Rust gives.
//!
//! Where a compiler is not installed its tests are ignored, and say what is missing; CODECACHED_REQUIRE_REAL_OBJECTS=1
//! makes that a failure.

#[path = "compilers/cases.rs"]
mod cases;
#[path = "objects/compilers/functions.rs"]
mod functions;
mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use codecached::{
    client::Client,
    proto::{BlobFormat, ExecuteRequest, InstallRequest, ResultType, TrapKind, execute_request::Target, value::Kind},
};
use libtest_mimic::Arguments;
use support::{Daemon, call, elf, handle, returned, trapped, trial};
use tempfile::TempDir;

/// The first with every level of optimisation; what differs is how code addresses what it does not hold.
const C_FORMS: [&str; 7] = [
    "-fPIC",
    "-fPIE -fno-plt -fvisibility=protected",
    "-fPIC -ffunction-sections -fdata-sections",
    "-fPIC -fno-jump-tables -fstack-protector-all -fcf-protection -g",
    "-fPIC -mcmodel=medium",
    "-fPIC -mcmodel=large",
    "-fno-pic -mcmodel=large",
];
const C_LEVELS: [&str; 5] = ["-O0", "-O1", "-O2", "-O3", "-Os"];
/// With addresses in 32 bits, for the arena below 2 GiB. The first with every level of optimisation.
const LOW_FORMS: [&str; 4] = [
    "-fno-pic -fno-pie",
    "-fno-pic -fno-pie -mcmodel=kernel",
    "-fno-pic -fno-pie -mcmodel=medium",
    "-fno-pic -fno-pie -ffunction-sections -fstack-protector-all -fcf-protection -g",
];
/// Vectors of 32 bytes, if the processor has them. Multiplying and adding in one step would give other bits.
const WIDE: &str = "-O3 -fPIC -mavx2 -ffp-contract=off";
const RUST_FORMS: [&str; 4] = ["pic", "pie", "pic -C code-model=large", "pic -C force-unwind-tables=yes -g"];
const RUST_LEVELS: [&str; 5] = ["0", "1", "2", "3", "s"];
/// Those of the Rust object that need nothing of the language's library, where they are optimised.
const RUST_ALONE: [&str; 14] = [
    "ackermann",
    "apply",
    "bits",
    "bump",
    "checksum",
    "collatz",
    "dot",
    "fibonacci",
    "is_even",
    "mixed",
    "multiply4",
    "multiply_high",
    "opcode",
    "words",
];
const ASSEMBLY: [&str; 13] = [
    "apply",
    "bits",
    "bump",
    "collatz",
    "dot",
    "fibonacci",
    "hypotenuse",
    "multiply4",
    "multiply_high",
    "opcode",
    "planet",
    "polynomial",
    "scale",
];
const CRANELIFT_FUNCTIONS: [&str; 13] = [
    "apply",
    "bits",
    "bump",
    "collatz",
    "dot",
    "fibonacci",
    "hypotenuse",
    "multiply4",
    "multiply_high",
    "opcode",
    "planet",
    "polynomial",
    "scale",
];
/// The program of tests/cranelift, if it stands elsewhere.
const CRANELIFT: &str = "CODECACHED_CRANELIFT";

fn main() {
    let arguments = Arguments::from_args();
    let test = |name, needs, run: fn()| {
        trial("CODECACHED_REQUIRE_REAL_OBJECTS", name, (!is_there(needs)).then_some(needs), run)
    };
    let tests = vec![
        test("c_of_gcc_gives_what_rust_gives_however_it_is_compiled", "gcc", || c("gcc")),
        test("c_of_clang_gives_what_rust_gives_however_it_is_compiled", "clang", || c("clang")),
        test("an_object_of_rustc_gives_the_same_as_in_the_test", "rustc", rust_object),
        test("a_static_library_of_rustc_gives_the_same_and_a_panic_is_a_trap", "rustc", rust_library),
        test("assembly_of_nasm_gives_what_rust_gives", "nasm", nasm),
        test("objects_of_cranelift_give_what_rust_gives", "cranelift", cranelift),
        test("c_of_gcc_without_pic_gives_the_same_below_2_gib", "gcc", || low("gcc")),
        test("c_of_clang_without_pic_gives_the_same_below_2_gib", "clang", || low("clang")),
        test("an_object_and_a_static_library_of_rustc_without_pic_give_the_same_below_2_gib", "rustc", low_rust),
        test("gcc_without_pic_is_refused_with_the_flag_that_helps", "gcc", || absolute("gcc")),
        test("clang_without_pic_is_refused_with_the_flag_that_helps", "clang", || absolute("clang")),
        test("what_clang_makes_for_other_targets_is_refused_by_its_name", "clang", foreign),
        test("intermediate_code_of_gcc_is_refused_by_its_name", "gcc", intermediate),
        test("what_nasm_makes_for_other_targets_is_refused_by_its_name", "nasm", foreign_assembly),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

fn is_there(tool: &str) -> bool {
    if tool == "cranelift" { cranelift_program().is_some() } else { Command::new(tool).arg("-v").output().is_ok() }
}

/// tests/cranelift is built by .ci/run, as it takes longer than everything else.
fn cranelift_program() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cranelift/target");
    let built = ["release", "debug"].map(|profile| built.join(profile).join("codecached-cranelift"));
    std::env::var_os(CRANELIFT).map(PathBuf::from).into_iter().chain(built).find(|path| path.exists())
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects/compilers").join(name)
}

fn run(compiler: &str, flags: &str, source: &Path, output: &Path) -> Output {
    Command::new(compiler).args(flags.split_whitespace()).arg(source).arg("-o").arg(output).output().unwrap()
}

/// Compiles a file of tests/objects/compilers.
fn compiled(compiler: &str, flags: &str, name: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let object = directory.path().join("object.o");
    let output = run(compiler, flags, &source(name), &object);
    assert!(output.status.success(), "{compiler} {flags}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(object).unwrap()
}

/// Runs a test with a client of a daemon of its own.
fn with_daemon(test: impl AsyncFnOnce(Client)) {
    with_daemon_of(&[], test);
}

/// The same for one with these flags.
fn with_daemon_of(flags: &[&str], test: impl AsyncFnOnce(Client)) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let daemon = Daemon::start_with(flags);
        test(daemon.client().await).await;
    });
}

/// Installs, and calls the functions of these names with all that they are asked. `what` stands in each message.
async fn answers_as_rust(client: &Client, what: &str, request: InstallRequest, names: Option<&[&str]>) {
    let answer = client.install(InstallRequest { key: what.as_bytes().to_vec().into(), ..request }).await;
    let entry = handle(&answer.unwrap_or_else(|error| panic!("{what}: {error}")));
    let mut functions = 0;
    for case in cases::all().into_iter().filter(|case| names.is_none_or(|names| names.contains(&case.name))) {
        functions += 1;
        for asked in case.calls {
            let shown = format!("{what}: {}({:?})", case.name, asked.arguments);
            let result = asked.result();
            let answer = client.execute(call(entry, case.name, asked.arguments, result)).await;
            let (value, buffers) = returned(answer.unwrap_or_else(|error| panic!("{shown}: {error}")));
            assert_eq!(value, asked.value, "{shown}");
            assert!(buffers == asked.buffers, "{shown} gave {buffers:?}, not {:?}", asked.buffers);
        }
    }
    assert_eq!(functions, names.map_or(25, <[_]>::len), "{what}: functions that were called");
}

fn c(compiler: &str) {
    with_daemon(async |client| {
        let levels = C_LEVELS.iter().map(|level| format!("{level} {}", C_FORMS[0]));
        let forms = C_FORMS[1..].iter().flat_map(|form| ["-O0", "-O2"].map(|level| format!("{level} {form}")));
        let wide = is_x86_feature_detected!("avx2").then(|| WIDE.to_owned());
        for flags in levels.chain(forms).chain(wide) {
            let blob = compiled(compiler, &format!("-c {flags}"), "functions.c");
            answers_as_rust(&client, &format!("{compiler} {flags}"), elf("", blob), None).await;
        }
    });
}

/// A daemon with an arena below 2 GiB.
const LOW: [&str; 2] = ["--set", "arena.low_bytes=16 MiB"];

fn low(compiler: &str) {
    with_daemon_of(&LOW, async |client| {
        let levels = C_LEVELS.iter().map(|level| format!("{level} {}", LOW_FORMS[0]));
        let forms = LOW_FORMS[1..].iter().flat_map(|form| ["-O0", "-O2"].map(|level| format!("{level} {form}")));
        for flags in levels.chain(forms) {
            let blob = compiled(compiler, &format!("-c {flags}"), "functions.c");
            answers_as_rust(&client, &format!("{compiler} {flags}"), elf("", blob), None).await;
        }
        assert_used_below_2_gib(&client).await;
    });
}

fn low_rust() {
    with_daemon_of(&LOW, async |client| {
        let flags = rust_flags("lib", "static", "2");
        let blob = compiled("rustc", &format!("{flags} --emit=obj"), "exports.rs");
        let exports = RUST_ALONE.map(str::to_owned).to_vec();
        answers_as_rust(&client, "object", InstallRequest { exports, ..elf("", blob) }, Some(&RUST_ALONE)).await;
        let blob = compiled("rustc", &rust_flags("staticlib", "static", "2"), "exports.rs");
        let names = cases::all().into_iter().map(|case| case.name).chain(["letters_of_planet"]);
        let exports = names.map(str::to_owned).collect();
        let request = InstallRequest { format: BlobFormat::Archive.into(), exports, ..elf("", blob) };
        answers_as_rust(&client, "library", request, None).await;
        panics(&client, "library").await;
        assert_used_below_2_gib(&client).await;
    });
}

/// Or the test has shown nothing.
async fn assert_used_below_2_gib(client: &Client) {
    let low = client.status().await.unwrap().arena.unwrap().low.unwrap();
    assert!(low.used_bytes > 0, "{low:?}");
}

fn rust_object() {
    with_daemon(async |client| {
        for flags in RUST_FORMS.iter().flat_map(|form| ["2", "3"].map(|level| rust_flags("lib", form, level))) {
            let blob = compiled("rustc", &format!("{flags} --emit=obj"), "exports.rs");
            let exports = RUST_ALONE.map(str::to_owned).to_vec();
            let request = InstallRequest { exports, ..elf("", blob) };
            answers_as_rust(&client, &flags, request, Some(&RUST_ALONE)).await;
        }
    });
}

fn rust_flags(kind: &str, form: &str, level: &str) -> String {
    format!(
        "--edition=2024 --crate-type={kind} -C panic=abort -C codegen-units=1 -C opt-level={level} -C relocation-model={form}"
    )
}

/// With the language's library and the compiler's in one archive, of which what is needed is taken.
fn rust_library() {
    with_daemon(async |client| {
        let levels = RUST_LEVELS.map(|level| rust_flags("staticlib", RUST_FORMS[0], level));
        let forms = RUST_FORMS[1..].iter().map(|form| rust_flags("staticlib", form, "2"));
        for flags in levels.into_iter().chain(forms) {
            let blob = compiled("rustc", &flags, "exports.rs");
            let names = cases::all().into_iter().map(|case| case.name).chain(["letters_of_planet"]);
            let exports = names.map(str::to_owned).collect();
            let request = InstallRequest { format: BlobFormat::Archive.into(), exports, ..elf("", blob) };
            answers_as_rust(&client, &flags, request, None).await;
            panics(&client, &flags).await;
        }
    });
}

async fn panics(client: &Client, key: &str) {
    let target = Target::Key(key.as_bytes().to_vec().into());
    let request = |index| ExecuteRequest {
        target: Some(target.clone()),
        ..call(0, "letters_of_planet", vec![Kind::U64(index)], ResultType::U64)
    };
    let answer = client.execute(request(4)).await.unwrap();
    assert_eq!(returned(answer).0, Some(Kind::U64(7)), "{key}: Jupiter");
    let trap = trapped(client.execute(request(8)).await.unwrap());
    assert_eq!(trap.kind(), TrapKind::Abort, "{key}: {trap:?}");
}

fn nasm() {
    with_daemon(async |client| {
        for flags in ["-f elf64", "-f elf64 -g -F dwarf", "-f elf64 -O0"] {
            let blob = compiled("nasm", flags, "functions.asm");
            answers_as_rust(&client, &format!("nasm {flags}"), elf("", blob), Some(&ASSEMBLY)).await;
        }
    });
}

/// tests/cranelift names its objects by the settings.
fn cranelift() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(cranelift_program().unwrap()).arg(directory.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let objects: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(objects.len() > 1, "{objects:?}");
    with_daemon(async |client| {
        for path in objects {
            let what = path.file_name().unwrap().to_string_lossy().into_owned();
            let request = elf("", std::fs::read(&path).unwrap());
            answers_as_rust(&client, &format!("cranelift {what}"), request, Some(&CRANELIFT_FUNCTIONS)).await;
        }
    });
}

/// Addresses in 32 bits, which only code below 2 GiB may hold.
fn absolute(compiler: &str) {
    with_daemon(async |client| {
        for flags in ["-O0", "-O2", "-O2 -mcmodel=kernel"] {
            let blob = compiled(compiler, &format!("-c -fno-pic {flags}"), "functions.c");
            let error = client.install(elf("object", blob)).await.unwrap_err();
            assert_eq!(error.reason(), "UNSUPPORTED_RELOCATION", "{flags}: {error}");
            let text = error.to_string();
            for part in ["R_X86_64_32", "-fPIC", "arena.low_bytes", " in section ", " at offset "] {
                assert!(text.contains(part), "{flags}: {part} is not in: {text}");
            }
        }
    });
}

/// What refuses and why: flags, the reason, and a part of the text.
type Refusal = (&'static str, &'static str, &'static str);

fn refused(compiler: &str, name: &str, text: &str, refusals: &[Refusal]) {
    let directory = TempDir::new().unwrap();
    let (path, object) = (directory.path().join(name), directory.path().join("object.o"));
    std::fs::write(&path, text).unwrap();
    with_daemon(async |client| {
        for (flags, reason, part) in refusals {
            let output = run(compiler, flags, &path, &object);
            assert!(output.status.success(), "{flags}: {}", String::from_utf8_lossy(&output.stderr));
            let error = client.install(elf("object", std::fs::read(&object).unwrap())).await.unwrap_err();
            assert!(
                error.reason() == *reason && error.to_string().contains(part),
                "{flags}: {}: {error}",
                error.reason()
            );
        }
    });
}

fn foreign() {
    refused(
        "clang",
        "one.c",
        "int one(void) { return 1; }",
        &[
            ("-c --target=aarch64-linux-gnu", "TARGET_MISMATCH", "machine is 183"),
            ("-c --target=riscv64-linux-gnu", "TARGET_MISMATCH", "machine is 243"),
            ("-c -m32", "TARGET_MISMATCH", "class is 1"),
            ("-c -mx32", "TARGET_MISMATCH", "class is 1"),
            ("-c -flto", "MALFORMED_OBJECT", "LLVM bitcode"),
            ("-c --target=x86_64-apple-darwin", "MALFORMED_OBJECT", "Mach-O"),
            ("-c --target=x86_64-pc-windows-msvc", "MALFORMED_OBJECT", "COFF"),
            ("-S", "MALFORMED_OBJECT", "it is text"),
        ],
    );
}

fn intermediate() {
    refused("gcc", "one.c", "int one(void) { return 1; }", &[("-c -flto", "MALFORMED_OBJECT", "-fno-lto")]);
}

fn foreign_assembly() {
    refused(
        "nasm",
        "one.asm",
        "section .text\nglobal one\none: mov eax, 1\nret\n",
        &[
            ("-f elfx32", "TARGET_MISMATCH", "class is 1"),
            ("-f elf32", "TARGET_MISMATCH", "class is 1"),
            ("-f macho64", "MALFORMED_OBJECT", "Mach-O"),
            ("-f win64", "MALFORMED_OBJECT", "COFF"),
            ("-f bin", "MALFORMED_OBJECT", "flat code"),
        ],
    );
}
