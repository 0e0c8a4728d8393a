//! Where workers and settings come from while the process runs: the file, read again; certificates; names of DNS.

#![allow(clippy::unwrap_used)]

mod by_program;
mod certificates;
mod configured;
mod dns;
mod reload;
mod under_load;
mod watched;
