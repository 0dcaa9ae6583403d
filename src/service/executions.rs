//! What runs and waits now, to be shown and stopped.
//!
//! The pool knows jobs by numbers and nothing of keys. Here stands whose they are, for as long as somebody waits for
//! them: a job that outlives that is being stopped already.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{
    Service,
    cache_service::{PAGE_DEFAULT, PAGE_MAX},
    failure::{Failure, Reason},
};
use crate::{
    cache::{Handle, Meta, Namespace},
    exec::{CallId, Series},
    proto::{self, ExecutionState},
};

/// What the pool knows an execution by.
#[derive(Debug, Clone)]
pub(super) enum Job {
    /// A call, or a batch of so many rows: the id of its ticket.
    Single { id: CallId, rows: u64 },
    /// Calls that go together: the id of their ticket. Their numbers are those of their executions.
    Series { id: CallId, series: Arc<Series> },
}

/// Something that was handed to the pool.
#[derive(Debug, Clone)]
pub(super) struct Execution {
    pub(super) meta: Arc<Meta>,
    pub(super) handle: Handle,
    pub(super) symbol: Arc<str>,
    pub(super) cpu_limit: Duration,
    pub(super) since: Instant,
    pub(super) job: Job,
}

/// All of them. Bounded by what the pool takes.
#[derive(Debug)]
pub(super) struct Executions {
    next: AtomicU64,
    listed: Mutex<HashMap<u64, Execution>>,
}

impl Default for Executions {
    fn default() -> Self {
        // Not 0, which no call of a series may have.
        Self { next: AtomicU64::new(1), listed: Mutex::default() }
    }
}

/// Shown until it is dropped.
#[derive(Debug)]
pub(super) struct Shown {
    executions: Arc<Executions>,
    id: u64,
}

impl Executions {
    /// The first of so many numbers that nobody else has.
    pub(super) fn numbers(&self, count: u64) -> u64 {
        self.next.fetch_add(count, Relaxed)
    }

    /// Shows an execution.
    pub(super) fn show(self: &Arc<Self>, execution: Execution) -> Shown {
        let id = self.numbers(1);
        self.listed().insert(id, execution);
        Shown { executions: Arc::clone(self), id }
    }

    /// Those of a namespace, by their numbers.
    fn of(&self, namespace: Namespace<'_>) -> Vec<(u64, Execution)> {
        let listed = self.listed();
        let ours = listed.iter().filter(|(_, it)| it.meta.name.is_in(namespace));
        ours.map(|(id, it)| (*id, it.clone())).collect()
    }

    fn listed(&self) -> MutexGuard<'_, HashMap<u64, Execution>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // Its values are dropped outside of the lock.
        drop(self.executions.listed().remove(&self.id));
    }
}

/// # Errors
/// INVALID_FIELD.
pub(super) fn list(
    service: &Service,
    request: &proto::ListExecutionsRequest,
) -> Result<proto::ListExecutionsResponse, Failure> {
    let namespace = Namespace::new(&request.namespace)?;
    let limit = match request.page_size as usize {
        0 => PAGE_DEFAULT,
        size if size <= PAGE_MAX => size,
        _ => return Err(Failure::field("page_size", format!("must be at most {PAGE_MAX}"))),
    };
    let after = match request.page_token.first_chunk() {
        _ if request.page_token.is_empty() => 0,
        Some(token) if token.len() == request.page_token.len() => u64::from_be_bytes(*token),
        _ => return Err(Failure::field("page_token", "not from an answer")),
    };
    // One more than fits tells whether there is a next page.
    let mut calls: Vec<_> = service.executions.of(namespace).iter().flat_map(|(id, it)| calls(*id, it)).collect();
    calls.retain(|(number, ..)| *number > after);
    calls.sort_unstable_by_key(|(number, ..)| *number);
    let more = calls.len() > limit;
    calls.truncate(limit);
    let last = calls.last().filter(|_| more).map(|(number, ..)| number.to_be_bytes().to_vec());
    let now = Instant::now();
    let shown = |(number, runs, it): (u64, Option<bool>, Execution)| shown(service, number, runs, &it, now);
    let executions = calls.into_iter().map(shown).collect();
    Ok(proto::ListExecutionsResponse { executions, next_page_token: last.unwrap_or_default().into() })
}

/// Numbers of the calls of an execution, and whether they run if that is known.
fn calls(id: u64, execution: &Execution) -> Vec<(u64, Option<bool>, Execution)> {
    match &execution.job {
        Job::Single { .. } => vec![(id, None, execution.clone())],
        Job::Series { series, .. } => {
            series.calls().into_iter().map(|(number, runs)| (number, Some(runs), execution.clone())).collect()
        }
    }
}

fn shown(service: &Service, number: u64, runs: Option<bool>, it: &Execution, now: Instant) -> proto::Execution {
    let (id, rows) = match it.job {
        Job::Single { id, rows } => (id, rows),
        Job::Series { id, .. } => (id, 0),
    };
    let runs = runs.unwrap_or_else(|| !service.pool.is_waiting(id));
    let state = if runs { ExecutionState::Running } else { ExecutionState::Queued };
    let age = now.saturating_duration_since(it.since);
    proto::Execution {
        execution_id: number,
        key: it.meta.name.key().to_vec().into(),
        handle: it.handle.to_bits(),
        symbol: it.symbol.to_string(),
        state: state.into(),
        age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        cpu_limit: prost_types::Duration::try_from(it.cpu_limit).ok(),
        rows,
    }
}

/// # Errors
/// INVALID_FIELD, or EXECUTION_NOT_FOUND.
pub(super) fn cancel(service: &Service, request: &proto::CancelExecutionRequest) -> Result<(), Failure> {
    let namespace = Namespace::new(&request.namespace)?;
    let wanted = request.execution_id;
    let is_stopped = |(id, execution): &(u64, Execution)| match &execution.job {
        Job::Single { id: job, .. } => *id == wanted && service.pool.cancel(*job),
        Job::Series { id: job, series } => service.pool.cancel_in_series(*job, series, wanted),
    };
    if wanted != 0 && service.executions.of(namespace).iter().any(is_stopped) {
        return Ok(());
    }
    let message = format!("no execution {wanted} in namespace {}; it may have ended", namespace.as_str());
    Err(Failure::absent(Reason::ExecutionNotFound, "execution", wanted.to_string(), message))
}
