//! The program against the rule in plain words, for what a kernel would ask it.

use std::slice;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::confine::AUDIT_ARCH_X86_64;
use crate::confine::machine::{Data, assert_fit, run};

const DAEMON: Daemon = Daemon { process: 4711, default_action: 0x55d0_1234_5678, flips_protection: true };

/// The rule, written down a second time and in another way.
fn rule(code: &[Range<u64>], daemon: Daemon, data: &Data) -> u32 {
    // A call is made by the two bytes before the pointer: the last of them is in the range.
    let from_code = code.iter().any(|range| data.pointer > range.start && data.pointer <= range.end);
    if data.arch != 0xc000_003e || data.number > 0x3fff_ffff || from_code {
        return 0x0003_c0de;
    }
    let ints = data.arguments.map(|argument| argument as u32);
    let [a, _, c, d, ..] = ints;
    let executable = c & 4 != 0;
    let listed = match libc::c_long::from(data.number) {
        libc::SYS_madvise => c < 100 || c == 102 || c == 103,
        libc::SYS_write => data.arguments[2] == 8 || a == 2,
        libc::SYS_writev => a == 2,
        libc::SYS_mmap => !executable && d & 0x30 == 0x20,
        libc::SYS_mremap => d & 6 == 0,
        libc::SYS_rt_sigaction => data.arguments[1] == DAEMON.default_action,
        libc::SYS_mprotect => {
            !executable || (daemon.flips_protection && c == 5 && code.iter().any(|it| it.contains(&data.arguments[0])))
        }
        libc::SYS_arch_prctl => a == 0x1002 || a == 0x1003,
        libc::SYS_tgkill => a == DAEMON.process && [4, 5, 6, 7, 8, 11, 31].contains(&c),
        number => ALWAYS.contains(&number),
    };
    if listed { 0x7fff_0000 } else { 0x0003_c0de }
}

/// The rule of threads that have other work.
fn lent_rule(code: &[Range<u64>], data: &Data) -> u32 {
    let from_code = code.iter().any(|range| range.start < data.pointer && range.end >= data.pointer);
    if from_code { 0x0003_c0de } else { 0x7fff_0000 }
}

/// A value, or one beside it in one or both halves.
fn near(values: Vec<u64>) -> impl Strategy<Value = u64> {
    let offsets = vec![0, 1, 2, 1 << 32, (1 << 32) + 1, u64::from(u32::MAX)];
    (select(values), select(offsets), any::<bool>())
        .prop_map(|(value, offset, up)| if up { value.wrapping_add(offset) } else { value.wrapping_sub(offset) })
}

/// Ranges of all lengths, within 4 GiB, across such a border, and at the ends of the address space.
fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
    let starts = vec![0, 0x10_0000, 0xffff_f000, 1 << 32, 0x7f12_ffff_f000, 0x7fff_ffff_0000, u64::MAX - (5 << 32)];
    let lengths = vec![0, 1, 2, 4096, 1 << 32, 3 << 32];
    let range = (select(starts), select(lengths), 0_u64..3).prop_map(|(start, length, more)| {
        let start = start + more;
        start..start + length + more
    });
    prop::collection::vec(range, 0..=4)
}

fn arguments() -> impl Strategy<Value = [u64; 6]> {
    let telling = near(vec![
        0,
        2,
        4,
        5,
        6,
        7,
        8,
        11,
        0x22,
        0x32,
        100,
        102,
        0x1002,
        0x1003,
        u64::from(DAEMON.process),
        DAEMON.default_action,
    ]);
    prop::array::uniform6(prop_oneof![telling, any::<u64>()])
}

fn asked() -> impl Strategy<Value = (Vec<Range<u64>>, Data)> {
    ranges().prop_flat_map(|code| {
        let edges = code.iter().flat_map(|range| [range.start, range.end]).chain([0x7f00_0000_0000]).collect();
        let edges: Vec<u64> = edges;
        let in_code = near(edges.clone());
        let numbers = prop_oneof![
            4 => select(CONDITIONAL).prop_map(|number| number as u32),
            2 => select(ALWAYS).prop_map(|number| number as u32),
            1 => 0_u32..600,
            1 => select(vec![0x4000_0000, 0x3fff_ffff, 0x4000_0027, u32::MAX, 0x8000_0027]),
            1 => any::<u32>()
        ];
        let arch = prop_oneof![
            9 => Just(AUDIT_ARCH_X86_64),
            1 => select(vec![0x4000_0003, 0xc000_00b7, 0, AUDIT_ARCH_X86_64 + 1])
        ];
        let pointer = prop_oneof![near(edges), any::<u64>()];
        let changed = (prop_oneof![in_code, any::<u64>()], select(vec![0, 1, 3, 4, 5, 5, 5, 7]));
        (numbers, arch, pointer, arguments(), changed).prop_map(
            move |(number, arch, pointer, mut arguments, changed)| {
                // Near the ranges, and to what is telling.
                if number == libc::SYS_mprotect as u32 {
                    (arguments[0], arguments[2]) = changed;
                }
                (code.clone(), Data { number, arch, pointer, arguments })
            },
        )
    })
}

const CONDITIONAL: &[libc::c_long] = &[
    libc::SYS_madvise,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_rt_sigaction,
    libc::SYS_mprotect,
    libc::SYS_arch_prctl,
    libc::SYS_tgkill,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_program_says_what_the_rule_says((code, data) in asked(), flips_protection in any::<bool>()) {
        let daemon = Daemon { flips_protection, ..DAEMON };
        prop_assert_eq!(run(&program(&code, daemon), &data), rule(&code, daemon, &data), "ranges {:x?}", code);
        prop_assert_eq!(run(&lent_program(&code), &data), lent_rule(&code, &data), "lent, ranges {:x?}", code);
    }
}

#[test]
fn a_call_is_codes_from_the_first_byte_behind_the_start_to_the_end() {
    let code = 0x7f12_ffff_f000..0x7f13_0000_1000;
    let verdict = |pointer| {
        let data = Data { number: libc::SYS_futex as u32, arch: AUDIT_ARCH_X86_64, pointer, arguments: [0; 6] };
        (run(&program(slice::from_ref(&code), DAEMON), &data), run(&lent_program(slice::from_ref(&code)), &data))
    };
    for (pointer, is_allowed) in [
        (code.start, true),
        (code.start + 1, false),
        (0x7f12_ffff_ffff, false),
        (0x7f13_0000_0000, false),
        (code.end, false),
        (code.end + 1, true),
        (code.start - (1 << 32) + 1, true),
        (code.end + (1 << 32), true),
    ] {
        let expected = if is_allowed { ALLOWED } else { REFUSED };
        assert_eq!(verdict(pointer), (expected, expected), "{pointer:#x}");
    }
}

#[test]
fn an_empty_range_allows_nothing() {
    let data =
        Data { number: libc::SYS_mprotect as u32, arch: AUDIT_ARCH_X86_64, pointer: 0, arguments: [0, 0, 5, 0, 0, 0] };
    assert_eq!(run(&program(slice::from_ref(&(0..0)), DAEMON), &data), REFUSED);
    assert_eq!(run(&lent_program(slice::from_ref(&(0..0))), &data), ALLOWED, "nor does it refuse anything there");
}

#[test]
fn the_longest_program_is_one_that_the_kernel_takes() {
    let ranges: Vec<Range<u64>> = (1..=RANGES_MAX as u64).map(|at| at << 40..(at << 40) + (1 << 30)).collect();
    assert_fit(&program(&ranges, DAEMON));
}

#[test]
fn a_worker_gets_what_it_takes_to_wait_to_recover_and_to_end_and_nothing_else() {
    let code = 0x1000..0x2000;
    let program = worker_program(std::slice::from_ref(&code), DAEMON);
    let ask = |number: libc::c_long, pointer: u64, arguments: [u64; 6]| {
        run(&program, &Data { number: number as u32, arch: AUDIT_ARCH_X86_64, pointer, arguments }) == 0x7fff_0000
    };
    let allowed: Vec<libc::c_long> = (0..1000).filter(|number| ask(*number, 0x5000, [0; 6])).collect();
    // Whose arguments are zeros: FUTEX_WAIT.
    let mut listed = [WORKER_ALWAYS, &[libc::SYS_futex]].concat();
    listed.sort_unstable();
    assert_eq!(allowed, listed);
    assert!((0..1000).all(|number| !ask(number, 0x1800, [0; 6])), "made by code");
    let (process, action) = (u64::from(DAEMON.process), DAEMON.default_action);
    for (number, arguments, is_allowed) in [
        (libc::SYS_arch_prctl, [0x1002, 0, 0, 0, 0, 0], true),
        (libc::SYS_arch_prctl, [0x1001, 0, 0, 0, 0, 0], false),
        (libc::SYS_rt_sigaction, [11, action, 0, 0, 0, 0], true),
        (libc::SYS_rt_sigaction, [11, action + 8, 0, 0, 0, 0], false),
        (libc::SYS_tgkill, [process, process, 11, 0, 0, 0], true),
        (libc::SYS_tgkill, [process + 1, process + 1, 11, 0, 0, 0], false),
        (libc::SYS_tgkill, [process, process, 9, 0, 0, 0], false),
        (libc::SYS_futex, [0x5000, 1, 0, 0, 0, 0], true),
        (libc::SYS_futex, [0x5000, 128, 0, 0, 0, 0], false),
        (libc::SYS_futex, [0x5000, 4, 0, 0, 0, 0], false),
        (libc::SYS_futex, [0x5000, 6, 0, 0, 0, 0], false),
        (libc::SYS_clock_gettime, [1, 0x5000, 0, 0, 0, 0], true),
        (libc::SYS_clock_gettime, [0, 0x5000, 0, 0, 0, 0], false),
        (libc::SYS_clock_gettime, [(!process << 3) | 2, 0x5000, 0, 0, 0, 0], false),
        (libc::SYS_mmap, [0, 4096, 3, 0x22, u64::MAX, 0], false),
        (libc::SYS_madvise, [0x5000, 4096, 4, 0, 0, 0], false),
        (libc::SYS_mprotect, [0x5000, 4096, 3, 0, 0, 0], false),
        (libc::SYS_write, [2, 0x5000, 8, 0, 0, 0], false),
        (libc::SYS_kill, [process, 9, 0, 0, 0, 0], false),
        (libc::SYS_clone, [0; 6], false),
    ] {
        assert_eq!(ask(number, 0x5000, arguments), is_allowed, "{number} {arguments:?}");
    }
}
