//! Many calls of one function: the rows of a batch, and the calls of a series.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Executor, Task, Whose};
use crate::exec::arch::Registers;
use crate::exec::batch::{Batch, ColumnType};
use crate::exec::call::{Callee, Outcome};
use crate::exec::series::Series;
use crate::exec::thread::Block;

/// Time after which a series makes way for others that wait: many short calls, and about what a hand-over is small
/// against.
const SHARE: Duration = Duration::from_micros(200);

impl<C: Callee> Executor<'_, C> {
    /// Runs all rows; with the outcome, how many returned and their results.
    pub(super) fn run_rows(&self, task: &Task<'_, C>, batch: &Batch, taken: Instant) -> (Outcome, (usize, Bytes)) {
        let frame = self.slot.frame();
        let returned = Outcome::Returned { value: None, buffers: Vec::new() };
        if batch.rows() == 0 {
            return (returned, (0, Bytes::new()));
        }
        let kind = ColumnType::of_result(task.call.result);
        let width_bytes = kind.map_or(0, ColumnType::width_bytes);
        // Zeros: however many rows the code claims to have done, there is no byte that nobody wrote.
        let mut results = vec![0_u8; batch.rows() * width_bytes];
        let memory = self.region.range();
        frame.heap.reset(memory.start, memory.end);
        frame.context.prepare(task.call.entry, &Registers::default());
        frame.context.prepare_rows(batch, kind, results.as_mut_ptr() as u64);
        frame.set_limits(self.limits(task, taken));
        let block = self.enter(&task.call.callee);
        let rows = frame.context.rows_done().min(batch.rows() as u64) as usize;
        let outcome = match frame.take_trap() {
            None => {
                self.region.scrub(frame.heap.used_end());
                block.iter().for_each(Block::scrub);
                returned
            }
            Some(raw) => self.ended(task.whose, &raw),
        };
        results.truncate(rows * width_bytes);
        (outcome, (rows, results.into()))
    }

    /// Runs calls of a series until there are no more, or none should follow. True: the last one did not end by itself.
    pub(super) fn run_series(&mut self, task: &Task<'_, C>, series: &Series, sender: &oneshot::Sender<()>) -> bool {
        let (mut last, mut spent, mut faulted) = (None, Duration::ZERO, false);
        while let Some((number, args)) = series.turn(last.take()) {
            let task = Task { whose: Whose { call: number, ..task.whose }, ..*task };
            let (done, failed) = self.attempt(&task, sender, |it, taken| it.run(&task, &args, taken));
            spent += done.wall;
            faulted |= failed;
            last = Some(done);
            let is_dirty = failed && !task.lanes.is_empty();
            let gives_way = spent >= SHARE && self.shared.queue.is_awaited();
            if is_dirty || gives_way || sender.is_closed() {
                break;
            }
        }
        series.leave(last);
        faulted
    }
}
