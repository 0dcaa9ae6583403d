//! Proof at start that new code runs here, and that rewritten code does, too.

use super::{
    MapError,
    barrier::Barrier,
    geometry::{AreaId, PartKind},
    mapping::Views,
    pool::Backing,
};

/// What the function returns each time it is written anew, at the same address.
const VALUES: [u32; 3] = [0x600D_C0DE, 0x0DDB_A115, 0x600D_C0DE];

/// Writes, runs, rewrites and runs again; leaves no memory committed.
pub(super) fn run(views: &mut Views, barrier: &Barrier) -> Result<(), MapError> {
    let area = AreaId { arena: 0, kind: PartKind::Code };
    views.commit(area, 0..1).map_err(|errno| MapError::Commit { errno })?;
    for expected in VALUES {
        let found = views.call_canary(area, expected, barrier);
        if found != expected {
            return Err(MapError::Canary { expected, found });
        }
    }
    views.decommit(area, 0..1).map_err(|errno| MapError::Commit { errno })
}
