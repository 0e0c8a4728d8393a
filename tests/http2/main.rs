//! HTTP/2 at the listeners: what it has in common with HTTP/1.1, and what it has for itself.
//!
//! The data path and the table of faults are judged by `tests/proxy` and `tests/faults`, over either protocol: see
//! [`support::bridge`].

#![allow(clippy::unwrap_used)]

mod floods;
mod judge;
mod leaving;
mod limits;
mod requests;
mod trailers;
mod workers;
