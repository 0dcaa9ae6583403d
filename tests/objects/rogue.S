/* Functions that would take a process down. */
#include "hostile/macros.inc"

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

/* Behind the frame's start: arguments and result, and the desk. See Context, Frame and Desk in src/exec. */
    .set FRAME_INTS, 40
    .set FRAME_RESULT, 160
    .set DESK_TURN, 1600
    .set DESK_DONE, DESK_TURN + 64

    .macro frame_in_rax
    mov %rsp, %rax
    or $0xfffffff, %rax
    sub $4095, %rax
    .endm

/* void run_on(void): says that the call has ended, and so of all that follow, but never ends. */
function run_on
    frame_in_rax
    andq $-2, 8(%rax)
1:  mov DESK_TURN(%rax), %ecx
    mov %ecx, DESK_DONE(%rax)
    pause
    jmp 1b
done run_on

/* The same, and puts zeros in the words behind its turns, where the daemon prepares calls. */
function run_on_and_spoil
    frame_in_rax
    andq $-2, 8(%rax)
1:  mov DESK_TURN(%rax), %ecx
    mov %ecx, DESK_DONE(%rax)
    movq $0, 16(%rax)
    movq $0, 24(%rax)
    movq $0, 32(%rax)
    jmp 1b
done run_on_and_spoil

/* void answer_others(void): says that the call has ended, waits for the next one, and answers that with its first
   argument, which it has read. */
function answer_others
    frame_in_rax
    mov %rax, %rbx
    andq $-2, 8(%rbx)
    mov DESK_TURN(%rbx), %r12d
    mov %r12d, DESK_DONE(%rbx)
1:  pause
    cmp %r12d, DESK_TURN(%rbx)
    je 1b
    mov DESK_TURN(%rbx), %r12d
    mov FRAME_INTS(%rbx), %rdx
    mov %rdx, FRAME_RESULT(%rbx)
    mov %r12d, DESK_DONE(%rbx)
    jmp 1b
done answer_others

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
