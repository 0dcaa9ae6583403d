use object::elf::{R_X86_64_64, R_X86_64_PC32, SHT_PROGBITS};
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::{FlatEntry, Rule, Screened};
use super::builder::{Builder, TEXT};
use super::*;

const RET: u8 = 0xc3;

/// Flat code with one function `f` at its start.
fn flat(code: &[u8]) -> Screened {
    let entries = vec![FlatEntry { name: "f".to_owned(), offset_bytes: 0 }];
    Image::parse_flat(code, entries, &Limits::default()).unwrap().screen()
}

fn rules(screened: &Screened) -> Vec<(Rule, u64)> {
    assert_eq!(screened.total, screened.findings.len() as u64);
    screened.findings.iter().map(|it| (it.rule, it.offset_bytes)).collect()
}

#[test]
fn each_instruction_that_must_not_be_is_found_with_its_rule_and_its_text() {
    let cases: &[(&[u8], Rule, &str)] = &[
        (&[0x0f, 0x05], Rule::SystemCall, "syscall"),
        (&[0x0f, 0x34], Rule::SystemCall, "sysenter"),
        (&[0xcd, 0x80], Rule::Interrupt, "int 0x80"),
        (&[0xcd, 0x03], Rule::Interrupt, "int 3"),
        (&[0xf1], Rule::Interrupt, "int1"),
        (&[0xf4], Rule::Privileged, "hlt"),
        (&[0xe4, 0x10], Rule::PortIo, "in al, 0x10"),
        (&[0xec], Rule::PortIo, "in al, dx"),
        (&[0xe6, 0x10], Rule::PortIo, "out 0x10, al"),
        (&[0xef], Rule::PortIo, "out dx, eax"),
        (&[0x6c], Rule::PortIo, "insb byte ptr [rdi], dx"),
        (&[0x6d], Rule::PortIo, "insd dword ptr [rdi], dx"),
        (&[0xf3, 0x6e], Rule::PortIo, "rep outsb dx, byte ptr [rsi]"),
        (&[0x6f], Rule::PortIo, "outsd dx, dword ptr [rsi]"),
        (&[0x0f, 0x01, 0xef], Rule::ProtectionKey, "wrpkru"),
        (&[0x0f, 0xae, 0x2f], Rule::ExtendedState, "xrstor [rdi]"),
        (&[0x48, 0x0f, 0xae, 0x2f], Rule::ExtendedState, "xrstor64 [rdi]"),
        (&[0x0f, 0xc7, 0x1f], Rule::ExtendedState, "xrstors [rdi]"),
        (&[0x8e, 0xd8], Rule::Segment, "mov ds, ax"),
        (&[0x8e, 0x27], Rule::Segment, "mov fs, word ptr [rdi]"),
        (&[0x0f, 0xa1], Rule::Segment, "pop fs"),
        (&[0x0f, 0xa9], Rule::Segment, "pop gs"),
        (&[0x0f, 0xb2, 0x07], Rule::Segment, "lss eax, fword ptr [rdi]"),
        (&[0x0f, 0xb4, 0x07], Rule::Segment, "lfs eax, fword ptr [rdi]"),
        (&[0x0f, 0xb5, 0x07], Rule::Segment, "lgs eax, fword ptr [rdi]"),
        (&[0xff, 0x2f], Rule::FarBranch, "jmp far fword ptr [rdi]"),
        (&[0x48, 0xff, 0x1f], Rule::FarBranch, "call far tbyte ptr [rdi]"),
        (&[0xcb], Rule::FarBranch, "ret far"),
        (&[0xca, 0x08, 0x00], Rule::FarBranch, "ret far 8"),
        (&[0xcf], Rule::FarBranch, "iretd"),
        (&[0x48, 0xcf], Rule::FarBranch, "iretq"),
        (&[0xfa], Rule::Privileged, "cli"),
        (&[0xfb], Rule::Privileged, "sti"),
        (&[0x0f, 0x01, 0x17], Rule::Privileged, "lgdt fword ptr [rdi]"),
        (&[0x0f, 0x20, 0xd8], Rule::Privileged, "mov rax, cr3"),
        (&[0x0f, 0x22, 0xd8], Rule::Privileged, "mov cr3, rax"),
        (&[0x0f, 0x32], Rule::Privileged, "rdmsr"),
        (&[0x0f, 0x30], Rule::Privileged, "wrmsr"),
        (&[0x0f, 0x01, 0xf8], Rule::Privileged, "swapgs"),
        (&[0x0f, 0x07], Rule::Privileged, "sysret"),
        (&[0x0f, 0x01, 0xd1], Rule::Privileged, "xsetbv"),
        (&[0x0f, 0x01, 0xc1], Rule::Privileged, "vmcall"),
    ];
    for (bytes, rule, text) in cases {
        let screened = flat(&[&[0x90], *bytes, &[RET]].concat());
        let found = screened.findings.first().unwrap_or_else(|| panic!("{text} is not found"));
        let got = (found.rule, &*found.function, found.function_offset_bytes, found.offset_bytes);
        assert_eq!((got, screened.total), ((*rule, "f", 1, 1), 1), "{text}");
        assert_eq!(found.instruction, *text);
    }
}

#[test]
fn what_programs_need_is_let_through() {
    let cases: &[(&[u8], &str)] = &[
        (&[0xcc], "int3"),
        (&[0x0f, 0x0b], "ud2"),
        (&[0x9d], "popfq"),
        (&[0xfd, 0xfc], "std, cld"),
        (&[0x0f, 0xa2], "cpuid"),
        (&[0x0f, 0x31], "rdtsc"),
        (&[0x0f, 0x01, 0xd0], "xgetbv"),
        (&[0x0f, 0x01, 0xee], "rdpkru"),
        (&[0xf3, 0x48, 0x0f, 0xae, 0xc0], "rdfsbase rax"),
        (&[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], "mov rax, fs:[0x28]"),
        (&[0x8c, 0xd8], "mov eax, ds"),
        (&[0x0f, 0xae, 0x17], "ldmxcsr"),
        (&[0xf3, 0x0f, 0x1e, 0xfa], "endbr64"),
        (&[0xf3, 0x90], "pause"),
        (&[0xff, 0xe0], "jmp rax"),
        (&[0xff, 0x10], "call [rax]"),
        (&[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0], "long nop"),
        (&[0xeb, 0x00], "jump to the next"),
        (&[0xeb, 0xfe], "jump to itself"),
    ];
    for (bytes, what) in cases {
        assert_eq!(flat(&[*bytes, &[RET]].concat()), Screened::default(), "{what}");
    }
}

#[test]
fn honest_compiler_output_has_no_findings() {
    assert_eq!(parse(SAMPLE).unwrap().screen(), Screened::default());
}

#[test]
fn a_branch_to_where_no_instruction_starts_is_found_in_both_directions() {
    // mov eax, 0x050f: its immediate is a system call.
    let hidden = [0xb8, 0x0f, 0x05, 0, 0];
    let back = [&hidden[..], &[0xeb, 0xfa, RET]].concat();
    let forth = [&[0x74, 0x01][..], &hidden, &[RET]].concat();
    assert_eq!(rules(&flat(&back)), [(Rule::BranchTarget, 5)]);
    assert_eq!(rules(&flat(&forth)), [(Rule::BranchTarget, 0)]);
    assert_eq!(flat(&forth).findings[0].instruction, "je 3");
    let honest = [&[0x74, 0x00][..], &hidden, &[RET]].concat();
    assert_eq!(rules(&flat(&honest)), []);
}

#[test]
fn a_branch_out_of_the_code_is_found() {
    for code in [
        [0xe9, 0, 0, 0, 0],             // to the end
        [0xe8, 0xfa, 0xff, 0xff, 0xff], // to the byte before the start
        [0xe9, 0xff, 0xff, 0xff, 0x7f],
        [0xe8, 0, 0, 0, 0x80],
    ] {
        assert_eq!(rules(&flat(&code)), [(Rule::BranchTarget, 0)], "{code:x?}");
    }
}

#[test]
fn a_branch_that_a_relocation_writes_is_left_alone() {
    let mut builder = Builder::with_text(&[0xe8, 0x77, 0x77, 0x77, 0x77, RET]);
    builder.function("f", 0, 6);
    let host = builder.undefined("host");
    builder.relocation(1, 1, R_X86_64_PC32, host, -4);
    assert_eq!(rules(&parse(&builder.build()).unwrap().screen()), []);
}

#[test]
fn a_relocation_of_more_than_a_value_is_found() {
    let build = |offset, kind| {
        // mov eax, imm32; movabs rcx, imm64; ret
        let code = [&[0xb8, 0, 0, 0, 0, 0x48, 0xb9][..], &[0; 8], &[RET]].concat();
        let mut builder = Builder::with_text(&code);
        let f = builder.function("f", 0, 16);
        builder.relocation(1, offset, kind, f, 0);
        rules(&parse(&builder.build()).unwrap().screen())
    };
    assert_eq!(build(1, R_X86_64_PC32), []);
    assert_eq!(build(7, R_X86_64_64), []);
    assert_eq!(build(0, R_X86_64_PC32), [(Rule::RelocatedOpcode, 0)]);
    assert_eq!(build(2, R_X86_64_PC32), [(Rule::RelocatedOpcode, 0)], "reaches into the next");
    assert_eq!(build(5, R_X86_64_PC32), [(Rule::RelocatedOpcode, 5)]);
    assert_eq!(build(12, R_X86_64_PC32), [(Rule::RelocatedOpcode, 5)], "reaches into the next");
}

#[test]
fn what_does_not_decode_is_found_once_and_only_in_a_function() {
    // Neither of the three is an instruction of 64-bit code.
    let code = [RET, 0x06, 0x0e, 0x16, RET];
    let screened = flat(&code);
    assert_eq!(rules(&screened), [(Rule::Undecodable, 1)]);
    assert_eq!(screened.findings[0].instruction, "(bad)");
    let of_size = |size| {
        let mut builder = Builder::with_text(&code);
        builder.function("f", 0, size);
        rules(&parse(&builder.build()).unwrap().screen())
    };
    assert_eq!(of_size(1), [], "a table behind a function");
    assert_eq!(of_size(5), [(Rule::Undecodable, 1)]);
}

#[test]
fn decoding_starts_anew_at_functions_and_at_sections() {
    // The first bytes of a long instruction, which would swallow what follows.
    let table = [0x48, 0xb9];
    let mut builder = Builder::with_text(&[&[RET][..], &table, &[0x0f, 0x05, RET]].concat());
    builder.function("f", 0, 1);
    builder.function("g", 3, 3);
    let screened = parse(&builder.build()).unwrap().screen();
    assert_eq!(rules(&screened), [(Rule::SystemCall, 3)]);
    assert_eq!((&*screened.findings[0].function, screened.findings[0].function_offset_bytes), ("g", 0));

    let mut builder = Builder::with_text(&[&[0x90; 14][..], &table].concat());
    let other = builder.section(".text.other", SHT_PROGBITS, TEXT, 16, &[0xe8, 0, 0, 0, 0, 0x0f, 0x05, RET]);
    let host = builder.undefined("host");
    builder.relocation(other, 1, R_X86_64_PC32, host, -4);
    let screened = parse(&builder.build()).unwrap().screen();
    assert_eq!(rules(&screened), [(Rule::SystemCall, 21)]);
    assert_eq!((&*screened.findings[0].function, screened.findings[0].function_offset_bytes), ("", 21));
}

#[test]
fn the_first_findings_are_kept_in_order_and_all_are_counted() {
    // Branches are judged last, and stand first here.
    let code = [&[0x74, 0x01, 0xb0, 0x90][..], &[0x0f, 0x05].repeat(100)].concat();
    let screened = flat(&code);
    assert_eq!((screened.total, screened.findings.len()), (101, Screened::FINDINGS_MAX));
    assert_eq!((screened.findings[0].rule, screened.findings[31].offset_bytes), (Rule::BranchTarget, 4 + 30 * 2));
    assert!(screened.findings.is_sorted_by_key(|finding| finding.offset_bytes));
}

#[test]
fn a_finding_as_text_names_instruction_place_and_rule() {
    let finding = &flat(&[0x90, 0x0f, 0x05, RET]).findings[0];
    assert_eq!(finding.to_string(), "syscall at f+0x1 (a system call)");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_to_their_end(code in vec(any::<u8>(), 1..600), places in vec(any::<u16>(), 1..8)) {
        // What is refused before it is screened.
        let code: Vec<u8> = code.into_iter().map(|it| if matches!(it, 0x64 | 0x65 | 0xae) { RET } else { it }).collect();
        let entry = |(index, place): (usize, &u16)| {
            FlatEntry { name: index.to_string(), offset_bytes: u64::from(*place) % code.len() as u64 }
        };
        let entries = places.iter().enumerate().map(entry).collect();
        let image = Image::parse_flat(&code, entries, &Limits::default()).unwrap();
        let screened = image.screen();
        prop_assert_eq!(screened.findings.len() as u64, screened.total.min(Screened::FINDINGS_MAX as u64));
        for finding in &screened.findings {
            prop_assert!(finding.offset_bytes < code.len() as u64 && !finding.instruction.is_empty());
        }
        prop_assert_eq!(image.screen(), screened);
    }
}
