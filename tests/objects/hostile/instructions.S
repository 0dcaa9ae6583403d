/* Instructions that a process may not use, do not exist, or fault by what they are given. */
#include "macros.inc"

/* --- for the system only --- */
of(cli, cli)
of(sti, sti)
of(in_port, in $0x80, %al)
of(out_port, out %al, $0x80)
of(ins_port, insb)
of(lgdt, lgdt -16(%rsp))
of(lidt, lidt -16(%rsp))
of(lldt, lldt %ax)
of(ltr, ltr %ax)
of(write_cr0, mov %rax, %cr0)
of(read_cr3, mov %cr3, %rax)
of(write_cr8, mov %rax, %cr8)
of(write_dr7, mov %rax, %dr7)
of(clts, clts)
of(lmsw, lmsw %ax)
of(invd, invd)
of(wbinvd, wbinvd)
of(invlpg, invlpg (%rsp))
of(rdmsr, rdmsr)
of(wrmsr, wrmsr)
of(rdpmc, mov $0x7fffffff, %ecx; rdpmc)
of(sysretq, sysretq)
of(sysexit, sysexitq)
of(swapgs, swapgs)
of(xsetbv, xor %ecx, %ecx; xsetbv)
of(monitor, monitor)
of(mwait, mwait)
of(vmcall, vmcall)
of(vmmcall, mov $-1, %eax; vmmcall)
of(vmrun, vmrun)
of(rsm, rsm)
of(sysenter, mov $20, %eax; sysenter)
of(int_2e, int $0x2e)
of(int_81, int $0x81)
of(int_ff, int $0xff)
of(int_8, int $8)
of(icebp, .byte 0xf1)

/* --- that do not exist --- */
of(ud0, .byte 0x0f, 0xff, 0xc0)
of(ud1, .byte 0x0f, 0xb9, 0xc0)
of(push_es, .byte 0x06)
of(into, .byte 0xce)
of(lock_nop, .byte 0xf0, 0x90)
of(far_call_direct, .byte 0x9a, 0, 0, 0, 0, 0x33, 0)
of(instruction_of_16_bytes, .fill 15, 1, 0x66; nop)

/* --- that fault by what they are given --- */
of(overflow_of_idiv, mov $0x80000000, %eax; cltd; mov $-1, %ecx; idiv %ecx)
of(overflow_of_idiv_64, movabs $0x8000000000000000, %rax; cqto; mov $-1, %rcx; idiv %rcx)
of(overflow_of_div, mov $-1, %edx; mov $1, %ecx; div %ecx)
of(mxcsr_reserved, push $-1; ldmxcsr (%rsp))
of(segment_that_is_not, mov $0xffff, %eax; mov %eax, %ds)
of(stack_segment_null, xor %eax, %eax; mov %eax, %ss)
of(stack_segment_of_code, mov %cs, %eax; mov %eax, %ss)
of(far_jump, push $0; push $0; ljmp *(%rsp))
of(far_call, push $0x10; push $0; lcall *(%rsp))
of(far_return, push $0x10; push $0; lretq)
of(iret_to_nothing, push $0; push $0; push $0; push $0; push $0; iretq)
of(iret_to_the_system, push $0x18; push %rsp; pushf; push $0x10; push $0; iretq)
of(enter_nested, enter $0xffff, $31)
of(unaligned_movaps, movaps 8(%rsp), %xmm0; movaps (%rsp), %xmm0)
of(unaligned_cmpxchg16b, lock cmpxchg16b (%rsp); lock cmpxchg16b 8(%rsp))
of(xsave_nowhere, mov $-1, %eax; mov %eax, %edx; xor %ecx, %ecx; xsave (%rcx))
of(fxrstor_reserved, mov %rsp, %rcx; and $-64, %rcx; movl $-1, -512+24(%rcx); fxrstor -512(%rcx))
of(xlat_nowhere, xor %ebx, %ebx; dec %rbx; xlat)
of(bit_test_far_away, mov $-1, %rax; shr $1, %rax; bt %rax, (%rsp))
of(string_from_the_system, mov $-4096, %rsi; lodsq)
of(gather_of_prefetches, prefetchw 0; prefetchnta -1; clflush (%rsp); rdtsc; pause)

function xrstor_garbage
    mov %rsp, %rdi
    and $-64, %rdi
    sub $8192, %rdi
    mov %rdi, %rdx
    mov $-1, %rax
    mov $1024, %ecx
    rep stosq
    mov %rdx, %rdi
    mov %eax, %edx
    xrstor (%rdi)
    mov $42, %eax
    ret
done xrstor_garbage

/* --- jumps --- */
of(jump_into_the_system, mov $-4096, %rax; jmp *%rax)
of(jump_to_non_canonical, movabs $0x8000000000000000, %rax; jmp *%rax)
of(call_old_system_calls, mov $-0xa00000, %rax; xor %edi, %edi; xor %esi, %esi; call *%rax)
of(jump_to_constants, lea constants(%rip), %rax; jmp *%rax)
of(jump_to_data, lea variables(%rip), %rax; jmp *%rax)
of(write_constants, movb $1, constants(%rip))
of(syscall_in_a_constant, mov $39, %eax; hidden 0x0f, 0x05, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90)
of(syscall_without_a_stack, mov $39, %eax; xor %esp, %esp; syscall)
of(syscall_under_the_trap_flag, mov $39, %eax; pushf; orl $0x100, (%rsp); popf; syscall)
of(syscall_of_32_bits_by_far_return, push $0x23; lea 1f(%rip), %rax; push %rax; lretq; 1: int $0x80)

/* The last one: there is nothing behind it but what fills free memory. */
function fall_off_the_end
    nop
done fall_off_the_end

    .section .rodata
    .balign 64
constants:
    .fill 64, 1, 0xc3

    .data
    .balign 64
variables:
    .fill 64, 1, 0xc3

    .section .note.GNU-stack, "", @progbits
