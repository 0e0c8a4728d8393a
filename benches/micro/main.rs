//! The cost of single steps of a request, each beside the obvious alternative.
//!
//! ```text
//! cargo bench --bench micro               # all benchmarks
//! cargo bench --bench micro -- merging    # those whose name contains this
//! ```
//!
//! The alternative is a tree of `serde_json` values that is parsed, changed and written again: with
//! `arbitrary_precision` and `preserve_order`, since a proxy may change neither numbers nor order. The results
//! compare the two; the cost of a whole request is measured by `end_to_end`.

#![allow(clippy::unwrap_used)]

mod admission;
mod gathering;
mod merging;
mod policy;
mod rendezvous;
mod selection;
mod splitting;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use divan::Divan;
use mini_lb::pd::{
    self, Batch, Bootstrap, Facts, Fields, Injected, Merge, PrefillData, Room, Route,
};
use serde_json::{Value, json};

/// The allocator of the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Time limit of one benchmark.
const LONGEST: Duration = Duration::from_secs(2);

fn main() {
    Divan::default().max_time(LONGEST).config_with_args().main();
}

const SIZES: [usize; 4] = [1 << 10, 64 << 10, 1 << 20, 16 << 20];
/// Logprobs of a prompt that are merged.
const LOGPROBS: usize = 2_000;
const ROOM: u64 = 4_611_686_018_427_387_904;
