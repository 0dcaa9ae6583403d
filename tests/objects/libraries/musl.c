/* What is asked of musl where a function answers a pointer, or takes one to a function. Compiled with -fno-builtin. */
#define _GNU_SOURCE
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

/* Where it is, from the start of what is searched; -1 for nowhere. */
#define AT(name, parameters, arguments)                                   \
    long at_##name parameters {                                           \
        const char *found = (const char *)name arguments;                 \
        return found ? found - (const char *)(a) : -1;                    \
    }

AT(strchr, (const char *a, int c), (a, c))
AT(strrchr, (const char *a, int c), (a, c))
AT(strchrnul, (const char *a, int c), (a, c))
AT(index, (const char *a, int c), (a, c))
AT(rindex, (const char *a, int c), (a, c))
AT(strstr, (const char *a, const char *b), (a, b))
AT(strcasestr, (const char *a, const char *b), (a, b))
AT(strpbrk, (const char *a, const char *b), (a, b))
AT(memchr, (const void *a, size_t n, int c), (a, c, n))
AT(memrchr, (const void *a, size_t n, int c), (a, c, n))
AT(memmem, (const void *a, size_t n, const void *b), (a, n, b, strnlen(b, 3)))
AT(strcpy, (char *a, const char *b), (a, b))
AT(stpcpy, (char *a, const char *b), (a, b))
AT(strncpy, (char *a, const char *b, size_t n), (a, b, n))
AT(stpncpy, (char *a, const char *b, size_t n), (a, b, n))
AT(strcat, (char *a, const char *b), (a, b))
AT(strncat, (char *a, const char *b, size_t n), (a, b, n))
AT(memcpy, (void *a, const void *b, size_t n), (a, b, n))
AT(mempcpy, (void *a, const void *b, size_t n), (a, b, n))
AT(memccpy, (void *a, const void *b, size_t n), (a, b, 'e', n))
AT(memset, (void *a, int c), (a, c, 300))
AT(memmove, (char *a), (a + 3, a, 200))
AT(strtok_r, (char *a), (a, " .", &(char *){0}))
AT(strsep, (char *a), (&(char *){a}, " ."))
AT(wmemchr, (const wchar_t *a, size_t n, int c), (a, c, n / 4))
AT(wcschr, (const wchar_t *a), (a, a[5]))

static int up(const void *a, const void *b) { return (*(int *)a > *(int *)b) - (*(int *)a < *(int *)b); }
static int down_with(const void *a, const void *b, void *times) { return *(int *)times * up(b, a); }

void sorted(int *values, size_t n) { qsort(values, n / 4, 4, up); }
void sorted_down(int *values, size_t n) { qsort_r(values, n / 4, 4, down_with, &(int){2}); }

long found(int *values, size_t n, int key) {
    if (key & 1) key = values[(unsigned)key % (n / 4)];
    qsort(values, n / 4, 4, up);
    int *at = bsearch(&key, values, n / 4, 4, up);
    return at ? at - values : -1;
}

long found_anywhere(int *values, size_t n) {
    size_t count = n / 4;
    int *at = lfind(&values[count / 2], values, &count, 4, up);
    return at ? at - values : -1;
}

long divided(int a, int b) { return b ? div(a, b).quot * 100000L + div(a, b).rem : 0; }
long long_divided(long a, long b) { return b ? ldiv(a, b | 1).quot ^ ldiv(a, b | 1).rem : 0; }
