//! What a worker does before it runs code, as far as it can fail. It ends with the step's own status, so that the log says
//! which it was.

/// One step. Its number is what the process ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Step {
    Descriptors = 90,
    Parent = 91,
    NoProcesses = 92,
    Executor = 93,
    OtherSlots = 94,
    OwnWindow = 95,
    OtherWindows = 96,
    Signals = 97,
    Addresses = 98,
    ReadOnly = 99,
    NoDescriptors = 100,
    Cradle = 101,
    Filter = 102,
}

/// All of them, with what each is.
const STEPS: [(Step, &str); 13] = [
    (Step::Descriptors, "closing descriptors"),
    (Step::Parent, "binding its life to the daemon's"),
    (Step::NoProcesses, "setting RLIMIT_NPROC"),
    (Step::Executor, "finding its executor's memory"),
    (Step::OtherSlots, "unmapping the slots of other executors"),
    (Step::OwnWindow, "moving its window to where data lies"),
    (Step::OtherWindows, "unmapping the windows of other executors"),
    (Step::Signals, "setting up its alternate stack and signal mask"),
    (Step::Addresses, "setting RLIMIT_AS"),
    (Step::ReadOnly, "making memory read-only that is not its executor's"),
    (Step::NoDescriptors, "setting RLIMIT_NOFILE"),
    (Step::Cradle, "unmapping what all workers share"),
    (Step::Filter, "installing its filter of system calls"),
];

impl Step {
    /// What a process ends with that came no further.
    pub(super) fn status(self) -> i32 {
        self as i32
    }

    /// What it is, by the status.
    pub(super) fn named(status: i32) -> Option<&'static str> {
        STEPS.iter().find(|(step, _)| step.status() == status).map(|(_, name)| *name)
    }

    /// Names it as what failed.
    pub(super) fn of<T, E>(self, done: Result<T, E>) -> Result<T, Step> {
        done.map_err(|_| self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_a_status_and_a_name_of_its_own() {
        let statuses: Vec<i32> = STEPS.iter().map(|(step, _)| step.status()).collect();
        assert!(statuses.is_sorted_by(|a, b| a < b));
        assert!(STEPS.iter().all(|(step, name)| Step::named(step.status()) == Some(*name)));
        assert_eq!((Step::named(0), Step::named(82)), (None, None));
    }
}
