//! Random and mutated bytes as objects: an error or an entry, never a crash, never memory above the limits.

mod support;

use std::{fs, sync::Arc};

use codecached::{
    arena::{ArenaConfig, Arenas},
    cache::{Cache, CacheConfig, Install, Name, Namespace, Target},
    code::{Image, ImportTable, Limits, Selection},
    exec,
};
use support::Random;

/// Inputs of a run; CODECACHED_TEST_SCALE multiplies it.
const INPUTS: u64 = 100_000;
const BUDGET_BYTES: u64 = 8 << 20;
const IMAGE_MAX_BYTES: u64 = 1 << 20;
/// Of the process, above what it had before: budget, slack, one image being parsed, and the allocator's own ways.
const GROWTH_MAX_BYTES: u64 = 64 << 20;

/// Changes some bytes of a real object: at random, at the places where counts and offsets stand, or by cutting.
fn mutate(random: &mut Random, object: &[u8]) -> Vec<u8> {
    let mut blob = object.to_vec();
    for _ in 0..=random.below(8) {
        let at = match random.below(4) {
            0 => random.below(64),
            // Section headers stand at the end of what compilers write.
            1 => blob.len() as u64 - 1 - random.below((blob.len() as u64).min(1500)),
            _ => random.below(blob.len() as u64),
        } as usize;
        match random.below(5) {
            0 => blob[at] = random.next() as u8,
            1 => blob[at] ^= 1 << random.below(8),
            2 => blob[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize],
            3 => {
                let end = (at + 8).min(blob.len());
                blob[at..end].copy_from_slice(&random.next().to_le_bytes()[..end - at]);
            }
            _ => {
                let from = random.below(blob.len() as u64) as usize;
                let length = (random.below(32) as usize).min(blob.len() - from.max(at));
                blob.copy_within(from..from + length, at);
            }
        }
    }
    if random.below(16) == 0 {
        blob.truncate(random.below(blob.len() as u64) as usize);
    }
    blob
}

fn noise(random: &mut Random, object: &[u8]) -> Vec<u8> {
    let mut blob: Vec<u8> = (0..random.below(2048)).map(|_| random.next() as u8).collect();
    let head = blob.len().min(64);
    if random.below(2) == 0 {
        // A right beginning lets the rest be read.
        blob[..head].copy_from_slice(&object[..head]);
    }
    blob
}

fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_hundred_thousand_random_and_mutated_objects_are_refused_or_installed() {
    let scale: u64 = std::env::var("CODECACHED_TEST_SCALE").map_or(1, |it| it.parse().unwrap());
    let objects: Vec<Vec<u8>> = [
        ("asks_much.c", &["-O2", "-fPIC", "-fno-builtin", "-fstack-protector-all"][..]),
        ("counter.c", &["-O1", "-fPIC", "-g"]),
        ("doubles.c", &["-O2", "-fPIC", "-ffunction-sections"]),
        ("hostile.S", &[]),
        ("undefined.c", &["-O0"]),
    ]
    .into_iter()
    .map(|(file, flags)| support::compile_with(file, flags))
    .collect();
    let arenas = Arenas::map(&ArenaConfig::new(64 << 20, BUDGET_BYTES * 21 / 20)).unwrap();
    let config = CacheConfig { eviction_window: 16, ..CacheConfig::foreseeable(BUDGET_BYTES) };
    let cache = Cache::new(&config, Arc::clone(&arenas), ImportTable::new(exec::imports()));
    let limits = Limits { image_max_bytes: IMAGE_MAX_BYTES, ..Limits::default() };
    let before_bytes = peak_bytes();
    let (mut installed, mut refused) = (0_u64, 0_u64);
    for seed in 0..INPUTS * scale {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed + 1) << 17);
        let object = &objects[random.below(objects.len() as u64) as usize];
        let blob = if random.below(8) == 0 { noise(&mut random, object) } else { mutate(&mut random, object) };
        let image = match Image::parse_elf(&blob, &Selection::default(), cache.imports(), &limits) {
            Ok(image) => image,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
                continue;
            }
        };
        let sizes = image.sizes();
        let total_bytes = sizes.code.size_bytes + sizes.rodata.size_bytes + sizes.data.size_bytes;
        assert!(total_bytes <= IMAGE_MAX_BYTES, "seed {seed}: an image of {total_bytes} bytes");
        let name = Name::new(Namespace::new("").unwrap(), &(seed % 64).to_le_bytes()).unwrap();
        let digest = *blake3::hash(&blob).as_bytes();
        let install = Install { name: name.clone(), digest, identity: digest, replace: true, reentrant: false };
        match cache.install(&install, image) {
            Ok(_) => {
                let pinned = cache.pin(Target::Name(&name)).unwrap_or_else(|| panic!("seed {seed}: not found"));
                let code = pinned.code_range();
                for symbol in pinned.meta().exports.symbols().iter().filter(|it| it.is_function) {
                    let address = pinned.function(&symbol.name).unwrap();
                    assert!(code.contains(&address), "seed {seed}: {} lies outside of its code", symbol.name);
                }
                installed += 1;
            }
            Err(_) => refused += 1,
        }
        assert!(cache.stats().charged.total_bytes() <= BUDGET_BYTES, "seed {seed}");
    }
    assert!(
        installed > INPUTS / 100 && refused > INPUTS / 100,
        "{installed} installed, {refused} refused: too one-sided"
    );
    let grown_bytes = peak_bytes() - before_bytes;
    assert!(grown_bytes <= GROWTH_MAX_BYTES, "memory grew by {grown_bytes} bytes");
    drop(cache);
    assert_eq!(arenas.stats().total().used_bytes, 0);
}
