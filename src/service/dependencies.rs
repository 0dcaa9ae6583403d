//! The entries that a request wants to be linked against.

use super::{
    Service,
    failure::{Failure, Reason},
};
use crate::{
    cache::{Dependencies, DependencyError, Name, Namespace},
    proto::InstallRequest,
};

/// What the request names, checked as far as that can be without looking for it.
///
/// # Errors
/// INVALID_FIELD.
pub(super) fn names(request: &InstallRequest) -> Result<Vec<Name>, Failure> {
    let namespace = Namespace::new(&request.namespace)?;
    // Before anything is made of them.
    DependencyError::hold_count(request.dependencies.len())?;
    let name = |(at, wire): (usize, &crate::proto::Dependency)| {
        if !wire.namespace.is_empty() && Namespace::new(&wire.namespace)? != namespace {
            let message = format!("number {at} is of another namespace than the request; namespaces are isolated");
            return Err(Failure::field("dependencies", message));
        }
        Name::new(namespace, &wire.key).map_err(|error| Failure::field("dependencies", format!("number {at}: {error}")))
    };
    request.dependencies.iter().enumerate().map(name).collect()
}

/// Finds what the request names and keeps it.
///
/// # Errors
/// What is not there, leads in a circle, or is too much.
pub(super) fn find(service: &Service, of: &Name, request: &InstallRequest) -> Result<Dependencies, Failure> {
    Ok(service.cache.dependencies(of, &names(request)?)?)
}

impl From<DependencyError> for Failure {
    fn from(error: DependencyError) -> Self {
        let message = error.to_string();
        match error {
            DependencyError::Missing { name } => {
                let message = format!("dependencies: {message}");
                Self::absent(Reason::EntryNotFound, "entry", name.key().escape_ascii().to_string(), message)
            }
            DependencyError::Own { .. } | DependencyError::Cycle { .. } => {
                Self::new(Reason::DependencyCycle, format!("dependencies: {message}"))
            }
            DependencyError::TooMany { .. }
            | DependencyError::Twice { .. }
            | DependencyError::TooDeep { .. }
            | DependencyError::TooWide { .. } => Self::field("dependencies", message),
        }
    }
}
