//! The upper bounds of the buckets, in nanoseconds.
//!
//! Steps that a person can read: 1, 2 and 5 of each decade, then minutes. A bound that is gone breaks the queries of users,
//! so that bounds are added and none is changed.

use crate::histogram::Bounds;

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;

/// The time to the first byte, the wait for a pair, and whole requests.
#[rustfmt::skip]
pub(super) const REQUEST: &Bounds = &[
    MS, 2 * MS, 5 * MS, 10 * MS, 20 * MS, 50 * MS, 100 * MS, 200 * MS, 500 * MS,
    S, 2 * S, 5 * S, 10 * S, 20 * S, 60 * S, 120 * S, 300 * S, 600 * S, 1800 * S, 3600 * S,
];

/// Parts of the time to the first byte, of which most are far below a millisecond.
#[rustfmt::skip]
pub(super) const PART: &Bounds = &[
    MS / 10, MS / 5, MS / 2, MS, 2 * MS, 5 * MS, 10 * MS, 20 * MS, 50 * MS, 100 * MS, 200 * MS, 500 * MS,
    S, 2 * S, 5 * S, 10 * S, 20 * S, 60 * S, 120 * S, 300 * S, 600 * S,
];

/// The time between two events: finer where tokens come, from 5 to 200 ms.
#[rustfmt::skip]
pub(super) const GAP: &[u64; 20] = &[
    MS, 2 * MS, 5 * MS, 10 * MS, 15 * MS, 20 * MS, 30 * MS, 40 * MS, 50 * MS, 75 * MS,
    100 * MS, 150 * MS, 200 * MS, 300 * MS, 500 * MS, S, 2 * S, 5 * S, 10 * S, 30 * S,
];
