/* What is asked of zlib and lz4 through structures of theirs. */
#include <lz4.h>
#include <string.h>
#include <zlib.h>

#ifdef OF_ZLIB
/* There and back in one form of the format: raw, with a header, or as gzip has it; what came of it goes to `out`. */
long there_and_back(const unsigned char *data, unsigned n, int level, int window, unsigned char *out) {
    unsigned char back[4096];
    int windows[] = {-15, 15, 31, -9, 12};
    z_stream s = {0};
    window = windows[(unsigned)window % 5];
    if (deflateInit2(&s, (unsigned)level % 10, Z_DEFLATED, window, 8, (unsigned)level % 4) != Z_OK) return -1;
    s.next_in = (unsigned char *)data, s.avail_in = n, s.next_out = out, s.avail_out = 4096;
    int code = deflate(&s, Z_FINISH);
    long size = s.total_out;
    deflateEnd(&s);
    if (code != Z_STREAM_END) return -2;
    z_stream t = {0};
    if (inflateInit2(&t, window) != Z_OK) return -3;
    t.next_in = out, t.next_out = back, t.avail_out = sizeof back;
    /* In small pieces, so that the state is kept between calls. */
    for (code = Z_OK; code == Z_OK && t.total_in < (unsigned long)size;) {
        t.avail_in = size - t.total_in < 100 ? size - t.total_in : 100;
        code = inflate(&t, Z_NO_FLUSH);
    }
    inflateEnd(&t);
    return code == Z_STREAM_END && t.total_out == n && !memcmp(back, data, n) ? size : -4;
}

long bound_of_stream(unsigned n, int level) {
    z_stream s = {0};
    if (deflateInit(&s, (unsigned)level % 10) != Z_OK) return -1;
    long bound = deflateBound(&s, n);
    deflateEnd(&s);
    return bound;
}

long uncompressed(const unsigned char *data, unsigned long n, unsigned char *out) {
    unsigned char packed[4096];
    unsigned long size = sizeof packed, room = 4096;
    if (compress(packed, &size, data, n) != Z_OK) return -1;
    return uncompress2(out, &room, packed, &size) == Z_OK ? (long)(10000 * size + room) : -2;
}
#endif

#ifdef OF_LZ4
long there_and_back(const char *data, int n, int speed, char *out) {
    char packed[4096];
    int size = LZ4_compress_fast(data, packed, n, sizeof packed, (int)((unsigned)speed % 60));
    int back = LZ4_decompress_safe(packed, out, size, 4096);
    return back == n && !memcmp(data, out, n) ? size : -1;
}

/* Two blocks, of which the second refers to the first. */
long two_blocks(const char *data, int n, char *out) {
    LZ4_stream_t stream;
    LZ4_initStream(&stream, sizeof stream);
    int first = LZ4_compress_fast_continue(&stream, data, out, n / 2, 2048, 1);
    return first * 10000L + LZ4_compress_fast_continue(&stream, data + n / 2, out + first, n - n / 2, 2048, 1);
}
#endif
