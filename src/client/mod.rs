//! The client's side of a request: its connection, its head, its key and its body.
//!
//! Knows no worker, no leg and no policy. A request meets the files in this order:
//!
//! | file | what it decides |
//! |---|---|
//! | `connection_limit.rs` | whether one more connection is accepted |
//! | `connection.rs`, `counted.rs`, `read_counter.rs` | TLS, and the time that a request head may take |
//! | `http2/` | the same of a connection that speaks HTTP/2, and its requests beside each other |
//! | `refusal.rs` | the response to a head that Pingora refuses |
//! | `kept.rs` | whether a connection survives a failed request |
//! | `request_head.rs` | whether the head has exactly one meaning |
//! | `auth.rs` | whether the client's key is accepted |
//! | `request_body.rs` | whether the body fits into memory and arrives in time |
//! | `cors.rs` | whether a page of another origin may read the response |
//! | `inflight.rs` | how many requests or connections are live |
//! | `trailers.rs` | whether a response ends with trailers |
//! | `shutdown.rs` | which stage of the shutdown the process has reached |
//! | `unused.rs` | nothing: what Pingora's session trait asks for in vain |

mod auth;
mod connection;
mod connection_limit;
mod cors;
mod counted;
mod http2;
mod inflight;
mod kept;
mod read_counter;
mod refusal;
mod request_body;
mod request_head;
mod shutdown;
mod trailers;
mod unused;

pub(crate) use auth::{KeyRefused, Keys};
pub(crate) use connection::{
    ConnectionRules, Connections, Listener, NO_IDLE_TIMER, Origin, head_received, writer,
};
pub(crate) use connection_limit::ConnectionLimit;
pub(crate) use cors::Cors;
pub(crate) use counted::ClientWriter;
pub(crate) use http2::{check_parsed, origin};
pub(crate) use inflight::{Admitted, Inflight};
pub(crate) use kept::Kept;
pub(crate) use refusal::Refusal;
#[cfg(test)]
pub(crate) use request_body::tests::post;
pub(crate) use request_body::{BodyError, BodyMemory, Share, drain_body, interrupted, read_body};
pub(crate) use request_head::BadHead;
pub use request_head::check;
pub(crate) use shutdown::{CutOff, ShutdownWatcher, Stage};
pub(crate) use trailers::{end_with, takes_trailers};
pub(crate) use unused::unused_methods;
