//! The loop over the rows of a batch, beside the trampoline: one way in and one way out for all rows.
//!
//! [`super::arch::Context::run`] comes here instead of to code. For each row a list of steps loads one argument each,
//! from where its column lies; the last step calls. A step is a few instructions of a fixed size that go on to the next
//! one by the list, so a row costs some loads and jumps that are always the same.
//!
//! Code promises nothing: each row begins with a stack pointer from the context, and after it everything that the loop
//! needs is read from there again, which is found by the stack pointer like in the trampoline. `seq` is odd for the
//! whole loop, so recovery is what it always is; how many rows have returned stands in the context, one more only
//! after the result was stored. Modes (DF, MXCSR, x87, AC, FS) are put back when the loop is over: those of a row that
//! leaves them changed hold for the rows behind it, as in a loop of C. The loop itself depends on none but AC.
//!
//! Values are loaded from the columns, which nothing else writes, and results stored to memory of which no Rust reference
//! exists meanwhile. Code that overwrites the context makes the loop read and write elsewhere, which it could have done itself.
#![allow(unsafe_code)] // Assembly.

use std::arch::naked_asm;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use super::arch::{
    Context, INT_REGISTERS, Registers, SAVED_BYTES, STACK_ALIGN_BYTES, VECTOR_REGISTERS, other_thread, resume, whose,
    whose_not,
};
use super::batch::{Batch, Column, ColumnType};
use super::call::ARGS_MAX;
use super::stack::{FRAME_BYTES, SLOT_BYTES};

/// Bytes of the code of each step.
const STEP_BYTES: usize = 32;
/// Where the steps stand behind the start of [`enter_rows`], in steps: for a value of each form one for each register.
const INT_STEPS: [usize; 4] = [1, 7, 13, 19];
const VECTOR_STEPS: [usize; 3] = [25, 33, 41];
const STACK_STEPS: [usize; 4] = [49, 50, 51, 52];
const CALL_STEP: usize = 53;
/// Behind the call: nothing, then the low half and all of the result register, of integers and of vectors.
const STORE_STEPS: [usize; 5] = [57, 58, 59, 60, 61];

/// What the assembly here reads and writes, beside the rest of the context.
#[repr(C)]
#[derive(Debug)]
pub(super) struct RowState {
    /// The row that runs, and so how many have returned.
    pub(super) row: AtomicU64,
    rows: AtomicU64,
    /// Where the first result goes.
    pub(super) results: AtomicU64,
    /// Address of the step that stores a result.
    store: AtomicU64,
    /// The function.
    entry: AtomicU64,
    /// Stack pointer at the start of a row.
    sp: AtomicU64,
    steps: [Step; ARGS_MAX + 1],
}

/// Where the values of a batch are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    /// Address of each column.
    pub(super) columns: &'a [u64],
    /// The type of results, if there are any.
    pub(super) result: Option<ColumnType>,
    /// Address of the first one.
    pub(super) results: u64,
}

/// One step of a row.
#[repr(C)]
#[derive(Debug)]
struct Step {
    code: AtomicU64,
    /// Address of the column, or the value itself where it is the same for all rows.
    operand: AtomicU64,
}

impl RowState {
    /// Overwrites what batches have left here: single values, and where columns lay.
    pub(super) fn forget(&self) {
        let words = [&self.row, &self.rows, &self.results, &self.entry];
        let operands = self.steps.iter().map(|step| &step.operand);
        words.into_iter().chain(operands).for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

impl Context {
    /// Prepares calls of `entry`, on a stack that ends at `stack_end`, for each row of `batch`, of which there must be one.
    pub(super) fn prepare_rows(&self, entry: u64, stack_end: usize, batch: &Batch, places: &Places<'_>) {
        debug_assert!(batch.rows() > 0, "the loop looks for its end after a row");
        let Places { columns, result, results } = *places;
        let start = Registers::none(stack_end);
        self.prepare(enter_rows as *const () as u64, &start);
        let rows = &self.rows;
        let mut plan = Plan::new(batch.columns(), columns);
        rows.row.store(0, Ordering::Relaxed);
        rows.rows.store(batch.rows() as u64, Ordering::Relaxed);
        rows.results.store(results, Ordering::Relaxed);
        rows.store.store(address(STORE_STEPS[store_form(result)]), Ordering::Relaxed);
        rows.entry.store(entry, Ordering::Relaxed);
        // An odd number of words is pushed: one is left out before, for the alignment.
        let gap = (plan.pushed_bytes as u64).wrapping_neg() % STACK_ALIGN_BYTES as u64;
        rows.sp.store(start.sp - gap, Ordering::Relaxed);
        plan.steps.push((CALL_STEP, 0));
        for (step, (code, operand)) in rows.steps.iter().zip(plan.steps) {
            step.code.store(address(code), Ordering::Relaxed);
            step.operand.store(operand, Ordering::Relaxed);
        }
    }

    /// Rows that returned in the last batch. Code could have overwritten it.
    pub(super) fn rows_done(&self) -> u64 {
        self.rows.row.load(Ordering::Relaxed)
    }
}

/// Which steps load the arguments of a row.
#[derive(Debug, Default)]
struct Plan {
    /// Numbers of the steps and their operands. The stack's come first, so that a push finds the stack pointer where it
    /// was, and the last one of these first, so that they stand in the order of the arguments.
    steps: Vec<(usize, u64)>,
    pushed_bytes: usize,
}

impl Plan {
    fn new(columns: &[Column], places: &[u64]) -> Plan {
        let (mut registers, mut stack) = (Vec::with_capacity(ARGS_MAX + 1), Vec::new());
        let (mut ints, mut vectors) = (0, 0);
        for (column, place) in columns.iter().zip(places) {
            let (form, operand) = form(column, *place);
            if column.kind.is_float() && vectors < VECTOR_REGISTERS {
                // A vector register has no sign to extend.
                registers.push((VECTOR_STEPS[form - 1] + vectors, operand));
                vectors += 1;
            } else if !column.kind.is_float() && ints < INT_REGISTERS {
                registers.push((INT_STEPS[form] + ints, operand));
                ints += 1;
            } else {
                stack.push((STACK_STEPS[form], operand));
            }
        }
        let pushed_bytes = stack.len() * size_of::<u64>();
        let steps = stack.into_iter().rev().chain(registers).collect();
        Plan { steps, pushed_bytes }
    }
}

/// How a value is had: 0 with its sign extended, 1 with zeros, 2 as it is, 3 from the step itself.
fn form(column: &Column, place: u64) -> (usize, u64) {
    if let Some(value) = column.constant() {
        return (3, value);
    }
    let form = match column.kind {
        ColumnType::I32 => 0,
        ColumnType::U32 | ColumnType::F32 => 1,
        ColumnType::I64 | ColumnType::U64 | ColumnType::F64 => 2,
    };
    (form, place)
}

fn store_form(result: Option<ColumnType>) -> usize {
    match result {
        None => 0,
        Some(ColumnType::I32 | ColumnType::U32) => 1,
        Some(ColumnType::I64 | ColumnType::U64) => 2,
        Some(ColumnType::F32) => 3,
        Some(ColumnType::F64) => 4,
    }
}

fn address(step: usize) -> u64 {
    enter_rows as *const () as u64 + (step * STEP_BYTES) as u64
}

/// A step: $code and $end, in so much room. Padding that would be negative does not assemble.
macro_rules! step {
    ($room:literal, $code:expr, $end:expr) => {
        concat!("5: ", $code, "; ", $end, "\n.skip ", $room, " * {step_bytes} - (. - 5b), 0xcc")
    };
}

/// A step that loads, for each of the registers, and goes on to the next of the list.
macro_rules! loads {
    ($registers:literal, $code:literal) => {
        concat!(".irp register, ", $registers, "\n", step!("1", $code, "add r12, 16; jmp [r12]"), "\n.endr")
    };
}

/// Where [`super::arch`]'s trampoline calls code; r10 and r11 are free.
#[unsafe(naked)]
unsafe extern "C" fn enter_rows() {
    naked_asm!(
        ".cfi_startproc; .cfi_signal_frame",
        // As in `enter`: the host's stack pointer by the context, that by the stack pointer and the slot's mask.
        ".cfi_escape 0x0f, 15, 0x77, 0, 0x0c, {slot_mask} & 255, ({slot_mask} >> 8) & 255",
        ".cfi_escape ({slot_mask} >> 16) & 255, ({slot_mask} >> 24) & 255, 0x21",
        ".cfi_escape 0x0a, {host_sp_back} & 255, {host_sp_back} >> 8, 0x1c, 0x06, 0x23, {saved}",
        ".cfi_offset 6, -16; .cfi_offset 3, -24; .cfi_offset 12, -32; .cfi_offset 13, -40",
        ".cfi_offset 14, -48; .cfi_offset 15, -56",
        // For each row: r10 = its number. The stack pointer is set also over the return address into `enter`: the way
        // out is `resume`. r12 is a register that code keeps, though nothing depends on that.
        step!("1", "mov r11, rsp; or r11, {slot_mask}; sub r11, {frame_last}; xor r10d, r10d", "jmp 28f"),
        // Integers: with their sign, with zeros, all 64 bits, the same for all rows.
        loads!("rdi, rsi, rdx, rcx, r8, r9", "mov rax, [r12 + 8]; movsxd \\register, dword ptr [rax + r10*4]"),
        loads!("edi, esi, edx, ecx, r8d, r9d", "mov rax, [r12 + 8]; mov \\register, [rax + r10*4]"),
        loads!("rdi, rsi, rdx, rcx, r8, r9", "mov rax, [r12 + 8]; mov \\register, [rax + r10*8]"),
        loads!("rdi, rsi, rdx, rcx, r8, r9", "mov \\register, [r12 + 8]"),
        // Vectors: 32 bits, 64 bits, the same for all rows.
        loads!("0, 1, 2, 3, 4, 5, 6, 7", "mov rax, [r12 + 8]; movss xmm\\register, dword ptr [rax + r10*4]"),
        loads!("0, 1, 2, 3, 4, 5, 6, 7", "mov rax, [r12 + 8]; movsd xmm\\register, qword ptr [rax + r10*8]"),
        loads!("0, 1, 2, 3, 4, 5, 6, 7", "movsd xmm\\register, qword ptr [r12 + 8]"),
        // The stack, as integers.
        loads!("rax", "mov rax, [r12 + 8]; movsxd rax, dword ptr [rax + r10*4]; push rax"),
        loads!("rax", "mov rax, [r12 + 8]; mov eax, [rax + r10*4]; push rax"),
        loads!("rax", "mov rax, [r12 + 8]; push qword ptr [rax + r10*8]"),
        loads!("rax", "push qword ptr [r12 + 8]"),
        // The call, and behind it as in `enter`: the context by the stack pointer.
        step!(
            "4",
            concat!(
                "xor ebp, ebp; mov eax, 8; mov r10, [r11 + {entry}]; xor r11d, r11d; xor r12d, r12d; call r10\n",
                whose!("r11")
            ),
            "mov r10, [r11 + {row}]; mov rdx, [r11 + {results}]; jmp [r11 + {store}]"
        ),
        // The result: none, and of each kind and width.
        step!("1", "nop", "jmp 3f"),
        step!("1", "mov [rdx + r10*4], eax", "jmp 3f"),
        step!("1", "mov [rdx + r10*8], rax", "jmp 3f"),
        step!("1", "movss dword ptr [rdx + r10*4], xmm0", "jmp 3f"),
        step!("1", "movsd qword ptr [rdx + r10*8], xmm0", "jmp 3f"),
        "3: inc r10; mov [r11 + {row}], r10", // this row is done
        "cmp r10, [r11 + {rows}]; jae 27f",
        "28: mov rsp, [r11 + {sp}]; lea r12, [r11 + {steps}]; jmp [r12]",
        "27: mov rcx, r11",
        "mov rdx, [rcx + {fs_base}]; cmp rdx, [rcx + {code_fs_base}]; je 3f",
        "wrfsbase rdx", // rows that have a thread pointer of their own
        "3: jmp {resume}",
        whose_not!("r11"),
        ".cfi_endproc",
        slot_mask = const SLOT_BYTES - 1,
        host_sp_back = const FRAME_BYTES - 1 - offset_of!(Context, host_sp),
        saved = const SAVED_BYTES,
        step_bytes = const STEP_BYTES,
        sp = const ROWS + offset_of!(RowState, sp),
        steps = const ROWS + offset_of!(RowState, steps),
        entry = const ROWS + offset_of!(RowState, entry),
        row = const ROWS + offset_of!(RowState, row),
        rows = const ROWS + offset_of!(RowState, rows),
        results = const ROWS + offset_of!(RowState, results),
        store = const ROWS + offset_of!(RowState, store),
        frame_last = const FRAME_BYTES - 1,
        this = const offset_of!(Context, this),
        fs_base = const offset_of!(Context, fs_base),
        code_fs_base = const offset_of!(Context, code_fs_base),
        has_fsgsbase = const offset_of!(Context, has_fsgsbase),
        other_thread = sym other_thread,
        resume = sym resume,
    )
}

const ROWS: usize = offset_of!(Context, rows);
