//! The voice of the demo.

use std::io::{self, IsTerminal, Write};

/// Prints to standard output, in colours if a person reads there. Nobody listening is no reason to stop.
pub(super) struct Narrator {
    colours: bool,
    chapters: u32,
}

impl Narrator {
    pub(super) fn new() -> Self {
        let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colours, chapters: 0 }
    }

    /// A new part of the story.
    pub(super) fn chapter(&mut self, title: &str) {
        self.chapters += 1;
        let title = self.painted("1", &format!("{}. {title}", self.chapters));
        print(&format!("\n{title}"));
    }

    /// What is done, or why.
    pub(super) fn say(&self, text: &str) {
        print(&format!("   {text}"));
    }

    /// What came of it, after it was checked.
    pub(super) fn see(&self, text: &str) {
        print(&format!("   {} {text}", self.painted("32", "✓")));
    }

    /// Something as it is, such as code.
    pub(super) fn show(&self, text: &str) {
        text.lines().for_each(|line| print(&format!("     {}", self.painted("2", line))));
    }

    pub(super) fn end(&self) {
        print("\nThe daemon got SIGTERM, drained, and exited with 0. Everything did what it should.");
    }

    pub(super) fn failed(&self, error: &super::DemoError) {
        // The reason is for those who look at errors, wherever standard output goes.
        let _ = writeln!(io::stderr(), "\ncodecached demo failed: {error}");
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn print(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}
