//! Where calls run, and how, as the configuration says.

use std::time::Duration;

use super::{DaemonError, confinement, cores, worker_threads};
use crate::{
    arena::Arenas,
    config::{Config, Isolation, SystemCallFilter},
    exec::{self, ExecConfig, FilterPolicy, Workers},
};

/// Forks what forks workers, if calls are to run in such.
pub(super) fn prepare_workers(config: &Config, arenas: &Arenas) -> Result<Option<Workers>, DaemonError> {
    if config.exec.isolation == Isolation::Thread {
        return Ok(None);
    }
    if arenas.flips_protection() {
        return Err(DaemonError::NoWorkers);
    }
    let spawns_max_per_s = config.exec.worker_spawns_max_per_s;
    let (exec, needs) = (exec_config(config, Some(arenas)), confinement::needs(config, Some(arenas)));
    Ok(Some(Workers::prepare(&exec, &arenas.data_ranges(), spawns_max_per_s, &needs)?))
}

/// Of calls into these arenas, if into any.
pub(super) fn exec_config(config: &Config, arenas: Option<&Arenas>) -> ExecConfig {
    ExecConfig {
        executors: executors(config),
        spare_executors: config.exec.spare_executors,
        queue_max: config.exec.queue_max,
        queue_tenant_max: queue_namespace_max(config),
        stack_bytes: config.exec.stack_bytes,
        stack_guard_bytes: config.exec.stack_guard_bytes,
        call_memory_max_bytes: config.exec.call_memory_max_bytes,
        inline_threads: inline_threads(config),
        inline: Duration::from_micros(config.exec.inline_us),
        stuck_after: Duration::from_millis(config.exec.stuck_after_ms),
        stuck_max: config.exec.stuck_max,
        cpu_limit_default: Duration::from_millis(config.exec.cpu_limit_default_ms),
        tick: Duration::from_micros(config.exec.watchdog_tick_us),
        code: arenas.map(|arenas| arenas.executable_ranges().collect()).unwrap_or_default(),
        code_flips: arenas.is_some_and(Arenas::flips_protection),
        filter: filter_policy(config),
    }
}

pub(super) fn isolation(config: &Config) -> &'static str {
    match config.exec.isolation {
        Isolation::Thread => "thread",
        Isolation::Process => "process",
    }
}

pub(super) fn filter_policy(config: &Config) -> FilterPolicy {
    match config.exec.system_call_filter {
        SystemCallFilter::Require => FilterPolicy::Require,
        SystemCallFilter::Try => FilterPolicy::Try,
        SystemCallFilter::Off => FilterPolicy::Off,
    }
}

/// At least two, so that one slow call does not hold up all others.
pub(super) fn executors(config: &Config) -> usize {
    match config.exec.executors {
        0 => cores().clamp(2, exec::EXECUTORS_MAX),
        executors => executors,
    }
}

fn queue_namespace_max(config: &Config) -> usize {
    match config.exec.queue_namespace_max {
        0 => config.exec.queue_max - config.exec.queue_max / 4,
        max => max.min(config.exec.queue_max),
    }
}

/// Where calls run in processes of their own none runs on a thread of a request.
pub(super) fn runs_inline(config: &Config) -> bool {
    config.exec.inline_us > 0 && config.exec.isolation == Isolation::Thread
}

/// No more than the executors leave.
fn inline_threads(config: &Config) -> usize {
    match runs_inline(config) {
        false => 0,
        true => worker_threads(config)
            .min(exec::EXECUTORS_MAX - executors(config) - config.exec.spare_executors - config.exec.stuck_max),
    }
}
