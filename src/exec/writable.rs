//! Data that lives across calls: what of it a call may touch.

/// Writable data that lives across calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writable {
    /// Names the data: callees with one id share it.
    pub id: u64,
    /// Calls may overlap. Must be the same for all callees of one id.
    pub reentrant: bool,
}

/// All such data that a call may touch: its callee's own, and that of what the callee is linked against. Up to one is
/// held without memory of its own, as most calls have no more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writables {
    first: Option<Writable>,
    rest: Box<[Writable]>,
}

impl Writables {
    /// Each of `all` once.
    pub fn new(all: impl IntoIterator<Item = Writable>) -> Self {
        let mut all = all.into_iter();
        Self { first: all.next(), rest: all.collect() }
    }

    /// All of it.
    pub fn iter(&self) -> impl Iterator<Item = &Writable> {
        self.first.iter().chain(&self.rest)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

impl From<Option<Writable>> for Writables {
    fn from(first: Option<Writable>) -> Self {
        Self { first, rest: Box::default() }
    }
}
