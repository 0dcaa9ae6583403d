//! Objects out of the system's static libraries, called through gRPC, give what the libraries themselves give.
//!
//! Where the libraries are not installed the tests are ignored, and say what is missing; CODECACHED_REQUIRE_REAL_OBJECTS=1
//! makes that a failure.

mod support;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use codecached::{
    client::{Client, archive as archive_of},
    proto::{BlobFormat, InstallRequest, ResultType, value::Kind},
};
use libtest_mimic::Arguments;
use support::{Daemon, Random, call, elf, handle, returned, trial};
use tempfile::TempDir;

const DATA_BYTES: usize = 1 << 20;
/// The archive itself, or the linker script that stands for it.
const MATH: &str = "libm-2.36.a";

fn main() {
    let arguments = Arguments::from_args();
    let missing = missing();
    let test = |name, run: fn()| trial("CODECACHED_REQUIRE_REAL_OBJECTS", name, missing.as_ref(), run);
    let tests = vec![
        test("crc32_and_adler32_of_libz_alone_give_the_librarys_sums", sums),
        test("zlib_out_of_its_archive_compresses_to_the_librarys_bytes_and_back", zlib),
        test("functions_of_libm_out_of_its_archive_give_the_bits_that_the_library_gives", math),
        test("lz4_compresses_to_the_librarys_bytes_and_back", lz4),
        test("objects_of_several_compilers_are_joined_by_the_client_and_call_each_other", joined),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

/// The first thing that is not there.
fn missing() -> Option<String> {
    let tools = ["cc", "ar", "ld"].into_iter().find(|it| Command::new(it).arg("--version").output().is_err());
    let library = |name: &str| archive(name).is_none().then(|| format!("{name} (Debian: its -dev package)"));
    let libraries = ["libz.a", "liblz4.a", MATH];
    tools.map(|it| format!("the command {it}")).or_else(|| libraries.into_iter().find_map(library))
}

fn archive(name: &str) -> Option<PathBuf> {
    let output = Command::new("cc").arg(format!("-print-file-name={name}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_absolute().then_some(path)
}

/// Unpacks the archive and answers the directory with its members.
fn unpack(name: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = archive(name).unwrap();
    let status = Command::new("ar").arg("x").arg(path).current_dir(directory.path()).status().unwrap();
    assert!(status.success());
    directory
}

/// Half of it compresses well, half does not.
fn data() -> Vec<u8> {
    let mut random = Random(2026);
    let words = [&b"install "[..], b"lookup ", b"execute ", b"evict ", b"arena ", b"budget "];
    let mut data = Vec::with_capacity(DATA_BYTES + 8);
    while data.len() < DATA_BYTES {
        if random.below(2) == 0 {
            data.extend(words[random.below(6) as usize]);
        } else {
            data.extend(random.next().to_le_bytes());
        }
    }
    data.truncate(DATA_BYTES);
    data
}

/// What the libraries themselves say of the data.
fn reference(directory: &Path, what: &str, data: &[u8]) -> Vec<u8> {
    let program = directory.join("reference");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects/reference.c");
    let built = Command::new("cc").args(["-O2", "-o"]).args([&program, &source]).args(["-lz", "-llz4"]).status();
    assert!(built.unwrap().success());
    let mut child = Command::new(&program).arg(what).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let data = data.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&data).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Runs `test` with a client of a daemon whose entry is the object.
fn with_entry(object: &Path, test: impl AsyncFnOnce(Client, u64)) {
    with_installed(elf("object", std::fs::read(object).unwrap()), test);
}

/// Runs `test` with a client of a daemon whose entry is what an archive has for these functions.
fn with_archive(name: &str, exports: &[&str], test: impl AsyncFnOnce(Client, u64)) {
    let exports = exports.iter().map(|&it| it.to_owned()).collect();
    let blob = std::fs::read(archive(name).unwrap()).unwrap();
    with_installed(
        InstallRequest { format: BlobFormat::Archive.into(), exports, ..elf("archive", blob) },
        async |client, entry| test(client, entry).await,
    );
}

fn with_installed(request: InstallRequest, test: impl AsyncFnOnce(Client, u64)) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let daemon = Daemon::start();
        let client = daemon.client().await;
        let entry = handle(&client.install(request).await.unwrap());
        test(client, entry).await;
    });
}

fn bytes(data: &[u8]) -> Kind {
    Kind::Bytes(data.to_vec().into())
}

fn sums() {
    let directory = unpack("libz.a");
    let data = data();
    let text = String::from_utf8(reference(directory.path(), "sums", &data)).unwrap();
    let (crc, adler) = text.trim().split_once(' ').unwrap();
    for (symbol, start, expected) in [("crc32", 0, crc), ("adler32", 1, adler)] {
        with_entry(&directory.path().join(format!("{symbol}.o")), async |client, entry| {
            let arguments = vec![Kind::U64(start), bytes(&data), Kind::U32(data.len() as u32)];
            let answer = client.execute(call(entry, symbol, arguments, ResultType::U64)).await.unwrap();
            assert_eq!(returned(answer).0, Some(Kind::U64(expected.parse().unwrap())), "{symbol}");
        });
    }
}

fn zlib() {
    let directory = unpack("libz.a");
    let data = data();
    let expected = reference(directory.path(), "zlib", &data);
    with_archive("libz.a", &["compress2", "uncompress"], async |client, entry| {
        let room = 2 * data.len() as u64;
        let packed = vec![
            Kind::OutBytes(room),
            Kind::Inout(room.to_le_bytes().to_vec().into()),
            bytes(&data),
            Kind::U64(data.len() as u64),
            Kind::I32(6),
        ];
        let answer = client.execute(call(entry, "compress2", packed, ResultType::I32)).await.unwrap();
        let (code, buffers) = returned(answer);
        assert_eq!(code, Some(Kind::I32(0)));
        let size = u64::from_le_bytes(buffers[1][..].try_into().unwrap()) as usize;
        assert!(buffers[0][..size] == expected, "the compressed bytes differ");

        let unpacked = vec![
            Kind::OutBytes(data.len() as u64),
            Kind::Inout((data.len() as u64).to_le_bytes().to_vec().into()),
            bytes(&expected),
            Kind::U64(expected.len() as u64),
        ];
        let answer = client.execute(call(entry, "uncompress", unpacked, ResultType::I32)).await.unwrap();
        let (code, buffers) = returned(answer);
        assert_eq!(code, Some(Kind::I32(0)));
        assert!(buffers[0] == data, "the bytes did not come back");
    });
}

fn lz4() {
    let directory = unpack("liblz4.a");
    let data = data();
    let expected = reference(directory.path(), "lz4", &data);
    with_entry(&directory.path().join("lz4.o"), async |client, entry| {
        let room = 2 * data.len();
        let packed =
            vec![bytes(&data), Kind::OutBytes(room as u64), Kind::I32(data.len() as i32), Kind::I32(room as i32)];
        let answer = client.execute(call(entry, "LZ4_compress_default", packed, ResultType::I32)).await.unwrap();
        let (size, buffers) = returned(answer);
        assert_eq!(size, Some(Kind::I32(expected.len() as i32)));
        assert!(buffers[0][..expected.len()] == expected, "the compressed bytes differ");

        let unpacked = vec![
            bytes(&expected),
            Kind::OutBytes(data.len() as u64),
            Kind::I32(expected.len() as i32),
            Kind::I32(data.len() as i32),
        ];
        let answer = client.execute(call(entry, "LZ4_decompress_safe", unpacked, ResultType::I32)).await.unwrap();
        let (size, buffers) = returned(answer);
        assert_eq!(size, Some(Kind::I32(data.len() as i32)));
        assert!(buffers[0] == data, "the bytes did not come back");
    });
}

type Function = fn(f32) -> f32;

/// Those that the library does not choose among by the processor, and that this language takes from the same library.
const FUNCTIONS: [(&str, Function); 6] = [
    ("acosf", f32::acos),
    ("asinf", f32::asin),
    ("atanf", f32::atan),
    ("expm1f", f32::exp_m1),
    ("log1pf", f32::ln_1p),
    ("tanhf", f32::tanh),
];

fn math() {
    let names: Vec<_> = FUNCTIONS.iter().map(|(name, _)| *name).chain(["hypot"]).collect();
    with_archive(MATH, &names, async |client, entry| {
        let number = async |name: &str, arguments, result| {
            let answer = client.execute(call(entry, name, arguments, result)).await.unwrap();
            returned(answer).0.unwrap_or_else(|| panic!("{name} gave no number"))
        };
        let mut random = Random(5);
        for _ in 0..200 {
            let [a, b] = [(); 2].map(|()| (random.next() as i64 as f64) / 2_f64.powi(random.below(70) as i32));
            for (name, host) in FUNCTIONS {
                let (a, expected) = (a as f32, host(a as f32));
                let found = number(name, vec![Kind::F32(a)], ResultType::F32).await;
                let Kind::F32(found) = found else { panic!("{name} gave {found:?}") };
                assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{name}({a})");
            }
            let found = number("hypot", vec![Kind::F64(a), Kind::F64(b)], ResultType::F64).await;
            assert_eq!(found, Kind::F64(a.hypot(b)), "hypot({a}, {b})");
        }
    });
}

/// A counter in one object, common to both, and its user in another, made in three code models.
fn joined() {
    let directory = tempfile::tempdir().unwrap();
    let source = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let counter = source("counter.c", "int count; int step = 3; int next(void) { return count += step; }");
    let user = "extern int count, step; int next(void); __attribute__((weak)) int absent(void);
        int twice(int by) { step = by; next(); next(); return absent ? -1 : count; }";
    let user = source("user.c", user);
    for model in ["small", "medium", "large"] {
        let objects = [&counter, &user].map(|path| {
            let object = path.with_extension("o");
            let flags = ["-O2", "-fPIC", "-fcommon", "-ffunction-sections", &format!("-mcmodel={model}"), "-c", "-o"];
            assert!(Command::new("cc").args(flags).arg(&object).arg(path).status().unwrap().success());
            std::fs::read(object).unwrap()
        });
        let blob = archive_of([("counter.o", &*objects[0]), ("user.o", &*objects[1])]);
        let request = InstallRequest { format: BlobFormat::Archive.into(), ..elf("joined", blob) };
        with_installed(request, async |client, entry| {
            for (by, expected) in [(5, 10), (1, 12)] {
                let answer = client.execute(call(entry, "twice", vec![Kind::I32(by)], ResultType::I32)).await.unwrap();
                assert_eq!(returned(answer).0, Some(Kind::I32(expected)), "{model}");
            }
        });
    }
}
