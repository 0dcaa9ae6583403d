/// Name and bytes of a constant that is copied into images.
type Constant = (&'static str, Box<[u8]>);

/// The host functions that objects may import: name -> address. And how they are called by code with a thread pointer
/// of its own, and constants.
#[derive(Debug, Clone, Default)]
pub struct ImportTable {
    /// Sorted by name, unique.
    functions: Box<[(&'static str, u64)]>,
    /// `None`: no code can have one.
    thread_switch: Option<ThreadSwitch>,
    /// Few.
    constants: Box<[Constant]>,
}

/// How host functions are called by code that has a thread pointer of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadSwitch {
    /// Address of what calls the function in `%r11` with the host's thread pointer. Takes `%r10`, too.
    pub address: u64,
    /// Addresses of the functions that do without, and must be called as they are.
    pub direct: Box<[u64]>,
}

impl ThreadSwitch {
    pub(super) fn is_direct(&self, function: u64) -> bool {
        self.direct.contains(&function)
    }
}

/// What is offered beside functions to code that has a thread pointer of its own.
const OF_THREAD: [&str; 2] = ["__errno_location", "errno"];

impl ImportTable {
    /// A table of `functions`. Of two with one name the first is kept.
    pub fn new(functions: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|&(name, _)| name);
        functions.dedup_by_key(|&mut (name, _)| name);
        ImportTable { functions: functions.into(), ..ImportTable::default() }
    }

    /// The same table, for a host where code can have a thread pointer of its own.
    pub fn with_thread_switch(self, switch: Option<ThreadSwitch>) -> Self {
        ImportTable { thread_switch: switch, ..self }
    }

    /// The same table with constants, of which each image that needs one gets a copy: name and bytes.
    pub fn with_constants(self, constants: impl IntoIterator<Item = Constant>) -> Self {
        ImportTable { constants: constants.into_iter().collect(), ..self }
    }

    /// The names of these constants.
    pub fn constant_names(&self) -> impl Iterator<Item = &'static str> {
        self.constants.iter().map(|&(name, _)| name)
    }

    /// The bytes of a constant, if it is offered.
    pub(super) fn constant(&self, name: &[u8]) -> Option<&[u8]> {
        self.constants.iter().find(|(offered, _)| offered.as_bytes() == name).map(|(_, bytes)| &**bytes)
    }

    /// Names that are offered beside functions: `errno`, and what gives its address.
    pub fn thread_local_names(&self) -> impl Iterator<Item = &'static str> {
        OF_THREAD.into_iter().filter(|_| self.thread_switch.is_some())
    }

    /// How code with a thread pointer of its own calls functions, if there can be such code.
    pub fn thread_switch(&self) -> Option<&ThreadSwitch> {
        self.thread_switch.as_ref()
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

    /// The name that `name` was perhaps meant to be: at most two letters more, less or other, or two neighbours
    /// exchanged, and fewer than a third of its letters. Of equally near ones it is one with the same letters, then
    /// the first in name order. `None` for a name that is offered itself.
    pub fn nearest(&self, name: &str) -> Option<&'static str> {
        let near_max = DISTANCE_MAX.min(name.len().saturating_sub(1) / 3);
        let near = |offered: &'static str| {
            let edits = distance(name.as_bytes(), offered.as_bytes(), near_max)?;
            Some((edits, letters(name) != letters(offered), offered))
        };
        let (edits, _, offered) = self.names().filter_map(near).min()?;
        (edits > 0).then_some(offered)
    }
}

fn letters(name: &str) -> Vec<u8> {
    let mut letters = name.as_bytes().to_vec();
    letters.sort_unstable();
    letters
}

/// Edits beyond which a name is another one.
const DISTANCE_MAX: usize = 2;

/// Edits between two names (optimal string alignment); `None` if there are more than `max`.
fn distance(left: &[u8], right: &[u8], max: usize) -> Option<usize> {
    if left.len().abs_diff(right.len()) > max {
        return None;
    }
    // Rows of the table: the one before the last, the last, and the one in work.
    let mut before = vec![0; right.len() + 1];
    let mut last: Vec<usize> = (0..=right.len()).collect();
    let mut row = before.clone();
    for (i, a) in left.iter().enumerate() {
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            row[j + 1] = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        // No later row has a smaller number than two rows in succession have.
        if row.iter().chain(&last).all(|edits| *edits > max) {
            return None;
        }
        std::mem::swap(&mut before, &mut last);
        std::mem::swap(&mut last, &mut row);
    }
    Some(last[right.len()]).filter(|edits| *edits <= max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nearest(name: &str) -> Option<&'static str> {
        let names = ["memcpy", "memcmp", "memset", "sin", "sinf", "strlen", "__memcpy_chk"];
        ImportTable::new(names.map(|name| (name, 1))).nearest(name)
    }

    #[test]
    fn a_slip_is_near_to_the_name_that_was_meant() {
        for (name, meant) in [
            ("memcyp", "memcpy"),
            ("memcy", "memcpy"),
            ("mmcpy", "memcpy"),
            ("memcppy", "memcpy"),
            ("memcqy", "memcpy"),
            ("Strlen", "strlen"),
            ("strnlen", "strlen"),
            ("memcpy_chk", "__memcpy_chk"),
            ("sinq", "sin"),
        ] {
            assert_eq!(nearest(name), Some(meant), "{name}");
        }
    }

    #[test]
    fn another_name_is_not_near() {
        // Two edits of six letters are a third of them, one of three is too.
        for name in ["", "s", "memcpy", "sun", "mymcqy", "memory", "inflate", "memcpymemcpymemcpy", &"m".repeat(1000)] {
            assert_eq!(nearest(name), None, "{name}");
        }
    }

    #[test]
    fn of_equally_near_names_that_with_the_same_letters_or_else_the_first_is_meant() {
        assert_eq!(nearest("memcyp"), Some("memcpy"), "though memcmp is one letter away");
        assert_eq!(nearest("memcpp"), Some("memcmp"));
        assert_eq!(nearest("memcpz"), Some("memcpy"));
    }

    #[test]
    fn the_early_end_of_the_search_changes_no_distance() {
        let words: Vec<Vec<u8>> =
            (0..256_u32).map(|n| (0..4).map(|digit| (n >> (2 * digit)) as u8 & 3).collect()).collect();
        for (a, b) in words.iter().flat_map(|a| words.iter().map(move |b| (a, b))) {
            let whole = distance(a, b, 4).unwrap();
            assert_eq!(distance(b, a, 4), Some(whole), "{a:?} {b:?}");
            for max in 0..3 {
                assert_eq!(distance(a, b, max), (whole <= max).then_some(whole), "{a:?} {b:?} {max}");
            }
        }
    }
}
