//! The bytes of the protocol: `mini_lb::pd` against captured transcripts, generated input and the fuzzers' corpora.

#![allow(clippy::unwrap_used)]

mod captured;
mod corpus;
mod properties;
mod request_state;
mod samples;
