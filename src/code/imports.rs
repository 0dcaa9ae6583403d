/// The host functions that objects may import: name -> address.
#[derive(Debug, Clone, Default)]
pub struct ImportTable {
    /// Sorted by name, unique.
    functions: Box<[(&'static str, u64)]>,
}

impl ImportTable {
    /// A table of `functions`. Of two with one name the first is kept.
    pub fn new(functions: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|&(name, _)| name);
        functions.dedup_by_key(|&mut (name, _)| name);
        ImportTable { functions: functions.into() }
    }

    /// The address of the function `name`, if it is offered.
    pub fn get(&self, name: &str) -> Option<u64> {
        let index = self.functions.binary_search_by_key(&name, |&(name, _)| name).ok()?;
        Some(self.functions[index].1)
    }

    /// The names that are offered, in name order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &'static str> {
        self.functions.iter().map(|&(name, _)| name)
    }
}
