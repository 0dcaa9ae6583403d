/* Calls functions as the daemon does, in a program of the system's linker: reads calls from standard input, writes what
 * each gave. The table of functions is generated. Numbers are little endian, without padding:
 *   call:      u32 function, u32 arguments, the arguments
 *   argument:  'i' u64 | 'd' u64 (a vector register) | 'b' u32 size, bytes | 'x' the same, given back | 'o' u32 size
 *   answer:    u64 (rax), u64 (xmm0), all buffers 'x' and 'o' */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Returned in rax and xmm0. */
typedef struct {
    uint64_t integer;
    double real;
} both;
typedef uint64_t u;
typedef double d;
typedef both function(u, u, u, u, u, u, d, d, d, d, d, d, d, d);
extern function *const functions[];

static char *input;

static void take(void *to, size_t size) {
    memcpy(to, input, size);
    input += size;
}

static uint32_t number(void) {
    uint32_t value;
    take(&value, 4);
    return value;
}

static void put(const void *from, size_t size) {
    while (size) {
        ssize_t done = write(1, from, size);
        if (done <= 0) _exit(1);
        from = (const char *)from + done;
        size -= done;
    }
}

static void call(void) {
    uint32_t which = number(), arguments = number(), integers = 0, reals = 0, buffers = 0;
    u i[6] = {0};
    d r[8] = {0};
    char *buffer[6];
    uint32_t sizes[6];
    while (arguments--) {
        char tag = *input++;
        if (tag == 'i') {
            take(&i[integers++], 8);
        } else if (tag == 'd') {
            take(&r[reals++], 8);
        } else {
            uint32_t size = number();
            char *bytes = calloc(1, size + 1);
            if (tag != 'o') take(bytes, size);
            if (tag != 'b') {
                buffer[buffers] = bytes;
                sizes[buffers++] = size;
            }
            i[integers++] = (u)bytes;
        }
    }
    both got = functions[which](i[0], i[1], i[2], i[3], i[4], i[5], r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]);
    put(&got, sizeof got);
    for (uint32_t at = 0; at < buffers; at++) put(buffer[at], sizes[at]);
}

int main(void) {
    size_t size = 0, room = 1 << 16;
    char *all = malloc(room);
    for (ssize_t got; (got = read(0, all + size, room - size)) > 0;) {
        size += got;
        if (size == room) all = realloc(all, room *= 2);
    }
    for (input = all; input < all + size;) call();
    return 0;
}
