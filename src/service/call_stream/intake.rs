//! Messages to calls that wait to be handed over.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use bytes::Bytes;

use super::handover::Handover;
use crate::{
    cache::Pinned,
    code::Signature,
    exec::{self, Arg, Call, Priority, ResultType},
    proto::{ExecuteStreamRequest, FunctionCalls, StreamCall},
    service::{
        Service, convert,
        execution_service::{answer_bytes, check_answer},
        failure::Failure,
        function::{Called, Function, Times},
        signature,
    },
};

/// The function of some calls, with what they have in common.
pub(super) struct Target {
    function: Function,
    pub(super) called: Called,
    pub(super) symbol: Arc<str>,
    declared: Option<Signature>,
    /// As the client asks for it.
    result: i32,
    pub(super) times: Times,
}

/// A call that was read.
pub(super) struct Waiting {
    pub(super) target: Arc<Target>,
    pub(super) result: ResultType,
    /// Of its execution.
    pub(super) number: u64,
    /// The client's.
    pub(super) call_id: u64,
    pub(super) args: Vec<Arg>,
    /// Of its arguments.
    pub(super) args_bytes: u64,
    /// Of the buffers in its answer.
    pub(super) answer_bytes: u64,
}

/// Calls that wait, in their order.
#[derive(Default)]
pub(super) struct Intake {
    waiting: VecDeque<Waiting>,
    /// Of the arguments of all of these.
    bytes: u64,
    /// Of the call that was read last. Weak: an entry is not kept for calls that may come.
    last: Weak<Target>,
}

impl Target {
    fn find(service: &Service, calls: &mut FunctionCalls) -> Result<Self, Failure> {
        let times = Times::new(service, calls.cpu_limit.take(), calls.wall_cap.take())?;
        let symbol = std::mem::take(&mut calls.symbol);
        let function = Function::find(service, &calls.namespace, calls.target.take(), symbol)?;
        let declared = function.callee.signature(&function.symbol).copied();
        let (called, symbol) = (function.called(), Arc::from(&*function.symbol));
        Ok(Self { function, called, symbol, declared, result: calls.result, times })
    }

    /// Whether calls of both may go together.
    fn is_same(&self, other: &Self) -> bool {
        let key = |it: &Self| (it.called.handle, it.function.entry, it.result, it.times);
        key(self) == key(other)
    }

    /// A call without arguments.
    pub(super) fn call(&self, result: ResultType) -> Call<Pinned> {
        let Times { cpu_limit, wall_cap } = self.times;
        let (callee, entry) = (self.function.callee.clone(), self.function.entry);
        let priority = Priority::Normal;
        Call { callee, entry, priority, args: Vec::new(), result, cpu_limit, wall_cap, deadline: None }
    }
}

impl Intake {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes of arguments.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the calls of a message in; those that cannot be made are answered.
    ///
    /// # Errors
    /// The message is none that a stream may have.
    pub(super) fn take(
        &mut self,
        service: &Service,
        handover: &mut Handover,
        message: ExecuteStreamRequest,
    ) -> Result<(), Failure> {
        // A function without calls is work as well.
        let (count, max) =
            (message.functions.iter().map(|it| it.calls.len().max(1)).sum::<usize>(), service.limits.stream_calls_max);
        if count > max {
            let what = format!("{count} calls in one message, at most {max} may be");
            return Err(Failure::field("functions", what).with("limit", max));
        }
        for mut calls in message.functions {
            let list = std::mem::take(&mut calls.calls);
            match Target::find(service, &mut calls) {
                Ok(target) => self.take_calls(service, handover, target, list),
                Err(failure) => list.iter().for_each(|call| handover.refuse(service, call.call_id, &failure)),
            }
        }
        Ok(())
    }

    /// The next calls of one function that may go together, as many as asked for at most, while `fits` their answers.
    pub(super) fn next(&mut self, max: usize, mut fits: impl FnMut(u64) -> bool) -> Vec<Waiting> {
        let Some(first) = self.waiting.front() else { return Vec::new() };
        let (target, result) = (Arc::clone(&first.target), first.result);
        let mut goes = |it: &Waiting| Arc::ptr_eq(&it.target, &target) && it.result == result && fits(it.answer_bytes);
        let count = self.waiting.iter().take(max).take_while(|it| goes(it)).count();
        let next: Vec<_> = self.waiting.drain(..count).collect();
        self.bytes -= next.iter().map(|it| it.args_bytes).sum::<u64>();
        next
    }

    /// Puts calls back to where they were, before all others.
    pub(super) fn put_back(&mut self, calls: impl DoubleEndedIterator<Item = Waiting>) {
        for call in calls.rev() {
            self.bytes += call.args_bytes;
            self.waiting.push_front(call);
        }
    }

    fn take_calls(&mut self, service: &Service, handover: &mut Handover, target: Target, calls: Vec<StreamCall>) {
        let target = match self.last.upgrade() {
            Some(last) if last.is_same(&target) => last,
            _ => Arc::new(target),
        };
        self.last = Arc::downgrade(&target);
        let first = service.executions.numbers(calls.len() as u64);
        for (number, StreamCall { call_id, arguments }) in (first..).zip(calls) {
            let args = convert::arguments(arguments).map(own_bytes);
            match args.and_then(|args| Ok((check(service, &target, &args)?, args))) {
                Ok((result, args)) => {
                    let (args_bytes, answer_bytes) = (args_bytes(&args), answer_bytes(&args));
                    let target = Arc::clone(&target);
                    self.bytes += args_bytes;
                    self.waiting.push_back(Waiting { target, result, number, call_id, args, args_bytes, answer_bytes });
                }
                Err(failure) => handover.refuse(service, call_id, &failure),
            }
        }
    }
}

fn check(service: &Service, target: &Target, args: &[Arg]) -> Result<ResultType, Failure> {
    exec::check_args(args, service.limits.call_memory_max_bytes)?;
    check_answer(args, service.limits.unary_max_bytes)?;
    signature::check(&target.symbol, target.declared.as_ref(), args, target.result)
}

/// The arguments with buffers of their own: a slice of the message would keep all of it for as long as its call waits.
fn own_bytes(mut args: Vec<Arg>) -> Vec<Arg> {
    for arg in &mut args {
        if let Arg::Bytes(bytes) | Arg::InOut(bytes) = arg {
            *bytes = Bytes::copy_from_slice(bytes);
        }
    }
    args
}

fn args_bytes(args: &[Arg]) -> u64 {
    let bytes = |arg: &Arg| match arg {
        Arg::Bytes(bytes) | Arg::InOut(bytes) => bytes.len() as u64,
        _ => 0,
    };
    args.iter().map(bytes).sum()
}
