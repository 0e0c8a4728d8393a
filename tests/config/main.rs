//! Configuration from files, environment, flags and the library.

#![allow(clippy::unwrap_used)]

mod command_line;
mod files;
mod helpers;
mod keys;
mod kubernetes;
mod library;
mod printed;
