/* The per-call allocator, imports and buffers. */
void *malloc(unsigned long);
void *calloc(unsigned long, unsigned long);
void *realloc(void *, unsigned long);
void free(void *);
void *memcpy(void *, const void *, unsigned long);
void *memset(void *, int, unsigned long);
unsigned long strlen(const char *);
int strcmp(const char *, const char *);
void abort(void);

unsigned crc32_bitwise(unsigned crc, const unsigned char *p, unsigned n) {
    crc = ~crc;
    for (unsigned i = 0; i < n; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
    }
    return ~crc;
}

/* Sum of 1..n by way of the heap; 0 where the heap gave nothing. */
unsigned long heap_sum(unsigned n) {
    unsigned long *all = malloc(8), sum = 0;
    if (!all) return 0;
    for (unsigned i = 0; i < n; i++) {
        unsigned long *more = realloc(all, 8 * (i + 1ul));
        if (!more) return 0;
        all = more;
        all[i] = i + 1;
    }
    for (unsigned i = 0; i < n; i++) sum += all[i];
    free(all);
    return sum;
}

/* How many MiB the heap gives before it gives nothing. */
unsigned heap_mib(void) {
    unsigned n = 0;
    for (char *p; n < 4096 && (p = malloc(1 << 20)); n++) p[0] = p[(1 << 20) - 1] = 1;
    return n;
}

/* Nonzero if calloc, or what a call before left behind, is not zero. */
unsigned heap_dirt(unsigned n) {
    unsigned char *p = calloc(n, 1);
    unsigned dirt = 0;
    if (!p) return ~0u;
    for (unsigned i = 0; i < n; i++) dirt |= p[i];
    memset(p, 0xff, n);
    return dirt;
}

unsigned long length(const char *s) { return strlen(s); }
int is_hello(const char *s) { return strcmp(s, "hello") == 0; }
void reverse(unsigned char *p, unsigned n) {
    for (unsigned i = 0; i < n / 2; i++) { unsigned char t = p[i]; p[i] = p[n - 1 - i]; p[n - 1 - i] = t; }
}
void fill(unsigned char *out, unsigned n, unsigned char byte) { memset(out, byte, n); }
void give_up(void) { abort(); }
void wild_memcpy(void) { memcpy((void *)16, (void *)32, 64); }

void smash(unsigned n) {
    volatile char small[16];
    for (unsigned i = 0; i < n; i++) small[i] = 'x';
}
long six(long a, long b, long c, long d, long e, long f) { return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f; }
double eight(double a, double b, double c, double d, double e, double f, double g, double h) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h;
}
