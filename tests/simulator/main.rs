//! The simulated workers: protocol, faults on demand, fidelity to recorded responses.

#![allow(clippy::unwrap_used)]

mod administration;
mod answers;
mod chaos;
mod disconnects;
mod fidelity;
mod fidelity_of_errors;
mod prefix_cache;
mod rendezvous;
mod samples;
mod vllm;
mod vllm_fidelity;
mod vllm_http;
mod worker_faults;
