//! Who goes to make room, and what goes with them.

use std::{collections::HashMap, sync::Arc};

use super::{Handle, dependencies::Share, entry::Entry};

/// Entries that are to be taken out. To be filled and used under one hold of the cache lock.
#[derive(Default)]
pub(super) struct Victims {
    /// In the order in which they were added.
    pub(super) handles: Vec<Handle>,
    /// What was taken out before and lingers only for them.
    pub(super) followers: Vec<Arc<Entry>>,
    /// Charged bytes of both.
    pub(super) bytes: u64,
    /// How many owners of an entry go. An address names an entry for as long as it has another owner.
    leaving: HashMap<*const Entry, usize>,
}

impl Victims {
    /// Whether those who go are all owners of an entry but `others`.
    ///
    /// Seen under the cache lock this stays so, although shares are copied outside of it: who does that holds an owner
    /// of what he copies, and that one does not go.
    pub(super) fn owners_go(&self, entry: &Arc<Entry>, others: usize) -> bool {
        self.leaving.get(&Arc::as_ptr(entry)).is_some_and(|leaving| Arc::strong_count(entry) == leaving + others)
    }

    /// Adds an entry that has no owner but the index and those who go.
    pub(super) fn add(&mut self, handle: Handle, entry: &Entry) {
        self.handles.push(handle);
        self.leave(entry);
    }

    /// An entry goes, and gives its shares back.
    fn leave(&mut self, entry: &Entry) {
        self.bytes += entry.charge.amount().total_bytes();
        for shared in entry.shares.iter().map(Share::entry) {
            *self.leaving.entry(Arc::as_ptr(shared)).or_default() += 1;
            // One that can still be found has the index for an owner.
            if self.owners_go(shared, 0) {
                self.leave(shared);
                self.followers.push(Arc::clone(shared));
            }
        }
    }
}
