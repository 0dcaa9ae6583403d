#include <stdint.h>

uint32_t crc32(uint32_t crc, const uint8_t *bytes, uint64_t count) {
    crc = ~crc;
    while (count--) {
        crc ^= *bytes++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

int32_t count(void) {
    static int32_t calls = 100;
    return ++calls;
}

int32_t peek(const int32_t *address) { return *address; }

int64_t process_id(void) {
    int64_t answer;
    __asm__ volatile("syscall" : "=a"(answer) : "a"(39L) : "rcx", "r11", "memory");
    return answer;
}

void spin(void) {
    for (volatile int forever = 1; forever;) {}
}
