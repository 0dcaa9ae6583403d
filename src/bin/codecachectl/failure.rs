//! What a command cannot do, why, what to do about it, and the exit code of that.

use std::{fmt, process::ExitCode};

use codecached::client::ClientError;
use tonic::Code;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Refused = 1,
    Misuse = 2,
    NotFound = 3,
    Trapped = 4,
    Unreachable = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// A command that did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    hint: Option<&'static str>,
    pub(crate) exit: Exit,
}

impl Failure {
    /// The user asked for something that cannot be.
    pub(crate) fn misuse(text: impl Into<String>) -> Self {
        Self { text: text.into(), hint: None, exit: Exit::Misuse }
    }

    /// This machine refused something; the daemon has no part in it.
    pub(crate) fn local(text: impl Into<String>) -> Self {
        Self { text: text.into(), hint: None, exit: Exit::Misuse }
    }

    /// The daemon answered something that cannot be.
    pub(crate) fn answer(text: impl Into<String>) -> Self {
        Self { text: text.into(), hint: None, exit: Exit::Refused }
    }

    /// An entry has no such function, as the client found by itself.
    pub(crate) fn no_symbol(symbol: &str, key: &str) -> Self {
        Self { text: format!("{key:?} has no {symbol:?}"), hint: hint("SYMBOL_NOT_FOUND"), exit: Exit::NotFound }
    }

    /// `doing` fits "cannot {doing}".
    pub(crate) fn client(doing: &str, error: ClientError) -> Self {
        Self { text: format!("cannot {doing}: {error}"), hint: hint(error.reason()), exit: exit(&error) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}", self.text)?;
        self.hint.map_or(Ok(()), |hint| write!(to, "\n  hint: {hint}"))
    }
}

fn exit(error: &ClientError) -> Exit {
    match error {
        ClientError::Address { .. } => Exit::Misuse,
        _ if error.is_unavailable() || error.code() == Some(Code::DeadlineExceeded) => Exit::Unreachable,
        _ if error.is_not_found() => Exit::NotFound,
        _ => Exit::Refused,
    }
}

/// What helps against a reason of the daemon.
fn hint(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "NO_CONNECTION" => {
            "--server unix:PATH|http://HOST:PORT says where the daemon is; `codecached serve` starts one"
        }
        "KEY_OCCUPIED" => "--replace lets these bytes take the place of the others",
        "ENTRY_NOT_FOUND" => "`codecachectl list` shows what is there; an entry may have been evicted to make room",
        "SYMBOL_NOT_FOUND" => "`codecachectl lookup KEY --symbols` shows the functions of the entry",
        "BLOB_TOO_LARGE" => {
            "`codecachectl capabilities` shows the limits; server.stream_max_bytes and code.image_max_bytes of the daemon"
        }
        "MALFORMED_OBJECT" => "give what `cc -c` or `ld -r` makes: an ELF64 relocatable object of this architecture",
        "UNSUPPORTED_RELOCATION" => "compile with `cc -O2 -fPIC -c`",
        "UNRESOLVED_SYMBOL" => {
            "install what defines them along with it (`install KEY a.o b.o`, or an archive); `capabilities` shows what is offered"
        }
        "FORBIDDEN_INSTRUCTION" => {
            "code by %gs or beyond its thread's block is never taken, other such code not where code.screen refuses it; `objdump -d` shows what is around it"
        }
        "BUDGET_EXHAUSTED" => "the entry alone is larger than the budget: cache.budget_bytes of the daemon",
        "ALL_ENTRIES_PINNED" => "everything in the cache is running now: try again, or give the daemon more budget",
        "SERVER_BUSY" => {
            "try again later; server.requests_in_flight_max and server.streams_max bound what the daemon takes at once"
        }
        "ARENA_FRAGMENTED" => {
            "free memory is in pieces that are too small: evict, or give the daemon more budget, or arena.low_bytes where it is below 2 GiB"
        }
        "ENTRY_QUARANTINED" => "`codecachectl unquarantine KEY` lifts it, and so does `install --replace`",
        "ENTRY_STUCK" | "EXECUTORS_STUCK" => {
            "code that cannot be stopped holds it: `codecachectl stats` shows how many are stuck; a new start of the daemon frees them"
        }
        "EXECUTION_NOT_FOUND" => "`codecachectl executions` shows what runs and waits",
        "TARGET_MISMATCH" => {
            "`codecachectl capabilities` shows the architecture of the daemon and the features of its processor"
        }
        "EXECUTORS_SATURATED" => {
            "try again later; exec.executors, exec.queue_max and exec.queue_namespace_max of the daemon bound what runs at once"
        }
        "DEADLINE_EXCEEDED" | "DEADLINE_BEFORE_START" | "DEADLINE_DURING_CALL" => "--timeout gives it longer",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, reason: &str) -> ClientError {
        ClientError::Status { code, reason: reason.into(), message: "m".into(), retry_delay: None }
    }

    #[test]
    fn each_kind_of_error_has_its_exit_code() {
        let transport = ClientError::Transport { address: "unix:x".into(), cause: "c".into(), advice: "a" };
        let cases = [
            (ClientError::Address { address: "x".into() }, Exit::Misuse),
            (transport, Exit::Unreachable),
            (status(Code::Unavailable, "SHUTTING_DOWN"), Exit::Unreachable),
            (status(Code::DeadlineExceeded, "DEADLINE_DURING_CALL"), Exit::Unreachable),
            (status(Code::NotFound, "STALE_HANDLE"), Exit::NotFound),
            (status(Code::AlreadyExists, "KEY_OCCUPIED"), Exit::Refused),
        ];
        for (error, expected) in cases {
            assert_eq!(Failure::client("try", error.clone()).exit, expected, "{error}");
        }
    }

    #[test]
    fn the_text_names_what_was_tried_the_reason_and_a_hint() {
        let failure = Failure::client("install \"k\"", status(Code::AlreadyExists, "KEY_OCCUPIED")).to_string();
        assert!(failure.starts_with("cannot install \"k\": KEY_OCCUPIED: m\n  hint: --replace"), "{failure}");
    }
}
