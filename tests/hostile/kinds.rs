//! What is called, with what, and how that must end.

use codecached::proto::{
    SystemCallAbi::{self, X32, X8664},
    TrapKind::{self, Abort, Breakpoint, Bus, Fpe, Ill, Segv, StackOverflow, Timeout, Worker},
};

/// How a call must end.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// It returns 42.
    Returns,
    /// By one of these, in the function that was called.
    Traps(&'static [TrapKind]),
    /// By one of these, elsewhere: in the host, where there is no code, or in another function.
    Leaves(&'static [TrapKind]),
    /// By a system call that was not made, of this number.
    Calls(SystemCallAbi, u64),
    /// By one of these, or it returns, as processors and kernels differ.
    Either(&'static [TrapKind]),
}

/// One kind of hostile call.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub symbol: &'static str,
    pub arguments: [u64; 4],
    /// Where calls run in threads; none for what can write anywhere.
    pub in_threads: Option<End>,
    pub in_processes: End,
    /// One call of so many is made.
    pub one_of: u32,
}

impl Kind {
    /// Whether it ends by itself, so that a limit of time could only hide how.
    pub fn is_quick(&self) -> bool {
        !matches!(self.in_processes, End::Traps(kinds) | End::Leaves(kinds) | End::Either(kinds) if kinds.contains(&Timeout))
    }
}

const fn kind(symbol: &'static str, end: End) -> Kind {
    Kind { symbol, arguments: [0; 4], in_threads: Some(end), in_processes: end, one_of: 1 }
}

const fn returns(symbol: &'static str) -> Kind {
    kind(symbol, End::Returns)
}

const fn traps(symbol: &'static str, kinds: &'static [TrapKind]) -> Kind {
    kind(symbol, End::Traps(kinds))
}

const fn leaves(symbol: &'static str, kinds: &'static [TrapKind]) -> Kind {
    kind(symbol, End::Leaves(kinds))
}

const fn either(symbol: &'static str, kinds: &'static [TrapKind]) -> Kind {
    kind(symbol, End::Either(kinds))
}

/// The system call `number` with up to three arguments, by a function that makes any.
const fn calls(number: u64, arguments: [u64; 3]) -> Kind {
    let [a, b, c] = arguments;
    let (abi, plain) = if number & 0x4000_0000 == 0 { (X8664, number) } else { (X32, number & !0x4000_0000) };
    Kind { arguments: [number, a, b, c], ..kind("system_call", End::Calls(abi, plain)) }
}

/// What writes where it may not: it ends by one of these, and only the process in which it ran can be lost.
const fn wild(symbol: &'static str, distance: u64) -> Kind {
    const ENDS: &[TrapKind] =
        &[Segv, Bus, Ill, Fpe, Breakpoint, StackOverflow, Timeout, Abort, TrapKind::Syscall, Worker];
    Kind { arguments: [distance, 0, 0, 0], in_threads: None, ..kind(symbol, End::Either(ENDS)) }
}

/// Where the processor, or the system, tells one fault as another.
const FAULTS: &[TrapKind] = &[Segv, Bus, Ill];
const ALL: u64 = u64::MAX;

/// Files of tests/objects, and the kinds of each.
pub const OBJECTS: &[(&str, &[Kind])] = &[
    ("hostile.S", BASICS),
    ("hostile/instructions.S", INSTRUCTIONS),
    ("hostile/stacks.S", STACKS),
    ("hostile/states.S", STATES),
    ("hostile/host.S", HOST),
    ("hostile/wild.S", WILD),
    ("rogue.S", ROGUE),
];

const BASICS: &[Kind] = &[
    traps("infinite_recursion", &[StackOverflow]),
    traps("big_frame_recursion", &[StackOverflow]),
    traps("zero_stack", &[Segv, Bus]),
    traps("non_canonical", &[Segv]),
    traps("non_canonical_stack", &[Bus, Segv]),
    leaves("jump_to_zero", &[Segv]),
    leaves("jump_to_stack", &[Segv]),
    traps("read_null", &[Segv]),
    traps("write_code", &[Segv]),
    traps("undefined", &[Ill]),
    traps("privileged", &[Segv]),
    traps("divide_by_zero", &[Fpe]),
    traps("breakpoint", &[Breakpoint]),
    traps("single_step", &[Breakpoint]),
    traps("alignment_check", &[Bus]),
    traps("unmasked_float", &[Fpe]),
    traps("wreck_everything", &[Ill]),
    leaves("unbalanced", &[Segv]),
    leaves("to_32_bit", FAULTS),
    traps("wrong_fs_then_fault", &[Ill]),
    returns("leave_unmapped_fs"),
    traps("spin", &[Timeout]),
    traps("spin_backwards", &[Timeout]),
    traps("spin_wrong_fs", &[Timeout]),
    returns("leave_df"),
    returns("leave_ac"),
    returns("leave_mxcsr"),
    returns("leave_x87_full"),
    returns("leave_mmx"),
    returns("leave_registers"),
    returns("leave_stack_popped"),
    returns("leave_other_fs"),
    returns("leave_x87_precision"),
    calls(0, [0, 0, 8]),                      // read
    calls(1, [2, 0, 0]),                      // write
    calls(2, [0; 3]),                         // open
    calls(3, [3, 0, 0]),                      // close
    calls(9, [0, 4096, 7]),                   // mmap
    calls(10, [0x1000, 4096, 7]),             // mprotect
    calls(11, [0x1000, 0x7fff_0000_0000, 0]), // munmap
    calls(13, [11, 0, 0]),                    // rt_sigaction
    calls(14, [2, 0, 0]),                     // rt_sigprocmask
    calls(15, [0; 3]),                        // rt_sigreturn
    calls(25, [0; 3]),                        // mremap
    calls(28, [0x1000, 0x7fff_0000_0000, 4]), // madvise
    calls(32, [0; 3]),                        // dup
    calls(35, [0; 3]),                        // nanosleep
    calls(37, [1, 0, 0]),                     // alarm
    calls(39, [0; 3]),                        // getpid
    calls(41, [1, 1, 0]),                     // socket
    calls(56, [0x0001_1200, 0, 0]),           // clone
    calls(57, [0; 3]),                        // fork
    calls(58, [0; 3]),                        // vfork
    calls(59, [0; 3]),                        // execve
    calls(60, [0; 3]),                        // exit
    calls(62, [0, 0, 0]),                     // kill
    calls(101, [0; 3]),                       // ptrace, PTRACE_TRACEME
    calls(117, [0; 3]),                       // setresuid
    calls(131, [0; 3]),                       // sigaltstack
    calls(135, [0x0040_0000, 0, 0]),          // personality
    calls(157, [22, 1, 0]),                   // prctl, PR_SET_SECCOMP
    calls(158, [0x1002, 0, 0]),               // arch_prctl, ARCH_SET_FS
    calls(160, [0; 3]),                       // setrlimit
    calls(169, [0; 3]),                       // reboot
    calls(200, [1, 0, 0]),                    // tkill
    calls(231, [0; 3]),                       // exit_group
    calls(234, [1, 1, 0]),                    // tgkill
    calls(272, [0x1000_0000, 0, 0]),          // unshare
    calls(311, [1, 0, 0]),                    // process_vm_writev
    calls(317, [0; 3]),                       // seccomp
    calls(319, [0; 3]),                       // memfd_create
    calls(321, [0; 3]),                       // bpf
    calls(323, [0; 3]),                       // userfaultfd
    calls(329, [0; 3]),                       // pkey_mprotect
    calls(424, [0; 3]),                       // pidfd_send_signal
    calls(425, [8, 0, 0]),                    // io_uring_setup
    calls(435, [0; 3]),                       // clone3
    calls(462, [0; 3]),                       // mseal
    calls(0x4000_0000 | 39, [0; 3]),          // getpid
    calls(0x4000_0000 | 520, [0; 3]),         // execve
    calls(0x3fff_ffff, [0; 3]),               // none
    Kind { arguments: [0xffff_ffff, 0, 0, 0], ..kind("system_call", End::Calls(X8664, 0xffff_ffff)) }, // none, -1
    Kind { arguments: [20, 0, 0, 0], ..kind("interrupt_0x80", INTERFACE_OF_I386) }, // getpid
    Kind { arguments: [1, 0, 0, 0], ..kind("interrupt_0x80", INTERFACE_OF_I386) }, // exit
];

/// Kernels can be built and started without it.
const INTERFACE_OF_I386: End = End::Leaves(&[TrapKind::Syscall, Segv]);

const INSTRUCTIONS: &[Kind] = &[
    traps("cli", &[Segv]),
    traps("sti", &[Segv]),
    traps("in_port", &[Segv]),
    traps("out_port", &[Segv]),
    traps("ins_port", &[Segv]),
    traps("lgdt", &[Segv]),
    traps("lidt", &[Segv]),
    traps("lldt", &[Segv]),
    traps("ltr", &[Segv]),
    traps("write_cr0", &[Segv]),
    traps("read_cr3", &[Segv]),
    traps("write_cr8", &[Segv]),
    traps("write_dr7", &[Segv]),
    traps("clts", &[Segv]),
    traps("lmsw", &[Segv]),
    traps("invd", &[Segv]),
    traps("wbinvd", &[Segv]),
    traps("invlpg", &[Segv]),
    traps("rdmsr", &[Segv]),
    traps("wrmsr", &[Segv]),
    traps("rdpmc", &[Segv]),
    traps("sysretq", FAULTS),
    traps("sysexit", FAULTS),
    traps("swapgs", &[Segv]),
    traps("xsetbv", FAULTS),
    traps("monitor", FAULTS),
    traps("mwait", FAULTS),
    either("vmcall", FAULTS),
    either("vmmcall", FAULTS),
    traps("vmrun", FAULTS),
    traps("rsm", FAULTS),
    either("sysenter", &[Ill, Segv, TrapKind::Syscall]),
    traps("int_2e", &[Segv]),
    traps("int_81", &[Segv]),
    traps("int_ff", &[Segv]),
    traps("int_8", &[Segv]),
    traps("icebp", &[Breakpoint]),
    traps("ud0", &[Ill]),
    traps("ud1", &[Ill]),
    traps("push_es", &[Ill]),
    traps("into", &[Ill]),
    traps("lock_nop", &[Ill]),
    traps("far_call_direct", &[Ill]),
    traps("instruction_of_16_bytes", FAULTS),
    traps("overflow_of_idiv", &[Fpe]),
    traps("overflow_of_idiv_64", &[Fpe]),
    traps("overflow_of_div", &[Fpe]),
    traps("mxcsr_reserved", &[Segv]),
    traps("segment_that_is_not", &[Segv]),
    traps("stack_segment_null", &[Segv]),
    traps("stack_segment_of_code", &[Segv]),
    traps("far_jump", &[Segv]),
    traps("far_call", &[Segv]),
    traps("far_return", &[Segv]),
    traps("iret_to_nothing", FAULTS),
    traps("iret_to_the_system", FAULTS),
    traps("enter_nested", &[Segv]),
    traps("unaligned_movaps", &[Segv]),
    traps("unaligned_cmpxchg16b", &[Segv]),
    traps("xsave_nowhere", &[Segv]),
    traps("fxrstor_reserved", &[Segv]),
    traps("xlat_nowhere", &[Segv]),
    traps("bit_test_far_away", FAULTS),
    traps("string_from_the_system", &[Segv]),
    returns("gather_of_prefetches"),
    traps("xrstor_garbage", &[Segv]),
    leaves("jump_into_the_system", &[Segv]),
    either("jump_to_non_canonical", &[Segv]),
    either("call_old_system_calls", &[Segv, TrapKind::Syscall]),
    leaves("jump_to_constants", &[Segv]),
    leaves("jump_to_data", &[Segv]),
    traps("write_constants", &[Segv]),
    kind("syscall_in_a_constant", End::Calls(X8664, 39)),
    kind("syscall_without_a_stack", End::Calls(X8664, 39)),
    either("syscall_under_the_trap_flag", &[TrapKind::Syscall, Breakpoint]),
    leaves("syscall_of_32_bits_by_far_return", FAULTS),
    leaves("fall_off_the_end", &[Breakpoint]),
];

const STACKS: &[Kind] = &[
    traps("in_alternate_stack", &[Ill]),
    traps("fault_with_stack_in_frame", &[Ill]),
    traps("fault_with_stack_in_guard", &[Ill]),
    traps("push_in_guard", &[StackOverflow]),
    traps("stack_in_code", &[Segv]),
    traps("stack_in_the_system", FAULTS),
    traps("stack_unaligned", &[Segv]),
    traps("fault_with_stack_of_ones", &[Ill]),
    traps("pop_for_ever", &[Segv]),
    traps("push_for_ever", &[StackOverflow]),
    traps("call_for_ever", &[StackOverflow]),
    traps("push_and_pop_over_the_end", &[StackOverflow]),
    traps("frames_of_60_mib", &[StackOverflow]),
    traps("spin_without_stack", &[Timeout]),
    traps("spin_in_guard", &[Timeout]),
    traps("spin_with_stack_in_frame", &[Timeout]),
    leaves("return_to_guard", &[StackOverflow, Segv]),
    leaves("back_without_stack", FAULTS),
    leaves("back_with_non_canonical_stack", FAULTS),
    leaves("back_with_stack_of_ones", FAULTS),
    leaves("back_with_stack_in_code", FAULTS),
    leaves("back_with_stack_in_data", FAULTS),
    leaves("back_with_next_stack", FAULTS),
    leaves("back_with_previous_stack", FAULTS),
    returns("call_what_called"),
    leaves("again_from_where_it_was_called", FAULTS),
    leaves("again_and_again", &[StackOverflow, Ill]),
    returns("on_own_data"),
    traps("fault_on_own_data", &[Ill]),
    returns("on_own_heap"),
    returns("return_from_own_heap"),
];

const STATES: &[Kind] = &[
    returns("leave_nested_task"),
    either("leave_trap_flag", &[Breakpoint]),
    either("leave_all_flags", &[Breakpoint]),
    traps("fault_under_all_flags", &[Ill]),
    traps("spin_under_alignment_check", &[Timeout]),
    traps("spin_under_all_flags", &[Timeout]),
    leaves("leave_x87_pending", &[Fpe]),
    traps("spin_x87_pending", &[Timeout]),
    traps("fault_x87_pending", &[Ill]),
    traps("x87_exception", &[Fpe]),
    returns("leave_x87_empty_and_popped"),
    returns("leave_mxcsr_flags"),
    returns("leave_mxcsr_unmasked"),
    traps("spin_mxcsr_unmasked", &[Timeout]),
    traps("sse_invalid", &[Fpe]),
    traps("sse_inexact", &[Fpe]),
    traps("sse_denormal", &[Fpe]),
    returns("leave_xmm"),
    returns("leave_mmx_after_x87"),
    returns("leave_null_segments"),
    traps("fault_with_null_segments", &[Ill]),
    traps("fault_with_null_fs", &[Ill]),
    traps("fault_with_data_fs", &[Ill]),
    returns("leave_null_fs"),
    traps("spin_with_null_fs", &[Timeout]),
    returns("leave_fs_at_the_system"),
    traps("fault_with_fs_of_ones", FAULTS),
    traps("fs_that_is_not_canonical", FAULTS),
    returns("leave_gs"),
    traps("fault_with_gs", &[Ill]),
    returns("leave_forged_fs"),
    leaves("leave_no_writes", &[Segv]),
    traps("leave_no_accesses", &[Segv]),
    traps("fault_without_writes", &[Ill]),
    traps("fault_without_accesses", &[Ill]),
    traps("spin_without_accesses", &[Timeout]),
    traps("write_without_writes", &[Segv]),
    returns("leave_other_keys"),
    returns("leave_avx"),
    traps("fault_in_avx", &[Ill]),
    traps("spin_in_avx", &[Timeout]),
    traps("unaligned_vmovaps", &[Segv]),
];

const HOST: &[Kind] = &[
    leaves("strlen_of_nothing", &[Segv]),
    leaves("strlen_of_ones", &[Segv]),
    leaves("strlen_of_the_system", &[Segv]),
    leaves("strcmp_of_nothing", &[Segv]),
    leaves("memcpy_to_nothing", &[Segv]),
    leaves("memset_everything", &[Segv]),
    leaves("memset_the_system", &[Segv]),
    leaves("memchr_everything", &[Segv]),
    traps("free_of_nothing", &[Abort]),
    traps("free_of_ones", &[Abort]),
    traps("free_of_the_system", &[Abort]),
    traps("realloc_of_nothing", &[Abort]),
    returns("calloc_of_too_much"),
    returns("malloc_of_too_much"),
    returns("memalign_of_too_much"),
    traps("chk_of_too_little", &[Abort]),
    leaves("longjmp_to_nothing", &[Segv]),
    leaves("bsearch_of_nothing", &[Segv]),
    leaves("strtod_of_nothing", &[Segv]),
    traps("abort_at_once", &[Abort]),
    traps("smashed_stack", &[Abort]),
    traps("free_of_stack", &[Abort]),
    traps("free_of_code", &[Abort]),
    leaves("memset_of_code", &[Segv]),
    traps("free_twice", &[Abort]),
    traps("free_of_the_middle", &[Abort]),
    traps("overflow_then_free", &[Abort]),
    returns("malloc_until_none_is_left"),
    leaves("malloc_for_ever", &[Timeout]),
    leaves("host_under_trap_flag", &[Breakpoint]),
    returns("host_under_df"),
    traps("host_without_stack", FAULTS),
    traps("host_with_stack_in_guard", &[StackOverflow]),
    leaves("malloc_on_data", &[Abort, Segv]),
    leaves("float_unmasked", &[Fpe]),
    leaves("float_unaligned", &[Bus]),
    returns("x87_full_then_float"),
    leaves("at_the_end_of_the_stack", &[StackOverflow]),
    leaves("search_into_itself", &[StackOverflow]),
    leaves("search_into_fault", &[Ill]),
    leaves("search_into_spin", &[Timeout]),
    kind("search_into_syscall", End::Calls(X8664, 39)),
    either("search_into_destruction", FAULTS),
    leaves("search_into_constants", &[Segv]),
    leaves("search_into_nothing", &[Segv]),
    leaves("search_that_unbalances", FAULTS),
    leaves("search_that_loses_the_stack", FAULTS),
    returns("search_left_by_a_jump"),
    leaves("jump_for_ever", &[Timeout]),
    leaves("jump_to_a_frame_that_is_gone", FAULTS),
];

const WILD: &[Kind] = &[
    wild("zero_frame", 0),
    wild("zero_frame_and_fault", 0),
    Kind { one_of: 20, ..wild("zero_frame_and_spin", 0) },
    wild("ones_in_frame", 0),
    wild("ones_in_frame_and_fault", 0),
    wild("even_turn", 0),
    wild("even_turn_and_fault", 0),
    wild("other_host_stack", 0),
    wild("host_stack_nowhere", 0),
    wild("host_stack_nowhere_and_fault", 0),
    wild("smash_upwards", 0),
    wild("stack_on_data", 0),
    wild("host_smashes_upwards", 0),
    wild("smash_heap", 0),
    wild("write_guessed", 1 << 21),
    wild("write_guessed", 1 << 30),
    wild("write_guessed", 1 << 34),
    wild("write_guessed", ALL << 21),
    wild("write_guessed", ALL << 30),
    wild("write_guessed", ALL << 34),
    wild("write_slot", 0),
    wild("write_slot", 1 << 28),
    wild("write_slot", ALL << 28),
    wild("write_thread_block", 0),
    wild("before_return", 1),
    wild("before_return", 3),
    wild("before_return", 4),
    wild("before_return", 7),
    wild("before_return", 11),
    wild("before_return", 16),
    wild("before_return", 30),
    wild("before_return", 60),
    wild("before_return", 100),
    wild("before_return", 150),
];

const ROGUE: &[Kind] = &[
    wild("smash_stack", 0),
    wild("lose_frame", 0),
    Kind { one_of: 20, ..wild("stubborn", 0) },
    Kind { arguments: [0; 4], ..kind("end_process", End::Calls(X8664, 231)) },
    kind("kill_self", End::Calls(X8664, 39)),
    kind("kill_parent", End::Calls(X8664, 110)),
];

/// What only some processors have.
pub fn is_possible(kind: &Kind) -> bool {
    let starts = |starts: &[&str]| starts.iter().any(|start| kind.symbol.starts_with(start));
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let has = |flag: &str| flags.split_whitespace().any(|it| it == flag);
    match kind.symbol {
        _ if kind.symbol.contains("avx") || kind.symbol.contains("vmovaps") => has("avx"),
        _ if starts(&["leave_no_", "leave_other_keys", "fault_without_", "spin_without_acc", "write_without_"]) => {
            has("ospke")
        }
        "leave_unmapped_fs"
        | "leave_other_fs"
        | "wrong_fs_then_fault"
        | "spin_wrong_fs"
        | "leave_fs_at_the_system"
        | "fault_with_fs_of_ones"
        | "fs_that_is_not_canonical"
        | "leave_gs"
        | "fault_with_gs"
        | "leave_forged_fs" => has("fsgsbase"),
        _ => true,
    }
}

/// The signal of a trap, where there is one for its kind.
pub fn signal(kind: TrapKind) -> Option<i32> {
    Some(match kind {
        Segv | StackOverflow => 11,
        Bus => 7,
        Ill | Abort => 4,
        Fpe => 8,
        Breakpoint => 5,
        TrapKind::Syscall => 31,
        _ => return None,
    })
}
