//! Measures what becomes of an object without transport: parsed, linked, published, resident.
//!
//! ```text
//! cargo bench --bench link -- [--peer FILE] [ARCHIVE ...]
//! ```
//!
//! Prints `name value unit`, medians. The objects are those of the ORC harness, one function of 100 B and one of 4 KiB,
//! made by `cc`. Given the harness's output by `--peer`, it prints the ratios to its best setup. Of each archive (by
//! default those that the compiler knows of libz, liblz4 and libm) all members are parsed and linked, without memory.
#![allow(clippy::print_stdout)] // Its figures are its output.

use std::{
    error::Error,
    fs,
    io::Write as _,
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use codecached::{
    arena::{ArenaConfig, Arenas, Layout, Part},
    cache::{Cache, CacheConfig, Install, Name, Namespace},
    code::{Addresses, CodeError, Image, ImportTable, Limits, Selection},
    exec,
};
use object::read::archive::ArchiveFile;

const ROUNDS: usize = 5;
const OBJECTS: usize = 20_000;
const RESERVE_BYTES: u64 = 512 << 20;
const AIM_NS: f64 = 7_000.0;
/// A page for each of the segments that JITLink makes of such an object.
const PAGE_BYTES: f64 = 4096.0;
const AT: Addresses = Addresses { code: 0x7f00_0000_0000, rodata: 0x7f00_1000_0000, data: 0x7f00_2000_0000 };

/// One function and nothing else that needs memory; bodies as the harness has them.
const BODIES: [(&str, &str); 2] =
    [("text100B", "ret\n.fill 100-(.-f0000000),1,0x90"), ("text4K", ".rept 1364\naddl $3,%eax\n.endr\nret")];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|it| it != "--bench").peekable();
    let mut peer = String::new();
    if arguments.next_if(|it| it == "--peer").is_some() {
        peer = fs::read_to_string(arguments.next().ok_or("--peer FILE")?)?;
    }
    for (name, body) in BODIES {
        let blob = assemble(body)?;
        let fresh = median(|| published(&blob, false));
        let reused = median(|| published(&blob, true));
        let (install, charged) = (median(|| installed(&blob).0), installed(&blob).1);
        println!("link.{name}.parse_to_published {fresh:.0} ns");
        println!("link.{name}.parse_to_published_reused {reused:.0} ns");
        println!("link.{name}.install_in_process {install:.0} ns");
        println!("link.{name}.charged_bytes {charged:.0} B");
        println!("link.{name}.pages_of_its_own {:.3} x", charged / (2.0 * PAGE_BYTES));
        let verdict = if fresh <= AIM_NS { "pass" } else { "short" };
        println!("link.aim.{name}.parse_to_published {fresh:.0} {AIM_NS} {verdict}");
        if let Some(theirs) = value(&peer, &format!("orc.best.{name}.install_100_each_p50")) {
            println!("link.ratio.{name}.install_in_process {:.4} x", install / (1000.0 * theirs));
        }
    }
    let archives: Vec<_> = arguments.collect();
    let archives = if archives.is_empty() { known_archives() } else { archives };
    archives.iter().try_for_each(|path| archive(path))
}

fn assemble(body: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let source = format!(
        ".text\n.globl f0000000\n.type f0000000,@function\nf0000000: leal (%rdi,%rsi),%eax\n{body}\n\
         .size f0000000,.-f0000000\n.section .note.GNU-stack,\"\",@progbits\n"
    );
    let path = std::env::temp_dir().join(format!("codecached-link-{}.o", std::process::id()));
    let mut child = Command::new("cc")
        .args(["-c", "-x", "assembler", "-", "-o"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cc: {error}"))?;
    child.stdin.take().ok_or("no pipe")?.write_all(source.as_bytes())?;
    if !child.wait()?.success() {
        return Err("cc failed".into());
    }
    let blob = fs::read(&path)?;
    fs::remove_file(&path)?;
    Ok(blob)
}

/// Nanoseconds from bytes to code that may be called: where nothing ran before, or where the last one was freed.
fn published(blob: &[u8], reused: bool) -> f64 {
    let arenas = Arenas::map(&ArenaConfig::new(RESERVE_BYTES, RESERVE_BYTES)).expect("arenas");
    let mut kept = Vec::with_capacity(OBJECTS);
    let start = Instant::now();
    for _ in 0..OBJECTS {
        let image = Image::parse_elf(blob, &Selection::default(), &ImportTable::default(), &Limits::default())
            .expect("an object");
        let part = |part: codecached::code::Part| Part { size_bytes: part.size_bytes, align_bytes: part.align_bytes };
        let sizes = image.sizes();
        let layout = Layout { code: part(sizes.code), rodata: part(sizes.rodata), data: part(sizes.data) };
        let mut draft = arenas.reserve(&layout).expect("room");
        let at = draft.addresses();
        let at = Addresses { code: at.code, rodata: at.rodata, data: at.data };
        let (code, rodata) = draft.code_and_rodata_mut();
        image.link(at, code, rodata, &mut []).expect("within reach");
        let published = draft.publish().expect("published");
        if !reused {
            kept.push(published);
        }
    }
    start.elapsed().as_secs_f64() * 1e9 / OBJECTS as f64
}

/// Nanoseconds of an install in process, each under a key of its own, and the bytes that one is charged.
fn installed(blob: &[u8]) -> (f64, f64) {
    let arenas = Arenas::map(&ArenaConfig::new(RESERVE_BYTES, RESERVE_BYTES)).expect("arenas");
    let config =
        CacheConfig { budget_bytes: RESERVE_BYTES, eviction_window: 16, generation_seed: 1, clock: Instant::now };
    let cache = Cache::new(&config, Arc::clone(&arenas), ImportTable::new(exec::imports()));
    let start = Instant::now();
    for at in 0..OBJECTS {
        let image =
            Image::parse_elf(blob, &Selection::default(), cache.imports(), &Limits::default()).expect("an object");
        let name = Name::new(Namespace::new("").expect("the default"), &at.to_le_bytes()).expect("a key");
        let digest = *blake3::hash(blob).as_bytes();
        let install = Install { name, digest, identity: digest, replace: false, reentrant: false };
        cache.install(&install, image).expect("room");
    }
    let ns = start.elapsed().as_secs_f64() * 1e9 / OBJECTS as f64;
    (ns, cache.stats().charged.total_bytes() as f64 / OBJECTS as f64)
}

/// MB/s of parsing and linking all members that need nothing which is not there.
fn archive(path: &str) -> Result<(), Box<dyn Error>> {
    let blob = fs::read(path)?;
    let members: Vec<&[u8]> =
        ArchiveFile::parse(&*blob)?.members().map(|it| it.and_then(|it| it.data(&*blob))).collect::<Result<_, _>>()?;
    let bytes = members.iter().map(|it| it.len() as f64).sum::<f64>();
    let imports = ImportTable::new(exec::imports()).with_thread_locals(exec::thread_locals());
    let linked = |member: &&&[u8]| link(member, &imports).is_ok();
    let count = members.iter().filter(linked).count();
    let ns = median(|| {
        let start = Instant::now();
        let again = members.iter().filter(linked).count();
        assert_eq!(again, count);
        start.elapsed().as_secs_f64() * 1e9
    });
    let name = path.rsplit('/').next().unwrap_or(path);
    println!("link.archive.{name}.members {} members", members.len());
    println!("link.archive.{name}.linked_with_what_is_offered {count} members");
    println!("link.archive.{name}.speed {:.0} MB/s", bytes * 1e3 / ns);
    Ok(())
}

fn link(member: &[u8], imports: &ImportTable) -> Result<(), CodeError> {
    let image = Image::parse_elf(member, &Selection::default(), imports, &Limits::default())?;
    let sizes = image.sizes();
    let [mut code, mut rodata, mut data] =
        [sizes.code, sizes.rodata, sizes.data].map(|part| vec![0; part.size_bytes as usize]);
    image.link(AT, &mut code, &mut rodata, &mut data)
}

fn known_archives() -> Vec<String> {
    let path = |name: &&str| {
        let output = Command::new("cc").arg(format!("-print-file-name={name}")).output().ok()?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|it| it.starts_with('/'))
    };
    ["libz.a", "liblz4.a", "libm-2.36.a"].iter().filter_map(path).collect()
}

fn median(mut measure: impl FnMut() -> f64) -> f64 {
    let mut values: Vec<f64> = (0..ROUNDS).map(|_| measure()).collect();
    values.sort_by(f64::total_cmp);
    values[ROUNDS / 2]
}

fn value(peer: &str, name: &str) -> Option<f64> {
    peer.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}
