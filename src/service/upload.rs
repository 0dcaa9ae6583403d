//! A blob that comes in chunks.

use bytes::Bytes;
use tonic::{Code, Status, Streaming};

use super::{
    Service, dependencies,
    edge::Deadline,
    failure::{Failure, Reason},
    install,
};
use crate::{
    cache::Upload,
    proto::{InstallRequest, InstallStreamHeader, InstallStreamRequest, install_stream_request::Part},
};

/// What is to be installed, with its blob, and the charge for that.
pub(super) async fn receive(
    service: &Service,
    messages: Streaming<InstallStreamRequest>,
    deadline: Option<Deadline>,
) -> Result<(InstallRequest, Upload), Failure> {
    let received = all(service, messages);
    let Some(Deadline(at)) = deadline else { return received.await };
    tokio::time::timeout_at(at.into(), received).await.unwrap_or_else(|_| {
        let message = "the time for this request was over before its blob was there; nothing was done";
        Err(Failure::new(Reason::DeadlineBeforeStart, message))
    })
}

async fn all(
    service: &Service,
    mut messages: Streaming<InstallStreamRequest>,
) -> Result<(InstallRequest, Upload), Failure> {
    let limits = &service.limits;
    let (mut install, declared_bytes) = header(&mut messages, limits.stream_chunk_max_bytes).await?;
    // All that can be refused without the blob is refused before anybody has to go for it.
    let (name, _) = install::check(&install, declared_bytes, limits.stream_max_bytes)?;
    install::check_environment(service, &install)?;
    // Not kept meanwhile: a slow upload shall not hold what it needs.
    drop(dependencies::find(service, &name, &install)?);
    let upload = service.cache.upload(declared_bytes)?;
    for victim in upload.victims() {
        service.metrics.entry_lifetime(victim.lifetime);
    }
    install.blob = blob(&mut messages, declared_bytes, limits.stream_chunk_max_bytes).await?;
    Ok((install, upload))
}

/// What to install, and how many bytes its blob will have.
async fn header(
    messages: &mut Streaming<InstallStreamRequest>,
    chunk_max_bytes: u64,
) -> Result<(InstallRequest, u64), Failure> {
    let Some(Part::Header(InstallStreamHeader { install, blob_bytes })) = next(messages, chunk_max_bytes).await? else {
        return Err(Failure::field("header", "must be the first message"));
    };
    let install = install.ok_or_else(|| Failure::field("header.install", "is missing"))?;
    if !install.blob.is_empty() {
        return Err(Failure::field("header.install.blob", "must be empty: the blob comes in chunks"));
    }
    Ok((install, blob_bytes))
}

/// Exactly the declared bytes, which are charged already.
async fn blob(
    messages: &mut Streaming<InstallStreamRequest>,
    declared_bytes: u64,
    chunk_max_bytes: u64,
) -> Result<Bytes, Failure> {
    let mut blob = Vec::new();
    let capacity = usize::try_from(declared_bytes).unwrap_or(usize::MAX);
    blob.try_reserve_exact(capacity).map_err(|_| no_memory(declared_bytes))?;
    while let Some(part) = next(messages, chunk_max_bytes).await? {
        let chunk = match part {
            Part::Chunk(chunk) => chunk,
            Part::Header(_) => return Err(Failure::field("header", "must be the first message only")),
        };
        if chunk.is_empty() {
            return Err(Failure::field("chunk", "is empty"));
        }
        if chunk.len() as u64 > chunk_max_bytes {
            return Err(large_chunk(format!("has {} bytes", chunk.len()), chunk_max_bytes));
        }
        let received_bytes = blob.len() as u64 + chunk.len() as u64;
        if received_bytes > declared_bytes {
            return Err(miscounted(&format!("{received_bytes} bytes or more"), received_bytes, declared_bytes));
        }
        // Copied: a chunk is a slice of a buffer of the transport, which may be larger.
        blob.extend_from_slice(&chunk);
    }
    let received_bytes = blob.len() as u64;
    if received_bytes < declared_bytes {
        return Err(miscounted(&format!("{received_bytes} bytes"), received_bytes, declared_bytes));
    }
    Ok(blob.into())
}

/// The next message; `None` at the end, and when the client is gone.
async fn next(messages: &mut Streaming<InstallStreamRequest>, chunk_max_bytes: u64) -> Result<Option<Part>, Failure> {
    match messages.message().await {
        Ok(None) => Ok(None),
        Ok(Some(InstallStreamRequest { part: Some(part) })) => Ok(Some(part)),
        Ok(Some(InstallStreamRequest { part: None })) => Err(Failure::field("part", "give a header or a chunk")),
        Err(status) => Err(broken(&status, chunk_max_bytes)),
    }
}

/// What the transport says of a stream that it cannot read on.
fn broken(status: &Status, chunk_max_bytes: u64) -> Failure {
    match status.code() {
        Code::OutOfRange => large_chunk("is larger than any message may be".to_owned(), chunk_max_bytes),
        Code::DeadlineExceeded => Failure::new(Reason::DeadlineBeforeStart, status.message()),
        _ => Failure::field("part", format!("cannot be read: {}", status.message())),
    }
}

fn large_chunk(size: String, max_bytes: u64) -> Failure {
    Failure::field("chunk", format!("{size}, this daemon takes {max_bytes}")).with("limit_bytes", max_bytes)
}

fn miscounted(received: &str, received_bytes: u64, declared_bytes: u64) -> Failure {
    Failure::field("blob_bytes", format!("{declared_bytes} bytes are declared, {received} came"))
        .with("declared_bytes", declared_bytes)
        .with("received_bytes", received_bytes)
}

fn no_memory(bytes: u64) -> Failure {
    Failure::quota(Reason::BudgetExhausted, "memory", format!("the system has no {bytes} bytes for the blob"))
}
