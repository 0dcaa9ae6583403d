//! Memory, strings and numbers in the C library.
//!
//! All work on the memory they are given, and where one needs to go on, on a pointer that the caller keeps
//! (`strtok_r`, `strsep`, `rand_r`). Those that fold case or read numbers look at the thread's locale, which is read
//! and never written: the daemon does not call `setlocale`, so it is "C", in which `strcoll` is `strcmp`. Those that
//! read numbers set the executor's `errno`, which nobody looks at across a call.

pass_on! {
    // Memory.
    bcopy, bzero, explicit_bzero, memccpy, memchr, memcmp, memcpy, memmem, memmove, mempcpy, memrchr, memset,
    rawmemchr, swab, wmemchr, wmemcmp, wmemcpy, wmemmove, wmemset,
    // Strings.
    stpcpy, stpncpy, strcasecmp, strcasestr, strcat, strchr, strchrnul, strcmp, strcpy, strcspn, strlen, strncasecmp,
    strncat, strncmp, strncpy, strnlen, strpbrk, strrchr, strsep, strspn, strstr, strtok_r, strverscmp, wcslen,
    wcsnlen,
    // Numbers.
    abs, atof, atoi, atol, atoll, div, ffs, ffsl, ffsll, labs, ldiv, llabs, lldiv, rand_r, strtod, strtof,
    strtol, strtold, strtoll, strtoul, strtoull;
    __mempcpy => mempcpy, __rawmemchr => rawmemchr, __stpcpy => stpcpy, __stpncpy => stpncpy, __strtok_r => strtok_r,
    bcmp => memcmp, index => strchr, rindex => strrchr, strcoll => strcmp, imaxabs => labs, strtoimax => strtol,
    strtoumax => strtoul,
}
