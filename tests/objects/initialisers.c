/* Constructors, in an order of their own, and what they leave. */
static int order[8], count;

static void note(int number) { order[count++ % 8] = number; }

__attribute__((constructor(500))) static void second(void) { note(2); }
__attribute__((constructor)) static void last(void) { note(3); }
__attribute__((constructor(101))) static void first(void) { note(1); }
__attribute__((destructor)) static void never(void) { note(9); }

/* The numbers of those that ran, as digits. */
int digits(void) {
    int value = 0;
    for (int i = 0; i < count; i++) value = value * 10 + order[i % 8];
    return value;
}

int spoil_and_fault(void) {
    count = 1;
    order[0] = 7;
    return *(volatile int *)0;
}
