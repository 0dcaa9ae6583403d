//! Measures what becomes of an object without transport: parsed, linked, published.
//!
//! ```text
//! cargo bench --bench link -- [--peer FILE] [ARCHIVE ...]
//! ```
//!
//! Prints `name value unit`, medians. The objects are those of the ORC harness, one function of 100 B and one of 4 KiB,
//! made by `cc`. Given the harness's output by `--peer`, it prints the ratios to its best setup. Of each archive (by
//! default those that the compiler knows of libz, liblz4 and libm) all members are parsed and linked, without memory, and
//! of those three as one blob what some functions need.
#![allow(clippy::print_stdout)] // Its figures are its output.

use std::{
    collections::BTreeSet,
    error::Error,
    fs,
    io::Write as _,
    process::{Command, Stdio},
    time::Instant,
};

use codecached::{
    arena::{ArenaConfig, Arenas, Layout, Part},
    code::{Addresses, CodeError, Image, ImportTable, Limits, Selection, ThreadSwitch},
};
use object::{
    LittleEndian, Object as _, ObjectSymbol as _,
    read::{archive::ArchiveFile, elf::ElfFile64},
};

const ROUNDS: usize = 5;
const OBJECTS: usize = 20_000;
const RESERVE_BYTES: u64 = 512 << 20;
const AIM_NS: f64 = 7_000.0;
/// What JITLink takes at least for such an object.
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
        let bytes = span_bytes(&blob);
        println!("link.{name}.parse_to_published {fresh:.0} ns");
        println!("link.{name}.parse_to_published_reused {reused:.0} ns");
        println!("link.{name}.span_bytes {bytes:.0} B");
        println!("link.{name}.whole_pages {:.3} x", bytes / PAGE_BYTES);
        let verdict = if fresh <= AIM_NS { "pass" } else { "short" };
        println!("link.aim.{name}.parse_to_published {fresh:.0} {AIM_NS} {verdict}");
        if let Some(theirs) = value(&peer, &format!("orc.best.{name}.install_100_each_p50")) {
            println!("link.ratio.{name}.parse_to_published {:.4} x", fresh / (1000.0 * theirs));
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
        let mut draft = arenas.reserve(&layout(&image)).expect("room");
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

/// Bytes of executable memory that an object takes.
fn span_bytes(blob: &[u8]) -> f64 {
    let arenas = Arenas::map(&ArenaConfig::new(RESERVE_BYTES, RESERVE_BYTES)).expect("arenas");
    let image = Image::parse_elf(blob, &Selection::default(), &ImportTable::default(), &Limits::default());
    arenas.charge_bytes(&layout(&image.expect("an object"))) as f64
}

fn layout(image: &Image) -> Layout {
    let part = |part: codecached::code::Part| Part { size_bytes: part.size_bytes, align_bytes: part.align_bytes };
    let sizes = image.sizes();
    Layout { code: part(sizes.code), rodata: part(sizes.rodata), data: part(sizes.data), low: false }
}

/// MB/s of parsing and linking all members that need nothing which is not there.
fn archive(path: &str) -> Result<(), Box<dyn Error>> {
    let blob = fs::read(path)?;
    let members: Vec<&[u8]> =
        ArchiveFile::parse(&*blob)?.members().map(|it| it.and_then(|it| it.data(&*blob))).collect::<Result<_, _>>()?;
    let bytes = members.iter().map(|it| it.len() as f64).sum::<f64>();
    let imports = offering(&members)?;
    let linked = |member: &&&[u8]| link(member, &Selection::default(), &imports).is_ok();
    let count = members.iter().filter(linked).count();
    let ns = median(|| {
        let start = Instant::now();
        let again = members.iter().filter(linked).count();
        assert_eq!(again, count);
        start.elapsed().as_secs_f64() * 1e9
    });
    let name = path.rsplit('/').next().unwrap_or(path);
    println!("link.archive.{name}.members {} members", members.len());
    println!("link.archive.{name}.linked {count} members");
    let screened = |member: &&[u8]| {
        let image = Image::parse_elf(member, &Selection::default(), &imports, &Limits::default()).ok()?;
        let code_bytes = image.sizes().code.size_bytes as f64;
        let start = Instant::now();
        std::hint::black_box(image.screen());
        Some((code_bytes, start.elapsed().as_secs_f64()))
    };
    let (code_bytes, seconds) = members.iter().filter_map(screened).fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
    println!("link.archive.{name}.screened {:.0} MB/s", code_bytes * 1e-6 / seconds);
    println!("link.archive.{name}.speed {:.0} MB/s", bytes * 1e3 / ns);
    by_need(name, &blob, &imports)
}

/// What is asked of an archive as one blob, as a client installs it.
const ROOTS: [(&str, &[&str]); 3] = [
    ("libz.a", &["compress2", "uncompress", "crc32"]),
    ("liblz4.a", &["LZ4_compress_default", "LZ4_decompress_safe"]),
    ("libm-2.36.a", &["cbrt", "hypot", "logb", "remquo"]),
];

/// MB/s of a whole archive, of which those members are linked that the exports need.
fn by_need(name: &str, blob: &[u8], imports: &ImportTable) -> Result<(), Box<dyn Error>> {
    let Some((_, roots)) = ROOTS.iter().find(|(known, _)| *known == name) else { return Ok(()) };
    let selection = Selection { roots: roots.iter().map(|&it| it.to_owned()).collect(), ..Selection::default() };
    link(blob, &selection, imports)?;
    let ns = median(|| {
        let start = Instant::now();
        std::hint::black_box(link(blob, &selection, imports).is_ok());
        start.elapsed().as_secs_f64() * 1e9
    });
    println!("link.archive.{name}.by_need {:.1} us", ns / 1e3);
    println!("link.archive.{name}.by_need_speed {:.0} MB/s", blob.len() as f64 * 1e3 / ns);
    Ok(())
}

/// A table that has all that the members lack, far away; it is never called.
fn offering(members: &[&[u8]]) -> Result<ImportTable, Box<dyn Error>> {
    let mut names = BTreeSet::new();
    for member in members {
        let file = ElfFile64::<LittleEndian>::parse(*member)?;
        names.extend(file.symbols().filter(|it| it.is_undefined()).filter_map(|it| Some(it.name().ok()?.to_owned())));
    }
    let names = names.into_iter().filter(|name| !name.is_empty() && name != "_GLOBAL_OFFSET_TABLE_");
    let table = ImportTable::new((0x5555_0000_0000..).zip(names).map(|(at, name)| (&*name.leak(), at)));
    Ok(table.with_thread_switch(Some(ThreadSwitch { address: 0x5555_0000_0000, direct: Box::default() })))
}

fn link(blob: &[u8], selection: &Selection, imports: &ImportTable) -> Result<(), CodeError> {
    let image = Image::parse_elf(blob, selection, imports, &Limits::default())?;
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
