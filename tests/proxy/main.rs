//! Requests without faults: what reaches the two workers, and what the client gets.

#![allow(clippy::unwrap_used)]

mod answers;
mod bodies;
mod queue;
mod regression;
mod two_legs;
