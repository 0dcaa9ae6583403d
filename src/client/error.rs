//! What can go wrong with a call, as its caller needs to know it.

use std::{error::Error, time::Duration};

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use super::Address;

/// Message of a deadline that passed on this side of the connection.
pub(super) const NO_ANSWER_IN_TIME: &str = "the daemon did not answer in time";

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The address has neither of the two forms.
    #[error("{address:?} is no address: give unix:PATH or http://HOST:PORT")]
    Address {
        /// As it was given.
        address: String,
    },
    /// The daemon cannot be reached, or the connection broke.
    #[error("no connection to {address}: {cause}; {advice}")]
    Transport {
        /// Where to.
        address: String,
        /// What the operating system or HTTP/2 said.
        cause: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The daemon answered with an error, or the deadline passed.
    #[error("{reason}: {message}")]
    Status {
        /// Code of gRPC.
        code: Code,
        /// Reason of google.rpc.ErrorInfo such as `KEY_OCCUPIED`; the name of `code` where the answer has none.
        reason: String,
        /// In words.
        message: String,
        /// How long to wait before the next try, if the daemon said so.
        retry_delay: Option<Duration>,
    },
}

impl ClientError {
    /// The reason of the daemon, or `BAD_ADDRESS` or `NO_CONNECTION`.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Address { .. } => "BAD_ADDRESS",
            Self::Transport { .. } => "NO_CONNECTION",
            Self::Status { reason, .. } => reason,
        }
    }

    /// The code of gRPC; none if the daemon did not answer.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Address { .. } | Self::Transport { .. } => None,
            Self::Status { code, .. } => Some(*code),
        }
    }

    /// How long to wait before the next try, if the daemon said so.
    #[must_use]
    pub fn retry_delay(&self) -> Option<Duration> {
        match self {
            Self::Address { .. } | Self::Transport { .. } => None,
            Self::Status { retry_delay, .. } => *retry_delay,
        }
    }

    /// True for an absent entry, an absent symbol and a stale handle.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// True if the daemon cannot be reached or does not take requests now.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Transport { .. } | Self::Status { code: Code::Unavailable, .. })
    }

    pub(super) fn transport(address: &Address, error: &(dyn Error + 'static)) -> Self {
        Self::Transport { address: address.to_string(), cause: chain(error), advice: advice(error) }
    }

    /// `timeout` is what the call was given.
    pub(super) fn from_status(address: &Address, status: &Status, timeout: Option<Duration>) -> Self {
        // A status that came from the daemon has no source; one that was made up on this side has.
        if let Some(error) = status.source()
            && causes(error).all(|cause| !cause.is::<TimeoutExpired>())
        {
            return Self::transport(address, error);
        }
        let details = status.get_error_details();
        let code = effective_code(status);
        Self::Status {
            code,
            reason: details.error_info().map_or_else(|| code_name(code).to_owned(), |info| info.reason.clone()),
            message: match timeout {
                Some(timeout) if code != status.code() || status.message() == NO_ANSWER_IN_TIME => {
                    format!("{NO_ANSWER_IN_TIME} ({timeout:?})")
                }
                _ => status.message().to_owned(),
            },
            retry_delay: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

/// tonic reports a passed deadline as CANCELLED, on both sides of the connection; nothing here cancels otherwise.
fn effective_code(status: &Status) -> Code {
    let expired = status.code() == Code::Cancelled && status.message() == TimeoutExpired(()).to_string();
    if expired { Code::DeadlineExceeded } else { status.code() }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let this = next?;
        next = this.source();
        Some(this)
    })
}

/// All causes in one line; layers that repeat the text of the layer below are left out.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error).map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn advice(error: &(dyn Error + 'static)) -> &'static str {
    use std::io::ErrorKind;
    let kind = causes(error).find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    match kind {
        Some(ErrorKind::PermissionDenied) => "this user may not open the socket",
        Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused) => "is the daemon running, and listening there?",
        _ => "see the log of the daemon",
    }
}

/// The name of a code as gRPC spells it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
