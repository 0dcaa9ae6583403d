//! How far an upload is, on one line of a terminal.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::units;

/// Columns of the bar.
const BAR_COLUMNS: u64 = 30;
/// Columns of the key, so that the line stays one line.
const KEY_COLUMNS: usize = 24;
/// Time between two pictures: a person sees no more.
const INTERVAL: Duration = Duration::from_millis(100);
/// Back to the first column, and nothing to the right of it.
const CLEAR_LINE: &str = "\r\x1b[K";

/// A bar on standard error; nothing if that is no terminal, or for an upload that is over at once.
#[derive(Clone)]
pub(crate) struct Progress {
    key: String,
    total_bytes: u64,
    is_wanted: bool,
    /// When the next picture is due, and whether there has been one.
    shown: Arc<Mutex<(Instant, bool)>>,
}

impl Progress {
    pub(crate) fn new(key: &str, total_bytes: u64, is_wanted: bool) -> Self {
        let is_wanted = is_wanted && io::stderr().is_terminal();
        let key = key.escape_debug().take(KEY_COLUMNS).collect();
        Self { key, total_bytes, is_wanted, shown: Arc::new(Mutex::new((Instant::now() + INTERVAL, false))) }
    }

    /// What the client is to call with the bytes that went.
    pub(crate) fn callback(&self) -> impl Fn(u64) + Send + Sync + 'static {
        let progress = self.clone();
        move |sent_bytes| progress.show(sent_bytes)
    }

    /// Leaves the line as it was.
    pub(crate) fn clear(&self) {
        if self.shown.lock().unwrap_or_else(PoisonError::into_inner).1 {
            // A bar is not worth a failure, here and below.
            let _ = write!(io::stderr(), "{CLEAR_LINE}");
        }
    }

    fn show(&self, sent_bytes: u64) {
        if !self.is_wanted {
            return;
        }
        let now = Instant::now();
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= shown.0 {
            *shown = (now + INTERVAL, true);
            let _ = write!(io::stderr(), "{CLEAR_LINE}{}", line(&self.key, sent_bytes, self.total_bytes));
        }
    }
}

fn line(key: &str, sent_bytes: u64, total_bytes: u64) -> String {
    let part = sent_bytes.min(total_bytes) as f64 / total_bytes.max(1) as f64;
    let full = (part * BAR_COLUMNS as f64) as usize;
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(BAR_COLUMNS as usize - full));
    let (sent, total) = (units::bytes(sent_bytes), units::bytes(total_bytes));
    format!("{key} [{bar}] {:.0} %, {sent} of {total}", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_full_as_what_went() {
        let bar = |full: usize| format!("{}{}", "#".repeat(full), ".".repeat(30 - full));
        assert_eq!(line("k", 0, 0), format!("k [{}] 0 %, 0 B of 0 B", bar(0)));
        assert_eq!(line("k", 512, 1024), format!("k [{}] 50 %, 512 B of 1 KiB", bar(15)));
        assert_eq!(line("k", 1024, 1024), format!("k [{}] 100 %, 1 KiB of 1 KiB", bar(30)));
    }

    #[test]
    fn nothing_is_shown_to_a_program() {
        let progress = Progress::new("k", 10, false);
        progress.shown.lock().unwrap().0 = Instant::now();
        progress.callback()(5);
        assert!(!progress.shown.lock().unwrap().1);
    }
}
