//! What is wrong with a span that is given back.

/// What is given back, cut or grown is not exactly a span that was handed out: a defect of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FreeError {
    #[error("{granules} granules from {start} on do not lie in an area of {area}")]
    Outside { start: u32, granules: u32, area: u32 },
    #[error("granule {start} has no owner")]
    NotAllocated { start: u32 },
    #[error("{granules} granules from {start} on are no span: there is one of {found_granules} from {found_start} on")]
    NotASpan { start: u32, granules: u32, found_start: u32, found_granules: u32 },
}
