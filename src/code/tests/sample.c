/* The source of sample.o: what compilers make of the usual kinds of symbols.
 * cc -c -O1 -fPIC -fcommon -fno-asynchronous-unwind-tables -o sample.o sample.c && strip --strip-debug -R .comment sample.o */
#include <string.h>

int counter = 7;
int zeros[100];
int tentative;
static int calls;
extern int absent(void) __attribute__((weak));
__attribute__((visibility("hidden"))) int hidden_value = 3;
static const char *const names[] = {"zero", "one", "two"};

static __attribute__((noinline)) int local(int x) { calls++; return x * hidden_value; }

static int twice(int x) { return 2 * x; }
static int thrice(int x) { return 3 * x; }
int (*const table[])(int) = {twice, thrice, local};

int bump(int by) { counter += by; tentative += local(by); zeros[by & 63]++; return counter; }
int apply(int which, int x) { return table[which](x); }
unsigned long name_length(int which) { return strlen(names[which]); }
void copy(char *to, const char *from, unsigned long n) { memcpy(to, from, n); }
int has_absent(void) { return absent ? absent() : -1; }
int select_case(int x) {
    switch (x) {
    case 0: return 11;
    case 1: return bump(x);
    case 2: return apply(1, x);
    case 3: return has_absent();
    case 4: return calls;
    case 5: return zeros[3];
    default: return 0;
    }
}
double half(double x) { return x * 0.5 + 0.125; }
