//! The tests of the benchmarks. This crate root is in the folder of theirs, so that both find the same modules.

#![allow(clippy::unwrap_used, unreachable_pub)] // modules are public to each other

mod fault_cost;
mod programs;
mod request_cost;
mod short_runs;
mod trace_replay;

/// The allocator of `end_to_end.rs`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
