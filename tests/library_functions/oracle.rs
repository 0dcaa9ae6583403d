//! The same functions in a program that the system's linker made.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use codecached::proto::{ResultType, value::Kind};

/// What a call gave: the result, its bits, and the buffers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) bits: u64,
    pub(crate) buffers: Vec<Vec<u8>>,
}

/// One call.
pub(crate) struct Asked {
    /// Its place in the table.
    pub(crate) function: usize,
    pub(crate) arguments: Vec<Kind>,
    pub(crate) result: ResultType,
}

impl Asked {
    /// As `oracle.c` reads it.
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend((self.function as u32).to_le_bytes());
        out.extend((self.arguments.len() as u32).to_le_bytes());
        let mut put = |tag: u8, parts: &[&[u8]]| {
            out.push(tag);
            parts.iter().for_each(|part| out.extend_from_slice(part));
        };
        for argument in &self.arguments {
            match argument {
                Kind::I32(value) => put(b'i', &[&i64::from(*value).to_le_bytes()]),
                Kind::U32(value) => put(b'i', &[&u64::from(*value).to_le_bytes()]),
                Kind::I64(value) => put(b'i', &[&value.to_le_bytes()]),
                Kind::U64(value) => put(b'i', &[&value.to_le_bytes()]),
                Kind::F32(value) => put(b'd', &[&u64::from(value.to_bits()).to_le_bytes()]),
                Kind::F64(value) => put(b'd', &[&value.to_le_bytes()]),
                Kind::Bytes(bytes) => put(b'b', &[&(bytes.len() as u32).to_le_bytes(), bytes]),
                Kind::Inout(bytes) => put(b'x', &[&(bytes.len() as u32).to_le_bytes(), bytes]),
                Kind::OutBytes(size) => put(b'o', &[&(*size as u32).to_le_bytes()]),
            }
        }
    }

    /// Takes what `oracle.c` answers from the front of `rest`.
    fn decode(&self, rest: &mut &[u8]) -> Given {
        let mut take = |size: usize| {
            let (taken, after) = rest.split_at(size);
            *rest = after;
            taken.to_vec()
        };
        let [integer, real] = [(); 2].map(|()| u64::from_le_bytes(take(8).try_into().unwrap()));
        let bits = match self.result {
            ResultType::I32 | ResultType::U32 => integer & 0xffff_ffff,
            ResultType::F32 => real & 0xffff_ffff,
            ResultType::F64 => real,
            ResultType::I64 | ResultType::U64 => integer,
            ResultType::Void | ResultType::Unspecified => 0,
        };
        let size = |argument: &Kind| match argument {
            Kind::Inout(bytes) => Some(bytes.len()),
            Kind::OutBytes(size) => Some(*size as usize),
            _ => None,
        };
        Given { bits, buffers: self.arguments.iter().filter_map(size).map(&mut take).collect() }
    }
}

/// The bits of a result as the daemon answers it.
pub(crate) fn bits(value: Option<Kind>) -> u64 {
    match value {
        None => 0,
        Some(Kind::I32(value)) => u64::from(value as u32),
        Some(Kind::U32(value)) => value.into(),
        Some(Kind::I64(value)) => value as u64,
        Some(Kind::U64(value)) => value,
        Some(Kind::F32(value)) => value.to_bits().into(),
        Some(Kind::F64(value)) => value.to_bits(),
        Some(other) => panic!("{other:?} is no result"),
    }
}

/// The table of functions, as C: names only, so that no declaration of a header is in their way.
pub(crate) fn table<'a>(names: impl Iterator<Item = &'a str> + Clone) -> String {
    let declared = names.clone().enumerate().map(|(at, name)| format!("extern char f{at}[] __asm__(\"{name}\");\n"));
    let listed = names.enumerate().map(|(at, _)| format!("f{at}, "));
    format!("{}void *const functions[] = {{{}}};\n", declared.collect::<String>(), listed.collect::<String>())
}

/// What the program answers to all calls.
pub(crate) fn ask(program: &Path, calls: &[Asked]) -> Vec<Given> {
    let mut input = Vec::new();
    calls.iter().for_each(|call| call.encode(&mut input));
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || pipe.write_all(&input));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}: {}", program.display(), output.status);
    writer.join().unwrap().unwrap();
    let mut rest = &output.stdout[..];
    let given = calls.iter().map(|call| call.decode(&mut rest)).collect();
    assert!(rest.is_empty(), "{} bytes were not asked for", rest.len());
    given
}
