//! Hostile input: limits, request smuggling, keys, TLS.

#![allow(clippy::unwrap_used)]

mod counted;
mod framing;
mod gunicorn_corpus;
mod keys;
mod limits;
mod observers;
mod smuggling;
mod tls;
mod witnessed;
