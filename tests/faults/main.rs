//! Workers and clients that fail or leave: the response of the client, and the other leg.

#![allow(clippy::unwrap_used)]

mod legs;
mod soak;
