//! The tests of the benchmarks. This root stands beside theirs, so that a module is found in the same place by both.

#![allow(clippy::unwrap_used, unreachable_pub)] // modules are public to each other

mod fault_cost;
mod programs;
mod request_cost;
mod short_runs;

/// As in `end_to_end.rs`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
