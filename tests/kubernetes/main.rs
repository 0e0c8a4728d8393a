//! Workers from Kubernetes: the binary in front of workers that an API server lists, and the manifests.

#![allow(clippy::unwrap_used)]

mod access;
mod api_server;
mod asked;
mod changes;
mod cluster;
mod manifests;
mod slices;
mod watches;
