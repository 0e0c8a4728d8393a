//! Workers and clients that fail or leave: the response to the client, and the other leg.

#![allow(clippy::unwrap_used)]

mod aborts;
mod absent_workers;
mod causes;
mod deadlines;
mod probed_workers;
mod retries;
mod samples;
mod slow_clients;
mod soak;
mod suspect_trials;
mod suspects;
