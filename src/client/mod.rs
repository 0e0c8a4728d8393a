//! The client's side of a request: its connection, its head, its key, its body.
//!
//! Nothing here knows a worker, a leg or a policy. The proxy calls these files in the order in which a request
//! meets them: [`connection_limit`], [`connection`] (TLS, deadlines of heads), [`request_head`], [`auth`],
//! [`request_body`]; [`inflight`] counts what is live, for limits and for shutdown.

mod auth;
mod connection;
mod connection_limit;
mod counted;
mod inflight;
mod request_body;
mod request_head;

pub(crate) use auth::Keys;
pub(crate) use connection::{Connections, Listener, WITHOUT_TIMER, note_head};
pub(crate) use connection_limit::ConnectionLimit;
pub(crate) use inflight::{Admitted, CutOff, Inflight, ShutdownWatcher, Stage};
pub(crate) use request_body::{BodyError, BodyMemory, Share, drain, left, read};
pub(crate) use request_head::BadHead;
pub use request_head::check;
