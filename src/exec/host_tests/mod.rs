//! Host functions, called by code as objects call them.
#![allow(unsafe_code)] // The tests' own machine code, and the C library's answers to compare with.

use bytes::Bytes;

use super::call::{Arg, Outcome, ResultType, Scalar};
use super::test_code::{TestCode, TestPool, assemble, call, import, number, pool, run};
use super::trap::{Trap, TrapKind};

mod math;

#[allow(clashing_extern_declarations)] // The table needs no signatures.
mod reference {
    unsafe extern "C" {
        pub(super) safe fn __ctype_b_loc() -> *const *const u16;
        pub(super) safe fn __ctype_tolower_loc() -> *const *const i32;
        pub(super) safe fn __ctype_toupper_loc() -> *const *const i32;
    }
}

assemble!(
    /// `(function, ...)`: `function(...)` on an aligned stack, with the direction flag set as code may leave it.
    apply,
    "mov rax, rdi", "mov rdi, rsi", "mov rsi, rdx", "mov rdx, rcx", "mov rcx, r8", "mov r8, r9", "push rbp", "std",
    "call rax", "cld", "pop rbp", "ret"
);
assemble!(
    /// `(bsearch, key, base, count)`: searches 64-bit numbers; the comparison faults where a 1 is behind the key.
    search,
    "mov rax, rdi", "mov rdi, rsi", "mov rsi, rdx", "mov rdx, rcx", "mov ecx, 8", "lea r8, [rip + 2f]", "push rbp",
    "call rax", "pop rbp", "ret",
    "2:", "cmp qword ptr [rdi + 8], 0", "jne 3f", "mov rcx, [rdi]", "xor eax, eax", "cmp rcx, [rsi]", "seta al",
    "sbb eax, 0", "ret", "3:", "mov rax, [0]"
);
assemble!(
    /// `(setjmp, longjmp, value)`: what the jump returns, a hundred times that where a register is not kept.
    jump,
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "sub rsp, 208", "mov r12, rdi", "mov r13, rsi",
    "mov [rsp + 200], rdx", "mov rdi, rsp", "mov ebx, 7", "call r12", "test eax, eax", "jnz 2f", "mov ebx, 8",
    "xor ebp, ebp", "xor r12d, r12d", "mov rdi, rsp", "mov rsi, [rsp + 200]", "push rax", "push rax", "call r13", "ud2",
    "2:", "cmp ebx, 7", "je 3f", "imul eax, eax, 100", "3:", "add rsp, 208", "pop r14", "pop r13", "pop r12", "pop rbp",
    "pop rbx", "ret"
);
assemble!(
    /// `(aligned_alloc, free, alignment)`: the address, of the second of two blocks of which the first was given back.
    aligned,
    "push rbx", "push r12", "push r13", "mov rbx, rdi", "mov r12, rsi", "mov r13, rdx", "mov rdi, rdx", "mov esi, 100",
    "call rbx", "mov rdi, rax", "call r12", "mov rdi, r13", "mov esi, 100", "call rbx", "mov byte ptr [rax + 99], 1",
    "pop r13", "pop r12", "pop rbx", "ret"
);
assemble!(
    /// `(strdup, text, max)`: a digest of the first eight bytes of the copy, which is not where the text is.
    duplicate,
    "push rbx", "mov rax, rdi", "mov rdi, rsi", "mov rbx, rsi", "mov rsi, rdx", "call rax", "cmp rax, rbx", "je 2f",
    "mov rax, [rax]", "pop rbx", "ret", "2:", "ud2"
);
assemble!(
    /// `(__ctype_*_loc, index, bytes of an entry)`: the entry, as 16 or 32 bits.
    entry,
    "push rsi", "push rdx", "push rax", "call rdi", "pop rcx", "pop rdx", "pop rsi", "mov rax, [rax]", "cmp edx, 2",
    "je 2f", "mov eax, [rax + 4*rsi]", "ret", "2:", "movzx eax, word ptr [rax + 2*rsi]", "ret"
);

fn bytes(text: &[u8]) -> Arg {
    Arg::Bytes(Bytes::copy_from_slice(text))
}

fn returned(pool: &TestPool, code: &[u8], args: Vec<Arg>, result: ResultType) -> (Option<Scalar>, Vec<Bytes>) {
    match run(pool, call(&TestCode::new(code, None), args, result)) {
        Outcome::Returned { value, buffers } => (value, buffers),
        other => panic!("expected a return, not {other:?}"),
    }
}

fn trapped(pool: &TestPool, code: &[u8], args: Vec<Arg>) -> Trap {
    match run(pool, call(&TestCode::new(code, None), args.clone(), ResultType::Void)) {
        Outcome::Trap(trap) => trap,
        other => panic!("expected a trap, not {other:?}, of {args:x?}"),
    }
}

fn with(name: &str, args: impl IntoIterator<Item = Arg>) -> Vec<Arg> {
    [import(name)].into_iter().chain(args).collect()
}

fn words(value: u128) -> [Arg; 2] {
    [Arg::U64(value as u64), Arg::U64((value >> 64) as u64)]
}

#[test]
fn strings_are_searched_compared_and_read_as_in_the_c_locale() {
    let pool = pool(1, 8);
    let code = TestCode::new(apply(), None);
    let call = |name, args: Vec<Arg>| number(&pool, &code, with(name, args));
    // Where in the first argument the result lies.
    let found = |name, text: &[u8], rest: Vec<Arg>| {
        let at = call(name, [vec![bytes(text)], rest].concat());
        let start = number(&pool, &code, with("memcpy", [bytes(text), Arg::U64(0), Arg::U64(0)]));
        at - start
    };
    assert_eq!(call("strcasecmp", vec![bytes(b"HeLLo\0"), bytes(b"hEllO\0")]) as i32, 0);
    assert!((call("strncasecmp", vec![bytes(b"abX\0"), bytes(b"ABy\0"), Arg::U64(3)]) as i32) < 0);
    assert_eq!(call("strcoll", vec![bytes(b"\xc4\0"), bytes(b"\xc4\0")]) as i32, 0);
    assert_eq!(found("strchrnul", b"abc\0", vec![Arg::I32(i32::from(b'x'))]), 3);
    assert_eq!(found("rawmemchr", b"abc", vec![Arg::I32(i32::from(b'c'))]), 2);
    assert_eq!(found("memmem", b"a needle", vec![Arg::U64(8), bytes(b"need"), Arg::U64(4)]), 2);
    assert_eq!(found("strcasestr", b"a NeeDle\0", vec![bytes(b"need\0")]), 2);
    assert_eq!(call("abs", vec![Arg::I32(-5)]) as i32, 5);
    assert_eq!(call("labs", vec![Arg::I64(-5)]), 5);
    assert_eq!(call("ffsl", vec![Arg::U64(1 << 40)]) as i32, 41);
    assert_eq!(call("strtoull", vec![bytes(b" 0x7fz\0"), Arg::U64(0), Arg::I32(0)]), 0x7f);
    assert_eq!(call("atoi", vec![bytes(b"-42\0")]) as i32, -42);
    let args = with("strtod", [bytes(b"1.1e-3,5\0"), Arg::U64(0)]);
    assert_eq!(returned(&pool, apply(), args, ResultType::F64).0, Some(Scalar::F64(1.1e-3)));
    let args = with("memccpy", [Arg::Out(8), bytes(b"one,two!"), Arg::I32(i32::from(b',')), Arg::U64(8)]);
    assert_eq!(returned(&pool, apply(), args, ResultType::Void).1[0][..], *b"one,\0\0\0\0");
    let args = with("stpncpy", [Arg::InOut(Bytes::from_static(b"xxxxxx")), bytes(b"ab\0"), Arg::U64(4)]);
    assert_eq!(returned(&pool, apply(), args, ResultType::Void).1[0][..], *b"ab\0\0xx");
    let args = with("strtok_r", [Arg::InOut(Bytes::from_static(b",a,b\0")), bytes(b",\0"), Arg::Out(8)]);
    assert_eq!(returned(&pool, apply(), args, ResultType::Void).1[0][..], *b",a\0b\0");
}

fn table_entry<T>(location: *const *const T, index: i64) -> T {
    // SAFETY: the C library's pointer for this thread.
    let start = unsafe { location.read() };
    // SAFETY: its tables have entries from -128 to 255.
    unsafe { start.wrapping_offset(index as isize).read() }
}

#[test]
fn classes_of_characters_are_the_c_librarys() {
    let pool = pool(1, 8);
    let code = TestCode::new(entry(), None);
    let offered = |name, index: i64, size| number(&pool, &code, vec![import(name), Arg::I64(index), Arg::U64(size)]);
    for index in -128..256_i64 {
        let class = table_entry(reference::__ctype_b_loc(), index);
        assert_eq!(offered("__ctype_b_loc", index, 2), u64::from(class), "class of {index}");
        let lower = table_entry(reference::__ctype_tolower_loc(), index);
        assert_eq!(offered("__ctype_tolower_loc", index, 4) as i32, lower, "lower case of {index}");
        let upper = table_entry(reference::__ctype_toupper_loc(), index);
        assert_eq!(offered("__ctype_toupper_loc", index, 4) as i32, upper, "upper case of {index}");
    }
    let code = TestCode::new(apply(), None);
    assert_eq!(number(&pool, &code, with("toupper", [Arg::I32(i32::from(b'q'))])) as i32, i32::from(b'Q'));
    assert_ne!(number(&pool, &code, with("isdigit", [Arg::I32(i32::from(b'7'))])) as i32, 0);
}

#[test]
fn a_binary_search_calls_back_and_a_fault_in_the_callback_is_recovered() {
    let pool = pool(1, 8);
    let numbers: Vec<u8> = (0..100_u64).flat_map(|n| (3 * n).to_le_bytes()).collect();
    let args = |key: u64, mode| {
        let key = [key, mode].map(u64::to_le_bytes).concat();
        with("bsearch", [bytes(&key), bytes(&numbers), Arg::U64(100)])
    };
    let code = TestCode::new(search(), None);
    let at = |key| number(&pool, &code, args(key, 0));
    assert_eq!(at(3 * 77) - at(0), 8 * 77);
    assert_eq!(at(100), 0);
    for _ in 0..100 {
        let trap = trapped(&pool, search(), args(5, 1));
        assert_eq!((trap.kind, trap.fault_address), (TrapKind::Segv, Some(0)));
    }
    assert_eq!(at(3 * 77) - at(0), 8 * 77);
}

#[test]
fn a_long_jump_returns_from_setjmp_with_the_registers_that_it_kept() {
    let pool = pool(1, 8);
    let code = TestCode::new(jump(), None);
    for (set, long) in [("setjmp", "longjmp"), ("_setjmp", "_longjmp"), ("__sigsetjmp", "siglongjmp")] {
        let jumped = |value| number(&pool, &code, vec![import(set), import(long), Arg::U64(value)]);
        assert_eq!((jumped(5), jumped(0), jumped(u64::from(u32::MAX))), (5, 1, u64::from(u32::MAX)), "{set}");
    }
    let trap = trapped(&pool, apply(), with("longjmp", [Arg::Out(64), Arg::I32(1)]));
    assert_eq!((trap.kind, trap.pc), (TrapKind::Segv, 0), "a jump to nowhere");
}

#[test]
fn memory_of_the_call_is_aligned_as_asked() {
    let pool = pool(1, 8);
    let code = TestCode::new(aligned(), None);
    for alignment in [1, 16, 64, 4096, 1 << 20] {
        for name in ["aligned_alloc", "memalign"] {
            let address = number(&pool, &code, vec![import(name), import("free"), Arg::U64(alignment)]);
            assert!(address != 0 && address.is_multiple_of(alignment), "{name} {alignment}: {address:#x}");
        }
    }
    let posix = |alignment, size| {
        let args = with("posix_memalign", [Arg::Out(8), Arg::U64(alignment), Arg::U64(size)]);
        let (value, buffers) = returned(&pool, apply(), args, ResultType::I32);
        let Some(Scalar::I32(error)) = value else { panic!("{value:?}") };
        (error, u64::from_le_bytes(buffers[0][..].try_into().unwrap()))
    };
    let (error, address) = posix(256, 10);
    assert!(error == 0 && address != 0 && address.is_multiple_of(256), "{error} {address:#x}");
    assert_eq!((posix(24, 10), posix(4, 10)), ((libc::EINVAL, 0), (libc::EINVAL, 0)));
    assert_eq!(posix(64, 1 << 40), (libc::ENOMEM, 0));
    let code = TestCode::new(apply(), None);
    let array = |count| number(&pool, &code, with("reallocarray", [Arg::U64(0), Arg::U64(count), Arg::U64(1 << 8)]));
    assert_ne!(array(4), 0);
    assert_eq!(array(u64::MAX / 2), 0);
}

#[test]
fn copies_of_strings_are_in_memory_of_the_call() {
    let pool = pool(1, 8);
    let code = TestCode::new(duplicate(), None);
    let copy = |name, max| number(&pool, &code, vec![import(name), bytes(b"1234567\0"), Arg::U64(max)]).to_le_bytes();
    assert_eq!((&copy("strdup", 0), &copy("strndup", 100)), (b"1234567\0", b"1234567\0"));
    assert_eq!(copy("strndup", 3)[..4], *b"123\0");
    assert_eq!(copy("strndup", 0)[..1], *b"\0");
}

#[test]
fn checked_copies_that_fit_do_as_the_unchecked() {
    let pool = pool(1, 8);
    let copied = |name, to: &[u8], rest: Vec<Arg>| {
        let args = with(name, [vec![Arg::InOut(Bytes::copy_from_slice(to))], rest].concat());
        let (value, buffers) = returned(&pool, apply(), args, ResultType::U64);
        let start = number(&pool, &TestCode::new(apply(), None), with("memcpy", [bytes(to), Arg::U64(0), Arg::U64(0)]));
        let Some(Scalar::U64(end)) = value else { panic!("{value:?}") };
        (end - start, buffers[0].clone())
    };
    let (text, eight) = (|| bytes(b"abc\0"), Arg::U64(8));
    let expected = |at, bytes: &'static [u8]| (at, Bytes::from_static(bytes));
    assert_eq!(copied("__strcpy_chk", b"........", vec![text(), Arg::U64(4)]), expected(0, b"abc\0...."));
    assert_eq!(copied("__stpcpy_chk", b"........", vec![text(), Arg::U64(4)]), expected(3, b"abc\0...."));
    assert_eq!(copied("__strcat_chk", b"1234\0...", vec![text(), eight.clone()]), expected(0, b"1234abc\0"));
    let args = vec![text(), Arg::U64(2), Arg::U64(7)];
    assert_eq!(copied("__strncat_chk", b"1234\0...", args), expected(0, b"1234ab\0."));
    let args = vec![text(), Arg::U64(100), eight.clone()];
    assert_eq!(copied("__strncat_chk", b"1234\0...", args), expected(0, b"1234abc\0"), "the text is shorter");
    let args = vec![text(), Arg::U64(5), Arg::U64(5)];
    assert_eq!(copied("__strncpy_chk", b"........", args.clone()), expected(0, b"abc\0\0..."));
    assert_eq!(copied("__stpncpy_chk", b"........", args), expected(3, b"abc\0\0..."));
    let args = vec![text(), Arg::U64(4), Arg::U64(4)];
    assert_eq!(copied("__mempcpy_chk", b"........", args), expected(4, b"abc\0...."));
}

#[test]
fn checked_copies_that_do_not_fit_abort() {
    let pool = pool(1, 8);
    let held = || Arg::InOut(Bytes::from_static(b"1234\0..."));
    let text = || bytes(b"abc\0");
    for (name, args) in [
        ("__strcpy_chk", vec![Arg::Out(8), text(), Arg::U64(3)]),
        ("__strcpy_chk", vec![Arg::Out(8), text(), Arg::U64(0)]),
        ("__stpcpy_chk", vec![Arg::Out(8), text(), Arg::U64(3)]),
        ("__strcat_chk", vec![held(), text(), Arg::U64(7)]),
        ("__strcat_chk", vec![held(), text(), Arg::U64(4)]),
        ("__strcat_chk", vec![held(), bytes(b"\0"), Arg::U64(4)]),
        ("__strncat_chk", vec![held(), text(), Arg::U64(2), Arg::U64(6)]),
        ("__strncpy_chk", vec![Arg::Out(8), text(), Arg::U64(9), Arg::U64(8)]),
        ("__stpncpy_chk", vec![Arg::Out(8), text(), Arg::U64(9), Arg::U64(8)]),
        ("__mempcpy_chk", vec![Arg::Out(8), text(), Arg::U64(4), Arg::U64(3)]),
        ("__memcpy_chk", vec![Arg::Out(8), text(), Arg::U64(4), Arg::U64(3)]),
        ("__memmove_chk", vec![Arg::Out(8), text(), Arg::U64(4), Arg::U64(3)]),
        ("__memset_chk", vec![Arg::Out(8), Arg::I32(1), Arg::U64(4), Arg::U64(3)]),
        ("__assert_fail", vec![]),
    ] {
        let code = TestCode::new(apply(), None);
        let Outcome::Trap(trap) = run(&pool, call(&code, with(name, args), ResultType::Void)) else {
            panic!("{name} did not trap");
        };
        assert_eq!(trap.kind, TrapKind::Abort, "{name}");
        let range = code.entry()..code.entry() + apply().len() as u64;
        assert!(range.contains(&trap.pc), "{name} names the instruction that called it");
    }
}

#[test]
fn a_bad_pointer_faults_inside_of_every_family_and_is_recovered() {
    let pool = pool(1, 8);
    let good = TestCode::new(apply(), None);
    let bad = || Arg::U64(0x10);
    for (name, args) in [
        ("memmem", vec![bad(), Arg::U64(4096), bytes(b"x"), Arg::U64(1)]),
        ("strcasestr", vec![bad(), bytes(b"x\0")]),
        ("strtod", vec![bad(), Arg::U64(0)]),
        ("strtok_r", vec![Arg::U64(0), bytes(b",\0"), bad()]),
        ("strdup", vec![bad()]),
        ("posix_memalign", vec![bad(), Arg::U64(64), Arg::U64(1)]),
        ("posix_memalign", vec![Arg::U64(0), Arg::U64(64), Arg::U64(1)]),
        ("__strcpy_chk", vec![bad(), bytes(b"abc\0"), Arg::U64(4)]),
        ("__strcpy_chk", vec![Arg::Out(8), bad(), Arg::U64(4)]),
        ("__strcat_chk", vec![bad(), bytes(b"abc\0"), Arg::U64(4)]),
        ("__strncat_chk", vec![Arg::U64(u64::MAX), bytes(b"abc\0"), Arg::U64(4), Arg::U64(u64::MAX)]),
        ("frexp", vec![bad(), Arg::F64(5.0)]),
        ("sincosf", vec![bad(), Arg::U64(0), Arg::F32(5.0)]),
        ("__udivmodti4", words(7).into_iter().chain(words(3)).chain([bad()]).collect()),
        ("setjmp", vec![bad()]),
        ("longjmp", vec![bad(), Arg::I32(1)]),
        ("bsearch", vec![bytes(b"x"), bad(), Arg::U64(9), Arg::U64(8), Arg::U64(1)]),
    ] {
        assert_eq!(trapped(&pool, apply(), with(name, args)).kind, TrapKind::Segv, "{name}");
        assert_eq!(number(&pool, &good, with("strlen", [bytes(b"hello\0")])), 5, "after {name}");
    }
}
