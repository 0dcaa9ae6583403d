//! AdminService: for those who run the daemon.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use tonic::{Request, Response, Status};

use super::{
    Service, arenas, convert,
    failure::{Failure, Reason},
};
use crate::proto::{self, admin_service_server::AdminService};

#[tonic::async_trait]
impl AdminService for Service {
    async fn get_status(
        &self,
        _: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let draining = self.draining.load(Relaxed);
        Ok(Response::new(proto::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            pid: std::process::id(),
            ready: self.ready().is_ok(),
            draining,
            ..self.counts()
        }))
    }

    async fn lift_quarantine(
        &self,
        request: Request<proto::LiftQuarantineRequest>,
    ) -> Result<Response<proto::LiftQuarantineResponse>, Status> {
        let request = request.into_inner();
        let asked = super::asked::Asked::new(&request.namespace, request.target)?;
        let (view, lifted) = self.cache.lift_quarantine(asked.target()).ok_or_else(|| asked.absent())?;
        let now = std::time::Instant::now();
        if let Some(quarantine) = &lifted {
            tracing::info!(entry = ?view.meta.name, reason = quarantine.reason, "a quarantine was lifted");
        }
        Ok(Response::new(proto::LiftQuarantineResponse {
            lifted: lifted.map(|quarantine| convert::quarantine(quarantine, now)),
            entry: Some(convert::listed_entry(&view, now)),
        }))
    }

    async fn get_arenas(
        &self,
        request: Request<proto::GetArenasRequest>,
    ) -> Result<Response<proto::GetArenasResponse>, Status> {
        let asked = arenas::Asked::new(request.get_ref())?;
        // Waits here, where it ends with its client; a map that is being made is made to its end.
        let permit = Arc::clone(&self.mapping).acquire_owned().await;
        let service = self.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            arenas::answer(&service, &asked)
        })
        .await;
        let answer = answer.map_err(|error| Failure::new(Reason::Internal, format!("the map broke off: {error}")))?;
        Ok(Response::new(answer?))
    }
}
