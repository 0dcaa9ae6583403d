//! The thread that puts memory on huge pages.
//!
//! Only chunks all of whose pages are committed and have an owner: what is not committed would become memory that no
//! count knows. While the system copies a chunk, its pages are not given back; its spans may come and go.

use std::{
    io,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use nix::errno::Errno;

use super::{arenas::Memory, geometry::AreaId};

/// How long the thread waits between two looks at all areas.
const PAUSE: Duration = Duration::from_secs(1);
/// Chunks per look: each takes milliseconds, in which code in it may wait for a page fault.
const CHUNKS_MAX: u32 = 8;

/// Ends by itself when the arenas are gone.
pub(super) fn start(memory: &Arc<Memory>) -> io::Result<()> {
    let memory = Arc::downgrade(memory);
    thread::Builder::new().name("arena-huge".to_owned()).spawn(move || run(&memory)).map(drop)
}

fn run(memory: &Weak<Memory>) {
    while let Some(memory) = memory.upgrade() {
        look(&memory);
        drop(memory);
        thread::sleep(PAUSE);
    }
}

/// Puts a few chunks on huge pages; answers how many.
pub(super) fn look(memory: &Memory) -> u32 {
    let mut collapsed = 0;
    for area in memory.geometry().areas() {
        let mut from = 0;
        while collapsed < CHUNKS_MAX
            && let Some(chunk) = hold(memory, area, from)
        {
            from = chunk + 1;
            match collapse(memory, area, chunk) {
                Ok(()) => collapsed += 1,
                // No huge page is free, or a page was held: another time.
                Err(Errno::ENOMEM | Errno::EAGAIN | Errno::EBUSY) => return collapsed,
                Err(_) => (),
            }
        }
    }
    collapsed
}

/// A function of its own, so that the lock is free again when the chunk is worked on.
fn hold(memory: &Memory, area: AreaId, from: u32) -> Option<u32> {
    memory.pool.shard(area.arena).area_mut(area.kind).hold_full_chunk(from)
}

/// Tries a held chunk and releases it. Unless another try may help, it is not tried again.
fn collapse(memory: &Memory, area: AreaId, chunk: u32) -> Result<(), Errno> {
    let outcome = memory.views.collapse(area, chunk);
    let again = matches!(outcome, Err(Errno::ENOMEM | Errno::EAGAIN | Errno::EBUSY));
    memory.pool.release_chunk(area, !again, &memory.views.opening());
    outcome
}
