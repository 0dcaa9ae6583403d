//! What the process gives up before it serves, and what is told of that.

use std::path::{Path, PathBuf};

use super::{DaemonError, arena_config};
use crate::{
    arena::Arenas,
    config::{Config, Confinement, Isolation, Listen, Perf},
    confine::{self, Measure, Needs, Policy, State},
};

/// Gives up what a daemon of this configuration no longer needs, for good. To be called before there are threads.
///
/// # Errors
/// [`DaemonError::Confine`].
pub(super) fn confine(config: &Config, arenas: &Arenas) -> Result<Vec<Measure>, DaemonError> {
    Ok(confine::apply(&needs(config, Some(arenas)))?)
}

/// What such a daemon still needs when it has started, of these arenas, if of any.
pub(super) fn needs(config: &Config, arenas: Option<&Arenas>) -> Needs {
    let mut removes: Vec<PathBuf> = config.server.listen.iter().filter_map(directory).collect();
    // A file that says nothing goes at the end.
    let writes_perf = config.tools.perf != Perf::Off;
    removes.extend(writes_perf.then(|| config.tools.directory.clone()));
    Needs {
        system_calls: policy(config.confine.system_calls),
        landlock: policy(config.confine.landlock),
        code: arenas.map(|arenas| arenas.executable_ranges().collect()).unwrap_or_default(),
        flips_protection: arenas.is_some_and(Arenas::flips_protection),
        removes,
        // What is appended to is open already.
        appends: Vec::new(),
        // Workers are stopped by signals.
        signals_children: config.exec.isolation == Isolation::Process,
        inspected: writes_perf || config.tools.gdb,
    }
}

/// Where a unix socket lies.
fn directory(listen: &Listen) -> Option<PathBuf> {
    let Listen::Unix(path) = listen else { return None };
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    Some(parent.unwrap_or(Path::new(".")).to_owned())
}

fn policy(confinement: Confinement) -> Policy {
    match confinement {
        Confinement::Require => Policy::Require,
        Confinement::Try => Policy::Try,
        Confinement::Off => Policy::Off,
    }
}

/// What is in force goes to the log in one line, what is not in one each.
pub(super) fn log(measures: &[Measure]) {
    let in_force: Vec<_> =
        measures.iter().filter(|it| matches!(it.state, State::InForce(_))).map(|it| it.name).collect();
    tracing::info!(in_force = in_force.join(", "), "confined");
    for Measure { name, state, .. } in measures {
        match state {
            State::InForce(_) => {}
            State::Missing { why, remedy } => tracing::warn!(measure = name, %why, remedy, "not confined"),
            State::Off(why) => tracing::info!(measure = name, why, "not confined"),
        }
    }
}

/// Name and finding of each.
pub(super) fn told(measures: &[Measure]) -> Vec<(String, String)> {
    let line = |it: &Measure| {
        let finding = match &it.state {
            State::InForce(said) => format!("in force: {said}"),
            State::Missing { why, remedy } => format!("not in force: {why}; remedy: {remedy}"),
            State::Off(why) => format!("not in force, {why}"),
        };
        (it.name.to_owned(), finding)
    };
    measures.iter().map(line).collect()
}

/// What is in force, and what came of trying what must be refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confined {
    /// Name and finding of each measure and each attempt.
    pub lines: Vec<(String, String)>,
    /// Attempts that were not refused though they should have been.
    pub failed: usize,
}

/// Confines this process as a daemon of this configuration would be, for good, and tries what then must be refused. To
/// be called before there are threads.
///
/// # Errors
/// [`DaemonError`]: there are no arenas, or what is required cannot be had.
pub fn confinement(config: &Config) -> Result<Confined, DaemonError> {
    let arenas = Arenas::map(&arena_config(config))?;
    let measures = confine(config, &arenas)?;
    let mut lines = told(&measures);
    let mut failed = 0;
    for attempt in measures.iter().flat_map(|it| it.attempts) {
        let finding = match attempt.run() {
            Ok(errno) => format!("refused ({errno:?})"),
            Err(why) => {
                failed += 1;
                why
            }
        };
        lines.push((attempt.what.to_owned(), finding));
    }
    Ok(Confined { lines, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_lies_in_its_directory_and_one_without_here() {
        let of = |text: &str| directory(&text.parse().unwrap());
        assert_eq!(of("unix:/run/codecached/codecached.sock"), Some("/run/codecached".into()));
        assert_eq!(of("tcp:127.0.0.1:0"), None);
        assert_eq!(directory(&Listen::Unix("codecached.sock".into())), Some(".".into()));
    }

    #[test]
    fn what_is_missing_is_told_with_its_remedy() {
        let state = State::Missing { why: "no landlock".to_owned(), remedy: "a newer kernel" };
        let lines = told(&[Measure { name: "landlock", state, attempts: &[] }]);
        assert_eq!(lines, [("landlock".to_owned(), "not in force: no landlock; remedy: a newer kernel".to_owned())]);
    }
}
