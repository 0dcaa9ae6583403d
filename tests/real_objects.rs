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
    client::Client,
    proto::{ResultType, value::Kind},
};
use libtest_mimic::{Arguments, Failed, Trial};
use support::{Daemon, Random, call, elf, handle, returned};
use tempfile::TempDir;

const DATA_BYTES: usize = 1 << 20;
const ZLIB_MEMBERS: &[&str] =
    &["adler32", "compress", "crc32", "deflate", "inffast", "inflate", "inftrees", "trees", "uncompr", "zutil"];

fn main() {
    let arguments = Arguments::from_args();
    let required = std::env::var_os("CODECACHED_REQUIRE_REAL_OBJECTS").is_some();
    let missing = missing();
    if let Some(missing) = &missing {
        eprintln!("real objects need {missing}");
    }
    let test = |name: &str, run: fn()| {
        let run = move || {
            run();
            Ok::<(), Failed>(())
        };
        Trial::test(name, run).with_ignored_flag(missing.is_some() && !required)
    };
    let tests = vec![
        test("crc32_and_adler32_of_libz_alone_give_the_librarys_sums", sums),
        test("zlib_joined_from_its_objects_compresses_to_the_librarys_bytes_and_back", zlib),
        test("lz4_compresses_to_the_librarys_bytes_and_back", lz4),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

/// The first thing that is not there.
fn missing() -> Option<String> {
    let tools = ["cc", "ar", "ld"].into_iter().find(|it| Command::new(it).arg("--version").output().is_err());
    let library = |name: &str| archive(name).is_none().then(|| format!("{name} (Debian: its -dev package)"));
    tools.map(|it| format!("the command {it}")).or_else(|| library("libz.a")).or_else(|| library("liblz4.a"))
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
    let blob = std::fs::read(object).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let daemon = Daemon::start();
        let client = daemon.client().await;
        let entry = handle(&client.install(elf("object", blob)).await.unwrap());
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
    let joined = directory.path().join("joined.o");
    let members = ZLIB_MEMBERS.iter().map(|it| directory.path().join(format!("{it}.o")));
    let status = Command::new("ld").args(["-r", "-o"]).arg(&joined).args(members).status().unwrap();
    assert!(status.success());
    with_entry(&joined, async |client, entry| {
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
