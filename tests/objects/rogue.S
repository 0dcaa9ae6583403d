/* Functions that would take a process down. */
    .text
    .macro function name
    .globl \name
    .type \name, @function
\name:
    .endm
    .macro done name
    .size \name, . - \name
    .endm

/* void wild_write(void *from, unsigned long bytes): each 8 bytes of it, up to the first that cannot be written. */
function wild_write
    movabs $0x5a5a5a5a5a5a5a5a, %rax
    mov %rsi, %rcx
    shr $3, %rcx
    cld
    rep stosq
    ret
done wild_write

/* Over all of its stack that others use, and beyond. */
function smash_stack
    mov %rsp, %rdi
1:  movq $0x41414141, (%rdi)
    add $8, %rdi
    jmp 1b
done smash_stack

/* Writes what the handler finds the call by, and faults then: nobody can recover from that. */
function lose_frame
    mov %rsp, %rax
    or $0xfffffff, %rax                 /* last byte of the slot */
    sub $4095, %rax                     /* the frame */
    movq $0, 8(%rax)                    /* no code runs */
    ud2
done lose_frame

/* The same, by what comes behind the instruction: to let it happen again is not enough for the signal to end the process. */
function lose_frame_at_breakpoint
    mov %rsp, %rax
    or $0xfffffff, %rax
    sub $4095, %rax
    movq $0, 8(%rax)
    int3
done lose_frame_at_breakpoint

/* The same as lose_frame, and goes on for ever: the signal that ends a call does nothing. */
function stubborn
    mov %rsp, %rax
    or $0xfffffff, %rax
    sub $4095, %rax
1:  movq $0, 8(%rax)
    jmp 1b
done stubborn

function spin
    jmp spin
done spin

function overflow
    sub $264, %rsp
    call overflow
    add $264, %rsp
    ret
done overflow

function fault
    ud2
done fault

/* void end_process(int status) */
function end_process
    mov $231, %eax                      /* exit_group */
    syscall
    ret
done end_process

/* void kill_self(int signal) */
function kill_self
    mov %edi, %ebx
    mov $39, %eax                       /* getpid */
    syscall
    mov %eax, %edi
    mov %ebx, %esi
    mov $62, %eax                       /* kill */
    syscall
1:  jmp 1b
done kill_self

/* void kill_parent(void): the daemon, with SIGKILL */
function kill_parent
    mov $110, %eax                      /* getppid */
    syscall
    mov %eax, %edi
    mov $9, %esi
    mov $62, %eax
    syscall
    ret
done kill_parent

/* int add(int, int) */
function add
    lea (%rdi,%rsi), %eax
    ret
done add

    .section .note.GNU-stack, "", @progbits
