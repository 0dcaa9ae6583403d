//! CodeCacheService: install, find, list and evict.

use std::time::Instant;

use prost::Message as _;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Service,
    asked::Asked,
    capabilities, convert, disassemble,
    edge::Deadline,
    failure::{Failure, Reason},
    install, upload,
};
use crate::{
    cache::{Gone, Name, Namespace, OnFreed, View},
    proto::{self, code_cache_service_server::CodeCacheService},
};

/// Entries of a page that does not say how many.
pub(super) const PAGE_DEFAULT: usize = 100;
/// Entries of a page at most.
pub(super) const PAGE_MAX: usize = 1000;
/// Bytes of a page, if it has more than one entry: keys and dependencies may be long, and clients usually take 4 MiB.
const PAGE_BYTES_MAX: usize = 1 << 20;

#[tonic::async_trait]
impl CodeCacheService for Service {
    async fn get_capabilities(
        &self,
        _: Request<proto::GetCapabilitiesRequest>,
    ) -> Result<Response<proto::GetCapabilitiesResponse>, Status> {
        Ok(Response::new(capabilities::answer(self)))
    }

    async fn install(
        &self,
        request: Request<proto::InstallRequest>,
    ) -> Result<Response<proto::InstallResponse>, Status> {
        let answer = install::answer(self, request.into_inner(), None).await;
        Ok(Response::new(answer.inspect_err(|failure| install::count_refusal(self, failure))?))
    }

    async fn install_stream(
        &self,
        request: Request<Streaming<proto::InstallStreamRequest>>,
    ) -> Result<Response<proto::InstallStreamResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied();
        let answer = async {
            let (install, upload) = upload::receive(self, request.into_inner(), deadline).await?;
            install::answer(self, install, Some(upload)).await
        };
        let install = Some(answer.await.inspect_err(|failure| install::count_refusal(self, failure))?);
        Ok(Response::new(proto::InstallStreamResponse { install }))
    }

    async fn lookup(&self, request: Request<proto::LookupRequest>) -> Result<Response<proto::LookupResponse>, Status> {
        let request = request.into_inner();
        let asked = Asked::new(&request.namespace, request.target)?;
        let found = self.cache.lookup(asked.target(), request.peek);
        if !request.peek {
            self.metrics.lookup(found.is_some());
        }
        let view = found.ok_or_else(|| asked.absent())?;
        let entry = match proto::EntryView::try_from(request.view) {
            Ok(proto::EntryView::Full) => convert::full_entry(&view, Instant::now()),
            Ok(proto::EntryView::Basic | proto::EntryView::Unspecified) => convert::basic_entry(&view),
            Err(_) => return Err(Failure::field("view", "no view that this version knows").into()),
        };
        Ok(Response::new(proto::LookupResponse { entry: Some(entry) }))
    }

    async fn evict(&self, request: Request<proto::EvictRequest>) -> Result<Response<proto::EvictResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied();
        let request = request.into_inner();
        let asked = Asked::new(&request.namespace, request.target)?;
        let (freed, is_freed) = oneshot::channel();
        let on_freed = request.wait.then(|| Box::new(move || drop(freed)) as OnFreed);
        let evicted = self.cache.evict(asked.target(), on_freed).ok_or_else(|| asked.absent())?;
        let mut gone = evicted.gone;
        if request.wait && gone == Gone::Lingering && wait(is_freed, deadline).await {
            gone = Gone::Freed;
        }
        let state = match gone {
            Gone::Freed => proto::EvictState::Freed,
            Gone::Lingering => proto::EvictState::Lingering,
        };
        let View { charged_bytes, dependants, .. } = evicted.view;
        Ok(Response::new(proto::EvictResponse { state: state.into(), charged_bytes, dependants }))
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Result<Response<proto::ListResponse>, Status> {
        let request = request.into_inner();
        let namespace = Namespace::new(&request.namespace).map_err(Failure::from)?;
        let limit = match request.page_size as usize {
            0 => PAGE_DEFAULT,
            size if size <= PAGE_MAX => size,
            _ => return Err(Failure::field("page_size", format!("must be at most {PAGE_MAX}")).into()),
        };
        let rank = convert::rank(request.order)?;
        if rank.is_some() && !request.page_token.is_empty() {
            return Err(Failure::field("page_token", "only lists in key order have pages").into());
        }
        let views = match rank {
            Some(rank) => self.cache.top(namespace, &request.key_prefix, rank, limit),
            None => {
                self.cache.page(namespace, &request.key_prefix, after(namespace, &request.page_token)?.as_ref(), limit)
            }
        };
        let entries = page(&views);
        let goes_on = rank.is_none() && (views.len() == limit || entries.len() < views.len());
        let next_page_token = entries.last().filter(|_| goes_on).map(|last| last.key.clone()).unwrap_or_default();
        Ok(Response::new(proto::ListResponse { entries, next_page_token }))
    }

    async fn disassemble(
        &self,
        request: Request<proto::DisassembleRequest>,
    ) -> Result<Response<proto::DisassembleResponse>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        // Some milliseconds for what is asked at most.
        let answer = tokio::task::spawn_blocking(move || disassemble::answer(&service, request)).await;
        let answer = answer.map_err(|error| Failure::new(Reason::Internal, format!("listing broke off: {error}")))?;
        Ok(Response::new(answer?))
    }
}

/// As many as fit into a page.
fn page(views: &[View]) -> Vec<proto::Entry> {
    let (now, mut bytes) = (Instant::now(), 0);
    let fits = |entry: &proto::Entry| {
        let is_first = bytes == 0;
        bytes += entry.encoded_len();
        is_first || bytes <= PAGE_BYTES_MAX
    };
    views.iter().map(|view| convert::listed_entry(view, now)).take_while(fits).collect()
}

/// A token is the last key of the page before: pages stay right when entries come and go between them.
fn after(namespace: Namespace<'_>, token: &[u8]) -> Result<Option<Name>, Failure> {
    if token.is_empty() {
        return Ok(None);
    }
    Name::new(namespace, token).map(Some).map_err(|_| Failure::field("page_token", "not from an answer"))
}

/// Waits until the sender is gone, up to the deadline if there is one. False if that passed.
async fn wait(freed: oneshot::Receiver<()>, deadline: Option<Deadline>) -> bool {
    let gone = async { drop(freed.await) };
    match deadline {
        Some(Deadline(at)) => tokio::time::timeout_at(at.into(), gone).await.is_ok(),
        None => {
            gone.await;
            true
        }
    }
}
