//! The values of labels: closed lists, so that no input can make a new series.

/// An enum with its label values: `ALL` in order, `label()`, and the discriminant as index.
macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

/// A closed list of label values.
pub trait Label: Copy + 'static {
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// As Prometheus shows it.
    fn label(self) -> &'static str;

    /// Place in [`Label::ALL`].
    fn index(self) -> usize;
}

labels! {
    /// What was called.
    Rpc {
        /// CodeCacheService/GetCapabilities
        GetCapabilities = "GetCapabilities",
        /// CodeCacheService/Install
        Install = "Install",
        /// CodeCacheService/InstallStream
        InstallStream = "InstallStream",
        /// CodeCacheService/Lookup
        Lookup = "Lookup",
        /// CodeCacheService/Evict
        Evict = "Evict",
        /// CodeCacheService/List
        List = "List",
        /// CodeCacheService/Disassemble
        Disassemble = "Disassemble",
        /// ExecutionService/Execute
        Execute = "Execute",
        /// ExecutionService/ExecuteBatch
        ExecuteBatch = "ExecuteBatch",
        /// ExecutionService/ExecuteStream
        ExecuteStream = "ExecuteStream",
        /// ExecutionService/ListExecutions
        ListExecutions = "ListExecutions",
        /// ExecutionService/CancelExecution
        CancelExecution = "CancelExecution",
        /// AdminService/GetStatus
        GetStatus = "GetStatus",
        /// AdminService/GetArenas
        GetArenas = "GetArenas",
        /// AdminService/LiftQuarantine
        LiftQuarantine = "LiftQuarantine",
        /// Health, reflection, and whatever does not exist.
        Other = "other",
    }
}

labels! {
    /// Status of an answer; the discriminants are those of gRPC.
    GrpcCode {
        /// 0
        Ok = "OK",
        /// 1
        Cancelled = "CANCELLED",
        /// 2, and every number that gRPC does not know
        Unknown = "UNKNOWN",
        /// 3
        InvalidArgument = "INVALID_ARGUMENT",
        /// 4
        DeadlineExceeded = "DEADLINE_EXCEEDED",
        /// 5
        NotFound = "NOT_FOUND",
        /// 6
        AlreadyExists = "ALREADY_EXISTS",
        /// 7
        PermissionDenied = "PERMISSION_DENIED",
        /// 8
        ResourceExhausted = "RESOURCE_EXHAUSTED",
        /// 9
        FailedPrecondition = "FAILED_PRECONDITION",
        /// 10
        Aborted = "ABORTED",
        /// 11
        OutOfRange = "OUT_OF_RANGE",
        /// 12
        Unimplemented = "UNIMPLEMENTED",
        /// 13
        Internal = "INTERNAL",
        /// 14
        Unavailable = "UNAVAILABLE",
        /// 15
        DataLoss = "DATA_LOSS",
        /// 16
        Unauthenticated = "UNAUTHENTICATED",
    }
}

labels! {
    /// How a lookup ended.
    LookupResult {
        /// There is such an entry.
        Hit = "hit",
        /// There is none.
        Miss = "miss",
    }
}

labels! {
    /// How an install ended.
    InstallResult {
        /// A new entry.
        Created = "created",
        /// The same bytes were there.
        Existed = "existed",
        /// Other bytes were there and had to go.
        Replaced = "replaced",
        /// Refused; see [`Rejection`].
        Rejected = "rejected",
    }
}

labels! {
    /// Why an install was refused, in the words of the API's error reasons.
    Rejection {
        /// A bad field or key.
        InvalidField = "INVALID_FIELD",
        /// The digest is not the blob's.
        DigestMismatch = "DIGEST_MISMATCH",
        /// The blob or its image is larger than the server ever takes.
        BlobTooLarge = "BLOB_TOO_LARGE",
        /// Not an object, or a broken one.
        MalformedObject = "MALFORMED_OBJECT",
        /// A relocation of a type that is not taken.
        UnsupportedRelocation = "UNSUPPORTED_RELOCATION",
        /// A symbol that nobody offers.
        UnresolvedSymbol = "UNRESOLVED_SYMBOL",
        /// An instruction that must not be installed.
        ForbiddenInstruction = "FORBIDDEN_INSTRUCTION",
        /// For another machine.
        TargetMismatch = "TARGET_MISMATCH",
        /// Other bytes under a live key.
        KeyOccupied = "KEY_OCCUPIED",
        /// More than the budget.
        BudgetExhausted = "BUDGET_EXHAUSTED",
        /// All that could make room runs.
        AllEntriesPinned = "ALL_ENTRIES_PINNED",
        /// Bytes suffice, contiguity lacks.
        ArenaFragmented = "ARENA_FRAGMENTED",
        /// Any other reason.
        Other = "other",
    }
}

labels! {
    /// A step of an install.
    InstallStage {
        /// The digest.
        Verify = "verify",
        /// Bytes to image, and its screening.
        Parse = "parse",
        /// Budget, victims and spans.
        Reserve = "reserve",
        /// Image to memory.
        Link = "link",
        /// Visible to all cores, and in the index.
        Publish = "publish",
    }
}

labels! {
    /// Form of a blob.
    BlobFormat {
        /// An ELF relocatable object.
        Elf = "elf",
        /// An archive of some.
        Archive = "archive",
        /// Position-independent code.
        Flat = "flat",
    }
}

labels! {
    /// How an execution ended.
    ExecutionOutcome {
        /// It returned.
        Returned = "returned",
        /// It trapped, for another reason than its time.
        Trapped = "trapped",
        /// Its CPU limit or wall cap passed.
        Timeout = "timeout",
        /// Its client went away, its deadline passed, or CancelExecution stopped it.
        Cancelled = "cancelled",
        /// It never began: no such entry, bad arguments, saturation.
        Rejected = "rejected",
    }
}

labels! {
    /// What ended an execution that did not return.
    TrapKind {
        /// Access to memory that is not there or not allowed.
        Segv = "segv",
        /// Access that the memory cannot answer.
        Bus = "bus",
        /// Invalid instruction.
        Ill = "ill",
        /// Arithmetic.
        Fpe = "fpe",
        /// Breakpoint or filling.
        Breakpoint = "breakpoint",
        /// Stack guard.
        StackOverflow = "stack_overflow",
        /// CPU limit or wall cap.
        Timeout = "timeout",
        /// The code gave up.
        Abort = "abort",
        /// A system call.
        Syscall = "syscall",
        /// CancelExecution.
        Cancelled = "cancelled",
        /// The worker process ended.
        Worker = "worker",
    }
}

labels! {
    /// Too many of what waited.
    QueueBound {
        /// Executions.
        All = "queue",
        /// Executions of one namespace.
        Namespace = "queue_namespace",
    }
}

labels! {
    /// What became of an execution that began on the thread of its request.
    InlineResult {
        /// It ended there.
        Ended = "ended",
        /// It took too long and ran again on an executor.
        Moved = "moved",
    }
}

labels! {
    /// Why an entry went.
    EvictionReason {
        /// To make room.
        Capacity = "capacity",
        /// A client asked.
        Requested = "requested",
        /// Other bytes came under its key.
        Replaced = "replaced",
    }
}

labels! {
    /// What memory is for.
    MemoryKind {
        /// Machine code.
        Code = "code",
        /// Read-only data.
        Rodata = "rodata",
        /// Writable data.
        Data = "data",
    }
}

labels! {
    /// What memory does.
    MemoryState {
        /// Owned by resident entries and by installs under way.
        Used = "used",
        /// Owned by evicted entries that still run.
        Lingering = "lingering",
        /// Committed, without owner.
        Free = "free",
        /// Address space.
        Reserved = "reserved",
    }
}

labels! {
    /// What an entry does.
    EntryState {
        /// Found by lookups.
        Resident = "resident",
        /// Evicted, still running.
        Lingering = "lingering",
    }
}

labels! {
    /// What the budget is charged for.
    BudgetComponent {
        /// Rounded spans of resident entries.
        Spans = "spans",
        /// Everything of evicted entries that still run.
        Lingering = "lingering",
        /// Metadata and link state.
        Metadata = "metadata",
        /// What uploads under way said that they would bring.
        Uploads = "uploads",
    }
}

labels! {
    /// What an executor does.
    ExecutorState {
        /// Waits.
        Idle = "idle",
        /// Runs a call.
        Running = "running",
        /// Runs a call that cannot be stopped; another one has its place, or is missing.
        Stuck = "stuck",
    }
}

impl Rpc {
    /// From the path of a request, such as "/codecache.v1.CodeCacheService/Lookup".
    pub fn from_path(path: &str) -> Self {
        let Some((service, method)) = path.strip_prefix("/codecache.v1.").and_then(|rest| rest.split_once('/')) else {
            return Self::Other;
        };
        match (service, method) {
            ("CodeCacheService", "GetCapabilities") => Self::GetCapabilities,
            ("CodeCacheService", "Install") => Self::Install,
            ("CodeCacheService", "InstallStream") => Self::InstallStream,
            ("CodeCacheService", "Lookup") => Self::Lookup,
            ("CodeCacheService", "Evict") => Self::Evict,
            ("CodeCacheService", "List") => Self::List,
            ("CodeCacheService", "Disassemble") => Self::Disassemble,
            ("ExecutionService", "Execute") => Self::Execute,
            ("ExecutionService", "ExecuteBatch") => Self::ExecuteBatch,
            ("ExecutionService", "ExecuteStream") => Self::ExecuteStream,
            ("ExecutionService", "ListExecutions") => Self::ListExecutions,
            ("ExecutionService", "CancelExecution") => Self::CancelExecution,
            ("AdminService", "GetStatus") => Self::GetStatus,
            ("AdminService", "GetArenas") => Self::GetArenas,
            ("AdminService", "LiftQuarantine") => Self::LiftQuarantine,
            _ => Self::Other,
        }
    }

    /// False for health, reflection, and whatever does not exist.
    pub fn is_ours(self) -> bool {
        self != Self::Other
    }
}

impl GrpcCode {
    /// From the number on the wire.
    pub fn of_number(code: i32) -> Self {
        usize::try_from(code).ok().and_then(|index| Self::ALL.get(index)).copied().unwrap_or(Self::Unknown)
    }
}

impl Rejection {
    /// From the reason of an error of the API.
    pub fn of_reason(reason: &str) -> Self {
        Self::ALL.iter().copied().find(|rejection| rejection.label() == reason).unwrap_or(Self::Other)
    }
}

labels! {
    /// How a worker process ended.
    WorkerDeath {
        /// By itself or by its code.
        Exited = "exited",
        /// By a signal that was not the daemon's.
        Killed = "killed",
        /// By the daemon, as its code could not be stopped otherwise, or took memory that nobody gave it.
        Stopped = "stopped",
        /// By the daemon, as a call of another namespace came.
        Replaced = "replaced",
    }
}
