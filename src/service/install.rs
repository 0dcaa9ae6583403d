//! One install, from request to answer.

use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::{
    Service, convert,
    failure::{Failure, Reason},
    screen,
};
use crate::{
    arena::ReserveError,
    cache::{Install, InstallError, Installed, Name, Namespace, Outcome},
    code::{FlatEntry, Image},
    metrics::{BlobFormat as FormatLabel, InstallResult, InstallStages},
    proto::{self, BlobFormat, DigestAlgorithm},
};

/// Starts the digest of what decides what an entry does, so that it is no digest of anything else.
const IDENTITY_CONTEXT: &str = "codecached 2026-11 identity of an install";

/// Installs, and counts how it went.
pub(super) fn answer(service: &Service, request: &proto::InstallRequest) -> Result<proto::InstallResponse, Failure> {
    install(service, request).inspect_err(|failure| {
        service.metrics.install(InstallResult::Rejected);
        service.metrics.install_rejected(failure.reason.as_str());
    })
}

fn install(service: &Service, request: &proto::InstallRequest) -> Result<proto::InstallResponse, Failure> {
    let format = check(service, request)?;
    let name = Name::new(Namespace::new(&request.namespace)?, &request.key)?;
    let started = Instant::now();
    let digest = *blake3::hash(&request.blob).as_bytes();
    verify(request, &digest)?;
    let install = Install {
        name,
        digest,
        identity: identity(request, &digest),
        replace: request.replace,
        reentrant: request.reentrant,
    };
    let verified = Instant::now();
    if let Some(view) = service.cache.existing(&install)? {
        service.metrics.install(InstallResult::Existed);
        let entry = Some(convert::full_entry(&view, Instant::now()));
        return Ok(proto::InstallResponse { entry, ..Default::default() });
    }
    let image = parse(service, request, format)?;
    let screened = screen::screen(service.limits.screen, &install.name, &image)?;
    let parsed = Instant::now();
    let installed = service.cache.install(&install, image)?;
    service.metrics.blob(
        match format {
            BlobFormat::Flat => FormatLabel::Flat,
            _ => FormatLabel::Elf,
        },
        request.blob.len() as u64,
    );
    service.metrics.install_stages(&InstallStages {
        verify: verified - started,
        parse: parsed - verified,
        reserve: installed.times.reserve,
        link: installed.times.link,
        publish: installed.times.publish,
    });
    let found = screened.findings.into_iter().map(screen::finding).collect();
    let report = report(service, &installed);
    Ok(proto::InstallResponse { screen_findings: found, screen_findings_total: screened.total, ..report })
}

fn report(service: &Service, installed: &Installed) -> proto::InstallResponse {
    service.metrics.install(match installed.outcome {
        Outcome::Created => InstallResult::Created,
        Outcome::Existed => InstallResult::Existed,
        Outcome::Replaced => InstallResult::Replaced,
    });
    for victim in &installed.victims {
        service.metrics.entry_lifetime(victim.lifetime);
    }
    proto::InstallResponse {
        entry: Some(convert::full_entry(&installed.view, Instant::now())),
        created: installed.outcome != Outcome::Existed,
        replaced: installed.outcome == Outcome::Replaced,
        evicted_entries: installed.victims.len() as u64,
        evicted_bytes: installed.victims.iter().map(|victim| victim.charged_bytes).sum(),
        ..Default::default()
    }
}

/// Sizes and form first, before anything is computed.
fn check(service: &Service, request: &proto::InstallRequest) -> Result<BlobFormat, Failure> {
    let max_bytes = service.limits.unary_max_bytes;
    let has_bytes = request.blob.len() as u64;
    if has_bytes > max_bytes {
        let message = format!("blob has {has_bytes} bytes, this daemon takes {max_bytes}");
        return Err(Failure::new(Reason::BlobTooLarge, message).with("limit_bytes", max_bytes));
    }
    if has_bytes == 0 {
        return Err(Failure::field("blob", "is empty"));
    }
    match BlobFormat::try_from(request.format) {
        Ok(BlobFormat::ElfObject) if !request.flat_entries.is_empty() => {
            Err(Failure::field("flat_entries", "an object has symbols of its own"))
        }
        Ok(format @ (BlobFormat::ElfObject | BlobFormat::Flat)) => Ok(format),
        Ok(BlobFormat::Unspecified) | Err(_) => {
            Err(Failure::field("format", "must be BLOB_FORMAT_ELF_OBJECT or BLOB_FORMAT_FLAT"))
        }
    }
}

fn verify(request: &proto::InstallRequest, blake3: &[u8; 32]) -> Result<(), Failure> {
    let Some(given) = &request.digest else { return Ok(()) };
    let computed: [u8; 32] = match DigestAlgorithm::try_from(given.algorithm) {
        Ok(DigestAlgorithm::Blake3) => *blake3,
        Ok(DigestAlgorithm::Sha256) => Sha256::digest(&request.blob).into(),
        Ok(DigestAlgorithm::Unspecified) | Err(_) => {
            return Err(Failure::field("digest.algorithm", "must be BLAKE3 or SHA256"));
        }
    };
    if given.value.len() != computed.len() {
        return Err(Failure::field("digest.value", format!("has {} bytes, must have 32", given.value.len())));
    }
    if given.value[..] == computed {
        return Ok(());
    }
    let (given, computed) = (hex(&given.value), hex(&computed));
    Err(Failure::new(Reason::DigestMismatch, format!("blob has digest {computed}, the request says {given}")))
}

fn identity(request: &proto::InstallRequest, digest: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(IDENTITY_CONTEXT);
    hasher.update(digest).update(&request.format.to_le_bytes()).update(&[u8::from(request.reentrant)]);
    for entry in &request.flat_entries {
        hasher.update(&(entry.name.len() as u64).to_le_bytes()).update(entry.name.as_bytes());
        hasher.update(&entry.offset_bytes.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

fn parse(service: &Service, request: &proto::InstallRequest, format: BlobFormat) -> Result<Image, Failure> {
    if format == BlobFormat::Flat {
        let entry = |it: &proto::FlatEntry| FlatEntry { name: it.name.clone(), offset_bytes: it.offset_bytes };
        let entries = request.flat_entries.iter().map(entry).collect();
        return Ok(Image::parse_flat(&request.blob, entries, &service.limits.code)?);
    }
    Ok(Image::parse_elf(&request.blob, service.cache.imports(), &service.limits.code)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        let message = error.to_string();
        match error {
            InstallError::KeyOccupied => Self::new(Reason::KeyOccupied, message),
            InstallError::LargerThanBudget { .. } | InstallError::TooManyEntries => {
                Self::quota(Reason::BudgetExhausted, "budget", message)
            }
            InstallError::AllPinned { .. } => Self::quota(Reason::AllEntriesPinned, "budget", message),
            InstallError::Fragmented(_) => Self::quota(Reason::ArenaFragmented, "arena", message),
            InstallError::Reserve(error) => error.into(),
            InstallError::Publish(_) => Self::new(Reason::ExecMemoryDenied, message),
            InstallError::Link(error) => error.into(),
        }
    }
}

impl From<ReserveError> for Failure {
    fn from(error: ReserveError) -> Self {
        let message = error.to_string();
        match error {
            ReserveError::Fragmented { .. } => Self::quota(Reason::ArenaFragmented, "arena", message),
            ReserveError::TooLarge { .. } => Self::quota(Reason::BudgetExhausted, "arena", message),
            ReserveError::Align { .. } => Self::new(Reason::MalformedObject, message),
            ReserveError::Commit { .. } => Self::new(Reason::ExecMemoryDenied, message),
        }
    }
}
