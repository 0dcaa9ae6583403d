/* What compilers make of the usual kinds of things, in as few functions as show them.
 * gcc.o:         gcc-12 -c -O2 -fPIC -fno-asynchronous-unwind-tables
 * gcc_large.o:   the same with -mcmodel=large
 * clang.o:       clang-14 -c -O1 -fPIC -fno-asynchronous-unwind-tables -ffunction-sections
 * each then: strip --strip-debug -R .comment -R .note.GNU-stack -R .llvm_addrsig */
unsigned long strlen(const char *text);
void *memcpy(void *to, const void *from, unsigned long size);
extern int absent(void) __attribute__((weak));

int counter = 7;
static int calls;
static const char *const names[] = {"one", "two"};

static __attribute__((noinline)) int twice(int x) { return 2 * x; }
static int thrice(int x) { return 3 * x; }
int (*const table[])(int) = {twice, thrice};

int bump(int by) { return counter += by + ++calls; }
int apply(int which, int x) { return table[which & 1](x) + twice(x); }
unsigned long name(int which, char *out) {
    unsigned long size = strlen(names[which & 1]);
    memcpy(out, names[which & 1], size);
    return size;
}
int choose(int x) {
    switch (x) {
    case 0: return bump(x);
    case 1: return apply(1, x);
    case 2: return absent ? absent() : -1;
    case 3: return calls;
    case 4: return counter * 3;
    default: return 0;
    }
}
double half(double x) { return x * 0.5 + 0.125; }
