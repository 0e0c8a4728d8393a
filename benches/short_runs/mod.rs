//! Short runs, which measure nothing, go through every part of the benchmarks.

mod fault_cost;
mod request_cost;
