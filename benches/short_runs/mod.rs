//! Tests that the benchmarks work: short runs, which measure nothing, reach every part of them.

mod fault_cost;
mod policy_targets;
mod queueing_model;
mod request_cost;
mod trace_replay;
