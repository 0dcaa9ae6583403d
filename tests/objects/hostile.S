/* Functions that do what no function may. Each must come back as a trap, or return as if nothing had been. */
#include "hostile/macros.inc"

/* In a constant, into which is jumped: where it can be seen this instruction refuses the install. */
    .macro hidden_wrfsbase register
    jmp 77f + 2
77: .byte 0x48, 0xba                    /* movabs of the eight bytes after it */
    wrfsbase \register
    nop
    nop
    nop
    .endm

/* --- never return --- */
function infinite_recursion
    sub $264, %rsp
    call infinite_recursion
    add $264, %rsp
    ret
done infinite_recursion

function big_frame_recursion            /* a frame of 1 MiB jumps over a guard of a page */
    sub $0x100000, %rsp
    movb $1, (%rsp)
    call big_frame_recursion
    ret
done big_frame_recursion

function zero_stack
    xor %esp, %esp
    push %rax
    ret
done zero_stack

function non_canonical
    movabs $0x8000000000000000, %rax
    mov (%rax), %rax
    ret
done non_canonical

function non_canonical_stack
    movabs $0x8000000000000000, %rsp
    push %rax
    ret
done non_canonical_stack

function jump_to_zero
    xor %eax, %eax
    jmp *%rax
done jump_to_zero

function jump_to_stack                  /* stacks are not executable */
    movb $0xc3, -64(%rsp)
    lea -64(%rsp), %rax
    jmp *%rax
done jump_to_stack

function read_null
    mov 0, %rax
    ret
done read_null

function write_code                     /* code is not writable at the address where it runs */
    lea write_code(%rip), %rax
    movb $0xc3, (%rax)
    ret
done write_code

function undefined
    ud2
done undefined

function privileged
    hlt
    ret
done privileged

function system_call                    /* (number, a, b, c): nothing of it may happen */
    mov %rdi, %rax
    mov %rsi, %rdi
    mov %rdx, %rsi
    mov %rcx, %rdx
    syscall
    ret
done system_call

function interrupt_0x80                 /* (number): the 32-bit interface */
    mov %rdi, %rax
    int $0x80
    ret
done interrupt_0x80

function divide_by_zero
    xor %ecx, %ecx
    mov $1, %eax
    cltd
    idiv %ecx
    ret
done divide_by_zero

function breakpoint
    int3
    ret
done breakpoint

function single_step
    pushf
    orl $0x100, (%rsp)
    popf
    nop
    nop
    ret
done single_step

function alignment_check                /* AC, then an unaligned access */
    pushf
    orl $0x40000, (%rsp)
    popf
    lea -65(%rsp), %rax
    mov (%rax), %rcx
    ret
done alignment_check

function unmasked_float                 /* unmasks division by zero, then divides */
    sub $8, %rsp
    movl $0x1d80, (%rsp)                /* MXCSR with ZM clear */
    ldmxcsr (%rsp)
    xorps %xmm1, %xmm1
    mov $1, %eax
    cvtsi2sd %eax, %xmm0
    divsd %xmm1, %xmm0
    add $8, %rsp
    ret
done unmasked_float

function wreck_everything               /* all callee-saved registers, flags, x87, MXCSR; then a fault */
    xor %ebx, %ebx
    mov $-1, %rbp
    mov $0x41414141, %r12d
    mov %r12, %r13
    mov %r12, %r14
    mov %r12, %r15
    std
    fld1
    fld1
    fld1
    fld1
    fld1
    fld1
    fld1
    fld1
    pcmpeqd %mm0, %mm0
    ud2
done wreck_everything

function unbalanced                     /* returns to what it pushed */
    push $0
    ret
done unbalanced

function to_32_bit                      /* a far return to the 32-bit code segment */
    pushq $0x23
    lea to_32_bit(%rip), %rax
    mov %eax, %eax
    push %rax
    lretq
done to_32_bit

function wrong_fs_then_fault
    xor %eax, %eax
    hidden_wrfsbase %rax
    ud2
done wrong_fs_then_fault

function spin
1:  jmp 1b
done spin

function spin_backwards                 /* with DF set and no stack */
    std
    xor %esp, %esp
1:  jmp 1b
done spin_backwards

function spin_wrong_fs
    xor %eax, %eax
    hidden_wrfsbase %rax
1:  jmp 1b
done spin_wrong_fs

/* --- return, having left a mess behind --- */
function leave_df
    std
    mov $41, %eax
    inc %eax
    ret
done leave_df

function leave_ac
    pushf
    orl $0x40000, (%rsp)
    popf
    mov $42, %eax
    ret
done leave_ac

function leave_mxcsr                    /* rounds towards zero, flushes denormals, unmasks nothing */
    sub $8, %rsp
    movl $0xffc0, (%rsp)
    ldmxcsr (%rsp)
    add $8, %rsp
    mov $42, %eax
    ret
done leave_mxcsr

function leave_x87_full
    fld1
    fld1
    fld1
    fld1
    fld1
    fld1
    fld1
    fld1
    mov $42, %eax
    ret
done leave_x87_full

function leave_mmx
    pcmpeqd %mm0, %mm0
    mov $42, %eax
    ret
done leave_mmx

function leave_registers
    mov $-1, %rbx
    mov $-1, %rbp
    mov $-1, %r12
    mov $-1, %r13
    mov $-1, %r14
    mov $-1, %r15
    mov $42, %eax
    ret
done leave_registers

function leave_stack_popped             /* ret 64 */
    mov $42, %eax
    ret $64
done leave_stack_popped

function leave_other_fs                 /* thread-local storage where there is none */
    hidden_wrfsbase %rsp
    mov $42, %eax
    ret
done leave_other_fs

function leave_unmapped_fs              /* found out on return: a trap outside of the entry */
    xor %eax, %eax
    hidden_wrfsbase %rax
    mov $42, %eax
    ret
done leave_unmapped_fs

function leave_x87_precision            /* single precision, unmasked */
    fnclex                              /* flags of earlier calls stay */
    sub $8, %rsp
    movw $0x0000, (%rsp)
    fldcw (%rsp)
    add $8, %rsp
    mov $42, %eax
    ret
done leave_x87_precision

function add
    lea (%rdi,%rsi), %eax
    ret
done add

    .section .note.GNU-stack, "", @progbits
