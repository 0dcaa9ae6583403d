//! Workloads of many calls at once: a batch, and a message of a stream.

use codecached::proto::{
    Column, ColumnType, ExecuteBatchRequest, FunctionCalls, ResultType, StreamAnswer, StreamCall, Value,
    execute_batch_request, function_calls, stream_answer::Outcome, value::Kind,
};

use super::work::{Fault, Worker, right};

impl Worker {
    pub(super) async fn execute_batch(&mut self) -> Result<(), Fault> {
        let (rows, offset) = (self.plan.together as i32, self.steps as i32);
        let column = |values: Vec<u8>| Column { r#type: ColumnType::I32.into(), values: values.into() };
        let left = column((0..rows).flat_map(i32::to_le_bytes).collect());
        let request = ExecuteBatchRequest {
            namespace: self.plan.recipe.namespace.clone(),
            target: Some(execute_batch_request::Target::Handle(self.known().handle)),
            symbol: "add".into(),
            rows: rows as u64,
            // Both of full length, as most have them.
            columns: vec![left, column(offset.to_le_bytes().repeat(rows as usize))],
            result: ResultType::I32.into(),
            ..ExecuteBatchRequest::default()
        };
        let answer = self.execution.execute_batch(request).await?.into_inner();
        let (results, trap) = (answer.results.unwrap_or_default().values, answer.trap);
        let sums = results.chunks_exact(4).zip(0..rows);
        let is_right = |(sum, row): (&[u8], i32)| *sum == row.wrapping_add(offset).to_le_bytes();
        right(trap.is_none() && sums.len() == rows as usize && sums.into_iter().all(is_right))
    }

    /// Sends a message, and waits for all of its answers.
    pub(super) async fn execute_stream(&mut self) -> Result<(), Fault> {
        let calls = self.calls();
        let (sender, answers) = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(self.client.execute_stream().await.map_err(Fault::Failed)?),
        };
        sender.send(vec![calls]).await;
        let (mut left, mut are_right) = (self.plan.together, true);
        while left > 0 {
            let Some(some) = answers.next().await.map_err(Fault::Failed)? else { return Err(Fault::WrongAnswer) };
            left = left.saturating_sub(some.len());
            are_right &= some.iter().all(|answer| is_sum(answer, self.slot));
        }
        right(are_right)
    }

    fn calls(&self) -> FunctionCalls {
        let value = |number| Value { kind: Some(Kind::I32(number)) };
        let first = self.steps * self.plan.together as u64;
        let call =
            |call_id: u64| StreamCall { call_id, arguments: vec![value(call_id as i32), value(self.slot as i32)] };
        FunctionCalls {
            namespace: self.plan.recipe.namespace.clone(),
            target: Some(function_calls::Target::Handle(self.known().handle)),
            symbol: "add".into(),
            result: ResultType::I32.into(),
            calls: (first..first + self.plan.together as u64).map(call).collect(),
            ..FunctionCalls::default()
        }
    }
}

fn is_sum(answer: &StreamAnswer, slot: u64) -> bool {
    let sum = Some(Value { kind: Some(Kind::I32((answer.call_id as i32).wrapping_add(slot as i32))) });
    matches!(&answer.outcome, Some(Outcome::Returned(returned)) if returned.value == sum)
}
