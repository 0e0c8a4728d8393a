//! Configuration from files, environment, flags and the library.

#![allow(clippy::unwrap_used)]

mod resolve;
