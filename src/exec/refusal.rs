//! Why a pool does not take calls.

use super::call::{ArgError, Call, Held};
use super::series::SeriesCall;

/// Why a call was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many calls wait as may.
    #[error("all executors are busy and {queue_max} calls wait already")]
    Saturated {
        /// Calls that may wait.
        queue_max: usize,
    },
    /// As many calls of the tenant wait as may.
    #[error("{queue_tenant_max} calls of this tenant wait already")]
    TenantSaturated {
        /// Calls of one tenant that may wait.
        queue_tenant_max: usize,
    },
    /// The pool is ending.
    #[error("no new calls are taken")]
    Draining,
    /// Code that cannot be stopped holds what the call needs.
    #[error("a call that cannot be stopped holds {}", match .0 { Held::Data => "its writable data", Held::Executors => "every executor" })]
    Stuck(Held),
    /// The callee is quarantined.
    #[error("it is quarantined")]
    Quarantined,
    /// The arguments cannot be passed.
    #[error(transparent)]
    Args(#[from] ArgError),
    /// The entry is no address of the callee.
    #[error("the entry {entry:#x} is outside of the code")]
    Entry {
        /// The address.
        entry: u64,
    },
}

/// A call that was not taken, given back.
#[derive(Debug)]
pub struct Rejected<C> {
    /// Why.
    pub refusal: Refusal,
    /// The call as it was submitted.
    pub call: Box<Call<C>>,
}

/// A series that was not taken, given back.
#[derive(Debug)]
pub struct RejectedSeries<C> {
    /// Why.
    pub refusal: Refusal,
    /// The function as it was submitted.
    pub call: Box<Call<C>>,
    /// The calls.
    pub calls: Vec<SeriesCall>,
}
