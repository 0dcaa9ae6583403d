//! The budget: who has charged how many bytes.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::Clock;

/// Reclaim delays kept until somebody takes them; more than a scrape interval of a busy daemon brings.
const RECLAIM_DELAYS_MAX: usize = 4096;

/// Bytes of one owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Rounded spans.
    pub spans_bytes: u64,
    /// Metadata and link state.
    pub metadata_bytes: u64,
    /// What an upload under way said that it would bring.
    pub uploads_bytes: u64,
}

impl Amount {
    /// All bytes together.
    pub fn total_bytes(self) -> u64 {
        self.spans_bytes.saturating_add(self.metadata_bytes).saturating_add(self.uploads_bytes)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            spans_bytes: self.spans_bytes + other.spans_bytes,
            metadata_bytes: self.metadata_bytes + other.metadata_bytes,
            uploads_bytes: self.uploads_bytes + other.uploads_bytes,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            spans_bytes: self.spans_bytes - other.spans_bytes,
            metadata_bytes: self.metadata_bytes - other.metadata_bytes,
            uploads_bytes: self.uploads_bytes - other.uploads_bytes,
        }
    }
}

/// What is charged, in one consistent picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charged {
    /// Resident entries, and installs and uploads under way.
    pub live: Amount,
    /// Evicted entries that still run, or that others are linked against.
    pub lingering: Amount,
    /// Those entries, counted.
    pub lingering_entries: u64,
}

impl Charged {
    /// What the budget bounds.
    pub fn total_bytes(&self) -> u64 {
        self.live.total_bytes() + self.lingering.total_bytes()
    }
}

#[derive(Debug, Default)]
struct Book {
    charged: Charged,
    reclaim_delays: Vec<Duration>,
}

/// Counts charged bytes against a limit. Its lock is a leaf: nothing is called under it.
#[derive(Debug)]
pub(super) struct Ledger {
    limit_bytes: u64,
    clock: Clock,
    book: Mutex<Book>,
}

impl Ledger {
    pub(super) fn new(limit_bytes: u64, clock: Clock) -> Arc<Self> {
        Arc::new(Self { limit_bytes, clock, book: Mutex::default() })
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    pub(super) fn charged(&self) -> Charged {
        self.book().charged
    }

    pub(super) fn take_reclaim_delays(&self) -> Vec<Duration> {
        mem::take(&mut self.book().reclaim_delays)
    }

    /// Charges `amount`, or says how many bytes are missing.
    pub(super) fn charge(self: &Arc<Self>, amount: Amount) -> Result<Charge, u64> {
        self.charge_over(amount, &[])
    }

    /// Charges `amount` with the bytes of `givers` to pay for it, which are handed over and no longer theirs.
    ///
    /// The result holds at least what the givers held: their memory is still there, and so it stays charged
    /// until it is free and [`Charge::settle`] lets go of what `amount` does not need. If even so `amount` does
    /// not fit, nothing changes and the answer is how many bytes are missing.
    pub(super) fn charge_over(self: &Arc<Self>, amount: Amount, givers: &[&Charge]) -> Result<Charge, u64> {
        let mut book = self.book();
        let sum = |givers: &mut dyn Iterator<Item = &&Charge>| {
            givers.fold(Amount::default(), |sum, giver| sum.plus(giver.amount))
        };
        let live = sum(&mut givers.iter().filter(|it| !it.lingers()));
        let lingering = sum(&mut givers.iter().filter(|it| it.lingers()));
        let given = live.plus(lingering);
        let others_bytes = book.charged.total_bytes() - given.total_bytes();
        let room_bytes = self.limit_bytes.saturating_sub(others_bytes);
        if amount.total_bytes() > room_bytes {
            return Err(amount.total_bytes() - room_bytes);
        }
        for giver in givers {
            giver.given_away.store(true, Relaxed);
        }
        let held = if given.total_bytes() > amount.total_bytes() { given } else { amount };
        book.charged.live = book.charged.live.minus(live).plus(held);
        book.charged.lingering = book.charged.lingering.minus(lingering);
        book.charged.lingering_entries -= givers.iter().filter(|it| it.lingers()).count() as u64;
        Ok(Charge::new(Arc::clone(self), held))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing under the lock can leave the book half written: a panic elsewhere must not stop the accounts.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that are charged for as long as this lives.
#[derive(Debug)]
pub(super) struct Charge {
    ledger: Arc<Ledger>,
    amount: Amount,
    /// Set under the ledger's lock; read by the drop, which comes after every other use.
    given_away: AtomicBool,
    lingering_since: OnceLock<Instant>,
}

impl Charge {
    fn new(ledger: Arc<Ledger>, amount: Amount) -> Self {
        Self { ledger, amount, given_away: AtomicBool::new(false), lingering_since: OnceLock::new() }
    }

    pub(super) fn amount(&self) -> Amount {
        self.amount
    }

    /// Keeps `amount` of what is held, which is no less, and lets go of the rest.
    pub(super) fn settle(&mut self, amount: Amount) {
        let mut book = self.ledger.book();
        book.charged.live = book.charged.live.minus(self.amount).plus(amount);
        self.amount = amount;
    }

    fn lingers(&self) -> bool {
        self.lingering_since.get().is_some()
    }

    /// Counts the bytes as lingering from now on.
    pub(super) fn linger(&self) {
        let mut book = self.ledger.book();
        if self.lingering_since.set((self.ledger.clock)()).is_ok() {
            book.charged.live = book.charged.live.minus(self.amount);
            book.charged.lingering = book.charged.lingering.plus(self.amount);
            book.charged.lingering_entries += 1;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let now = (self.ledger.clock)();
        let mut book = self.ledger.book();
        let is_given_away = self.given_away.load(Relaxed);
        let Some(&since) = self.lingering_since.get() else {
            if !is_given_away {
                book.charged.live = book.charged.live.minus(self.amount);
            }
            return;
        };
        if !is_given_away {
            book.charged.lingering = book.charged.lingering.minus(self.amount);
            book.charged.lingering_entries -= 1;
        }
        if book.reclaim_delays.len() < RECLAIM_DELAYS_MAX {
            book.reclaim_delays.push(now.saturating_duration_since(since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(spans_bytes: u64, metadata_bytes: u64) -> Amount {
        Amount { spans_bytes, metadata_bytes, ..Amount::default() }
    }

    fn ledger(limit_bytes: u64) -> Arc<Ledger> {
        Ledger::new(limit_bytes, Instant::now)
    }

    #[test]
    fn a_charge_that_does_not_fit_says_how_much_is_missing_and_changes_nothing() {
        let ledger = ledger(100);
        let _held = ledger.charge(amount(60, 20)).unwrap();
        assert_eq!(ledger.charge(amount(30, 0)).unwrap_err(), 10);
        assert_eq!(ledger.charged().live, amount(60, 20));
    }

    #[test]
    fn bytes_come_back_when_their_charge_is_dropped() {
        let ledger = ledger(100);
        drop(ledger.charge(amount(100, 0)).unwrap());
        assert_eq!(ledger.charged(), Charged::default());
    }

    #[test]
    fn given_bytes_stay_charged_until_they_are_settled() {
        let ledger = ledger(100);
        let victim = ledger.charge(amount(80, 10)).unwrap();
        let mut new = ledger.charge_over(amount(20, 5), &[&victim]).unwrap();
        assert_eq!(ledger.charged().total_bytes(), 90, "the victim's memory is still there");
        drop(victim);
        assert_eq!(ledger.charged().total_bytes(), 90, "the victim gave its bytes away");
        new.settle(amount(20, 5));
        assert_eq!(ledger.charged().live, amount(20, 5));
        drop(new);
        assert_eq!(ledger.charged(), Charged::default());
    }

    #[test]
    fn a_larger_charge_takes_the_rest_from_what_is_free() {
        let ledger = ledger(100);
        let victim = ledger.charge(amount(50, 0)).unwrap();
        let new = ledger.charge_over(amount(100, 0), &[&victim]).unwrap();
        drop(victim);
        assert_eq!((ledger.charged().live, new.amount()), (amount(100, 0), amount(100, 0)));
        assert_eq!(ledger.charge_over(amount(101, 0), &[&new]).unwrap_err(), 1);
    }

    #[test]
    fn an_upload_is_charged_beside_what_is_resident_and_leaves_it_as_it_was() {
        let ledger = ledger(100);
        let _held = ledger.charge(amount(30, 10)).unwrap();
        let upload = Amount { uploads_bytes: 60, ..Amount::default() };
        let charge = ledger.charge(upload).unwrap();
        assert_eq!(ledger.charged().live, Amount { uploads_bytes: 60, ..amount(30, 10) });
        assert_eq!(ledger.charge(amount(0, 1)).unwrap_err(), 1);
        drop(charge);
        assert_eq!(ledger.charged().live, amount(30, 10));
    }

    #[test]
    fn an_upload_may_be_paid_for_by_an_entry_that_goes() {
        let ledger = ledger(100);
        let victim = ledger.charge(amount(80, 10)).unwrap();
        let upload = Amount { uploads_bytes: 50, ..Amount::default() };
        let mut charge = ledger.charge_over(upload, &[&victim]).unwrap();
        drop(victim);
        assert_eq!(ledger.charged().live, amount(80, 10));
        charge.settle(upload);
        assert_eq!(ledger.charged().live, upload);
    }

    #[test]
    fn what_lingers_may_pay_too_and_tells_its_delay_when_it_is_free() {
        let ledger = ledger(100);
        let (victim, follower) = (ledger.charge(amount(20, 0)).unwrap(), ledger.charge(amount(60, 0)).unwrap());
        follower.linger();
        assert_eq!(ledger.charge_over(amount(70, 0), &[&victim]).unwrap_err(), 30);
        let mut new = ledger.charge_over(amount(70, 0), &[&victim, &follower]).unwrap();
        let charged = ledger.charged();
        assert_eq!((charged.live, charged.lingering, charged.lingering_entries), (amount(80, 0), amount(0, 0), 0));
        drop((victim, follower));
        new.settle(amount(70, 0));
        assert_eq!((ledger.charged().total_bytes(), ledger.take_reclaim_delays().len()), (70, 1));
    }

    #[test]
    fn lingering_bytes_still_count_and_their_delay_is_kept() {
        let ledger = ledger(100);
        let charge = ledger.charge(amount(70, 0)).unwrap();
        charge.linger();
        charge.linger();
        let charged = ledger.charged();
        assert_eq!((charged.lingering, charged.lingering_entries, charged.live), (amount(70, 0), 1, amount(0, 0)));
        assert!(ledger.charge(amount(31, 0)).is_err());
        drop(charge);
        assert_eq!(ledger.charged(), Charged::default());
        assert_eq!(ledger.take_reclaim_delays().len(), 1);
    }
}
