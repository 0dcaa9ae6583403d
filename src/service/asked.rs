//! The entry that a request is about.

use bytes::Bytes;

use super::failure::{Failure, Reason};
use crate::{
    cache::{Handle, Name, Namespace, Target},
    proto::{
        disassemble_request, evict_request, execute_batch_request, execute_request, function_calls,
        lift_quarantine_request, lookup_request,
    },
};

/// A namespace with a key or a handle of it, checked.
#[derive(Debug)]
pub(super) enum Asked<'a> {
    Key(Name),
    Handle(Namespace<'a>, Handle),
}

/// The `target` of a request.
pub(super) enum Wire {
    Key(Bytes),
    Handle(u64),
}

/// Each request message has a `oneof target` type of its own with the same two members.
macro_rules! wire {
    ($($message:ident),*) => {$(
        impl From<$message::Target> for Wire {
            fn from(target: $message::Target) -> Self {
                match target {
                    $message::Target::Key(key) => Self::Key(key),
                    $message::Target::Handle(handle) => Self::Handle(handle),
                }
            }
        }
    )*};
}
wire!(lookup_request, evict_request, execute_request, execute_batch_request, function_calls, disassemble_request);
wire!(lift_quarantine_request);

impl<'a> Asked<'a> {
    /// # Errors
    /// INVALID_FIELD.
    pub(super) fn new(namespace: &'a str, target: Option<impl Into<Wire>>) -> Result<Self, Failure> {
        let namespace = Namespace::new(namespace)?;
        match target.map(Into::into) {
            Some(Wire::Key(key)) => Ok(Self::Key(Name::new(namespace, &key)?)),
            Some(Wire::Handle(bits)) => Ok(Self::Handle(namespace, Handle::from_bits(bits))),
            None => Err(Failure::field("target", "give a key or a handle")),
        }
    }

    pub(super) fn target(&self) -> Target<'_> {
        match self {
            Self::Key(name) => Target::Name(name),
            Self::Handle(namespace, handle) => Target::Handle(*namespace, *handle),
        }
    }

    /// What to answer if nothing is there. Stale, made-up and foreign handles look alike.
    pub(super) fn absent(&self) -> Failure {
        match self {
            Self::Key(name) => {
                let key = name.key().escape_ascii().to_string();
                let message = format!("no entry under {name:?}; install it first");
                Failure::absent(Reason::EntryNotFound, "entry", key, message)
            }
            Self::Handle(namespace, handle) => {
                let namespace = namespace.as_str();
                let message = format!("handle is not of a live entry in namespace {namespace}; look its key up again");
                Failure::absent(Reason::StaleHandle, "handle", handle.to_bits().to_string(), message)
            }
        }
    }
}
