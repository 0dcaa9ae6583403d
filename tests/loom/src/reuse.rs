//! A core that keeps what it has fetched, memory that changes hands, and the epochs between them.

use loom::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    Flaw,
    epochs::{Epochs, Stamp},
};

/// What free memory holds.
const TRAP: u64 = u64::MAX;

/// One address: what is written there, and what the core still has of it from the last time.
struct Address {
    bytes: AtomicU64,
    fetched: Mutex<Option<u64>>,
}

struct Machine {
    addresses: Vec<Address>,
    epochs: Epochs,
    flaw: Flaw,
}

impl Machine {
    fn new(addresses: usize, flaw: Flaw) -> Self {
        let address = |_| Address { bytes: AtomicU64::new(TRAP), fetched: Mutex::new(None) };
        Self { addresses: (0..addresses).map(address).collect(), epochs: Epochs::new(), flaw }
    }

    /// Runs what the core believes to be at an address.
    fn run(&self, at: usize) -> u64 {
        let address = &self.addresses[at];
        *address.fetched.lock().unwrap().get_or_insert_with(|| address.bytes.load(Ordering::Relaxed))
    }

    fn barrier(&self) {
        self.addresses.iter().for_each(|address| *address.fetched.lock().unwrap() = None);
    }

    fn write(&self, at: usize, value: u64) {
        self.addresses[at].bytes.store(value, Ordering::Relaxed);
    }

    /// What is there stays until somebody writes: as on a shelf.
    fn free(&self) -> Stamp {
        self.epochs.stamp()
    }

    /// Writes and makes visible. Memory with this stamp was freed before.
    fn publish(&self, at: usize, value: u64, stamp: Stamp) {
        self.write(at, value);
        let stamp = if self.flaw == Flaw::EarlyStamp { earlier(stamp) } else { stamp };
        if self.flaw != Flaw::NoBarrier && !self.epochs.is_fresh(stamp) {
            self.epochs.serialise(|| self.barrier());
        }
    }
}

fn earlier(stamp: Stamp) -> Stamp {
    Stamp::of_word(stamp.to_word().saturating_sub(1))
}

/// What is found under a key. Dropped by the last who has it, it frees its memory.
struct Entry {
    machine: Arc<Machine>,
    value: u64,
    free: Arc<Mutex<Option<Stamp>>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let stamp = self.machine.free();
        *self.free.lock().unwrap() = Some(stamp);
    }
}

/// An owner replaces an entry while a thread finds and runs whichever is there.
pub(crate) fn replace(flaw: Flaw) {
    let machine = Arc::new(Machine::new(1, flaw));
    let free = Arc::new(Mutex::new(None));
    let entry = |value| Arc::new(Entry { machine: Arc::clone(&machine), value, free: Arc::clone(&free) });
    machine.publish(0, 1, Stamp::default());
    let index = Arc::new(Mutex::new(Some(entry(1))));
    let executor = {
        let (machine, index) = (Arc::clone(&machine), Arc::clone(&index));
        thread::spawn(move || {
            for _ in 0..2 {
                let found = index.lock().unwrap().as_ref().map(|it| (Arc::clone(it), it.value));
                let Some((pin, value)) = found else { continue };
                if machine.flaw == Flaw::NoPin {
                    drop(pin);
                    assert_eq!(machine.run(0), value, "ran what is not this entry's");
                } else {
                    assert_eq!(machine.run(0), value, "ran what is not this entry's");
                    drop(pin);
                }
            }
        })
    };
    let evicted = index.lock().unwrap().take();
    drop(evicted);
    let freed = free.lock().unwrap().take();
    if let Some(stamp) = freed {
        machine.publish(0, 2, stamp);
        *index.lock().unwrap() = Some(entry(2));
    }
    executor.join().unwrap();
    // Breaks the circle of references.
    let last = index.lock().unwrap().take();
    drop(last);
}

/// Two addresses that ran and were freed are published by two threads at once, each of which then runs its own.
pub(crate) fn side_by_side(flaw: Flaw) {
    let machine = Arc::new(Machine::new(2, flaw));
    for at in 0..2 {
        machine.publish(at, 1, Stamp::default());
        assert_eq!(machine.run(at), 1);
    }
    let stamps = [machine.free(), machine.free()];
    let publish = |at: usize| {
        let machine = Arc::clone(&machine);
        move || {
            machine.publish(at, 2, stamps[at]);
            assert_eq!(machine.run(at), 2, "ran what was there before");
        }
    };
    let other = thread::spawn(publish(1));
    publish(0)();
    other.join().unwrap();
    // Freed while no barrier is under way, and after one that has ended.
    let stamp = machine.free();
    machine.publish(0, 3, stamp);
    assert_eq!(machine.run(0), 3, "ran what was there before");
}
