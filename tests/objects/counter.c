/* Writable data: one copy, which lives across calls. */
static unsigned counter = 100;
static unsigned zeroed[64];

unsigned next(void) { return ++counter; }

/* Reads, dawdles, writes: loses counts if two calls overlap. */
unsigned slow_next(unsigned rounds) {
    volatile unsigned before = counter;
    for (volatile unsigned i = 0; i < rounds; i++) {}
    counter = before + 1;
    zeroed[before % 64]++;
    return counter;
}

unsigned spoil_and_fault(void) {
    counter = 7777;
    zeroed[3] = 5;
    return *(volatile unsigned *)0;
}

unsigned spoil_and_spin(void) {
    counter = 8888;
    for (;;) __asm__ volatile("");
}

unsigned peek_zeroed(void) { return zeroed[3]; }

unsigned long add_counted(unsigned long value) { return value + ++counter; }
