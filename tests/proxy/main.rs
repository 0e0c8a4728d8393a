//! Requests without faults: what reaches the two workers, and what the client gets.

#![allow(clippy::unwrap_used)]

mod bodies;
mod connections;
mod limits;
mod queue;
mod regression;
mod requests;
mod responses;
mod streams;
mod two_legs;
