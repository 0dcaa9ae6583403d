; nasm.o: nasm 2.16 -f elf64
        default rel
        global  first:function (first.end - first), pick:function (pick.end - pick), numbers:data 16
        extern  strlen
        common  room 64:32

        section .text align=32
first:  mov     rdi, text               ; all 64 bits of an address
        call    strlen wrt ..plt
        add     rax, [rel numbers wrt ..got]
        lea     rcx, [room]
        mov     [rcx], rax
        ret
.end:
        align   16
pick:   lea     rax, [.table]
        movsxd  rdx, dword [rax + 4*rdi]
        add     rax, rdx
        jmp     rax
.no:    xor     eax, eax
        ret
.yes:   mov     eax, [numbers + 4]
        ret
.end:

        section .rodata
text:   db      "text", 0
        align   4
pick.table:
        dd      pick.no - pick.table, pick.yes - pick.table

        section .data align=16
numbers:
        dq      text, first
