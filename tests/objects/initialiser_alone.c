/* One constructor, which does what the test asks for by a macro. */
#include <stdlib.h>

static volatile int runs = 10;
static void *kept;

__attribute__((constructor)) static void start(void) {
    runs++;
#if defined FAULT
    *(volatile int *)0 = 1;
#elif defined SPIN
    for (;;) __asm__ volatile("");
#elif defined SLOW
    for (volatile unsigned i = 0; i < 100u * 1000 * 1000; i++) {}
#elif defined KEEP
    kept = malloc(100);
    *(volatile char *)kept = 1;
#elif defined BORROW
    char *block = calloc(100, 10);
    runs += block[999];
    free(block);
#endif
}

int get(void) { return runs + (kept != 0); }
