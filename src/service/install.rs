//! One install, from request to answer.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use sha2::{Digest as _, Sha256};

use super::{
    Service, convert, dependencies,
    failure::{Failure, Reason},
    screen, signature, target, validate,
};
use crate::{
    arena::ReserveError,
    cache::{Dependencies, Install, InstallError, Installed, Name, Namespace, Outcome, Upload},
    code::{FlatEntry, Image, Selection},
    metrics::{BlobFormat as FormatLabel, InstallResult, InstallStages},
    proto::{self, BlobFormat, DigestAlgorithm},
};

/// Starts the digest of what decides what an entry does, so that it is no digest of anything else.
const IDENTITY_CONTEXT: &str = "codecached 2026-11 identity of an install";
/// Bounds of what a request names: those of flat entries.
const EXPORTS_MAX: usize = 4096;
const EXPORT_NAME_MAX_BYTES: usize = 1024;

/// Blobs above this are linked beside the runtime's threads: below it, that takes no longer than handing it over.
const INLINE_BLOB_MAX_BYTES: usize = 16 << 10;

/// Installs a blob that is there, where it holds up nobody. `upload`: it came by that, which is charged until the end.
pub(super) async fn answer(
    service: &Service,
    request: proto::InstallRequest,
    upload: Option<Upload>,
) -> Result<proto::InstallResponse, Failure> {
    if request.blob.len() <= INLINE_BLOB_MAX_BYTES {
        return install(service, request, upload.as_ref());
    }
    // Waits here, where a client that leaves takes its blob with it; what has begun runs to its end.
    let permit = Arc::clone(&service.linking).acquire_owned().await;
    let service = service.clone();
    let answer = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        install(&service, request, upload.as_ref())
    })
    .await;
    answer.map_err(|error| Failure::new(Reason::Internal, format!("install broke off: {error}")))?
}

/// Counts an install that was refused.
pub(super) fn count_refusal(service: &Service, failure: &Failure) {
    service.metrics.install(InstallResult::Rejected);
    service.metrics.install_rejected(failure.reason.as_str());
}

fn install(
    service: &Service,
    mut request: proto::InstallRequest,
    upload: Option<&Upload>,
) -> Result<proto::InstallResponse, Failure> {
    let limits = &service.limits;
    let max_bytes = if upload.is_some() { limits.stream_max_bytes } else { limits.unary_max_bytes };
    let blob_bytes = request.blob.len() as u64;
    let (name, format) = check(&request, blob_bytes, max_bytes)?;
    let declared = signature::declarations(&request.signatures)?;
    let started = Instant::now();
    let digest = *blake3::hash(&request.blob).as_bytes();
    verify(&request, &digest)?;
    let dependencies = dependencies::find(service, &name, &request)?;
    if request.validate_only {
        let answer = validate::answer(service, &name, &request, format, &declared, &dependencies);
        return Ok(with_victims(upload, answer));
    }
    target::hold_names(&service.features, &request.required_cpu_features)?;
    let install = Install {
        name,
        digest,
        identity: identity(&request, &digest, &declared, &dependencies),
        replace: request.replace,
        reentrant: request.reentrant,
    };
    let verified = Instant::now();
    if let Some(view) = service.cache.existing(&install)? {
        service.metrics.install(InstallResult::Existed);
        let entry = Some(convert::full_entry(&view, Instant::now()));
        return Ok(with_victims(upload, proto::InstallResponse { entry, ..Default::default() }));
    }
    let mut image = parse(service, &request, format, &dependencies)?;
    target::hold_image(&service.features, &image)?;
    if let Some((_, failure)) = signature::declare(&mut image, &declared).into_iter().next() {
        return Err(failure);
    }
    let (objects, unused) = (image.objects(), image.unused());
    let screened = screen::screen(service.limits.screen, &install.name, &image)?;
    // The image has of it what it needs.
    drop(std::mem::take(&mut request.blob));
    let parsed = Instant::now();
    let installed = service.cache.install_linked(upload, &install, image, dependencies)?;
    service.metrics.blob(
        match format {
            BlobFormat::Flat => FormatLabel::Flat,
            BlobFormat::Archive => FormatLabel::Archive,
            _ => FormatLabel::Elf,
        },
        blob_bytes,
    );
    service.metrics.install_stages(&InstallStages {
        verify: verified - started,
        parse: parsed - verified,
        reserve: installed.times.reserve,
        link: installed.times.link,
        publish: installed.times.publish,
    });
    let response = proto::InstallResponse {
        objects,
        unused_sections: unused.sections,
        unused_bytes: unused.bytes,
        screen_findings: screened.findings.into_iter().map(screen::finding).collect(),
        screen_findings_total: screened.total,
        ..report(service, &installed)
    };
    Ok(with_victims(upload, response))
}

/// Counts what went for the upload too.
fn with_victims(upload: Option<&Upload>, mut response: proto::InstallResponse) -> proto::InstallResponse {
    for victim in upload.map(Upload::victims).unwrap_or_default() {
        response.evicted_entries += 1;
        response.evicted_bytes += victim.charged_bytes;
    }
    response
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

/// Sizes and form first, before anything is computed, and before the blob is there if it comes in chunks.
pub(super) fn check(
    request: &proto::InstallRequest,
    blob_bytes: u64,
    max_bytes: u64,
) -> Result<(Name, BlobFormat), Failure> {
    if blob_bytes > max_bytes {
        let message = format!("blob has {blob_bytes} bytes, this daemon takes {max_bytes} this way");
        return Err(Failure::new(Reason::BlobTooLarge, message).with("limit_bytes", max_bytes));
    }
    if blob_bytes == 0 {
        return Err(Failure::field("blob", "is empty"));
    }
    check_exports(request)?;
    target::check_names(&request.required_cpu_features)?;
    let format = form(request)?;
    dependencies::names(request)?;
    Ok((Name::new(Namespace::new(&request.namespace)?, &request.key)?, format))
}

/// What an upload can be refused for before its blob comes, beyond its form.
///
/// # Errors
/// TARGET_MISMATCH and INVALID_FIELD.
pub(super) fn check_environment(service: &Service, request: &proto::InstallRequest) -> Result<(), Failure> {
    signature::declarations(&request.signatures)?;
    if request.validate_only {
        return Ok(());
    }
    target::hold_names(&service.features, &request.required_cpu_features)
}

fn form(request: &proto::InstallRequest) -> Result<BlobFormat, Failure> {
    match BlobFormat::try_from(request.format) {
        Ok(BlobFormat::ElfObject | BlobFormat::Archive) if !request.flat_entries.is_empty() => {
            Err(Failure::field("flat_entries", "an object has symbols of its own"))
        }
        Ok(BlobFormat::Flat) if !request.exports.is_empty() => {
            Err(Failure::field("exports", "flat code has its entry points in flat_entries"))
        }
        Ok(BlobFormat::Flat) if !request.dependencies.is_empty() => {
            Err(Failure::field("dependencies", "flat code has no symbols that they could define"))
        }
        Ok(format @ (BlobFormat::ElfObject | BlobFormat::Archive | BlobFormat::Flat)) => Ok(format),
        Ok(BlobFormat::Unspecified) | Err(_) => {
            let forms = "must be BLOB_FORMAT_ELF_OBJECT, BLOB_FORMAT_ARCHIVE or BLOB_FORMAT_FLAT";
            Err(Failure::field("format", forms))
        }
    }
}

fn check_exports(request: &proto::InstallRequest) -> Result<(), Failure> {
    let count = request.exports.len();
    if count > EXPORTS_MAX {
        return Err(Failure::field("exports", format!("are {count}, at most {EXPORTS_MAX}")));
    }
    let fits = |name: &String| (1..=EXPORT_NAME_MAX_BYTES).contains(&name.len());
    match request.exports.iter().position(|name| !fits(name)) {
        Some(at) => Err(Failure::field("exports", format!("name {at} must have 1 to {EXPORT_NAME_MAX_BYTES} bytes"))),
        None => Ok(()),
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

fn identity(
    request: &proto::InstallRequest,
    digest: &[u8; 32],
    declared: &[signature::Declaration],
    dependencies: &Dependencies,
) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(IDENTITY_CONTEXT);
    hasher.update(digest).update(&request.format.to_le_bytes()).update(&[u8::from(request.reentrant)]);
    for entry in &request.flat_entries {
        hasher.update(&(entry.name.len() as u64).to_le_bytes()).update(entry.name.as_bytes());
        hasher.update(&entry.offset_bytes.to_le_bytes());
    }
    // The same symbols, however often and in whatever order they are named.
    let exports: BTreeSet<_> = request.exports.iter().collect();
    hasher.update(&[u8::from(request.keep_unused_sections)]).update(&(exports.len() as u64).to_le_bytes());
    for name in exports {
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
    }
    let declared: BTreeSet<_> = declared.iter().map(|it| it.signature.declaration(&it.symbol).to_string()).collect();
    hasher.update(&(declared.len() as u64).to_le_bytes());
    for declaration in declared {
        hasher.update(&(declaration.len() as u64).to_le_bytes()).update(declaration.as_bytes());
    }
    // The same residencies, in the order that decides whose symbol is taken.
    for dependency in dependencies.direct() {
        hasher.update(&dependency.handle().to_bits().to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Reads the blob.
pub(super) fn parse(
    service: &Service,
    request: &proto::InstallRequest,
    format: BlobFormat,
    dependencies: &Dependencies,
) -> Result<Image, Failure> {
    if format == BlobFormat::Flat {
        let entry = |it: &proto::FlatEntry| FlatEntry { name: it.name.clone(), offset_bytes: it.offset_bytes };
        let entries = request.flat_entries.iter().map(entry).collect();
        return Ok(Image::parse_flat(&request.blob, entries, &service.limits.code)?);
    }
    check_magic(request, format)?;
    let (providers, imports) = (dependencies.providers(), service.cache.imports());
    let selection = selection(service, request);
    Ok(Image::parse_elf_against(&request.blob, &selection, &providers, imports, &service.limits.code)?)
}

/// What of the blob is to be in the entry.
pub(super) fn selection(service: &Service, request: &proto::InstallRequest) -> Selection {
    Selection {
        roots: request.exports.clone(),
        keep_unused: request.keep_unused_sections,
        keep_unwind: service.limits.keep_unwind,
    }
}

/// A blob is what the request says that it is, if its first bytes tell.
pub(super) fn check_magic(request: &proto::InstallRequest, format: BlobFormat) -> Result<(), Failure> {
    match format {
        BlobFormat::ElfObject if Image::is_archive(&request.blob) => {
            Err(Failure::field("format", "the blob is an archive: BLOB_FORMAT_ARCHIVE"))
        }
        BlobFormat::Archive if !Image::is_archive(&request.blob) => {
            Err(Failure::field("format", "the blob is no archive, which starts with !<arch>"))
        }
        _ => Ok(()),
    }
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
            ReserveError::Commit { .. } | ReserveError::NoLow | ReserveError::LowRefused(_) => {
                Self::new(Reason::ExecMemoryDenied, message)
            }
        }
    }
}
