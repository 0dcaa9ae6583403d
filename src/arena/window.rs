//! Who writes where: each arena's window is open while it has writers, and closed else. Pure: opening and closing are
//! the caller's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

/// One arena's window.
#[derive(Clone, Copy, Default)]
struct Gate {
    writers: u32,
    open: bool,
}

struct State {
    gates: Box<[Gate]>,
    /// Gates that are open though nobody writes, as closing them failed; and how.
    stuck: u32,
    stuck_errno: Option<Errno>,
}

/// The windows of all arenas.
pub(super) struct Gates {
    /// Held while one window is opened or closed.
    state: Mutex<State>,
}

impl Gates {
    /// All closed.
    pub(super) fn new(arenas: u32) -> Self {
        let gates = vec![Gate::default(); arenas as usize].into_boxed_slice();
        Self { state: Mutex::new(State { gates, stuck: 0, stuck_errno: None }) }
    }

    /// Counts one more writer of an arena; the first opens its window by `set(arena, true)`.
    pub(super) fn enter(&self, arena: u32, set: impl Fn(u32, bool) -> Result<(), Errno>) -> Result<(), Errno> {
        let mut state = self.lock();
        let gate = state.gates[arena as usize];
        if !gate.open {
            set(arena, true)?;
        } else if gate.writers == 0 {
            state.stuck -= 1;
        }
        state.gates[arena as usize] = Gate { writers: gate.writers + 1, open: true };
        state.retry(set);
        Ok(())
    }

    /// Counts one writer less; the last closes the window by `set(arena, false)`. What cannot be closed is tried again
    /// whenever somebody enters or leaves any window.
    pub(super) fn leave(&self, arena: u32, set: impl Fn(u32, bool) -> Result<(), Errno>) {
        let mut state = self.lock();
        let gate = &mut state.gates[arena as usize];
        gate.writers = gate.writers.checked_sub(1).expect("invariant: who leaves has entered");
        if gate.writers == 0 {
            state.stuck += 1;
        }
        state.retry(set);
    }

    /// Whether somebody writes there, or the window could not be closed.
    pub(super) fn is_open(&self, arena: u32) -> bool {
        self.lock().gates[arena as usize].open
    }

    /// How many windows are open though nobody writes, and what the system said when the last was to be closed.
    pub(super) fn stuck(&self) -> Option<(u32, Errno)> {
        let state = self.lock();
        state.stuck_errno.filter(|_| state.stuck > 0).map(|errno| (state.stuck, errno))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes what nobody writes through.
    fn retry(&mut self, set: impl Fn(u32, bool) -> Result<(), Errno>) {
        if self.stuck == 0 {
            return;
        }
        for (arena, gate) in self.gates.iter_mut().enumerate().filter(|(_, gate)| gate.open && gate.writers == 0) {
            match set(arena as u32, false) {
                Ok(()) => {
                    gate.open = false;
                    self.stuck -= 1;
                }
                Err(errno) => self.stuck_errno = Some(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What was set, and what setting answers.
    struct Log(RefCell<Vec<(u32, bool)>>, RefCell<Result<(), Errno>>);

    impl Log {
        fn new() -> Self {
            Self(RefCell::default(), RefCell::new(Ok(())))
        }

        fn set(&self) -> impl Fn(u32, bool) -> Result<(), Errno> + '_ {
            |arena, open| {
                self.0.borrow_mut().push((arena, open));
                *self.1.borrow()
            }
        }

        fn take(&self) -> Vec<(u32, bool)> {
            self.0.take()
        }
    }

    #[test]
    fn the_first_writer_opens_an_arena_and_the_last_closes_it() {
        let (gates, log) = (Gates::new(2), Log::new());
        gates.enter(1, log.set()).unwrap();
        gates.enter(1, log.set()).unwrap();
        gates.enter(0, log.set()).unwrap();
        assert_eq!(log.take(), [(1, true), (0, true)]);
        gates.leave(1, log.set());
        assert_eq!((log.take(), gates.is_open(1)), (vec![], true));
        gates.leave(1, log.set());
        gates.leave(0, log.set());
        assert_eq!(log.take(), [(1, false), (0, false)]);
        assert!(!gates.is_open(0) && !gates.is_open(1));
    }

    #[test]
    fn a_window_that_cannot_be_opened_has_no_writer_and_may_be_tried_again() {
        let (gates, log) = (Gates::new(1), Log::new());
        *log.1.borrow_mut() = Err(Errno::ENOMEM);
        assert_eq!(gates.enter(0, log.set()), Err(Errno::ENOMEM));
        *log.1.borrow_mut() = Ok(());
        gates.enter(0, log.set()).unwrap();
        gates.leave(0, log.set());
        assert_eq!(log.take(), [(0, true), (0, true), (0, false)]);
    }

    #[test]
    fn a_window_that_cannot_be_closed_is_told_of_and_closed_when_somebody_passes_by() {
        let (gates, log) = (Gates::new(2), Log::new());
        gates.enter(0, log.set()).unwrap();
        *log.1.borrow_mut() = Err(Errno::ENOMEM);
        gates.leave(0, log.set());
        assert_eq!((gates.stuck(), gates.is_open(0)), (Some((1, Errno::ENOMEM)), true));
        *log.1.borrow_mut() = Ok(());
        // Whoever writes there again finds it open; nothing is to be told while it has a writer.
        gates.enter(0, log.set()).unwrap();
        assert_eq!((log.take(), gates.stuck()), (vec![(0, true), (0, false)], None));
        *log.1.borrow_mut() = Err(Errno::ENOMEM);
        gates.leave(0, log.set());
        *log.1.borrow_mut() = Ok(());
        gates.enter(1, log.set()).unwrap();
        assert_eq!((log.take(), gates.stuck()), (vec![(0, false), (1, true), (0, false)], None));
    }
}
