//! The functions: a line for those of one signature, `arguments:result`. `signature.rs` says what the letters mean.

pub(crate) type Rows = &'static [(&'static str, &'static str)];

/// musl's, with those of `objects/libraries/musl.c`. Left out is what keeps a state of the thread, such as `errno` and the
/// locale.
pub(crate) const MUSL: Rows = &[
    (
        "d:d",
        "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp exp2 exp10 expm1 log log2 log10 log1p sqrt",
    ),
    ("d:d", "cbrt fabs ceil floor trunc rint round nearbyint erf erfc j0 j1 y0 y1 tgamma lgamma logb significand"),
    (
        "f:f",
        "sinf cosf tanf asinf acosf atanf sinhf coshf tanhf asinhf acoshf atanhf expf exp2f exp10f expm1f logf log2f",
    ),
    ("f:f", "log10f log1pf sqrtf cbrtf fabsf ceilf floorf truncf rintf roundf erff erfcf j0f j1f y0f tgammaf logbf"),
    ("dd:d", "pow fmod hypot atan2 copysign fdim fmax fmin nextafter remainder"),
    ("ff:f", "powf fmodf hypotf atan2f copysignf fdimf fmaxf fminf nextafterf remainderf"),
    ("ddd:d", "fma"),
    ("dk:d", "ldexp scalbn"),
    ("kg:d", "jn yn"),
    ("dy:d", "frexp modf lgamma_r"),
    ("ddy:d", "remquo"),
    ("dyy:v", "sincos"),
    ("g:w", "lround llround lrint llrint"),
    ("d:i", "ilogb finite"),
    ("s:w", "strlen atol atoll a64l"),
    ("s:i", "atoi"),
    ("sz:w", "strnlen"),
    ("sS:i", "strcmp strcasecmp strverscmp strcoll"),
    ("sSk:i", "strncmp strncasecmp"),
    ("sS:w", "strspn strcspn at_strstr at_strcasestr at_strpbrk"),
    ("sc:w", "at_strchr at_strrchr at_strchrnul at_index at_rindex"),
    ("bBn:i", "memcmp bcmp"),
    ("bnc:w", "at_memchr at_memrchr at_wmemchr"),
    ("bns:w", "at_memmem"),
    ("b:w", "at_wcschr"),
    ("osO:w", "strlcpy"),
    ("xsO:w", "strlcat"),
    ("xs:w", "at_strcpy at_stpcpy at_strcat"),
    ("xsk:w", "at_strncpy at_stpncpy at_strncat"),
    ("obn:w", "at_memcpy at_mempcpy at_memccpy"),
    ("xc:w", "at_memset"),
    ("x:w", "at_memmove at_strtok_r at_strsep"),
    ("bon:v", "swab"),
    (
        "c:i",
        "isalpha isdigit isalnum isupper islower ispunct isspace isblank iscntrl isgraph isprint isxdigit toupper tolower",
    ),
    ("c:i", "iswalpha iswdigit iswalnum iswupper iswlower iswpunct iswspace towupper towlower wcwidth"),
    ("i:i", "abs ffs"),
    ("w:w", "labs llabs"),
    ("w:i", "ffsl ffsll"),
    ("i:u", "htonl ntohl"),
    ("y:i", "rand_r"),
    ("y:d", "erand48"),
    ("y:w", "nrand48 jrand48"),
    ("ii:w", "divided"),
    ("ww:w", "long_divided"),
    ("xn:v", "sorted sorted_down"),
    ("xni:w", "found"),
    ("xn:w", "found_anywhere"),
];

/// glibc's libm: those that it does not choose among by the processor.
pub(crate) const MATH: Rows = &[
    ("d:d", "cbrt logb significand sqrt fabs"),
    ("f:f", "acosf asinf atanf atanhf cbrtf expm1f log1pf logbf tanhf sqrtf fabsf significandf"),
    ("dd:d", "hypot fdim fmax fmin fmod nextafter remainder"),
    ("ff:f", "hypotf fdimf fmaxf fminf fmodf nextafterf remainderf atan2f"),
    ("ddy:d", "remquo"),
    ("g:w", "lround llround lrint llrint"),
    ("d:i", "ilogb"),
];

/// zlib's, with those of `objects/libraries/zlib.c`.
pub(crate) const ZLIB: Rows = &[
    ("kbn:w", "crc32 adler32 crc32_z adler32_z"),
    ("iiz:w", "crc32_combine"),
    ("kkz:w", "adler32_combine"),
    ("z:w", "compressBound crc32_combine_gen"),
    ("iiz:w", "crc32_combine_op"),
    ("oPbn:i", "compress"),
    ("oPbnk:i", "compress2"),
    (":w", "zlibCompileFlags"),
    ("bniio:w", "there_and_back"),
    ("kk:w", "bound_of_stream"),
    ("bno:w", "uncompressed"),
];

pub(crate) const LZ4: Rows = &[
    ("bonO:i", "LZ4_compress_default"),
    ("bonOk:i", "LZ4_compress_fast LZ4_compress_HC"),
    ("i:i", "LZ4_compressBound"),
    (":i", "LZ4_versionNumber LZ4_sizeofState LZ4_sizeofStateHC"),
    ("w:i", "LZ4F_isError"),
    ("bnio:w", "there_and_back"),
    ("bno:w", "two_blocks"),
];

/// Names of functions with their signatures.
pub(crate) fn functions(rows: Rows) -> Vec<(&'static str, &'static str)> {
    rows.iter().flat_map(|&(signature, names)| names.split_whitespace().map(move |name| (name, signature))).collect()
}
