/* What tests/compilers.rs asks of C and C++ compilers; functions.rs says what each gives. */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

uint32_t collatz(uint64_t n) {
    uint32_t steps = 0;
    for (; n > 1; steps++) n = n % 2 ? 3 * n + 1 : n / 2;
    return steps;
}

int64_t opcode(uint32_t op, int64_t left, int64_t right) {
    uint64_t a = left, b = right;
    switch (op) {
    case 0: return a + b;
    case 1: return a - b;
    case 2: return a * b;
    case 3: return a & b;
    case 4: return a | b;
    case 5: return a ^ b;
    case 6: return a << (b & 63);
    case 7: return left >> (b & 63);
    case 8: return ~a;
    case 9: return -a;
    case 10: return left < right;
    case 11: return left > right ? left : right;
    case 12: return 3 * (left < right ? a : b);
    case 13: return a * a - b * b;
    default: return -1;
    }
}

double dot(const double *a, const double *b, uint64_t n) {
    double sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

void scale(float *values, uint64_t n, float by) {
    for (uint64_t i = 0; i < n; i++) values[i] = values[i] * by + 1;
}

const char *const planets[] = {"Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"};

uint64_t planet(uint32_t index, char *out) {
    const char *name = index < sizeof planets / sizeof *planets ? planets[index] : "none";
    size_t size = strlen(name);
    memcpy(out, name, size);
    return size;
}

uint32_t fibonacci(uint32_t n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

uint32_t ackermann(uint32_t m, uint32_t n) {
    if (!m) return n + 1;
    return n ? ackermann(m - 1, ackermann(m, n - 1)) : ackermann(m - 1, 1);
}

static int32_t is_odd(uint32_t n);
int32_t is_even(uint32_t n) { return n ? is_odd(n - 1) : 1; }
static int32_t is_odd(uint32_t n) { return n ? is_even(n - 1) : 0; }

static int64_t average(int64_t a, int64_t b) { return (uint64_t)(a & b) + (uint64_t)((a ^ b) >> 1); }
static int64_t difference(int64_t a, int64_t b) { return (uint64_t)a - (uint64_t)b; }
static int64_t product(int64_t a, int64_t b) { return (uint64_t)a * (uint64_t)b; }
static int64_t weighted(int64_t a, int64_t b) { return 3 * (uint64_t)a + 5 * (uint64_t)b; }
/* Once in read-only data, once where it can be changed. */
typedef int64_t operation(int64_t, int64_t);
operation *const operations[] = {average, difference, product, weighted};
operation *changeable[] = {average, difference, product, weighted};

int64_t apply(uint32_t which, int64_t a, int64_t b) {
    operation *by = operations[which % 4];
    return by == changeable[which % 4] ? by(a, b) : 0;
}

int64_t count = 1000;
static int64_t calls;

int64_t bump(int64_t by) {
    calls++;
    return count = ((uint64_t)count + by) * 2 + calls;
}

static uint32_t table[256];

uint32_t checksum(const uint8_t *data, uint64_t n) {
    uint32_t sum = -1;
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0xedb88320 : value >> 1;
            table[i] = value;
        }
    while (n--) sum = table[(sum ^ *data++) & 255] ^ sum >> 8;
    return ~sum;
}

static int before(const void *a, const void *b) { return *(const int32_t *)a < *(const int32_t *)b; }
int (*volatile compare)(const void *, const void *) = before;

static void sort_range(int32_t *values, int64_t low, int64_t high) {
    if (low >= high) return;
    int32_t pivot = values[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
        while (compare(&values[i], &pivot)) i++;
        while (compare(&pivot, &values[j])) j--;
        if (i <= j) {
            int32_t kept = values[i];
            values[i++] = values[j];
            values[j--] = kept;
        }
    }
    sort_range(values, low, j);
    sort_range(values, i, high);
}

void sort(int32_t *values, uint64_t n) { sort_range(values, 0, (int64_t)n - 1); }

uint64_t multiply_high(uint64_t a, uint64_t b) { return (unsigned __int128)a * b >> 64; }
uint64_t divide_wide(uint64_t high, uint64_t low, uint64_t by) { return ((unsigned __int128)high << 64 | low) / by; }

uint64_t decimal(int64_t n, char *out) {
    char digits[20];
    uint64_t rest = n < 0 ? -(uint64_t)n : (uint64_t)n, size = 0;
    int count = 0;
    do digits[count++] = '0' + rest % 10;
    while (rest /= 10);
    if (n < 0) out[size++] = '-';
    while (count) out[size++] = digits[--count];
    return size;
}

static const double coefficients[] = {0.5, -1.25, 3.0, 0.1, -7.5, 2.0};

double polynomial(double x) {
    double sum = 0;
    for (size_t i = 0; i < sizeof coefficients / sizeof *coefficients; i++) sum = sum * x + coefficients[i];
    return sum;
}

/* The negative ones of sqrt are the library's business. */
double hypotenuse(double a, double b) { return sqrt(a * a + b * b); }

void multiply4(const float *a, const float *b, float *out) {
    for (int row = 0; row < 4; row++)
        for (int column = 0; column < 4; column++) {
            float sum = 0;
            for (int i = 0; i < 4; i++) sum += a[4 * row + i] * b[4 * i + column];
            out[4 * row + column] = sum;
        }
}

/* Addresses of places within a function, in a table. */
uint64_t words(const char *text, uint64_t n) {
    static const void *const states[][3] = {
        {&&between, &&number_begins, &&word_begins}, {&&between, &&word, &&word}, {&&between, &&number, &&word_begins}};
    uint64_t words = 0, numbers = 0, state = 0, i = 0;
next:
    if (i == n) return 1000 * words + numbers;
    char c = text[i++];
    goto *states[state][c >= '0' && c <= '9' ? 1 : c >= 'a' && c <= 'z' ? 2 : 0];
between:
    state = 0;
    goto next;
word_begins:
    words++;
word:
    state = 1;
    goto next;
number_begins:
    numbers++;
number:
    state = 2;
    goto next;
}

struct block {
    uint64_t lanes[40];
};

static struct block mix(struct block before, uint64_t at, uint8_t byte) {
    struct block after = before;
    uint64_t lane = before.lanes[(at + 7) % 40];
    after.lanes[at % 40] = (lane << 5 | lane >> 59) ^ byte * 0x9e3779b97f4a7c15;
    return after;
}

uint64_t digest(const uint8_t *data, uint64_t n) {
    struct block block;
    uint64_t sum = 0;
    memset(&block, 0, sizeof block);
    for (uint64_t i = 0; i < n; i++) block = mix(block, i, data[i]);
    for (int i = 0; i < 40; i++) sum = sum * 31 + block.lanes[i];
    return sum;
}

double mixed(int32_t a, double b, int64_t c, float d, uint32_t e, double f) { return a * b + c * (double)d - e / f; }

#if defined(__GNUC__) && !defined(__clang__)
__attribute__((noipa))
#else
__attribute__((noinline))
#endif
static int64_t fold(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, int64_t h, int64_t i, int64_t j) {
    const int64_t terms[] = {a, b, c, d, e, f, g, h, i, j};
    uint64_t sum = 0;
    for (int at = 0; at < 10; at++) sum = sum * 3 + (terms[at] ^ at);
    return sum;
}

/* Of any number of arguments, those after the first. */
static int64_t fold_all(int n, ...) {
    va_list list;
    uint64_t sum = 0;
    va_start(list, n);
    for (int at = 0; at < n; at++) sum = sum * 3 + (va_arg(list, int64_t) ^ at);
    va_end(list);
    return sum;
}

int64_t many(int64_t seed) {
    uint64_t s = seed;
    int64_t sum = fold(s, 2 * s, 3 * s, 5 * s, 7 * s, 11 * s, 13 * s, 17 * s, 19 * s, 23 * s);
    int64_t again = fold_all(10, s, 2 * s, 3 * s, 5 * s, 7 * s, 11 * s, 13 * s, 17 * s, 19 * s, 23 * s);
    return sum == again ? sum : 0;
}

uint64_t bits(uint64_t n) {
    uint64_t swapped = __builtin_bswap64(n);
    swapped = swapped << 13 | swapped >> 51;
    return swapped ^ __builtin_popcountll(n) ^ (uint64_t)__builtin_clzll(n | 1) << 8 ^
           (uint64_t)__builtin_ctzll(n | 1ull << 63) << 16;
}

double to_double(uint64_t n) { return n; }
uint64_t to_integer(double x) { return x; }
