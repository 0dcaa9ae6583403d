/* What can be done with a stack pointer, and with the address that was to be returned to. */
#include "macros.inc"

    .macro slot_end register            /* last byte of what an executor has for its calls */
    mov %rsp, \register
    or $0xfffffff, \register
    .endm

function in_alternate_stack             /* whose end is below the frame */
    slot_end %rax
    lea -0x10ff(%rax), %rsp
    push %rax
    push %rax
    ud2
done in_alternate_stack

of(fault_with_stack_in_frame, slot_end %rax; lea -2000(%rax), %rsp; ud2)
of(fault_with_stack_in_guard, sub $0x2000000, %rsp; ud2)
of(push_in_guard, sub $0x2000000, %rsp; push %rax)
of(stack_in_code, lea stack_in_code(%rip), %rsp; push %rax)
of(stack_in_the_system, mov $-4096, %rsp; push %rax)
of(stack_unaligned, or $7, %rsp; movaps (%rsp), %xmm0)
of(fault_with_stack_of_ones, mov $-1, %rsp; ud2)
of(pop_for_ever, 1: pop %rax; jmp 1b)
of(push_for_ever, 1: push %rax; jmp 1b)
of(call_for_ever, 1: call 1b)
of(push_and_pop_over_the_end, 1: push %rax; push %rax; pop %rcx; jmp 1b)
of(frames_of_60_mib, 1: sub $0x3c00000, %rsp; push %rax; jmp 1b)
of(spin_without_stack, xor %esp, %esp; 1: jmp 1b)
of(spin_in_guard, sub $0x2000000, %rsp; 1: jmp 1b)
of(spin_with_stack_in_frame, slot_end %rax; lea -2000(%rax), %rsp; 1: jmp 1b)
of(return_to_guard, lea -0x2000000(%rsp), %rax; push %rax; ret)

/* Goes back to where it came from, with a stack that is not that of the call. */
#define back(name, ...) of(name, mov (%rsp), %rax; __VA_ARGS__; jmp *%rax)
back(back_without_stack, xor %esp, %esp)
back(back_with_non_canonical_stack, movabs $0x8000000000000000, %rsp)
back(back_with_stack_of_ones, mov $-1, %rsp)
back(back_with_stack_in_code, lea back_with_stack_in_code(%rip), %rsp)
back(back_with_stack_in_data, lea variables(%rip), %rsp)
back(back_with_next_stack, add $0x10000000, %rsp)
back(back_with_previous_stack, sub $0x10000000, %rsp)

of(call_what_called, push $0; mov 8(%rsp), %rcx; mov $42, %eax; call *%rcx)

function again_from_where_it_was_called /* the call instruction of three bytes, of nothing */
    mov (%rsp), %rax
    sub $3, %rax
    xor %r10d, %r10d
    jmp *%rax
done again_from_where_it_was_called

function again_and_again                /* the same of itself: a recursion through it */
    mov (%rsp), %rax
    cmpb $0x41, -3(%rax)                /* as it begins */
    jne 1f
    sub $3, %rax
    jmp *%rax
1:  ud2
done again_and_again

of(on_own_data, mov %rsp, %rcx; lea variables_end(%rip), %rsp; mov $512, %eax; 1: push %rax; dec %eax; jnz 1b; mov %rcx, %rsp)
of(fault_on_own_data, lea variables_end(%rip), %rsp; mov $512, %eax; 1: push %rax; dec %eax; jnz 1b; ud2)

function on_own_heap                    /* a stack there, and back */
    push %rbx
    push %rbp
    mov $65536, %edi
    call malloc@PLT
    test %rax, %rax
    jz 1f
    mov %rsp, %rbx
    lea 65536(%rax), %rsp
    mov $1000, %edi
    call down
    mov %rbx, %rsp
1:  pop %rbp
    pop %rbx
    mov $42, %eax
    ret
done on_own_heap

function return_from_own_heap           /* and returns from there */
    pop %r12
    mov $65536, %edi
    push %rax
    call malloc@PLT
    lea 65528(%rax), %rsp
    push %r12
    mov $42, %eax
    ret
done return_from_own_heap

function down
    dec %edi
    jz 1f
    call down
1:  ret
done down

    .data
    .balign 4096
variables:
    .fill 4096, 1, 0
variables_end:
    .fill 4096, 1, 0

    .section .note.GNU-stack, "", @progbits
