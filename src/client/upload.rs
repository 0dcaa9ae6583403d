//! A blob in chunks.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Client, ClientError};
use crate::proto::{
    InstallRequest, InstallResponse, InstallStreamHeader, InstallStreamRequest, Limits, install_stream_request::Part,
};
use tokio_stream::Stream;

/// Any daemon takes a blob of this size in one message: it is the least that can be configured.
const UNARY_ALWAYS_MAX_BYTES: u64 = 4 << 10;
/// Chunks of this size are few, and still show that something goes on.
const CHUNK_BYTES: u64 = 256 << 10;
/// The reason of a daemon that takes less than was thought.
const BLOB_TOO_LARGE: &str = "BLOB_TOO_LARGE";

/// Is told how many bytes of the blob have been handed over to the connection.
type Sent = Arc<dyn Fn(u64) + Send + Sync>;

/// The limits that the daemon told, once it was asked. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownLimits(Arc<Mutex<Option<Limits>>>);

impl KnownLimits {
    fn get(&self) -> Option<Limits> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, limits: Option<Limits>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }
}

impl Client {
    /// Installs a blob under a key: in one message, or in chunks if the daemon takes no message so large.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::reason`] is `KEY_OCCUPIED` if other bytes are there and `replace` is not set.
    pub async fn install(&self, request: InstallRequest) -> Result<InstallResponse, ClientError> {
        self.install_with_progress(request, |_| ()).await
    }

    /// The same; `sent` is told, chunk by chunk, how many bytes of the blob have been handed over to the connection.
    /// A further try begins anew.
    ///
    /// # Errors
    /// The same.
    pub async fn install_with_progress(
        &self,
        request: InstallRequest,
        sent: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<InstallResponse, ClientError> {
        let answer = match self.chunk_bytes_for(request.blob.len() as u64).await? {
            Some(chunk_bytes) => self.install_in_chunks(request, chunk_bytes, Arc::new(sent)).await,
            None => self.retried(request, |mut stub, request| async move { stub.install(request).await }).await,
        };
        // The daemon may be another one than was asked, with other limits.
        answer.inspect_err(|error| {
            if error.reason() == BLOB_TOO_LARGE {
                self.limits.set(None);
            }
        })
    }

    /// Bytes of a chunk for a blob that is too large for one message; `None` for one that is not, and where chunks
    /// would not help either.
    async fn chunk_bytes_for(&self, blob_bytes: u64) -> Result<Option<usize>, ClientError> {
        if blob_bytes <= UNARY_ALWAYS_MAX_BYTES {
            return Ok(None);
        }
        let limits = match self.limits.get() {
            Some(limits) => limits,
            None => {
                let limits = self.capabilities().await?.limits.unwrap_or_default();
                self.limits.set(Some(limits));
                limits
            }
        };
        let in_chunks = blob_bytes > limits.unary_max_bytes && limits.stream_chunk_max_bytes > 0;
        Ok(in_chunks.then(|| CHUNK_BYTES.min(limits.stream_chunk_max_bytes) as usize))
    }

    async fn install_in_chunks(
        &self,
        request: InstallRequest,
        chunk_bytes: usize,
        sent: Sent,
    ) -> Result<InstallResponse, ClientError> {
        self.retried(request, |mut stub, request| {
            let request = request.map(|install| messages(install, chunk_bytes, Arc::clone(&sent)));
            async move {
                let answer = stub.install_stream(request).await?;
                Ok(answer.map(|answer| answer.install.unwrap_or_default()))
            }
        })
        .await
    }
}

/// The header and the chunks, each made when the connection takes it.
fn messages(
    mut install: InstallRequest,
    chunk_bytes: usize,
    sent: Sent,
) -> impl Stream<Item = InstallStreamRequest> + Send + 'static {
    let blob = std::mem::take(&mut install.blob);
    let header = InstallStreamHeader { install: Some(install), blob_bytes: blob.len() as u64 };
    let chunks = (0..blob.len()).step_by(chunk_bytes).map(move |start| {
        let end = blob.len().min(start + chunk_bytes);
        sent(end as u64);
        Part::Chunk(blob.slice(start..end))
    });
    let parts = std::iter::once(Part::Header(header)).chain(chunks);
    tokio_stream::iter(parts.map(|part| InstallStreamRequest { part: Some(part) }))
}
