//! Hostile input: limits, request smuggling, keys, TLS.

#![allow(clippy::unwrap_used)]

mod gunicorn_corpus;
mod hostile;
mod smuggling;
mod tls;
mod witnessed;
