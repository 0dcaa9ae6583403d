; What tests/compilers.rs asks of an assembler; functions.rs says what each gives.
        default rel
        global  collatz:function (collatz.end - collatz), opcode:function, dot:function, scale:function
        global  planet:function, fibonacci:function, apply:function, bump:function, polynomial:function
        global  hypotenuse:function, multiply_high:function, multiply4:function, $bits:function
        global  count:data 8
        extern  strlen, memcpy, sqrt
        common  calls 8:8

        section .text align=16

collatz:                                ; (rdi n) -> eax steps
        xor     eax, eax
.next:  cmp     rdi, 1
        jbe     .done
        inc     eax
        test    dil, 1
        jnz     .odd
        shr     rdi, 1
        jmp     .next
.odd:   lea     rdi, [rdi + 2*rdi + 1]
        jmp     .next
.done:  ret
.end:

; A table of distances, as compilers make it.
opcode:                                 ; (edi op, rsi a, rdx b)
        cmp     edi, 13
        ja      .other
        mov     edi, edi
        lea     r8, [.table]
        movsxd  r9, dword [r8 + 4*rdi]
        add     r8, r9
        mov     rax, rsi
        mov     rcx, rdx
        jmp     r8
.add:   add     rax, rdx
        ret
.sub:   sub     rax, rdx
        ret
.mul:   imul    rax, rdx
        ret
.and:   and     rax, rdx
        ret
.or:    or      rax, rdx
        ret
.xor:   xor     rax, rdx
        ret
.shl:   shl     rax, cl
        ret
.sar:   sar     rax, cl
        ret
.not:   not     rax
        ret
.neg:   neg     rax
        ret
.less:  xor     eax, eax
        cmp     rsi, rdx
        setl    al
        ret
.max:   cmp     rax, rdx
        cmovl   rax, rdx
        ret
.min3:  cmp     rax, rdx
        cmovg   rax, rdx
        lea     rax, [rax + 2*rax]
        ret
.squares:
        imul    rax, rax
        imul    rdx, rdx
        sub     rax, rdx
        ret
.other: or      rax, -1
        ret

        section .rodata
        align   4
opcode.table:
%macro  cases 1-*
%rep    %0
        dd      opcode.%1 - opcode.table
%rotate 1
%endrep
%endmacro
        cases   add, sub, mul, and, or, xor, shl, sar, not, neg, less, max, min3, squares

        section .text

dot:                                    ; (rdi a, rsi b, rdx n) -> xmm0
        pxor    xmm0, xmm0
        xor     eax, eax
.next:  cmp     rax, rdx
        jae     .done
        movsd   xmm1, [rdi + 8*rax]
        mulsd   xmm1, [rsi + 8*rax]
        addsd   xmm0, xmm1
        inc     rax
        jmp     .next
.done:  ret

scale:                                  ; (rdi values, rsi n, xmm0 by)
        shufps  xmm0, xmm0, 0
.four:  cmp     rsi, 4
        jb      .one
        movups  xmm1, [rdi]
        mulps   xmm1, xmm0
        addps   xmm1, [ones]            ; which must be aligned to 16
        movups  [rdi], xmm1
        add     rdi, 16
        sub     rsi, 4
        jmp     .four
.one:   test    rsi, rsi
        jz      .done
        movss   xmm1, [rdi]
        mulss   xmm1, xmm0
        addss   xmm1, [ones]
        movss   [rdi], xmm1
        add     rdi, 4
        dec     rsi
        jmp     .one
.done:  ret

planet:                                 ; (edi index, rsi out) -> length
        push    rbx
        push    r12
        sub     rsp, 8
        mov     r12, rsi
        lea     rbx, [planet.none]
        cmp     edi, 8
        jae     .found
        mov     edi, edi
        lea     rax, [planet.names]
        mov     rbx, [rax + 8*rdi]
.found: mov     rdi, rbx
        call    strlen wrt ..plt
        mov     rdi, r12
        mov     r12, rax
        mov     rsi, rbx
        mov     rdx, rax
        call    [rel memcpy wrt ..got]
        mov     rax, r12
        add     rsp, 8
        pop     r12
        pop     rbx
        ret

        section .data.rel.ro progbits alloc noexec write align=8
planet.names:
        dq      name.0, name.1, name.2, name.3, name.4, name.5, name.6, name.7
apply.table:
        dq      average, difference, product, weighted

        section .rodata.str1.1 progbits alloc noexec nowrite align=1
name.0: db      "Mercury", 0
name.1: db      "Venus", 0
name.2: db      "Earth", 0
name.3: db      "Mars", 0
name.4: db      "Jupiter", 0
name.5: db      "Saturn", 0
name.6: db      "Uranus", 0
name.7: db      "Neptune", 0
planet.none:
        db      "none", 0

        section .text

fibonacci:                              ; (edi n)
        mov     eax, edi
        cmp     edi, 2
        jb      .done
        push    rbx
        push    rdi
        sub     rsp, 8
        dec     edi
        call    fibonacci
        mov     ebx, eax
        mov     edi, [rsp + 8]
        sub     edi, 2
        call    fibonacci
        add     eax, ebx
        add     rsp, 16
        pop     rbx
.done:  ret

apply:                                  ; (edi which, rsi a, rdx b)
        and     edi, 3
        lea     rax, [apply.table]
        jmp     [rax + 8*rdi]

average:
        mov     rax, rsi
        and     rax, rdx
        xor     rsi, rdx
        sar     rsi, 1
        add     rax, rsi
        ret
difference:
        mov     rax, rsi
        sub     rax, rdx
        ret
product:
        mov     rax, rsi
        imul    rax, rdx
        ret
weighted:
        lea     rax, [rsi + 2*rsi]
        lea     rdx, [rdx + 4*rdx]
        add     rax, rdx
        ret

bump:                                   ; (rdi by)
        mov     rcx, [rel calls wrt ..got]
        inc     qword [rcx]
        mov     rdx, [rel count wrt ..got]
        mov     rax, [rdx]
        add     rax, rdi
        add     rax, rax
        add     rax, [calls]
        mov     [count], rax
        ret

polynomial:                             ; (xmm0 x) -> xmm0
        movapd  xmm1, xmm0
        pxor    xmm0, xmm0
        mov     rax, coefficients       ; all 64 bits of an address
        mov     ecx, 6
.next:  mulsd   xmm0, xmm1
        addsd   xmm0, [rax]
        add     rax, 8
        loop    .next
        ret

hypotenuse:                             ; (xmm0 a, xmm1 b)
        mulsd   xmm0, xmm0
        mulsd   xmm1, xmm1
        addsd   xmm0, xmm1
        jmp     sqrt wrt ..plt

multiply_high:                          ; (rdi a, rsi b)
        mov     rax, rdi
        mul     rsi
        mov     rax, rdx
        ret

multiply4:                              ; (rdi a, rsi b, rdx out)
        mov     ecx, 4
.row:   pxor    xmm0, xmm0
%assign at 0
%rep 4
        movss   xmm1, [rdi + 4*at]
        shufps  xmm1, xmm1, 0
        movups  xmm2, [rsi + 16*at]
        mulps   xmm1, xmm2
        addps   xmm0, xmm1
%assign at at + 1
%endrep
        movups  [rdx], xmm0
        add     rdi, 16
        add     rdx, 16
        dec     ecx
        jnz     .row
        ret

$bits:                                  ; (rdi n)
        mov     rax, rdi
        bswap   rax
        rol     rax, 13
        popcnt  rcx, rdi
        xor     rax, rcx
        mov     rcx, rdi
        or      rcx, 1
        bsr     rcx, rcx
        xor     rcx, 63
        shl     rcx, 8
        xor     rax, rcx
        mov     rcx, rdi
        bts     rcx, 63
        bsf     rcx, rcx
        shl     rcx, 16
        xor     rax, rcx
        ret

        section .rodata
        align   16
ones:   times 4 dd 1.0
coefficients:
        dq      0.5, -1.25, 3.0, 0.1, -7.5, 2.0

        section .data
        align   8
count:  dq      1000

        section .note.GNU-stack noalloc noexec nowrite progbits
