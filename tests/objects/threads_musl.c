/* Calls of a C library with fixed arguments. The same file makes the program that says what the host's library gives:
   with -DHOST it has a main. No headers, so that it is for either library. */
int snprintf(char *, unsigned long, const char *, ...);
double strtod(const char *, char **);
int *__errno_location(void);

int print(char *out, unsigned long size, int i, const char *text, double number) {
    return snprintf(out, size, "%d|%08x|%+i|%-8s|%.3s|%c|%lu|%g|%.17g|%e|%10.3f|%%", i, i, i, text, text, 'c',
                    (unsigned long)i << 40, number, number, number, number);
}

double scan(const char *text, long *used, int *error) {
    char *end;
    *__errno_location() = 0;
    double number = strtod(text, &end);
    *used = end - text;
    *error = *__errno_location();
    return number;
}

#ifdef HOST
int printf(const char *, ...);
int atoi(const char *);

/* INT TEXT NUMBER: what the two functions give, on one line each. */
int main(int count, char **arguments) {
    char out[512];
    long used;
    int error;
    double number = scan(arguments[3], &used, &error);
    int length = print(out, sizeof out, atoi(arguments[1]), arguments[2], number);
    union { double number; unsigned long bits; } as = {number};
    return printf("%d\n%s\n%lu %ld %d\n", length, out, as.bits, used, error) < 0 || count != 4;
}
#endif
