//! What this daemon runs on, takes and offers.

use super::{Service, cache_service::PAGE_MAX};
use crate::{
    cache::KEY_MAX_BYTES,
    code, exec,
    proto::{self, BlobFormat},
};

pub(super) fn answer(service: &Service) -> proto::GetCapabilitiesResponse {
    let limits = &service.limits;
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    proto::GetCapabilitiesResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        cpu_features: owned(service.features.names().collect()),
        formats: [BlobFormat::ElfObject, BlobFormat::Flat, BlobFormat::Archive].map(Into::into).to_vec(),
        relocations: owned(code::RELOCATIONS.to_vec()),
        imports: {
            let table = service.cache.imports();
            let mut names: Vec<_> = table.names().chain(table.thread_local_names()).map(str::to_owned).collect();
            names.extend(table.constant_names().map(str::to_owned));
            names.sort_unstable();
            names
        },
        limits: Some(proto::Limits {
            unary_max_bytes: limits.unary_max_bytes,
            key_max_bytes: KEY_MAX_BYTES as u32,
            budget_bytes: service.cache.stats().budget_bytes,
            sections_max: limits.code.sections_max,
            symbols_max: limits.code.symbols_max,
            relocations_max: limits.code.relocations_max,
            arguments_max: exec::ARGS_MAX as u32,
            call_memory_max_bytes: limits.call_memory_max_bytes as u64,
            cpu_limit_default_ms: limits.cpu_limit_default.as_millis() as u64,
            cpu_limit_max_ms: limits.cpu_limit_max.as_millis() as u64,
            page_max: PAGE_MAX as u32,
            stream_max_bytes: limits.stream_max_bytes,
            stream_chunk_max_bytes: limits.stream_chunk_max_bytes,
            low_bytes: service.arenas.low_bytes(),
            batch_rows_max: exec::ROWS_MAX as u64,
            stream_calls_max: limits.stream_calls_max as u32,
        }),
        isolation: if service.pool.workers().is_some() { "process" } else { "thread" }.to_owned(),
        imports_version: exec::IMPORTS_VERSION,
        cpu_levels: owned(service.features.levels().map(code::Level::as_str).collect()),
    }
}
