//! The simulated workers: protocol, faults on demand, fidelity to recorded responses.

#![allow(clippy::unwrap_used)]

mod answers;
mod chaos;
mod fidelity;
mod rendezvous;
