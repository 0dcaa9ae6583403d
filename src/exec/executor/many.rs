//! Many calls of one function: the rows of a batch, and the calls of a series.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{CpuMeter, Executor, Task};
use crate::exec::batch::{Batch, ColumnType};
use crate::exec::call::{Call, Callee, Outcome};
use crate::exec::frame::Limits;
use crate::exec::row_loop::Places;
use crate::exec::series::Series;
use crate::exec::thread::Block;

/// Time after which a series makes way for others that wait: many short calls, and about what a hand-over is small
/// against.
const SHARE: Duration = Duration::from_micros(200);

impl<C: Callee> Executor<'_, C> {
    /// Runs all rows; with the outcome, how many returned and their results.
    pub(super) fn run_rows(&self, call: &Call<C>, batch: &Batch, limits: Limits) -> (Outcome, (usize, Bytes)) {
        let frame = self.slot.frame();
        let returned = Outcome::Returned { value: None, buffers: Vec::new() };
        if batch.rows() == 0 {
            return (returned, (0, Bytes::new()));
        }
        self.admit(call.callee.tenant());
        let kind = ColumnType::of_result(call.result);
        let width_bytes = kind.map_or(0, ColumnType::width_bytes);
        // Zeros: however many rows the code claims to have done, there is no byte that nobody wrote.
        let mut results = vec![0_u8; batch.rows() * width_bytes];
        self.ready();
        let away = self.hand.as_ref().map(|hand| hand.window().place(batch, results.len()));
        let (columns, to) = match &away {
            Some(away) => (away.columns.clone(), away.results as u64),
            None => {
                let columns = batch.columns().iter().map(|column| column.values.as_ptr() as u64);
                (columns.collect(), results.as_mut_ptr() as u64)
            }
        };
        let memory = self.region.range();
        frame.heap.reset(memory.start, memory.end);
        let places = Places { columns: &columns, result: kind, results: to };
        frame.context.prepare_rows(call.entry, self.slot.stack().end, batch, &places);
        let ended = self.enter(&call.callee, limits);
        let rows = frame.context.rows_done().min(batch.rows() as u64) as usize;
        if let (Some(hand), Some(away)) = (&self.hand, &away) {
            hand.window().fetch(away, &mut results[..rows * width_bytes]);
            hand.release_columns();
        }
        let outcome = match ended {
            Ok(block) => {
                self.region.scrub(frame.heap.used_end());
                block.iter().for_each(Block::scrub);
                returned
            }
            Err(broken) => self.ended(call.entry, limits, &broken),
        };
        results.truncate(rows * width_bytes);
        (outcome, (rows, results.into()))
    }

    /// Runs calls of a series until there are no more, or none should follow, or the one that runs was given up. True: one
    /// of them did not end by itself.
    pub(super) fn run_series(&self, task: &Task<'_, C>, series: &Series, cpu: &mut CpuMeter<'_>) -> bool {
        let (mut last, mut spent, mut faulted) = (None, Duration::ZERO, false);
        let mut taken = task.taken;
        while let Some((number, args)) = series.turn(last.take()) {
            let task = Task { number, taken, ..*task };
            task.place.begin(number, taken);
            let (done, failed) = self.attempt(&task, cpu, |limits| self.run(task.call, &args, limits));
            if !task.place.end() {
                return true;
            }
            self.note_pace(&task, &done);
            self.shared.note_end(task.call, &done.outcome);
            spent += done.wall;
            faulted |= failed;
            last = Some(done);
            let is_dirty = failed && !task.lanes.is_empty();
            let gives_way = spent >= SHARE && self.shared.queue.is_awaited();
            if is_dirty || gives_way || task.call.callee.is_quarantined() || task.place.is_deserted() {
                break;
            }
            taken = Instant::now();
        }
        series.leave(last);
        faulted
    }
}
