//! The data path: the bytes that reach the two workers, and those that reach the client.

#![allow(clippy::unwrap_used)]

mod bodies;
mod coded;
mod connections;
mod errors;
mod fields;
mod framing;
mod keepalive;
mod large_bodies;
mod limits;
mod paused;
mod policies;
mod queue;
mod ranks;
mod regression;
mod requests;
mod responses;
mod sample_limits;
mod samples;
mod stored;
mod stream_ends;
mod streams;
mod trailers;
mod two_legs;
