//! Every member of the system's static libraries is linked, or refused for a reason that is documented.
//!
//! Where a library is not installed its test is ignored, and says what is missing; CODECACHED_REQUIRE_REAL_OBJECTS=1
//! makes that a failure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use codecached::code::{Addresses, CodeError, Image, ImportTable, Limits, Selection, ThreadSwitch};
use libtest_mimic::{Arguments, Failed, Trial};
use object::{
    Object as _, ObjectSymbol as _,
    read::{archive::ArchiveFile, elf::ElfFile64},
};

/// Run addresses as an arena gives them: within reach of each other, far from everything else.
const AT: Addresses = Addresses { code: 0x7f00_0000_0000, rodata: 0x7f00_1000_0000, data: 0x7f00_2000_0000 };
/// Where what was linked is moved to.
const ELSEWHERE: Addresses = Addresses { code: 0x6f00_1000_0000, rodata: 0x6f00_0000_0000, data: 0x6f00_3000_0040 };
/// Where imports are, one after the other: out of reach.
const IMPORTS_START: u64 = 0x5555_0000_0000;

/// Refusals that the README lists, by a part of their text, and why there is no more to be had here.
const DOCUMENTED: [&str; 4] = [
    "private state of glibc's loader",
    "use a constructor",
    "it needs code below 2 GiB",
    "a section cannot be both writable and executable",
];
/// Of what is not refused for these, as much must be linked.
const LINKED_SHARE_MIN: f64 = 0.97;

struct Library {
    name: &'static str,
    package: &'static str,
    /// Where it is if the compiler does not know it.
    path: Option<&'static str>,
    /// What is asked of the whole archive, if all that this needs is in it or offered by the daemon.
    roots: &'static [&'static str],
}

const LIBRARIES: [Library; 5] = [
    Library { name: "libz.a", package: "zlib1g-dev", path: None, roots: &["compress2", "uncompress", "crc32"] },
    Library {
        name: "liblz4.a",
        package: "liblz4-dev",
        path: None,
        roots: &["LZ4_compress_default", "LZ4_decompress_safe"],
    },
    Library { name: "libm-2.36.a", package: "libc6-dev 2.36", path: None, roots: &["cbrt", "hypot", "logb", "remquo"] },
    Library { name: "libpng16.a", package: "libpng-dev", path: None, roots: &[] },
    Library {
        name: "libc.a",
        package: "musl-dev",
        path: Some("/usr/lib/x86_64-linux-musl/libc.a"),
        roots: &["qsort", "strlen", "memmem", "strtol", "bsearch"],
    },
];

fn main() {
    let arguments = Arguments::from_args();
    let required = std::env::var_os("CODECACHED_REQUIRE_REAL_OBJECTS").is_some();
    let tests = LIBRARIES.iter().map(|library| {
        let path = library.find();
        if path.is_none() {
            eprintln!("{} is not installed: package {}", library.name, library.package);
        }
        let is_ignored = path.is_none() && !required;
        let name = format!("every_member_of_{}_is_linked_or_refused_as_documented", library.name);
        Trial::test(name, move || library.test(path.ok_or_else(|| Failed::from("not installed"))?))
            .with_ignored_flag(is_ignored)
    });
    libtest_mimic::run(&arguments, tests.collect()).exit();
}

impl Library {
    fn find(&self) -> Option<PathBuf> {
        if let Some(path) = self.path {
            return Some(PathBuf::from(path)).filter(|path| path.exists());
        }
        let output = Command::new("cc").arg(format!("-print-file-name={}", self.name)).output().ok()?;
        let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        path.is_absolute().then_some(path)
    }

    fn test(&self, path: PathBuf) -> Result<(), Failed> {
        let blob = fs::read(path)?;
        let archive = ArchiveFile::parse(&*blob)?;
        let (mut linked, mut lacking, mut total) = (0, 0, 0);
        let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut missing = BTreeSet::new();
        for member in archive.members() {
            let member = member?;
            let (name, bytes) = (String::from_utf8_lossy(member.name()).into_owned(), member.data(&*blob)?);
            total += 1;
            let undefined = undefined(bytes)?;
            missing.extend(undefined.iter().cloned());
            match link(bytes, &Selection::default(), &offering(undefined.clone())) {
                Ok(_) => linked += 1,
                // A variable of another member, which must be near: no host function stands for it.
                Err(CodeError::RelocationOverflow { at, .. })
                    if at.symbol.as_ref().is_some_and(|it| undefined.contains(it)) =>
                {
                    lacking += 1;
                }
                Err(error) => refused.entry(reason(&error)).or_default().push(format!("{name}: {error}")),
            }
        }
        let documented: usize = refused
            .iter()
            .filter(|(reason, _)| DOCUMENTED.iter().any(|it| reason.contains(it)))
            .map(|(_, members)| members.len())
            .sum();
        eprintln!(
            "{}: {total} members, {linked} linked, {documented} refused as documented, {lacking} for want of others",
            self.name
        );
        for (reason, members) in &refused {
            eprintln!("  {:4} {reason}, such as {}", members.len(), members[0]);
        }
        let share = f64::from(linked) / (total - lacking - documented as i32) as f64;
        if share < LINKED_SHARE_MIN {
            return Err(format!("{share:.3} of the members were linked, beside documented refusals").into());
        }
        if !self.roots.is_empty() {
            let roots = self.roots.iter().map(|&root| root.to_owned()).collect();
            let selection = Selection { roots, ..Selection::default() };
            let image = link(&blob, &selection, &offering(missing)).map_err(|error| error.to_string())?;
            let exports: Vec<_> = image.symbols().iter().map(|symbol| &*symbol.name).collect();
            let mut wanted = self.roots.to_vec();
            wanted.sort_unstable();
            assert_eq!(exports, wanted);
            eprintln!("  with {} of them: {} objects, {:?}", exports.len(), image.objects(), image.unused());
        }
        Ok(())
    }
}

/// What a refusal says, without its place.
fn reason(error: &CodeError) -> String {
    match error {
        CodeError::Unsupported { what, .. } | CodeError::Malformed { what, .. } => (*what).to_owned(),
        CodeError::UnsupportedRelocation { relocation, hint, .. } => format!("{relocation}: {hint}"),
        other => other.to_string(),
    }
}

fn undefined(object: &[u8]) -> Result<BTreeSet<String>, Failed> {
    let file = ElfFile64::<object::LittleEndian>::parse(object)?;
    Ok(file.symbols().filter(|it| it.is_undefined()).filter_map(|it| Some(it.name().ok()?.to_owned())).collect())
}

/// A table in which all these names are far away. Names live as long as the table, and that as long as the test.
fn offering(names: BTreeSet<String>) -> ImportTable {
    let names = names.into_iter().filter(|name| !name.is_empty() && name != "_GLOBAL_OFFSET_TABLE_");
    let table = ImportTable::new((0..).zip(names).map(|(at, name)| (&*name.leak(), IMPORTS_START + 16 * at)));
    table.with_thread_switch(Some(ThreadSwitch { address: IMPORTS_START, direct: Box::default() }))
}

fn link(blob: &[u8], selection: &Selection, imports: &ImportTable) -> Result<Image, CodeError> {
    let image = Image::parse_elf(blob, selection, imports, &Limits::default())?;
    let sizes = image.sizes();
    let [mut code, mut rodata, mut data] =
        [sizes.code, sizes.rodata, sizes.data].map(|part| vec![0; part.size_bytes as usize]);
    image.link(AT, &mut code, &mut rodata, &mut data)?;
    let moved = image.link_state().relink(AT, ELSEWHERE, &mut code, &mut rodata, &mut data);
    assert_eq!(moved, Ok(()), "what was linked can be moved");
    let [mut code_there, mut rodata_there, mut data_there] = [&code, &rodata, &data].map(|it| vec![0; it.len()]);
    image.link(ELSEWHERE, &mut code_there, &mut rodata_there, &mut data_there)?;
    assert!(code == code_there && rodata == rodata_there && data == data_there, "moved, it is as if linked there");
    Ok(image)
}
