//! What the figures are to reach.

use crate::{
    peer::Peer,
    report::{Report, short},
};

/// What is looked at of a row.
enum Measure {
    /// Its value.
    Value,
    /// Its ratio to the peer's.
    Ratio,
}

enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// The peer's share of blocks of this many KiB, or more.
    PeerShare(u32),
}

use Limit::{AtLeast, AtMost, PeerShare};
use Measure::{Ratio, Value};

const AIMS: &[(&str, Measure, Limit)] = &[
    ("a.lifo_depth1_alloc_write_release", Ratio, AtMost(1.0)),
    ("a.lifo_depth1_alloc_release", Ratio, AtMost(1.0)),
    ("a.lifo_depth64_alloc_write_release", Ratio, AtMost(1.0)),
    ("b.alloc_p50", Ratio, AtMost(1.0 / 20.0)),
    ("b.alloc_p99.9", Ratio, AtMost(1.0 / 20.0)),
    ("b.churn_release_alloc_write", Ratio, AtMost(1.0 / 6.0)),
    ("c.live_over_resident", Value, AtLeast(0.93)),
    ("c.fit_8K_share", Value, PeerShare(8)),
    ("c.fit_64K_share", Value, PeerShare(64)),
    ("c.fit_256K_share", Value, PeerShare(256)),
    ("d.scaling", Value, AtLeast(1.7)),
    ("e.full95_mixed_alloc_p99.9", Ratio, AtMost(1.0 / 20.0)),
    ("e.full95_1KiB_alloc_p99.9", Ratio, AtMost(1.0 / 20.0)),
    // Both, as the answer depends on whether the copy meets its pages in a cache.
    ("g.publish_over_copy", Value, AtMost(1.3)),
    ("g.publish_over_copy.cached", Value, AtMost(1.3)),
    ("h.million_over_10k", Value, AtMost(4.0)),
];

/// A line for each aim whose figures are there.
pub(crate) fn print(report: &Report, peer: &Peer) {
    for (name, measure, limit) in AIMS {
        let Some(ours) = report.median(name) else { continue };
        let value = match measure {
            Value => Some(ours),
            Ratio => peer.value(name).map(|theirs| ours / theirs),
        };
        let bound = match limit {
            AtMost(bound) | AtLeast(bound) => Some(*bound),
            PeerShare(kib) => peer.fit_share(*kib),
        };
        let (Some(value), Some(bound)) = (value, bound) else { continue };
        let reached = if matches!(limit, AtMost(_)) { value <= bound } else { value >= bound };
        println!("arena.aim.{name} {} {} {}", short(value), short(bound), if reached { "pass" } else { "short" });
    }
}
