//! The gRPC server on its listeners.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    server::NamedService as _,
    transport::server::{Router, Server},
};
use tonic_health::{
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};

use super::{
    Service,
    edge::{Bounds, Edge, Permits},
    listener::{Listener, accept},
};
use crate::proto::{
    self, admin_service_server::AdminServiceServer, code_cache_service_server::CodeCacheServiceServer,
    execution_service_server::ExecutionServiceServer,
};

/// Bytes of a message beside its blob or its arguments' contents.
const MESSAGE_OVERHEAD_BYTES: usize = 64 << 10;
/// HTTP/2 windows that let a blob of the usual size through without waiting for the other side.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const FRAME_MAX_BYTES: u32 = 256 << 10;
/// A peer that is gone without a word is noticed after both: its connection is a counted thing.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bounds of the transport.
#[derive(Debug, Clone)]
pub struct Transport {
    /// Connections, all listeners together.
    pub connections_max: usize,
    /// Requests under way on one connection.
    pub streams_per_connection_max: u32,
}

/// Serves on all listeners until `stop` turns true; then finishes the requests under way. The caller bounds how long
/// that may take: an idle client need not close its connection.
///
/// # Errors
/// Those of the transport, and of a descriptor set that cannot be read.
pub async fn serve(
    service: &Service,
    listeners: Vec<Listener>,
    transport: &Transport,
    health: HealthServer<impl Health>,
    stop: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let router = router(service, transport, health)?;
    let (sender, incoming) = mpsc::channel(1);
    let connections = Arc::new(Semaphore::new(transport.connections_max));
    let listeners: Vec<_> = listeners.into_iter().map(Listener::incoming).collect::<Result<_, _>>()?;
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::spawn(accept(listener, Arc::clone(&connections), sender.clone(), stop.clone())))
        .collect();
    drop(sender);
    let mut stop = stop;
    let stopped = async move {
        // The sender gone means the same.
        drop(stop.wait_for(|stop| *stop).await);
    };
    router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), stopped).await?;
    for task in accepting {
        task.await?;
    }
    Ok(())
}

/// Health of every service, not serving until told so.
pub async fn health() -> (HealthReporter, HealthServer<impl Health>) {
    let (reporter, server) = tonic_health::server::health_reporter();
    set_serving(&reporter, false).await;
    (reporter, server)
}

/// Flips the health of every service.
pub async fn set_serving(reporter: &HealthReporter, serving: bool) {
    use tonic_health::ServingStatus::{NotServing, Serving};
    let ours = [
        CodeCacheServiceServer::<Service>::NAME,
        ExecutionServiceServer::<Service>::NAME,
        AdminServiceServer::<Service>::NAME,
    ];
    for name in ours.into_iter().chain([""]) {
        reporter.set_service_status(name, if serving { Serving } else { NotServing }).await;
    }
}

fn router(
    service: &Service,
    transport: &Transport,
    health: HealthServer<impl Health>,
) -> Result<Router<tower::layer::util::Stack<Edge, tower::layer::util::Identity>>, tonic_reflection::server::Error> {
    let limits = &service.limits;
    let message_max_bytes = limits.unary_max_bytes as usize + MESSAGE_OVERHEAD_BYTES;
    // The transport has one bound for all methods of a service; each method holds its messages to its own.
    let cache_message_max_bytes =
        message_max_bytes.max(limits.stream_chunk_max_bytes as usize + MESSAGE_OVERHEAD_BYTES);
    let bounds = Bounds {
        in_flight_max: limits.in_flight_max,
        streams_max: limits.streams_max,
        call_streams_max: limits.call_streams_max,
        idle_timeout: limits.stream_idle_timeout,
        timeout_max: limits.timeout_max,
        message_max_bytes,
    };
    let permits = Permits {
        in_flight: Arc::clone(&service.in_flight),
        streams: Arc::clone(&service.streams),
        call_streams: Arc::clone(&service.call_streams),
    };
    let edge = Edge::new(bounds, permits, Arc::clone(&service.draining), Arc::clone(&service.metrics));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_MAX_BYTES)
        .max_concurrent_streams(transport.streams_per_connection_max)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(edge)
        .add_service(CodeCacheServiceServer::new(service.clone()).max_decoding_message_size(cache_message_max_bytes))
        .add_service(ExecutionServiceServer::new(service.clone()).max_decoding_message_size(message_max_bytes))
        .add_service(AdminServiceServer::new(service.clone()))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}
