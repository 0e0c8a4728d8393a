//! The dashboard: what it shows, in a real Chromium and without one, and whether its advice is right.

#![allow(clippy::unwrap_used)]

mod access;
mod advice;
mod cluster;
mod page;
mod pictures;
