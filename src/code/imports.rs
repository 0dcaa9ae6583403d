/// The host functions that objects may import: name -> address. And the variables of the thread that runs them.
#[derive(Debug, Clone, Default)]
pub struct ImportTable {
    /// Sorted by name, unique.
    functions: Box<[(&'static str, u64)]>,
    /// Few.
    thread_locals: Box<[(&'static str, i64)]>,
}

impl ImportTable {
    /// A table of `functions`. Of two with one name the first is kept.
    pub fn new(functions: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|&(name, _)| name);
        functions.dedup_by_key(|&mut (name, _)| name);
        ImportTable { functions: functions.into(), thread_locals: Box::default() }
    }

    /// The same table with variables of the thread: each name with its distance from the thread pointer, in bytes,
    /// which is the same in all threads that run code.
    pub fn with_thread_locals(self, variables: impl IntoIterator<Item = (&'static str, i64)>) -> Self {
        ImportTable { thread_locals: variables.into_iter().collect(), ..self }
    }

    /// The names of these variables.
    pub fn thread_local_names(&self) -> impl Iterator<Item = &'static str> {
        self.thread_locals.iter().map(|&(name, _)| name)
    }

    /// The distance of a thread's variable from the thread pointer, if it is offered.
    pub(super) fn thread_local(&self, name: &str) -> Option<i64> {
        self.thread_locals.iter().find(|&&(offered, _)| offered == name).map(|&(_, distance)| distance)
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
