//! What the kernel's landlock holds the process to: files that are written or run, ports, and other processes.

use std::path::PathBuf;

use landlock::{
    ABI, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};

use super::{State, Taken, attempts::BY_LANDLOCK};

/// What a rule may still allow: the last of those that this asks for.
const ASKED: ABI = ABI::V6;

/// What comes with which version, besides files, which the first one has: name, version, Linux.
const LATER: [(&str, ABI, &str); 3] = [
    ("truncation of files", ABI::V3, "6.2"),
    ("TCP ports", PORTS_SINCE, "6.7"),
    ("signals to other processes", SIGNALS_SINCE, "6.12"),
];
const PORTS_SINCE: ABI = ABI::V4;
const SIGNALS_SINCE: ABI = ABI::V6;

const PROFILE: &str = "let the seccomp profile that this runs under allow landlock's system calls";
const KERNEL: &str = "use Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK and landlock in lsm=, and let the seccomp profile \
                      that this runs under allow landlock's system calls";

/// Where something may still be done to files, with all that is beneath. What is not there is passed over.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// Names may go.
    pub(super) removes: Vec<PathBuf>,
    /// Files may be made, and be written to.
    pub(super) writes: Vec<PathBuf>,
    /// Signals may go to other processes.
    pub(super) signals: bool,
}

/// Restricts the calling thread, and those that it starts later: no file is written, made, removed or run but in
/// `places`, no port is bound or connected to by TCP, and no signal goes to other processes unless `places` says so.
/// Files may be read, and what is open already stays so.
pub(super) fn restrict(places: &Places) -> Taken {
    match try_restrict(places) {
        Ok(Some(version)) => (told(version, places.signals), if version >= PORTS_SINCE { BY_LANDLOCK } else { &[] }),
        Ok(None) => (missing(), &[]),
        Err(error) => (State::Missing { why: format!("landlock: {error}"), remedy: PROFILE }, &[]),
    }
}

/// The version that is in force.
fn try_restrict(places: &Places) -> Result<Option<ABI>, RulesetError> {
    let removes = AccessFs::RemoveFile;
    let writes = AccessFs::WriteFile | AccessFs::MakeReg;
    let rules = rules(&places.removes, removes.into()).chain(rules(&places.writes, writes));
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_write(ASKED) | AccessFs::Execute)?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
    let ruleset = if places.signals { ruleset } else { ruleset.scope(Scope::Signal)? };
    let status = ruleset.create()?.add_rules(rules)?.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } if status.ruleset != RulesetStatus::NotEnforced => {
            Some(effective_abi)
        }
        _ => None,
    })
}

fn rules(
    places: &[PathBuf],
    access: BitFlags<AccessFs>,
) -> impl Iterator<Item = Result<PathBeneath<PathFd>, RulesetError>> {
    let open = |path: &PathBuf| PathFd::new(path).ok();
    places.iter().filter_map(open).map(move |directory| Ok(PathBeneath::new(directory, access)))
}

/// In force, with what this kernel cannot do of it.
fn told(version: ABI, signals: bool) -> State {
    let later = LATER.iter().filter(|(_, since, _)| version < *since);
    let mut lacks: Vec<_> = later.map(|(what, _, linux)| format!("{what} (Linux {linux})")).collect();
    if signals && version >= SIGNALS_SINCE {
        lacks.push("signals to other processes (workers get such)".to_owned());
    }
    let but = if lacks.is_empty() { String::new() } else { format!("; not held: {}", lacks.join(", ")) };
    State::InForce(format!("version {}{but}", version as i32))
}

fn missing() -> State {
    let why = "the kernel has no landlock, did not enable it at its start, or a seccomp profile refuses it";
    State::Missing { why: why.to_owned(), remedy: KERNEL }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_kernel_does_not_hold_is_said() {
        assert_eq!(told(ABI::V7, false), State::InForce("version 7".to_owned()));
        let State::InForce(said) = told(ABI::V3, true) else { panic!("not in force") };
        assert_eq!(said, "version 3; not held: TCP ports (Linux 6.7), signals to other processes (Linux 6.12)");
        let State::InForce(said) = told(ABI::V7, true) else { panic!("not in force") };
        assert_eq!(said, "version 7; not held: signals to other processes (workers get such)");
    }
}
