//! The program against the rule in plain words, for what a kernel would ask it.

use proptest::prelude::*;
use proptest::sample::select;

use super::super::machine::{Data, assert_fit, run};
use super::super::program::AUDIT_ARCH_X86_64;
use super::*;

const EPERM: u32 = 0x0005_0001;
const CODE: Range<u64> = 0x7f12_ffff_f000..0x7f13_0000_1000;

/// The rule, written down a second time and in another way.
fn rule(process: &Process, data: &Data) -> u32 {
    let [a, ..] = data.arguments;
    let [_, flags_of_open, protection, ..] = data.arguments.map(|argument| argument as u32);
    let executable = protection & 4 != 0;
    let in_code = process.code.iter().any(|range| range.contains(&a));
    let writes = |flags: u32| {
        let (access, creates, truncates, appends) =
            (flags & 3, flags & 0o100 != 0, flags & 0o1000 != 0, flags & 0o2000 != 0);
        let nameless = flags & 0o20_000_000 != 0;
        let reads = access == 0 && !creates;
        let adds = process.appends && access == 1 && appends;
        truncates || nameless || !(reads || adds)
    };
    let refused = data.arch != 0xc000_003e
        || data.number > 0x3fff_ffff
        || match c_long::from(data.number) {
            libc::SYS_mmap | libc::SYS_pkey_mprotect => executable,
            libc::SYS_mprotect => executable && !(process.flips_protection && protection == 5 && in_code),
            libc::SYS_mremap => in_code,
            libc::SYS_shmat => protection & 0o100_000 != 0,
            libc::SYS_open => writes(flags_of_open),
            libc::SYS_openat => writes(protection),
            number => NEVER.contains(&number),
        };
    if refused { EPERM } else { ALLOWED }
}

const CONDITIONAL: &[c_long] = &[
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_pkey_mprotect,
    libc::SYS_mremap,
    libc::SYS_shmat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat,
];

fn process() -> impl Strategy<Value = Process> {
    let code = select(vec![vec![], vec![CODE], vec![0x1000..0x2000, CODE], vec![CODE.start..CODE.start]]);
    (code, any::<bool>(), any::<bool>()).prop_map(|(code, flips_protection, appends)| Process {
        code,
        flips_protection,
        appends,
    })
}

fn asked() -> impl Strategy<Value = Data> {
    let numbers = prop_oneof![
        6 => select(CONDITIONAL).prop_map(|number| number as u32),
        2 => select(NEVER).prop_map(|number| number as u32),
        1 => 0_u32..600,
        1 => select(vec![0x4000_003b, 0x4000_0208, 0x3fff_ffff, u32::MAX]),
    ];
    let arch = prop_oneof![9 => Just(AUDIT_ARCH_X86_64), 1 => select(vec![0x4000_0003, 0xc000_00b7, 0])];
    let edges = [0, 0xfff, 0x1000, CODE.start - 1, CODE.start, 0x7f13_0000_0000, CODE.end - 1, CODE.end];
    let address = prop_oneof![select(edges.to_vec()), any::<u64>()];
    // Each bit that is telling, and others beside them, in any combination.
    let bits = [0, 1, 2, 4, 0o100, 0o1000, 0o2000, 0o100_000, 0o200_000, 0o20_000_000, 0o2_000_000, 1 << 40];
    let flags =
        || prop::collection::vec(select(bits.to_vec()), 0..4).prop_map(|bits| bits.iter().fold(0, |all, it| all | it));
    (numbers, arch, address, flags(), flags()).prop_map(|(number, arch, address, second, third)| Data {
        number,
        arch,
        pointer: 0x5555_0000_0000,
        arguments: [address, second, third, 0, 0, 0],
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_program_says_what_the_rule_says(process in process(), data in asked()) {
        prop_assert_eq!(run(&program(&process), &data), rule(&process, &data), "{:x?}", process);
    }
}

#[test]
fn the_program_is_one_that_the_kernel_takes() {
    let code = (1..=16).map(|at| at << 40..(at << 40) + (1 << 30)).collect();
    assert_fit(&program(&Process { code, flips_protection: true, appends: true }));
}
