//! Why a request is refused, as the table of errors says it.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt};

use crate::{
    cache::NameError,
    code::{self, CodeError},
    exec::{ArgError, BatchError, Held, Refusal},
};

/// Who answers, in every ErrorInfo.
pub const DOMAIN: &str = "codecached";
/// Bytes of details at most: HTTP/2 peers commonly bound all headers of an answer by 8 KiB, and base64 adds a third.
const DETAILS_MAX_BYTES: usize = 2048;
/// When a refusal for lack of room or executors is worth a retry: about as long as a few calls take.
const RETRY_SOON: Duration = Duration::from_millis(20);

/// The reason in ErrorInfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the contract; the API document says what each means")]
pub enum Reason {
    InvalidField,
    DigestMismatch,
    BlobTooLarge,
    MalformedObject,
    UnsupportedRelocation,
    UnresolvedSymbol,
    ForbiddenInstruction,
    TargetMismatch,
    EntryNotFound,
    SymbolNotFound,
    StaleHandle,
    KeyOccupied,
    DependencyCycle,
    BudgetExhausted,
    AllEntriesPinned,
    ArenaFragmented,
    ExecutionNotFound,
    ExecutorsSaturated,
    ExecutorsStuck,
    EntryStuck,
    EntryQuarantined,
    ServerBusy,
    DeadlineBeforeStart,
    DeadlineDuringCall,
    ShuttingDown,
    ExecMemoryDenied,
    Internal,
}

impl Reason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// The gRPC code.
    pub fn code(self) -> Code {
        self.row().0
    }

    fn row(self) -> (Code, &'static str) {
        match self {
            Self::InvalidField => (Code::InvalidArgument, "INVALID_FIELD"),
            Self::DigestMismatch => (Code::InvalidArgument, "DIGEST_MISMATCH"),
            Self::BlobTooLarge => (Code::InvalidArgument, "BLOB_TOO_LARGE"),
            Self::MalformedObject => (Code::InvalidArgument, "MALFORMED_OBJECT"),
            Self::UnsupportedRelocation => (Code::InvalidArgument, "UNSUPPORTED_RELOCATION"),
            Self::UnresolvedSymbol => (Code::InvalidArgument, "UNRESOLVED_SYMBOL"),
            Self::ForbiddenInstruction => (Code::InvalidArgument, "FORBIDDEN_INSTRUCTION"),
            Self::TargetMismatch => (Code::FailedPrecondition, "TARGET_MISMATCH"),
            Self::EntryNotFound => (Code::NotFound, "ENTRY_NOT_FOUND"),
            Self::SymbolNotFound => (Code::NotFound, "SYMBOL_NOT_FOUND"),
            Self::StaleHandle => (Code::NotFound, "STALE_HANDLE"),
            Self::KeyOccupied => (Code::AlreadyExists, "KEY_OCCUPIED"),
            Self::DependencyCycle => (Code::FailedPrecondition, "DEPENDENCY_CYCLE"),
            Self::BudgetExhausted => (Code::ResourceExhausted, "BUDGET_EXHAUSTED"),
            Self::AllEntriesPinned => (Code::ResourceExhausted, "ALL_ENTRIES_PINNED"),
            Self::ArenaFragmented => (Code::ResourceExhausted, "ARENA_FRAGMENTED"),
            Self::ExecutionNotFound => (Code::NotFound, "EXECUTION_NOT_FOUND"),
            Self::ExecutorsSaturated => (Code::ResourceExhausted, "EXECUTORS_SATURATED"),
            Self::ExecutorsStuck => (Code::Unavailable, "EXECUTORS_STUCK"),
            Self::EntryStuck => (Code::FailedPrecondition, "ENTRY_STUCK"),
            Self::EntryQuarantined => (Code::FailedPrecondition, "ENTRY_QUARANTINED"),
            Self::ServerBusy => (Code::ResourceExhausted, "SERVER_BUSY"),
            Self::DeadlineBeforeStart => (Code::DeadlineExceeded, "DEADLINE_BEFORE_START"),
            Self::DeadlineDuringCall => (Code::DeadlineExceeded, "DEADLINE_DURING_CALL"),
            Self::ShuttingDown => (Code::Unavailable, "SHUTTING_DOWN"),
            Self::ExecMemoryDenied => (Code::FailedPrecondition, "EXEC_MEMORY_DENIED"),
            Self::Internal => (Code::Internal, "INTERNAL"),
        }
    }
}

/// A request that is refused.
#[derive(Debug)]
pub struct Failure {
    /// For programs.
    pub reason: Reason,
    /// For people: what was wrong, where, and what to do.
    pub message: String,
    metadata: HashMap<String, String>,
    detail: Option<Detail>,
}

#[derive(Debug)]
enum Detail {
    Field(&'static str),
    Resource { kind: &'static str, name: String },
    Quota(&'static str),
    Retry(Duration),
}

impl Failure {
    /// Without a detail beside the ErrorInfo.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: HashMap::new(), detail: None }
    }

    /// A field that cannot be taken.
    pub fn field(field: &'static str, message: impl Into<String>) -> Self {
        let message = format!("{field}: {}", message.into());
        Self { detail: Some(Detail::Field(field)), ..Self::new(Reason::InvalidField, message) }
    }

    /// Something that is not there.
    pub fn absent(reason: Reason, kind: &'static str, name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { detail: Some(Detail::Resource { kind, name: name.into() }), ..Self::new(reason, message) }
    }

    /// Something that may work when tried again soon.
    pub fn busy(reason: Reason, message: impl Into<String>) -> Self {
        Self { detail: Some(Detail::Retry(RETRY_SOON)), ..Self::new(reason, message) }
    }

    /// Something of which there is not enough.
    pub(super) fn quota(reason: Reason, subject: &'static str, message: impl Into<String>) -> Self {
        Self { detail: Some(Detail::Quota(subject)), ..Self::new(reason, message) }
    }

    /// With a fact for programs.
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    fn details(&self, full: bool) -> ErrorDetails {
        let metadata = if full { self.metadata.clone() } else { HashMap::new() };
        let mut details = ErrorDetails::with_error_info(self.reason.as_str(), DOMAIN, metadata);
        match &self.detail {
            Some(Detail::Field(field)) if full => {
                details.set_bad_request(vec![FieldViolation::new(*field, self.message.as_str())]);
            }
            Some(Detail::Field(_)) | None => {}
            Some(Detail::Resource { kind, name }) => {
                details.set_resource_info(*kind, name.as_str(), "", "");
            }
            Some(Detail::Quota(subject)) => {
                details.set_quota_failure(vec![QuotaViolation::new(*subject, self.message.as_str())]);
                details.set_retry_info(Some(RETRY_SOON));
            }
            Some(Detail::Retry(after)) => {
                details.set_retry_info(Some(*after));
            }
        }
        details
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let status = |full| Self::with_error_details(failure.reason.code(), &failure.message, failure.details(full));
        let full = status(true);
        if full.details().len() + failure.message.len() <= DETAILS_MAX_BYTES { full } else { status(false) }
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Namespace => Self::field("namespace", error.to_string()),
            NameError::Key(_) => Self::field("key", error.to_string()),
        }
    }
}

impl From<ArgError> for Failure {
    fn from(error: ArgError) -> Self {
        Self::field("arguments", error.to_string())
    }
}

impl From<Held> for Failure {
    fn from(held: Held) -> Self {
        match held {
            Held::Data => Self::new(
                Reason::EntryStuck,
                "a call that cannot be stopped keeps the writable data of this entry; install it again with replace, which \
                 gives it data of its own",
            ),
            Held::Executors => Self::busy(
                Reason::ExecutorsStuck,
                "calls that cannot be stopped keep every executor, and no more may be replaced (exec.stuck_max); restart \
                 the daemon",
            ),
        }
    }
}

impl From<BatchError> for Failure {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Columns(error) => Self::field("columns", error.to_string()),
            BatchError::TooManyRows { .. } => Self::field("rows", error.to_string()),
            BatchError::Length { column, .. } => Self::field("columns", error.to_string()).with("column", column),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Saturated { queue_max } => {
                Self::busy(Reason::ExecutorsSaturated, format!("{message}; try again soon"))
                    .with("bound", "exec.queue_max")
                    .with("max", queue_max)
            }
            Refusal::TenantSaturated { queue_tenant_max } => {
                let message = format!("{queue_tenant_max} calls of this namespace wait already; try again soon");
                Self::busy(Reason::ExecutorsSaturated, message)
                    .with("bound", "exec.queue_namespace_max")
                    .with("max", queue_tenant_max)
            }
            Refusal::Stuck(held) => held.into(),
            Refusal::Quarantined => Self::new(Reason::EntryQuarantined, "the entry is quarantined"),
            Refusal::Draining => Self::busy(Reason::ShuttingDown, message),
            Refusal::Args(error) => error.into(),
            Refusal::Entry { .. } => Self::new(Reason::Internal, message),
        }
    }
}

impl From<CodeError> for Failure {
    fn from(error: CodeError) -> Self {
        let reason = match error.reason() {
            code::Reason::MalformedObject => Reason::MalformedObject,
            code::Reason::UnsupportedRelocation => Reason::UnsupportedRelocation,
            code::Reason::UnresolvedSymbol => Reason::UnresolvedSymbol,
            code::Reason::ForbiddenInstruction => Reason::ForbiddenInstruction,
            code::Reason::TargetMismatch => Reason::TargetMismatch,
            code::Reason::BlobTooLarge => Reason::BlobTooLarge,
            code::Reason::InvalidField => return Self::field("flat_entries", error.to_string()),
        };
        let mut failure = Self::new(reason, error.to_string());
        if let Some(at) = error.location() {
            let facts = [
                ("object", &at.object),
                ("section", &at.section),
                ("symbol", &at.symbol),
                ("offset_bytes", &at.offset_bytes.map(|it| it.to_string())),
            ];
            for (key, value) in facts {
                if let Some(value) = value {
                    failure = failure.with(key, value);
                }
            }
        }
        failure
    }
}
