//! What `perf inject --jit` reads: `jit-PID.dump`, with names, times and bytes of code.
//!
//! The format is that of linux/tools/perf/Documentation/jitdump-specification.txt, version 1: a header, then records, all
//! in the byte order of the machine. perf learns of the file by a mapping of its first page that is executable: it sees
//! only such. The page is mapped once, before anything is installed, and nothing in it is ever run.
#![allow(unsafe_code)] // The mapping.

use std::{
    num::NonZeroUsize,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap},
    time::{ClockId, clock_gettime},
    unistd::gettid,
};

use super::{
    file::{BoundedFile, FileError, Written},
    names::{self, Named},
};
use crate::cache::Placed;

/// "JiTD", which tells the byte order.
const MAGIC: u32 = 0x4a69_5444;
const VERSION: u32 = 1;
const HEADER_BYTES: u32 = 40;
/// Of ELF.
const MACHINE_X86_64: u32 = 62;
const RECORD_LOAD: u32 = 0;
const RECORD_CLOSE: u32 = 3;
/// Of the header that each record has.
const RECORD_HEADER_BYTES: u32 = 16;
/// Of a load record before its name.
const LOAD_BYTES: u32 = RECORD_HEADER_BYTES + 2 * 4 + 4 * 8;
const PAGE_BYTES: usize = 4096;

pub(super) struct JitDump {
    file: BoundedFile,
    /// Numbers of the records, each of its own.
    next_index: AtomicU64,
}

impl JitDump {
    /// Makes the file and shows it to perf.
    pub(super) fn create(directory: &Path, max_bytes: u64) -> Result<Self, FileError> {
        let file = BoundedFile::create(directory, &format!("jit-{}.dump", std::process::id()), max_bytes)?;
        let path = || file.path().to_owned();
        file.append(&header(std::process::id(), now_ns()));
        file.with_file(map_first_page).map_err(|errno| FileError::Map { path: path(), error: errno.into() })?;
        Ok(Self { file, next_index: AtomicU64::new(0) })
    }

    /// Adds a record for each function of an entry; one where several begin at the same place, so that no code comes twice.
    pub(super) fn note(&self, placed: &Placed<'_>) {
        let start = placed.code_range().start;
        let code = placed.read_code();
        let suffix = names::suffix(placed.name);
        let thread = gettid().as_raw().unsigned_abs();
        let mut begun = None;
        for piece in names::named(placed.functions, code.len() as u64) {
            if begun.replace(piece.offset_bytes) == Some(piece.offset_bytes) {
                continue;
            }
            let load = Load {
                process: std::process::id(),
                thread,
                address: start + piece.offset_bytes,
                index: self.next_index.fetch_add(1, Relaxed),
                code: &code[piece.offset_bytes as usize..][..piece.size_bytes as usize],
            };
            self.file.append(&load.record(now_ns(), &piece, &suffix));
        }
    }

    pub(super) fn finish(&self) -> Written {
        self.file.finish(&record_header(RECORD_CLOSE, RECORD_HEADER_BYTES, now_ns()), u64::from(HEADER_BYTES))
    }
}

/// Code that is there from now on.
struct Load<'a> {
    process: u32,
    thread: u32,
    address: u64,
    index: u64,
    code: &'a [u8],
}

impl Load<'_> {
    fn record(&self, time_ns: u64, piece: &Named<'_>, suffix: &str) -> Vec<u8> {
        let name: String = names::plain(piece.name).chain(suffix.chars()).collect();
        let total = u64::from(LOAD_BYTES) + name.len() as u64 + 1 + self.code.len() as u64;
        // An image has fewer bytes than 2^30.
        let total = u32::try_from(total).unwrap_or(u32::MAX);
        let mut record = record_header(RECORD_LOAD, total, time_ns).to_vec();
        record.extend(self.process.to_ne_bytes());
        record.extend(self.thread.to_ne_bytes());
        // Where it is, and where it was made: here the same.
        for number in [self.address, self.address, self.code.len() as u64, self.index] {
            record.extend(number.to_ne_bytes());
        }
        record.extend(name.as_bytes());
        record.push(0);
        record.extend(self.code);
        record
    }
}

fn header(process: u32, time_ns: u64) -> Vec<u8> {
    let mut header = Vec::new();
    for number in [MAGIC, VERSION, HEADER_BYTES, MACHINE_X86_64, 0, process] {
        header.extend(number.to_ne_bytes());
    }
    header.extend(time_ns.to_ne_bytes());
    header.extend(0_u64.to_ne_bytes()); // no flags: times are of the monotonic clock
    header
}

fn record_header(kind: u32, total_bytes: u32, time_ns: u64) -> [u8; RECORD_HEADER_BYTES as usize] {
    let mut header = [0; RECORD_HEADER_BYTES as usize];
    header[..4].copy_from_slice(&kind.to_ne_bytes());
    header[4..8].copy_from_slice(&total_bytes.to_ne_bytes());
    header[8..].copy_from_slice(&time_ns.to_ne_bytes());
    header
}

/// By the clock of `perf record -k 1`.
fn now_ns() -> u64 {
    // It is always there.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |it| it.tv_sec() as u64 * 1_000_000_000 + it.tv_nsec() as u64)
}

fn map_first_page(file: &std::fs::File) -> Result<(), Errno> {
    let length = NonZeroUsize::new(PAGE_BYTES).unwrap_or(NonZeroUsize::MIN);
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
    // SAFETY: a new private mapping at a place that the kernel chooses, to which no reference is ever made; it stays as
    // long as the process.
    unsafe { mmap(None, length, protection, MapFlags::MAP_PRIVATE, file, 0) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_records_are_laid_out_as_perf_reads_them() {
        let header = header(7, 0x0102);
        assert_eq!(header.len(), 40);
        assert_eq!(&header[..8], b"DTiJ\x01\0\0\0");
        assert_eq!(&header[8..24], [40, 0, 0, 0, 62, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
        let load = Load { process: 7, thread: 8, address: 0x1000, index: 3, code: &[0xc3] };
        let record = load.record(5, &Named { name: "f", offset_bytes: 0, size_bytes: 1 }, " [k]");
        assert_eq!(&record[..16], [0, 0, 0, 0, 63, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&record[16..24], [7, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!(&record[24..40], [0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&record[40..56], [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&record[56..], b"f [k]\0\xc3");
        assert_eq!(record.len(), 63);
    }
}
