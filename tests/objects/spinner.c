/* Two functions that take as long as they are told, and one that calls back: for profilers, debuggers and backtraces. */

void capture(void) __attribute__((weak));

__attribute__((noinline)) unsigned long spin_inner(unsigned long steps) {
    while (steps--) {
        __asm__ volatile("" : "+r"(steps));
    }
    return steps;
}

__attribute__((noinline)) unsigned long spin_outer(unsigned long steps) {
    return spin_inner(steps) + 2;
}

__attribute__((noinline)) unsigned long call_inner(unsigned long number) {
    volatile char room[200];
    room[number % sizeof room] = 1;
    if (capture) {
        capture();
    }
    return number + room[number % sizeof room];
}

unsigned long call_outer(unsigned long number) {
    return call_inner(number) + 1;
}
