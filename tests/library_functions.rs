//! Functions of real static libraries, linked by the daemon and called through gRPC, give to the bit what the same
//! functions give in a program that the system's linker made of the same library.
//!
//! Where a library is not installed its test is ignored, and says what is missing; CODECACHED_REQUIRE_REAL_OBJECTS=1
//! makes that a failure.

#[path = "library_functions/oracle.rs"]
mod oracle;
#[path = "library_functions/signature.rs"]
mod signature;
mod support;
#[path = "library_functions/table.rs"]
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use codecached::{
    client::Client,
    proto::{BlobFormat, InstallRequest},
};
use libtest_mimic::Arguments;
use oracle::{Asked, Given};
use support::{Daemon, Random, call, elf, handle, returned, trial};

/// Calls of each function.
const CALLS: usize = 24;
const SEED: u64 = 1969;
/// Where Debian's musl-dev is.
const MUSL: &str = "/usr/lib/x86_64-linux-musl";

struct Library {
    name: &'static str,
    package: &'static str,
    rows: table::Rows,
    functions_min: usize,
    /// What is compiled beside it, and how.
    helper: Option<(&'static str, &'static [&'static str])>,
    /// What the program is linked with that is the oracle, if not with the archive alone.
    flags: &'static [&'static str],
}

const LIBRARIES: [Library; 4] = [
    Library {
        name: "libc.a",
        package: "musl-dev",
        rows: table::MUSL,
        functions_min: 190,
        helper: Some(("musl.c", &["-fno-builtin"])),
        flags: &[],
    },
    Library {
        name: "libm-2.36.a",
        package: "libc6-dev 2.36",
        rows: table::MATH,
        functions_min: 35,
        helper: None,
        // The shared one answers other NaNs, as old programs want them.
        flags: &["-static", "-lm"],
    },
    Library {
        name: "libz.a",
        package: "zlib1g-dev",
        rows: table::ZLIB,
        functions_min: 14,
        helper: Some(("zlib.c", &["-DOF_ZLIB"])),
        flags: &[],
    },
    Library {
        name: "liblz4.a",
        package: "liblz4-dev",
        rows: table::LZ4,
        functions_min: 9,
        helper: Some(("zlib.c", &["-DOF_LZ4"])),
        flags: &[],
    },
];

fn main() {
    let arguments = Arguments::from_args();
    let tests = LIBRARIES.iter().map(|library| {
        let path = library.find();
        let missing = path.is_none().then(|| format!("{} (Debian: {})", library.name, library.package));
        let package = library.package.split(' ').next().unwrap();
        let name = format!("functions_of_{}_of_{package}_give_the_bits_that_they_give_in_a_program", library.name);
        trial("CODECACHED_REQUIRE_REAL_OBJECTS", name, missing, move || library.test(&path.unwrap()))
    });
    libtest_mimic::run(&arguments, tests.collect()).exit();
}

impl Library {
    fn is_musl(&self) -> bool {
        self.package == "musl-dev"
    }

    fn find(&self) -> Option<PathBuf> {
        if self.is_musl() {
            return Some(Path::new(MUSL).join(self.name)).filter(|path| path.exists());
        }
        let output = Command::new("cc").arg(format!("-print-file-name={}", self.name)).output().ok()?;
        let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        path.is_absolute().then_some(path)
    }

    fn test(&self, archive: &Path) {
        let functions = table::functions(self.rows);
        assert!(functions.len() >= self.functions_min, "only {} functions", functions.len());
        let directory = tempfile::tempdir().unwrap();
        let archive = self.with_helper(archive, directory.path());
        let calls = calls(&functions);
        let expected = oracle::ask(&self.program(&archive, &functions, directory.path()), &calls);
        let exports = functions.iter().map(|&(name, _)| name.to_owned()).collect();
        let request = InstallRequest {
            format: BlobFormat::Archive.into(),
            exports,
            ..elf("library", fs::read(&archive).unwrap())
        };
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let daemon = Daemon::start();
            let client = daemon.client().await;
            let entry = handle(&client.install(request).await.unwrap_or_else(|error| panic!("{error}")));
            for (asked, expected) in calls.into_iter().zip(expected) {
                compare(&client, entry, functions[asked.function].0, asked, expected).await;
            }
        });
        eprintln!("{} of {}: {} functions, {CALLS} calls of each", self.name, self.package, functions.len());
    }

    /// The archive with the object of the helper in it.
    fn with_helper(&self, archive: &Path, directory: &Path) -> PathBuf {
        let joined = directory.join("joined.a");
        fs::copy(archive, &joined).unwrap();
        if let Some((source, flags)) = self.helper {
            let object = directory.join("helper.o");
            run(Command::new("cc")
                .args(["-O1", "-fPIC", "-U_FORTIFY_SOURCE", "-c"])
                .args(flags)
                .arg(sources().join(source))
                .arg("-o")
                .arg(&object));
            run(Command::new("ar").arg("r").arg(&joined).arg(&object));
        }
        joined
    }

    /// The program that calls the same functions.
    fn program(&self, archive: &Path, functions: &[(&str, &str)], directory: &Path) -> PathBuf {
        let (program, listed) = (directory.join("oracle"), directory.join("table.c"));
        fs::write(&listed, oracle::table(functions.iter().map(|&(name, _)| name))).unwrap();
        let mut link = Command::new("cc");
        link.args(["-O1", "-w", "-fno-builtin", "-U_FORTIFY_SOURCE", "-o"]).arg(&program);
        if self.is_musl() {
            link.args(["-nostdlib", "-static", "-no-pie", "-fno-stack-protector"]);
            link.args(["crt1.o", "crti.o"].map(|name| Path::new(MUSL).join(name)));
        }
        link.arg(sources().join("oracle.c")).arg(listed);
        if self.flags.is_empty() {
            link.arg(archive);
        }
        link.args(self.flags);
        if self.is_musl() {
            link.arg("-lgcc").arg(Path::new(MUSL).join("crtn.o"));
        }
        run(&mut link);
        program
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects/libraries")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn calls(functions: &[(&str, &str)]) -> Vec<Asked> {
    let mut random = Random(SEED);
    let one = |(function, &(name, signature)): (usize, &(&str, &str))| {
        let (letters, result) = signature.split_once(':').unwrap_or_else(|| panic!("{name}: {signature}"));
        let result = signature::result(result.chars().next().unwrap());
        let arguments = signature::arguments(letters, &mut random);
        Asked { function, arguments, result }
    };
    let repeated = functions.iter().enumerate().flat_map(|it| std::iter::repeat_n(it, CALLS));
    repeated.map(one).collect()
}

async fn compare(client: &Client, entry: u64, name: &str, asked: Asked, expected: Given) {
    let shown = format!("{name}({:?})", asked.arguments);
    let answer = client.execute(call(entry, name, asked.arguments, asked.result)).await;
    let (value, buffers) = returned(answer.unwrap_or_else(|error| panic!("{shown}: {error}")));
    let given = Given { bits: oracle::bits(value), buffers };
    assert!(given == expected, "{shown} gave {given:x?}, not {expected:x?} (seed {SEED})");
}
