//! Compiles C with the machine's `cc`, installs the object, and calls a function of it.
//!
//! ```text
//! cargo run --example install_and_call -- [--server unix:PATH|http://HOST:PORT] [FILE.c]
//! ```
//! FILE.c must define `uint32_t checksum(const uint8_t *, uint64_t)`; without a file, Adler-32 is used.
#![allow(clippy::print_stdout)] // an example talks to its reader

use std::{env, error::Error, fs, path::Path, process::Command};

use codecached::{
    client::{Client, DEFAULT_ADDRESS},
    proto::{
        BlobFormat, ExecuteRequest, InstallRequest, ResultType, Value, execute_request::Target,
        execute_response::Outcome, value::Kind,
    },
};

const ADLER32: &str = "\
#include <stdint.h>

uint32_t checksum(const uint8_t *bytes, uint64_t count) {
    uint32_t a = 1, b = 0;
    for (uint64_t i = 0; i < count; i++) {
        a = (a + bytes[i]) % 65521;
        b = (b + a) % 65521;
    }
    return b << 16 | a;
}
";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (server, source) = arguments()?;
    let client = Client::connect(&server).await?;

    // The key is the client's own: what the code was made of and how says when it may be used again.
    let key = format!("example/{}", blake3::hash(source.as_bytes()).to_hex());
    let install = InstallRequest {
        key: key.clone().into(),
        format: BlobFormat::ElfObject.into(),
        blob: compile(&source)?.into(),
        ..InstallRequest::default()
    };
    let installed = client.install(install).await?;
    let entry = installed.entry.ok_or("an install is answered with its entry")?;
    println!("installed {key}: {} bytes of code, new: {}", entry.code_bytes, installed.created);

    let text = "hello, codecached";
    let arguments = [Kind::Bytes(text.into()), Kind::U64(text.len() as u64)];
    let call = ExecuteRequest {
        target: Some(Target::Handle(entry.handle)),
        symbol: "checksum".into(),
        arguments: arguments.map(|kind| Value { kind: Some(kind) }).into(),
        result: ResultType::U32.into(),
        ..ExecuteRequest::default()
    };
    match client.execute(call).await?.outcome {
        Some(Outcome::Returned(returned)) => match returned.value.and_then(|value| value.kind) {
            Some(Kind::U32(sum)) => println!("checksum({text:?}) = {sum:#010x}"),
            other => return Err(format!("a result of another type: {other:?}").into()),
        },
        Some(Outcome::Trap(trap)) => return Err(format!("the call trapped: {trap:?}").into()),
        None => return Err("an answer without an outcome".into()),
    }
    Ok(())
}

fn arguments() -> Result<(String, String), Box<dyn Error>> {
    let mut server = env::var("CODECACHED_SERVER").unwrap_or_else(|_| DEFAULT_ADDRESS.into());
    let mut source = ADLER32.to_owned();
    let mut given = env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--server" => server = given.next().ok_or("--server needs an address")?,
            path => source = fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?,
        }
    }
    Ok((server, source))
}

fn compile(source: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let directory = env::temp_dir().join(format!("install_and_call-{}", std::process::id()));
    fs::create_dir(&directory)?;
    let object = compile_in(&directory, source);
    fs::remove_dir_all(&directory)?;
    object
}

fn compile_in(directory: &Path, source: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let (c_file, object) = (directory.join("code.c"), directory.join("code.o"));
    fs::write(&c_file, source)?;
    let done = Command::new("cc").args(["-O2", "-fPIC", "-c", "-o"]).arg(&object).arg(&c_file).status()?;
    if done.success() { Ok(fs::read(object)?) } else { Err(format!("cc failed: {done}").into()) }
}
