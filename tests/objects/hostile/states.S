/* Modes and registers of the processor that code may change, left behind, faulted with or looped with. */
#include "macros.inc"

    .macro flag bits
    pushf
    orl $\bits, (%rsp)
    popf
    .endm
    .macro control_word bits
    fnclex                              /* flags of earlier calls stay */
    push $\bits
    fldcw (%rsp)
    pop %rax
    .endm
    .macro mxcsr bits
    push $\bits
    ldmxcsr (%rsp)
    pop %rax
    .endm
    .macro division_pending
    control_word 0x0340
    fld1
    fldz
    fdivrp
    .endm

of(leave_nested_task, flag 0x4000)
of(leave_trap_flag, flag 0x100)
of(leave_all_flags, flag 0x44cd5)
of(fault_under_all_flags, flag 0x44cd5; ud2)
of(spin_under_alignment_check, flag 0x40000; 1: jmp 1b)
of(spin_under_all_flags, flag 0x44cd5; 1: jmp 1b)
of(leave_x87_pending, division_pending)
of(spin_x87_pending, division_pending; 1: jmp 1b)
of(fault_x87_pending, division_pending; ud2)
of(x87_exception, division_pending; fwait)
of(leave_x87_empty_and_popped, fninit; fstp %st(0); fstp %st(0); fstp %st(0))
of(leave_mxcsr_flags, xorps %xmm0, %xmm0; divss %xmm0, %xmm0)
of(leave_mxcsr_unmasked, mxcsr 0)
of(spin_mxcsr_unmasked, mxcsr 0; 1: jmp 1b)
of(sse_invalid, mxcsr 0; xorps %xmm0, %xmm0; divss %xmm0, %xmm0)
of(sse_inexact, mxcsr 0x0f80; mov $1, %eax; cvtsi2sd %eax, %xmm0; mov $3, %eax; cvtsi2sd %eax, %xmm1; divsd %xmm1, %xmm0)
of(sse_denormal, mxcsr 0x1e80; mov $1, %eax; movd %eax, %xmm0; addss %xmm0, %xmm0)
of(leave_xmm, pcmpeqd %xmm0, %xmm0; movaps %xmm0, %xmm15; movaps %xmm0, %xmm8)
of(leave_mmx_after_x87, fld1; fld1; pcmpeqd %mm7, %mm7)
of(leave_null_segments, xor %eax, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %gs)
of(fault_with_null_segments, xor %eax, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %gs; ud2)
of(fault_with_null_fs, xor %eax, %eax; mov %eax, %fs; ud2)
of(fault_with_data_fs, mov $0x2b, %eax; mov %eax, %fs; ud2)
of(leave_null_fs, xor %eax, %eax; mov %eax, %fs)
of(spin_with_null_fs, xor %eax, %eax; mov %eax, %fs; 1: jmp 1b)

/* --- where the processor has the instructions that set bases --- */
of(leave_fs_at_the_system, mov $-4096, %rax; hidden_wrfsbase_rax)
of(fault_with_fs_of_ones, movabs $0x7fffffffffff, %rax; hidden_wrfsbase_rax; ud2)
of(fs_that_is_not_canonical, movabs $0x8000000000000000, %rax; hidden_wrfsbase_rax)
of(leave_gs, mov %rsp, %rax; hidden 0xf3, 0x48, 0x0f, 0xae, 0xd8, 0x90, 0x90, 0x90)
of(fault_with_gs, mov %rsp, %rax; hidden 0xf3, 0x48, 0x0f, 0xae, 0xd8, 0x90, 0x90, 0x90; ud2)

function leave_forged_fs                /* a thread's block that claims to be the host's: mov %fs:0, %rcx */
    hidden 0x64, 0x48, 0x8b, 0x0c, 0x25, 0, 0, 0
    .byte 0
    mov %rsp, %rax
    and $-64, %rax
    sub $4096, %rax
    mov %rcx, (%rax)
    hidden_wrfsbase_rax
    mov $42, %eax
    ret
done leave_forged_fs

/* --- where it has protection keys --- */
    .macro protection_key bits
    xor %ecx, %ecx
    xor %edx, %edx
    mov $\bits, %eax
    wrpkru
    .endm
of(leave_no_writes, protection_key 2)
of(leave_no_accesses, protection_key 1)
of(fault_without_writes, protection_key 2; ud2)
of(fault_without_accesses, protection_key -1; ud2)
of(spin_without_accesses, protection_key -1; 1: jmp 1b)
of(write_without_writes, protection_key 2; push %rax)
of(leave_other_keys, protection_key 0xfffffff0)

/* --- where it has AVX --- */
of(leave_avx, vpcmpeqd %xmm0, %xmm0, %xmm0; vinsertf128 $1, %xmm0, %ymm0, %ymm0; vmovaps %ymm0, %ymm15)
of(fault_in_avx, vpcmpeqd %xmm0, %xmm0, %xmm0; vinsertf128 $1, %xmm0, %ymm0, %ymm15; ud2)
of(spin_in_avx, vpcmpeqd %xmm0, %xmm0, %xmm0; vinsertf128 $1, %xmm0, %ymm0, %ymm15; 1: jmp 1b)
of(unaligned_vmovaps, vmovaps 8(%rsp), %ymm0; vmovaps 16(%rsp), %ymm0)

    .section .note.GNU-stack, "", @progbits
