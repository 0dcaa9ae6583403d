/* Entries that are linked against each other. Each -D makes one of them. */

#ifdef BASE
const int table[3] = {FACTOR, 20, 30};
int square(int x) { return x * x * FACTOR; }
int read_at(const int *p) { return *p; }
#endif

#ifdef OTHER
int square(int x) { return -x; }
int optional(int x) { return x + 1000; }
#endif

#ifdef MIDDLE
extern const int table[3];
int square(int);
int read_at(const int *);
__attribute__((weak)) int optional(int);
int sum(int a, int b) { return square(a) + square(b); }
int entry_of_table(unsigned at) { return table[at % 3]; }
int ask(int x) { return optional ? optional(x) : -1; }
int read_nothing(void) { return 1 + read_at((const int *)16); }
int (*function(void))(int) { return square; }
#endif

#ifdef TOP
int sum(int, int);
int read_nothing(void);
int function_of_sum(int x) { return sum(x, 1) + 1; }
int far_trap(void) { return read_nothing() + 1; }
#endif

#ifdef COUNTER
int count = 100;
static int noise;
int next(void) { return ++count; }
int slow_next(unsigned spins) {
    int before = count;
    for (volatile unsigned i = 0; i < spins; i++) { }
    return count = before + 1;
}
#endif

#ifdef COUNTS
extern int count;
int next(void);
int slow_next(unsigned);
static int own = 7;
int twice(void) { next(); return next() + 0 * own++; }
int slow_through(unsigned spins) { return slow_next(spins); }
int spoil_and_trap(void) { own = 1; count = 5; __builtin_trap(); }
int own_value(void) { return own; }
#endif
