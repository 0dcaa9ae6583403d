/* Compiled without position-independent code: what it refers to it addresses in 32 bits. */
#include <stdint.h>
#include <string.h>

#ifdef CALLER
/* Of other entries: functions anywhere, data below 2 GiB. */
int add_far(int a, int b);
extern int (*const add_near)(int, int);
extern int shared[4];

int through(int a, int b) { return add_far(a, b) + add_near(a, b); }
int from_table(unsigned at) { return shared[at & 3]; }
int by_pointer(int a, int b)
{
    int (*volatile function)(int, int) = add_far;
    return function(a, b);
}
#else

static const uint16_t squares[16] = { 0, 1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225 };
static const char *const names[4] = { "zero", "one", "two", "three" };
int shared[4] = { 10, 20, 30, 40 };
static int counter = 5;
static int zeroes[1000];

static size_t (*volatile in_table)(const char *) = strlen;

/* movzwl squares(,%rdi,2), %eax */
int square(unsigned number) { return squares[number & 15]; }

/* movq names(,%rdi,8), %rdi */
uint64_t name_length(unsigned number) { return strlen(names[number & 3]); }

/* movl $.LC0, %esi */
uint64_t greeting(char *out, uint64_t bytes)
{
    const char *volatile text = "hello from below 2 GiB";
    uint64_t length = strlen(text);
    if (length < bytes)
        bytes = length;
    memcpy(out, text, bytes);
    return length;
}

/* addl %edi, counter(%rip), or counter; and what starts as zero */
int bump(int by) { return counter += by; }
int mark(unsigned at) { return ++zeroes[at % 1000]; }

/* jmp *table(,%rax,8) */
int opcode(unsigned op, int a, int b)
{
    switch (op) {
    case 0: return a + b;
    case 1: return a - b;
    case 2: return a * b;
    case 3: return a & b;
    case 4: return a | b;
    case 5: return a ^ b;
    case 6: return b ? a / b : 0;
    case 7: return a << (b & 31);
    case 8: return ~a;
    default: return -1;
    }
}

/* The same function by an address in 32 bits and by one in 64. */
int is_one_function(void)
{
    size_t (*here)(const char *) = strlen;
    __asm__("" : "+r"(here));
    return here == in_table && here("four") == 4;
}

uint64_t place(void) { return (uintptr_t)&counter; }
int fault(unsigned at) { return *(volatile int *)(0x100000000 + at) + counter; }
/* getpid */
uint64_t process(void)
{
    uint64_t number = 39 + (uint64_t)zeroes[0];
    __asm__ volatile("syscall" : "+a"(number) : : "rcx", "r11", "memory");
    return number;
}
int spin(void) { for (;;) __asm__ volatile("" : : "r"(&counter)); }

/* So large that few fit. */
#ifdef BYTES
const char filler[BYTES] = { 1 };
#endif
#endif
