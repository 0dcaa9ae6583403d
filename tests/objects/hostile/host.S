/* The host's functions, called with what they must not get, in states they must not be called in, and left by jumps. */
#include "macros.inc"

    /* A call of a function that takes up to three words. */
    .macro host name, to, a=0, b=0, c=0
    function \name
    push %rbp
    mov $\a, %rdi
    mov $\b, %rsi
    mov $\c, %rdx
    call \to@PLT
    pop %rbp
    mov $42, %eax
    ret
    done \name
    .endm
host strlen_of_nothing, strlen
host strlen_of_ones, strlen, -1
host strlen_of_the_system, strlen, -4096
host strcmp_of_nothing, strcmp, 1, 2
host memcpy_to_nothing, memcpy, 1, 2, 3
host memset_everything, memset, 0, 0, -1
host memset_the_system, memset, -4096, 0, 4096
host memchr_everything, memchr, 0x1000, 0, -1
host free_of_nothing, free, 8
host free_of_ones, free, -1
host free_of_the_system, free, -4096
host realloc_of_nothing, realloc, 16, 64
host calloc_of_too_much, calloc, -1, -1
host malloc_of_too_much, malloc, -1
host memalign_of_too_much, memalign, -1, -1
host chk_of_too_little, __memcpy_chk, 1, 2, 3
host longjmp_to_nothing, longjmp
host bsearch_of_nothing, bsearch, 0, 0, -1
host strtod_of_nothing, strtod, 1
host abort_at_once, abort
host smashed_stack, __stack_chk_fail

of(free_of_stack, push %rbp; mov %rsp, %rdi; call free@PLT; pop %rbp)
of(free_of_code, push %rbp; lea free_of_code(%rip), %rdi; call free@PLT; pop %rbp)
of(memset_of_code, push %rbp; lea memset_of_code(%rip), %rdi; xor %esi, %esi; mov $64, %edx; call memset@PLT; pop %rbp)

    .macro call_malloc bytes
    push %rbx
    mov $\bytes, %edi
    call malloc@PLT
    mov %rax, %rbx
    .endm
of(free_twice, call_malloc 64; mov %rbx, %rdi; call free@PLT; mov %rbx, %rdi; call free@PLT; pop %rbx)
of(free_of_the_middle, call_malloc 64; lea 16(%rbx), %rdi; call free@PLT; pop %rbx)
of(overflow_then_free, call_malloc 64; movq $-1, -8(%rbx); movq $-1, -16(%rbx); mov %rbx, %rdi; call free@PLT; pop %rbx)
of(malloc_until_none_is_left, 1: call_malloc 100000; pop %rcx; test %rbx, %rbx; mov %rcx, %rbx; jnz 1b)
of(malloc_for_ever, 1: call_malloc 100000; pop %rbx; jmp 1b)

/* --- in states --- */
of(host_under_trap_flag, push %rbp; pushf; orl $0x100, (%rsp); popf; call abs@PLT; pop %rbp)
of(host_under_df, push %rbp; std; lea text(%rip), %rdi; call strlen@PLT; pop %rbp)
of(host_without_stack, xor %esp, %esp; call abs@PLT)
of(host_with_stack_in_guard, sub $0x2000000, %rsp; call abs@PLT)
of(malloc_on_data, lea variables_end(%rip), %rsp; mov $64, %edi; call malloc@PLT; ud2)
of(float_unmasked, push $0; ldmxcsr (%rsp); mov $1, %eax; cvtsi2sd %eax, %xmm0; call sin@PLT; pop %rbp)
of(float_unaligned, push %rbp; pushf; orl $0x40000, (%rsp); popf; lea text + 1(%rip), %rdi; lea -63(%rsp), %rsi; xchg %rsi, %rdi; mov $9, %edx; call memcpy@PLT; pop %rbp)
of(x87_full_then_float, sub $40, %rsp; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fld1; call sqrtl@PLT; add $40, %rsp)

function at_the_end_of_the_stack        /* calls with ever less of it */
    lea text(%rip), %rdi
    xor %esi, %esi
1:  push %rdi
    push %rsi
    push %rax
    call strtod@PLT
    pop %rax
    pop %rsi
    pop %rdi
    push %rdi
    push %rdi
    jmp 1b
done at_the_end_of_the_stack

/* --- calls back --- */
    .macro search compare
    push %rbp
    lea text(%rip), %rdi
    mov %rdi, %rsi
    mov $9, %edx
    mov $1, %ecx
    lea \compare(%rip), %r8
    call bsearch@PLT
    pop %rbp
    .endm
of(search_into_itself, search search_into_itself)
of(search_into_fault, search into_fault)
of(search_into_spin, search into_spin)
of(search_into_syscall, search into_syscall)
of(search_into_destruction, search into_destruction)
of(search_into_constants, search text)
of(search_into_nothing, push %rbp; xor %r8d, %r8d; mov $9, %edx; call bsearch@PLT; pop %rbp)
of(search_that_unbalances, search into_unbalance)
of(search_that_loses_the_stack, search into_loss)
into_fault: ud2
into_spin: jmp into_spin
into_syscall: mov $39, %eax; syscall; ret
into_unbalance: pop %rax; push $0; ret
into_loss: xor %esp, %esp; ret
into_destruction:
    xor %ebx, %ebx
    xor %ebp, %ebp
    xor %r12d, %r12d
    xor %r13d, %r13d
    xor %r14d, %r14d
    xor %r15d, %r15d
    std
    mov $1, %eax
    ret

function search_left_by_a_jump
    push %rbp
    sub $256, %rsp
    lea buffer(%rip), %rdi
    call setjmp@PLT
    test %eax, %eax
    jnz 1f
    search into_jump
1:  add $256, %rsp
    pop %rbp
    mov $42, %eax
    ret
done search_left_by_a_jump
into_jump:
    lea buffer(%rip), %rdi
    mov $1, %esi
    jmp longjmp@PLT

function jump_for_ever
    lea buffer(%rip), %rdi
    push %rbp
    call setjmp@PLT
    lea buffer(%rip), %rdi
    mov $1, %esi
    jmp longjmp@PLT
done jump_for_ever

function jump_to_a_frame_that_is_gone
    lea buffer(%rip), %rdi
    push %rbp
    call 1f
    lea buffer(%rip), %rdi
    mov $1, %esi
    call longjmp@PLT
    ud2
1:  sub $8, %rsp
    call setjmp@PLT
    test %eax, %eax
    jnz 2f
    add $8, %rsp
    ret
2:  xor %esp, %esp                      /* what it would return to was overwritten */
    ret
done jump_to_a_frame_that_is_gone

    .section .rodata
text: .string "3.14159265358979"

    .data
    .balign 4096
variables:
    .fill 4096, 1, 0
variables_end:
    .fill 4096, 1, 0
buffer:
    .fill 256, 1, 0

    .section .note.GNU-stack, "", @progbits
