//! AdminService: for those who run the daemon.

use std::sync::atomic::Ordering::Relaxed;

use tonic::{Request, Response, Status};

use super::Service;
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
            ready: !draining,
            draining,
            ..self.counts()
        }))
    }
}
