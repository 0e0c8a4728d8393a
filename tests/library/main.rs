//! The library and the repository: examples, the load generator, README, module boundaries.

#![allow(clippy::unwrap_used)]

mod bench;
mod commit;
mod dependencies;
mod doc_tables;
mod examples;
mod interface;
mod metrics_files;
mod module_boundaries;
mod packages;
mod readme;
mod trace;
mod wheel;
