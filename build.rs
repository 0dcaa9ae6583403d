//! Compiles the protos with protox, so that no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files =
        ["types", "cache", "execution", "admin", "signature"].map(|name| format!("proto/codecache/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    let path = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("codecache.bin");
    fs::write(path, prost::Message::encode_to_vec(&descriptors))?;
    // `bytes` fields are slices of the request's own buffer: a blob or an argument is not copied to be decoded.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
