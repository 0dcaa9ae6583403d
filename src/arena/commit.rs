//! How much memory all areas together have from the system: one exact count, charged before pages are taken.

use super::{
    geometry::PAGE_BYTES,
    sync::{AtomicU64, Ordering},
};

/// Pages that are committed, or about to be, and the limit on them.
pub(super) struct Commit {
    limit_pages: AtomicU64,
    charged_pages: AtomicU64,
}

impl Commit {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self { limit_pages: AtomicU64::new(limit_bytes / PAGE_BYTES), charged_pages: AtomicU64::new(0) }
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_pages.load(Ordering::Relaxed) * PAGE_BYTES
    }

    pub(super) fn set_limit(&self, bytes: u64) {
        self.limit_pages.store(bytes / PAGE_BYTES, Ordering::Relaxed);
    }

    pub(super) fn charged_bytes(&self) -> u64 {
        self.charged_pages.load(Ordering::Relaxed) * PAGE_BYTES
    }

    /// Pages charged above the limit: more than none only after it was lowered.
    pub(super) fn excess_pages(&self) -> u64 {
        self.charged_pages.load(Ordering::Relaxed).saturating_sub(self.limit_pages.load(Ordering::Relaxed))
    }

    /// Charges these pages, or says how many of them others would have to give up first. The count orders nothing:
    /// what it counts is handed over under the locks of the areas.
    pub(super) fn charge(&self, pages: u64) -> Result<(), u64> {
        let limit_pages = self.limit_pages.load(Ordering::Relaxed);
        let more = |charged: u64| (pages == 0 || charged + pages <= limit_pages).then_some(charged + pages);
        match self.charged_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(charged) => Err(pages.min((charged + pages).saturating_sub(limit_pages))),
        }
    }

    pub(super) fn discharge(&self, pages: u64) {
        self.charged_pages.fetch_sub(pages, Ordering::Relaxed);
    }
}

/// Pages charged for a purpose. What is not spent when this is dropped is discharged.
pub(super) struct Credit<'a> {
    commit: &'a Commit,
    pages: u64,
}

impl<'a> Credit<'a> {
    pub(super) fn none(commit: &'a Commit) -> Self {
        Self { commit, pages: 0 }
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Takes pages over whose charge somebody gave up.
    pub(super) fn add(&mut self, pages: u64) {
        self.pages += pages;
    }

    /// Charges what lacks to `pages`, or says how many others would have to give up first.
    pub(super) fn raise(&mut self, pages: u64) -> Result<(), u64> {
        let lacking = pages.saturating_sub(self.pages);
        self.commit.charge(lacking)?;
        self.pages += lacking;
        Ok(())
    }

    /// These pages are committed now: whoever gives them back discharges them.
    pub(super) fn spend(&mut self, pages: u64) {
        self.pages = self.pages.checked_sub(pages).expect("invariant: pages are charged before they are committed");
    }
}

impl Drop for Credit<'_> {
    fn drop(&mut self) {
        self.commit.discharge(self.pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_never_passes_the_limit_and_says_what_lacks() {
        let commit = Commit::new(10 * PAGE_BYTES);
        assert_eq!(commit.charge(8), Ok(()));
        assert_eq!(commit.charge(5), Err(3));
        assert_eq!(commit.charge(2), Ok(()));
        commit.set_limit(4 * PAGE_BYTES);
        assert_eq!((commit.charge(1), commit.charge(0), commit.excess_pages()), (Err(1), Ok(()), 6));
        commit.discharge(7);
        assert_eq!((commit.charge(1), commit.charged_bytes()), (Ok(()), 4 * PAGE_BYTES));
    }

    #[test]
    fn what_is_left_of_a_credit_is_discharged_and_what_was_spent_is_not() {
        let commit = Commit::new(10 * PAGE_BYTES);
        let mut credit = Credit::none(&commit);
        assert_eq!((credit.raise(8), credit.raise(12)), (Ok(()), Err(2)));
        credit.spend(3);
        assert_eq!((credit.pages(), credit.raise(7)), (5, Ok(())));
        drop(credit);
        assert_eq!(commit.charged_bytes(), 3 * PAGE_BYTES);
    }
}
