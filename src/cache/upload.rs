//! Bytes that are charged before they come.

use super::{
    Cache, InstallError, Victim,
    ledger::{Amount, Charge},
    residents::Reason,
};

/// An upload under way: what it said that it would bring is charged for as long as this lives.
#[derive(Debug)]
pub struct Upload {
    charge: Charge,
    victims: Vec<Victim>,
}

impl Upload {
    /// What is charged.
    pub fn bytes(&self) -> u64 {
        self.charge.amount().uploads_bytes
    }

    /// Entries that went to make room.
    pub fn victims(&self) -> &[Victim] {
        &self.victims
    }
}

impl Cache {
    /// Charges the bytes of an upload before any of them is there, evicting the least recently used entries until they
    /// fit. If they cannot, nothing is evicted.
    ///
    /// # Errors
    /// [`InstallError::LargerThanBudget`] and [`InstallError::AllPinned`].
    pub fn upload(&self, bytes: u64) -> Result<Upload, InstallError> {
        self.hold_to_budget(bytes)?;
        self.free_kept_for(bytes);
        let amount = Amount { uploads_bytes: bytes, ..Amount::default() };
        let (mut evicted, mut victims) = (Vec::new(), Vec::new());
        let now = (self.clock)();
        let charged = self.charge_evicting(&mut self.residents(), now, amount, |_| Reason::Capacity, &mut evicted);
        let mut charge = charged?;
        self.settle(&mut charge, amount, evicted, &mut victims);
        Ok(Upload { charge, victims })
    }
}
