/* Writes where no code may: over what the call, its executor and the daemon need. For processes only. */
#include "macros.inc"

    .macro frame register               /* of the executor: the last page of its slot */
    mov %rsp, \register
    or $0xfffffff, \register
    sub $4095, \register
    .endm
    .macro fill_frame value
    frame %rdi
    mov $\value, %rax
    mov $512, %ecx
    cld
    rep stosq
    .endm
of(zero_frame, fill_frame 0)
of(zero_frame_and_fault, fill_frame 0; ud2)
of(zero_frame_and_spin, fill_frame 0; 1: jmp 1b)
of(ones_in_frame, fill_frame -1)
of(ones_in_frame_and_fault, fill_frame -1; ud2)
of(even_turn, frame %rax; incq 8(%rax))
of(even_turn_and_fault, frame %rax; incq 8(%rax); ud2)
of(other_host_stack, frame %rax; mov %rsp, 16(%rax))
of(host_stack_nowhere, frame %rax; movq $8, 16(%rax))
of(host_stack_nowhere_and_fault, frame %rax; movq $8, 16(%rax); ud2)

function smash_upwards                  /* all above its stack pointer, up to where it faults */
    mov %rsp, %rdi
    mov $-1, %rcx
    mov $0x41, %eax
    cld
    rep stosb
    ret
done smash_upwards

function host_smashes_upwards
    mov %rsp, %rdi
    mov $0x41, %esi
    mov $0x7fffffff, %edx
    call memset@PLT
    ret
done host_smashes_upwards

function smash_heap                     /* its own, and on to the end of the slot */
    mov $64, %edi
    push %rbp
    call malloc@PLT
    lea -64(%rax), %rdi
    mov $-1, %rax
    mov $0x4000000, %ecx
    cld
    rep stosq
    pop %rbp
    ret
done smash_heap

function write_guessed                  /* (distance): itself, at an address where it might be writable, and runs that */
    lea 1f(%rip), %rax
    movb $0x90, (%rax,%rdi)
    movb $0x90, 1(%rax,%rdi)
1:  ud2
    mov $42, %eax
    ret
done write_guessed

function write_slot                     /* (distance): pages of the slot so far away */
    mov %rsp, %rax
    or $0xfffffff, %rax
    add %rdi, %rax
    mov $4096, %ecx
1:  movq $0, -7(%rax)
    sub $4096, %rax
    dec %ecx
    jnz 1b
    mov $42, %eax
    ret
done write_slot

function before_return                  /* (distance): so many bytes before where it was to return to */
    mov (%rsp), %rax
    sub %rdi, %rax
    frame %r11
    mov %r11, %rdi
    jmp *%rax
done before_return

function write_thread_block             /* the host's thread-local variables: mov %fs:0, %rcx */
    hidden 0x64, 0x48, 0x8b, 0x0c, 0x25, 0, 0, 0
    .byte 0
    lea -2048(%rcx), %rdi
    mov $512, %ecx
    mov $-1, %rax
    cld
    rep stosq
    mov $42, %eax
    ret
done write_thread_block

of(stack_on_data, lea variables(%rip), %rsp; 1: push %rsp; jmp 1b)

    .data
variables:
    .fill 64, 1, 0

    .section .note.GNU-stack, "", @progbits
