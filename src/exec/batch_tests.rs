//! Batches: the loop over rows, what it gives and what it withstands.
#![allow(unsafe_code)] // The tests' own machine code stands between linker symbols.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::batch::{Batch, BatchDone, Column, ColumnType};
use super::call::{Arg, Call, Outcome, ResultType, Scalar, Thread};
use super::test_code::{TestCode, TestPool, assemble, call, eventually, import, number, pool, run, wait_for};
use super::ticket::{CallId, Ticket};
use super::trap::{Trap, TrapKind, TrapStage};
use super::writable::Writable;

assemble!(add, "lea rax, [rdi + rsi]", "ret");
assemble!(nothing, "ret");
assemble!(
    /// `(a, b, c, d, e, f, g, ..., p)` of 16: each place counts, also those on the stack.
    sixteen,
    "mov rax, rdi", "imul rax, rax, 31", "add rax, rsi", "imul rax, rax, 31", "add rax, rdx", "imul rax, rax, 31",
    "add rax, rcx", "imul rax, rax, 31", "add rax, r8", "imul rax, rax, 31", "add rax, r9", "mov ecx, 1", "2:",
    "imul rax, rax, 31", "add rax, [rsp + rcx*8]", "inc ecx", "cmp ecx, 11", "jne 2b", "ret"
);
assemble!(
    /// Sixteen floating-point numbers, as bits.
    sixteen_floats,
    "movq rax, xmm0", "movq rcx, xmm1", "imul rax, rax, 31", "add rax, rcx", "movq rcx, xmm2", "imul rax, rax, 31",
    "add rax, rcx", "movq rcx, xmm3", "imul rax, rax, 31", "add rax, rcx", "movq rcx, xmm4", "imul rax, rax, 31",
    "add rax, rcx", "movq rcx, xmm5", "imul rax, rax, 31", "add rax, rcx", "movq rcx, xmm6", "imul rax, rax, 31",
    "add rax, rcx", "movq rcx, xmm7", "imul rax, rax, 31", "add rax, rcx", "mov ecx, 1", "2:", "imul rax, rax, 31",
    "add rax, [rsp + rcx*8]", "inc ecx", "cmp ecx, 9", "jne 2b", "ret"
);
assemble!(float_sum, "addss xmm0, xmm1", "ret");
assemble!(double_product, "mulsd xmm0, xmm1", "ret");
assemble!(stack_pointer, "mov rax, rsp", "ret");
assemble!(
    /// `(a)`: twice that, but a fault for 0.
    nonzero, "test rdi, rdi", "jz 2f", "lea rax, [rdi + rdi]", "ret", "2:", "ud2"
);
assemble!(
    /// `(a)`: twice that, but no end for 0.
    ending, "test rdi, rdi", "jz 2f", "lea rax, [rdi + rdi]", "ret", "2:", "jmp 2b"
);
assemble!(
    /// `(a, cell)`: twice that; for 0 it tells the cell and does not end.
    telling, "test rdi, rdi", "jz 2f", "lea rax, [rdi + rdi]", "ret", "2:", "lock inc dword ptr [rsi]", "3:", "jmp 3b"
);
assemble!(
    /// `(a)`: all that a function must keep, flags, modes and the x87 stack changed; twice that.
    wrecking,
    "lea rax, [rdi + rdi]", "xor ebx, ebx", "mov rbp, 1", "mov r12, 2", "mov r13, 3", "mov r14, 4", "mov r15, 5",
    "mov r10, 6", "mov r11, 7", "mov rcx, 8", "fld1", "fld1", "push 0x7f80", "ldmxcsr [rsp]", "pop rdx", "std", "ret 64"
);
assemble!(
    /// `(a)`: the stack is given up in the third row.
    losing_the_stack, "lea rax, [rdi + rdi]", "cmp rdi, 3", "jne 2f", "add rsp, 0x100000", "2:", "ret"
);
assemble!(
    /// `(offset, value)`: overwrites a word of the executor's context, then returns 1.
    overwriting, "mov rax, rsp", "or rax, 0xfffffff", "mov rcx, -0xfff", "add rcx, rax", "mov [rcx + rdi], rsi",
    "mov eax, 1", "ret"
);
assemble!(
    /// `(malloc)`: the address of a new block.
    allocating, "push rbp", "mov rax, rdi", "mov edi, 100", "call rax", "pop rbp", "ret"
);
assemble!(
    /// `(offset)`: counts at the thread pointer.
    counting, "inc qword ptr fs:[rdi]", "mov rax, fs:[rdi]", "ret"
);

fn i64s(values: impl IntoIterator<Item = i64>) -> Column {
    let values: Vec<u8> = values.into_iter().flat_map(i64::to_le_bytes).collect();
    Column { kind: ColumnType::I64, values: values.into() }
}

fn constant(value: u64) -> Column {
    Column { kind: ColumnType::U64, values: Bytes::copy_from_slice(&value.to_le_bytes()) }
}

fn u64s(results: &Bytes) -> Vec<u64> {
    results.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn submit(pool: &TestPool, call: Call<Arc<TestCode>>, rows: u64, columns: Vec<Column>) -> Ticket<BatchDone> {
    pool.submit_batch(call, Batch::new(rows, columns).unwrap()).unwrap()
}

fn batch(pool: &TestPool, code: &Arc<TestCode>, result: ResultType, rows: u64, columns: Vec<Column>) -> BatchDone {
    wait_for(submit(pool, call(code, vec![], result), rows, columns))
}

/// The results of a batch all of whose rows returned.
fn all(pool: &TestPool, code: &Arc<TestCode>, rows: u64, columns: Vec<Column>) -> Vec<u64> {
    let done = batch(pool, code, ResultType::U64, rows, columns);
    assert_eq!(done.done.outcome, Outcome::Returned { value: None, buffers: vec![] });
    assert_eq!(done.rows as u64, rows);
    u64s(&done.results)
}

fn trap(done: &BatchDone) -> Trap {
    match done.done.outcome {
        Outcome::Trap(trap) => trap,
        ref other => panic!("expected a trap, not {other:?}"),
    }
}

/// What a single call has of one value of a column.
fn argument(column: &Column, row: usize) -> Arg {
    let width = column.kind.width_bytes();
    let at = if column.values.len() == width { 0 } else { row * width };
    let (value, is_wide) = (&column.values[at..at + width], width == 8);
    let word = if is_wide { u64::from_le_bytes(value.try_into().unwrap()) } else { 0 };
    let half = if is_wide { 0 } else { u32::from_le_bytes(value.try_into().unwrap()) };
    match column.kind {
        ColumnType::I32 => Arg::I32(half as i32),
        ColumnType::U32 => Arg::U32(half),
        ColumnType::I64 => Arg::I64(word as i64),
        ColumnType::U64 => Arg::U64(word),
        ColumnType::F32 => Arg::F32(f32::from_bits(half)),
        ColumnType::F64 => Arg::F64(f64::from_bits(word)),
    }
}

#[test]
fn each_row_is_a_call_and_its_result_stands_in_its_place() {
    let pool = pool(1, 8);
    let code = TestCode::new(add(), None);
    for rows in [1, 2, 1000, 100_000] {
        let sums = all(&pool, &code, rows as u64, vec![i64s(0..rows), i64s((0..rows).map(|row| 7 * row))]);
        assert!(sums.iter().zip(0..).all(|(sum, row)| *sum == 8 * row), "{rows} rows");
    }
    assert_eq!(pool.stats().calls, 4, "a batch is one call");
}

#[test]
fn a_batch_of_no_rows_ends_without_a_call() {
    let pool = pool(1, 8);
    let code = TestCode::new(nonzero(), None);
    assert!(all(&pool, &code, 0, vec![i64s([])]).is_empty());
    assert!(all(&pool, &code, 0, vec![constant(0)]).is_empty());
}

#[test]
fn columns_need_no_alignment() {
    let pool = pool(1, 8);
    let code = TestCode::new(add(), None);
    let aligned = i64s(0..1001).values;
    for offset in 0..8 {
        let shifted = Bytes::from([&vec![0xee; offset][..], &aligned].concat()).slice(offset..);
        let columns = vec![Column { kind: ColumnType::I64, values: shifted }, i64s(std::iter::repeat_n(1, 1001))];
        assert!(all(&pool, &code, 1001, columns).into_iter().eq(1..=1001), "offset {offset}");
    }
}

#[test]
fn values_of_every_type_and_place_arrive_as_in_a_single_call() {
    const ROWS: usize = 5;
    let pool = pool(1, 8);
    let bytes =
        |seed: usize, len: usize| (0..len).map(|at| ((at + 1) * (seed + 3) * 157 % 251) as u8).collect::<Vec<_>>();
    let make = |at: usize, kind: ColumnType, is_constant: bool| {
        let rows = if is_constant { 1 } else { ROWS };
        let mut values = bytes(at, rows * kind.width_bytes());
        values[kind.width_bytes() - 1] |= 0x80; // also negative ones
        Column { kind, values: values.into() }
    };
    let ints = [ColumnType::I32, ColumnType::U32, ColumnType::I64, ColumnType::U64];
    let floats = [ColumnType::F32, ColumnType::F64];
    for (code, kinds) in [(sixteen(), &ints[..]), (sixteen_floats(), &floats[..])] {
        let code = TestCode::new(code, None);
        // Each kind in each place, per row and for all rows.
        for turn in 0..2 * kinds.len() {
            let kind = |at: usize| kinds[(at + turn) % kinds.len()];
            let columns: Vec<_> = (0..16).map(|at| make(at, kind(at), (at + turn) / kinds.len() % 2 == 1)).collect();
            let args = |row| columns.iter().map(|column| argument(column, row)).collect();
            let expected: Vec<u64> = (0..ROWS).map(|row| number(&pool, &code, args(row))).collect();
            assert_eq!(all(&pool, &code, ROWS as u64, columns.clone()), expected, "turn {turn} of {kinds:?}");
        }
    }
    let mixed: Vec<_> = (0..16).map(|at| make(at, [ColumnType::I32, ColumnType::F64][at % 2], false)).collect();
    let code = TestCode::new(stack_pointer(), None);
    for count in 0..=16 {
        let single = number(&pool, &code, mixed[..count].iter().map(|column| argument(column, 0)).collect());
        let rows = all(&pool, &code, ROWS as u64, mixed[..count].to_vec());
        assert!(rows.iter().all(|row| row % 16 == 8 && single - 16 <= *row && *row <= single), "{count}: {rows:x?}");
    }
}

#[test]
fn results_of_every_type_have_their_width() {
    let pool = pool(1, 8);
    let column = |kind, values: &[u8]| Column { kind, values: Bytes::copy_from_slice(values) };
    let sums = |result| {
        let done = batch(&pool, &TestCode::new(add(), None), result, 3, vec![i64s([1, -5, 3]), constant(1 << 40)]);
        assert_eq!(done.rows, 3);
        done.results
    };
    assert_eq!(sums(ResultType::I64), i64s([1, -5, 3].map(|it| it + (1 << 40))).values);
    let halves: Vec<u8> = [1, -5, 3_i32].into_iter().flat_map(i32::to_le_bytes).collect();
    assert_eq!((sums(ResultType::I32), sums(ResultType::U32)), (halves.clone().into(), halves.into()));
    assert_eq!(sums(ResultType::Void), Bytes::new());
    let floats: Vec<u8> = [1.5_f32, 2.5, -1.0].into_iter().flat_map(f32::to_le_bytes).collect();
    let half = column(ColumnType::F32, &0.5_f32.to_le_bytes());
    let columns = vec![column(ColumnType::F32, &floats), half];
    let done = batch(&pool, &TestCode::new(float_sum(), None), ResultType::F32, 3, columns);
    assert_eq!(done.results, [2_f32, 3.0, -0.5].into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>());
    let doubles: Vec<u8> = [1.5_f64, -2.0].into_iter().flat_map(f64::to_le_bytes).collect();
    let columns = vec![column(ColumnType::F64, &doubles), column(ColumnType::F64, &doubles)];
    let done = batch(&pool, &TestCode::new(double_product(), None), ResultType::F64, 2, columns);
    assert_eq!(done.results, [2.25_f64, 4.0].into_iter().flat_map(f64::to_le_bytes).collect::<Vec<_>>());
}

#[test]
fn a_row_that_faults_ends_the_batch_behind_those_before_it() {
    let pool = pool(1, 8);
    let code = TestCode::new(nonzero(), None);
    for rows in [1, 2, 1000] {
        for faulting in [0, rows / 2, rows - 1] {
            let column = i64s((0..rows).map(|row| row - faulting));
            let done = batch(&pool, &code, ResultType::I64, rows as u64, vec![column]);
            let trap = trap(&done);
            assert_eq!((trap.kind, trap.pc), (TrapKind::Ill, code.entry() + 10), "row {faulting} of {rows}");
            assert_eq!(done.rows as i64, faulting);
            assert_eq!(done.results, i64s((0..faulting).map(|row| 2 * (row - faulting))).values);
        }
    }
    let done = batch(&pool, &code, ResultType::I64, 100, vec![constant(0)]);
    assert_eq!((trap(&done).kind, done.rows, done.results.len()), (TrapKind::Ill, 0, 0), "every row");
    assert_eq!(all(&pool, &code, 100, vec![constant(4)]), [8; 100]);
}

#[test]
fn a_row_without_an_end_is_stopped_by_each_limit_of_the_batch() {
    let pool = pool(1, 8);
    let code = TestCode::new(ending(), None);
    let short = Duration::from_millis(3);
    let limits: [&dyn Fn(&mut Call<_>); 3] = [&|call| call.cpu_limit = short, &|call| call.wall_cap = short, &|call| {
        call.deadline = Some(Instant::now() + Duration::from_millis(50))
    }];
    for limit in limits {
        let mut limited = call(&code, vec![], ResultType::I64);
        limit(&mut limited);
        let done = wait_for(submit(&pool, limited, 1000, vec![i64s((0..1000).map(|row| 600 - row))]));
        assert_eq!((trap(&done).kind, done.rows), (TrapKind::Timeout, 600));
        assert_eq!(done.results.len(), 600 * 8);
    }
    // Rows that are short each, but far too many together.
    let mut limited = call(&TestCode::new(allocating(), None), vec![], ResultType::Void);
    limited.cpu_limit = Duration::from_millis(1);
    let Arg::U64(malloc) = import("malloc") else { panic!("an address") };
    let done = wait_for(submit(&pool, limited, super::ROWS_MAX as u64, vec![constant(malloc)]));
    assert_eq!(trap(&done).kind, TrapKind::Timeout);
    assert!(done.rows > 0 && done.rows < super::ROWS_MAX, "{} rows", done.rows);
}

#[test]
fn a_batch_is_cancelled_in_a_row_by_its_id_and_by_dropping_its_ticket() {
    let pool = pool(1, 8);
    let (cell, code) = (std::sync::atomic::AtomicU32::new(0), TestCode::new(telling(), None));
    let begin = || {
        let columns = vec![i64s((0..10).map(|row| 4 - row)), constant(cell.as_ptr() as u64)];
        submit(&pool, call(&code, vec![], ResultType::I64), 10, columns)
    };
    let ticket = begin();
    eventually("its row", || cell.load(Ordering::SeqCst) == 1);
    assert!(pool.cancel(ticket.id().unwrap()));
    let done = wait_for(ticket);
    assert_eq!((trap(&done).kind, done.rows), (TrapKind::Cancelled, 4));
    assert_eq!(done.results, i64s([8, 6, 4, 2]).values);
    let ticket = begin();
    eventually("its row", || cell.load(Ordering::SeqCst) == 2);
    drop(ticket);
    eventually("it is stopped", || pool.stats().cancelled == 1 && pool.stats().running == 0);
    assert_eq!(Arc::strong_count(&code), 1);
}

#[test]
fn rows_that_wreck_registers_modes_and_stack_leave_the_loop_and_the_host_right() {
    let pool = pool(1, 8);
    let code = TestCode::new(wrecking(), None);
    let adding = TestCode::new(add(), None);
    for round in 0..20 {
        let doubled = all(&pool, &code, 1000, vec![i64s(round..round + 1000)]);
        assert!(doubled.iter().zip(round as u64..).all(|(result, value)| *result == 2 * value), "round {round}");
        assert_eq!(all(&pool, &adding, 3, vec![i64s([1, 2, 3]), constant(1)]), [2, 3, 4]);
        assert_eq!(number(&pool, &adding, vec![Arg::U64(1), Arg::U64(2)]), 3);
    }
    let done = batch(&pool, &TestCode::new(losing_the_stack(), None), ResultType::I64, 10, vec![i64s(0..10)]);
    assert_eq!((trap(&done).kind, done.rows), (TrapKind::Segv, 3));
    assert_eq!(done.results, i64s([0, 2, 4]).values);
}

#[test]
fn code_that_overwrites_what_the_loop_knows_gets_no_bytes_that_nobody_wrote() {
    use super::arch::Context;
    use super::row_loop::RowState;
    let pool = pool(1, 8);
    let code = TestCode::new(overwriting(), None);
    let field = |offset: usize| constant((offset_of!(Context, rows) + offset) as u64);
    let rows = 2000;
    // As if nearly all, and more than all, had been done; the latter have no place for a result.
    for forged in [rows - 1, 1 << 40, 1 << 60] {
        let columns = vec![field(offset_of!(RowState, row)), constant(forged)];
        let done = batch(&pool, &code, ResultType::U64, rows, columns);
        assert!(done.rows as u64 <= rows, "{done:?}");
        assert_eq!(done.results.len(), 8 * done.rows);
        assert!(u64s(&done.results).iter().all(|result| *result <= 1), "{forged:#x}");
    }
    // Results that would go to an address where nothing is.
    let columns = vec![field(offset_of!(RowState, results)), constant(0x1000)];
    let done = batch(&pool, &code, ResultType::U64, rows, columns);
    let trap = trap(&done);
    assert_eq!((trap.kind, trap.fault_address, done.rows), (TrapKind::Segv, Some(0x1000), 0));
    assert_eq!(all(&pool, &TestCode::new(add(), None), 2, vec![i64s([1, 2]), constant(1)]), [2, 3]);
}

#[test]
fn data_of_a_batch_is_restored_after_a_trap_and_its_calls_do_not_overlap() {
    let pool = pool(2, 8);
    let code = TestCode::new(nonzero(), Some(Writable { id: 70, reentrant: false }));
    assert_eq!(all(&pool, &code, 2, vec![i64s([1, 2])]), [2, 4]);
    assert_eq!(code.restores.load(Ordering::SeqCst), 0);
    let done = batch(&pool, &code, ResultType::I64, 3, vec![i64s([1, 0, 1])]);
    assert_eq!((trap(&done).kind, done.rows), (TrapKind::Ill, 1));
    assert_eq!(code.restores.load(Ordering::SeqCst), 1);
    assert_eq!(all(&pool, &code, 1, vec![constant(5)]), [10]);
}

#[test]
fn rows_share_a_heap_and_a_thread_that_begin_anew_with_each_batch() {
    let pool = pool(1, 8);
    let Arg::U64(malloc) = import("malloc") else { panic!("an address") };
    let code = TestCode::new(allocating(), None);
    let blocks = all(&pool, &code, 100, vec![constant(malloc)]);
    assert!(blocks.windows(2).all(|pair| pair[1] >= pair[0] + 100), "{blocks:x?}");
    assert_eq!(all(&pool, &code, 100, vec![constant(malloc)]), blocks);
    let thread = Thread { template: 0, template_bytes: 0, size_bytes: 0, align_bytes: 16, errno_offset: 0x34 };
    if super::thread_switch().is_some() {
        let code = TestCode::with_thread(counting(), Thread { template: blocks.as_ptr() as u64, ..thread });
        for _ in 0..2 {
            assert!(all(&pool, &code, 1000, vec![constant(0x40)]).into_iter().eq(1..=1000));
            assert_eq!(number(&pool, &TestCode::new(add(), None), vec![Arg::U64(1), Arg::U64(2)]), 3);
        }
    }
}

#[test]
fn code_without_arguments_and_results_is_run_for_each_row() {
    let pool = pool(1, 8);
    let done = batch(&pool, &TestCode::new(nothing(), None), ResultType::Void, super::ROWS_MAX as u64, vec![]);
    assert_eq!((done.rows, done.results.len()), (super::ROWS_MAX, 0));
}

#[test]
fn calls_are_cancelled_by_their_id_wherever_they_are() {
    let pool = pool(1, 8);
    let (cell, code) = (std::sync::atomic::AtomicU32::new(0), TestCode::new(telling(), None));
    let args = || vec![Arg::U64(0), Arg::U64(cell.as_ptr() as u64)];
    let running = pool.submit(call(&code, args(), ResultType::U64)).unwrap();
    eventually("it runs", || cell.load(Ordering::SeqCst) == 1);
    let waiting = pool.submit(call(&code, args(), ResultType::U64)).unwrap();
    let rows = submit(&pool, call(&code, vec![], ResultType::U64), 1, vec![constant(0), constant(0)]);
    let (running_id, waiting_id) = (running.id().unwrap(), waiting.id().unwrap());
    assert_eq!([running_id, waiting_id].map(|id| pool.is_waiting(id)), [false, true]);
    let before_start = Trap {
        kind: TrapKind::Cancelled,
        pc: code.entry(),
        fault_address: None,
        signal: 0,
        system_call: None,
        stage: TrapStage::Waiting,
        exit_status: None,
    };
    assert!(pool.cancel(waiting_id) && pool.cancel(rows.id().unwrap()));
    assert_eq!(wait_for(waiting).outcome, Outcome::Trap(before_start));
    assert_eq!(trap(&wait_for(rows)), before_start);
    assert!(pool.cancel(running_id));
    let ended = wait_for(running).outcome;
    assert!(matches!(ended, Outcome::Trap(trap) if (trap.kind, trap.stage) == (TrapKind::Cancelled, TrapStage::Call)));
    eventually("the executor is free", || pool.stats().running == 0);
    assert!(![running_id, waiting_id, CallId { id: u64::MAX, ..waiting_id }].map(|id| pool.cancel(id)).contains(&true));
    assert_eq!((pool.stats().trapped(TrapKind::Cancelled), pool.stats().cancelled), (3, 0));
    let sum = run(&pool, call(&TestCode::new(add(), None), vec![Arg::U64(1), Arg::U64(2)], ResultType::U64));
    assert_eq!(sum, Outcome::Returned { value: Some(Scalar::U64(3)), buffers: vec![] });
}
