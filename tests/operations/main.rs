//! The binary as an operator sees it: endpoints, admin API, log, signals, upgrade.

#![allow(clippy::unwrap_used)]

mod admin;
mod binary;
mod fan_out;
mod leaving;
mod log;
mod steps;
